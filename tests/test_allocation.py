# SPDX-License-Identifier: Apache-2.0
"""Widths under a budget: the knapsack, the scores, and what they are worth on a trained network."""

import itertools
import json
import re

import numpy as np
import pytest
import torch
from family_samples import W4A8, mixed, pixels, prepared, tiny_swin, tiny_vit

from golden.vit import VitModel
from qvit_hw import allocation
from qvit_hw.allocation import (
    SCORES,
    Allocation,
    allocate,
    check_score,
    choose_bits,
    knapsack,
    output_errors,
)
from qvit_hw.budget import WEIGHT_BITS, cost_model, parse_budget
from qvit_hw.calibrate import run
from qvit_hw.calibration import prepare
from qvit_hw.errors import UserError
from qvit_hw.integers import export
from qvit_hw.models import load_model
from qvit_hw.models.images import load_images
from qvit_hw.presets import find_preset

pytestmark = pytest.mark.usefixtures("one_thread")


class Trained:
    """The digits, observed once, and the scores of every width."""

    def __init__(self):
        loaded = load_model("digits")
        train, _ = load_images(None, loaded, 32, split="train")
        test, _ = load_images(None, loaded, 128, split="test")
        self.network, self.test = loaded.network, torch.tensor(test)
        self.train = torch.tensor(train)
        self.prepared = prepare(self.network, self.train, W4A8)
        self.exact = self.network.run(self.test).double()
        self.known = {}

    def losses(self, kind, score):
        """Scores, which do not depend on the amount of a budget."""
        if (kind, score) not in self.known:
            found = self.allocate(parse_budget(f"{kind}:8"), score)
            self.known[kind, score] = found.losses
        return self.known[kind, score]

    def allocate(self, budget, score):
        return allocate(self.network, self.train, W4A8, self.prepared.build, budget, score)

    def noise(self, bits, names):
        """Energy of the error on unseen images, with the quantisers of these names on."""
        twin = self.prepared.build(bits)
        error = twin.run(self.test, names) - self.exact
        return float(error.square().sum() / self.exact.square().sum())


@pytest.fixture(scope="module")
def trained():
    return Trained()


# ---------------------------------------------------------------------------------------- knapsack


def instance(seed, groups=5, top=40):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, groups)
    costs = [rng.integers(1, top, size).tolist() for size in sizes]
    losses = [rng.random(size).tolist() for size in sizes]
    least, most = sum(map(min, costs)), sum(map(max, costs))
    return costs, losses, int(rng.integers(least, most + 3))


def worth(table, picks):
    return sum(each[pick] for each, pick in zip(table, picks, strict=True))


def brute(costs, losses, limit):
    every = itertools.product(*(range(len(each)) for each in costs))
    return min(worth(losses, picks) for picks in every if worth(costs, picks) <= limit)


@pytest.mark.parametrize("seed", range(40))
def test_the_knapsack_is_exact(seed):
    costs, losses, limit = instance(seed)
    picks = knapsack(costs, losses, limit)
    assert worth(costs, picks) <= limit
    assert worth(losses, picks) == pytest.approx(brute(costs, losses, limit), abs=1e-12)


def test_the_brute_force_sees_a_greedy_choice():
    """The best gain per cost, again and again, is not the optimum."""
    costs, losses = [[0, 6], [0, 5], [0, 5]], [[6.5, 0.0], [5.0, 0.0], [5.0, 0.0]]
    greedy = 5.0 + 5.0  # the first group's upgrade, and no room for another
    assert brute(costs, losses, 10) < greedy
    assert knapsack(costs, losses, 10) == [0, 1, 1]


@pytest.mark.parametrize("seed", range(20))
def test_a_coarse_knapsack_stays_within_the_limit(seed, monkeypatch):
    costs, losses, _ = instance(seed, groups=6, top=100_000)
    span = sum(max(each) - min(each) for each in costs)
    least = sum(map(min, costs))
    monkeypatch.setattr(allocation, "CELLS", 64)
    before = np.inf
    for share in range(0, 103, 3):
        limit = least + span * share // 100
        picks = knapsack(costs, losses, limit)
        assert worth(costs, picks) <= limit
        # More is never worse, and no more is lost than a cell per group.
        assert worth(losses, picks) <= before
        before = worth(losses, picks)
        smaller = limit - len(costs) * (span // 64 + 1)
        if smaller >= least:
            assert before <= brute(costs, losses, smaller) + 1e-12
    assert before == pytest.approx(sum(map(min, losses)))  # with room for everything


def test_rounding_costs_down_would_break_the_limit():
    """The twin of the test above: what it looks at can fail."""
    broken = 0
    for seed in range(20):
        costs, losses, _ = instance(seed, groups=6, top=100_000)
        unit = sum(max(each) - min(each) for each in costs) // 64 + 1
        limit = sum(map(min, costs)) + 30 * unit
        low = [[cost // unit for cost in each] for each in costs]
        broken += worth(costs, knapsack(low, losses, limit // unit)) > limit
    assert broken > 0


def test_a_limit_below_the_cheapest_is_refused():
    with pytest.raises(ValueError, match=r"^Limit must be at least 3, not 2$"):
        knapsack([[1, 5], [2, 3]], [[1.0, 0.0], [1.0, 0.0]], 2)
    assert knapsack([[1, 5], [2, 3]], [[1.0, 0.0], [1.0, 0.0]], 3) == [0, 0]


# ------------------------------------------------------------------------------------------ scores


@pytest.mark.parametrize("kind", [tiny_vit, tiny_swin])
def test_measured_errors_are_those_of_whole_runs(kind):
    ready = prepared(kind())
    twin, images = ready.build(), ready.images
    names = tuple(cost_model("bitops", ready.network, W4A8).choices)
    exact = ready.network.run(images).double()
    got = output_errors(twin, images, names)
    assert set(got) == set(names)
    for name in names:
        error = twin.run(images, (name,)).double() - exact
        assert got[name] == pytest.approx(float(error.square().sum() / exact.square().sum()), 1e-3)
        assert got[name] > 0
    assert len({round(each, 9) for each in got.values()}) == len(names)


def test_unknown_scores_are_refused():
    assert [check_score(name) for name in SCORES] == ["error", "gradient", "relevance"]
    with pytest.raises(
        UserError, match=r"^Score must be one of error, gradient, relevance, not 'hessian'\.$"
    ):
        check_score("hessian")


# -------------------------------------------------------------------------------------- allocation


@pytest.mark.parametrize("kind", [tiny_vit, tiny_swin])
@pytest.mark.parametrize("preset", ["w4a8", "w4a4", "w8a8p4"])
def test_golden_obeys_the_widths(kind, preset):
    ready = prepared(kind(), find_preset(preset))
    network = ready.network
    bits = mixed(cost_model("bitops", network, ready.preset))
    twin = ready.finish(bits)
    nodes = export(network, twin.plan)
    specs = {node.name: node.spec for node in nodes}
    for name, width in bits.items():
        if name.endswith(".weight"):
            assert specs[name.removesuffix(".weight")].weight_bits == width
        else:
            assert specs[name].out_bits == width
            readers = network.consumers[name]
            assert {
                getattr(specs[each.name], each_bits)
                for each in readers
                for each_bits in ("bits", "value_bits", "in_bits")
                if hasattr(specs[each.name], each_bits)
            } == {width}
    images = pixels(network, 3, seed=9)
    golden = VitModel(nodes, network.input_size).trace(images.numpy())
    ours = twin.record(images)
    for node in network:
        equal = (golden[node.name].reshape(-1) == ours[node.name].reshape(-1)).mean()
        assert equal >= 0.999, node.name
        if node.name in bits:
            half = 1 << (bits[node.name] - 1)
            assert -half <= golden[node.name].min() <= golden[node.name].max() < half


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("kind", ["size", "bitops"])
def test_budgets_are_kept_and_used(trained, score, kind):
    amounts = (4.02, 4.3, 5, 6.05) if kind == "size" else (0.7, 0.9, 1, 1.3)
    model = cost_model(kind, trained.network, W4A8)
    losses, before = trained.losses(kind, score), np.inf
    for amount in amounts:
        limit = parse_budget(f"{kind}:{amount}").limit(model)
        bits = choose_bits(model, losses, limit)
        assert 0.98 * limit < model.cost(bits) <= limit
        loss = sum(losses[name][width] for name, width in bits.items())
        assert loss < before
        before = loss
        # A bit more anywhere is too much, or helps nothing: the budget is used up.
        for name, width in bits.items():
            if width < 8 and losses[name][width + 1] < losses[name][width]:
                assert model.cost({**bits, name: width + 1}) > limit


def test_an_allocation_keeps_to_its_budget(trained):
    found = trained.allocate(parse_budget("size:4.3"), "gradient")
    model = cost_model("size", trained.network, W4A8)
    assert found.limit == parse_budget("size:4.3").limit(model)
    assert found.bits == choose_bits(model, found.losses, found.limit)
    assert found.cost == model.cost(found.bits) <= found.limit


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("kind", ["size", "bitops"])
def test_better_than_uniform_and_than_chance(trained, score, kind):
    """At the preset's own cost, on images that were not calibrated on, quantisers of other things off."""
    model = cost_model(kind, trained.network, W4A8)
    names = tuple(model.choices)
    losses = trained.losses(kind, score)
    found = choose_bits(model, losses, model.cost())
    assert model.cost(found) <= model.cost()
    uniform, noise = trained.noise({}, names), trained.noise(found, names)
    if score != "relevance":  # which asks something else, and is held against chance alone
        assert noise < 0.9 * uniform
    rng = np.random.default_rng(1)
    chance = []
    for _ in range(5):
        dice = {
            name: {width: rng.random() * (9 - width) for width in each}
            for name, each in model.choices.items()
        }
        bits = choose_bits(model, dice, model.cost())
        assert model.cost(bits) > 0.98 * model.cost()
        chance.append(trained.noise(bits, names))
    assert noise < (np.median(chance) if score == "relevance" else min(chance))
    # The twin: widths by the opposite order of scores lose to uniform ones.
    wrong = choose_bits(model, upside_down(losses), model.cost())
    assert trained.noise(wrong, names) > uniform


def upside_down(losses):
    """Losses with the ranks of the weights, and of the tensors, reversed."""
    swapped = {}
    for weights in (True, False):
        names = [name for name in losses if name.endswith(".weight") == weights]
        order = sorted(names, key=lambda name: losses[name][4])
        swapped |= {n: losses[m] for n, m in zip(order, reversed(order), strict=True)}
    return swapped


@pytest.mark.parametrize(
    ("budget", "least"),
    [("size:3", "size:3.627"), ("size:1kB", "size:4.776kB"), ("bitops:0.1", "bitops:0.621")],
)
def test_budgets_that_cannot_be_met_say_the_least(budget, least):
    ready = prepared(tiny_vit())
    sentence = re.escape(f"Budget '{budget}' cannot be met: the least is '{least}'.")
    with pytest.raises(UserError, match=f"^{sentence}$"):
        allocate(ready.network, ready.images, W4A8, ready.build, parse_budget(budget))
    found = allocate(ready.network, ready.images, W4A8, ready.build, parse_budget(least))
    assert set(found.bits.values()) <= {3, 4}


def test_every_width_is_built_once_and_counted():
    ready, built, steps = prepared(tiny_vit()), [], []

    def build(bits):
        built.append(dict(bits))
        return ready.build(bits)

    found = allocate(
        ready.network, ready.images, W4A8, build, parse_budget("bitops:8"), progress=steps.append
    )
    assert [set(bits.values()) for bits in built] == [{3}, {4}, {5}, {6}, {7}, {8}]
    assert all(name.endswith(".weight") for name in built[0])
    assert set(built[1]) == set(found.bits)
    assert steps == [1] * len(WEIGHT_BITS)
    # With room for everything, each has its own best width.
    assert found.bits == {n: min(each, key=lambda b: each[b]) for n, each in found.losses.items()}
    share = found.cost / cost_model("bitops", ready.network, W4A8).cost()
    assert float(found.spent.removeprefix("bitops:")) == pytest.approx(share + 0.0005, abs=0.0005)
    assert found.loss == pytest.approx(sum(found.losses[n][b] for n, b in found.bits.items()))


def test_the_table_and_the_record_tell_the_widths():
    found = Allocation(
        budget=parse_budget("size:4.5"),
        score="error",
        bits={"a.weight": 3, "b": 8},
        losses={"a.weight": {3: 0.01}, "b": {8: 0.0}},
        cost=9,
        limit=10,
        spent="size:4.4",
    )
    assert found.record() == {
        "budget": "size:4.5",
        "spent": "size:4.4",
        "score": "error",
        "bits": {"a.weight": 3, "b": 8},
    }
    table = found.table()
    assert table.title == "size:4.5, spent size:4.4, by error"
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    assert rows == [("a.weight", "3", "-20.0"), ("b", "8", "none")]


def test_calibrate_records_the_allocation(tmp_path, capsys):
    options = {"model": "digits", "preset": "w4a8", "calibration": 4, "vector_images": 1}
    assert run(out=tmp_path / "b", budget="size:4.5", score="relevance", **options) == 0
    assert "size:4.5, spent size:4.49" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    record = manifest["observers"]["allocation"]
    assert (record["budget"], record["score"]) == ("size:4.5", "relevance")
    golden = VitModel.from_bundle(tmp_path / "b")
    specs = {node.name: node.spec for node in golden.nodes}
    assert len(record["bits"]) == 16
    for name, bits in record["bits"].items():
        assert specs[name.removesuffix(".weight")].weight_bits == bits
    assert len(set(record["bits"].values())) > 1


@pytest.mark.parametrize("wrong", [{"budget": "size:x"}, {"score": "luck"}, {"budget": "size:3"}])
def test_calibrate_refuses_before_it_writes(tmp_path, wrong):
    with pytest.raises(UserError):
        run(out=tmp_path / "b", preset="w4a8", calibration=2, vector_images=1, **wrong)
    assert not (tmp_path / "b").exists()

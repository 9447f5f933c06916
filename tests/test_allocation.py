# SPDX-License-Identifier: Apache-2.0
"""Widths under a budget: costs, the knapsack, and what it is worth on a trained network."""

import itertools
import json
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from family_samples import MEAN, STD, tiny_swin, tiny_vit
from torch.utils.flop_counter import FlopCounterMode

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
from qvit_hw.budget import ACT_BITS, WEIGHT_BITS, cost_model, parse_budget
from qvit_hw.calibrate import run
from qvit_hw.calibration import prepare
from qvit_hw.errors import UserError
from qvit_hw.families import lower
from qvit_hw.integers import export
from qvit_hw.models import load_model
from qvit_hw.models.images import load_images
from qvit_hw.presets import find_preset

W4A8 = find_preset("w4a8")

pytestmark = pytest.mark.usefixtures("one_thread")


def pixels(network, count=4, seed=3):
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *network.input_size), dtype=torch.uint8, generator=rng)


def prepared(model, preset=W4A8):
    network = lower(model, MEAN, STD)
    return prepare(network, pixels(network), preset)


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


# ------------------------------------------------------------------------------------------ budget


@pytest.mark.parametrize(
    ("text", "kind", "amount", "unit", "shown"),
    [
        ("size:6", "size", Fraction(6), "", "size:6"),
        ("size:4.25", "size", Fraction(17, 4), "", "size:4.25"),
        ("size:5.2MB", "size", Fraction(26, 5), "MB", "size:5.2MB"),
        (" size:080kB ", "size", Fraction(80), "kB", "size:80kB"),
        ("bitops:0.6", "bitops", Fraction(3, 5), "", "bitops:0.6"),
        ("bitops:10", "bitops", Fraction(10), "", "bitops:10"),
    ],
)
def test_budgets_are_read(text, kind, amount, unit, shown):
    budget = parse_budget(text)
    assert (budget.kind, budget.amount, budget.unit, str(budget)) == (kind, amount, unit, shown)
    assert parse_budget(str(budget)) == budget


@pytest.mark.parametrize(
    "text",
    [
        *("", "6", "size", "size:", "size:-1", "size:6GB", "size:6 MB", "size:1e3", "size:.5"),
        *("size:nan", "bitops:0.6MB", "bitops:x", "bitops:0,6", "macs:1", "Size:6", "size:٦"),
        "size:6\nsize:6",
    ],
)
def test_budgets_that_cannot_be_read(text):
    sentence = (
        "Budget must be size:BITS of a weight, size:NUMBERkB, size:NUMBERMB or bitops:SHARE of the "
        f"preset's, not {text!r}."
    )
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
        parse_budget(text)


def test_limits_are_whole_and_rounded_down():
    network = lower(tiny_vit(), MEAN, STD)
    model = cost_model("size", network, W4A8)
    weights = sum(term.count for term in model.terms)
    assert parse_budget("size:0.1kB").limit(model) == 800
    assert parse_budget("size:0.5MB").limit(model) == 4_000_000
    assert parse_budget("size:5").limit(model) == 5 * weights
    assert parse_budget("size:4.99999").limit(model) == 5 * weights - 1
    ops = cost_model("bitops", network, W4A8)
    assert parse_budget("bitops:1").limit(ops) == ops.cost()
    assert parse_budget("size:1").text(Fraction(31415, 10000), 3) == "size:3.142"
    assert parse_budget("size:1").text(Fraction(31411, 10000), 3) == "size:3.142"  # up


# ------------------------------------------------------------------------------------------- costs


def mixed(model, seed=0):
    rng = np.random.default_rng(seed)
    return {name: int(rng.choice(each)) for name, each in model.choices.items()}


@pytest.mark.parametrize("kind", [tiny_vit, tiny_swin])
def test_size_is_what_the_exported_weights_take(kind):
    ready = prepared(kind())
    model = cost_model("size", ready.network, W4A8)
    for bits in ({}, mixed(model)):
        nodes = export(ready.network, ready.build(bits).plan)
        want = sum(
            node.params.weight.size * node.spec.weight_bits
            for node in nodes
            if node.op in ("linear", "patch_embed")
        )
        assert model.cost(bits) == want
    one = next(iter(model.choices))
    assert model.cost({one: 5}) != model.cost()


@pytest.mark.parametrize("kind", [tiny_vit, tiny_swin])
def test_multiplications_are_those_of_the_original(kind):
    """Without widths, bitops are MACs: torch counts them in timm's own model."""
    original = kind()
    network = lower(original, MEAN, STD)
    model = cost_model("bitops", network, W4A8)
    for module in original.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        original(torch.zeros(1, *network.input_size))
    assert 2 * sum(term.count for term in model.terms) == counter.get_total_flops()


def test_bit_operations_by_hand():
    network = lower(tiny_vit(), MEAN, STD)
    model = cost_model("bitops", network, W4A8)
    bits = mixed(model)
    tokens, width, hidden = 17, 24, 48
    want = 16 * 48 * width * 8 * 8 + width * 7 * 8 * 8  # the patches' pixels; the head
    for block in ("blocks.0", "blocks.1"):
        w = {
            k: bits[f"{block}.{k}.weight"] for k in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        }
        qkv, attend, act = (bits[f"{block}.{k}"] for k in ("attn.qkv", "attn.attend", "mlp.act"))
        want += tokens * width * 3 * width * 8 * w["attn.qkv"]
        want += tokens * tokens * width * (qkv * qkv + W4A8.code_bits * qkv)
        want += tokens * width * width * attend * w["attn.proj"]
        want += tokens * width * hidden * (8 * w["mlp.fc1"] + act * w["mlp.fc2"])
    assert model.cost(bits) == want


def test_names_that_multiply_each_other_are_chosen_together():
    model = cost_model("bitops", lower(tiny_vit(), MEAN, STD), W4A8)
    assert ("blocks.0.attn.attend", "blocks.0.attn.proj.weight") in model.groups
    assert ("blocks.1.mlp.act", "blocks.1.mlp.fc2.weight") in model.groups
    assert ("blocks.1.attn.qkv",) in model.groups
    assert sorted(itertools.chain(*model.groups)) == sorted(model.choices)
    sizes = cost_model("size", lower(tiny_vit(), MEAN, STD), W4A8)
    assert all(len(group) == 1 for group in sizes.groups)
    # Costs of groups add up, whatever the widths of the others.
    first, second = mixed(model, 1), mixed(model, 2)
    group = model.groups[2]
    part = {name: second[name] for name in group}
    change = model.group_cost(group, second) - model.group_cost(group, first)
    assert model.cost(first | part) - model.cost(first) == change != 0


@pytest.mark.parametrize("kind", [tiny_vit, tiny_swin])
def test_what_may_be_chosen(kind):
    network = lower(kind(), MEAN, STD)
    choices = cost_model("bitops", network, W4A8).choices
    linears = {node.name for node in network.of("linear")} - {network.output.name}
    tensors = {node.name for node in network.of("attend", "gelu")}
    tensors |= {node.inputs[0] for node in network.of("scores")}
    assert {n: WEIGHT_BITS if n.endswith(".weight") else ACT_BITS for n in choices} == choices
    assert set(choices) == {f"{name}.weight" for name in linears} | tensors
    assert set(cost_model("size", network, W4A8).choices) == {f"{name}.weight" for name in linears}


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

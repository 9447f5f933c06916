# SPDX-License-Identifier: Apache-2.0
"""What is measured of three models, image by image, and how it adds up."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from subjects import SIZE, make_bench, make_subject, noise

from golden.vit import VitModel
from qvit_hw import tally
from qvit_hw.crew import Crew
from qvit_hw.evaluation import MODELS
from qvit_hw.measuring import (
    SUMS,
    Outcome,
    Subject,
    compare_outputs,
    compare_tensors,
    one_thread,
    rounded_weights,
    weight_error,
)
from qvit_hw.models.images import normalise
from qvit_hw.models.labelled import Labelled
from qvit_hw.sensitivity import find_sensitivity, group_of, part_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def subject() -> Subject:
    return make_subject()


# ----------------------------------------------------------------------------------------- outputs


def test_the_three_models_are_timm_s_the_calibrated_and_golden(subject):
    images = noise(3, seed=4)
    plain, calibrated, golden = subject.outputs(images)
    with torch.no_grad():
        reference = subject.loaded.model(normalise(images, subject.loaded)).numpy()
    assert np.allclose(plain, reference, atol=1e-5)
    assert np.allclose(calibrated, subject.calibrated.run(torch.tensor(images)).numpy())
    integers = subject.golden(images)
    assert np.array_equal(golden, subject.calibrated.values(subject.golden.output, integers))
    assert np.array_equal(golden.argmax(1), integers.argmax(1))


def test_an_outcome_is_what_the_outputs_say(subject):
    images, labels = noise(4, seed=5), [0, 1, 2, 3]
    outputs = subject.outputs(images)
    for place, outcome in enumerate(compare_outputs(subject, images, labels)):
        own = outputs[:, place]
        assert outcome.first == tuple(own.argmax(1))
        order = np.argsort(-own, axis=1, kind="stable")
        assert outcome.rank == tuple(int(np.flatnonzero(row == labels[place])[0]) for row in order)
        error = own[2] - own[0]
        assert outcome.noise[0] == pytest.approx(error @ error)
        assert outcome.energy[0] == pytest.approx(own[0] @ own[0])
        cosine = own[0] @ own[2] / np.linalg.norm(own[0]) / np.linalg.norm(own[2])
        assert outcome.cosine[0] == pytest.approx(cosine)


def test_equal_outputs_rank_as_argmax_does(subject, monkeypatch):
    outputs = np.array([[[1.0, 3.0, 3.0, 0.0, 0.0]]] * 3)
    monkeypatch.setattr(Subject, "outputs", lambda *_: outputs)
    (first,) = compare_outputs(subject, noise(1), [1])
    (second,) = compare_outputs(subject, noise(1), [2])
    assert first.first == second.first == (1, 1, 1)
    assert (first.rank, second.rank) == ((0, 0, 0), (1, 1, 1))


def test_without_labels_there_is_no_rank(subject):
    assert [outcome.rank for outcome in compare_outputs(subject, noise(2))] == [None, None]


# ----------------------------------------------------------------------------------------- tensors


def sums_of(subject: Subject, image: np.ndarray) -> dict[str, dict[str, float]]:
    sums, _ = compare_tensors(subject, image)
    return {
        name: dict(zip(SUMS, row, strict=True))
        for name, row in zip(subject.names, sums, strict=True)
    }


@pytest.mark.parametrize("preset", ["w8a8p4", "w8a8p5"])
def test_calibrated_and_golden_agree_on_every_tensor(preset):
    tiny = make_subject(seed=3, preset=preset)
    for name, sums in sums_of(tiny, noise(1, seed=6)).items():
        assert sums["end_to_end"] <= 0.001 * sums["elements"], name
        assert sums["operator"] <= 0.001 * sums["elements"], name
        assert sums["noise_golden"] < sums["signal"], name


def test_energies_are_those_of_the_values(subject):
    image, name = noise(1, seed=7), "blocks.1.residual1"
    seen = {}

    def tap(node, out):
        seen[node.name] = out.double().numpy()
        return out

    subject.network.run(torch.tensor(image), tap)
    golden = subject.calibrated.values(name, subject.golden.trace(image, [name])[name])
    sums = sums_of(subject, image)[name]
    assert sums["elements"] == golden.size
    assert sums["signal"] == pytest.approx((seen[name] ** 2).sum())
    assert sums["noise_golden"] == pytest.approx(((golden - seen[name]) ** 2).sum())
    assert sums["dot_golden"] == pytest.approx((golden * seen[name]).sum())


def test_lowering_is_exact_up_to_float(subject):
    assert compare_tensors(subject, noise(1))[1] < 1e-5


def disturbed(subject: Subject, name: str, change) -> Subject:
    """The same models, but a node of golden with other parameters."""
    nodes = [
        replace(node, params=change(node.params)) if node.name == name else node
        for node in subject.golden.nodes
    ]
    return replace(subject, golden=VitModel(nodes, SIZE))


def test_a_wrong_operator_is_found_where_it_is(subject):
    """One bias of one layer off by a lot: that operator differs, and tensors behind it, none before."""
    name = "blocks.1.mlp.fc1"

    def change(params):
        bias = params.bias.copy()
        bias[0] += 10_000
        return replace(params, bias=bias)

    sums = sums_of(disturbed(subject, name, change), noise(1, seed=8))
    wrong = {each for each, values in sums.items() if values["operator"]}
    apart = [each for each, values in sums.items() if values["end_to_end"]]
    assert wrong == {name}
    assert sums[name]["ties"] == 0
    assert apart[0] == name
    assert "blocks.1.norm2" not in apart


def test_ties_are_codes_on_a_rounding_boundary(subject):
    """Golden rounds half up; with a zero point of the calibrated model a hair lower, ties alone go down."""
    name = "blocks.0.mlp.fc1"
    nudged = make_subject()
    grid = nudged.calibrated.plan.affine(name)
    nudged.calibrated.plan.grids[name] = replace(grid, zero_point=grid.zero_point - 1e-4)
    image = noise(1, seed=9)
    params = nudged.golden[name].params
    multiplier, shift = params.requant.multiplier.copy(), params.requant.shift.copy()
    multiplier[:], shift[:] = 1 << 15, 16  # every second accumulator is on a boundary
    weights = nudged.calibrated.plan.weights[name]
    exact = np.full(len(weights.scale), 0.5) * float(grid.scale)
    nudged.calibrated.plan.weights[name] = replace(weights, scale=exact)
    halved = disturbed(
        nudged,
        name,
        lambda p: replace(p, requant=replace(p.requant, multiplier=multiplier, shift=shift)),
    )
    sums = sums_of(halved, image)[name]
    assert sums["operator"] > 0
    assert sums["ties"] == sums["operator"]


# --------------------------------------------------------------------------------------- other weights


def test_rounded_weights_are_close_and_others_are_not():
    tiny, other = make_subject(0), make_subject(1)
    assert weight_error(rounded_weights(tiny.calibrated)) < 0.001
    assert weight_error(rounded_weights(make_subject(0, "w4a4").calibrated)) < 0.1
    mixed = replace(tiny.calibrated, network=other.network)
    assert weight_error(rounded_weights(mixed)) > 1


# ----------------------------------------------------------------------------------------- tallies


def outcome(first, rank, equal=(False, False, True)) -> Outcome:
    return Outcome(first, rank, (4.0, 4.0, 4.0), (0.04, 0.04, 0.0), (0.9, 0.9, 1.0), equal)


def test_tallies_count_images():
    outcomes = [
        outcome((1, 1, 1), (0, 0, 0)),
        outcome((1, 2, 2), (0, 3, 3)),
        outcome((1, 2, 2), (0, 6, 6)),
        outcome((3, 2, 2), (1, 0, 0)),
    ]
    accuracies = {each.model: each for each in tally.accuracies(outcomes)}
    assert [accuracies[name].top1.count for name in MODELS] == [3, 2, 2]
    assert [accuracies[name].top5.count for name in MODELS] == [4, 3, 3]
    golden, calibrated, twins = tally.differences(outcomes)
    assert (golden.model, golden.against, golden.won, golden.lost) == ("golden", "float", 1, 2)
    assert golden.difference == -0.25
    assert (calibrated.won, calibrated.lost, twins.won, twins.lost) == (1, 2, 0, 0)
    pairs = tally.agreements(outcomes, classifier=True)
    assert [pair.same.count for pair in pairs] == [1, 1, 4]
    assert [pair.equal for pair in pairs] == [0, 0, 4]
    assert pairs[0].sqnr_db == pytest.approx(20)
    assert pairs[2].sqnr_db is None
    assert tally.agreements(outcomes, classifier=False)[0].same is None


def test_examples_are_disagreements_with_golden_s_faults_first():
    outcomes = [
        outcome((1, 1, 1), (3, 3, 3)),
        outcome((1, 2, 2), (7, 8, 8)),
        outcome((1, 2, 2), (1, 0, 0)),
        outcome((1, 2, 2), (0, 1, 1)),
    ]
    data = Labelled("noise", ("a", "b", "c", "d"), np.zeros(4, int), lambda _: None)
    assert [each.name for each in tally.examples(outcomes, data, 9)] == ["d", "c", "b"]
    assert [each.name for each in tally.examples(outcomes, data, 1)] == ["d"]


@pytest.mark.parametrize(("count", "wanted"), [(1, 1), (5, 9), (9, 5), (359, 16), (7, 7)])
def test_spread_numbers_are_different_and_within(count, wanted):
    numbers = tally.spread(count, wanted)
    assert len(set(numbers)) == len(numbers) == min(count, wanted)
    assert numbers == sorted(numbers)
    assert 0 <= numbers[0] <= numbers[-1] < count


# ------------------------------------------------------------------------------------- sensitivity


@pytest.fixture(scope="module")
def tried(subject):
    with one_thread(), Crew(make_bench(subject)) as crew:
        return find_sensitivity(crew, [0, 3], lambda _what, _tasks, results: results)


def test_every_quantiser_is_tried_and_belongs_to_one_group_and_part(subject, tried):
    assert [cost.name for cost in tried.quantisers] == list(subject.calibrated.quantisers)
    for sets, field in ((tried.groups, "group"), (tried.parts, "part")):
        for each in sets:
            own = [cost for cost in tried.quantisers if getattr(cost, field) == each.name]
            assert len(own) == each.count > 0
        assert sum(each.count for each in sets) == len(tried.quantisers)


def test_costs_are_what_the_calibrated_model_says(subject, tried):
    images = make_bench(subject).data.images([0, 3])
    names = subject.calibrated.quantisers
    exact = subject.calibrated_outputs(images, ())
    for place in (0, 7, len(names) - 1):
        cost = tried.quantisers[place]
        alone = subject.calibrated_outputs(images, [cost.name]) - exact
        assert cost.noise == pytest.approx((alone**2).sum() / (exact**2).sum())
        others = [name for name in names if name != cost.name]
        without = subject.calibrated_outputs(images, others) - exact
        wanted = 10 * np.log10((exact**2).sum() / (without**2).sum())
        assert cost.without_db == pytest.approx(wanted)
        assert cost.gain_db == pytest.approx(wanted - tried.all_db)


def test_a_quantiser_that_changes_nothing_costs_nothing(subject, tried, monkeypatch):
    """And one that breaks everything stands out."""
    victim = "blocks.1.norm2"
    plain = Subject.calibrated_outputs

    def outputs(self, images, active=None):
        found = plain(self, images, ())
        return found + 100 * (victim in active) if active else found

    monkeypatch.setattr(Subject, "calibrated_outputs", outputs)
    with Crew(make_bench(subject)) as crew:
        found = find_sensitivity(crew, [0], lambda _what, _tasks, results: results)
    guilty = [cost.name for cost in found.quantisers if cost.noise > 0]
    assert guilty == [victim]
    assert [cost.name for cost in found.groups if cost.noise > 0] == ["LayerNorm"]
    assert [cost.name for cost in found.parts if cost.noise > 0] == ["blocks.1"]
    innocent = next(cost for cost in found.quantisers if cost.name != victim)
    assert innocent.alone_db is None
    assert innocent.gain_db == pytest.approx(0)


def test_groups_and_parts_have_the_names_that_people_use(subject):
    network = subject.network
    wanted = {
        "patch_embed.weight": ("weights", "embedding"),
        "embed": ("residual stream", "embedding"),
        "blocks.0.norm1": ("LayerNorm", "blocks.0"),
        "blocks.0.attn.qkv": ("q, k, v", "blocks.0"),
        "blocks.0.attn.scores": ("scores", "blocks.0"),
        "blocks.1.attn": ("softmax", "blocks.1"),
        "blocks.1.attn.attend": ("A·V", "blocks.1"),
        "blocks.1.attn.proj": ("sums", "blocks.1"),
        "blocks.1.mlp.fc1": ("GELU", "blocks.1"),
        "blocks.1.mlp.fc2.weight": ("weights", "blocks.1"),
        "norm": ("LayerNorm", "head"),
        "head.weight": ("weights", "head"),
    }
    assert {name: (group_of(network, name), part_of(network, name)) for name in wanted} == wanted

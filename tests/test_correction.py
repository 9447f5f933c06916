# SPDX-License-Identifier: Apache-2.0
"""Gains, biases and weights that are put right after rounding: each on its own."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from family_samples import MEAN, STD, tiny_swin, tiny_vit
from test_calibrated import images

from golden.softmax import SoftmaxSpec
from golden.vit import VitModel
from qvit_hw.calibration import prepare
from qvit_hw.correction import Rows, attention_gains, correct_bias, importance, refit_weights
from qvit_hw.families import lower
from qvit_hw.integers import export
from qvit_hw.presets import PRESETS
from qvit_hw.references import sqnr

COUNT = 20
"""Images: more than run at once."""


def prepared(model=None, preset="w8a8p4", count=COUNT):
    network = lower(model or tiny_vit(), MEAN, STD)
    pixels = images(network, count)
    return prepare(network, pixels, replace(PRESETS[preset], refit=0.0)), pixels


def pairs(calibrated, pixels):
    """{layer: (accumulators, float output in their unit)}, [rows, out]."""
    network, found, exact = calibrated.network, {}, {}

    def tap(node, out):
        exact[node.name] = out
        return out

    def forward(node, inputs):
        if node.name in calibrated.plan.weights:
            sums, scale = calibrated.sums(node, inputs[0]), calibrated.plan.weights[node.name].scale
            found[node.name] = sums, exact[node.name].double() / torch.tensor(scale)
        return calibrated.codes(node, inputs)

    network.run(pixels, tap)
    network.run(pixels, forward=forward)
    return {name: [x.flatten(0, -2).numpy() for x in both] for name, both in found.items()}


# ------------------------------------------------------------------------------------------- gains


@pytest.mark.parametrize(("token", "gain"), [(True, 16 / 17), (False, 1.0)])
def test_gain_of_even_attention(token, gain):
    """Where nothing differs, 17 tokens get 1/17 each, whose code means 1/16; those of 16 are exact."""
    model = tiny_vit(class_token=token, global_pool="avg")
    with torch.no_grad():
        for block in model.blocks:
            width = block.attn.qkv.weight.shape[1]
            block.attn.qkv.weight[:width] = 0
            block.attn.qkv.bias[:width] = 0
    network = lower(model, MEAN, STD)
    gains = attention_gains(network, images(network), SoftmaxSpec())
    assert list(gains) == [node.name for node in network.of("softmax")]
    np.testing.assert_allclose(list(gains.values()), gain, rtol=1e-5)


# ------------------------------------------------------------------------------------------ biases


@pytest.mark.parametrize("model", [tiny_vit, tiny_swin])
def test_means_are_the_float_networks(model):
    prep, pixels = prepared(model())
    calibrated = prep.build()

    def furthest():
        both = pairs(calibrated, pixels).values()
        return max(float(np.abs((sums - exact).mean(axis=0)).max()) for sums, exact in both)

    codes = {name: each.codes for name, each in calibrated.plan.weights.items()}
    assert furthest() > 5
    steps = []
    correct_bias(calibrated, pixels, steps.append)
    assert furthest() <= 0.5 + 1e-3
    assert all(calibrated.plan.weights[name].codes is codes[name] for name in codes)
    assert steps == [1] * len(codes)


# ----------------------------------------------------------------------------------------- weights


def example(rows, noise=0.5, seed=0):
    """Weights, and rows of codes that tell of each other, with errors, and of exact outputs."""
    rng = np.random.default_rng(7)
    weight, mix = rng.normal(size=(6, 10)), rng.normal(size=(10, 10))
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 10)) @ mix + 3
    codes = x + noise * np.abs(mix).mean() * rng.normal(size=x.shape) + 1
    return weight, Rows(codes, x @ weight.T, np.full(rows, 1 / rows))


def error(weight, rows):
    """Mean squared error of a layer with the best bias."""
    off = rows.exact - rows.codes @ weight.T
    return float(np.square(off - off.mean(axis=0)).mean())


def test_refit_is_better_on_other_rows():
    weight, seen = example(2000)
    _, fresh = example(2000, seed=1)
    assert error(seen.refit(weight, 1.0), fresh) < 0.9 * error(weight, fresh)
    swapped = Rows(seen.codes, seen.exact[::-1], seen.share)
    assert error(swapped.refit(weight, 1.0), fresh) > 2 * error(weight, fresh)


def test_damping_holds_the_weights():
    weight, seen = example(2000)
    np.testing.assert_allclose(seen.refit(weight, 1e12), weight, atol=1e-6)
    assert np.abs(seen.refit(weight, 1.0) - weight).max() > 0.1
    # As strong a prior weighs more where there are fewer rows ...
    moved = [np.abs(example(n)[1].refit(weight, 30.0) - weight).mean() for n in (20, 200, 2000)]
    assert moved == sorted(moved)
    # ... and rows that count nothing are no rows.
    share = np.r_[np.full(20, 1 / 20), np.zeros(1980)]
    few = Rows(seen.codes, seen.exact, share)
    alone = Rows(seen.codes[:20], seen.exact[:20], share[:20])
    np.testing.assert_allclose(few.refit(weight, 1.0), alone.refit(weight, 1.0))


def test_exact_inputs_change_nothing():
    weight, seen = example(500, noise=0)
    np.testing.assert_allclose(seen.refit(weight, 1.0), weight, atol=1e-9)
    still = Rows(np.full((5, 10), 3.0), np.ones((5, 6)), np.full(5, 0.2))
    np.testing.assert_allclose(still.refit(weight, 1.0), weight, atol=1e-6)  # nothing to learn from
    assert seen.bias(np.zeros((6, 10), np.int64)) == pytest.approx(seen.exact.mean(axis=0), abs=0.5)


def test_tokens_count_by_what_reads_them():
    network = lower(tiny_vit(), MEAN, STD)
    counts = importance(network, images(network, 3))
    assert set(counts) == {node.name for node in network.of("linear", "patch_embed")}
    last = counts["blocks.1.mlp.fc1"].reshape(3, 17)
    assert (last[:, 0] > 0).all()
    assert not last[:, 1:].any()
    assert (counts["blocks.0.mlp.fc1"] > 0).all()


@pytest.mark.parametrize("preset", ["w8a8p4", "w4a4"])
def test_refitted_network(preset):
    """Nearer to float on images that it was not fitted to, within its widths, and golden as before."""
    prep, pixels = prepared(preset=preset, count=96)
    fresh, plain, calibrated = images(prep.network, 24, seed=5), prep.build(), prep.build()
    refit_weights(calibrated, pixels, 1.0)
    for name, planned in calibrated.plan.weights.items():
        limit = (1 << (planned.bits - 1)) - 1
        assert planned.bits == plain.plan.weights[name].bits
        assert np.abs(planned.codes).max() <= limit
        assert np.array_equal(planned.scale, plain.plan.weights[name].scale)
    exact = prep.network.run(fresh)
    assert sqnr(exact, calibrated.run(fresh)) > sqnr(exact, plain.run(fresh)) + 0.5
    golden = VitModel(export(prep.network, calibrated.plan), prep.network.input_size)
    trace, ours = golden.trace(fresh.numpy()), calibrated.record(fresh)
    assert all(np.array_equal(trace[name], ours[name]) for name in trace)


def test_wrong_targets_are_noticed():
    """Fitted to another network's outputs, it is a worse model of this one."""
    prep, pixels = prepared(count=96)
    fresh, right, wrong = images(prep.network, 24, seed=5), prep.build(), prep.build()
    refit_weights(right, pixels, 1.0)
    place, layer = next(
        (i, node) for i, node in enumerate(wrong.network) if node.name == "blocks.1.mlp.fc2"
    )
    nodes = list(wrong.network.nodes)
    nodes[place] = replace(layer, weight=-layer.weight)
    refit_weights(replace(wrong, network=replace(wrong.network, nodes=tuple(nodes))), pixels, 1.0)
    exact = prep.network.run(fresh)
    assert sqnr(exact, wrong.run(fresh)) < sqnr(exact, right.run(fresh)) - 3


def test_much_damping_leaves_the_codes():
    prep, pixels = prepared()
    plain, calibrated = prep.build(), prep.build()
    refit_weights(calibrated, pixels, 1e12)
    for name, planned in calibrated.plan.weights.items():
        assert np.array_equal(planned.codes, plain.plan.weights[name].codes), name
    refit_weights(calibrated, pixels, 0.1)
    assert any(
        not np.array_equal(planned.codes, plain.plan.weights[name].codes)
        for name, planned in calibrated.plan.weights.items()
    )


@pytest.mark.parametrize("damping", [0.0, -1.0, float("nan")])
def test_damping_out_of_range(damping):
    prep, pixels = prepared(count=2)
    with pytest.raises(ValueError, match=rf"^Damping must be above 0, not {damping!r}$"):
        refit_weights(prep.build(), pixels, damping)

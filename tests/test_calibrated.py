# SPDX-License-Identifier: Apache-2.0
"""The calibrated model against golden, tensor by tensor, and against float as its quantisers go on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from family_samples import MEAN, STD, tiny_swin, tiny_vit
from timm.models.deit import VisionTransformerDistilled

from golden.fixedpoint import rounding_shift
from golden.layernorm import layernorm
from golden.requant import MULTIPLIER
from golden.softmax import SoftmaxSpec, softmax
from golden.vit import VitModel
from qvit_hw.calibrated import CalibratedModel
from qvit_hw.calibration import calibrate_network
from qvit_hw.errors import UserError
from qvit_hw.families import lower
from qvit_hw.integers import export
from qvit_hw.plan import snapped
from qvit_hw.planner import make_plan
from qvit_hw.presets import find_preset
from qvit_hw.references import float_layernorm, float_softmax, sqnr


def images(network, count=6, seed=1):
    rng = torch.Generator().manual_seed(seed)
    shape = (count, *network.input_size)
    # Smooth pictures: noise alone drives every score to the same value.
    low = torch.randint(0, 256, (count, shape[1], 4, 4), generator=rng).float()
    big = torch.nn.functional.interpolate(low, size=shape[2:], mode="bilinear")
    return (big + torch.randn(shape, generator=rng) * 8).clamp(0, 255).to(torch.uint8)


def calibrated(model, affine="dyadic", preset="w8a8p4", **changes):
    network = lower(model, MEAN, STD)
    chosen = replace(find_preset(preset), **changes)
    twin, seen = calibrate_network(network, images(network), chosen, affine=affine)
    return twin, seen


def golden(twin):
    return VitModel(export(twin.network, twin.plan), twin.network.input_size)


VARIANTS = {
    "plain": lambda: tiny_vit(),
    "average of tokens": lambda: tiny_vit(global_pool="avg"),
    "average of the norm's codes": lambda: tiny_vit(global_pool="avg", fc_norm=False),
    "features": lambda: tiny_vit(num_classes=0),
    "no class token": lambda: tiny_vit(class_token=False, global_pool="avg"),
    "norm before the blocks": lambda: tiny_vit(pre_norm=True),
    "no bias": lambda: tiny_vit(qkv_bias=False),
    "registers": lambda: tiny_vit(reg_tokens=2),
    "LayerScale": lambda: tiny_vit(init_values=0.5),
    "distilled": lambda: tiny_vit(VisionTransformerDistilled),
    "Swin": lambda: tiny_swin(),
}
FOLDED_INTO_NOTHING = {"norm before the blocks", "Swin"}
"""A LayerNorm whose outputs begin a stream has no weights behind it for affine "shift" to fold into."""


@pytest.mark.parametrize("preset", ["w8a8p4", "w8a8p5", "w4a8"])
@pytest.mark.parametrize("affine", ["dyadic", "shift"])
@pytest.mark.parametrize("name", VARIANTS)
def test_calibrated_equals_golden(name, affine, preset):
    if affine == "shift" and name in FOLDED_INTO_NOTHING:
        with pytest.raises(UserError, match=r"^LayerNorm '.*' feeds the residual stream"):
            calibrated(VARIANTS[name](), affine, preset)
        return
    twin, _ = calibrated(VARIANTS[name](), affine, preset)
    fresh = images(twin.network, 3, seed=2)
    theirs, ours = golden(twin).trace(fresh.numpy()), twin.record(fresh)
    assert set(theirs) == {node.name for node in twin.network}
    for node in twin.network:
        inputs = {each: fresh.numpy() if each == "image" else theirs[each] for each in node.inputs}
        assert (twin.step(node.name, inputs) == theirs[node.name]).mean() >= 0.999, node.name
        assert (ours[node.name] == theirs[node.name]).mean() >= 0.999, node.name
    output = twin.network.output.name
    assert np.array_equal(twin.values(output, ours[output]), twin.run(fresh).numpy())
    assert sqnr(twin.network.run(fresh), twin.run(fresh)) > (4 if preset == "w4a8" else 8)


def test_a_wrong_scale_is_seen():
    twin, _ = calibrated(tiny_vit())
    fresh = images(twin.network, 3, seed=2)
    theirs = golden(twin).trace(fresh.numpy())
    name = "blocks.1.mlp.fc1"
    plan = twin.plan
    plan.weights[name] = replace(plan.weights[name], scale=plan.weights[name].scale * 1.01)
    ours = CalibratedModel(twin.network, plan).step(
        name, {"blocks.1.norm2": theirs["blocks.1.norm2"]}
    )
    assert (ours == theirs[name]).mean() < 0.999


def test_multipliers_are_exact():
    """Scales are snapped: M / 2**N is the ratio of scales, not near it."""
    twin, _ = calibrated(tiny_vit(), preset="w8a8p5")
    plan = twin.plan
    nodes = {node.name: node for node in export(twin.network, plan)}
    for name in ("blocks.0.attn.qkv", "blocks.1.mlp.fc1"):
        requant = nodes[name].params.requant
        ratio = plan.weights[name].scale / plan.affine(name).scale
        assert MULTIPLIER.holds(requant.multiplier)
        np.testing.assert_allclose(ratio, requant.multiplier / 2.0**requant.shift, rtol=1e-14)
    for name, branch in (("blocks.0.residual1", "blocks.0.attn.proj"), ("embed", "patch_embed")):
        params = nodes[name].params
        ratio = plan.weights[branch].scale / plan.streams[name].scale
        np.testing.assert_allclose(ratio, params.multiplier / 2.0**params.shift, rtol=1e-14)
    before, after = plan.streams["blocks.0.residual1"], plan.streams["blocks.0.residual2"]
    params = nodes["blocks.0.residual2"].params
    assert before.scale / after.scale == pytest.approx(params.gain / 2**params.shift, rel=1e-14)
    assert snapped(1 / 3) == 43691 / 2**17


@pytest.mark.parametrize("affine", ["dyadic", "shift"])
@pytest.mark.parametrize("preset", ["w8a8p4", "w8a8p5"])
def test_golden_operators_are_near_float64(affine, preset):
    twin, _ = calibrated(tiny_vit(), affine, preset)
    recorded = twin.record(images(twin.network, 4, seed=2))
    plan, norms, attentions = twin.plan, [], []
    for node in twin.network.of("layernorm", "softmax"):
        codes = recorded[node.inputs[0]]
        if node.op == "layernorm":
            norm = plan.norms[node.name]
            ideal = np.clip(np.floor(float_layernorm(codes, norm) + 0.5), -128, 127)
            exact = layernorm(codes, plan.layernorm_spec, norm.params)
            norms.append((exact == ideal).mean())
        else:
            params, spec = plan.softmax[node.name], plan.softmax_spec
            ideal = np.minimum(np.floor(float_softmax(codes, spec, params) + 0.5), spec.last_code)
            exact = softmax(codes, spec, params)
            attentions.append((exact == ideal).mean())
        assert np.abs(exact - ideal).max() <= 1, node.name
    assert np.mean(norms) >= 0.995
    assert np.mean(attentions) >= 0.97


def test_quantisers_go_on_one_by_one():
    twin, _ = calibrated(tiny_vit())
    network, names = twin.network, twin.quantisers
    assert names[:4] == (
        "patch_embed.weight",
        "embed",
        "blocks.0.norm1",
        "blocks.0.attn.qkv.weight",
    )
    assert names[-1] == "head.weight"
    assert "pool" not in names
    fresh = images(network, 3, seed=2)
    exact = network.run(fresh)
    assert torch.equal(twin.run(fresh, ()), exact)
    quality = {name: sqnr(exact, twin.run(fresh, (name,))) for name in names}
    assert all(value is not None and value > 8 for value in quality.values()), quality
    whole = sqnr(exact, twin.run(fresh, names))
    assert whole == pytest.approx(sqnr(exact, twin.run(fresh)), abs=3)
    assert whole < min(quality.values()) + 1
    with pytest.raises(ValueError, match=r"^Quantiser must be one of the model's, not 'blocks'$"):
        twin.run(fresh, ("blocks",))


def test_float_model_is_left_alone():
    model = tiny_vit()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calibrated(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("affine", ["dyadic", "shift"])
def test_dead_gamma(affine):
    model = tiny_vit()
    with torch.no_grad():
        model.blocks[0].norm1.weight[:3] = 0
        model.norm.weight[5] = 0
    twin, _ = calibrated(model, affine, "w8a8p5")
    fresh = images(twin.network, 3, seed=2)
    exact = twin.network.run(fresh)
    assert sqnr(exact, twin.run(fresh)) > 15
    assert sqnr(exact, twin.run(fresh, twin.quantisers)) > 15


def test_score_bits_grow_with_the_scores():
    model = tiny_vit()
    with torch.no_grad():
        model.blocks[1].attn.qkv.weight.mul_(12)
    twin, seen = calibrated(model)
    assert seen.peaks["blocks.1.attn"] > 1024
    spec = twin.plan.softmax_spec
    assert spec == SoftmaxSpec(score_bits=spec.score_bits)
    assert spec.score_bits > 12
    assert twin.plan.softmax["blocks.0.attn"].frac == 4
    scores = twin.record(images(twin.network))["blocks.1.attn.scores"]
    assert np.abs(scores).max() < spec.bounds["score"].high


def test_bits_of_single_tensors():
    network = lower(tiny_vit(), MEAN, STD)
    _, seen = calibrated(tiny_vit())
    bits = {"blocks.0.mlp.fc1.weight": 4, "blocks.1.attn.qkv": 6, "blocks.0.mlp.act": 5}
    plan = make_plan(network, seen, find_preset("default"), bits=bits)
    assert np.abs(plan.weights["blocks.0.mlp.fc1"].codes).max() == 7
    assert np.abs(plan.weights["blocks.1.mlp.fc1"].codes).max() == 127
    fresh = images(network, 2, seed=2)
    recorded = CalibratedModel(network, plan).record(fresh)
    for name, width in (
        ("blocks.1.attn.qkv", 6),
        ("blocks.0.mlp.act", 5),
        ("blocks.0.attn.qkv", 8),
    ):
        half = 1 << (width - 1)
        assert -half <= recorded[name].min() < -half // 2 < half // 2 < recorded[name].max() < half
    nodes = export(network, plan)
    trace = VitModel(nodes, network.input_size).trace(fresh.numpy())
    assert all(np.array_equal(trace[name], recorded[name]) for name in recorded)


def test_scores_are_base_2():
    """A score is the float score times log2(e) * 2**frac, to half a unit and the codes of q and k."""
    twin, _ = calibrated(tiny_vit(), preset="w8a8p5")
    fresh = images(twin.network, 2, seed=2)
    seen = {}

    def tap(node, out):
        seen[node.name] = out
        return out

    twin.network.run(fresh, tap)
    qkv = twin.plan.affine("blocks.0.attn.qkv")
    codes = twin.step(
        "blocks.0.attn.scores", {"blocks.0.attn.qkv": qkv.codes(seen["blocks.0.attn.qkv"])}
    )
    assert sqnr(seen["blocks.0.attn.scores"], twin.values("blocks.0.attn.scores", codes)) > 25
    assert rounding_shift(np.array([3]), 1) == 2  # and half up, as everywhere

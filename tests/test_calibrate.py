# SPDX-License-Identifier: Apache-2.0
"""Calibration end to end on small models: bars, grids, determinism, and what it refuses."""

import json
import logging
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.layers import SwiGLU, SwiGLUPacked, set_fused_attn
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer

from golden.layernorm import layernorm
from golden.softmax import SoftmaxSpec, softmax
from qvit_hw import calibrate
from qvit_hw.bundle import load_bundle
from qvit_hw.calibrate import pick_images, run
from qvit_hw.calibrated import CalibratedLayerNorm, QuantLinear, calibrate_model
from qvit_hw.errors import UserError
from qvit_hw.models import LoadedModel, registry
from qvit_hw.observation import Topology, observe
from qvit_hw.presets import Preset, find_preset
from qvit_hw.references import float_layernorm, float_softmax, sqnr


def tiny(seed=0, kind=VisionTransformer, **options):
    """A random ViT of 26 tokens and 24 channels, with residual channels of different size."""
    set_fused_attn(False)
    torch.manual_seed(seed)
    arguments = {
        "img_size": 20,
        "patch_size": 4,
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 3,
        "num_classes": 7,
    }
    model = kind(**(arguments | options)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            elif parameter.ndim > 1 and "pos" not in name:
                parameter.mul_(5)
        model.pos_embed.mul_(10 * torch.exp2(torch.linspace(-2, 2, 24)))
    return model.requires_grad_(False)


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors this small are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def images(count=6, seed=1):
    return torch.randn(count, 3, 20, 20, generator=torch.Generator().manual_seed(seed))


FINE = Preset(
    name="fine",
    base="sqrt2",
    code_bits=6,
    frac_bits=6,
    score_bits=16,
    weight_bits=14,
    act_bits=14,
    residual_bits=16,
)
"""Grids so fine that only a model that is put together wrongly can disagree with the float one."""


def calibrated(affine="dyadic", preset="w8a8p4", observer="minmax", **options):
    model = tiny(**options)
    chosen = preset if isinstance(preset, Preset) else find_preset(preset)
    seen = observe(model, images(), chosen, observer, batch=2)
    return model, calibrate_model(model, seen, chosen, affine)


@pytest.fixture
def loaded(monkeypatch):
    """Make the tiny model what ``run`` loads, and noise what it is calibrated on."""

    def install(**options):
        model = LoadedModel("tiny", "random", tiny(**options), (3, 20, 20), (0.5,) * 3, (0.25,) * 3)

        def noise(source, _model, limit, *, split="train"):
            assert source is None
            rng = np.random.default_rng(len(split))
            pixels = rng.integers(0, 256, (limit, 3, 20, 20), dtype=np.uint8)
            return pixels, [f"{split}-{index}" for index in range(limit)]

        monkeypatch.setattr(calibrate, "load_model", lambda *_args, **_options: model)
        monkeypatch.setattr(calibrate, "load_images", noise)
        return model

    install()
    return install


# --------------------------------------------------------------------------------------- the model


@pytest.mark.parametrize("affine", ["dyadic", "shift"])
@pytest.mark.parametrize("preset", ["w8a8p4", "w8a8p5"])
def test_golden_equals_float64_on_a_small_model(affine, preset):
    _, twin = calibrated(affine, preset)
    recorded = twin.record(images(4, seed=2))
    norms, attentions = [], []
    for name, op in twin.layers:
        seen = recorded[name]
        if op == "layernorm":
            plan = twin.plans[name]
            ideal = np.clip(np.floor(float_layernorm(seen["input"], plan) + 0.5), -128, 127)
            golden = layernorm(seen["input"], twin.layernorm_spec, plan.params)
            norms.append((golden == ideal).mean())
            fake = seen["output"]
        else:
            reference = float_softmax(seen["scores"], twin.softmax_spec, twin.softmax[name])
            ideal = np.minimum(np.floor(reference + 0.5), twin.softmax_spec.last_code)
            golden = softmax(seen["scores"], twin.softmax_spec, twin.softmax[name])
            attentions.append((golden == ideal).mean())
            fake = seen["codes"]
        assert np.abs(golden - ideal).max() <= 1, name
        assert (fake == ideal).mean() > 0.999, name  # torch computes what the reference defines
    assert np.mean(norms) >= 0.995
    assert np.mean(attentions) >= 0.97


@pytest.mark.parametrize("observer", ["minmax", "ema", "percentile", "omse", "kl"])
def test_calibrated_output_follows_the_float_model(observer):
    model, twin = calibrated(observer=observer)
    fresh = images(8, seed=3)
    assert sqnr(model(fresh), twin.forward(fresh)) > 10


def test_float_model_is_left_alone():
    model, before = tiny(), tiny().state_dict()
    inputs = images()
    expected = model(inputs)
    seen = observe(model, inputs, find_preset("default"))
    calibrate_model(model, seen, find_preset("default"))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(model(inputs), expected)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_layers_in_order_of_execution():
    _, twin = calibrated()
    assert [name for name, _ in twin.layers] == [
        "blocks.0.norm1",
        "blocks.0.attn",
        "blocks.0.norm2",
        "blocks.1.norm1",
        "blocks.1.attn",
        "blocks.1.norm2",
        "norm",
    ]


def test_recorded_integers_are_the_grids():
    _, twin = calibrated()
    recorded = twin.record(images(2))
    for name, op in twin.layers:
        for kind, values in recorded[name].items():
            assert np.issubdtype(values.dtype, np.integer)
            if op == "layernorm":
                assert values.shape == (2, 26, 24)
                assert -128 <= values.min() < values.max() <= 127
            else:
                assert values.shape == (2, 3, 26, 26)
                bounds = twin.softmax_spec.bounds["score" if kind == "scores" else "code"]
                assert bounds.holds(values)


def test_residual_is_on_the_grid_of_the_norm_that_reads_it():
    _, twin = calibrated()
    block = twin.model.blocks[1]
    seen = []
    block.norm1.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    twin.forward(images(2))
    assert torch.equal(block.norm1.input(seen[0]), seen[0])


def test_weights_are_int8_per_output_channel():
    _, twin = calibrated("shift")
    layers = [part for part in twin.model.modules() if isinstance(part, QuantLinear)]
    assert len(layers) == 4 * 2 + 1
    for layer in layers:
        assert layer.codes.dtype == torch.int8
        assert int(layer.codes.min()) >= -127
        assert (layer.codes.abs().amax(dim=1) == 127).all()


@pytest.mark.parametrize("affine", ["dyadic", "shift"])
@pytest.mark.parametrize(
    "options",
    [
        {"global_pool": "avg"},
        {"num_classes": 0},
        {"class_token": False, "global_pool": "avg"},
        {"pre_norm": True},
        {"qkv_bias": False},
        {"scale_mlp_norm": True},
        {"reg_tokens": 2},
        {"mlp_layer": SwiGLU},
        {"mlp_layer": SwiGLUPacked},
    ],
    ids=str,
)
def test_variants_of_vit(affine, options):
    model, twin = calibrated(affine, FINE, **options)
    assert sqnr(model(images()), twin.forward(images())) > 25


@pytest.mark.parametrize("affine", ["dyadic", "shift"])
def test_dead_gamma(affine):
    model = tiny()
    with torch.no_grad():
        model.blocks[0].norm1.weight[:3] = 0
        model.norm.weight[5] = 0
    twin = calibrate_model(model, observe(model, images(), FINE), FINE, affine)
    assert sqnr(model(images()), twin.forward(images())) > 25


@pytest.mark.parametrize("affine", ["dyadic", "shift"])
def test_both_heads_of_a_distilled_deit(affine):
    model, twin = calibrated(affine, FINE, kind=VisionTransformerDistilled)
    assert twin.topology.consumers["norm"] == ("head", "head_dist")
    assert sqnr(model(images()), twin.forward(images())) > 25


def test_score_bits_grow_with_the_scores():
    model = tiny()
    with torch.no_grad():
        model.blocks[1].attn.qkv.weight.mul_(50)
    seen = observe(model, images(), find_preset("default"))
    assert seen.peaks["blocks.1.attn"] > 1024
    twin = calibrate_model(model, seen, find_preset("default"))
    assert twin.softmax_spec == SoftmaxSpec(score_bits=twin.softmax_spec.score_bits)
    assert twin.softmax_spec.score_bits > 12
    assert twin.softmax["blocks.0.attn"].frac == 4
    scores = twin.record(images())["blocks.1.attn"]["scores"]
    assert np.abs(scores).max() < twin.softmax_spec.bounds["score"].high


def test_masks_are_refused():
    _, twin = calibrated()
    with pytest.raises(ValueError, match=r"^Mask must be None: "):
        twin.model.blocks[0](torch.zeros(1, 26, 24), is_causal=True)


def test_parts_that_calibration_does_not_know():
    with pytest.raises(UserError, match=r"^Attention at 'blocks\.0\.attn' is not supported with"):
        Topology.of(tiny(qk_norm=True))
    model = tiny()
    model.blocks[0].ls1 = torch.nn.LayerNorm(24)
    message = r"^LayerNorm at 'blocks\.0\.ls1' is not supported: calibration does not know it\.$"
    with pytest.raises(UserError, match=message):
        Topology.of(model)


def test_folded_norm_means_the_same():
    model, twin = calibrated("shift")
    norm = twin.model.blocks[0].norm1
    assert isinstance(norm, CalibratedLayerNorm)
    assert norm.folded
    x = torch.randn(1, 26, 24) * 3
    value = norm(x) * norm.scale + norm.rest
    assert sqnr(model.blocks[0].norm1(norm.input(x)), value) > 25


# ------------------------------------------------------------------------------------- the command


def test_run_writes_a_bundle(tmp_path, loaded, capsys):
    assert run(out=tmp_path / "b", calibration=4, vector_images=2) == 0
    bundle = load_bundle(tmp_path / "b")
    assert bundle.manifest["model"]["name"] == "tiny"
    assert bundle.manifest["preset"] == "w8a8p4"
    assert bundle.manifest["observers"] == {"activations": "minmax", "weights": "minmax"}
    assert bundle.manifest["images"] == {"source": "bundled", "calibration": 4, "vectors": 2}
    for layer in bundle.layers:
        rows, length = (2 * 26, 24) if layer.op == "layernorm" else (2 * 3 * 26, 26)
        assert layer.input().shape == (rows, length)
        operator = layernorm if layer.op == "layernorm" else softmax
        assert np.array_equal(operator(layer.input(), layer.spec, layer.params), layer.golden())
        metrics = layer.entry["metrics"]
        last = 127 if layer.op == "layernorm" else layer.spec.last_code
        low = -128 if layer.op == "layernorm" else 0
        ideal = np.clip(np.floor(layer.float().astype(float) + 0.5), low, last)
        equal = (ideal == layer.golden()).mean()
        assert metrics["equal"] == pytest.approx(equal, abs=2e-3)  # float32 moves ties
        assert metrics["max_difference"] <= 1
    attention = bundle.layer("blocks.0.attn").entry
    assert (attention["heads"], attention["tokens"]) == (3, 26)
    assert attention["metrics"]["av_sqnr"] > attention["metrics"]["av_sqnr_ideal"] - 0.1
    printed = capsys.readouterr().out
    assert "blocks.1.norm2" in printed
    assert re.search(r"softmax: \d+\.\d\d % equal, worst layer", printed)


def test_no_path_and_no_date_in_a_bundle(tmp_path, loaded):
    run(out=tmp_path / "b", calibration=2, vector_images=1)
    manifest = (tmp_path / "b" / "manifest.json").read_text()
    assert str(tmp_path) not in manifest
    assert not re.search(r"20\d\d-\d\d", manifest)


@pytest.mark.parametrize("affine", ["dyadic", "shift"])
def test_same_input_same_bytes(tmp_path, loaded, affine):
    for name in ("one", "two"):
        run(out=tmp_path / name, calibration=3, vector_images=1, affine=affine)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
    layer = load_bundle(tmp_path / "one").layer("blocks.0.norm1")
    assert ("output" in layer.entry["scale"]) == (affine == "dyadic")
    assert ("folded" in layer.entry) == (affine == "shift")


def test_default_vectors_give_257_rows(tmp_path, loaded):
    run(out=tmp_path / "b", calibration=2)
    layers = load_bundle(tmp_path / "b").layers
    assert min(len(layer.input()) for layer in layers) == 26 * 10


@pytest.mark.parametrize("trained", [True, False])
def test_random_weights_are_told(tmp_path, loaded, capsys, monkeypatch, trained):
    model = replace(loaded(), source="random weights (seed 0)", trained=trained)
    monkeypatch.setattr(calibrate, "load_model", lambda *_args, **_options: model)
    run(out=tmp_path / "b", calibration=2, vector_images=1)
    told = "warning: tiny has random weights (seed 0)\n" in capsys.readouterr().err
    assert told != trained


def test_retries_of_the_hub_are_not_logged(tmp_path, monkeypatch, caplog):
    hub = logging.getLogger("huggingface_hub.utils")
    create = registry.timm.create_model

    def offline(name, pretrained=False, **options):
        if pretrained:
            hub.warning("Retrying in 1s [Retry 1/5].")
            raise OSError("no network")
        return create(name, pretrained=pretrained, **options)

    monkeypatch.setattr(registry.timm, "create_model", offline)
    with pytest.raises(UserError, match=r"could not be fetched \(no network\)"):
        run(out=tmp_path / "b", model="vit_tiny_patch16_224", pretrained=True)
    assert caplog.text == ""
    hub.warning("heard again")
    assert "heard again" in caplog.text


def test_note_on_score_bits(tmp_path, loaded, capsys):
    model = loaded()
    with torch.no_grad():
        model.model.blocks[1].attn.qkv.weight.mul_(50)
    run(out=tmp_path / "b", calibration=2, vector_images=1)
    assert re.search(r"note: scores need \d\d bits; w8a8p4 has 12", capsys.readouterr().out)


def spoil_nan(model):
    model.blocks[1].norm2.bias[3] = float("nan")


def spoil_infinite(model):
    model.blocks[0].mlp.fc1.bias[3] = float("inf")


def spoil_constant(model):
    model.blocks[1].mlp.fc1.weight.zero_()
    model.blocks[1].mlp.fc1.bias.fill_(0.5)


def spoil_scores(model):
    model.blocks[0].attn.qkv.weight[:24].zero_()
    model.blocks[0].attn.qkv.bias[:24].zero_()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_nan, r"^Activations of 'blocks\.1\.norm2\.output' must be finite, not NaN\.$"),
        (
            spoil_infinite,
            r"^Activations of 'blocks\.0\.mlp\.act\.input' must be finite, not infinite\.$",
        ),
        (
            spoil_constant,
            r"^Activations of 'blocks\.1\.mlp\.(act|fc2)\.input' must vary .* be [\d.]+ everywhere\.$",
        ),
        (
            spoil_scores,
            r"^Activations of 'blocks\.0\.attn\.scores' must vary .* be 0 everywhere\.$",
        ),
    ],
)
def test_bad_activations_leave_nothing_behind(tmp_path, loaded, spoil, message):
    with torch.no_grad():
        spoil(loaded().model)
    with pytest.raises(UserError, match=message):
        run(out=tmp_path / "deep" / "b", calibration=2, vector_images=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "w2a2"}, r"^Preset must be one of w8a8p4, w8a8p5, not 'w2a2'\.$"),
        ({"observer": "mean"}, r"^Observer must be one of minmax, .*, not 'mean'\.$"),
        ({"affine": "none"}, r"^Affine must be one of dyadic, shift, not 'none'\.$"),
        ({"calibration": 0}, r"^Number of calibration images must be at least 1, not 0\.$"),
        ({"vector_images": 0}, r"^Number of vector images must be at least 1, not 0\.$"),
    ],
)
def test_bad_options(tmp_path, loaded, options, message):
    with pytest.raises(UserError, match=message):
        run(out=tmp_path / "b", **options)
    assert list(tmp_path.iterdir()) == []


def test_rows_longer_than_the_unit(tmp_path, loaded):
    loaded(img_size=132, patch_size=4)
    message = r"^Model 'tiny' has rows of 1090 tokens: the unit's maximum is 1024\.$"
    with pytest.raises(UserError, match=message):
        run(out=tmp_path / "b", model="tiny")
    assert list(tmp_path.iterdir()) == []


def test_output_that_is_something_else_fails_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "note.txt").write_text("")
    monkeypatch.setattr(calibrate, "load_model", lambda *_args, **_options: pytest.fail("loaded"))
    with pytest.raises(UserError, match=r"^Output '.*' holds other files and no bundle"):
        run(out=tmp_path)


def picture_folder(path, count):
    path.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{index:03d}.png")
    return path


@pytest.mark.parametrize(
    ("files", "calibration", "vectors", "expected"),
    [
        (10, 4, 2, (4, 2)),
        (6, 4, 2, (4, 2)),
        (4, 32, 4, (3, 1)),
        (2, 1, 5, (1, 1)),
        (1, 8, 8, (1, 1)),
    ],
)
def test_a_folder_is_dealt_out(tmp_path, files, calibration, vectors, expected):
    model = LoadedModel("tiny", "random", tiny(), (3, 20, 20), (0.5,) * 3, (0.25,) * 3)
    first, second = pick_images(model, picture_folder(tmp_path / "p", files), calibration, vectors)
    assert (len(first), len(second)) == expected
    if files > 1:
        assert not {image.tobytes() for image in first} & {image.tobytes() for image in second}


def test_digits_end_to_end(tmp_path, capsys):
    assert run(out=tmp_path / "digits", calibration=64, vector_images=4) == 0
    bundle = load_bundle(tmp_path / "digits")
    assert len(bundle.layers) == 13
    equal = {
        op: [layer.entry["metrics"]["equal"] for layer in bundle.layers if layer.op == op]
        for op in ("layernorm", "softmax")
    }
    assert np.mean(equal["layernorm"]) >= 0.995
    assert np.mean(equal["softmax"]) >= 0.97
    assert all(layer.entry["metrics"]["max_difference"] <= 1 for layer in bundle.layers)
    assert "blocks.3.attn" in capsys.readouterr().out


def test_timm_model_with_a_checkpoint_and_a_folder(tmp_path):
    from timm import create_model

    set_fused_attn(False)
    torch.manual_seed(3)
    model = create_model("vit_tiny_patch16_224", depth=12)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    out = tmp_path / "b"
    run(
        out=out,
        model="vit_tiny_patch16_224",
        checkpoint=tmp_path / "weights.safetensors",
        images=picture_folder(tmp_path / "pictures", 3),
        calibration=2,
        vector_images=1,
    )
    bundle = load_bundle(out)
    assert len(bundle.layers) == 37
    assert bundle.manifest["images"] == {"source": "pictures", "calibration": 2, "vectors": 1}
    assert bundle.manifest["model"]["source"] == "checkpoint weights.safetensors"
    assert bundle.layer("blocks.11.attn").input().shape == (3 * 197, 197)
    text = json.dumps(bundle.manifest)
    assert str(tmp_path) not in text


def test_empty_folder(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"^Image folder '.*' holds no image"):
        run(out=tmp_path / "b", images=tmp_path / "none")
    assert [path.name for path in tmp_path.iterdir()] == ["none"]

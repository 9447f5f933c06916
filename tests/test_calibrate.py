# SPDX-License-Identifier: Apache-2.0
"""The command ``calibrate`` on small models: what it writes, that it writes it again, what it refuses."""

import json
import logging
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.layers import set_fused_attn
from timm.models.vision_transformer import VisionTransformer

from golden.layernorm import layernorm
from golden.softmax import softmax
from golden.vit import VitModel
from qvit_hw import calibrate
from qvit_hw.bundle import load_bundle
from qvit_hw.calibrate import pick_images, run
from qvit_hw.errors import UserError
from qvit_hw.models import LoadedModel, registry
from qvit_hw.stored_plan import rebuild

pytestmark = pytest.mark.usefixtures("one_thread")


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


@pytest.fixture
def loaded(monkeypatch):
    """Make the tiny model what ``run`` loads, and noise what it is calibrated on."""

    def install(**options):
        network = tiny(**options)
        size = (3, *network.patch_embed.img_size)
        model = LoadedModel("tiny", "random", network, size, (0.5,) * 3, (0.25,) * 3)

        def noise(source, _model, limit, *, split="train"):
            assert source is None
            rng = np.random.default_rng(len(split))
            pixels = rng.integers(0, 256, (limit, *size), dtype=np.uint8)
            return pixels, [f"{split}-{index}" for index in range(limit)]

        monkeypatch.setattr(calibrate, "load_model", lambda *_args, **_options: model)
        monkeypatch.setattr(calibrate, "load_images", noise)
        return model

    install()
    return install


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
    assert len(bundle.network.nodes) == 2 + 2 * 12 + 3
    printed = capsys.readouterr().out
    assert "blocks.1.norm2" in printed
    assert re.search(r"softmax: \d+\.\d\d % equal, worst layer", printed)


def test_a_bundle_holds_the_calibrated_and_the_golden_model(tmp_path, loaded):
    model = loaded()
    run(out=tmp_path / "b", calibration=4, vector_images=1, preset="w8a8p5", affine="shift")
    bundle = load_bundle(tmp_path / "b")
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 256, (3, 3, 20, 20), dtype=np.uint8)
    twin, golden = rebuild(bundle, model.network), VitModel.from_bundle(tmp_path / "b")
    ours, theirs = twin.record(torch.tensor(pixels)), golden.trace(pixels)
    assert list(ours) == list(theirs)
    for name, codes in ours.items():
        assert (codes == theirs[name]).mean() >= 0.999, name
    assert np.array_equal(
        twin.run(torch.tensor(pixels)).numpy(), twin.values("head", theirs["head"])
    )
    layer = bundle.layer("blocks.1.attn")
    assert np.array_equal(layer.golden(), softmax(layer.input(), layer.spec, layer.params))


def test_a_bundle_of_another_model_is_refused(tmp_path, loaded):
    loaded()
    run(out=tmp_path / "b", calibration=2, vector_images=1)
    bundle = load_bundle(tmp_path / "b")
    other = loaded(depth=1).network
    with pytest.raises(
        UserError, match=r"^Bundle '.*' is not of this model: it was made of 'tiny'\.$"
    ):
        rebuild(bundle, other)
    wide = loaded(mlp_ratio=2).network
    with pytest.raises(
        UserError, match=r"^Bundle '.*' has other weights at 'blocks\.0\.mlp\.fc1'\.$"
    ):
        rebuild(bundle, wide)
    bundle.manifest["plan"]["weights"].pop("head")
    with pytest.raises(UserError, match=r"^Bundle '.*' has parts that disagree: no scales of 'head'\.$"):
        rebuild(bundle, loaded().network)


def test_parameters_that_are_not_those_of_the_vectors(tmp_path, loaded):
    run(out=tmp_path / "b", calibration=2, vector_images=1)
    path = tmp_path / "b" / "manifest.json"
    manifest = json.loads(path.read_text())
    norms = [node for node in manifest["network"]["nodes"] if node["op"] == "layernorm"]
    norms[0]["params"], norms[1]["params"] = norms[1]["params"], norms[0]["params"]
    path.write_text(json.dumps(manifest))
    message = (
        r"^Bundle '.*' has parts that disagree: "
        r"golden vectors of layer 'blocks\.0\.norm1' are not of its parameters\.$"
    )
    with pytest.raises(UserError, match=message):
        load_bundle(tmp_path / "b")


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
        (spoil_nan, r"^Activations of 'blocks\.1\.norm2' must be finite, not NaN\.$"),
        (
            spoil_infinite,
            r"^Activations of 'blocks\.0\.mlp\.fc1' must be finite, not infinite\.$",
        ),
        (
            spoil_constant,
            r"^Activations of 'blocks\.1\.mlp\.(fc1|act)' must vary .* be [\d.]+ everywhere\.$",
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
        ({"preset": "w2a2"}, r"^Preset must be one of w8a8p4, .*, not 'w2a2'\.$"),
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

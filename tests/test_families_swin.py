# SPDX-License-Identifier: Apache-2.0
"""timm's SwinTransformer as a network: windows, shifts and merging are indices, and equal to timm."""

import pytest
import timm
import torch
from family_samples import BLOCK, MEAN, STD, assert_equal, refused, shake, tiny_swin
from timm.layers import RmsNorm
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from qvit_hw.families import lower
from qvit_hw.network import IMAGE

# --------------------------------------------------------------------------------------- equality

VARIANTS = {
    "plain": ({}, [(4, 16), (4, 16), None, None], [1]),
    "no square": ({"img_size": (16, 32)}, [(8, 16), (8, 16), (2, 16), (2, 16)], [1, 3]),
    "windows that are no squares": (
        {"window_size": (2, 4)},
        [(8, 8), (8, 8), (2, 8), (2, 8)],
        [1, 3],
    ),
    "a shift along one axis": ({"window_size": (8, 4)}, [(2, 32), (2, 32), None, None], [1]),
    "window of the whole map": ({"window_size": 8}, [None] * 4, []),
    "window beyond the map": ({"window_size": 16}, [None] * 4, []),
    "a shift of one window": (
        {"always_partition": True},
        [(4, 16), (4, 16), None, (1, 16)],
        [1, 3],
    ),
    "odd windows": (
        {"img_size": 24, "window_size": 3},
        [(16, 9), (16, 9), (4, 9), (4, 9)],
        [1, 3],
    ),
    "windows by stage": (
        {"img_size": 24, "window_size": ((4, 4), (3, 3))},
        [(9, 16), (9, 16), (4, 9), (4, 9)],
        [1, 3],
    ),
}


@pytest.mark.parametrize(("options", "windows", "masked"), VARIANTS.values(), ids=VARIANTS)
def test_windows(options, windows, masked):
    network = assert_equal(tiny_swin(**options))
    found = [node.windows for node in network.of("scores")]
    assert [None if index is None else tuple(index.shape) for index in found] == windows
    softmaxes = network.of("softmax")
    assert [i for i, node in enumerate(softmaxes) if node.mask is not None] == masked
    assert all(node.mask is None or node.mask.dtype == torch.bool for node in softmaxes)


OTHERS = {
    "no bias of q, k, v": {"qkv_bias": False},
    "narrow heads": {"head_dim": 5},
    "no classes": {"num_classes": 0},
    "three stages": {"img_size": 32, "depths": (1, 2, 1), "num_heads": (2, 3, 4)},
    "one stage": {"depths": (2,), "num_heads": (2,)},
    "dropout": {f"{where}_rate": 0.3 for where in ("drop", "proj_drop", "attn_drop", "drop_path")},
}


@pytest.mark.parametrize("options", OTHERS.values(), ids=OTHERS)
def test_other_variants(options):
    assert_equal(tiny_swin(**options))


def test_without_pooling_the_features_are_rows_of_tokens():
    model = tiny_swin(num_classes=0, global_pool="")
    network = lower(model, MEAN, STD)
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    shift, scale = (torch.tensor(values).reshape(-1, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        want = model((images / 255 - shift) / scale).flatten(1, 2)
    assert network.output.name == "norm"
    torch.testing.assert_close(network.run(images), want, rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning:timm")  # its resampling of positions
@pytest.mark.parametrize("size", [(16, 16), (32, 16), (24, 24)])
def test_a_model_that_was_given_another_size(size):
    model = tiny_swin()
    model.set_input_size(size, window_size=(4, 2) if size == (32, 16) else size[0] // 4)
    assert assert_equal(model).input_size == (3, *size)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swin_s3_tiny_224"])
def test_models_of_timm(name):
    assert_equal(shake(timm.create_model(name)))


def test_the_comparison_sees_every_parameter():
    """The negative twin: whichever parameter is read wrongly, the outputs differ."""
    images = torch.randint(0, 256, (2, 3, 16, 32), dtype=torch.uint8)
    model = tiny_swin(img_size=(16, 32))
    want = lower(model, MEAN, STD).run(images)
    for name, parameter in model.named_parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.mul_(1.05).add_(0.02 * torch.randn_like(kept))
        got = lower(model, MEAN, STD).run(images)
        assert (got - want).abs().max() > 1e-3 * want.abs().max(), name
        with torch.no_grad():
            parameter.copy_(kept)


def test_the_comparison_sees_shift_mask_and_order():
    """The negative twin of the indices: without a mask, a shift or the order of merging it fails."""
    model = tiny_swin()
    block = model.layers[0].blocks[1]
    wrong = {
        "mask": lambda: setattr(block, "attn_mask", None),
        "shift": lambda: setattr(block, "shift_size", (1, 2)),
    }
    for part, spoil in wrong.items():
        kept = block.attn_mask, block.shift_size
        want = lower(model, MEAN, STD)
        spoil()
        got = lower(model, MEAN, STD)
        block.attn_mask, block.shift_size = kept
        images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
        assert not torch.allclose(got.run(images), want.run(images), rtol=0, atol=1e-3), part
    index = lower(model, MEAN, STD)["layers.1.downsample.merge"].index
    assert index[:2].tolist() == [[0, 8, 1, 9], [2, 10, 3, 11]]


def test_names_and_order():
    network = lower(tiny_swin(), MEAN, STD)
    first, second = ([f"layers.{s}.blocks.{b}.{n}" for b in (0, 1) for n in BLOCK] for s in (0, 1))
    merging = [f"layers.1.downsample.{n}" for n in ("merge", "norm", "reduction", "start")]
    embed = ["patch_embed", "patch_embed.start", "patch_embed.norm", "start"]
    names = [*embed, *first, *merging, *second, "norm", "pool", "head.fc"]
    assert [node.name for node in network] == names
    assert network.nodes[0].inputs == (IMAGE,)
    assert network["layers.1.blocks.0.residual1"].inputs[0] == "layers.1.downsample.start"


# --------------------------------------------------------------------------------------- refusals

NONE = "has no integer counterpart"
PADDED = "tokens would be padded"
PARTS = {
    f"SwinTransformerBlock at 'layers.0.blocks.0' {NONE}: a feature map of 8 x 8 {PADDED} "
    "to windows of 3 x 3.": {"window_size": 3},
    f"SwinTransformerBlock at 'layers.1.blocks.0' {NONE}: a feature map of 4 x 6 {PADDED} "
    "to windows of 4 x 4.": {"img_size": (16, 24)},
    f"PatchMerging at 'layers.1.downsample' {NONE}: a feature map of 7 x 8 {PADDED}.": {
        "img_size": (14, 16),
        "window_size": (7, 4),
    },
    f"PatchEmbed at 'patch_embed' {NONE}: the image's size must be fixed.": {
        "strict_img_size": False
    },
    f"RmsNorm at 'patch_embed.norm' {NONE}.": {"norm_layer": RmsNorm},
    f"FastAdaptiveMaxPool at 'head.global_pool.pool' {NONE}.": {"global_pool": "max"},
}


@pytest.mark.parametrize("sentence", PARTS)
def test_parts_that_are_not_understood(sentence):
    refused(sentence, tiny_swin(**PARTS[sentence]))


def test_what_was_put_into_the_model_is_refused():
    model = tiny_swin()
    model.layers[0].blocks[1].attn.proj_drop = nn.Tanh()
    refused(f"Tanh at 'layers.0.blocks.1.attn.proj_drop' {NONE}.", model)

    model = tiny_swin()
    model.layers[0].downsample = nn.Linear(12, 12)
    refused(f"Linear at 'layers.0.downsample' {NONE}.", model)

    class Subclass(SwinTransformer):
        pass

    known = "VisionTransformer, VisionTransformerDistilled or SwinTransformer"
    model = tiny_swin()
    model.__class__ = Subclass
    refused(f"Network must be timm's {known}, not Subclass.", model)

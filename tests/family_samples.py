# SPDX-License-Identifier: Apache-2.0
"""Small timm models whose every parameter matters, how a network is held against them, and their widths."""

import re

import numpy as np
import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from qvit_hw.calibration import prepare
from qvit_hw.errors import UserError
from qvit_hw.families import lower
from qvit_hw.network import Network
from qvit_hw.presets import find_preset

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SIZE = (3, 16, 16)
DEPTH = 2
W4A8 = find_preset("w4a8")
BLOCK = (
    *("norm1", "attn.qkv", "attn.scores", "attn", "attn.attend", "attn.proj", "residual1"),
    *("norm2", "mlp.fc1", "mlp.act", "mlp.fc2", "residual2"),
)
"""Names of a block's nodes, in order."""


def shake(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fill the parameters so that none is 0, 1 or negligible; eval mode."""
    rng = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=rng)
        if parameter.ndim < 2 or "token" in name or "pos_embed" in name:
            value = noise * 0.4 + ("norm" in name and name.endswith("weight"))
        else:
            value = noise * 1.5 / parameter[0].numel() ** 0.5
        parameter.data.copy_(value)
    return model.eval()


def tiny_vit(kind: type[VisionTransformer] = VisionTransformer, **options) -> VisionTransformer:
    """A ViT of 24 channels on 4 x 4 patches of 4 pixels."""
    size = {"img_size": SIZE[1:], "patch_size": 4, "embed_dim": 24, "depth": DEPTH}
    return shake(kind(**{**size, "num_heads": 3, "num_classes": 7, "mlp_ratio": 2, **options}))


def tiny_swin(**options) -> SwinTransformer:
    """A Swin of two stages, 8 x 8 and 4 x 4 tokens, in windows of 4 x 4."""
    size = {"img_size": 16, "patch_size": 2, "embed_dim": 12, "depths": (2, 2), "window_size": 4}
    heads = {"num_heads": (2, 3), "num_classes": 7, "mlp_ratio": 2.0}
    return shake(SwinTransformer(**{**size, **heads, **options}))


def pixels(network, count=4, seed=3):
    """Raw images by chance, [count, channels, height, width]."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *network.input_size), dtype=torch.uint8, generator=rng)


def assert_equal(model: nn.Module, mean=MEAN, std=STD) -> Network:
    """The network's output for raw pixels is the model's for normalised ones; return the network."""
    network = lower(model, mean, std)
    images = pixels(network, 3, seed=1)
    shift, scale = (torch.tensor(values).reshape(-1, 1, 1) for values in (mean, std))
    with torch.no_grad():
        want = model((images / 255 - shift) / scale)
    got = network.run(images)
    assert got.shape == want.shape
    assert want.std() > 0.05
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5 * float(want.abs().max()))
    return network


def refused(sentence: str, model: nn.Module, exact: bool = True) -> None:
    """Lower raises UserError with exactly this sentence (or this regex)."""
    pattern = re.escape(sentence) if exact else sentence
    with pytest.raises(UserError, match=f"^{pattern}$"):
        lower(model, MEAN, STD)


def prepared(model, preset=W4A8):
    """A model that is ready for any widths."""
    network = lower(model, MEAN, STD)
    return prepare(network, pixels(network), preset)


def mixed(model, seed=0):
    """A width by chance for each name of a cost model."""
    rng = np.random.default_rng(seed)
    return {name: int(rng.choice(each)) for name, each in model.choices.items()}

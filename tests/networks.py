# SPDX-License-Identifier: Apache-2.0
"""Small integer networks of the families that bundles hold, and images for them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from golden.layernorm import LayerNormSpec
from golden.pool import PoolParams, PoolSpec
from golden.residual import ResidualSpec
from golden.softmax import SoftmaxSpec
from golden.vit import VitModel
from qvit_hw.small_networks import TYPICAL, Builder


def tiny_vit(seed: int = 0) -> VitModel:
    """Two prefix tokens, a LayerNorm before the blocks, a 16-bit stream, 4-bit codes, the class token."""
    net = Builder(
        seed,
        ResidualSpec(in_bits=16, out_bits=16, multiplier_bits=24),
        SoftmaxSpec(max_tokens=16),
        LayerNormSpec(max_channels=32, in_bits=16),
    )
    width = 12
    x = net.embed(net.patch_embed(4, 3, width), 6, 2, width, 48)
    x = net.start("start", net.norm("norm_pre", x, width), width, "stream")
    x = net.block("blocks.0", x, width, 2)
    x = net.block("blocks.1", x, width, 3, bits=10)
    x = net.add("pool", "select", net.norm("norm", x, width), tokens=(0, 1))
    net.linear("head", x, 2 * width, 5)
    return net.model(3, 8, 12)


def tiny_swin(seed: int = 0) -> VitModel:
    """Biased windows (shifted and masked in the second block), merging, an 8-bit stream, 5-bit codes to base
    sqrt 2, LayerNorm with shifts, the mean of all tokens.
    """
    net = Builder(
        seed,
        ResidualSpec(),
        SoftmaxSpec(max_tokens=9, base="sqrt2", code_bits=5),
        LayerNormSpec(max_channels=64, affine="shift"),
    )
    width, grid = 8, np.arange(16).reshape(4, 4)
    x = net.patch_embed(2, 1, width)
    x = net.start("start", x, width, "branch", 73 * 74 * 2)
    for block, moved in enumerate((0, 1)):
        rolled = np.roll(grid, (-moved, -moved), (0, 1))
        windows = rolled.reshape(2, 2, 2, 2).swapaxes(1, 2).reshape(4, 4)
        region = np.repeat([0, 1, 2], [2, 1, 1]) if moved else np.zeros(4, int)
        label = (3 * region[:, None] + region).reshape(2, 2, 2, 2).swapaxes(1, 2).reshape(4, 4)
        mask = label[:, :, None] != label[:, None] if moved else None
        more: Mapping[str, Any] = {"windows": windows, "mask": mask, "bias": net.whole(60, 2, 4, 4)}
        x = net.block(f"layers.0.blocks.{block}", x, width, 2, **more)
    index = grid.reshape(2, 2, 2, 2).transpose(0, 2, 3, 1).reshape(4, 4)
    x = net.add("layers.1.merge", "merge", x, index=index)
    x = net.norm("layers.1.norm", x, 4 * width)
    x = net.linear("layers.1.reduction", x, 4 * width, 2 * width)
    x = net.start("layers.1.start", x, 2 * width, "branch", 73 * TYPICAL * (4 * width) ** 0.5)
    x = net.block("layers.1.blocks.0", x, 2 * width, 4, windows=np.arange(4).reshape(1, 4))
    x = net.norm("norm", x, 2 * width)
    params = PoolParams(in_zero_point=2, requant=net.requant(2 * width, 2 * TYPICAL, 1))
    x = net.add("pool", "pool", x, PoolSpec(max_tokens=4), params, first=0)
    net.linear("head", x, 2 * width, 5)
    return net.model(1, 8, 8)


def images(model: VitModel, count: int = 3, seed: int = 0) -> np.ndarray:
    """Random pixels, the first image black and the second white."""
    drawn = np.random.default_rng(seed).integers(0, 256, (count, *model.input_size), dtype=np.uint8)
    drawn[:2] = [[[[0]]], [[[255]]]][: len(drawn)]
    return drawn

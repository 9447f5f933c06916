# SPDX-License-Identifier: Apache-2.0
"""timm's SwinTransformer as a network: windows, cyclic shifts and patch merging are indices of tokens.

The stream stays in raster order; an attention picks its windows out of it by an index [W, n] that holds the
cyclic shift too, so nothing is ever rolled. Where timm adds -100 to a score, the pair is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import ClassifierHead
from timm.layers.adaptive_avgmax_pool import FastAdaptiveAvgPool
from timm.models.swin_transformer import (
    PatchMerging,
    SwinTransformer,
    SwinTransformerBlock,
    SwinTransformerStage,
    WindowAttention,
    window_partition,
)
from torch import Tensor, nn

from qvit_hw.families.builder import Builder, Window
from qvit_hw.network import Merge, Network, Pool, Start

__all__ = ["lower_swin"]

Grid = tuple[int, int]
"""Height and width of a feature map, in tokens."""


def lower_swin(model: SwinTransformer, mean: Sequence[float], std: Sequence[float]) -> Network:
    """Return the network of a SwinTransformer (version 1); feature maps become rows of tokens.

    Raises UserError with the name of the module for whatever is not understood, and for feature maps that
    the model would pad.
    """
    build = Builder(model)
    stream = build.patch_embed(mean, std)
    if build.has("patch_embed.norm"):  # LayerNorm reads a stream, and begins another one
        stream = build.add(Start(name="patch_embed.start", inputs=(stream,)))
        stream = build.norm("patch_embed.norm", stream)
    stream = build.add(Start(name="start", inputs=(stream,)))
    embed: Any = model.patch_embed
    grid: Grid = embed.grid_size
    for index in range(len(model.layers)):
        path = f"layers.{index}"
        stage = build.take(path, SwinTransformerStage)
        if build.has(f"{path}.downsample"):
            stream, grid = _merge(build, f"{path}.downsample", stream, grid)
        for number in range(len(stage.blocks)):
            block = f"{path}.blocks.{number}"
            stream = build.block(block, stream, _window(build, block, grid))
    features = build.norm("norm", stream) if build.has("norm") else stream
    _head(build, features)
    return build.finish()


def _tokens(grid: Grid) -> Tensor:
    """Indices of the tokens of a feature map: [H, W]."""
    return torch.arange(grid[0] * grid[1]).reshape(grid)


def _merge(build: Builder, path: str, stream: str, grid: Grid) -> tuple[str, Grid]:
    """Four neighbours, 2 x 2, become one token; return the new stream and its grid."""
    build.take(path, PatchMerging)
    if grid[0] % 2 or grid[1] % 2:
        build.refuse(path, f"a feature map of {grid[0]} x {grid[1]} tokens would be padded")
    half = grid[0] // 2, grid[1] // 2
    # timm's order of the four: down first, then to the right
    index = _tokens(grid).reshape(half[0], 2, half[1], 2).permute(0, 2, 3, 1).reshape(-1, 4)
    merged = build.add(Merge(name=f"{path}.merge", inputs=(stream,), index=index))
    reduced = build.linear(f"{path}.reduction", build.norm(f"{path}.norm", merged))
    return build.add(Start(name=f"{path}.start", inputs=(reduced,))), half


def _window(build: Builder, path: str, grid: Grid) -> Window:
    """What the attention of the block at ``path`` sees of a feature map."""
    block = build.take(path, SwinTransformerBlock)
    attention = build.take(f"{path}.attn", WindowAttention)
    build.take(f"{path}.attn.softmax", nn.Softmax)
    size: Grid = block.window_size
    if grid[0] % size[0] or grid[1] % size[1]:
        build.refuse(
            path,
            f"a feature map of {grid[0]} x {grid[1]} tokens would be padded "
            f"to windows of {size[0]} x {size[1]}",
        )
    shifted = _tokens(grid).roll((-block.shift_size[0], -block.shift_size[1]), (0, 1))
    index = window_partition(shifted[None, :, :, None], size).flatten(1)
    whole = torch.equal(index, _tokens(grid).reshape(1, -1))  # one window of all tokens, in order
    table = build.parameter(f"{path}.attn.relative_position_bias_table")
    assert table is not None
    mask = block.attn_mask
    return Window(
        index=None if whole else index,
        bias=table[attention.relative_position_index].permute(2, 0, 1).contiguous(),
        mask=None if mask is None else mask != 0,
    )


def _head(build: Builder, features: str) -> str:
    """Mean of all tokens and classifier; what the model leaves out is left out."""
    build.take("head", ClassifierHead)
    if build.has("head.global_pool.pool"):
        build.take("head.global_pool.pool", FastAdaptiveAvgPool)
        features = build.add(Pool(name="pool", inputs=(features,), first=0))
    return build.linear("head.fc", features) if build.has("head.fc") else features

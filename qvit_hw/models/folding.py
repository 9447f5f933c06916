# SPDX-License-Identifier: Apache-2.0
"""Fold operators that need no hardware of their own into their neighbours, before calibration.

LayerScale multiplies the output of a linear layer by one constant per channel:
``gamma * (W x + b) = (gamma W) x + gamma b``. It vanishes into the layer before it.
"""

from __future__ import annotations

import torch
from timm.models.vision_transformer import Block, LayerScale
from torch import nn

__all__ = ["fold_layer_scale"]


@torch.no_grad()
def _scale_rows(linear: nn.Linear, gamma: torch.Tensor) -> None:
    """Multiply weight [out, in] and bias [out] by gamma [out], in place."""
    linear.weight.mul_(gamma[:, None])
    if linear.bias is not None:
        linear.bias.mul_(gamma)


def fold_layer_scale(model: nn.Module) -> int:
    """Fold every LayerScale of a timm ViT into `attn.proj` or `mlp.fc2`; return how many.

    In place: the LayerScale modules become identities, so a second call finds nothing to do. The
    function computed stays the same up to one float rounding per weight.
    """
    folded = 0
    for block in model.modules():
        if not isinstance(block, Block):
            continue
        before = {"ls1": block.attn.proj, "ls2": getattr(block.mlp, "fc2", None)}
        for name, linear in before.items():
            scale = getattr(block, name)
            if not isinstance(scale, LayerScale):
                continue
            if not isinstance(linear, nn.Linear):
                kind = type(linear).__name__
                raise TypeError(f"Layer before {name} must be a Linear, not {kind}")
            _scale_rows(linear, scale.gamma)
            setattr(block, name, nn.Identity())
            folded += 1
    for path, module in model.named_modules():
        if isinstance(module, LayerScale):
            raise TypeError(f"LayerScale must stand in a timm ViT Block, not at {path!r}")
    return folded

# SPDX-License-Identifier: Apache-2.0
"""timm's VisionTransformer as a network: ViT, DeiT (distilled too), DINOv2 with and without registers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.layers import Attention
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from qvit_hw.errors import UserError
from qvit_hw.families.builder import Builder
from qvit_hw.network import Embed, Linear, Network, Pool, Select, Start

__all__ = ["lower_vit"]


def lower_vit(model: VisionTransformer, mean: Sequence[float], std: Sequence[float]) -> Network:
    """Return the network of a VisionTransformer or VisionTransformerDistilled.

    Raises UserError with the name of the module for whatever is not understood.
    """
    build = Builder(model)
    stream = _embed(build, model, mean, std)
    if build.has("norm_pre"):
        normed = build.norm("norm_pre", stream)
        stream = build.add(Start(name="start", inputs=(normed,)))
    for index in range(len(model.blocks)):
        path = f"blocks.{index}"
        build.take(path, Block)
        build.take(f"{path}.attn", Attention)
        build.absent(*(f"{path}.attn.{part}" for part in ("q_norm", "k_norm", "norm", "gate")))
        stream = build.block(path, stream)
    features = build.norm("norm", stream) if build.has("norm") else stream
    _head(build, model, features)
    return build.finish()


def _embed(
    build: Builder, model: VisionTransformer, mean: Sequence[float], std: Sequence[float]
) -> str:
    """Patches, positions and prefix tokens: class, distillation, registers, in timm's order."""
    if model.dynamic_img_size:
        build.refuse("patch_embed", "the image's size must be fixed, not dynamic_img_size")
    patches = build.patch_embed(mean, std)
    build.absent("patch_embed.norm")
    names = ["cls_token", "dist_token"]
    if not isinstance(model, VisionTransformerDistilled):
        names[1] = "reg_token"
    tokens = [build.parameter(name) for name in names]
    rows = [token[0] for token in tokens if token is not None]
    prefix = torch.cat([*rows, torch.zeros(0, model.embed_dim)])
    positions = build.parameter("pos_embed")
    count = model.patch_embed.num_patches
    if positions is None:
        positions = torch.zeros(1, count, model.embed_dim)
    elif not model.no_embed_class:
        prefix = prefix + positions[0, : len(prefix)]
        positions = positions[:, len(prefix) :]
    if positions.shape[1] != count:
        raise UserError(
            f"Positions of the model must be {count}, one per patch, not {positions.shape[1]}."
        )
    return build.add(Embed(name="embed", inputs=(patches,), positions=positions[0], prefix=prefix))


def _head(build: Builder, model: VisionTransformer, features: str) -> str:
    """Pooling, the norm behind it, the classifier; what the model leaves out is left out."""
    if isinstance(model, VisionTransformerDistilled):
        return _distilled_head(build, model, features)
    build.absent("attn_pool")
    if model.global_pool == "token":
        features = build.add(Select(name="pool", inputs=(features,), tokens=(0,)))
    elif model.global_pool == "avg":
        first = 0 if model.pool_include_prefix else model.num_prefix_tokens
        features = build.add(Pool(name="pool", inputs=(features,), first=first))
    elif model.global_pool:
        raise UserError(
            f"Pooling of the model must be 'token', 'avg' or '', not {model.global_pool!r}."
        )
    if build.has("fc_norm"):
        features = build.norm("fc_norm", features)
    return build.linear("head", features) if build.has("head") else features


def _distilled_head(build: Builder, model: VisionTransformer, features: str) -> str:
    """The mean of two classifiers, of the first and of the second token: one layer on both of them."""
    features = build.add(Select(name="pool", inputs=(features,), tokens=(0, 1)))
    weights, biases = [], []
    for path in ("head", "head_dist"):
        module = build.take(path, nn.Linear, nn.Identity)
        if isinstance(module, nn.Identity):  # no classes: the mean of both tokens
            weights.append(torch.eye(model.embed_dim))
            biases.append(torch.zeros(model.embed_dim))
        else:
            weights.append(module.weight.detach().float())
            bias = module.bias
            biases.append(
                torch.zeros(len(module.weight)) if bias is None else bias.detach().float()
            )
    weight, bias = torch.cat(weights, dim=1) / 2, (biases[0] + biases[1]) / 2
    return build.add(Linear(name="head", inputs=(features,), weight=weight, bias=bias))

# SPDX-License-Identifier: Apache-2.0
"""What the adapters of all families share: nodes for a module by its path, and the refusal of all else.

A node is made from the module at a path, whose class must be exactly the known one: a subclass may compute
something else. Whatever the adapter has not taken in the end is refused by its name, so that a network is
equal to the model or does not exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from timm import layers
from timm.layers import activations, activations_me
from torch import Tensor, nn

from qvit_hw.errors import UserError
from qvit_hw.network import (
    IMAGE,
    Activation,
    Attend,
    LayerNorm,
    Linear,
    Network,
    Node,
    PatchEmbed,
    Residual,
    Scores,
    Softmax,
)

__all__ = ["Builder", "Window"]

_NORMS = tuple(
    dict.fromkeys((nn.LayerNorm, layers.LayerNorm, getattr(layers, "LayerNormFp32", nn.LayerNorm)))
)
_INERT = (nn.Identity, nn.Dropout, layers.DropPath, layers.PatchDropout)
"""Modules that do nothing at inference."""
_FUNCTIONS: dict[type[nn.Module], str] = {
    activations.GELU: "gelu",
    activations.GELUTanh: "gelu_tanh",
    activations.QuickGELU: "quick_gelu",
    nn.SiLU: "silu",
    activations.Swish: "silu",
    activations_me.SwishMe: "silu",
    nn.ReLU: "relu",
}


@dataclass(frozen=True, eq=False)
class Window:
    """How an attention sees the tokens.

    index: [W, n] tokens of each window, None for one window of all tokens.  bias: [heads, n, n].
    mask: [W, n, n], True where a pair is left out, or None.
    """

    index: Tensor | None
    bias: Tensor
    mask: Tensor | None


class Builder:
    """Collects the nodes of one network, and what of the model they stand for."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.nodes: list[Node] = []
        self.input_size = (0, 0, 0)
        self._taken: set[str] = set()

    # ------------------------------------------------------------------------ what the model holds

    def refuse(self, path: str, why: str = "") -> NoReturn:
        """Raise UserError for the module at ``path``."""
        kind = type(self.model.get_submodule(path)).__name__
        raise UserError(f"{kind} at {path!r} has no integer counterpart{why and f': {why}'}.")

    def take(self, path: str, *classes: type[nn.Module]) -> Any:
        """Return the module at ``path``, which must be exactly of one of ``classes``."""
        module = self.model.get_submodule(path)
        if type(module) not in classes:
            self.refuse(path)
        if not any(module.children()):
            self._taken.add(path)
        return module

    def parameter(self, path: str) -> Tensor | None:
        """Return the values of a parameter that stands in no leaf of its own; None where it is None."""
        self._taken.add(path)
        owner, _, name = path.rpartition(".")
        value = getattr(self.model.get_submodule(owner), name)
        return None if value is None else value.detach().float()

    def has(self, path: str) -> bool:
        """Whether a module stands at ``path`` that does something at inference."""
        owner, _, name = path.rpartition(".")
        module = getattr(self.model.get_submodule(owner), name, None)
        return module is not None and not isinstance(module, nn.Identity)

    def absent(self, *paths: str) -> None:
        """Refuse the first of these modules that is there and does something."""
        for path in paths:
            if self.has(path):
                self.refuse(path)

    # --------------------------------------------------------------------------------------- nodes

    def add(self, node: Node) -> str:
        """Append a node and return its name."""
        self.nodes.append(node)
        return node.name

    def patch_embed(self, mean: Sequence[float], std: Sequence[float]) -> str:
        """``patch_embed``, mean and standard deviation folded: ``W / (255 std)``, ``b - sum W mean / std``.

        Its own norm is left to the family.
        """
        path = "patch_embed"
        embed, conv = self.take(path, layers.PatchEmbed), self.take(f"{path}.proj", nn.Conv2d)
        patch = conv.kernel_size[0]
        plain = (
            (patch, patch) == conv.kernel_size == conv.stride == embed.patch_size
            and conv.groups == 1
            and conv.dilation == (1, 1)
            and conv.padding == (0, 0)
        )
        if not plain:
            self.refuse(f"{path}.proj", "patches must be square and neither padded nor overlapping")
        if embed.dynamic_img_pad or not embed.strict_img_size:
            self.refuse(path, "the image's size must be fixed")
        if len(mean) != conv.in_channels or len(std) != conv.in_channels:
            raise UserError(
                f"Mean and standard deviation must have {conv.in_channels} values, one per channel, "
                f"not {len(mean)} and {len(std)}."
            )
        if any(side % patch for side in embed.img_size):
            size = " x ".join(str(side) for side in embed.img_size)
            raise UserError(
                f"Image size must be a multiple of the patch of {patch} pixels, not {size}."
            )
        self.input_size = (conv.in_channels, *embed.img_size)
        weight = conv.weight.detach().double()
        shift, scale = (torch.tensor(x, dtype=torch.float64).reshape(-1, 1, 1) for x in (mean, std))
        bias = _bias(conv).double() - (weight * (shift / scale)).sum(dim=(1, 2, 3))
        return self.add(
            PatchEmbed(
                name=path,
                inputs=(IMAGE,),
                weight=(weight / (255 * scale)).flatten(1).float(),
                bias=bias.float(),
                patch=patch,
                channels=conv.in_channels,
            )
        )

    def norm(self, path: str, source: str) -> str:
        """The LayerNorm at ``path``."""
        norm = self.take(path, *_NORMS)
        if len(norm.normalized_shape) != 1:
            self.refuse(path, "it must normalise over the last axis")
        shape = norm.normalized_shape
        gamma = torch.ones(shape) if norm.weight is None else norm.weight.detach().float()
        beta = torch.zeros(shape) if norm.bias is None else norm.bias.detach().float()
        return self.add(
            LayerNorm(name=path, inputs=(source,), gamma=gamma, beta=beta, eps=norm.eps)
        )

    def linear(self, path: str, source: str, layer_scale: str | None = None) -> str:
        """The Linear at ``path``; a LayerScale behind it is folded: ``g (W x + b) = (g W) x + g b``."""
        linear = self.take(path, nn.Linear)
        weight, bias = linear.weight.detach().float(), _bias(linear)
        if layer_scale is not None and self.has(layer_scale):
            gamma = self.take(layer_scale, layers.LayerScale).gamma.detach().float()
            weight, bias = weight * gamma[:, None], bias * gamma
        return self.add(Linear(name=path, inputs=(source,), weight=weight, bias=bias))

    def activation(self, path: str, source: str) -> str:
        """The non-linearity at ``path``."""
        module = self.take(path, nn.GELU, *_FUNCTIONS)
        if isinstance(module, nn.GELU):
            function = "gelu" if module.approximate == "none" else "gelu_tanh"
        else:
            function = _FUNCTIONS[type(module)]
        return self.add(Activation(name=path, inputs=(source,), function=function))

    def block(self, path: str, stream: str, window: Window | None = None) -> str:
        """A block with its norms first: attention and MLP, each added to the stream.

        ``window``: what a family's attention knows beyond plain self-attention. The family has checked the
        classes of the block and of its attention.
        """
        attention: Any = self.model.get_submodule(f"{path}.attn")
        heads, scale = attention.num_heads, attention.scale
        index = None if window is None else window.index
        mask = None if window is None else window.mask
        normed = self.norm(f"{path}.norm1", stream)
        qkv = self.linear(f"{path}.attn.qkv", normed)
        scores = Scores(
            name=f"{path}.attn.scores",
            inputs=(qkv,),
            heads=heads,
            scale=scale,
            windows=index,
            bias=None if window is None else window.bias,
        )
        codes = Softmax(name=f"{path}.attn", inputs=(self.add(scores),), mask=mask)
        attend = Attend(
            name=f"{path}.attn.attend", inputs=(self.add(codes), qkv), heads=heads, windows=index
        )
        branch = self.linear(f"{path}.attn.proj", self.add(attend), f"{path}.ls1")
        stream = self.add(Residual(name=f"{path}.residual1", inputs=(stream, branch)))
        self.take(f"{path}.mlp", layers.Mlp)
        self.absent(f"{path}.mlp.norm")
        hidden = self.linear(f"{path}.mlp.fc1", self.norm(f"{path}.norm2", stream))
        hidden = self.activation(f"{path}.mlp.act", hidden)
        branch = self.linear(f"{path}.mlp.fc2", hidden, f"{path}.ls2")
        return self.add(Residual(name=f"{path}.residual2", inputs=(stream, branch)))

    def finish(self) -> Network:
        """Return the network; refuse what no node stands for."""
        for path, module in self.model.named_modules():
            leaf = not any(module.children())
            if leaf and path not in self._taken and not isinstance(module, _INERT):
                self.refuse(path)
        for path, _ in self.model.named_parameters():
            if path not in self._taken and path.rpartition(".")[0] not in self._taken:
                raise UserError(f"Parameter {path!r} has no integer counterpart.")
        return Network(tuple(self.nodes), self.input_size)


def _bias(module: nn.Linear | nn.Conv2d) -> Tensor:
    """The bias, 0 where there is none: [out]."""
    return torch.zeros(len(module.weight)) if module.bias is None else module.bias.detach().float()

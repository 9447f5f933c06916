# SPDX-License-Identifier: Apache-2.0
"""A ViT as a list of operations: what every family of timm models is lowered to.

One description serves all: it runs in float (``Network.run``, equal to timm's forward pass), ranges are
observed on its tensors, the calibrated model is the same list with quantisers at its tensors, and the
golden model is its translation into integers, node by node. What needs no hardware of its own is gone:
mean and standard deviation are in the patch embedding (its input are raw pixels), LayerScale is in the layer
before it, dropout is absent.

A node's name is the name of its output tensor: the path of the module it stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "FUNCTIONS",
    "IMAGE",
    "Activation",
    "Attend",
    "Embed",
    "LayerNorm",
    "Linear",
    "Merge",
    "Network",
    "Node",
    "PatchEmbed",
    "Pool",
    "Residual",
    "Scores",
    "Select",
    "Softmax",
    "Start",
    "Tap",
    "join_heads",
    "split_heads",
]

IMAGE = "image"
"""Name of the network's input: raw uint8 pixels as floats 0 to 255, [B, C, H, W]."""

Tap = Callable[["Node", Tensor], Tensor]
"""Sees each node's output, and returns what the nodes behind it are to see."""

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": functional.silu,
    "relu": functional.relu,
}
"""Functions of one number that an :class:`Activation` may be."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Node:
    """One operation. ``inputs``: names of the nodes (or IMAGE) whose tensors it takes."""

    op: ClassVar[str]
    name: str
    inputs: tuple[str, ...]

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the float output."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, eq=False)
class PatchEmbed(Node):
    """Pixels [B, C, H, W] to [B, N, out]: weight [out, C * patch * patch], bias [out]."""

    op = "patch_embed"
    weight: Tensor
    bias: Tensor
    patch: int
    channels: int

    def forward(self, *inputs: Tensor) -> Tensor:
        kernel = self.weight.reshape(-1, self.channels, self.patch, self.patch)
        out = functional.conv2d(inputs[0], kernel, self.bias, stride=self.patch)
        return out.flatten(2).transpose(1, 2)


@dataclass(frozen=True, kw_only=True, eq=False)
class Embed(Node):
    """The stream begins: prefix tokens, then patches plus positions.

    positions: [N, C], 0 where there are none.  prefix: [P, C], class, distillation and register tokens with
    their positions added; P may be 0.
    """

    op = "embed"
    positions: Tensor
    prefix: Tensor

    def forward(self, *inputs: Tensor) -> Tensor:
        x = inputs[0] + self.positions
        return torch.cat([self.prefix.expand(len(x), -1, -1), x], dim=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerNorm(Node):
    """LayerNorm over the last axis: gamma [C], beta [C]."""

    op = "layernorm"
    gamma: Tensor
    beta: Tensor
    eps: float

    def forward(self, *inputs: Tensor) -> Tensor:
        return functional.layer_norm(inputs[0], self.gamma.shape, self.gamma, self.beta, self.eps)


@dataclass(frozen=True, kw_only=True, eq=False)
class Linear(Node):
    """``x @ weight.T + bias``: weight [out, in], bias [out] (0 where the module has none)."""

    op = "linear"
    weight: Tensor
    bias: Tensor

    def forward(self, *inputs: Tensor) -> Tensor:
        return functional.linear(inputs[0], self.weight, self.bias)


def split_heads(qkv: Tensor, heads: int, windows: Tensor | None) -> Tensor:
    """[B, N, 3 * heads * d] to q, k, v: [3, B, heads, N, d], or [3, B, W, heads, n, d] by windows [W, n]."""
    batch = len(qkv)
    if windows is None:
        return qkv.reshape(batch, qkv.shape[1], 3, heads, -1).permute(2, 0, 3, 1, 4)
    parts = qkv[:, windows.flatten()].reshape(batch, *windows.shape, 3, heads, -1)
    return parts.permute(3, 0, 1, 4, 2, 5)


def join_heads(x: Tensor, windows: Tensor | None) -> Tensor:
    """[B, heads, N, d] (or [B, W, heads, n, d]) to [B, N, heads * d]: the way back."""
    rows = x.transpose(-3, -2).flatten(-2)
    if windows is None:
        return rows
    return rows.flatten(1, 2)[:, torch.argsort(windows.flatten())]


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores(Node):
    """Attention scores of qkv [B, N, 3C], times log2(e): base-2 exponents, [B, (W,) heads, n, n].

    scale: what q.k is multiplied by (without log2(e)).  windows: [W, n] token indices, None for one
    window of all tokens.  bias: [heads, n, n], added to the natural scores, or None.
    """

    op = "scores"
    heads: int
    scale: float
    windows: Tensor | None = None
    bias: Tensor | None = None

    LOG2E: ClassVar[float] = 1.4426950408889634

    def forward(self, *inputs: Tensor) -> Tensor:
        q, k, _ = split_heads(inputs[0], self.heads, self.windows).unbind(0)
        scores = (q * self.scale) @ k.transpose(-2, -1)
        if self.bias is not None:
            scores = scores + self.bias
        return scores * self.LOG2E


@dataclass(frozen=True, kw_only=True, eq=False)
class Softmax(Node):
    """Softmax to base 2 over the last axis.

    mask: [W, n, n], True where a pair is left out, or None.
    """

    op = "softmax"
    mask: Tensor | None = None

    def forward(self, *inputs: Tensor) -> Tensor:
        scores = inputs[0]
        if self.mask is not None:
            scores = scores.masked_fill(self.mask[:, None], float("-inf"))
        return torch.softmax(scores * 0.6931471805599453, dim=-1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Attend(Node):
    """Probabilities (first input) times v of qkv (second): [B, N, C]."""

    op = "attend"
    heads: int
    windows: Tensor | None = None

    def forward(self, *inputs: Tensor) -> Tensor:
        v = split_heads(inputs[1], self.heads, self.windows)[2]
        return join_heads(inputs[0] @ v, self.windows)


@dataclass(frozen=True, kw_only=True, eq=False)
class Activation(Node):
    """A function of one number, by its name in FUNCTIONS."""

    op = "gelu"
    function: str

    def forward(self, *inputs: Tensor) -> Tensor:
        return FUNCTIONS[self.function](inputs[0])


@dataclass(frozen=True, kw_only=True, eq=False)
class Residual(Node):
    """The stream (first input) plus a branch (second)."""

    op = "residual"

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0] + inputs[1]


@dataclass(frozen=True, kw_only=True, eq=False)
class Start(Node):
    """A stream that begins with the output of a linear layer, a patch embedding or a LayerNorm."""

    op = "start"

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class Merge(Node):
    """Neighbouring tokens side by side: index [M, g] of tokens; [B, N, C] to [B, M, g * C]."""

    op = "merge"
    index: Tensor

    def forward(self, *inputs: Tensor) -> Tensor:
        x = inputs[0]
        return x[:, self.index.flatten()].reshape(len(x), len(self.index), -1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Select(Node):
    """Some tokens side by side: [B, N, C] to [B, len(tokens) * C]."""

    op = "select"
    tokens: tuple[int, ...]

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0][:, list(self.tokens)].flatten(1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool(Node):
    """Mean of all tokens from ``first`` on: [B, N, C] to [B, C]."""

    op = "pool"
    first: int

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0][:, self.first :].mean(dim=1)


@dataclass(frozen=True, eq=False)
class Network:
    """Nodes in order of execution; the last one's tensor is the output.

    ``input_size``: channels, height, width in pixels.
    """

    nodes: tuple[Node, ...]
    input_size: tuple[int, int, int]
    _by_name: dict[str, Node] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        known: dict[str, Node] = {}
        for node in self.nodes:
            missing = [name for name in node.inputs if name != IMAGE and name not in known]
            if missing or node.name in known:
                raise ValueError(f"Node {node.name!r} must come once, after {missing!r}")
            known[node.name] = node
        object.__setattr__(self, "_by_name", known)

    def __getitem__(self, name: str) -> Node:
        return self._by_name[name]

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    @property
    def output(self) -> Node:
        """The last node."""
        return self.nodes[-1]

    @cached_property
    def consumers(self) -> Mapping[str, tuple[Node, ...]]:
        """The nodes that take each tensor."""
        names = (IMAGE, *(node.name for node in self.nodes))
        return {n: tuple(node for node in self.nodes if n in node.inputs) for n in names}

    def kind(self, node: Node) -> str:
        """What sort of codes a node's tensor has as integers.

        "accumulators": sums that another operator requantises, or the logits.  "heads": q, k and v.
        "stream": the residual stream, read by LayerNorm.  "features": between operators.  "scores", "codes".
        """
        if isinstance(node, Embed | Residual | Start | Merge):
            return "stream"
        if isinstance(node, Pool | Select):
            return self.kind(self[node.inputs[0]])
        if isinstance(node, Scores | Softmax):
            return "scores" if isinstance(node, Scores) else "codes"
        if isinstance(node, Linear | PatchEmbed):
            readers = {reader.op for reader in self.consumers[node.name]}
            return (
                "heads"
                if "scores" in readers
                else "features"
                if "gelu" in readers
                else "accumulators"
            )
        return "features"

    def of(self, *ops: str) -> list[Node]:
        """All nodes of these operators, in order."""
        return [node for node in self.nodes if node.op in ops]

    @torch.no_grad()
    def run(
        self,
        images: Tensor,
        tap: Tap | None = None,
        forward: Callable[[Node, Sequence[Tensor]], Tensor] | None = None,
    ) -> Tensor:
        """Return the output for raw pixels (uint8, or floats 0 to 255) of shape [B, *input_size].

        ``tap`` sees every output and may replace it; ``forward`` computes a node in another way. A tensor is
        dropped behind its last consumer.
        """
        if images.ndim != 4 or tuple(images.shape[1:]) != self.input_size:
            raise ValueError(f"Images must be [B, *{self.input_size}], not {tuple(images.shape)}")
        tensors = {IMAGE: images.float()}
        left = {name: len(nodes) for name, nodes in self.consumers.items()}
        out = tensors[IMAGE]
        for node in self.nodes:
            inputs = [tensors[name] for name in node.inputs]
            out = node.forward(*inputs) if forward is None else forward(node, inputs)
            tensors[node.name] = out if tap is None else tap(node, out)
            out = tensors[node.name]
            for name in node.inputs:
                left[name] -= 1
                if not left[name]:
                    del tensors[name]
        return out

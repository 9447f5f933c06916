# SPDX-License-Identifier: Apache-2.0
"""Small integer networks by hand: random integers, scaled so that few tensors reach an end of their range."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from golden.attention import AttendSpec, ScoreParams, ScoreSpec
from golden.gelu import GeluParams, GeluSpec
from golden.layernorm import LayerNormParams, LayerNormSpec
from golden.linear import LinearParams, LinearSpec
from golden.node import IMAGE, Node
from golden.patch_embed import PatchEmbedSpec
from golden.pool import PoolParams, PoolSpec
from golden.requant import RequantParams, factor
from golden.residual import ResidualParams, ResidualSpec
from golden.softmax import SoftmaxParams, SoftmaxSpec
from golden.vit import VitModel

TYPICAL = 40
"""About the size of a code."""


class Builder:
    """Adds node after node; every method returns the name of the tensor."""

    def __init__(
        self, seed: int, residual: ResidualSpec, softmax: SoftmaxSpec, norm: LayerNormSpec
    ):
        self.rng = np.random.default_rng(seed)
        self.specs = {"residual": residual, "softmax": softmax, "norm": norm}
        self.nodes: list[Node] = []

    def add(
        self,
        name: str,
        op: str,
        inputs: str | tuple[str, ...],
        spec: Any = None,
        params: Any = None,
        **layout: Any,
    ) -> str:
        inputs = (inputs,) if isinstance(inputs, str) else inputs
        self.nodes.append(
            Node(name=name, op=op, inputs=inputs, spec=spec, params=params, layout=layout)
        )
        return name

    def whole(self, reach: int, *shape: int) -> np.ndarray:
        return self.rng.integers(-reach, reach, shape, endpoint=True)

    def requant(self, channels: int, largest: float, zero_point: int = 0) -> RequantParams:
        """Brings accumulators of about this size to codes of about TYPICAL."""
        pairs = [
            factor(Fraction(TYPICAL) / int(largest) * Fraction(int(part), 100))
            for part in self.rng.integers(70, 130, channels)
        ]
        multiplier, shift = (np.array(column) for column in zip(*pairs, strict=True))
        return RequantParams(multiplier=multiplier, shift=shift, zero_point=zero_point)

    def patch_embed(self, patch: int, channels: int, out: int) -> str:
        spec = PatchEmbedSpec(patch=patch, channels=channels)
        weight = self.whole(127, out, spec.linear.in_features)
        params = LinearParams(weight=weight, bias=-128 * weight.sum(axis=1) + self.whole(999, out))
        return self.add("patch_embed", "patch_embed", IMAGE, spec, params)

    def stream(self, channels: int, largest: float, gain: int = 3) -> ResidualParams:
        """A residual unit for accumulators of about this size."""
        shift, reach = 15, 60 if self.specs["residual"].in_bits == 8 else 6000
        columns = self.rng.integers(0, 3, (2, channels))
        multiplier = int((reach << shift) / largest)
        return ResidualParams(
            in_zero_point=7,
            in_shift=columns[0],
            gain=gain << (shift - 2),
            multiplier=self.rng.integers(multiplier // 2, multiplier, channels),
            shift=shift,
            zero_point=-5,
            out_shift=columns[1],
        )

    def embed(self, acc: str, count: int, prefix: int, channels: int, pixels: int) -> str:
        params = self.stream(channels, 73 * 74 * pixels**0.5)
        positions, more = self.whole(100, count, channels), self.whole(100, prefix, channels)
        spec = self.specs["residual"]
        return self.add("embed", "embed", acc, spec, params, positions=positions, prefix=more)

    def start(self, name: str, x: str, channels: int, source: str, largest: float = 1e4) -> str:
        params = self.stream(channels, largest, 150 * 4 if source == "stream" else 0)
        return self.add(name, "start", x, self.specs["residual"], params, source=source)

    def norm(self, name: str, x: str, channels: int) -> str:
        spec, shift = self.specs["norm"], self.specs["norm"].affine == "shift"
        low = 5 if shift else 15000
        gain = self.rng.integers(low, 8 if shift else 2 * low, channels)
        params = LayerNormParams(
            zero_point=-5,
            eps=900,
            point=12,
            shift=self.rng.integers(0, 3, channels),
            gain=gain,
            offset=self.whole(10 << spec.output_shift, channels),
        )
        return self.add(name, "layernorm", x, spec, params)

    def linear(self, name: str, x: str, width: int, out: int, bits: int | None = None) -> str:
        spec = LinearSpec(in_features=width, out_bits=bits)
        requant = bits and self.requant(out, 73 * TYPICAL * width**0.5 / (1 << bits - 8))
        params = LinearParams(
            weight=self.whole(127, out, width), bias=self.whole(5000, out), requant=requant or None
        )
        return self.add(name, "linear", x, spec, params)

    def attention(
        self,
        name: str,
        x: str,
        width: int,
        heads: int,
        windows: np.ndarray | None = None,
        bias: np.ndarray | None = None,
        mask: np.ndarray | None = None,
    ) -> str:
        softmax, depth = self.specs["softmax"], width // heads
        qkv = self.linear(f"{name}.qkv", x, width, 3 * width, 8)
        given = {} if windows is None else {"windows": windows}
        requant = self.requant(heads, TYPICAL * TYPICAL * depth**0.5)
        spec = ScoreSpec(head_dim=depth, score_bits=softmax.score_bits)
        scores = self.add(
            f"{name}.scores", "scores", qkv, spec, ScoreParams(requant, bias), heads=heads, **given
        )
        frac, masks = softmax.frac_bits - 1, {} if mask is None else {"mask": mask}
        codes = self.add(name, "softmax", scores, softmax, SoftmaxParams(frac=frac), **masks)
        unit = AttendSpec(softmax=softmax)
        params = self.requant(heads, TYPICAL << unit.top, 3)
        out = self.add(f"{name}.attend", "attend", (codes, qkv), unit, params, heads=heads, **given)
        return self.linear(f"{name}.proj", out, width, width)

    def block(
        self, name: str, x: str, width: int, heads: int, bits: int = 8, **windows: Any
    ) -> str:
        unit, largest = self.specs["residual"], 73 * TYPICAL * width**0.5
        y = self.norm(f"{name}.norm1", x, width)
        y = self.attention(f"{name}.attn", y, width, heads, **windows)
        x = self.add(f"{name}.residual1", "residual", (x, y), unit, self.stream(width, largest))
        y = self.norm(f"{name}.norm2", x, width)
        y = self.linear(f"{name}.mlp.fc1", y, width, 2 * width, bits)
        gelu = GeluSpec(in_bits=bits)
        table = np.clip(np.arange(gelu.entries) - gelu.entries // 2, -9, 127)
        y = self.add(f"{name}.mlp.act", "gelu", y, gelu, GeluParams(table=table))
        y = self.linear(f"{name}.mlp.fc2", y, 2 * width, width)
        return self.add(f"{name}.residual2", "residual", (x, y), unit, self.stream(width, largest))

    def model(self, *input_size: int) -> VitModel:
        return VitModel(self.nodes, input_size)


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

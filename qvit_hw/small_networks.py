# SPDX-License-Identifier: Apache-2.0
"""Small integer networks by hand: random integers, scaled so that few tensors reach an end of their range.

They are what the accelerator's own hardware is tried on: a run takes some thousand cycles.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from golden.attention import AttendSpec, ScoreParams, ScoreSpec
from golden.gelu import GeluParams, GeluSpec
from golden.layernorm import LayerNormParams, LayerNormSpec
from golden.linear import LinearParams, LinearSpec
from golden.node import IMAGE, Node
from golden.patch_embed import PatchEmbedSpec
from golden.requant import RequantParams, factor
from golden.residual import ResidualParams, ResidualSpec
from golden.softmax import SoftmaxParams, SoftmaxSpec
from golden.vit import VitModel

__all__ = ["BASE2", "SQRT2", "TYPICAL", "Builder", "tiny_network"]

TYPICAL = 40
"""About the size of a code."""
SQRT2 = SoftmaxSpec(max_tokens=64, base="sqrt2", code_bits=5)
BASE2 = SoftmaxSpec(max_tokens=64)


class Builder:
    """Adds node after node; every method returns the name of the tensor."""

    def __init__(
        self, seed: int, residual: ResidualSpec, softmax: SoftmaxSpec, norm: LayerNormSpec
    ):
        self.rng = np.random.default_rng(seed)
        self._residual, self._softmax, self._norm = residual, softmax, norm
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
        """Any node."""
        inputs = (inputs,) if isinstance(inputs, str) else inputs
        self.nodes.append(
            Node(name=name, op=op, inputs=inputs, spec=spec, params=params, layout=layout)
        )
        return name

    def whole(self, reach: int, *shape: int) -> npt.NDArray[np.int64]:
        """Random integers of at most this size."""
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
        """Patches of the image, as accumulators."""
        spec = PatchEmbedSpec(patch=patch, channels=channels)
        weight = self.whole(127, out, spec.linear.in_features)
        params = LinearParams(weight=weight, bias=-128 * weight.sum(axis=1) + self.whole(999, out))
        return self.add("patch_embed", "patch_embed", IMAGE, spec, params)

    def stream(self, channels: int, largest: float, gain: int = 3) -> ResidualParams:
        """A residual unit for accumulators of about this size."""
        shift, reach = 15, 60 if self._residual.in_bits == 8 else 6000
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
        """Tokens of ``count`` patches behind ``prefix`` learned ones."""
        params = self.stream(channels, 73 * 74 * pixels**0.5)
        positions, more = self.whole(100, count, channels), self.whole(100, prefix, channels)
        spec = self._residual
        return self.add("embed", "embed", acc, spec, params, positions=positions, prefix=more)

    def start(self, name: str, x: str, channels: int, source: str, largest: float = 1e4) -> str:
        """Brings codes ("stream") or accumulators ("branch") to the residual stream."""
        params = self.stream(channels, largest, 150 * 4 if source == "stream" else 0)
        return self.add(name, "start", x, self._residual, params, source=source)

    def norm(self, name: str, x: str, channels: int) -> str:
        """LayerNorm, its offsets random."""
        spec, shift = self._norm, self._norm.affine == "shift"
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
        """A linear layer; bits: of its codes, accumulators without."""
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
        windows: npt.NDArray[np.int64] | None = None,
        bias: npt.NDArray[np.int64] | None = None,
        mask: npt.NDArray[np.int64] | None = None,
    ) -> str:
        """Queries to projection; windows, bias and mask as Swin has them."""
        softmax, depth = self._softmax, width // heads
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
        """A block; bits: of the codes before GELU."""
        unit, largest = self._residual, 73 * TYPICAL * width**0.5
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
        """The network for images [channels, height, width]."""
        return VitModel(self.nodes, input_size)


def tiny_network(
    *,
    wide: bool = False,
    width: int = 12,
    heads: tuple[int, ...] = (2, 3),
    prefix: int = 2,
    pixels: tuple[int, int, int] = (3, 8, 12),
    patch: int = 4,
    head: bool = True,
    early: bool = False,
    softmax: SoftmaxSpec = BASE2,
    seed: int = 0,
) -> VitModel:
    """A ViT with a block for each of ``heads``, from the class token (0) to five classes.

    wide: a stream of 16 bits, 5-bit codes to base sqrt 2, GELU of 10 bits.  head: without it, codes come out.
    early: the token is selected before the last LayerNorm.
    """
    net = Builder(
        seed,
        ResidualSpec(in_bits=16, out_bits=16, multiplier_bits=24) if wide else ResidualSpec(),
        SQRT2 if wide else softmax,
        LayerNormSpec(max_channels=64 if width <= 64 else 3072, in_bits=16 if wide else 8),
    )
    channels, height, across = pixels
    area = patch * patch
    count = height * across // area
    x = net.patch_embed(patch, channels, width)
    x = net.embed(x, count, prefix, width, area * channels)
    for block, number in enumerate(heads):
        x = net.block(f"blocks.{block}", x, width, number, bits=10 if wide else 8)
    token = (1 if prefix > 1 else 0,)
    if early:
        x = net.norm("norm", net.add("pool", "select", x, tokens=token), width)
    else:
        x = net.add("pool", "select", net.norm("norm", x, width), tokens=token)
    if head:
        net.linear("head", x, width, 5)
    return net.model(*pixels)

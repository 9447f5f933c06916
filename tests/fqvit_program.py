# SPDX-License-Identifier: Apache-2.0
"""FQ-ViT as its authors wrote it: a float32 program that quantises and dequantises, for a lowered network.

It shares nothing with qvit_hw.fqvit_plan but the float network and the width of GELU's input: ranges,
scales, zero points, PTF shifts and roundings are its own, codes are unsigned as theirs. ``Program.step``
computes one node from given integers, ``Program.codes`` a whole network.

Source: megvii-research/FQ-ViT, models/vit_quant.py, models/layers_quant.py, models/ptq.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from qvit_hw.network import IMAGE, LayerNorm, Linear, Network, Node, PatchEmbed, split_heads
from qvit_hw.presets import find_preset


@dataclass(frozen=True)
class Variant:
    """What a program may do otherwise.

    gelu_bits: of GELU's input; None: a float, as the authors have it.  ptf: power-of-two factors, or one
    scale a stream.  reach: of the largest weight, in codes.  levels: of softmax's codes.
    """

    gelu_bits: int | None = find_preset("fqvit").gelu_bits
    ptf: bool = True
    reach: float = 127.5
    levels: int = 17


@dataclass(frozen=True)
class Quantiser:
    """UniformQuantizer: scale of one or of every channel, zero point, unsigned codes."""

    scale: Tensor
    zero: Tensor
    bits: int = 8

    def quant(self, x: Tensor) -> Tensor:
        return torch.round(x / self.scale + self.zero).clamp(0, 2**self.bits - 1)

    def dequantize(self, codes: Tensor) -> Tensor:
        return (codes - self.zero) * self.scale

    def signed(self, codes: Tensor) -> np.ndarray:
        return codes.numpy().astype(np.int64) - (1 << (self.bits - 1))

    def unsigned(self, codes: Any) -> Tensor:
        return torch.tensor(np.asarray(codes, np.int64) + (1 << (self.bits - 1))).float()


LEAST_SCALE = torch.finfo(torch.float32).eps


def minmax(low: Tensor, high: Tensor, bits: int) -> Quantiser:
    scale = ((high - low) / float(2**bits - 1)).clamp(LEAST_SCALE)
    zero = (0 - torch.round(low / scale)).clamp(0, 2**bits - 1)
    return Quantiser(scale, zero, bits)


def ptf(parts: list[Tensor], plain: Quantiser) -> Quantiser:
    """PtfObserver: every channel's own power of two, by least squares, with the layer's zero point."""
    x = torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])
    scales = [plain.scale / 8, plain.scale / 4, plain.scale / 2, plain.scale]
    errors = []
    for scale in scales:
        one = Quantiser(scale, plain.zero)
        errors.append((x - one.dequantize(one.quant(x))).square().mean(dim=0))
    best = torch.stack(errors).argmin(dim=0)
    return Quantiser(scales[0] * 2.0**best, plain.zero)


def quantised_weight(weight: Tensor, reach: float, one_scale: bool) -> Tensor:
    """Symmetric, by rows; golden.linear has no -128."""
    largest = weight.abs().amax(dim=1, keepdim=True)
    scale = ((largest.max() if one_scale else largest) / reach).clamp(LEAST_SCALE)
    return torch.round(weight / scale).clamp(-127, 127) * scale


class Program:
    """A calibrated FQ-ViT."""

    def __init__(
        self, network: Network, images: Tensor, variant: Variant | None = None, mean: Any = 0.0
    ) -> None:
        self.network, self.variant = network, variant or Variant()
        self.mean = torch.as_tensor(mean, dtype=torch.float32).reshape(-1, 1, 1) * 255
        seen: dict[str, list[Tensor]] = {node.name: [] for node in network}

        def tap(node: Node, out: Tensor) -> Tensor:
            seen[node.name].append(self.visible(node, out))
            return out

        for part in images.split(4):
            network.run(part, tap)
        self.quantisers: dict[str, Quantiser] = {}
        for node in network:
            if self.quantised(node):
                parts = seen[node.name]
                low = torch.stack([part.min() for part in parts]).min()
                high = torch.stack([part.max() for part in parts]).max()
                bits = self.variant.gelu_bits if self.feeds(node, "gelu") else 8
                found = minmax(low, high, bits or 8)
                ptf_here = network.kind(node) == "stream" and self.variant.ptf
                self.quantisers[node.name] = ptf(parts, found) if ptf_here else found

    def feeds(self, node: Node, op: str) -> bool:
        return any(reader.op == op for reader in self.network.consumers[node.name])

    def quantised(self, node: Node) -> bool:
        if node.op in ("softmax", "select") or (
            node.op == "linear" and node is self.network.output
        ):
            return False
        return self.variant.gelu_bits is not None or not self.feeds(node, "gelu")

    def visible(self, node: Node, out: Tensor) -> Tensor:
        """What the observer behind a node sees: natural scores, the class token behind the last norm."""
        if node.op == "scores":
            return out / node.LOG2E
        if isinstance(node, LayerNorm) and self.feeds(node, "select"):
            return self.network.consumers[node.name][0].forward(out)
        return out

    # ----------------------------------------------------------------------------- in floats

    def compute(self, node: Node, inputs: list[Tensor]) -> Tensor:
        """A node's output in float32 before its quantiser, from dequantised inputs."""
        if isinstance(node, Linear | PatchEmbed):
            head = node is self.network.output
            weight = quantised_weight(node.weight, self.variant.reach, head)
            if isinstance(node, Linear):
                return functional.linear(inputs[0], weight, node.bias)
            shape = (-1, node.channels, node.patch, node.patch)
            exact, rounded = node.weight.reshape(shape), weight.reshape(shape)
            # conv(x - mean) with the rounded weights, plus what conv(mean) is with the exact ones.
            black = exact.mul(self.mean).sum(dim=(1, 2, 3))
            centred = inputs[0].float() - self.mean
            out = functional.conv2d(centred, rounded, node.bias + black, stride=node.patch)
            return out.flatten(2).transpose(1, 2)
        if node.op == "embed":
            patches = inputs[0]
            if node.positions.any():
                grid = minmax(node.positions.min(), node.positions.max(), 8)
                patches = patches + grid.dequantize(grid.quant(node.positions))
            return torch.cat([node.prefix.expand(len(patches), -1, -1), patches], dim=1)
        if isinstance(node, LayerNorm):
            before, out = self.quantisers[node.inputs[0]], self.quantisers[node.name]
            return integer_layernorm(inputs[0], before.scale, out.scale, node)
        if node.op == "scores":
            q, k, _ = split_heads(inputs[0], node.heads, None).unbind(0)
            return (q @ k.transpose(-2, -1)) * node.scale
        if node.op == "softmax":
            scale = self.quantisers[node.inputs[0]].scale
            return integer_softmax(inputs[0], scale, self.variant.levels)
        return node.forward(*inputs)

    # ------------------------------------------------------------------------------ in codes

    def values(self, name: str, codes: Any) -> Tensor:
        """What a tensor's signed codes mean."""
        if name == IMAGE:
            return torch.tensor(np.asarray(codes))
        node = self.network[name]
        if node.op == "softmax":
            given = torch.tensor(np.asarray(codes)).float()
            return torch.where(given == 16, 0.0, 2.0**-given)
        if node.op == "select":
            return self.values(node.inputs[0], codes)
        grid = self.quantisers[name]
        return grid.dequantize(grid.unsigned(codes))

    def step(self, name: str, codes: Mapping[str, Any]) -> np.ndarray:
        """A node's signed codes (the head: logits) from those of its inputs."""
        node = self.network[name]
        if node.op == "select":
            return np.asarray(node.forward(torch.tensor(np.asarray(codes[node.inputs[0]]))).numpy())
        out = self.compute(node, [self.values(each, codes[each]) for each in node.inputs])
        if node.op == "softmax":
            return np.where(out == 0, 16, -torch.log2(out).numpy()).astype(np.int64)
        if name not in self.quantisers:
            return out.numpy()
        grid = self.quantisers[name]
        return grid.signed(grid.quant(out))

    def codes(self, images: Any) -> dict[str, np.ndarray]:
        """All tensors, each computed from the one before."""
        found: dict[str, Any] = {IMAGE: np.asarray(images)}
        for node in self.network:
            found[node.name] = self.step(node.name, found)
        return found

    def output(self, images: Tensor) -> Tensor:
        """The output in float, GELU's input quantised or not."""

        def forward(node: Node, inputs: Any) -> Tensor:
            out = self.compute(node, list(inputs))
            grid = self.quantisers.get(node.name)
            return out if grid is None else grid.dequantize(grid.quant(out))

        return self.network.run(images, forward=forward)


def integer_layernorm(x: Tensor, in_scale: Tensor, out_scale: Tensor, node: LayerNorm) -> Tensor:
    """QIntLayerNorm in mode "int": out_scale times integers."""
    finest = in_scale.min()
    x_q = (x / finest).round()
    count = x.shape[-1]
    mean = x_q.mean(dim=-1) * finest
    std = (finest / count) * torch.sqrt(count * (x_q**2).sum(dim=-1) - x_q.sum(dim=-1) ** 2)
    slope = (finest / std).unsqueeze(-1) * node.gamma / out_scale
    n = torch.clamp(7 - torch.floor(torch.log2(slope.abs())), 0, 31)
    m = torch.clamp(torch.floor(slope.abs() * 2**n), 0, 255)
    offset = (node.beta - (mean / std).unsqueeze(-1) * node.gamma) / out_scale
    b = torch.round(offset * 2**n)
    return torch.round((slope.sign() * m * x_q + b) / 2**n) * out_scale


def integer_softmax(x: Tensor, scale: Tensor, levels: int) -> Tensor:
    """QIntSoftmax with log-int-softmax. Float64 where the program's float32 would floor at random:
    scores over their scale are whole, but for the last bits.
    """
    x, scale = x.double(), scale.double()
    x_int = torch.round(x / scale)
    x_int = x_int - x_int.amax(dim=-1, keepdim=True)
    x0 = torch.floor(-0.6931 / scale)
    x_int = torch.maximum(x_int, 30 * x0)
    q = torch.floor(x_int / x0)
    r = x_int - x0 * q
    z = r * (r + torch.floor(0.96963238 / 0.35815147 / scale))
    z = z + torch.floor(1.0 / 0.35815147 / scale**2)
    e = torch.clamp(torch.floor(z * 2 ** (30 - q)), min=0)
    quotient = torch.round(e.sum(dim=-1, keepdim=True) / e)
    log = torch.floor(torch.log2(quotient))
    log = log + (quotient - 2**log >= 2 ** (log - 1))
    top = levels - 1
    return torch.where(log >= top, 0.0, 2.0 ** -log.clamp(0, top - 1)).float()

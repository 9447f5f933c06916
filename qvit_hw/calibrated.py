# SPDX-License-Identifier: Apache-2.0
"""The calibrated model: a network whose tensors live on the integer grids, computed in float.

It runs in two ways. *All quantisers on*, every operator takes and gives whole numbers held in floats and
does the unit's arithmetic, tables and all, in float64 (:meth:`CalibratedModel.step`): what hardware should
give, written a second time and from the grids' float scales. Ratios of scales are dyadic (see
:mod:`qvit_hw.planner`), so float64 holds nearly every product exactly, ties included; float sums beyond 53
bits are all that may differ from the golden model. *Some quantisers on* (:meth:`CalibratedModel.run` with
``active``), operators are exact and tensors are rounded onto their grids: this shows which quantiser costs
what.

Nothing here is ever the source of golden outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from golden.attention import SQRT2, SQRT2_BITS
from golden.fixedpoint import Ints
from golden.layernorm import INTERP_BITS, RSQRT_BITS, LayerNormParams, LayerNormSpec
from golden.softmax import SoftmaxSpec
from qvit_hw.grids import AffineGrid, LogGrid, round_half_up
from qvit_hw.network import (
    IMAGE,
    Activation,
    Attend,
    Embed,
    LayerNorm,
    Linear,
    Merge,
    Network,
    Node,
    PatchEmbed,
    Pool,
    Residual,
    Scores,
    Select,
    Softmax,
    Start,
    join_heads,
    split_heads,
)
from qvit_hw.plan import Plan, pool_ratio, residual_ratios, snapped
from qvit_hw.quantize import PtfGrid

__all__ = ["CalibratedModel"]


@dataclass(frozen=True, eq=False)
class CalibratedModel:
    """A float network and the plan of its integers."""

    network: Network
    plan: Plan
    _ratios: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def quantisers(self) -> tuple[str, ...]:
        """Everything that rounds, in order: "<layer>.weight", or the name of a tensor."""
        names = []
        for node in self.network:
            if node.name in self.plan.weights:
                names.append(f"{node.name}.weight")
            if self._rounds(node):
                names.append(node.name)
        return tuple(names)

    def _rounds(self, node: Node) -> bool:
        """Whether a node's output is rounded: not a gather, not accumulators."""
        return node.op not in ("merge", "select") and self.network.kind(node) != "accumulators"

    # ----------------------------------------------------------------------------- whole numbers

    def run(self, images: Tensor, active: Collection[str] | None = None) -> Tensor:
        """Return the output in float for uint8 images [B, C, H, W].

        active: names of the quantisers that are on; None for all of them, in the units' arithmetic.
        ValueError for a name that is none.
        """
        if active is None:
            out = self.network.run(images, forward=self.codes)
            return self._meaning(self.network.output.name, out)
        unknown = sorted(set(active) - set(self.quantisers))
        if unknown:
            raise ValueError(f"Quantiser must be one of the model's, not {unknown[0]!r}")

        def tap(node: Node, out: Tensor) -> Tensor:
            if node.name not in active or not self._rounds(node):
                return out
            grid = self.plan.grids[node.name]
            if isinstance(node, LayerNorm):
                return out  # rounded by forward, in units of the z-score
            return grid.values(grid.codes(out)).float()

        def forward(node: Node, inputs: Sequence[Tensor]) -> Tensor:
            if f"{node.name}.weight" in active:
                return self._weights[node.name].forward(*inputs)
            if isinstance(node, LayerNorm) and node.name in active:
                return self._plain_layernorm(node, inputs[0])
            return node.forward(*inputs)

        return self.network.run(images, tap, forward)

    def alone(self, quantiser: str, inputs: Sequence[Tensor]) -> Tensor:
        """Return what a node gives for float ``inputs`` with only this quantiser on, its own."""
        name = quantiser.removesuffix(".weight")
        node = self.network[name]
        if name != quantiser:
            return self._weights[name].forward(*inputs)
        if isinstance(node, LayerNorm):
            return self._plain_layernorm(node, inputs[0])
        grid = self.plan.grids[name]
        return grid.values(grid.codes(node.forward(*inputs))).float()

    def record(self, images: Tensor, names: Collection[str] | None = None) -> dict[str, Ints]:
        """Integers of every tensor (or the named ones) for uint8 images, all quantisers on."""
        seen: dict[str, Ints] = {}

        def tap(node: Node, out: Tensor) -> Tensor:
            if names is None or node.name in names:
                seen[node.name] = _whole(out)
            return out

        self.network.run(images, tap, self.codes)
        return seen

    def step(self, name: str, codes: Mapping[str, Any]) -> Ints:
        """One node's integers from given integers of its inputs, {tensor: integers}."""
        node = self.network[name]
        inputs = [torch.tensor(np.asarray(codes[each])).double() for each in node.inputs]
        return _whole(self.codes(node, inputs))

    def values(self, name: str, codes: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
        """What integers of a tensor mean, in the float network's units."""
        return np.asarray(self._meaning(name, torch.tensor(np.asarray(codes)).double()).numpy())

    def _meaning(self, name: str, codes: Tensor) -> Tensor:
        return self.plan.grids[name].values(codes)

    def _grid(self, node: Node) -> AffineGrid:
        return self.plan.affine(node.name)

    def codes(self, node: Node, inputs: Sequence[Tensor]) -> Tensor:
        """A node's whole numbers from those of its inputs, all as floats: the unit's arithmetic."""
        rule: Callable[[Any, Sequence[Tensor]], Tensor] = getattr(self, f"_{node.op}")
        return rule(node, inputs)

    # -------------------------------------------------------------------------------- operators

    def sums(self, node: Linear | PatchEmbed, inputs: Tensor) -> Tensor:
        """A linear layer's accumulators, float64: float32 holds every product of 8 bits exactly."""
        planned = self.plan.weights[node.name]
        weight = torch.tensor(planned.codes, dtype=_width(planned.codes.shape[1], planned.bits))
        total = self.rows(node, inputs).to(weight.dtype) @ weight.T
        return total.double() + torch.tensor(planned.bias).double()

    def rows(self, node: Linear | PatchEmbed, inputs: Tensor) -> Tensor:
        """What a linear layer multiplies by its weights, [..., in]: its input, or an image's patches."""
        if isinstance(node, Linear):
            return inputs
        patches = torch.nn.functional.unfold(inputs.float(), node.patch, stride=node.patch)
        return patches.transpose(1, 2)

    def _patch_embed(self, node: PatchEmbed, inputs: Sequence[Tensor]) -> Tensor:
        return self.sums(node, inputs[0])

    def _linear(self, node: Linear, inputs: Sequence[Tensor]) -> Tensor:
        total = self.sums(node, inputs[0])
        if self.network.kind(node) == "accumulators":
            return total
        grid = self._grid(node)
        ratio = self._ratio(node, lambda: self.plan.weights[node.name].scale / grid.scale)
        return grid.limit(total * ratio + grid.zero_point)

    def _ratio(self, node: Node, ratio: Callable[[], Any]) -> Tensor:
        """A ratio of scales, the dyadic number that it was snapped to."""
        if node.name not in self._ratios:
            self._ratios[node.name] = torch.tensor(snapped(ratio()))
        return self._ratios[node.name]

    def _embed(self, node: Embed, inputs: Sequence[Tensor]) -> Tensor:
        grid, ptf = self._grid(node), self.plan.streams[f"{node.name}/positions"]
        plain = AffineGrid(scale=ptf.channel_scale, zero_point=ptf.zero_point, bits=ptf.bits)
        patches = self._onto(node, ptf, plain.codes(node.positions), node.inputs[0], inputs[0])
        prefix = grid.codes(node.prefix).expand(len(patches), -1, -1)
        return torch.cat([prefix, patches], dim=1)

    def _residual(self, node: Residual, inputs: Sequence[Tensor]) -> Tensor:
        return self._onto(
            node, self.plan.streams[node.inputs[0]], inputs[0], node.inputs[1], inputs[1]
        )

    def _start(self, node: Start, inputs: Sequence[Tensor]) -> Tensor:
        source = node.inputs[0]
        if source in self.plan.weights:
            return self._onto(node, None, None, source, inputs[0])
        grid = self.plan.affine(source)
        shift = np.zeros(self._grid(node).scale.size, np.int64)
        ptf = PtfGrid(grid.unit, grid.zero_point, shift, grid.bits)
        return self._onto(node, ptf, inputs[0], None, None)

    def _onto(
        self,
        node: Node,
        before: PtfGrid | None,
        codes: Tensor | None,
        branch: str | None,
        sums: Tensor | None,
    ) -> Tensor:
        """A stream and a branch, either may be missing, onto the node's stream."""
        after, grid = self.plan.streams[node.name], self._grid(node)
        if node.name not in self._ratios:
            ratios = [np.zeros(after.shift.size), np.zeros(after.shift.size)]
            scale = 0 * after.shift if branch is None else self.plan.weights[branch].scale
            kept, taken = residual_ratios(before, scale, after, self.plan.preset)
            ratios[0] += 0 if before is None else kept * 2.0 ** (before.shift - after.shift)
            ratios[1] += taken * 2.0**-after.shift
            self._ratios[node.name] = torch.tensor(np.stack(ratios))
        total: Tensor | float = 0.0
        if before is not None and codes is not None:
            total = (codes - before.zero_point) * self._ratios[node.name][0]
        if sums is not None:
            total = total + sums * self._ratios[node.name][1]
        assert isinstance(total, Tensor)
        return grid.limit(total + grid.zero_point)

    def _gelu(self, node: Activation, inputs: Sequence[Tensor]) -> Tensor:
        return self._grid(node).codes(node.forward(self._meaning(node.inputs[0], inputs[0])))

    def _pool(self, node: Pool, inputs: Sequence[Tensor]) -> Tensor:
        source, grid = self.plan.affine(node.inputs[0]), self._grid(node)
        count = inputs[0].shape[1] - node.first
        ratio = self._ratio(node, lambda: pool_ratio(source, grid, count))
        total = (inputs[0][:, node.first :] - source.zero_point).sum(dim=1)
        return grid.limit(total * ratio + grid.zero_point)

    def _same(self, node: Merge | Select, inputs: Sequence[Tensor]) -> Tensor:
        return node.forward(*inputs)

    _merge = _select = _same

    def _layernorm(self, node: LayerNorm, inputs: Sequence[Tensor]) -> Tensor:
        plan = self.plan.norms[node.name]
        return layernorm_codes(inputs[0], self.plan.layernorm_spec, plan.params)

    def _scores(self, node: Scores, inputs: Sequence[Tensor]) -> Tensor:
        grid = self._grid(node)
        q, k, _ = split_heads(inputs[0].float(), node.heads, node.windows).unbind(0)
        scale = self._grid(self.network[node.inputs[0]]).scale.reshape(3, node.heads, -1)[:, :, 0]
        octaves = self._ratio(
            node, lambda: scale[0] * scale[1] * (node.scale * node.LOG2E / float(grid.scale))
        )
        scores = round_half_up((q @ k.transpose(-2, -1)).double() * octaves[:, None, None])
        if node.bias is not None:
            scores = scores + round_half_up(node.bias.double() * (node.LOG2E / float(grid.scale)))
        return grid.limit(scores)

    def _softmax(self, node: Softmax, inputs: Sequence[Tensor]) -> Tensor:
        spec, frac = self.plan.softmax_spec, self.plan.softmax[node.name].frac
        return softmax_codes(inputs[0], spec, frac, node.mask)

    def _attend(self, node: Attend, inputs: Sequence[Tensor]) -> Tensor:
        log, grid = self.plan.grids[node.inputs[0]], self._grid(node)
        assert isinstance(log, LogGrid)
        v = split_heads(inputs[1], node.heads, node.windows)[2].double()
        scale = self._grid(self.network[node.inputs[1]]).scale.reshape(3, node.heads, -1)[2, :, 0]
        top = self.plan.attend_spec(node).top
        ratio = self._ratio(node, lambda: scale * log.gain / grid.unit * 2.0**-top)
        out = attend_sums(inputs[0], v, log.per_octave, top, log.spec.last_code)
        scaled = out * ratio[:, None, None] + grid.zero_point
        return grid.limit(join_heads(scaled, node.windows))

    # ------------------------------------------------------------------------ some quantisers on

    @cached_property
    def _weights(self) -> dict[str, Linear | PatchEmbed]:
        """The linear layers with what their rounded weights mean to unrounded inputs."""
        layers = {}
        for name, planned in self.plan.weights.items():
            node = self.network[name]
            assert isinstance(node, Linear | PatchEmbed)
            channel, rest, unit, zero = np.ones(()), np.zeros(()), 1.0, 0
            if node.inputs[0] != IMAGE:
                grid = self.plan.affine(node.inputs[0])
                unit, zero, rest = grid.unit, grid.zero_point, grid.rest
                channel = grid.scale if grid.folds else channel
            safe = np.where(channel != 0, channel, 1.0)
            weight = planned.codes * (planned.scale / unit)[:, None] / safe
            plain = node.weight.double().numpy()
            weight = np.where(channel != 0, weight, plain)  # nothing but rest comes through there
            whole = (planned.bias + zero * planned.codes.sum(axis=1)) * planned.scale
            bias = whole - weight @ np.broadcast_to(rest, weight.shape[1:])
            both = {"weight": torch.tensor(weight).float(), "bias": torch.tensor(bias).float()}
            parts = vars(node) | both
            layers[name] = type(node)(**parts)
        return layers

    def _plain_layernorm(self, node: LayerNorm, x: Tensor) -> Tensor:
        """Float LayerNorm, rounded to the codes of its plan."""
        plan = self.plan.norms[node.name]
        score = torch.nn.functional.layer_norm(x.double(), node.gamma.shape, eps=node.eps)
        grid = self._grid(node)
        codes = grid.limit(score * torch.tensor(plan.gain) + torch.tensor(plan.offset))
        return grid.values(codes).float()


def _width(count: int, bits: int) -> torch.dtype:
    """float32 where it holds every sum of ``count`` products of 8 bits by ``bits`` exactly."""
    return torch.float32 if (count << (7 + bits)) <= 1 << 24 else torch.float64


def _whole(values: Tensor) -> Ints:
    return values.numpy().astype(np.int64)


def attend_sums(codes: Tensor, v: Tensor, per_octave: int, top: int, last: int) -> Tensor:
    """golden.attention's sums of v by weights 2**(top - code): those of odd codes times sqrt 2 afterwards."""
    octave = (codes / per_octave).ceil()
    weight = torch.where(
        (codes == last) | (octave > top), torch.zeros_like(codes), torch.exp2(top - octave)
    )
    if per_octave == 1:
        return weight @ v
    odd = codes % 2 == 1
    zero = torch.zeros_like(weight)
    even_sums = torch.where(odd, zero, weight) @ v
    odd_sums = torch.where(odd, weight, zero) @ v
    return even_sums + round_half_up(odd_sums * (SQRT2 / (1 << SQRT2_BITS)))


def layernorm_codes(codes: Tensor, spec: LayerNormSpec, params: LayerNormParams) -> Tensor:
    """golden.layernorm's formula in float64 (exact while the variance has 53 bits)."""
    count = params.channels
    x = (codes.double() - params.zero_point) * torch.exp2(torch.tensor(params.shift).double())
    total = x.sum(dim=-1, keepdim=True)
    variance = count * (x * x).sum(dim=-1, keepdim=True) - total * total + params.eps
    mantissa, exponent = torch.frexp(variance)  # variance = mantissa * 2**exponent, from 1/2 to 1
    # v in [1, 4) with the same power of two as the unit, whose register has an even width.
    odd = (spec.variance_bits - exponent) % 2
    v = mantissa * (4 - 2 * odd)
    k = (spec.variance_bits - exponent - odd) / 2
    half = 1 << (spec.table_bits - 1)
    place = torch.where(v < 2, (v - 1) * half, (v - 2) * half / 2 + half)
    segment = place.floor()
    part = ((place - segment) * (1 << INTERP_BITS)).floor()
    table = torch.tensor(spec.rsqrt).double()[segment.long()]
    rsqrt = table[..., 0] - (table[..., 1] * part / (1 << INTERP_BITS)).floor()
    shift = spec.variance_bits // 2 + RSQRT_BITS - 1 - k - params.point
    score = round_half_up((count * x - total) * rsqrt * torch.exp2(-shift))
    gain = torch.tensor(params.gain).double()
    scaled = score * (gain if spec.affine == "dyadic" else torch.exp2(gain))
    out = (scaled + torch.tensor(params.offset)) * 2.0**-spec.output_shift
    half = 1 << (spec.out_bits - 1)
    return round_half_up(out).clamp_(-half, half - 1)


def softmax_codes(scores: Tensor, spec: SoftmaxSpec, frac: int, mask: Tensor | None) -> Tensor:
    """golden.softmax's formula in float: its table of exponentials, its truncated logarithm."""
    masked = None if mask is None else mask[:, None].expand(scores.shape)
    if masked is not None:
        scores = scores.masked_fill(masked, float("-inf"))
    peak = scores.amax(dim=-1, keepdim=True)
    distance = ((peak - scores) / 2**frac).nan_to_num(nan=math.inf)
    octave = distance.floor()
    table = torch.tensor(spec.exp2).double()
    place = (distance - octave).nan_to_num() * len(table)
    term = (table[place.long()] * torch.exp2(-octave)).floor()
    total = term.sum(dim=-1, keepdim=True).clamp_min(2.0 ** (spec.exp_bits - 1))
    mantissa, exponent = torch.frexp(total)
    steps = 1 << spec.log_index_bits
    middle = ((mantissa * 2 - 1) * steps).floor() + 0.5  # of the table's segment
    whole = exponent - spec.exp_bits
    scale = 1 << spec.frac_bits
    log_total = whole * scale + (scale * torch.log2(1 + middle / steps)).floor()
    level = (log_total / scale + distance) * (2 if spec.base == "sqrt2" else 1)
    return round_half_up(level).clamp_(0, spec.last_code)

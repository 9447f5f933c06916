# SPDX-License-Identifier: Apache-2.0
"""From what was observed to the grid of every tensor and the integers of every weight.

Scales are *snapped*: hardware multiplies by M / 2**N, and there is always one scale that nothing else
fixes (a weight's, mostly), which takes the value that makes the multiplier exact. So the calibrated
model, float arithmetic on these grids, and the golden model differ by float rounding alone.

========================= =========================================== ============================
multiplier                ratio of scales                             the scale that is snapped
========================= =========================================== ============================
linear, per channel       in * weight / out                           weight
q.k, per head             q * k * scale * log2(e) * 2**f              q
A.V, per head             v * 2**-T * gain / out                      v
residual, the stream      before / after                              after
residual, the branch      in * weight / after                         weight
first residual            positions / after                           positions
mean over tokens          in / (count * after)                        after
========================= =========================================== ============================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from golden.residual import factors
from qvit_hw.errors import UserError
from qvit_hw.grids import AffineGrid, LogGrid
from qvit_hw.network import (
    IMAGE,
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
    Start,
)
from qvit_hw.observation import Observations
from qvit_hw.plan import Floats, Plan, WeightPlan, count_tokens, residual_spec, snapped
from qvit_hw.presets import Preset
from qvit_hw.quantize import (
    PtfGrid,
    PtfSearch,
    affine_grid,
    plan_layernorm,
    plan_softmax,
    symmetric_scale,
)
from qvit_hw.weights import Moments, mean_error, round_weights, weight_scale

__all__ = ["make_plan"]


def make_plan(
    network: Network,
    seen: Observations,
    preset: Preset,
    affine: str = "dyadic",
    bits: Mapping[str, int] | None = None,
    gains: Mapping[str, float] | None = None,
    moments: Mapping[str, Moments] | None = None,
) -> Plan:
    """Choose every grid and round every weight.

    bits: widths of single weights ("<layer>.weight") and tensors that differ from the preset's.
    gains: of softmax layers, see :class:`LogGrid`.  moments: of the inputs of linear layers, which the
    methods "omse" and "gptq" of weights go by. UserError where the network does not suit the units.
    """
    return _Planner(network, seen, preset, affine, bits or {}, gains or {}, moments or {}).plan


class _Planner:
    def __init__(
        self,
        network: Network,
        seen: Observations,
        preset: Preset,
        affine: str,
        bits: Mapping[str, int],
        gains: Mapping[str, float],
        moments: Mapping[str, Moments],
    ) -> None:
        self.network, self.seen, self.preset = network, seen, preset
        self.bits, self.gains, self.moments = bits, gains, moments
        self.prepared: dict[str, tuple[Floats, Floats, Floats]] = {}
        spec, softmax = plan_softmax(seen.peaks, preset.softmax_spec())
        self.plan = Plan(preset, preset.layernorm_spec(affine), spec, softmax=softmax)
        self.unit = residual_spec(preset.residual_bits, preset.max_shift)
        for node in network:
            if network.kind(node) == "features":
                self.features(node)
        for node in network:
            step: Callable[[Any], None] | None = getattr(self, node.op, None)
            if step is not None:
                step(node)

    def width(self, name: str) -> int:
        return self.bits.get(name, self.preset.act_bits)

    # ------------------------------------------------------------------------------- features

    def features(self, node: Node) -> None:
        """Grids that depend on nothing else: inputs and outputs of GELU, outputs of A.V."""
        if isinstance(node, LayerNorm | Select | Pool):
            return  # in order of execution: they depend on their input's
        before_gelu = isinstance(node, Linear)
        bits = self.preset.gelu_bits if before_gelu else self.width(node.name)
        low, high = (float(end) for end in self.seen.ranges[node.name])
        grid = affine_grid(low, high, bits)
        self.plan.grids[node.name] = AffineGrid(
            scale=np.asarray(grid.scale), zero_point=grid.zero_point, bits=bits
        )

    def layernorm(self, node: LayerNorm) -> None:
        low, high = self.seen.ranges[node.name]
        reader = self.network.consumers[node.name]
        stream = self.plan.streams[node.inputs[0]]
        plan = plan_layernorm(
            stream,
            node.gamma.double().numpy(),
            node.beta.double().numpy(),
            node.eps,
            low,
            high,
            self.plan.layernorm_spec,
            self.seen.channels[node.name],
            # A stream takes its scale from one LayerNorm output: no weights to fold into.
            reparam=0.0 if any(isinstance(each, Start) for each in reader) else self.preset.reparam,
            clip=self.preset.clip,
        )
        self.plan.norms[node.name] = plan
        if plan.folds and any(isinstance(each, Start) for each in reader):
            raise UserError(
                f"LayerNorm {node.name!r} feeds the residual stream: its scales cannot be folded into "
                "weights, so it needs the affine 'dyadic'."
            )
        scale, rest = (plan.scale, plan.rest) if plan.folds else (plan.scale[0], 0.0)
        self.plan.grids[node.name] = AffineGrid(
            scale=np.asarray(scale),
            zero_point=plan.zero_point,
            bits=plan.bits,
            rest=np.asarray(rest, np.float64),
        )

    def select(self, node: Select) -> None:
        grid, count = self.plan.affine(node.inputs[0]), len(node.tokens)
        if grid.folds:
            scale, rest = np.tile(grid.scale, count), np.tile(np.asarray(grid.rest), count)
            grid = AffineGrid(scale=scale, zero_point=grid.zero_point, bits=grid.bits, rest=rest)
        self.plan.grids[node.name] = grid

    def pool(self, node: Pool) -> None:
        source = self.plan.affine(node.inputs[0])
        count = count_tokens(self.network, node.inputs[0]) - node.first
        if self.network.kind(node) == "stream":
            wanted, before = self.seen.grids[node.name], self.plan.streams[node.inputs[0]]
            scale = before.scale / count / float(snapped(before.scale / count / wanted.scale))
            self.stream(node, PtfGrid(scale, wanted.zero_point, wanted.shift, wanted.bits))
            return
        # In units of the input's codes, whatever those mean from channel to channel.
        low, high = (np.asarray(end) for end in self.seen.channels[node.name])
        channel = np.where(source.scale != 0, source.scale, np.inf)
        ends = np.stack([low - source.rest, high - source.rest]) / channel
        grid = affine_grid(float(ends.min()), float(ends.max()), self.width(node.name))
        step = 1 / count / float(snapped(1 / count / grid.scale))
        self.plan.grids[node.name] = AffineGrid(
            scale=source.scale * step,
            zero_point=grid.zero_point,
            bits=grid.bits,
            rest=source.rest,
        )

    # --------------------------------------------------------------------------------- streams

    def stream(self, node: Node, grid: PtfGrid) -> None:
        self.plan.streams[node.name] = grid
        self.plan.grids[node.name] = AffineGrid(
            scale=grid.channel_scale, zero_point=grid.zero_point, bits=grid.bits
        )

    def merge(self, node: Merge) -> None:
        grid = self.plan.streams[node.inputs[0]]
        shift = np.tile(grid.shift, node.index.shape[1])
        self.stream(node, PtfGrid(grid.scale, grid.zero_point, shift, grid.bits))

    def embed(self, node: Embed) -> None:
        grid = self.seen.grids[node.name]
        self.stream(node, grid)
        positions = node.positions.double().numpy()
        low, high = min(float(positions.min()), 0.0), max(float(positions.max()), 0.0)
        kept = 0.0
        if low < high:
            search = PtfSearch(low, high, positions.shape[1], grid.bits, self.preset.max_shift)
            search.update(positions)
            found = search.grid()
            kept = found.scale
        else:
            found = PtfGrid(grid.scale, 0, np.zeros(positions.shape[1], np.int64), grid.bits)
        gain, shift = self.branch(node.inputs[0], kept / grid.scale, grid.scale)
        if kept:
            kept = gain / (1 << shift) * grid.scale
            found = PtfGrid(kept, found.zero_point, found.shift, found.bits)
        self.plan.streams[f"{node.name}/positions"] = found

    def start(self, node: Start) -> None:
        source = self.network[node.inputs[0]]
        grid = self.seen.grids[node.name]
        if self.network.kind(source) == "accumulators":
            self.branch(source.name, 0.0, grid.scale)
        else:
            unit = self.plan.affine(source.name).unit
            gain, _, shift = factors(Fraction(unit / grid.scale), [Fraction(0)], self.unit)
            grid = PtfGrid(unit * (1 << shift) / gain, grid.zero_point, grid.shift, grid.bits)
        self.stream(node, grid)

    def residual(self, node: Residual) -> None:
        before, grid = self.plan.streams[node.inputs[0]], self.seen.grids[node.name]
        kept = before.scale / grid.scale
        gain, _, shift = factors(Fraction(kept), self.ratios(node.inputs[1], grid.scale), self.unit)
        scale = before.scale * (1 << shift) / gain
        self.branch(node.inputs[1], before.scale / scale, scale)
        self.stream(node, PtfGrid(scale, grid.zero_point, grid.shift, grid.bits))

    def ratios(self, name: str, after: float) -> list[Fraction]:
        _, _, scale = self.folded(self.network[name])
        return [Fraction(float(ratio)) for ratio in scale / after]

    def branch(self, name: str, kept: float, after: float) -> tuple[int, int]:
        """Round the weights of a layer whose accumulators a residual unit takes; return (M1, N)."""
        gain, _, shift = factors(Fraction(kept), self.ratios(name, after), self.unit)
        weight, bias, scale = self.folded(self.network[name])
        exact = scale / after * 2.0**shift
        # Coarse multipliers round up: a scale that shrinks by much would clip the largest weight.
        whole = np.where(exact < 4096, np.ceil(exact), np.floor(exact + 0.5))
        multiplier = np.clip(whole, 1, self.unit.bounds["multiplier"].high)
        self.weigh(name, weight, bias, multiplier / 2.0**shift * after)
        return gain, shift

    # --------------------------------------------------------------------------------- weights

    def folded(self, node: Node) -> tuple[Floats, Floats, Floats]:
        """(weight, bias, scale of an accumulator) as the codes of the input want them, unrounded."""
        if node.name in self.prepared:
            return self.prepared[node.name]
        assert isinstance(node, Linear | PatchEmbed)
        weight, bias = node.weight.double().numpy(), node.bias.double().numpy()
        unit = 1.0
        if node.inputs[0] != IMAGE:
            grid = self.plan.affine(node.inputs[0])
            if grid.bits > 8:
                raise UserError(
                    f"Layer {node.name!r} reads the residual stream, whose {grid.bits} bits its unit lacks."
                )
            unit = grid.unit
            bias = bias + weight @ np.broadcast_to(grid.rest, weight.shape[1:])
            weight = weight * grid.scale if grid.folds else weight
        scale = weight_scale(
            weight,
            self.weight_bits(node),
            self.preset.weights,
            per_tensor=node is self.network.output,  # logits are compared with each other
            inputs=self.inputs(node),
        )
        self.prepared[node.name] = weight, bias, scale * unit
        return self.prepared[node.name]

    def inputs(self, node: Node) -> Moments | None:
        """Moments of a layer's inputs as its folded weights see them."""
        moments = self.moments.get(node.name)
        if moments is None or node.inputs[0] == IMAGE:
            return moments
        grid = self.plan.affine(node.inputs[0])
        return moments.affine(grid.scale, grid.rest) if grid.folds else moments

    def weight_bits(self, node: Node) -> int:
        ends = isinstance(node, PatchEmbed) or node is self.network.output
        plain = self.preset.head_bits if ends else self.preset.weight_bits
        return self.bits.get(f"{node.name}.weight", plain)

    def weigh(self, name: str, weight: Floats, bias: Floats, scale: Floats) -> None:
        """Round a layer to this scale of its accumulators, [out]."""
        node, unit, zero = self.network[name], 1.0, 0
        bits = self.weight_bits(node)
        if node.inputs[0] != IMAGE:
            grid = self.plan.affine(node.inputs[0])
            unit, zero = grid.unit, grid.zero_point
        inputs, own = self.inputs(node), scale / unit
        codes = round_weights(weight, own, bits, inputs if self.preset.weights == "gptq" else None)
        if inputs is not None:
            bias = bias + mean_error(weight, codes, own, inputs)
        whole = np.floor(bias / scale + 0.5).astype(np.int64) - zero * codes.sum(axis=1)
        self.plan.weights[name] = WeightPlan(codes, whole, scale, bits)
        if self.network.kind(node) == "accumulators":
            self.plan.grids[name] = AffineGrid(scale=scale, bits=32)

    def linear(self, node: Linear) -> None:
        weight, bias, scale = self.folded(node)
        kind = self.network.kind(node)
        if kind == "heads":
            after = self.heads(node)
            self.plan.grids[node.name] = AffineGrid(scale=after, bits=self.width(node.name))
        elif node is self.network.output:
            self.weigh(node.name, weight, bias, scale)
            return
        elif kind == "accumulators":
            return  # the residual unit behind it decides
        else:
            after = np.asarray(self.plan.affine(node.name).scale)
        self.weigh(node.name, weight, bias, snapped(scale / after) * after)

    def heads(self, node: Linear) -> Floats:
        """Scales of q, k and v, one per channel of qkv."""
        scores = next(n for n in self.network.consumers[node.name] if isinstance(n, Scores))
        attend = next(n for n in self.network.consumers[node.name] if isinstance(n, Attend))
        softmax = self.network.consumers[scores.name][0].name
        low, high = self.seen.ranges[node.name]
        q, k, v = (
            symmetric_scale(a, b, self.width(node.name)) for a, b in zip(low, high, strict=True)
        )
        frac = self.plan.softmax[softmax].frac
        octaves = k * scores.scale * Scores.LOG2E * 2.0**frac
        q = snapped(q * octaves) / octaves
        log = LogGrid(spec=self.plan.softmax_spec, gain=self.gains.get(softmax, 1.0))
        self.plan.grids[softmax] = log
        self.plan.grids[node.name] = AffineGrid(scale=np.ones(()), bits=self.width(node.name))
        top = self.plan.attend_spec(attend).top
        per_code = log.gain / self.plan.affine(attend.name).unit * 2.0**-top
        v = snapped(v * per_code) / per_code
        self.plan.grids[scores.name] = AffineGrid(
            scale=np.asarray(2.0**-frac), bits=self.plan.softmax_spec.score_bits
        )
        return np.repeat(np.concatenate([q, k, v]), len(node.weight) // (3 * scores.heads))

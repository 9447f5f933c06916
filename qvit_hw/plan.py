# SPDX-License-Identifier: Apache-2.0
"""A plan: the grid of every tensor and the integers of every weight, and the ratios that follow from them.

:mod:`qvit_hw.planner` makes one of what was observed; calibrated model, bundle and exports read it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from golden.attention import AttendSpec
from golden.layernorm import LayerNormSpec
from golden.requant import factor
from golden.residual import ResidualSpec, factors
from golden.softmax import SoftmaxParams, SoftmaxSpec
from qvit_hw.grids import AffineGrid, Grid
from qvit_hw.network import Attend, Embed, Merge, Network, PatchEmbed
from qvit_hw.presets import Preset
from qvit_hw.quantize import LayerNormPlan, PtfGrid

__all__ = [
    "Floats",
    "Plan",
    "WeightPlan",
    "count_tokens",
    "pool_ratio",
    "residual_ratios",
    "residual_spec",
    "snapped",
]

Floats = npt.NDArray[np.float64]
Ints64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class WeightPlan:
    """Integers of a linear layer: codes [out, in], bias [out] with the input's zero point folded in.

    scale: of an accumulator, per channel [out] or one: input's unit times the weight's own scale.
    """

    codes: Ints64
    bias: Ints64
    scale: Floats
    bits: int


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that calibration decides; tensors have the names of their nodes.

    streams: PTF grids; the positions' has the name of the Embed node and "/positions".
    """

    preset: Preset
    layernorm_spec: LayerNormSpec
    softmax_spec: SoftmaxSpec
    grids: dict[str, Grid] = field(default_factory=dict)
    streams: dict[str, PtfGrid] = field(default_factory=dict)
    norms: dict[str, LayerNormPlan] = field(default_factory=dict)
    softmax: dict[str, SoftmaxParams] = field(default_factory=dict)
    weights: dict[str, WeightPlan] = field(default_factory=dict)

    def affine(self, name: str) -> AffineGrid:
        """The grid of a tensor that is not softmax's."""
        grid = self.grids[name]
        assert isinstance(grid, AffineGrid), name
        return grid

    def attend_spec(self, node: Attend) -> AttendSpec:
        """Spec of the unit of codes and v; its inputs and its output have their grids."""
        return AttendSpec(
            softmax=self.softmax_spec,
            value_bits=self.affine(node.inputs[1]).bits,
            out_bits=self.affine(node.name).bits,
        )


def residual_spec(bits: int, max_shift: int) -> ResidualSpec:
    """Spec of the residual unit for a stream of so many bits."""
    wide = 24 if bits > 8 else 16
    return ResidualSpec(in_bits=bits, out_bits=bits, max_shift=max_shift, multiplier_bits=wide)


def snapped(ratio: Any) -> Floats:
    """The nearest M / 2**N of golden.requant, entry by entry."""

    def near(value: float) -> float:
        multiplier, shift = factor(Fraction(value))
        return multiplier / (1 << shift)

    return np.vectorize(near, otypes=[np.float64])(ratio)


def count_tokens(network: Network, name: str) -> int:
    """Tokens of a tensor [B, N, C], counted from the patches on."""
    node = network[name]
    if isinstance(node, PatchEmbed):
        _, height, width = network.input_size
        return (height // node.patch) * (width // node.patch)
    if isinstance(node, Merge):
        return len(node.index)
    prefix = len(node.prefix) if isinstance(node, Embed) else 0
    return prefix + count_tokens(network, node.inputs[0])


def residual_ratios(
    before: PtfGrid | None, branch: Any, after: PtfGrid, preset: Preset
) -> tuple[float, Floats]:
    """M1 / 2**N and M2 / 2**N [C] of the residual unit; ``branch``: scale of the accumulators, [C]."""
    kept = Fraction(0) if before is None else Fraction(before.scale / after.scale)
    gain, multiplier, shift = factors(
        kept,
        [Fraction(float(each)) for each in branch / after.scale],
        residual_spec(preset.residual_bits, preset.max_shift),
    )
    return gain / 2.0**shift, multiplier / 2.0**shift


def pool_ratio(source: AffineGrid, after: AffineGrid, count: int) -> Floats:
    """What a mean of ``count`` codes is multiplied by, [C] or one."""
    live = np.where(after.scale != 0, after.scale, 1.0)
    # A channel without meaning (gamma = 0) is pooled like the others.
    return np.asarray(np.where(after.scale != 0, source.scale / live, 1.0) / count)

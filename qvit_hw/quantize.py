# SPDX-License-Identifier: Apache-2.0
"""From observed ranges to the golden model's integers.

Rounding is half up, as everywhere. These grids occur:

- :class:`Grid`, for a tensor: ``x = (q - z) * s``, q signed.
- :class:`HeadGrid`, for q, k and v: ``x = q * s`` with a scale per head.
- :class:`PtfGrid`, for the residual stream, LayerNorm's input: ``x_c = ((q_c - z) << a_c) * s``.
- :class:`ScoreGrid`, for attention scores: base-2 exponents, fixed point.
- :class:`CodeGrid`, for softmax codes: powers of two.
- the output of a LayerNorm, :class:`LayerNormPlan`: per channel ``q_c = zscore * gain_c + offset_c`` and
  ``y_c = (q_c - z) * scale_c + rest_c``. Affine *dyadic*: one scale for all channels, no rest.
  Affine *shift*: gain_c is a power of two, so ``scale_c = gamma_c / gain_c`` is folded into the weights of
  the linear layer that follows, and ``rest_c`` (zero but in the channels named below) into its bias.

In ``shift`` a gain spans 0 to 7 octaves. A channel whose gamma is smaller than that takes the smallest
gain; its beta could leave the codes then, and goes to ``rest``. So does the beta of gamma = 0, whose
scale is 0: its codes carry the z-score, which no weight looks at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from golden.layernorm import LayerNormParams, LayerNormSpec
from golden.softmax import ALIGN_STEPS, SoftmaxParams, SoftmaxSpec
from qvit_hw.errors import UserError

__all__ = [
    "SCORE_MARGIN",
    "CodeGrid",
    "Grid",
    "HeadGrid",
    "LayerNormPlan",
    "PtfGrid",
    "PtfSearch",
    "ScoreGrid",
    "affine_grid",
    "plan_layernorm",
    "plan_softmax",
    "round_half_up",
    "symmetric_scale",
]

Floats = npt.NDArray[np.float64]
Ints64 = npt.NDArray[np.int64]

SCORE_MARGIN = 1.25
"""Scores may exceed those of the calibration images by this factor before they saturate."""
MAX_SCORE_BITS = 16


def round_half_up(x: Any) -> Floats:
    """``floor(x + 1/2)`` of floats, as floats."""
    return np.floor(np.asarray(x, dtype=np.float64) + 0.5)


@dataclass(frozen=True)
class Grid:
    """Codes of one tensor: ``x = (q - zero_point) * scale``."""

    scale: float
    zero_point: int
    bits: int

    @property
    def low(self) -> int:
        """Smallest code."""
        return -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        """Largest code."""
        return (1 << (self.bits - 1)) - 1


@dataclass(frozen=True, eq=False)
class HeadGrid:
    """Codes of q, k and v: ``x = q * scale``, scale [3, heads]."""

    scale: Floats
    bits: int


@dataclass(frozen=True)
class ScoreGrid:
    """Codes of attention scores: ``exponent = q / 2**frac``, the natural score times log2(e)."""

    frac: int
    bits: int


@dataclass(frozen=True)
class CodeGrid:
    """Softmax codes: what they mean is in ``spec``, see :mod:`golden.softmax`."""

    spec: SoftmaxSpec


def affine_grid(low: float, high: float, bits: int = 8, symmetric: bool = False) -> Grid:
    """Return the grid whose codes span [low, high] (widened to hold 0, which is then exact).

    ``symmetric``: zero point 0, which fits what has no zero point in hardware but wastes codes on the
    shorter side.
    """
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    if not low < high:
        raise ValueError(f"Range must hold more than one value, not {low!r} to {high!r}")
    if symmetric:
        return Grid(float(symmetric_scale(low, high, bits)), 0, bits)
    scale = (high - low) / ((1 << bits) - 1)
    half = 1 << (bits - 1)
    zero_point = int(np.clip(round_half_up(-half - low / scale), -half, half - 1))
    return Grid(scale, zero_point, bits)


def symmetric_scale(low: Any, high: Any, bits: int = 8) -> Floats:
    """Return the scale of codes with zero point 0 that reach max(|low|, |high|); per entry.

    An entry that is zero throughout (a pruned head or filter) takes the largest scale of the others,
    or 1: whatever it is, its codes are zero.
    """
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    reach = np.maximum(np.abs(low), np.abs(high)) / ((1 << (bits - 1)) - 1)
    return np.where(reach > 0, reach, float(reach.max()) or 1.0)


@dataclass(frozen=True, eq=False)
class PtfGrid:
    """Codes of LayerNorm's input: ``x_c = ((q_c - zero_point) << shift_c) * scale``."""

    scale: float
    zero_point: int
    shift: Ints64
    bits: int

    @property
    def channel_scale(self) -> Floats:
        """Scale of each channel, ``scale * 2**shift``."""
        return np.asarray(self.scale * 2.0**self.shift, dtype=np.float64)


class PtfSearch:
    """Chooses PTF shifts by least squared error, channel by channel, over any number of updates.

    The layer's range fixes the coarsest scale (shift ``max_shift``) and the zero point; a smaller shift
    gives a channel a finer scale over a shorter range. Ties go to the smaller shift.
    """

    def __init__(self, low: float, high: float, channels: int, bits: int, max_shift: int) -> None:
        coarse = affine_grid(low, high, bits)
        self.scale = coarse.scale / (1 << max_shift)
        self.zero_point, self.bits = coarse.zero_point, bits
        self.errors: Floats = np.zeros((max_shift + 1, channels))

    def update(self, values: Any) -> None:
        """Take in values [..., C]."""
        x = np.asarray(values, dtype=np.float64)
        x = x.reshape(-1, x.shape[-1])
        low, high = -(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1
        for shift, errors in enumerate(self.errors):
            scale = self.scale * (1 << shift)
            code = np.clip(np.floor(x / scale + (self.zero_point + 0.5)), low, high)
            errors += ((x - (code - self.zero_point) * scale) ** 2).sum(axis=0)

    def grid(self) -> PtfGrid:
        """Return the grid with the best shifts so far."""
        shift = self.errors.argmin(axis=0).astype(np.int64)
        return PtfGrid(self.scale, self.zero_point, shift, self.bits)


@dataclass(frozen=True, eq=False)
class LayerNormPlan:
    """A calibrated LayerNorm: its golden parameters, and their meaning in float (module docstring)."""

    params: LayerNormParams
    input: PtfGrid
    zero_point: int
    bits: int
    eps: float
    gain: Floats
    offset: Floats
    scale: Floats
    rest: Floats

    @property
    def folds(self) -> bool:
        """Whether scale and rest differ from channel to channel and belong to the next layer."""
        return bool(self.rest.any()) or bool((self.scale != self.scale[0]).any())


def plan_layernorm(
    grid: PtfGrid,
    gamma: Any,
    beta: Any,
    eps: float,
    low: Any,
    high: Any,
    spec: LayerNormSpec,
    channel_range: tuple[Any, Any] | None = None,
) -> LayerNormPlan:
    """Return the integers of a LayerNorm whose outputs should span [low, high].

    ``channel_range``: (low, high) of each output channel, which affine "shift" scales one by one.
    """
    gamma, beta = np.asarray(gamma, np.float64), np.asarray(beta, np.float64)
    count = gamma.size
    if spec.affine == "dyadic":
        point, gain, out_zero, gains, scale, rest = _dyadic(gamma, float(low), float(high), spec)
    else:
        lows, highs = channel_range if channel_range is not None else (low, high)
        lows = np.clip(np.broadcast_to(np.asarray(lows, np.float64), count), low, high)
        highs = np.clip(np.broadcast_to(np.asarray(highs, np.float64), count), low, high)
        point, gain, out_zero, gains, scale, rest = _shift(gamma, beta, lows, highs, spec)
    with np.errstate(divide="ignore", invalid="ignore"):
        offsets = np.where(scale != 0, (beta - rest) / scale, 0.0) + out_zero
    legal = spec.bounds["offset"]
    offset = np.clip(round_half_up(offsets * (1 << spec.output_shift)), legal.low, legal.high)
    e = round_half_up(eps * count**2 / grid.scale**2)
    params = LayerNormParams(
        zero_point=grid.zero_point,
        eps=int(np.clip(e, spec.min_eps(point), (1 << spec.eps_bits) - 1)),
        point=point,
        shift=grid.shift,
        gain=gain,
        offset=offset.astype(np.int64),
    )
    params.check(spec)
    return LayerNormPlan(params, grid, out_zero, spec.out_bits, eps, gains, offsets, scale, rest)


def _dyadic(
    gamma: Floats, low: float, high: float, spec: LayerNormSpec
) -> tuple[int, Ints64, int, Floats, Floats, Floats]:
    """Return (p, G, z_out, gain, scale, rest): one output scale, a 16-bit gain per channel."""
    grid = affine_grid(low, high, spec.out_bits)
    largest = float(np.abs(gamma).max())
    # The finest p still has room for a gain of 2**(max_point - MARGIN); no real layer comes near.
    limit = 2.0 ** (spec.max_point - spec.output_shift + spec.gain_exponent) * (1 - 2**-15)
    scale = max(grid.scale, largest / limit)
    gain = gamma / scale
    peak = float(np.abs(gain).max())
    exponent = math.ceil(math.log2(peak)) if peak else -spec.max_point
    point = int(np.clip(spec.output_shift - spec.gain_exponent + exponent, 0, spec.max_point))
    if _gains(peak, point, spec) > spec.gain_range.high and point < spec.max_point:
        point += 1  # the largest gain is, or rounds up to, a power of two
    gains = np.clip(_gains(gain, point, spec), spec.gain_range.low, spec.gain_range.high)
    scales = np.full(gamma.shape, scale)
    return point, gains.astype(np.int64), grid.zero_point, gain, scales, np.zeros_like(gamma)


def _gains(gain: Any, point: int, spec: LayerNormSpec) -> Floats:
    return round_half_up(np.asarray(gain) * 2.0 ** (spec.output_shift - point))


def _shift(
    gamma: Floats, beta: Floats, low: Floats, high: Floats, spec: LayerNormSpec
) -> tuple[int, Ints64, int, Floats, Floats, Floats]:
    """Return (p, G, z_out, gain, scale, rest): power-of-two gains, the finest whose codes all fit.

    Gains are the powers of two nearest to gamma / s; s grows by eighths of an octave from half the
    plain scale until every channel's codes fit.
    """
    top = spec.output_shift
    codes = (1 << spec.out_bits) - 1
    live = gamma != 0
    size = np.where(live, np.abs(gamma), 1.0)
    step = (max(float(high.max()), 0.0) - min(float(low.min()), 0.0)) / codes / 2
    step = max(step, float(size.max()) / 2.0 ** (spec.max_point - top + spec.gain_exponent))
    while True:
        exponent = np.where(live, round_half_up(np.log2(size / step)), -1000)
        largest = int(exponent.max()) if live.any() else 0
        point = int(np.clip(largest + top - spec.gain_exponent, 0, spec.max_point))
        gain = np.clip(exponent + top - point, spec.gain_range.low, spec.gain_range.high)
        rest = np.where(exponent + top - point < spec.gain_range.low, beta, 0.0)
        gains = 2.0 ** (gain + point - top)
        scale = np.where(live, gamma / gains, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            ends = np.where(live, (np.stack([low, high]) - rest) / scale, 0.0)
        first, last = min(float(ends.min()), 0.0), max(float(ends.max()), 0.0)
        if last - first <= codes:
            break
        step *= 2**0.125
    half = 1 << (spec.out_bits - 1)
    middle = round_half_up((codes - (last - first)) / 2)  # what is left over, on both sides
    zero_point = int(np.clip(round_half_up(-half - first + middle), -half, half - 1))
    return point, gain.astype(np.int64), zero_point, gains, scale, rest


def plan_softmax(
    peaks: Mapping[str, float], spec: SoftmaxSpec
) -> tuple[SoftmaxSpec, dict[str, SoftmaxParams]]:
    """Choose each layer's score fraction bits: the most that do not saturate.

    ``peaks``: largest |score| of each layer in octaves (score * log2(e)). Scores of
    SCORE_MARGIN * peak must still fit. Where even the fewest fraction bits do not suffice, the spec's
    score_bits grow for all layers; UserError where 16 are not enough.
    """
    low = max(0, spec.frac_bits - ALIGN_STEPS + 1)
    worst = max(peaks, key=lambda name: peaks[name])
    while peaks[worst] * SCORE_MARGIN * 2**low > spec.bounds["score"].high:
        if spec.score_bits == MAX_SCORE_BITS:
            raise UserError(
                f"Scores of {worst!r} must fit in {MAX_SCORE_BITS} bits, "
                f"not reach {peaks[worst]:.0f} octaves."
            )
        spec = replace(spec, score_bits=spec.score_bits + 1)
    top = spec.bounds["score"].high
    params = {
        name: SoftmaxParams(
            frac=next(
                frac
                for frac in range(spec.frac_bits, low - 1, -1)
                if peak * SCORE_MARGIN * 2**frac <= top
            )
        )
        for name, peak in peaks.items()
    }
    return spec, params

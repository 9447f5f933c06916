# SPDX-License-Identifier: Apache-2.0
"""From observed ranges to the golden model's integers.

Rounding is half up, as everywhere. These grids occur:

- :class:`Grid`, for a tensor: ``x = (q - z) * s``, q signed; q, k and v have z = 0.
- :class:`PtfGrid`, for the residual stream, LayerNorm's input: ``x_c = ((q_c - z) << a_c) * s``.
- the output of a LayerNorm, :class:`LayerNormPlan`: per channel ``q_c = zscore * gain_c + offset_c`` and
  ``y_c = (q_c - z) * scale_c + rest_c``. Affine *dyadic*: one scale for all channels and no rest, or a scale
  per channel; affine *shift*: gain_c is a power of two, so ``scale_c = gamma_c / gain_c`` is always one per
  channel. Such scales are folded into the weights of the linear layer that follows, and ``rest_c`` into its
  bias.

Scales per channel are the re-parameterisation of RepQ-ViT (arXiv 2212.08254, section 3.2): every channel
uses all its codes, and hardware does not notice. There the zero point is the mean of the channels' own, no
integer; here each channel's centre goes to ``rest``, nothing is left for the zero point, and z = 0 is exact.
Taken to the end it makes the next layer's weights as unequal as the channels were, so ``reparam``, between
0 and 1, says how far each channel goes from the widest one's scale to its own, geometrically. LRP-QViT
(arXiv 2401.11243) clips outliers among the scales instead: ``clip`` keeps them within a factor of their
geometric mean. Outlier channels then saturate, and they tend to be those that matter: no preset clips.
A channel whose gamma is 0 is constant: its scale is 0 and rest is beta.
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
    "Grid",
    "LayerNormPlan",
    "PtfGrid",
    "PtfSearch",
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


def affine_grid(low: float, high: float, bits: int = 8) -> Grid:
    """Return the grid whose codes span [low, high] (widened to hold 0, which is then exact).

    ValueError for a range of 0 alone.
    """
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    if not low < high:
        raise ValueError(f"Range must hold more than one value, not {low!r} to {high!r}")
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
    reparam: float = 0.0,
    clip: float | None = None,
) -> LayerNormPlan:
    """Return the integers of a LayerNorm whose outputs should span [low, high].

    channel_range: (low, high) of each output channel, for scales per channel; without it all have the
    whole range.  reparam: 0 to 1, clip: 1 or more, see the module's docstring. Affine "dyadic" with a
    ``reparam`` of 0 has one scale, and nothing to fold. ValueError for one of them out of range.
    """
    if not 0 <= reparam <= 1:
        raise ValueError(f"Reparam must be 0 to 1, not {reparam!r}")
    if clip is not None and not clip >= 1:
        raise ValueError(f"Clip must be 1 or more, not {clip!r}")
    gamma, beta = np.asarray(gamma, np.float64), np.asarray(beta, np.float64)
    count = gamma.size
    if spec.affine == "dyadic" and not reparam:
        out_zero, scale, rest = _one_scale(gamma, float(low), float(high), spec)
    else:
        lows, highs = channel_range if channel_range is not None else (low, high)
        lows = np.broadcast_to(np.asarray(lows, np.float64), count)
        highs = np.broadcast_to(np.asarray(highs, np.float64), count)
        out_zero, (scale, rest) = 0, _scales(gamma, beta, lows, highs, reparam, clip, spec)
    gains = np.divide(gamma, scale, out=np.zeros(count), where=scale != 0)
    if spec.affine == "dyadic":
        point, gain = _gains(gains, spec)
    else:
        point, gain = _exponents(gains, spec)
        gains = 2.0 ** (gain + point - spec.output_shift)  # constant channels have one, too
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


def _one_scale(
    gamma: Floats, low: float, high: float, spec: LayerNormSpec
) -> tuple[int, Floats, Floats]:
    """Return (z_out, scale, rest): one scale for all channels."""
    grid = affine_grid(low, high, spec.out_bits)
    scale = max(grid.scale, float(np.abs(gamma).max()) / _largest_gain(spec))
    return grid.zero_point, np.full(gamma.shape, scale), np.zeros_like(gamma)


def _largest_gain(spec: LayerNormSpec) -> float:
    """Output codes per standard deviation that the unit can give; no real layer comes near."""
    return float(2.0 ** (spec.max_point - spec.output_shift + spec.gain_exponent) * (1 - 2**-15))


def _scales(
    gamma: Floats,
    beta: Floats,
    low: Floats,
    high: Floats,
    reparam: float,
    clip: float | None,
    spec: LayerNormSpec,
) -> tuple[Floats, Floats]:
    """Return (scale, rest) per channel, for z_out = 0: channels use their codes, centred."""
    codes, live, size = (1 << spec.out_bits) - 1, gamma != 0, np.abs(gamma)
    if not live.any():
        return np.zeros_like(gamma), beta
    middle, step = (low + high) / 2, (high - low) / codes
    if clip is not None:
        usual = float(np.exp(np.log(step[live & (step > 0)]).mean())) if step[live].any() else 0.0
        step = np.clip(step, usual / clip, usual * clip)
    # The finest scale: finer, and the channel's ends, its gain or its offset would not fit.
    reach = spec.bounds["offset"].high / 2.0**spec.output_shift - 1
    finest = np.maximum(step, np.abs(beta - middle) / reach)
    finest = np.maximum(finest, size / _largest_gain(spec))
    wanted = finest**reparam * float(finest[live].max()) ** (1 - reparam)
    scale = np.where(live, wanted, 0.0)
    if spec.affine == "shift":
        octaves = np.log2(size[live])
        most = np.floor(octaves - np.log2(finest[live]))
        # Gains span gain_exponent octaves: the channel that needs the smallest one limits all others.
        top = min(float(most.min()) + spec.gain_exponent, float(most.max()))
        near = np.minimum(round_half_up(octaves - np.log2(wanted[live])), np.minimum(most, top))
        least = max(float(near.max()) - spec.gain_exponent, -spec.output_shift)
        scale[live] = gamma[live] / 2.0 ** np.maximum(near, least)
    return scale, np.where(live, middle + scale / 2, beta)  # codes are centred on -1/2


def _gains(gains: Floats, spec: LayerNormSpec) -> tuple[int, Ints64]:
    """Return (p, G) of affine "dyadic": the finest p with which the largest gain has 16 bits."""
    peak = float(np.abs(gains).max())
    exponent = math.ceil(math.log2(peak)) if peak else -spec.max_point
    point = int(np.clip(spec.output_shift - spec.gain_exponent + exponent, 0, spec.max_point))
    top = spec.gain_range.high
    if peak * 2.0 ** (spec.output_shift - point) >= top + 0.5 and point < spec.max_point:
        point += 1  # the largest gain is, or rounds up to, a power of two
    whole = round_half_up(gains * 2.0 ** (spec.output_shift - point))
    return point, np.clip(whole, spec.gain_range.low, top).astype(np.int64)


def _exponents(gains: Floats, spec: LayerNormSpec) -> tuple[int, Ints64]:
    """Return (p, G) of affine "shift", whose gains are powers of two (or 0: any will do)."""
    exponent = np.round(np.log2(np.where(gains != 0, gains, np.nan)))
    largest = 0 if np.isnan(exponent).all() else int(np.nanmax(exponent))
    point = int(np.clip(largest + spec.output_shift - spec.gain_exponent, 0, spec.max_point))
    return point, np.nan_to_num(exponent + spec.output_shift - point).astype(np.int64)


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

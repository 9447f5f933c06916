# SPDX-License-Identifier: Apache-2.0
"""LayerNorm of power-of-two-factor (PTF) codes: no division, no float square root.

A row holds C codes q_c that share one scale and one zero point z; channel c is coarser by a shift
a_c. The scale cancels. With the layer's E (eps in units of the squared numerator), p (``point``),
gain G_c and offset B_c:

    X_c = (q_c - z) << a_c
    S   = sum X,  Q = sum X^2,  D = C*Q - S^2 + E       C^2 times the variance, plus eps
    k   = leading zeros of D in w bits, halved          w even, from the bounds
    R   = 2**14 / sqrt(v),  v = D * 2**(2k - (w-2)) in [1, 4)     table and one chord
    t_c = rs((C*X_c - S) * R, w/2 + 13 - k - p)         the z-score with p fraction bits
    y_c = sat(rs(t_c * G_c + B_c, H))                   affine "dyadic": G_c signed 16 bits
    y_c = sat(rs((t_c << G_c) + B_c, H))                affine "shift": G_c from 0 to 7

H is fixed by the spec (7 more than the largest gain exponent), so hardware has one variable shift,
the one after R; a layer's largest gain is normalised by p instead. B_c includes the output's zero
point. In a constant row C*X_c = S, hence y_c = rs(B_c, H): beta.

Sources: PTF from FQ-ViT (arXiv 2111.13824, section 3.2); the one-pass variance and the table are the
project's own, see ``tests/test_layernorm.py`` for the measured error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import isqrt
from typing import Literal

import numpy as np
import numpy.typing as npt

from golden.arrays import Params, blocks, constant, fitting, rows_for, tiled
from golden.bounds import Interval
from golden.cycles import RowPipeline, tree_levels
from golden.fixedpoint import Ints, integer, integers, rounding_shift, saturate
from golden.requant import Finish
from golden.tables import read_rsqrt, rsqrt_table
from golden.words import column, signed_word, writes

__all__ = [
    "SPEC_GRID",
    "LayerNormParams",
    "LayerNormSpec",
    "LayerNormTrace",
    "layernorm",
    "layernorm_pipeline",
    "layernorm_trace",
]

RSQRT_BITS = 14
"""Width of R: C*R then fits 26 bits for C < 4096, one signed 27-bit port of a DSP slice."""
INTERP_BITS = 10
"""Bits of a segment's fraction that the chord is multiplied by."""
MARGIN = 7
"""H minus the largest gain exponent: t contributes at most 2**-(MARGIN+1) codes of rounding error."""


@dataclass(frozen=True, kw_only=True)
class LayerNormSpec:
    """What is fixed when a LayerNorm unit is built.

    max_channels: longest row, 1 to 4096.  in_bits: width of an input code, signed, 4 to 16.
    out_bits: width of an output code, signed, 3 to 16.  max_shift: largest PTF shift a, 0 to 7.
    eps_bits: width of E, 8 to 40.  affine: "dyadic" (a multiplier and an offset per channel) or
    "shift" (a shift and an offset per channel; gamma's rest belongs into the next layer's weights).
    table_bits: log2 of the entries of the reciprocal square root's table, 4 to 9.
    """

    max_channels: int = 3072
    in_bits: int = 8
    out_bits: int = 8
    max_shift: int = 3
    eps_bits: int = 40
    affine: Literal["dyadic", "shift"] = "dyadic"
    table_bits: int = 6

    def __post_init__(self) -> None:
        integer(self.max_channels, "Maximum row length", 1, 4096)
        integer(self.in_bits, "Input width", 4, 16)
        integer(self.out_bits, "Output width", 3, 16)
        integer(self.max_shift, "Largest PTF shift", 0, 7)
        integer(self.eps_bits, "Width of E", 8, 40)
        if self.affine not in ("dyadic", "shift"):
            raise ValueError(f"Affine must be 'dyadic' or 'shift', not {self.affine!r}")
        integer(self.table_bits, "Table index width", 4, 9)
        if self.bounds["variance"].bits > 61:
            raise ValueError(
                "Row length, input width and largest shift must keep the variance within 61 bits, "
                f"not {self.bounds['variance'].bits!r}"
            )

    @property
    def gain_exponent(self) -> int:
        """Largest gain as a power of two: 15 for 16-bit gains, 7 for shifts from 0 to 7."""
        return 15 if self.affine == "dyadic" else 7

    @property
    def output_shift(self) -> int:
        """H, the fraction bits that the last rounding removes."""
        return self.gain_exponent + MARGIN

    @property
    def max_point(self) -> int:
        """Largest p: gains up to 2**(out_bits - 1) output codes per standard deviation, at most 16."""
        return min(self.out_bits + 6, 16)

    def min_eps(self, point: int) -> int:
        """Smallest E that keeps the shift behind R at 1 or more: 1, or 4**(p - 13) for p > 13."""
        return 1 << 2 * max(0, point - RSQRT_BITS + 1)

    @property
    def gain_range(self) -> Interval:
        """Legal values of G: 16 bits with sign, or a shift from 0 to 7."""
        return Interval.of_bits(16, signed=True) if self.affine == "dyadic" else Interval(0, 7)

    @property
    def variance_bits(self) -> int:
        """w: width of D, rounded up to an even number."""
        return self.bounds["variance"].bits + self.bounds["variance"].bits % 2

    @cached_property
    def addresses(self) -> frozenset[int]:
        """Word addresses of all parameters, and of the commit."""
        channels = range(self.max_channels)
        return frozenset((*WORD.values(), *(at + c for at in TABLE.values() for c in channels)))

    @property
    def rsqrt(self) -> tuple[tuple[int, int], ...]:
        """The table of (base, slope) pairs."""
        return rsqrt_table(self.table_bits, RSQRT_BITS, INTERP_BITS)

    @cached_property
    def bounds(self) -> dict[str, Interval]:
        """Interval of every intermediate value, by the names of :class:`LayerNormTrace`.

        D uses Popoviciu's inequality: values inside an interval of width r have a variance of at
        most r^2 / 4; whatever z and a_c, the X of a row lie in one interval of width
        (2**in_bits - 1) << max_shift that holds 0.
        """
        count, reach = self.max_channels, ((1 << self.in_bits) - 1) << self.max_shift
        x = Interval(-reach, reach)
        square = x.square()
        spread = (count * count // 4) * reach * reach
        variance = Interval(1, spread + (1 << self.eps_bits) - 1)
        centered = Interval(-(count - 1) * reach, (count - 1) * reach)
        # |z-score| <= sqrt(C - 1); tests/test_tables.py holds by how much R may exceed the curve.
        z_squared = (count - 1) << (2 * self.max_point)
        z_high = isqrt(z_squared)
        z_high += z_high * z_high < z_squared
        z_high += (z_high >> min(2 * self.table_bits + 1, 12)) + 1
        score = Interval(-z_high, z_high)
        offset = Interval.of_bits(self.out_bits + self.output_shift + 2, signed=True)
        scaled = score * self.gain_range if self.affine == "dyadic" else score << 7
        return {
            "x": x,
            "square": square,
            "total": x.sum_of(count),
            "squares": square.sum_of(count),
            "variance": variance,
            "rsqrt": Interval(1, (1 << RSQRT_BITS) - 1),
            "centered": centered,
            "score": score,
            "offset": offset,
            "scaled": scaled + offset,
            "code": Interval.of_bits(self.out_bits, signed=True),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerNormParams(Params):
    """What changes per layer; the arrays have one entry per channel.

    zero_point: z, within the input codes.  point: p, 0 to ``spec.max_point``.
    eps: E, ``spec.min_eps(point)`` to 2**eps_bits - 1.
    shift: a, [C], 0 to max_shift.  gain: G, [C].  offset: B, [C], out_bits + H + 2 bits signed.
    """

    zero_point: int
    eps: int
    point: int
    shift: npt.NDArray[np.int64]
    gain: npt.NDArray[np.int64]
    offset: npt.NDArray[np.int64]

    @property
    def channels(self) -> int:
        """C, the row length these parameters are for."""
        return int(np.shape(self.shift)[0])

    def check(self, spec: LayerNormSpec) -> None:
        """Raise TypeError or ValueError unless the parameters suit ``spec``."""
        codes = Interval.of_bits(spec.in_bits, signed=True)
        integer(self.zero_point, "Zero point", codes.low, codes.high)
        integer(self.point, "Point", 0, spec.max_point)
        integer(self.eps, "E", spec.min_eps(self.point), (1 << spec.eps_bits) - 1)
        length = np.shape(self.shift)
        if len(length) != 1 or not 1 <= length[0] <= spec.max_channels:
            raise ValueError(f"Shifts must be 1 to {spec.max_channels} channels, not {length!r}")
        for name, array, legal in (
            ("PTF shift", self.shift, Interval(0, spec.max_shift)),
            ("Gain", self.gain, spec.gain_range),
            ("Offset", self.offset, spec.bounds["offset"]),
        ):
            values = integers(array, name)
            if values.shape != length:
                raise ValueError(f"{name} must have shape {length!r}, not {values.shape!r}")
            legal.require(values, name)

    def words(self, spec: LayerNormSpec) -> list[tuple[int, int]]:
        """Writes of the parameter port, (word address, unsigned 32-bit value), in order.

        They fill the bank that is not in use; the last one makes it current for the next row.
        """
        self.check(spec)
        scalars = {
            WORD["zero_point"]: self.zero_point,
            WORD["point"]: self.point,
            WORD["eps_low"]: self.eps,
            WORD["eps_high"]: self.eps >> 32,
        }
        tables = {base: getattr(self, name) for name, base in TABLE.items()}
        return writes(scalars, tables, WORD["commit"])

    @classmethod
    def from_words(cls, words: Mapping[int, int], channels: int) -> LayerNormParams:
        """The parameters that :meth:`words` wrote, by address, for rows of ``channels``.

        What was never written is 0. Nothing is checked: :meth:`check` does.
        """
        return cls(
            zero_point=signed_word(words.get(WORD["zero_point"], 0)),
            eps=words.get(WORD["eps_high"], 0) << 32 | words.get(WORD["eps_low"], 0),
            point=signed_word(words.get(WORD["point"], 0)),
            **{name: column(words, base, channels) for name, base in TABLE.items()},
        )


WORD = {"zero_point": 0, "point": 1, "eps_low": 2, "eps_high": 3, "commit": 4}
"""Word addresses of the scalar parameters."""
TABLE = {"shift": 1 << 12, "gain": 2 << 12, "offset": 3 << 12}
"""Word addresses of channel 0 of the tables; channel c is c words further."""


@dataclass(frozen=True)
class LayerNormTrace:
    """Every intermediate value; int64, row values keep a last axis of 1."""

    x: npt.NDArray[np.int64]
    total: npt.NDArray[np.int64]
    squares: npt.NDArray[np.int64]
    variance: npt.NDArray[np.int64]
    rsqrt: npt.NDArray[np.int64]
    rsqrt_shift: npt.NDArray[np.int64]
    centered: npt.NDArray[np.int64]
    score: npt.NDArray[np.int64]
    scaled: npt.NDArray[np.int64]
    code: npt.NDArray[np.int64]


def _operand(codes: Ints, spec: LayerNormSpec, params: LayerNormParams) -> Ints:
    """The codes, after their checks."""
    q = fitting(codes, "Codes", spec.in_bits)
    if q.shape[-1] != params.channels:
        raise ValueError(f"Row length must be {params.channels}, not {q.shape[-1]!r}")
    return q


def layernorm_trace(codes: Ints, spec: LayerNormSpec, params: LayerNormParams) -> LayerNormTrace:
    """:func:`layernorm` with every intermediate value."""
    params.check(spec)
    q, count = _operand(codes, spec, params).astype(np.int64), params.channels
    x = (q - params.zero_point) << integers(params.shift, "PTF shift")
    total = x.sum(axis=-1, keepdims=True)
    squares = (x * x).sum(axis=-1, keepdims=True)
    # C*Q and S^2 may wrap around 64 bits for 16-bit codes; their difference fits (see bounds).
    variance = count * squares - total * total + params.eps
    rsqrt, k = _rsqrt(variance, spec)
    rsqrt_shift = spec.variance_bits // 2 + RSQRT_BITS - 1 - k - params.point
    centered = count * x - total
    score = rounding_shift(centered * rsqrt, rsqrt_shift)
    gain, offset = integers(params.gain, "Gain"), integers(params.offset, "Offset")
    scaled = (score * gain if spec.affine == "dyadic" else score << gain) + offset
    code = saturate(rounding_shift(scaled, spec.output_shift), spec.out_bits)
    return LayerNormTrace(
        x, total, squares, variance, rsqrt, rsqrt_shift, centered, score, scaled, code
    )


def _rsqrt(
    variance: npt.NDArray[np.int64], spec: LayerNormSpec
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """R and k of the module's formula, for variance in [1, 2**w)."""
    table = constant(spec.rsqrt, np.dtype(np.int64))
    return read_rsqrt(variance, table, spec.variance_bits, INTERP_BITS)


class _Unit:
    """Checked parameters as columns, folded as far as that changes no bit.

    x is q * 2**a - z * 2**a; the half of the last rounding joins the offset; a gain that is a shift
    becomes the multiplication it stands for.
    """

    def __init__(self, spec: LayerNormSpec, params: LayerNormParams) -> None:
        params.check(spec)
        self.spec, self.eps, self.count = spec, params.eps, params.channels
        self.point = spec.variance_bits // 2 + RSQRT_BITS - 1 - params.point
        scale, gain = np.int64(1) << params.shift.astype(np.int64), params.gain.astype(np.int64)
        end = np.array([spec.output_shift])
        self.finish = Finish(spec.bounds["scaled"], end, spec.out_bits)
        self.scale, self.zero = tiled(scale), tiled(params.zero_point * scale)
        self.gain = tiled(gain if spec.affine == "dyadic" else np.int64(1) << gain)
        self.offset = tiled(params.offset.astype(np.int64) + self.finish.offset)

    def __call__(self, q: Ints, out: Ints) -> None:
        """Codes of rows [n, C]: the trace's arithmetic, in place."""
        x, long = rows_for(self.scale, q.shape, "layernorm")
        np.copyto(x, q)
        long *= self.scale
        long -= self.zero
        total = x.sum(axis=-1, keepdims=True)
        squares = np.einsum("nc,nc->n", x, x)[:, None]
        rsqrt, k = _rsqrt(self.count * squares - total * total + self.eps, self.spec)
        # (C*x - S) * R, and the half of the rounding behind it (the shift is 1 or more: see min_eps).
        shift = self.point - k
        x *= self.count * rsqrt
        x += (np.int64(1) << (shift - 1)) - total * rsqrt
        x >>= shift
        long *= self.gain
        long += self.offset
        self.finish(long, out)


def layernorm(codes: Ints, spec: LayerNormSpec, params: LayerNormParams) -> Ints:
    """LayerNorm over the last axis, from PTF codes to output codes.

    ``codes``: integers of shape [..., C] within ``spec.in_bits`` signed bits, C = ``params.channels``.
    Returns codes of the same shape within ``spec.out_bits`` signed bits, in the narrowest type. TypeError
    for floats, ValueError for a value or length out of range.
    """
    unit = params.once(spec, lambda: _Unit(spec, params))
    q = _operand(codes, spec, params)
    rows = q.reshape(-1, params.channels)
    out = np.empty(rows.shape, unit.finish.kind)
    for part in blocks(len(rows), params.channels):
        unit(rows[part], out[part])
    return out.reshape(q.shape)


def layernorm_pipeline(spec: LayerNormSpec, lanes: int) -> RowPipeline:
    """Cycle model of the unit in ``rtl/layernorm.py``: one wait, for the row's statistics."""
    return RowPipeline(
        lanes=lanes,
        waits=(21 + tree_levels(lanes),),
        drain=14,
        max_beats=-(-spec.max_channels // lanes),
    )


SPEC_GRID: tuple[LayerNormSpec, ...] = (
    LayerNormSpec(),
    LayerNormSpec(affine="shift"),
    LayerNormSpec(in_bits=16, max_shift=3, max_channels=1024),
    LayerNormSpec(in_bits=4, out_bits=4, max_shift=2, max_channels=200, table_bits=4),
    LayerNormSpec(in_bits=10, out_bits=6, affine="shift", max_channels=400, table_bits=6),
    LayerNormSpec(max_channels=768, max_shift=0, eps_bits=20, table_bits=9),
)
"""Specs that every check of the operator runs on."""

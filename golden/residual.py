# SPDX-License-Identifier: Apache-2.0
"""The residual stream: codes on one PTF grid plus a branch's accumulators, onto the next PTF grid.

    X_c = (q_c - z) << a_c                               the stream, as golden.layernorm reads it
    T_c = X_c * M1 + acc_c * M2_c                        acc from proj or fc2, not requantised before
    y_c = sat(rs(T_c, N + b_c) + z')                     b_c, z': PTF shift and zero point of the next grid

One rounding. With s, s' the finest scales (shift 0) of both grids and s_c the accumulator's scale, LayerScale
folded in, M1 / 2**N = s / s' and M2_c / 2**N = s_c / s'; :func:`factors` chooses N. All channels share N, so
a factor is exact to half of 2**-N. With M1 of 24 bits, N is 24 or 23 where the two grids are alike, and
the error at most 2**-25 of an accumulator: a sixteenth of the finest step for one of 2**21.

The same unit starts the stream: acc from the patch embedding, q the position embedding's codes on a
grid of their own. Class and distillation tokens are constants, made at calibration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from golden.arrays import Params, blocks, fitting, rows_for, tiled
from golden.bounds import Interval
from golden.cycles import RowPipeline, stream_pipeline
from golden.fixedpoint import Ints, integer, integers, rounding_shift, saturate
from golden.requant import Finish
from golden.words import column, signed_word, writes

__all__ = [
    "SPEC_GRID",
    "TABLE",
    "WORD",
    "ResidualParams",
    "ResidualSpec",
    "ResidualTrace",
    "corner_rows",
    "factors",
    "residual",
    "residual_pipeline",
    "residual_trace",
]

WORD = {"in_zero_point": 0, "zero_point": 1, "gain": 2, "shift": 3, "commit": 4}
"""Word addresses of the unit's scalar parameters (:mod:`golden.words`)."""
TABLE = {"in_shift": 1 << 12, "multiplier": 2 << 12, "out_shift": 3 << 12}
"""Word addresses of channel 0 of its tables; channel c is c words further."""


@dataclass(frozen=True, kw_only=True)
class ResidualSpec:
    """What is fixed when a residual unit is built.

    in_bits, out_bits: residual_bits of the stream before and after, signed, 8 to 16.
    max_shift: largest PTF shift of both, 0 to 7.  acc_bits: width of the accumulator, 8 to 40.
    gain_bits: width of M1, 16 to 32.  multiplier_bits: width of M2, 16 to 24; both unsigned. A stream of
    16 bits has a finer grid and wants all 24 of them.
    """

    in_bits: int = 8
    out_bits: int = 8
    max_shift: int = 3
    acc_bits: int = 32
    gain_bits: int = 24
    multiplier_bits: int = 16

    def __post_init__(self) -> None:
        integer(self.in_bits, "Input width", 8, 16)
        integer(self.out_bits, "Output width", 8, 16)
        integer(self.max_shift, "Largest PTF shift", 0, 7)
        integer(self.acc_bits, "Accumulator width", 8, 40)
        integer(self.gain_bits, "Width of M1", 16, 32)
        integer(self.multiplier_bits, "Width of M2", 16, 24)
        if self.bounds["total"].bits > 61:
            raise ValueError(
                "Accumulator and multiplier widths must keep the sum within 61 bits, "
                f"not {self.bounds['total'].bits!r}"
            )

    @cached_property
    def bounds(self) -> dict[str, Interval]:
        """Interval of every parameter and intermediate value; :class:`ResidualTrace` has their names."""
        reach = ((1 << self.in_bits) - 1) << self.max_shift
        x, acc = Interval(-reach, reach), Interval.of_bits(self.acc_bits, signed=True)
        gain = Interval.of_bits(self.gain_bits, signed=False)
        multiplier = Interval.of_bits(self.multiplier_bits, signed=False)
        return {
            "x": x,
            "acc": acc,
            "gain": gain,
            "multiplier": multiplier,
            "shift": Interval(0, 61 - self.max_shift),
            "kept": x * gain,
            "branch": acc * multiplier,
            "total": x * gain + acc * multiplier,
            "code": Interval.of_bits(self.out_bits, signed=True),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class ResidualParams(Params):
    """What changes per layer; the arrays have one entry per channel.

    in_zero_point: z.  in_shift: a, [C], 0 to max_shift.  gain: M1.  multiplier: M2, [C].  shift: N.
    zero_point: z'.  out_shift: b, [C], 0 to max_shift.
    """

    in_zero_point: int
    in_shift: npt.NDArray[np.int64]
    gain: int
    multiplier: npt.NDArray[np.int64]
    shift: int
    zero_point: int
    out_shift: npt.NDArray[np.int64]

    @property
    def channels(self) -> int:
        """C, the row length these parameters are for."""
        return int(np.shape(self.in_shift)[0])

    def check(self, spec: ResidualSpec) -> None:
        """Raise TypeError or ValueError unless the parameters suit ``spec``."""
        bounds, codes = spec.bounds, Interval.of_bits(spec.in_bits, signed=True)
        integer(self.in_zero_point, "Input zero point", codes.low, codes.high)
        integer(self.zero_point, "Zero point", bounds["code"].low, bounds["code"].high)
        integer(self.gain, "M1", bounds["gain"].low, bounds["gain"].high)
        integer(self.shift, "Shift", bounds["shift"].low, bounds["shift"].high)
        length = np.shape(self.in_shift)
        if len(length) != 1 or not length[0]:
            raise ValueError(f"Input PTF shift must be an array of channels, not shape {length!r}")
        for name, array, legal in (
            ("Input PTF shift", self.in_shift, Interval(0, spec.max_shift)),
            ("M2", self.multiplier, bounds["multiplier"]),
            ("PTF shift", self.out_shift, Interval(0, spec.max_shift)),
        ):
            values = integers(array, name)
            if values.shape != length:
                raise ValueError(f"{name} must have shape {length!r}, not {values.shape!r}")
            legal.require(values, name)

    def words(self, spec: ResidualSpec) -> list[tuple[int, int]]:
        """Writes of the parameter port, (word address, unsigned 32-bit value), in order."""
        self.check(spec)
        scalars = {at: getattr(self, name) for name, at in WORD.items() if name != "commit"}
        tables = {base: getattr(self, name) for name, base in TABLE.items()}
        return writes(scalars, tables, WORD["commit"])

    @classmethod
    def from_words(cls, words: Mapping[int, int], channels: int) -> ResidualParams:
        """The parameters that :meth:`words` wrote, by address; nothing is checked."""
        return cls(
            in_zero_point=signed_word(words.get(WORD["in_zero_point"], 0)),
            zero_point=signed_word(words.get(WORD["zero_point"], 0)),
            gain=words.get(WORD["gain"], 0),
            shift=words.get(WORD["shift"], 0),
            **{name: column(words, base, channels) for name, base in TABLE.items()},
        )


def factors(
    kept: Fraction, branch: Sequence[Fraction], spec: ResidualSpec
) -> tuple[int, npt.NDArray[np.int64], int]:
    """(M1, M2 [C], N) nearest to ``kept`` = s / s' and ``branch`` = s_c / s', with the largest N that fits.

    Either may be 0 (a stream that starts, a channel without weights); ValueError where one is negative
    or too large for its width even with N = 0.

    >>> factors(Fraction(1), [Fraction(1, 300), Fraction(1, 200)], ResidualSpec())
    (8388608, array([27962, 41943]), 23)
    """
    if min(kept, *branch) < 0:
        raise ValueError(f"Ratios must be at least 0, not {min(kept, *branch)!r}")
    bounds, largest = spec.bounds, max(branch)
    for shift in reversed(range(bounds["shift"].high + 1)):
        gain, multiplier = _nearest(kept, shift), _nearest(largest, shift)
        if gain <= bounds["gain"].high and multiplier <= bounds["multiplier"].high:
            return gain, np.array([_nearest(b, shift) for b in branch], dtype=np.int64), shift
    raise ValueError(
        f"Ratios must be at most {bounds['gain'].high} and {bounds['multiplier'].high}, "
        f"not {kept!r} and {largest!r}"
    )


def _nearest(ratio: Fraction, shift: int) -> int:
    return int((ratio * (2 << shift) + 1) // 2)


@dataclass(frozen=True)
class ResidualTrace:
    """Every intermediate value; int64."""

    x: npt.NDArray[np.int64]
    kept: npt.NDArray[np.int64]
    branch: npt.NDArray[np.int64]
    total: npt.NDArray[np.int64]
    code: npt.NDArray[np.int64]


def _operands(
    codes: Ints, acc: Ints, spec: ResidualSpec, params: ResidualParams
) -> tuple[Ints, Ints]:
    """The codes and the accumulators, after their checks."""
    q, a = fitting(codes, "Codes", spec.in_bits), fitting(acc, "Accumulators", spec.acc_bits)
    for name, values in (("Row length of codes", q), ("Row length of accumulators", a)):
        if values.shape[-1:] != (params.channels,):
            raise ValueError(f"{name} must be {params.channels}, not shape {values.shape!r}")
    return q, a


def residual_trace(
    codes: Ints, acc: Ints, spec: ResidualSpec, params: ResidualParams
) -> ResidualTrace:
    """:func:`residual` with every intermediate value."""
    params.check(spec)
    q, a = (integers(x, "Codes") for x in _operands(codes, acc, spec, params))
    x = (q - params.in_zero_point) << integers(params.in_shift, "Input PTF shift")
    kept, branch = x * params.gain, a * integers(params.multiplier, "M2")
    total = kept + branch
    rounded = rounding_shift(total, params.shift + integers(params.out_shift, "PTF shift"))
    return ResidualTrace(
        x, kept, branch, total, saturate(rounded + params.zero_point, spec.out_bits)
    )


class _Unit:
    """Checked parameters, folded: ``y = finish(q * G + acc * M2 + offset)`` with G_c = M1 << a_c.

    The offset holds -z * G and the rounding.
    """

    def __init__(self, spec: ResidualSpec, params: ResidualParams) -> None:
        params.check(spec)
        shift = params.shift + params.out_shift.astype(np.int64)
        self.finish = Finish(spec.bounds["total"], shift, spec.out_bits, params.zero_point)
        gain = np.int64(params.gain) << (params.in_shift.astype(np.int64) + self.finish.up)
        self.gain = tiled(gain)
        self.multiplier = tiled(params.multiplier.astype(np.int64) << self.finish.up)
        self.offset = tiled(self.finish.offset - params.in_zero_point * gain)

    def __call__(self, q: Ints, acc: Ints, out: Ints) -> None:
        """Codes of rows [n, C]."""
        kept, long_kept = rows_for(self.gain, q.shape, "residual.kept")
        total, long_total = rows_for(self.gain, q.shape, "residual.total")
        np.copyto(kept, q)
        np.copyto(total, acc)
        long_kept *= self.gain
        long_total *= self.multiplier
        long_total += long_kept
        long_total += self.offset
        self.finish(long_total, out)


def residual(codes: Ints, acc: Ints, spec: ResidualSpec, params: ResidualParams) -> Ints:
    """Codes of the stream after a branch: [..., C] in the narrowest type.

    ``codes`` [..., C] of the stream before and ``acc`` [..., C] of the branch; leading axes broadcast.
    TypeError for floats, ValueError for a value or length out of range.
    """
    unit = params.once(spec, lambda: _Unit(spec, params))
    q, a = _operands(codes, acc, spec, params)
    if q.shape != a.shape:
        q, a = np.broadcast_arrays(q, a)
    q, a, shape = q.reshape(-1, params.channels), a.reshape(-1, params.channels), q.shape
    out = np.empty(q.shape, unit.finish.kind)
    for part in blocks(len(q), params.channels):
        unit(q[part], a[part], out[part])
    return out.reshape(shape)


def residual_pipeline(spec: ResidualSpec, lanes: int) -> RowPipeline:
    """Cycle model: 10 registers, whatever the widths. Codes and accumulators arrive together.

    1 the channel's a, M2, b leave their memory, 2 q - z, 3 X = (q - z) << a at the multiplier, 4 and 5 both
    products: their parts, and the sums of these, 6 both, 7 to 9 the shift by N + b, 16s, 4s and 1s, which
    keeps one bit below the point, 10 that bit (the rounding), z' and the saturation.
    """
    return stream_pipeline(lanes, 10)


SPEC_GRID: tuple[ResidualSpec, ...] = (
    ResidualSpec(),
    ResidualSpec(in_bits=16, out_bits=16, multiplier_bits=24),
    ResidualSpec(in_bits=16, max_shift=0, gain_bits=32),
    ResidualSpec(in_bits=10, out_bits=12, max_shift=7, acc_bits=24, gain_bits=16),
    ResidualSpec(acc_bits=36, multiplier_bits=24),
)
"""Specs that every check of the operator runs on."""


def corner_rows(
    spec: ResidualSpec, seed: int = 0
) -> Iterator[tuple[str, npt.NDArray[np.int64], npt.NDArray[np.int64], ResidualParams]]:
    """Yield (name, codes [C], accumulators [C], params): both ends of the sum, ties, saturation by one.

    Accumulators are solved for with M2 = 1, so that the last rounding meets a tie and both of its
    neighbours in channels of every PTF shift, at ordinary codes and at both ends of the output.
    """
    rng = np.random.default_rng(seed)
    bounds, count = spec.bounds, 2 * (spec.max_shift + 1)
    low, high = -(1 << (spec.in_bits - 1)), (1 << (spec.in_bits - 1)) - 1
    acc, code, every = bounds["acc"], bounds["code"], np.arange(count) % (spec.max_shift + 1)

    def params(**changes: Any) -> ResidualParams:
        top = bounds["multiplier"].high
        plain: dict[str, Any] = {
            "in_zero_point": 3,
            "in_shift": every,
            "gain": 1 << (spec.gain_bits - 1),
            "multiplier": rng.integers(top // 2, top, count, endpoint=True),
            "shift": spec.gain_bits - 1,
            "zero_point": -2,
            "out_shift": every[::-1].copy(),
        }
        return ResidualParams(**(plain | changes))

    def row(value: int) -> npt.NDArray[np.int64]:
        return np.full(count, value)

    widest = {
        "in_shift": row(spec.max_shift),
        "gain": bounds["gain"].high,
        "multiplier": row(bounds["multiplier"].high),
    }
    largest = params(in_zero_point=low, zero_point=code.high, shift=0, **widest)
    yield "largest sum", row(high), row(acc.high), largest
    smallest = params(in_zero_point=high, zero_point=code.low, shift=0, **widest)
    yield "smallest sum", row(low), row(acc.low), smallest
    yield "largest shift", row(high), row(acc.high), params(shift=bounds["shift"].high, **widest)
    codes = rng.integers(low, high, count, endpoint=True)
    codes[:2] = low, high
    branch = rng.integers(acc.low, acc.high, count, endpoint=True)
    yield "stream alone", codes, branch, params(multiplier=row(0))
    yield "stream unchanged", codes, row(0), params(in_shift=every, out_shift=every)
    yield "branch alone", codes, branch, params(gain=0)
    yield "both", codes, branch, params()
    yield "opposite signs", np.sort(codes), -np.sort(branch) - 1, params(gain=1)
    for target in (code.low - 1, code.low, -1, 0, 1, code.high, code.high + 1):
        for off in (-1, 0, 1):
            for shift in (0, 1, 6):
                solved = params(multiplier=row(1), gain=5, shift=shift)
                x = (codes - solved.in_zero_point) << solved.in_shift
                removed = shift + solved.out_shift
                boundary = ((target - solved.zero_point) << removed) + ((1 << removed) >> 1) + off
                wanted = np.clip(boundary - x * solved.gain, acc.low, acc.high)
                yield f"tie above {target}, {off:+d}, N={shift}", codes, wanted, solved

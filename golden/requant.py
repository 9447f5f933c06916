# SPDX-License-Identifier: Apache-2.0
"""Requantiser: from an accumulator to a code, by one multiplier and one shift per output channel.

    y = sat(rs(acc * M, N) + z)

M is 16 bits unsigned, normalised to [2**15, 2**16), so that M / 2**N is the wanted factor to 16
significant bits; rs rounds half up. gemmlowp and TFLite use the same form with 31 bits; 16 leave
0.02 % of codes one off from a real multiplication (see ``tests/test_requant.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
import numpy.typing as npt

from golden.arrays import Params, fitting, narrowest, rows_for, scratch, tiled
from golden.bounds import Interval
from golden.cycles import RowPipeline, stream_pipeline
from golden.fixedpoint import Ints, integer, integers, rounding_shift, saturate
from golden.words import column, signed_word, writes

__all__ = [
    "SPEC_GRID",
    "TABLE",
    "WORD",
    "Finish",
    "RequantParams",
    "RequantSpec",
    "RequantTrace",
    "Rescaler",
    "corner_rows",
    "factor",
    "requant_pipeline",
    "requantise",
    "requantise_trace",
]

MULTIPLIER = Interval(1 << 15, (1 << 16) - 1)
"""Legal values of M."""
SHIFT = Interval(0, 62)
"""Legal values of N; a factor below 2**-47 rounds every accumulator to zero."""
WORD = {"zero_point": 0, "commit": 1}
"""Word addresses of the unit's scalar parameters (:mod:`golden.words`)."""
TABLE = {"multiplier": 1 << 12, "shift": 2 << 12}
"""Word addresses of channel 0 of its tables; channel c is c words further."""


@dataclass(frozen=True, kw_only=True)
class RequantSpec:
    """What is fixed when a requantiser is built: acc_bits 8 to 40 and out_bits 3 to 16, both signed."""

    acc_bits: int = 32
    out_bits: int = 8

    def __post_init__(self) -> None:
        integer(self.acc_bits, "Accumulator width", 8, 40)
        integer(self.out_bits, "Output width", 3, 16)

    @cached_property
    def bounds(self) -> dict[str, Interval]:
        """Interval of every intermediate value."""
        acc = Interval.of_bits(self.acc_bits, signed=True)
        return {
            "acc": acc,
            "product": acc * MULTIPLIER,
            "code": Interval.of_bits(self.out_bits, signed=True),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class RequantParams(Params):
    """What changes per layer and channel: multiplier M, shift N (int arrays [C]), zero point z."""

    multiplier: npt.NDArray[np.int64]
    shift: npt.NDArray[np.int64]
    zero_point: int

    def check(self, spec: RequantSpec) -> None:
        """Raise TypeError or ValueError unless the parameters suit ``spec``."""
        code = spec.bounds["code"]
        integer(self.zero_point, "Zero point", code.low, code.high)
        for name, array, legal in (
            ("Multiplier", self.multiplier, MULTIPLIER),
            ("Shift", self.shift, SHIFT),
        ):
            values = integers(array, name)
            if values.ndim != 1 or not values.size:
                raise ValueError(f"{name} must be an array of channels, not shape {values.shape!r}")
            legal.require(values, name)
        if np.shape(self.multiplier) != np.shape(self.shift):
            raise ValueError(
                f"Shift must have shape {np.shape(self.multiplier)!r}, not {np.shape(self.shift)!r}"
            )

    def words(self, spec: RequantSpec) -> list[tuple[int, int]]:
        """Writes of the parameter port, (word address, unsigned 32-bit value), in order.

        The unit knows no channel that serves all others: a row is as long as the parameters.
        """
        self.check(spec)
        tables = {TABLE["multiplier"]: self.multiplier, TABLE["shift"]: self.shift}
        return writes({WORD["zero_point"]: self.zero_point}, tables, WORD["commit"])

    @classmethod
    def from_words(cls, words: Mapping[int, int], channels: int) -> RequantParams:
        """The parameters that :meth:`words` wrote, by address; nothing is checked."""
        tables = {name: column(words, base, channels) for name, base in TABLE.items()}
        return cls(zero_point=signed_word(words.get(WORD["zero_point"], 0)), **tables)


def factor(ratio: Fraction) -> tuple[int, int]:
    """(M, N) nearest to a positive ``ratio`` = M / 2**N.

    ValueError where the ratio is not positive or N would leave its 6 bits.

    >>> factor(Fraction(1, 3))
    (43691, 17)
    """
    if ratio <= 0:
        raise ValueError(f"Ratio must be positive, not {ratio!r}")
    shift = 16 - (ratio.numerator.bit_length() - ratio.denominator.bit_length())
    multiplier = _nearest(ratio, shift)
    while multiplier > MULTIPLIER.high:
        shift -= 1
        multiplier = _nearest(ratio, shift)
    while multiplier < MULTIPLIER.low:
        shift += 1
        multiplier = _nearest(ratio, shift)
    if not SHIFT.low <= shift <= SHIFT.high:
        raise ValueError(f"Ratio must be from 2**-47 to 2**15, not {ratio!r}")
    return multiplier, shift


def _nearest(ratio: Fraction, shift: int) -> int:
    scaled = ratio * (Fraction(2) ** shift)
    return (2 * scaled.numerator + scaled.denominator) // (2 * scaled.denominator)


class Finish:
    """``sat(rs(wide, n) + after)``, where every requantisation ends, as one addition, shift and saturation.

    wide: its interval.  n: [C], or of a shape that broadcasts.  after: number or array.  bits: of the codes.

    Channels of different n share the largest one, if the caller multiplies by ``1 << up`` before; the half
    of the rounding and, where there is room for it, ``after << n`` are one ``offset`` for the caller to add:

        rs(x, n) + after = (x * 2**up + (2**m >> 1) + (after << m)) >> m,  m = n + up

    That room, like the types, is a matter of intervals.
    """

    def __init__(self, wide: Interval, n: Ints, bits: int, after: Ints | int = 0) -> None:
        n, after = n.astype(np.int64), np.asarray(after, dtype=np.int64)
        self.code = Interval.of_bits(bits, signed=True)
        self.kind = narrowest(self.code)
        most, least = int(n.max()), int(n.min())
        # Twice the codes: the half is less than one of them.
        all_of_it = (wide << (most - least)) + (Interval.of_bits(bits + 1, signed=True) << most)
        self._n: Ints | int = n
        self._late: Ints | None = after
        self.up, self.offset = np.zeros_like(n), (np.int64(1) << n) >> 1
        if all_of_it.bits < 64:
            self._n, self._late = most, None
            self.up, self.offset = most - n, ((1 << most) >> 1) + (after << most)
        # NumPy clips integers of half the width in half the time.
        self._medium = wide.bits - least < 31
        if np.ndim(self._n) == 1:
            self._n = tiled(n)

    def __call__(self, wide: Ints, out: Ints) -> None:
        """Codes of ``wide * 2**up + offset``, which is used up, to ``out``: as many rows as that has."""
        wide >>= self._n
        if self._late is not None:
            wide += self._late
        if self._medium:
            medium = scratch("finish", wide.shape, np.int32)
            np.copyto(medium, wide, casting="unsafe")
            wide = medium
        np.clip(wide, self.code.low, self.code.high, out=wide)
        np.copyto(out, wide.reshape(-1, *out.shape[1:])[: len(out)], casting="unsafe")


class Rescaler:
    """``sat(rs((acc + before) * M, N) + after)`` with all that does not depend on acc made once.

    M, N, before, after: integers that broadcast against acc.  acc: interval of acc + before.  bits: width of
    the result. Nothing is checked here: the callers' specs have done it.
    """

    def __init__(
        self,
        m: Ints,
        n: Ints,
        after: Ints | int,
        *,
        acc: Interval,
        bits: int,
        before: Ints | int = 0,
    ) -> None:
        self._finish = Finish(acc * MULTIPLIER, n, bits, after)
        self.kind = self._finish.kind
        self._m = m.astype(np.int64) << self._finish.up
        self._offset = self._m * before + self._finish.offset
        self._columns = np.ndim(m) == 1
        if self._columns:
            self._m, self._offset = tiled(self._m), tiled(self._offset)

    def __call__(self, acc: Ints, out: Ints | None = None) -> Ints:
        """Codes of accumulators, [n, C] where M has one axis, in the narrowest type or in ``out``."""
        if out is None:
            out = np.empty(acc.shape, self.kind)
        if self._columns:
            wide, long = rows_for(self._m, acc.shape, "requant")
        else:
            wide = long = scratch("requant", acc.shape, np.int64)
        np.copyto(wide, acc)
        long *= self._m
        long += self._offset
        self._finish(long, out)
        return out


def requantise(acc: Ints, spec: RequantSpec, params: RequantParams) -> Ints:
    """Codes of accumulators of shape [..., C] within ``spec.acc_bits``, in the narrowest type.

    One channel of parameters serves every channel. TypeError for floats, ValueError out of range.
    """
    rescale = params.once(spec, lambda: _rescaler(spec, params))
    a = fitting(acc, "Accumulators", spec.acc_bits)
    channels = np.shape(params.multiplier)[0]
    if channels not in (1, a.shape[-1]):
        raise ValueError(f"Channels must be {channels}, not {a.shape[-1]!r}")
    return rescale(a.reshape(-1, channels)).reshape(a.shape)


@dataclass(frozen=True)
class RequantTrace:
    """Every intermediate value of a requantisation; int64."""

    product: npt.NDArray[np.int64]
    code: npt.NDArray[np.int64]


def requantise_trace(acc: Ints, spec: RequantSpec, params: RequantParams) -> RequantTrace:
    """:func:`requantise` as its formula has it, with every intermediate value."""
    params.check(spec)
    a = fitting(acc, "Accumulators", spec.acc_bits).astype(np.int64)
    product = a * integers(params.multiplier, "Multiplier")
    rounded = rounding_shift(product, params.shift)
    return RequantTrace(product, saturate(rounded + params.zero_point, spec.out_bits))


def _rescaler(spec: RequantSpec, params: RequantParams) -> Rescaler:
    params.check(spec)
    m, n, z = params.multiplier, params.shift, params.zero_point
    return Rescaler(m, n, z, acc=spec.bounds["acc"], bits=spec.out_bits)


def requant_pipeline(spec: RequantSpec, lanes: int) -> RowPipeline:
    """Cycle model: 9 registers, whatever the widths.

    1 the channel's M, N, z leave their memory (which the beat's place in its row addresses), 2 they rest
    beside acc at the multiplier, 3 and 4 the product: its parts (three for an acc of 40 bits), and their sum,
    5 to 7 the shift by N, 16s, 4s and 1s, which keeps one bit below the point, 8 a saturation to twice the
    codes, 9 that bit (the rounding), z and the saturation.
    """
    return stream_pipeline(lanes, 9)


SPEC_GRID: tuple[RequantSpec, ...] = (
    RequantSpec(),
    RequantSpec(out_bits=16),
    RequantSpec(acc_bits=24, out_bits=4),
    RequantSpec(acc_bits=40, out_bits=12),
)
"""Specs that every check of the operator runs on."""


def corner_rows(spec: RequantSpec) -> Iterator[tuple[str, npt.NDArray[np.int64], RequantParams]]:
    """Yield (name, accumulators [n], params of one channel).

    Accumulators are solved for: the last below and the first at each rounding boundary of the
    outermost, the middle and the saturating codes, exact ties, and both ends of the accumulator.
    Ties exist where M has trailing zeros or N is small. Where N is smaller than M has bits, an accumulator
    of -1 is negative by the upper of its partial products alone, and its code needs each bit of the lower.
    """
    acc, code = spec.bounds["acc"], spec.bounds["code"]
    factors = ((1 << 15, 20), (49152, 22), (43691, 17), (65535, 30), (32769, 0), (46341, 13), (61423, 9))
    for multiplier, shift in factors:
        for zero_point in (code.low, 0, code.high):
            wanted = (code.low - 1, code.low, -1, 0, 1, code.high, code.high + 1)
            values = [acc.low, acc.low + 1, -1, 0, 1, acc.high - 1, acc.high]
            for target in wanted:
                boundary = ((2 * (target - zero_point) - 1) << shift) // 2
                values += [-(-boundary // multiplier) + step for step in (-1, 0, 1)]
            inside = np.array([v for v in values if acc.low <= v <= acc.high], dtype=np.int64)
            params = RequantParams(
                multiplier=np.array([multiplier]), shift=np.array([shift]), zero_point=zero_point
            )
            yield f"M={multiplier} N={shift} z={zero_point}", inside[:, None], params

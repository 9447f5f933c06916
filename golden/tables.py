# SPDX-License-Identifier: Apache-2.0
"""Look-up tables of the operators, built with whole numbers alone.

Roots come from ``math.isqrt`` on scaled integers and logarithms from bit lengths of powers, so
every entry is the exactly rounded value on every machine. Golden model and RTL share these
tables; ``tests/test_tables.py`` checks them against rational arithmetic written independently.
At the end, how the golden model reads the two that a leading one indexes.
"""

from __future__ import annotations

from functools import cache
from math import isqrt

import numpy as np
import numpy.typing as npt

from golden.fixedpoint import POWERS, Ints

__all__ = ["exp2_table", "log2_table", "read_log2", "read_rsqrt", "rsqrt_table"]


@cache
def exp2_table(frac_bits: int, width: int) -> tuple[int, ...]:
    """``EXP2[i] = round(2**(width-1) * 2**(-i / 2**frac_bits))`` for i in [0, 2**frac_bits).

    Entries are ``width`` bits unsigned; 1.0 is ``2**(width-1)``. A 2**frac_bits-th root is
    ``frac_bits`` nested floor square roots, exact because floor roots nest.
    """
    entries = []
    for i in range(1 << frac_bits):
        doubled = 1 << ((width << frac_bits) - i)  # (2 * value) ** (2 ** frac_bits)
        for _ in range(frac_bits):
            doubled = isqrt(doubled)
        entries.append((doubled + 1) >> 1)
    return tuple(entries)


@cache
def log2_table(frac_bits: int, index_bits: int) -> tuple[int, ...]:
    """``LOG2[m] = floor(2**frac_bits * log2(1 + (m + 1/2) / 2**index_bits))``.

    ``m`` is the ``index_bits`` bits behind a leading one. *Floor*, not round: see
    :mod:`golden.softmax` for why that makes the codes exact. Entries are ``frac_bits`` bits.
    """
    point = index_bits + 1
    entries = []
    for m in range(1 << index_bits):
        power = ((1 << point) + 2 * m + 1) ** (1 << frac_bits)
        entries.append(power.bit_length() - 1 - (point << frac_bits))
    return tuple(entries)


@cache
def rsqrt_table(table_bits: int, width: int, interp_bits: int) -> tuple[tuple[int, int], ...]:
    """Chords of ``2**width / sqrt(v)`` for v in [1, 4), ``2**table_bits`` segments.

    The lower half of the table covers [1, 2), the upper half [2, 4), each in equal steps. An
    entry is ``(base, slope)``: at the fraction u = frac / 2**interp_bits of a segment the value is
    ``base - ((slope * frac) >> interp_bits)``. The chord is lowered by half of its largest
    distance from the curve (reached where the curve has the chord's slope; the midpoint serves to
    first order), which halves the error. ``base`` is capped to ``width`` bits.
    """
    guard = 24
    half = 1 << (table_bits - 1)

    def curve(numerator: int, denominator: int) -> int:
        """``2**(width + guard) / sqrt(numerator / denominator)``, floored."""
        return isqrt((denominator << (2 * (width + guard))) // numerator)

    entries = []
    for i in range(2 * half):
        # v = start / half, a step of 1 / half in [1, 2) and of 2 / half in [2, 4).
        start, step = (half + i, 1) if i < half else (2 * i, 2)
        left, right = curve(start, half), curve(start + step, half)
        middle = curve(2 * start + step, 2 * half)
        lowered = ((left + right) // 2 - middle) // 2
        base = (left - lowered + (1 << (guard - 1))) >> guard
        end = (right - lowered + (1 << (guard - 1))) >> guard
        base = min(base, (1 << width) - 1)
        entries.append((base, base - end))
    return tuple(entries)


def read_log2(x: Ints, table: npt.NDArray[np.int64], frac_bits: int) -> npt.NDArray[np.int64]:
    """``floor(2**frac_bits * log2(x))`` by leading one and :func:`log2_table`; less than 0 where x is 0.

    What the table does not index is taken to be in the middle of its segment.
    """
    index_bits = len(table).bit_length() - 1
    whole = np.searchsorted(POWERS, x, side="right") - 1  # the leading one
    aligned = (x.astype(np.int64) << index_bits) >> np.maximum(whole, 0)
    fraction: npt.NDArray[np.int64] = table[aligned & (len(table) - 1)]
    return (whole << frac_bits) + fraction


def read_rsqrt(
    x: npt.NDArray[np.int64], table: npt.NDArray[np.int64], width: int, interp_bits: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(R, k) for x in [1, 2**width), width even, by :func:`rsqrt_table`'s pairs [entries, 2].

    k: half the leading zeros of x, rounded down; R: of v = x * 2**(2k - (width - 2)) in [1, 4).
    """
    segment_bits = len(table).bit_length() - 2
    zeros = width - np.searchsorted(POWERS, x, side="right")  # the bit length
    # Behind the leading one come the segment and the place in it; a narrow x has zeros there.
    behind = max(width - 1, segment_bits + interp_bits)
    fraction = (x << (zeros + behind - (width - 1))) & ((1 << behind) - 1)
    part = (fraction >> (behind - segment_bits - interp_bits)) & ((1 << interp_bits) - 1)
    # An even count of zeros leaves v in [2, 4), the upper half of the table.
    index = ((1 - (zeros & 1)) << segment_bits) | (fraction >> (behind - segment_bits))
    return table[index, 0] - ((table[index, 1] * part) >> interp_bits), zeros >> 1

# SPDX-License-Identifier: Apache-2.0
"""How wrong a softmax can be at most: limits that are proven for every row, in whole numbers.

A row of up to n elements has one element of distance 0 and n - 1 others, of any distance d. All that is
known of them together is the logarithm L that the unit reads of their sum S = sum e(d): S lies where the
table gives L. So, for each L, a quantity sum w(d) is what items of weight e(d) and worth w(d) bring into a
sack, at most or at least:

    most   = max  sum w(d)   over at most n - 1 items of sum e(d) <= S_high - e(0)
    least  = min  sum w(d)   over at most n - 1 items of sum e(d) >= S_low  - e(0)

whose dual is a bound for *any* price l >= 0 of weight, so that the best whole price proves one:

    most  <= l * (S_high - e(0)) + (n - 1) * max(0, max over d of (w(d) - l * e(d)))
    least >= l * (S_low  - e(0)) - (n - 1) * max(0, max over d of (l * e(d) - w(d)))

``tests/test_contract.py`` holds these against small rows in full and against the worst rows found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache
from math import isqrt

import numpy as np
import numpy.typing as npt

from golden.fixedpoint import integer
from golden.softmax import SoftmaxSpec

__all__ = ["code_limit", "sum_limits"]

POINT = 40
"""Fraction bits of what an item is worth."""
LOG_POINT = 10
"""2**LOG_POINT parts of an octave tell a logarithm."""
Array = npt.NDArray[np.int64]


def sum_limits(spec: SoftmaxSpec, length: int) -> tuple[Fraction, Fraction]:
    """(least, most) of the sum of 2**-code (base sqrt 2: 2**(-code/2)) over a row of up to ``length``.

    At least one element is not masked; masked elements and the last code count nothing.
    """
    least: list[int] = []
    most: list[int] = []
    per_octave = 2 if spec.base == "sqrt2" else 1
    for log, low, high in _sums(spec, length):
        codes = np.minimum((log + _distances(spec) + _half(spec)) >> spec.code_shift, spec.last_code)
        for up, found in ((0, least), (1, most)):
            worth = [0 if c == spec.last_code else _power(-c, per_octave, up) for c in range(64)]
            value = np.array(worth, np.int64)[codes]
            found.append(_bound(value, _weights(spec), high if up else low, length, up))
    return Fraction(min(least), 1 << POINT), Fraction(max(most), 1 << POINT)


def code_limit(spec: SoftmaxSpec, length: int) -> Fraction:
    """How far a code may be from the real number that it stands for, in codes, in rows of up to ``length``.

    The real number is ``-log2(softmax)`` (twice that for base sqrt 2) of the scores as they are, cut at the
    last code. Half a code is the rounding of the code itself; flooring L adds nothing to it. The rest is the
    logarithm of the ratio of two sums: of what the exponentials lose, each at most ``gap`` where the sum is
    at least 1.0, and of what lies between a sum and the middle of its segment of the table.
    """
    integer(length, "Row length", 1, spec.max_tokens)
    steps, one = 1 << spec.frac_bits, spec.exp_bits - 1
    exact = [_power(-int(d), steps, up=1) for d in _distances(spec)]
    weights = [int(weight) << (POINT - one) for weight in _weights(spec)]
    pairs = list(zip(exact, weights, strict=True))
    gap = max(*(e - w for e, w in pairs), *(w - e + 2 for e, w in pairs))
    ratio = (1 << POINT) + (length - 1) * gap
    segment = (1 << POINT) + (1 << (POINT - 1 - spec.log_index_bits))
    worst = _log2(ratio) + _log2(segment) * (length > 1)
    return Fraction(1, 2) + worst * (2 if spec.base == "sqrt2" else 1)


def _half(spec: SoftmaxSpec) -> int:
    return 1 << (spec.code_shift - 1)


def _distances(spec: SoftmaxSpec) -> Array:
    return np.arange(spec.bounds["distance"].high + 1, dtype=np.int64)


@cache
def _weights(spec: SoftmaxSpec) -> Array:
    """e(d) of every distance."""
    distance = _distances(spec)
    table = np.array(spec.exp2, dtype=np.int64)
    weights: Array = table[distance % len(table)] >> (distance // len(table))
    return weights


def _sums(spec: SoftmaxSpec, length: int) -> Iterator[tuple[int, int, int]]:
    """Every L that rows of up to ``length`` elements may have, with the least and the most S behind it."""
    integer(length, "Row length", 1, spec.max_tokens)
    one, index_bits = 1 << (spec.exp_bits - 1), spec.log_index_bits
    table = np.array(spec.log2, dtype=np.int64)
    for octave in range(length.bit_length()):
        grain = one << octave >> index_bits  # of the sums that share an entry; exp_bits > index_bits
        for fraction in range(1 << spec.frac_bits):
            places = np.flatnonzero(table == fraction)
            if places.size:
                low = ((1 << index_bits) + int(places[0])) * grain
                high = ((1 << index_bits) + int(places[-1]) + 1) * grain - 1
                if low <= length * one:
                    yield (octave << spec.frac_bits) + fraction, low, min(high, length * one)


def _power(exponent: int, steps: int, up: int) -> int:
    """2**(exponent / steps) with POINT fraction bits, rounded down or up; steps is a power of two."""
    value = 1 << max((POINT + 8) * steps + exponent, 0)
    for _ in range(steps.bit_length() - 1):
        value = isqrt(value)
    # Nested floors lose less than 1 of the guard bits; up adds it, and one more where bits are cut.
    return (value + 1 + 255 >> 8) if up and value << 8 != 1 << (POINT + 16) else value >> 8


def _bound(worth: Array, weight: Array, total: int, length: int, up: int) -> int:
    """The proven most (up) or least of a row's sum of worth, by the best whole price of weight."""
    room = total - int(weight[0])
    sign = 1 if up else -1

    def told(price: int) -> int:
        gain = int((sign * (worth - price * weight)).max())
        return price * room + sign * (length - 1) * max(gain, 0)

    # A price above all of worth / weight buys nothing more; told is convex (concave where it is the least).
    highest = int(worth.max()) + 1
    price = _lowest(lambda price: sign * told(price), highest)
    return int(worth[0]) + told(price)


def _lowest(function: Callable[[int], int], high: int) -> int:
    """Where a convex function of whole numbers from 0 to high is lowest."""
    low = 0
    while low < high:
        middle = (low + high) // 2
        if function(middle) <= function(middle + 1):
            high = middle
        else:
            low = middle + 1
    return low


def _log2(value: int) -> Fraction:
    """log2 of value / 2**POINT, rounded up to parts of an octave."""
    power = value ** (1 << LOG_POINT)
    whole = power.bit_length() - 1
    return Fraction(whole + (power != 1 << whole), 1 << LOG_POINT) - POINT

# SPDX-License-Identifier: Apache-2.0
"""Two's-complement helpers and interval arithmetic against unbounded Python integers."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from golden.bounds import Interval
from golden.fixedpoint import bit_length, integer, integers, rounding_shift, saturate

words = st.integers(-(1 << 40), 1 << 40)


@given(words, st.integers(0, 50))
def test_rounding_shift_rounds_half_up(x: int, n: int) -> None:
    exact = floor(Fraction(x, 1 << n) + Fraction(1, 2)) if n else x
    assert rounding_shift(np.array([x]), n).tolist() == [exact]


@given(words, st.integers(2, 40))
def test_saturate_clips_to_the_register(x: int, bits: int) -> None:
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    assert int(saturate(np.array(x), bits)) == min(max(x, low), high)
    assert int(saturate(np.array(x), bits, signed=False)) == min(max(x, 0), (1 << bits) - 1)


@given(st.integers(0, (1 << 63) - 1))
def test_bit_length_is_pythons(x: int) -> None:
    assert int(bit_length(np.array([x]))[0]) == x.bit_length()


@pytest.mark.parametrize("value", [1.0, [1.5], np.float32(2), True, "7"])
def test_floats_are_refused_even_when_whole(value: object) -> None:
    with pytest.raises(TypeError, match=r"^Value must be an array of integers, not "):
        integers(value, "Value")


def test_errors_name_the_rule_and_the_value() -> None:
    with pytest.raises(ValueError, match=r"^Shift must be from 0 to 62, not -1 to -1$"):
        rounding_shift(np.array([1]), -1)
    with pytest.raises(ValueError, match=r"^Value must be at least 0, not -3$"):
        bit_length(np.array([-3]))
    with pytest.raises(TypeError, match=r"^Lanes must be an integer, not 2\.0$"):
        integer(2.0, "Lanes", 1, 32)
    with pytest.raises(TypeError, match=r"^Lanes must be an integer, not True$"):
        integer(True, "Lanes", 1, 32)
    with pytest.raises(ValueError, match=r"^Lanes must be from 1 to 32, not 0$"):
        integer(0, "Lanes", 1, 32)
    with pytest.raises(ValueError, match=r"^Value must fit in 64 bits with sign, not 9"):
        integers(np.array([2**63], dtype=np.uint64), "Value")
    with pytest.raises(ValueError, match=r"^Interval must have low <= high, not 1 > 0$"):
        Interval(1, 0)


ranges = st.tuples(st.integers(-300, 300), st.integers(-300, 300)).map(
    lambda pair: Interval(min(pair), max(pair))
)


@given(ranges, ranges, st.data())
def test_interval_arithmetic_holds_every_result(a: Interval, b: Interval, data: st.DataObject) -> None:
    x = data.draw(st.integers(a.low, a.high))
    y = data.draw(st.integers(b.low, b.high))
    assert (a + b).holds(x + y) and (a - b).holds(x - y) and (a * b).holds(x * y)
    assert a.square().holds(x * x) and (a << 3).holds(x << 3) and (a | b).holds(np.array([x, y]))


@given(ranges, st.integers(1, 9))
def test_interval_sums_are_reached(a: Interval, count: int) -> None:
    total = a.sum_of(count)
    reached = {v * n for v in (a.low, a.high) for n in (1, count)}
    assert {total.low, total.high} <= reached


@given(ranges)
def test_bits_are_enough_and_one_less_is_not(a: Interval) -> None:
    def fits(bits: int) -> bool:
        whole = Interval.of_bits(bits, signed=a.signed)
        return whole.low <= a.low and a.high <= whole.high

    assert fits(a.bits)
    assert a.bits == 1 or not fits(a.bits - 1)

# SPDX-License-Identifier: Apache-2.0
"""Tables against rational arithmetic written a second time: bounds on powers, no roots."""

from __future__ import annotations

from fractions import Fraction

import pytest

from golden.layernorm import INTERP_BITS, RSQRT_BITS
from golden.tables import exp2_table, log2_table, rsqrt_table


@pytest.mark.parametrize("width", [12, 15, 18])
@pytest.mark.parametrize("frac_bits", [1, 2, 4, 6])
def test_exp2_is_the_nearest_integer(frac_bits: int, width: int) -> None:
    steps = 1 << frac_bits
    for i, entry in enumerate(exp2_table(frac_bits, width)):
        # entry - 1/2 <= 2**(width-1 - i/steps) < entry + 1/2, both sides to the power of steps.
        power = Fraction(2) ** ((width - 1) * steps - i)
        assert (Fraction(2 * entry - 1, 2)) ** steps <= power < (Fraction(2 * entry + 1, 2)) ** steps
    assert exp2_table(frac_bits, width)[0] == 1 << (width - 1)


@pytest.mark.parametrize("index_bits", [6, 8, 10])
@pytest.mark.parametrize("frac_bits", [2, 3, 4, 6])
def test_log2_is_the_floor_at_the_middle(frac_bits: int, index_bits: int) -> None:
    steps = 1 << frac_bits
    for m, entry in enumerate(log2_table(frac_bits, index_bits)):
        middle = 1 + Fraction(2 * m + 1, 2 << index_bits)
        assert Fraction(2) ** entry <= middle**steps < Fraction(2) ** (entry + 1)


@pytest.mark.parametrize(("table_bits", "error_bits"), [(4, 9), (6, 12), (9, 12)])
def test_rsqrt_error_is_bounded(table_bits: int, error_bits: int) -> None:
    """The whole range, at every fraction: |value / (2**w / sqrt(v)) - 1| < 2**-error_bits."""
    table, half = rsqrt_table(table_bits, RSQRT_BITS, INTERP_BITS), 1 << (table_bits - 1)
    tolerance = Fraction(1, 1 << error_bits)
    for i, (base, slope) in enumerate(table):
        start, step = (half + i, 1) if i < half else (2 * i, 2)
        for frac in range(0, 1 << INTERP_BITS, 33):
            value = base - ((slope * frac) >> INTERP_BITS)
            v = Fraction((start << INTERP_BITS) + step * frac, half << INTERP_BITS)
            squared = Fraction(value**2, 1 << (2 * RSQRT_BITS)) * v
            assert (1 - tolerance) ** 2 < squared < (1 + tolerance) ** 2
        assert slope > 0 and base < 1 << RSQRT_BITS

# SPDX-License-Identifier: Apache-2.0
"""Golden requantiser: its corners, its factors and its errors."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import reference_integers as reference
from hypothesis import given
from hypothesis import strategies as st

from golden.requant import SPEC_GRID, RequantParams, RequantSpec, corner_rows, factor, requantise


@pytest.mark.parametrize("spec", SPEC_GRID)
def test_solved_accumulators(spec: RequantSpec) -> None:
    ties = 0
    for name, acc, params in corner_rows(spec):
        m, n = int(params.multiplier[0]), int(params.shift[0])
        got = requantise(acc, spec, params)[:, 0].tolist()
        assert got == reference.requant(acc.tolist(), spec, params)["code"], name
        ties += sum(a * m % (1 << n) == 1 << (n - 1) for a in acc[:, 0].tolist() if n)
    assert ties, "no rounding tie was reached"


@given(st.fractions(min_value=Fraction(1, 1 << 40), max_value=Fraction(1 << 14)))
def test_factor_is_normalised_and_near(ratio: Fraction) -> None:
    m, n = factor(ratio)
    assert 1 << 15 <= m < 1 << 16
    assert abs(Fraction(m, 1 << n) / ratio - 1) <= Fraction(1, 1 << 15)


def test_sixteen_bits_are_enough() -> None:
    """At most 0.05 % of codes differ from a multiplication by the real factor."""
    rng = np.random.default_rng(3)
    spec, acc = RequantSpec(), rng.integers(-100_000, 100_000, 200_000)
    ratio = Fraction(127, 98_765)
    m, n = factor(ratio)
    params = RequantParams(multiplier=np.array([m]), shift=np.array([n]), zero_point=0)
    real = np.array([(2 * a * 127 + 98_765) // (2 * 98_765) for a in acc.tolist()])
    assert (requantise(acc[:, None], spec, params)[:, 0] != np.clip(real, -128, 127)).mean() < 5e-4


def test_errors() -> None:
    spec, one = RequantSpec(), np.array([1 << 15])
    good = RequantParams(multiplier=one, shift=np.array([3]), zero_point=0)
    with pytest.raises(
        TypeError, match=r"^Accumulators must be an array of integers, not float64$"
    ):
        requantise(np.zeros(1), spec, good)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^Accumulators must fit in 32 bits with sign, not "):
        requantise(np.array([1 << 31]), spec, good)
    with pytest.raises(ValueError, match=r"^Multiplier must be from 32768 to 65535, not 5$"):
        RequantParams(multiplier=np.array([5]), shift=one, zero_point=0).check(spec)
    with pytest.raises(ValueError, match=r"^Shift must be from 0 to 62, not 32768$"):
        RequantParams(multiplier=one, shift=one, zero_point=0).check(spec)
    two = RequantParams(multiplier=np.array([1 << 15] * 2), shift=np.array([3, 3]), zero_point=0)
    with pytest.raises(ValueError, match=r"^Channels must be 2, not 3$"):
        requantise(np.zeros(3, int), spec, two)
    with pytest.raises(ValueError, match=r"^Ratio must be positive, not Fraction\(0, 1\)$"):
        factor(Fraction(0))
    with pytest.raises(ValueError, match=r"^Accumulator width must be from 8 to 40, not 41$"):
        RequantSpec(acc_bits=41)

# SPDX-License-Identifier: Apache-2.0
"""Golden residual stream: against unbounded Python integers, its corners, its factors and its errors."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import reference_integers as reference
from hypothesis import given
from hypothesis import strategies as st

from golden.residual import (
    SPEC_GRID,
    ResidualParams,
    ResidualSpec,
    corner_rows,
    factors,
    residual,
    residual_trace,
)

ROWS = [
    pytest.param(spec, *row, id=f"{index}: {row[0]}")
    for index, spec in enumerate(SPEC_GRID)
    for row in corner_rows(spec)
]


@pytest.mark.parametrize(("spec", "name", "codes", "acc", "params"), ROWS)
def test_corner_rows_equal_the_scalar_formula(spec, name, codes, acc, params) -> None:  # type: ignore[no-untyped-def]
    trace = residual_trace(codes, acc, spec, params)
    seen = reference.residual([codes.tolist()], [acc.tolist()], spec, params)
    assert trace.code.tolist() == residual(codes, acc, spec, params).tolist() == seen["code"]
    for part, bound in spec.bounds.items():
        if hasattr(trace, part):
            assert bound.holds(getattr(trace, part)), part
    if name == "largest sum":
        assert int(trace.total.max()) == spec.bounds["total"].high
        assert int(trace.x.max()) == spec.bounds["x"].high
    if name == "smallest sum":
        assert int(trace.total.min()) == spec.bounds["total"].low
        assert int(trace.branch.min()) == spec.bounds["branch"].low


@pytest.mark.parametrize("spec", SPEC_GRID)
def test_corner_rows_meet_ties_and_saturate_on_both_sides(spec: ResidualSpec) -> None:
    ties = beyond = below = 0
    for _, codes, acc, params in corner_rows(spec):
        total = residual_trace(codes, acc, spec, params).total
        n = params.shift + params.out_shift
        ties += int(((total & ((1 << n) - 1)) == (1 << n) >> 1)[n > 0].sum())
        code = ((total + ((1 << n) >> 1)) >> n) + params.zero_point
        beyond += int((code == spec.bounds["code"].high + 1).sum())
        below += int((code == spec.bounds["code"].low - 1).sum())
    assert ties and beyond and below


@given(
    st.fractions(0, 4, max_denominator=1 << 20),
    st.lists(st.fractions(0, 1, max_denominator=1 << 30), min_size=1, max_size=5),
    st.sampled_from(SPEC_GRID),
)
def test_factors_are_the_nearest_with_the_largest_shift(
    kept: Fraction, branch: list[Fraction], spec: ResidualSpec
) -> None:
    gain, multiplier, shift = factors(kept, branch, spec)
    assert spec.bounds["gain"].holds(gain) and spec.bounds["multiplier"].holds(multiplier)
    for ratio, value in zip([kept, *branch], [gain, *multiplier.tolist()], strict=True):
        assert abs(ratio * (1 << shift) - value) <= Fraction(1, 2)
    if shift < spec.bounds["shift"].high:
        next_gain, next_multiplier = 2 * kept * (1 << shift), 2 * max(branch) * (1 << shift)
        fits = next_gain < spec.bounds["gain"].high + Fraction(1, 2)
        assert not (fits and next_multiplier < spec.bounds["multiplier"].high + Fraction(1, 2))


@pytest.mark.parametrize("spec", SPEC_GRID[:2], ids=["8 bits", "16 bits"])
def test_a_block_of_real_size_loses_hardly_a_code_against_rational_factors(
    spec: ResidualSpec,
) -> None:
    """At most 0.5 % of codes (8 bits) or 5 % (16 bits) differ from exact factors, never by more than 1."""
    rng = np.random.default_rng(7)
    finer = 1 << (spec.in_bits - 8)
    kept = Fraction(97, 101)
    branch = [Fraction(int(n), 500_000) * finer for n in rng.integers(500, 3000, 192)]
    gain, multiplier, shift = factors(kept, branch, spec)
    params = ResidualParams(
        in_zero_point=5,
        in_shift=rng.integers(0, 4, 192),
        gain=gain,
        multiplier=multiplier,
        shift=shift,
        zero_point=-3,
        out_shift=rng.integers(0, 4, 192),
    )
    codes = np.clip(rng.normal(0, 20 * finer, (200, 192)), -128 * finer, 128 * finer - 1).astype(
        int
    )
    acc = rng.normal(0, 60_000, (200, 192)).astype(int)
    got, half = residual(codes, acc, spec, params).astype(int), 1 << (spec.out_bits - 1)
    x = (codes - 5) << params.in_shift
    difference = []
    for c, ratio in enumerate(branch):
        # Over a common denominator; int64 is wide enough for these.
        bottom = 101 * ratio.denominator * (1 << int(params.out_shift[c]))
        top = x[:, c] * 97 * ratio.denominator + acc[:, c] * 101 * ratio.numerator
        exact = np.clip((2 * top + bottom) // (2 * bottom) - 3, -half, half - 1)
        difference.append(np.abs(got[:, c] - exact))
    assert np.max(difference) <= 1
    assert np.count_nonzero(difference) / got.size <= (0.005 if spec.in_bits == 8 else 0.05)


def test_rows_of_codes_broadcast_over_a_batch() -> None:
    """As the position embedding does."""
    spec, rng = ResidualSpec(), np.random.default_rng(1)
    _, _, _, params = next(corner_rows(spec))
    params = replace(params, shift=20)
    codes = rng.integers(-128, 128, (5, params.channels)).astype(np.int8)
    acc = rng.integers(-99999, 99999, (3, 5, params.channels)).astype(np.int32)
    whole = residual(codes, acc, spec, params)
    assert whole.shape == (3, 5, params.channels) and whole.dtype == np.int8
    assert (whole[2] == residual(codes, acc[2], spec, params)).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"in_bits": 7}, r"^Input width must be from 8 to 16, not 7$"),
        ({"out_bits": 17}, r"^Output width must be from 8 to 16, not 17$"),
        ({"max_shift": 8}, r"^Largest PTF shift must be from 0 to 7, not 8$"),
        ({"acc_bits": 41}, r"^Accumulator width must be from 8 to 40, not 41$"),
        ({"gain_bits": 33}, r"^Width of M1 must be from 16 to 32, not 33$"),
        ({"multiplier_bits": 15}, r"^Width of M2 must be from 16 to 24, not 15$"),
        (
            {"acc_bits": 40, "multiplier_bits": 24},
            r"^Accumulator and multiplier widths must keep the sum within 61 bits, not 6[45]$",
        ),
    ],
)
def test_spec_errors(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResidualSpec(**fields)


def test_errors() -> None:
    spec, two = ResidualSpec(), np.array([0, 3])
    good = ResidualParams(
        in_zero_point=0, in_shift=two, gain=9, multiplier=two, shift=4, zero_point=0, out_shift=two
    )
    with pytest.raises(TypeError, match=r"^Codes must be an array of integers, not float64$"):
        residual(np.zeros(2), two, spec, good)  # type: ignore[arg-type]
    with pytest.raises(
        TypeError, match=r"^Accumulators must be an array of integers, not float64$"
    ):
        residual(two, np.zeros(2), spec, good)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^Row length of codes must be 2, not shape \(3,\)$"):
        residual(np.zeros(3, int), two, spec, good)
    with pytest.raises(
        ValueError, match=r"^Row length of accumulators must be 2, not shape \(4, 1\)$"
    ):
        residual(two, np.zeros((4, 1), int), spec, good)
    with pytest.raises(ValueError, match=r"^Codes must fit in 8 bits with sign, not 0 to 128$"):
        residual(np.array([0, 128]), two, spec, good)
    with pytest.raises(ValueError, match=r"^Accumulators must fit in 32 bits with sign, not 0 to "):
        residual(two, np.array([0, 1 << 31]), spec, good)
    for changes, message in (
        ({"in_zero_point": 128}, r"^Input zero point must be from -128 to 127, not 128$"),
        ({"zero_point": -129}, r"^Zero point must be from -128 to 127, not -129$"),
        ({"gain": 1 << 24}, r"^M1 must be from 0 to 16777215, not 16777216$"),
        ({"shift": 59}, r"^Shift must be from 0 to 58, not 59$"),
        ({"in_shift": np.array([0, 4])}, r"^Input PTF shift must be from 0 to 3, not 4$"),
        ({"out_shift": np.array([-1, 4])}, r"^PTF shift must be from 0 to 3, not -1$"),
        ({"multiplier": np.array([1, 1 << 16])}, r"^M2 must be from 0 to 65535, not 65536$"),
        ({"multiplier": np.array([1])}, r"^M2 must have shape \(2,\), not \(1,\)$"),
        (
            {"in_shift": np.array(0)},
            r"^Input PTF shift must be an array of channels, not shape \(\)$",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            replace(good, **changes).check(spec)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^M1 must be an integer, not 0\.5$"):
        replace(good, gain=0.5).check(spec)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^Ratios must be at least 0, not Fraction\(-1, 2\)$"):
        factors(Fraction(1), [Fraction(-1, 2)], spec)
    with pytest.raises(ValueError, match=r"^Ratios must be at most 16777215 and 65535, not "):
        factors(Fraction(1), [Fraction(70000)], spec)

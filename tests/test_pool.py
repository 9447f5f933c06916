# SPDX-License-Identifier: Apache-2.0
"""Golden mean over tokens: against unbounded Python integers, its corners, its bounds and its errors."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import reference_integers as reference

from golden.pool import SPEC_GRID, PoolParams, PoolSpec, corner_rows, pool, pool_trace
from golden.requant import RequantParams, factor

ROWS = [
    pytest.param(spec, *row, id=f"{index}: {row[0]}")
    for index, spec in enumerate(SPEC_GRID)
    for row in corner_rows(spec)
]


@pytest.mark.parametrize(("spec", "name", "codes", "params"), ROWS)
def test_corner_rows_equal_the_scalar_formula(spec, name, codes, params) -> None:  # type: ignore[no-untyped-def]
    seen = reference.pool(codes.tolist(), spec, params)
    trace = pool_trace(codes, spec, params)
    acc = trace.acc.tolist()
    assert acc == seen["acc"][len(codes) - 1 :: len(codes)]
    assert trace.code.tolist() == pool(codes, spec, params).tolist() == seen["code"]
    assert spec.bounds["acc"].holds(trace.acc) and spec.bounds["code"].holds(trace.code)
    if name == "largest sum":
        assert acc[0] == spec.bounds["acc"].high
        assert acc[0] * 65535 == spec.bounds["product"].high
    if name == "smallest sum":
        assert acc[0] == spec.bounds["acc"].low
        assert acc[0] * 65535 == spec.bounds["product"].low


@pytest.mark.parametrize("spec", SPEC_GRID)
def test_corner_rows_meet_ties_and_saturate_on_both_sides(spec: PoolSpec) -> None:
    ties, reached = 0, set()
    for _, codes, params in corner_rows(spec):
        m, n = int(params.requant.multiplier[0]), int(params.requant.shift[0])
        for value in pool_trace(codes, spec, params).acc.tolist():
            ties += n > 0 and value * m % (1 << n) == 1 << (n - 1)
            reached.add(((value * m + ((1 << n) >> 1)) >> n) + params.requant.zero_point)
    code = spec.bounds["code"]
    ends = {code.low - 1, code.low, code.high, code.high + 1}
    if spec.bounds["input"].bits < spec.out_bits and spec.max_tokens == 1:
        # One narrow token cannot reach the ends of wider codes: the extremes beyond them do.
        ends = {min(reached), max(reached)}
        assert min(reached) < code.low and max(reached) > code.high
    assert ties and ends <= reached


def test_it_is_the_rounded_mean() -> None:
    """At most 0.1 % of codes differ from the exact mean rounded half up, never by more than 1."""
    rng = np.random.default_rng(6)
    codes = rng.integers(-128, 128, (200, 49, 96)).astype(np.int8)
    m, n = factor(Fraction(1, 49))
    requant = RequantParams(multiplier=np.array([m]), shift=np.array([n]), zero_point=0)
    got = pool(codes, PoolSpec(), PoolParams(in_zero_point=0, requant=requant))
    exact = (2 * codes.sum(axis=1, dtype=np.int64) + 49) // 98
    assert np.abs(got - exact).max() <= 1 and (got != exact).mean() < 1e-3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": 0}, r"^Maximum number of tokens must be from 1 to 4096, not 0$"),
        ({"in_bits": 3}, r"^Input width must be from 4 to 16, not 3$"),
        ({"out_bits": 17}, r"^Output width must be from 3 to 16, not 17$"),
    ],
)
def test_spec_errors(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PoolSpec(**fields)


def test_errors() -> None:
    spec = PoolSpec(max_tokens=4)
    requant = RequantParams(multiplier=np.array([1 << 15]), shift=np.array([15]), zero_point=0)
    good, codes = PoolParams(in_zero_point=0, requant=requant), np.zeros((4, 3), np.int8)
    with pytest.raises(TypeError, match=r"^Codes must be an array of integers, not float64$"):
        pool(codes * 0.5, spec, good)
    with pytest.raises(
        ValueError, match=r"^Codes must be \[\.\.\., 1 to 4 tokens, channels\], not "
    ):
        pool(codes[0], spec, good)
    with pytest.raises(ValueError, match=r"^Codes must be .*, not shape \(0, 3\)$"):
        pool(codes[:0], spec, good)
    with pytest.raises(ValueError, match=r"^Codes must be .*, not shape \(5, 3\)$"):
        pool(np.zeros((5, 3), int), spec, good)
    with pytest.raises(ValueError, match=r"^Codes must fit in 8 bits with sign, not -129 to -129$"):
        pool(np.full((4, 3), -129), spec, good)
    with pytest.raises(ValueError, match=r"^Input zero point must be from -128 to 127, not 128$"):
        pool(codes, spec, replace(good, in_zero_point=128))
    two = replace(requant, multiplier=requant.multiplier.repeat(2), shift=requant.shift.repeat(2))
    with pytest.raises(ValueError, match=r"^Channels must be 2, not 3$"):
        pool(codes, spec, replace(good, requant=two))
    with pytest.raises(ValueError, match=r"^Zero point must be from -128 to 127, not 200$"):
        pool(codes, spec, replace(good, requant=replace(requant, zero_point=200)))

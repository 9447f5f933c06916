# SPDX-License-Identifier: Apache-2.0
"""Golden GELU: every code of every table, and what a table must be."""

from __future__ import annotations

from math import erf, floor, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from golden.gelu import SPEC_GRID, GeluParams, GeluSpec, corner_rows, gelu

ROWS = [
    pytest.param(spec, *row, id=f"{index}: {row[0]}")
    for index, spec in enumerate(SPEC_GRID)
    for row in corner_rows(spec)
]


@pytest.mark.parametrize(("spec", "name", "codes", "params"), ROWS)
def test_corner_rows_are_looked_up(spec, name, codes, params) -> None:  # type: ignore[no-untyped-def]
    table = dict(
        zip(range(-(spec.entries // 2), spec.entries // 2), params.table.tolist(), strict=True)
    )
    got = gelu(codes, spec, params)
    assert got.tolist() == [table[x] for x in codes.tolist()]
    assert sorted(codes.tolist()) == sorted(table), "every code occurs"
    assert spec.bounds["code"].holds(got)


@pytest.mark.parametrize("spec", SPEC_GRID)
def test_corner_tables_reach_both_ends(spec: GeluSpec) -> None:
    seen = {int(x) for _, codes, params in corner_rows(spec) for x in gelu(codes, spec, params)}
    assert {spec.bounds["code"].low, spec.bounds["code"].high} <= seen


@given(st.data())
def test_shape_and_order_do_not_matter(data: st.DataObject) -> None:
    spec = data.draw(st.sampled_from(SPEC_GRID))
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    low, high = spec.bounds["code"].low, spec.bounds["code"].high
    params = GeluParams(table=rng.integers(low, high, spec.entries, endpoint=True))
    codes = rng.integers(-spec.entries // 2, spec.entries // 2, (2, 3, 4)).astype(np.int16)
    whole = gelu(codes, spec, params)
    assert whole.shape == codes.shape
    for index in np.ndindex(codes.shape):
        assert whole[index] == params.table[int(codes[index]) + spec.entries // 2]


def test_a_table_of_the_real_function_is_exact_to_its_rounding() -> None:
    spec, scale_in, scale_out, zero = GeluSpec(in_bits=10), 8 / 512, 8 / 255, -120
    values = [x * scale_in for x in range(-512, 512)]
    exact = [v * (1 + erf(v / sqrt(2))) / 2 for v in values]
    rounded = [max(-128, min(127, floor(v / scale_out + 0.5) + zero)) for v in exact]
    params = GeluParams(table=np.array(rounded))
    got = (gelu(np.arange(-512, 512), spec, params).astype(int) - zero) * scale_out
    inside = (np.array(rounded) > -128) & (np.array(rounded) < 127)
    assert np.abs(got - exact)[inside].max() <= scale_out / 2 + 1e-12


def test_errors() -> None:
    spec = GeluSpec()
    good = GeluParams(table=np.zeros(256, int))
    with pytest.raises(ValueError, match=r"^Input width must be from 4 to 10, not 11$"):
        GeluSpec(in_bits=11)
    with pytest.raises(ValueError, match=r"^Output width must be from 3 to 16, not 2$"):
        GeluSpec(out_bits=2)
    with pytest.raises(TypeError, match=r"^Input width must be an integer, not '8'$"):
        GeluSpec(in_bits="8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^Table must have shape \(256,\), not \(1024,\)$"):
        GeluParams(table=np.zeros(1024, int)).check(spec)
    with pytest.raises(ValueError, match=r"^Table must be from -128 to 127, not 128$"):
        GeluParams(table=np.full(256, 128)).check(spec)
    with pytest.raises(TypeError, match=r"^Table must be an array of integers, not float64$"):
        GeluParams(table=np.zeros(256)).check(spec)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^Codes must be an array of integers, not float64$"):
        gelu(np.zeros(3), spec, good)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^Codes must fit in 8 bits with sign, not 0 to 128$"):
        gelu(np.array([0, 128]), spec, good)

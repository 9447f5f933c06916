# SPDX-License-Identifier: Apache-2.0
"""Golden linear layer: against unbounded Python integers, its corners, its bounds and its errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import reference_integers as reference
from hypothesis import given
from hypothesis import strategies as st

from golden.linear import (
    SPEC_GRID,
    LinearParams,
    LinearSpec,
    accumulate,
    corner_rows,
    fold_zero_point,
    linear,
)
from golden.requant import RequantParams

ROWS = [
    pytest.param(spec, *row, id=f"{index}: {row[0]}")
    for index, spec in enumerate(SPEC_GRID)
    for row in corner_rows(spec)
]


@pytest.mark.parametrize(("spec", "name", "codes", "params"), ROWS)
def test_corner_rows_equal_the_scalar_formula(spec, name, codes, params) -> None:  # type: ignore[no-untyped-def]
    seen = reference.linear([codes.tolist()], spec, params)
    acc = seen["out"]
    assert accumulate(codes, spec, params).tolist() == acc
    assert linear(codes, spec, params).tolist() == seen["code" if spec.out_bits else "out"]
    assert spec.bounds["acc"].holds(np.array(acc)) and params.reach(spec).holds(np.array(acc))


@pytest.mark.parametrize("spec", SPEC_GRID)
def test_corner_rows_reach_the_bounds_and_the_ties(spec: LinearSpec) -> None:
    seen: set[int] = set()
    ties = 0
    for _, codes, params in corner_rows(spec):
        acc = accumulate(codes, spec, params).tolist()
        seen |= set(acc)
        if params.requant is not None:
            n = int(params.requant.shift[0])
            ties += sum(
                a * int(params.requant.multiplier[0]) % (1 << n) == 1 << (n - 1) for a in acc
            )
    assert min(seen) == spec.bounds["acc"].low and max(seen) == spec.bounds["acc"].high
    assert ties or spec.out_bits is None


def draw_params(data: st.DataObject, spec: LinearSpec, count: int, outputs: int) -> LinearParams:
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    limit, room = spec.bounds["weight"].high, spec.bounds["bias"]
    requant = None
    if spec.out_bits is not None:
        channels = data.draw(st.sampled_from((1, outputs)))
        requant = RequantParams(
            multiplier=rng.integers(1 << 15, 1 << 16, channels),
            shift=rng.integers(0, 40, channels),
            zero_point=data.draw(st.integers(-(1 << (spec.out_bits - 1)), 3)),
        )
    return LinearParams(
        weight=rng.integers(-limit, limit, (outputs, count), endpoint=True),
        bias=rng.integers(room.low, room.high, outputs, endpoint=True),
        requant=requant,
    )


@given(st.data())
def test_the_reach_of_given_weights_is_attained(data: st.DataObject) -> None:
    spec = data.draw(st.sampled_from(SPEC_GRID))
    params, code = draw_params(data, spec, 9, 4), spec.bounds["input"]
    reach = params.reach(spec)
    assert spec.bounds["acc"].holds(np.array([reach.low, reach.high]))
    most = np.where(params.weight > 0, code.high, code.low)
    least = np.where(params.weight > 0, code.low, code.high)
    assert int(accumulate(most, spec, params).max()) == reach.high
    assert int(accumulate(least, spec, params).min()) == reach.low


@given(st.integers(0, 1 << 32), st.integers(-128, 127))
def test_a_folded_zero_point_is_a_subtracted_one(seed: int, zero_point: int) -> None:
    rng = np.random.default_rng(seed)
    weight, bias = rng.integers(-127, 128, (5, 30)), rng.integers(-(1 << 20), 1 << 20, 5)
    codes = rng.integers(-128, 128, (4, 30))
    spec = LinearSpec(in_features=30, out_bits=None)
    params = LinearParams(weight=weight, bias=fold_zero_point(bias, weight, zero_point))
    want = [
        [
            b + sum(w * (q - zero_point) for w, q in zip(row, x, strict=True))
            for row, b in zip(weight.tolist(), bias.tolist(), strict=True)
        ]
        for x in codes.tolist()
    ]
    assert linear(codes, spec, params).tolist() == want


@pytest.mark.parametrize("spec", SPEC_GRID)
def test_there_is_room_to_fold_any_zero_point(spec: LinearSpec) -> None:
    code, limit = spec.bounds["input"], spec.bounds["weight"].high
    for zero in (code.low, code.high):
        for sign in (-1, 1):
            weight = np.full((1, spec.in_features), sign * limit)
            assert spec.bounds["bias"].holds(fold_zero_point(np.zeros(1, int), weight, zero))


def test_leading_axes_and_small_dtypes() -> None:
    spec = LinearSpec(in_features=8, out_bits=None)
    rng = np.random.default_rng(2)
    weight = rng.integers(-127, 128, (4, 8)).astype(np.int8)
    params = LinearParams(weight=weight, bias=np.arange(4))
    x = rng.integers(-128, 128, (2, 3, 5, 8)).astype(np.int8)
    whole = linear(x, spec, params)
    assert whole.shape == (2, 3, 5, 4) and whole.dtype == np.int32
    assert (whole[1, 2] == linear(x[1, 2], spec, params)).all()
    assert linear(x[:0], spec, params).shape == (0, 3, 5, 4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"in_features": 0}, r"^Maximum row length must be from 1 to 16384, not 0$"),
        ({"in_bits": 9}, r"^Input width must be from 4 to 8, not 9$"),
        ({"weight_bits": 2}, r"^Weight width must be from 3 to 8, not 2$"),
        ({"out_bits": 17}, r"^Output width must be from 3 to 16, not 17$"),
        ({"acc_bits": 41}, r"^Accumulator width must be from 8 to 40, not 41$"),
        ({"acc_bits": 23}, r"^Accumulator width must be at least 24 for rows of 192, not 23$"),
    ],
)
def test_spec_errors(fields: dict[str, int], message: str) -> None:
    assert LinearSpec(in_features=192, acc_bits=24)
    with pytest.raises(ValueError, match=message):
        LinearSpec(**{"in_features": 192} | fields)  # type: ignore[arg-type]


def test_spec_kind_errors() -> None:
    with pytest.raises(TypeError, match=r"^Input sign must be a boolean, not 1$"):
        LinearSpec(in_features=4, in_signed=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^Weight width must be an integer, not 8\.0$"):
        LinearSpec(in_features=4, weight_bits=8.0)  # type: ignore[arg-type]


def test_errors() -> None:
    spec = LinearSpec(in_features=3)
    one = np.array([1 << 15])
    requant = RequantParams(multiplier=one, shift=np.array([20]), zero_point=0)
    good = LinearParams(weight=np.ones((2, 3), int), bias=np.zeros(2, int), requant=requant)
    with pytest.raises(TypeError, match=r"^Codes must be an array of integers, not float64$"):
        linear(np.zeros(3), spec, good)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^Row length must be 3, not shape \(1, 4\)$"):
        linear(np.zeros((1, 4), int), spec, good)
    with pytest.raises(ValueError, match=r"^Codes must be from -128 to 127, not 0 to 128$"):
        linear(np.array([0, 1, 128]), spec, good)
    room = spec.bounds["bias"]
    for changes, message in (
        ({"weight": np.full((2, 3), -128)}, r"^Weight must be from -127 to 127, not -128$"),
        (
            {"weight": np.ones((2, 4), int)},
            r"^Weights must be \[out, 1 to 3\] channels, not shape ",
        ),
        ({"bias": np.zeros(3, int)}, r"^Bias must have shape \(2,\), not \(3,\)$"),
        (
            {"bias": np.array([0, room.high + 1])},
            rf"^Bias must be from {room.low} to {room.high}, not {room.high + 1}$",
        ),
        ({"requant": None}, r"^Requantiser must be given for 8 output bits, not None$"),
        (
            {"requant": replace(requant, multiplier=np.repeat(one, 3), shift=np.zeros(3, int))},
            r"^Requantiser must have 1 or 2 channels, not 3$",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            replace(good, **changes).check(spec)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"^Requantiser must be None for a spec without an output "
    ):
        good.check(LinearSpec(in_features=3, out_bits=None))
    with pytest.raises(TypeError, match=r"^Weight must be an array of integers, not float64$"):
        replace(good, weight=np.ones((2, 3))).check(spec)

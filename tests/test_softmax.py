# SPDX-License-Identifier: Apache-2.0
"""Golden softmax: against scalar Python integers, against exact logarithms, and its contract."""

from __future__ import annotations

import numpy as np
import pytest
import reference_integers as reference
from hypothesis import given
from hypothesis import strategies as st

from golden.softmax import (
    SPEC_GRID,
    SoftmaxParams,
    SoftmaxSpec,
    corner_rows,
    softmax,
    softmax_trace,
)

ROWS = [
    pytest.param(spec, *row, id=f"{index}: {row[0]}")
    for index, spec in enumerate(SPEC_GRID)
    for row in corner_rows(spec)
]


@pytest.mark.parametrize(("spec", "name", "scores", "mask", "params"), ROWS)
def test_corner_rows_equal_the_scalar_formula(spec, name, scores, mask, params) -> None:  # type: ignore[no-untyped-def]
    seen = reference.softmax([scores.tolist()], [mask.tolist()], spec, params)
    trace = softmax_trace(scores, spec, params, mask)
    assert trace.code.tolist() == softmax(scores, spec, params, mask).tolist() == seen["code"]
    for field, bound in spec.bounds.items():
        if hasattr(trace, field):
            assert bound.holds(getattr(trace, field)), field


@pytest.mark.parametrize("spec", SPEC_GRID)
def test_a_row_of_equal_scores_reaches_the_bounds(spec: SoftmaxSpec) -> None:
    trace = softmax_trace(np.zeros(spec.max_tokens, int), spec, SoftmaxParams(frac=spec.frac_bits))
    assert int(trace.total[0]) == spec.bounds["total"].high
    assert int(trace.log_total[0]) == spec.bounds["log_total"].high
    assert trace.exponential.max() == spec.bounds["exponential"].high
    low, high = spec.bounds["score"].low, spec.bounds["score"].high
    ends = softmax_trace(np.array([low, high]), spec, SoftmaxParams(frac=spec.frac_bits))
    assert ends.distance.max() == spec.bounds["distance"].high and ends.code.max() == spec.last_code


@pytest.mark.parametrize("spread", [0.5, 2.0, 6.0])
@pytest.mark.parametrize("spec", [SPEC_GRID[0], SPEC_GRID[1]], ids=["base 2", "base sqrt 2"])
def test_codes_are_those_of_an_exact_logarithm(spec: SoftmaxSpec, spread: float) -> None:
    """At least 97 % equal to exact quantisation of float softmax of the same scores, at most 1 off."""
    rng = np.random.default_rng(5)
    low, high = spec.bounds["score"].low, spec.bounds["score"].high
    scores = np.clip(np.round(rng.normal(0, spread * 16, (500, 197))), low, high).astype(int)
    exact = -np.log2(np.exp2(scores / 16) / np.exp2(scores / 16).sum(-1, keepdims=True))
    exact = np.floor(exact * (1 if spec.base == "2" else 2) + 0.5)
    got = softmax(scores, spec, SoftmaxParams(frac=4)).astype(int)
    difference = np.abs(got - np.minimum(exact, spec.last_code))
    assert difference.max() <= 1
    assert (difference == 0).mean() >= 0.97


@given(st.integers(0, 2**32 - 1))
def test_permuting_a_row_permutes_its_codes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    spec = SPEC_GRID[0]
    scores = rng.integers(-300, 300, 197)
    order = rng.permutation(197)
    params = SoftmaxParams(frac=3)
    assert (softmax(scores, spec, params)[order] == softmax(scores[order], spec, params)).all()


def test_leading_axes_and_masks_broadcast() -> None:
    spec, params = SoftmaxSpec(), SoftmaxParams(frac=4)
    rng = np.random.default_rng(1)
    scores = rng.integers(-100, 100, (2, 3, 4, 9)).astype(np.int16)
    mask = np.arange(9) > 6
    whole = softmax(scores, spec, params, mask)
    assert whole.shape == scores.shape and whole.dtype == np.uint8
    assert (whole[1, 2, 3] == softmax(scores[1, 2, 3], spec, params, mask)).all()
    assert (whole[..., mask] == spec.last_code).all()
    # A masked element leaves the rest as if it were not there.
    assert (whole[..., :7] == softmax(scores[..., :7], spec, params)).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": 0}, r"^Maximum row length must be from 1 to 4096, not 0$"),
        ({"score_bits": 17}, r"^Score width must be from 8 to 16, not 17$"),
        ({"frac_bits": 1}, r"^Fraction width must be from 2 to 6, not 1$"),
        ({"code_bits": 2}, r"^Code width must be from 3 to 6, not 2$"),
        ({"base": "e"}, r"^Code base must be '2' or 'sqrt2', not 'e'$"),
        ({"exp_bits": 11}, r"^Exponential width must be from 12 to 18, not 11$"),
        ({"log_index_bits": 3}, r"^Logarithm index width must be from 4 to 10, not 3$"),
    ],
)
def test_spec_errors(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SoftmaxSpec(**fields)  # type: ignore[arg-type]


def test_input_errors() -> None:
    spec, params = SoftmaxSpec(max_tokens=4), SoftmaxParams(frac=4)
    with pytest.raises(TypeError, match=r"^Scores must be an array of integers, not float64$"):
        softmax(np.zeros(3), spec, params)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^Row length must be from 1 to 4, not 5$"):
        softmax(np.zeros(5, int), spec, params)
    with pytest.raises(ValueError, match=r"^Scores must fit in 12 bits with sign, not 0 to 2048$"):
        softmax(np.array([0, 2048]), spec, params)
    with pytest.raises(TypeError, match=r"^Mask must be an array of booleans, not int64$"):
        softmax(np.zeros(2, int), spec, params, np.zeros(2, int))
    with pytest.raises(ValueError, match=r"^Score fraction bits must be from 1 to 4, not 5$"):
        softmax(np.zeros(2, int), spec, SoftmaxParams(frac=5))

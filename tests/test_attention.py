# SPDX-License-Identifier: Apache-2.0
"""Golden q.k and codes.v: against unbounded Python integers, and the bound of a softmax row's weights."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import isqrt

import numpy as np
import pytest
import reference_integers as reference
from hypothesis import given
from hypothesis import strategies as st

from golden import softmax as softmax_module
from golden.attention import (
    ATTEND_GRID,
    SCORE_GRID,
    SQRT2,
    SQRT2_BITS,
    AttendSpec,
    ScoreParams,
    ScoreSpec,
    attend,
    attend_rows,
    attend_trace,
    attention_scores,
    score_rows,
)
from golden.requant import RequantParams
from golden.softmax import SoftmaxParams, SoftmaxSpec, softmax, softmax_trace

ONE = RequantParams(multiplier=np.array([1 << 15]), shift=np.array([20]), zero_point=0)


# --------------------------------------------------------------------------------------- q.k

SCORES = [
    pytest.param(spec, *row, id=f"{index}: {row[0]}")
    for index, spec in enumerate(SCORE_GRID)
    for row in score_rows(spec)
]


@pytest.mark.parametrize(("spec", "name", "q", "k", "params"), SCORES)
def test_corner_scores_equal_the_scalar_formula(spec, name, q, k, params) -> None:  # type: ignore[no-untyped-def]
    got = attention_scores(q, k, spec, params)
    assert got.ravel().tolist() == reference.scores(q.tolist(), k.tolist(), spec, params)["score"]
    if name == "both ends":
        assert int((q @ k.swapaxes(-1, -2)).max()) == spec.bounds["acc"].high
        low, high = spec.bounds["input"].low, spec.bounds["input"].high
        assert spec.bounds["acc"].low == spec.head_dim * low * high


@pytest.mark.parametrize("spec", SCORE_GRID)
def test_the_bias_reaches_both_ends_from_inside_by_one_and_from_far_beyond(spec: ScoreSpec) -> None:
    score, seen, pulled = spec.bounds["score"], set(), set()
    widest: list[int] = []
    for name, q, k, params in score_rows(spec):
        if params.bias is None:
            continue
        acc, requant = q @ k.swapaxes(-1, -2), params.requant
        m, n = (x.reshape(-1, 1, 1) for x in (requant.multiplier, requant.shift))
        scaled = (acc * m + ((1 << n) >> 1)) >> n
        seen |= set((scaled + params.bias).ravel().tolist())
        got = attention_scores(q, k, spec, params)
        # Saturating before the bias as well would be wrong: these scores tell the two apart.
        early = np.clip(np.clip(scaled, score.low, score.high) + params.bias, score.low, score.high)
        pulled |= {int(b > 0) for b in np.broadcast_to(params.bias, got.shape)[got != early]}
        assert spec.bounds["scaled"].holds(scaled) and spec.bounds["bias"].holds(params.bias)
        if name.startswith("both ends"):
            widest += [int((scaled + params.bias).min()), int((scaled + params.bias).max())]
    for end in (score.low, score.high):
        assert {end - 1, end, end + 1} <= seen
    assert pulled == {0, 1}
    assert [min(widest), max(widest)] == [spec.bounds["biased"].low, spec.bounds["biased"].high]


def test_scores_of_a_batch() -> None:
    rng = np.random.default_rng(0)
    q, k = rng.integers(-128, 128, (2, 3, 4, 5, 8)).astype(np.int8)
    requant = RequantParams(
        multiplier=np.array([32768, 40000, 50000, 65535]), shift=np.full(4, 17), zero_point=0
    )
    for bias in (None, rng.integers(-900, 900, (4, 5, 5)).astype(np.int16)):
        params = ScoreParams(requant, bias)
        whole = attention_scores(q, k, ScoreSpec(), params)
        assert whole.shape == (3, 4, 5, 5)
        seen = reference.scores(q[1].tolist(), k[1].tolist(), ScoreSpec(), params)
        assert whole[1].ravel().tolist() == seen["score"]
    windows = attention_scores(np.stack([q, q]), np.stack([k, k]), ScoreSpec(), params)
    assert (windows == whole).all()


def test_score_errors() -> None:
    spec, good = ScoreSpec(), np.zeros((1, 2, 64), np.int8)
    plain, bias = ScoreParams(ONE), np.zeros((1, 2, 2), int)
    for fields, message in (
        ({"head_dim": 0}, r"^Head dimension must be from 1 to 512, not 0$"),
        ({"bits": 9}, r"^Input width must be from 4 to 8, not 9$"),
        ({"score_bits": 7}, r"^Score width must be from 8 to 16, not 7$"),
    ):
        with pytest.raises(ValueError, match=message):
            ScoreSpec(**fields)
    with pytest.raises(TypeError, match=r"^Queries must be an array of integers, not float64$"):
        attention_scores(np.zeros((1, 2, 3)), good, spec, plain)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"^Keys must be \[\.\.\., heads, tokens, channels\], not "
    ):
        attention_scores(good, good[0], spec, plain)
    with pytest.raises(ValueError, match=r"^Keys must be from -128 to 127, not 200 to 200$"):
        attention_scores(good, np.full((1, 2, 64), 200), spec, plain)
    with pytest.raises(ValueError, match=r"^Keys must have 64 channels, not 63$"):
        attention_scores(good, good[..., 1:], spec, plain)
    with pytest.raises(ValueError, match=r"^Head dimension must be from 1 to 64, not 65$"):
        attention_scores(np.zeros((1, 2, 65), int), good, spec, plain)
    with pytest.raises(ValueError, match=r"^Zero point of scores must be 0, not 3$"):
        attention_scores(good, good, spec, ScoreParams(replace(ONE, zero_point=3)))
    with pytest.raises(TypeError, match=r"^Bias must be an array of integers, not float64$"):
        attention_scores(good, good, spec, replace(plain, bias=bias * 0.5))
    with pytest.raises(ValueError, match=r"^Bias must be from -2048 to 2047, not 2048$"):
        attention_scores(good, good, spec, replace(plain, bias=bias + 2048))
    with pytest.raises(ValueError, match=r"^Bias must have shape \(1, 2, 2\), not \(1, 2, 3\)$"):
        attention_scores(good, good, spec, replace(plain, bias=np.zeros((1, 2, 3), int)))
    with pytest.raises(
        ValueError, match=r"^Bias must be \[heads, rows, columns\], not shape \(2,\)$"
    ):
        replace(plain, bias=np.zeros(2, int)).check(spec)
    two = replace(ONE, multiplier=ONE.multiplier.repeat(2), shift=ONE.shift.repeat(2))
    with pytest.raises(
        ValueError, match=r"^Bias must be \[2, rows, columns\], not shape \(1, 2, 2\)$"
    ):
        ScoreParams(two, bias).check(spec)


# --------------------------------------------------------------------------------------- codes.v

ATTENDS = [
    pytest.param(spec, *row, id=f"{index}: {row[0]}")
    for index, spec in enumerate(ATTEND_GRID)
    for row in attend_rows(spec)
]


@pytest.mark.parametrize(("spec", "name", "codes", "v", "params"), ATTENDS)
def test_corner_rows_equal_the_scalar_formula(spec, name, codes, v, params) -> None:  # type: ignore[no-untyped-def]
    trace = attend_trace(codes, v, spec, params)
    seen = reference.attend(codes.tolist(), v.tolist(), spec, params)
    assert trace.code.ravel().tolist() == seen["code"]
    assert (attend(codes, v, spec, params) == trace.code).all()
    for part, bound in spec.bounds.items():
        if hasattr(trace, part):
            assert bound.holds(getattr(trace, part)), part
    assert spec.bounds["product"].holds(trace.odd * SQRT2)


def weight_of(codes: np.ndarray, spec: AttendSpec) -> Fraction:
    """An upper bound of the sum of 2**-code or 2**(-code/2), the last code 0, at most 2**-40 above it."""
    per, point = spec.per_octave, 60
    root = Fraction(isqrt(2 << (2 * point)) + 1, 1 << point)
    count = np.bincount(codes.ravel(), minlength=spec.softmax.last_code + 1)
    return sum(
        (
            int(n) * Fraction(1, 1 << -(-code // per)) * (root if per == 2 and code % 2 else 1)
            for code, n in enumerate(count[: spec.softmax.last_code])
        ),
        Fraction(0),
    )


SOFT = [spec for spec in ATTEND_GRID if spec.codes == "softmax"] + [
    AttendSpec(softmax=unit) for unit in softmax_module.SPEC_GRID
]


@pytest.mark.parametrize("spec", SOFT)
def test_the_weights_of_softmax_rows_stay_below_the_bound(spec: AttendSpec) -> None:
    unit, worst = spec.softmax, Fraction(0)
    for _, scores, mask, params in softmax_module.corner_rows(unit):
        worst = max(worst, weight_of(softmax(scores, unit, params, mask), spec))
    finest, step = SoftmaxParams(frac=unit.frac_bits), 1 << unit.frac_bits
    top = unit.bounds["score"].high
    low = unit.bounds["score"].low
    # One maximum and n elements d below it: the total passes every threshold of the codes.
    for distance in {
        o * step + part for o in range(1, unit.exp_bits + 1) for part in (0, 1, step - 1)
    }:
        if top - distance < low:
            continue
        for count in {1 << p for p in range(12)} | {isqrt(2 << 2 * p) - 1 for p in range(2, 12)}:
            row = np.full(min(count, unit.max_tokens), top - distance)
            row[0] = top
            for fewer in (0, row.size // 2, row.size * 3 // 5, row.size * 5 // 6):
                codes = softmax(row[: row.size - fewer], unit, finest)
                worst = max(worst, weight_of(codes, spec))
    assert worst < spec.row_weight
    assert worst > spec.row_weight * Fraction(3, 4), "the bound is loose"


@given(st.integers(0, 1 << 32), st.integers(0, 7), st.sampled_from(SOFT))
def test_the_weights_of_random_rows_stay_below_the_bound(
    seed: int, width: int, spec: AttendSpec
) -> None:
    unit, rng = spec.softmax, np.random.default_rng(seed)
    bound = unit.bounds["score"]
    count = int(rng.integers(1, unit.max_tokens, endpoint=True))
    scores = np.clip(rng.normal(0, 1 << width, count), bound.low, bound.high).astype(int)
    assert (
        weight_of(softmax(scores, unit, SoftmaxParams(frac=unit.frac_bits)), spec) < spec.row_weight
    )


def test_the_default_row_weighs_less_than_one_and_a_half_and_the_worst_is_near() -> None:
    spec = AttendSpec()
    assert spec.row_weight < Fraction(3, 2) and spec.bounds["acc"].bits == 23
    assert spec.bounds["acc"].high < 1 << 24  # float32 is exact: see golden.matmul
    # Distances of whole octaves lose nothing in the table, and L just below one half rounds all up.
    row = np.full(212, -9 * 16)
    row[0] = 0
    assert weight_of(softmax(row, spec.softmax, SoftmaxParams(frac=4)), spec) > Fraction(141, 100)


@pytest.mark.parametrize("base", ["2", "sqrt2"])
def test_attention_from_scores_to_output_equals_exact_weights(base: str) -> None:
    """Codes of random scores, then the sum of 2**-code * v by rational numbers."""
    rng = np.random.default_rng(4)
    unit = SoftmaxSpec(code_bits=4 if base == "2" else 5, base=base)  # type: ignore[arg-type]
    spec = AttendSpec(softmax=unit)
    scores, v = rng.integers(-300, 300, (2, 8, 197)), rng.integers(-128, 128, (2, 197, 4))
    codes = softmax_trace(scores, unit, SoftmaxParams(frac=4)).code
    trace = attend_trace(codes, v, spec, ONE)
    weight = np.where(codes == unit.last_code, 0, np.exp2(-codes.astype(float) / spec.per_octave))
    assert np.abs(trace.acc - (weight @ v) * (1 << spec.top)).max() < 8


def test_the_root_of_two_is_the_nearest() -> None:
    assert isqrt(2 << (2 * SQRT2_BITS + 2)) in (2 * SQRT2, 2 * SQRT2 - 1)
    assert 1 << 15 <= SQRT2 < 1 << 16


def test_the_deepest_octave() -> None:
    tops = {
        (base, bits): AttendSpec(softmax=SoftmaxSpec(base=base, code_bits=bits)).top  # type: ignore[arg-type]
        for base in ("2", "sqrt2")
        for bits in (3, 4, 5, 6)
    }
    assert list(tops.values()) == [6, 14, 22, 22, 3, 7, 15, 22]
    assert AttendSpec().shifts == (*range(14, -1, -1), None)
    deep = AttendSpec(softmax=SoftmaxSpec(code_bits=5)).shifts
    assert deep[21:24] == (1, 0, None) and len(deep) == 32
    odd = AttendSpec(softmax=SoftmaxSpec(base="sqrt2", code_bits=3)).shifts
    assert odd == (3, 2, 2, 1, 1, 0, 0, None)


def test_attend_errors() -> None:
    spec = AttendSpec(softmax=SoftmaxSpec(max_tokens=8))
    codes, v = np.full((1, 2, 8), 3), np.zeros((1, 8, 4), np.int8)
    with pytest.raises(TypeError, match=r"^Softmax must be a SoftmaxSpec, not 4$"):
        AttendSpec(softmax=4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^Codes must be 'softmax' or 'any', not 'some'$"):
        AttendSpec(codes="some")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^Value width must be from 4 to 8, not 3$"):
        AttendSpec(value_bits=3)
    with pytest.raises(ValueError, match=r"^Output width must be from 3 to 16, not 17$"):
        AttendSpec(out_bits=17)
    with pytest.raises(ValueError, match=r"^Accumulator width must be at most 40, not 42: use "):
        AttendSpec(codes="any", softmax=SoftmaxSpec(code_bits=6, max_tokens=4096))
    with pytest.raises(TypeError, match=r"^Codes must be an array of integers, not float64$"):
        attend(codes * 1.0, v, spec, ONE)
    with pytest.raises(ValueError, match=r"^Codes must be from 0 to 15, not 16 to 16$"):
        attend(np.full((1, 2, 8), 16), v, spec, ONE)
    with pytest.raises(ValueError, match=r"^Values must be from -128 to 127, not 128 to 128$"):
        attend(codes, np.full((1, 8, 4), 128), spec, ONE)
    with pytest.raises(ValueError, match=r"^Values must have 8 tokens, not 7$"):
        attend(codes, v[:, 1:], spec, ONE)
    with pytest.raises(ValueError, match=r"^Row length must be from 1 to 8, not 9$"):
        attend(np.full((1, 2, 9), 4), v, spec, ONE)
    with pytest.raises(
        ValueError, match=r"^Codes must be a softmax's, with weights of at most \d+ in"
    ):
        attend(np.zeros((1, 1, 8), int), v, spec, ONE)
    both = AttendSpec(softmax=SoftmaxSpec(base="sqrt2", code_bits=5))
    mixed = np.array([[[0, 1]]])
    with pytest.raises(
        ValueError, match=r"^Codes must be a softmax's, not lead to accumulators from "
    ):
        attend(mixed, np.full((1, 2, 1), 127), both, ONE)

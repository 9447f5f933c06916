# SPDX-License-Identifier: Apache-2.0
"""Every operator with any legal spec, parameters and inputs: equal to plain loops, within its proven bounds.

The specs are drawn from all that may be built, the numbers with a preference for both ends of their ranges.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import reference_integers as reference
from hypothesis import given, reject
from hypothesis import strategies as st

from golden.arrays import narrowest
from golden.attention import (
    AttendSpec,
    ScoreParams,
    ScoreSpec,
    attend,
    attend_trace,
    attention_scores,
)
from golden.bounds import Interval
from golden.fixedpoint import rounding_shift, saturate
from golden.gelu import GeluParams, GeluSpec, gelu
from golden.layernorm import LayerNormParams, LayerNormSpec, layernorm, layernorm_trace
from golden.linear import LinearParams, LinearSpec, accumulate, linear
from golden.patch_embed import PatchEmbedSpec, patch_embed
from golden.pool import PoolParams, PoolSpec, pool, pool_trace
from golden.requant import RequantParams, RequantSpec, requantise
from golden.residual import ResidualParams, ResidualSpec, residual, residual_trace
from golden.softmax import SoftmaxParams, SoftmaxSpec, softmax, softmax_trace

Draw = st.DataObject

any_draw = given(st.data())
"""Runs a test on many draws."""


def number(data: Draw, low: int, high: int) -> int:
    return data.draw(st.one_of(st.sampled_from((low, high)), st.integers(low, high)))


def array(data: Draw, legal: Interval, *shape: int) -> np.ndarray:
    """Numbers of an interval in its narrowest type or a wider one."""
    size = int(np.prod(shape))
    one = st.one_of(st.sampled_from((legal.low, legal.high)), st.integers(legal.low, legal.high))
    values = data.draw(st.lists(one, min_size=size, max_size=size))
    kind = data.draw(st.sampled_from((narrowest(legal), np.dtype(np.int64))))
    return np.array(values, dtype=kind).reshape(shape)


def built(data: Draw, kind: Any, **fields: tuple[Any, ...]) -> Any:
    """A spec with each field from one of its values, or from a range (low, high) of whole numbers."""
    chosen = {
        name: number(data, *values)
        if len(values) == 2 and not isinstance(values[0], str | bool)
        else data.draw(st.sampled_from(values))
        for name, values in fields.items()
    }
    try:
        return kind(**chosen)
    except ValueError:  # what does not fit together, such as an accumulator that is too narrow
        reject()


def requantiser(data: Draw, channels: int, bits: int, zero: bool = True) -> RequantParams:
    # Shifts over all of their range, and near those that leave something to see.
    shift = st.one_of(st.integers(0, 62), st.integers(14, 34))
    return RequantParams(
        multiplier=array(data, Interval(1 << 15, (1 << 16) - 1), channels),
        shift=np.array(data.draw(st.lists(shift, min_size=channels, max_size=channels))),
        zero_point=number(data, -(1 << (bits - 1)), (1 << (bits - 1)) - 1) if zero else 0,
    )


def equal(got: np.ndarray, want: list[int]) -> None:
    assert got.ravel().tolist() == want


def within(seen: reference.Values, spec: Any) -> None:
    """Every value of a name that has a bound lies inside, and no bound is for nothing."""
    for name, bound in spec.bounds.items():
        assert name in seen, f"{name} does not occur"
        assert bound.low <= min(seen[name]) and max(seen[name]) <= bound.high, name


def traced(trace: Any, seen: reference.Values) -> None:
    for name, values in vars(trace).items():
        if name in seen:
            equal(values, seen[name])


@any_draw
def test_rounding_shift_and_saturation(data: Draw) -> None:
    x = array(data, Interval(-(1 << 61), (1 << 61) - 1), 3)
    n = number(data, 0, 62)
    equal(rounding_shift(x, n), [reference.half_up(v, n) for v in x.tolist()])
    bits = number(data, 2, 40)
    equal(saturate(x, bits), [reference.clipped(v, bits) for v in x.tolist()])


@any_draw
def test_requantiser(data: Draw) -> None:
    spec = built(data, RequantSpec, acc_bits=(8, 40), out_bits=(3, 16))
    channels = data.draw(st.sampled_from((1, 3)))
    params = requantiser(data, channels, spec.out_bits)
    acc = array(data, spec.bounds["acc"], 2, 3)
    seen = reference.requant(acc.tolist(), spec, params)
    equal(requantise(acc, spec, params), seen["code"])
    equal(requantise(acc[None, :, None], spec, params), seen["code"])
    within(seen, spec)


def layer(data: Draw, spec: LinearSpec, count: int) -> LinearParams:
    requant = None
    if spec.out_bits is not None:
        requant = requantiser(data, data.draw(st.sampled_from((1, 3))), spec.out_bits)
    weight = array(data, spec.bounds["weight"], 3, count)
    return LinearParams(weight=weight, bias=array(data, spec.bounds["bias"], 3), requant=requant)


@any_draw
def test_linear_layer(data: Draw) -> None:
    spec = built(
        data,
        LinearSpec,
        in_features=(1, 12),
        in_bits=(4, 8),
        in_signed=(True, False),
        weight_bits=(3, 8),
        acc_bits=(8, 40),
        out_bits=(None, 3, 4, 8, 9, 16),
    )
    count = number(data, 1, spec.in_features)
    params, x = layer(data, spec, count), array(data, spec.bounds["input"], 2, count)
    seen = reference.linear(x.tolist(), spec, params)
    equal(accumulate(x, spec, params), seen["out"])
    equal(linear(x, spec, params), seen["code" if spec.out_bits else "out"])
    reach = params.reach(spec)
    assert reach.low <= min(seen["out"]) and max(seen["out"]) <= reach.high
    within(seen, spec)


@any_draw
def test_patch_embedding(data: Draw) -> None:
    spec = built(
        data, PatchEmbedSpec, patch=(1, 3), channels=(1, 3), weight_bits=(3, 8), acc_bits=(8, 40)
    )
    params = layer(data, spec.linear, spec.linear.in_features)
    shape = (spec.channels, spec.patch * number(data, 1, 2), spec.patch * number(data, 1, 2))
    image = array(data, Interval(0, 255), *shape).astype(np.uint8)
    seen = reference.patch_embed(image.tolist(), spec, params)
    equal(patch_embed(image, spec, params), seen["out"])
    within(seen, spec)


@any_draw
def test_scores(data: Draw) -> None:
    spec = built(data, ScoreSpec, head_dim=(1, 512), bits=(4, 8), score_bits=(8, 16))
    heads, d = number(data, 1, 2), number(data, 1, min(spec.head_dim, 4))
    q = array(data, spec.bounds["input"], heads, 2, d)
    k = array(data, spec.bounds["input"], heads, 3, d)
    bias = array(data, spec.bounds["bias"], heads, 2, 3)
    requant = requantiser(data, data.draw(st.sampled_from((1, heads))), spec.score_bits, zero=False)
    params = ScoreParams(requant, data.draw(st.sampled_from((None, bias))))
    seen = reference.scores(q.tolist(), k.tolist(), spec, params)
    equal(attention_scores(q, k, spec, params), seen["score"])
    equal(attention_scores(q[None], k[None], spec, params), seen["score"])
    within(seen, spec)


SOFTMAX = {
    "max_tokens": (1, 4096),
    "score_bits": (8, 16),
    "frac_bits": (2, 6),
    "code_bits": (3, 6),
    "base": ("2", "sqrt2"),
    "exp_bits": (12, 18),
    "log_index_bits": (4, 10),
}


@any_draw
def test_softmax(data: Draw) -> None:
    spec = built(data, SoftmaxSpec, **SOFTMAX)
    count = number(data, 1, min(spec.max_tokens, 12))
    # Rows as wide as scores may be, and narrow ones, whose codes are not all the last.
    wide, narrow = spec.bounds["score"], Interval(-40, 40)
    scores = array(data, data.draw(st.sampled_from((wide, narrow))), 2, count)
    mask = array(data, Interval(0, 1), 2, count) == 1
    hidden = mask if data.draw(st.booleans()) else None
    params = SoftmaxParams(frac=number(data, max(0, spec.frac_bits - 3), spec.frac_bits))
    shown = np.zeros(scores.shape, bool) if hidden is None else hidden
    seen = reference.softmax(scores.tolist(), shown.tolist(), spec, params)
    equal(softmax(scores, spec, params, hidden), seen["code"])
    traced(softmax_trace(scores, spec, params, hidden), seen)
    within(seen, spec)


@any_draw
def test_codes_times_v(data: Draw) -> None:
    """Any codes; and rows that a softmax gives, in the narrower accumulators of such rows."""
    unit = built(data, SoftmaxSpec, **(SOFTMAX | {"max_tokens": (1, 300)}))
    spec = built(
        data,
        lambda **fields: AttendSpec(softmax=unit, **fields),
        value_bits=(4, 8),
        out_bits=(3, 16),
        codes=("softmax", "any"),
    )
    heads, count = number(data, 1, 2), number(data, 1, min(unit.max_tokens, 8))
    if spec.codes == "any":
        codes = array(data, Interval(0, unit.last_code), heads, 2, count)
    else:
        rows = array(data, Interval(-100, 100), heads, 2, count)
        codes = softmax(rows, unit, SoftmaxParams(frac=unit.frac_bits))
    v = array(data, spec.bounds["value"], heads, count, 2)
    params = requantiser(data, data.draw(st.sampled_from((1, heads))), spec.out_bits)
    seen = reference.attend(codes.tolist(), v.tolist(), spec, params)
    equal(attend(codes, v, spec, params), seen["code"])
    traced(attend_trace(codes, v, spec, params), seen)
    within(seen, spec)


@any_draw
def test_table_of_a_function(data: Draw) -> None:
    spec = built(data, GeluSpec, in_bits=(4, 10), out_bits=(3, 16))
    rng = np.random.default_rng(number(data, 0, 1 << 32))
    code = spec.bounds["code"]
    params = GeluParams(table=rng.integers(code.low, code.high, spec.entries, endpoint=True))
    x = array(data, spec.bounds["input"], 2, 3)
    seen = reference.gelu(x.ravel().tolist(), spec, params)
    equal(gelu(x, spec, params), seen["code"])
    within(seen, spec)


@any_draw
def test_residual(data: Draw) -> None:
    spec = built(
        data,
        ResidualSpec,
        in_bits=(8, 16),
        out_bits=(8, 16),
        max_shift=(0, 7),
        acc_bits=(8, 40),
        gain_bits=(16, 32),
        multiplier_bits=(16, 24),
    )
    bounds, code = spec.bounds, Interval.of_bits(spec.in_bits, signed=True)
    shifts, most = Interval(0, spec.max_shift), bounds["shift"].high
    params = ResidualParams(
        in_zero_point=number(data, code.low, code.high),
        in_shift=array(data, shifts, 3),
        gain=number(data, 0, bounds["gain"].high),
        multiplier=array(data, bounds["multiplier"], 3),
        shift=data.draw(st.one_of(st.integers(0, most), st.integers(14, 30))),
        zero_point=number(data, bounds["code"].low, bounds["code"].high),
        out_shift=array(data, shifts, 3),
    )
    q, acc = array(data, code, 2, 3), array(data, bounds["acc"], 2, 3)
    seen = reference.residual(q.tolist(), acc.tolist(), spec, params)
    equal(residual(q, acc, spec, params), seen["code"])
    traced(residual_trace(q, acc, spec, params), seen)
    within(seen, spec)


@any_draw
def test_mean_of_tokens(data: Draw) -> None:
    spec = built(data, PoolSpec, max_tokens=(1, 4096), in_bits=(4, 16), out_bits=(3, 16))
    code = spec.bounds["input"]
    params = PoolParams(
        in_zero_point=number(data, code.low, code.high),
        requant=requantiser(data, data.draw(st.sampled_from((1, 3))), spec.out_bits),
    )
    tokens = array(data, code, number(data, 1, min(spec.max_tokens, 5)), 3)
    seen = reference.pool(tokens.tolist(), spec, params)
    equal(pool(tokens, spec, params), seen["code"])
    assert set(pool_trace(tokens, spec, params).acc.tolist()) <= set(seen["acc"])
    within(seen, spec)


@any_draw
def test_layernorm(data: Draw) -> None:
    spec = built(
        data,
        LayerNormSpec,
        max_channels=(1, 4096),
        in_bits=(4, 16),
        out_bits=(3, 16),
        max_shift=(0, 7),
        eps_bits=(8, 40),
        affine=("dyadic", "shift"),
        table_bits=(4, 9),
    )
    count, point = number(data, 1, min(spec.max_channels, 8)), number(data, 0, spec.max_point)
    code, half = Interval.of_bits(spec.in_bits, signed=True), 1 << spec.output_shift
    if spec.min_eps(point) >= 1 << spec.eps_bits:
        reject()
    # Offsets of a code or so, as layers have them, and as wide as they may be.
    offset = data.draw(st.sampled_from((Interval(-half, half), spec.bounds["offset"])))
    params = LayerNormParams(
        zero_point=number(data, code.low, code.high),
        eps=number(data, spec.min_eps(point), (1 << spec.eps_bits) - 1),
        point=point,
        shift=array(data, Interval(0, spec.max_shift), count),
        gain=array(data, spec.gain_range, count),
        offset=array(data, offset, count),
    )
    q = array(data, code, 2, count)
    seen = reference.layernorm(q.tolist(), spec, params)
    equal(layernorm(q, spec, params), seen["code"])
    traced(layernorm_trace(q, spec, params), seen)
    within(seen, spec)


def test_a_bound_that_is_too_tight_and_a_value_that_is_not_seen_are_told() -> None:
    """The checks above can fail."""

    class Spec:
        bounds: ClassVar = {"acc": Interval(-1, 1)}

    within({"acc": [1]}, Spec)
    with pytest.raises(AssertionError, match="acc"):
        within({"acc": [0, 2]}, Spec)
    with pytest.raises(AssertionError, match="does not occur"):
        within({"code": [0]}, Spec)
    with pytest.raises(AssertionError):
        equal(np.array([[1, 2]]), [1, 3])

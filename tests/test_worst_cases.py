# SPDX-License-Identifier: Apache-2.0
"""For every spec of every grid the inputs that reach each bound, from below and from above, exactly.

A register that the bounds make wider than any input can fill would be hardware for nothing. Of a few bounds
the last values cannot be attained; each is named here with the reason, and is held to the tightest that can.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from golden import gelu, layernorm, linear, patch_embed, pool, requant, residual, softmax
from golden.attention import ATTEND_GRID, SQRT2, AttendSpec, attend_trace
from golden.bounds import Interval
from golden.requant import RequantParams
from golden.scores import SCORE_GRID, ScoreParams, ScoreSpec, attention_scores

WIDEST = 65535
"""The largest multiplier of a requantiser."""


class Reached:
    """Least and most of each intermediate value that was seen."""

    def __init__(self) -> None:
        self.ends: dict[str, Interval] = {}

    def add(self, **values: Any) -> Reached:
        for name, value in values.items():
            array = np.asarray(value)
            found = Interval(int(array.min()), int(array.max()))
            self.ends[name] = self.ends.get(name, found) | found
        return self

    def equal(self, bounds: dict[str, Interval], unless: Iterable[str] = ()) -> None:
        """AssertionError unless each bound (those in ``unless`` aside) is reached at both ends."""
        wanted = {name: bound for name, bound in bounds.items() if name not in unless}
        assert {name: self.ends.get(name) for name in wanted} == wanted

    def as_wide(self, name: str, bound: Interval) -> None:
        """AssertionError unless ``name`` lies inside its bound and needs the same register."""
        end = self.ends[name]
        assert bound.low <= end.low and end.high <= bound.high
        assert end.bits == bound.bits


def each(grid: Iterable[Any]) -> Any:
    return pytest.mark.parametrize("spec", grid, ids=lambda spec: str(spec)[:100])


def requantiser(m: int = WIDEST, n: int = 0, zero: int = 0) -> RequantParams:
    return RequantParams(multiplier=np.array([m]), shift=np.array([n]), zero_point=zero)


@each(requant.SPEC_GRID)
def test_requantiser(spec: requant.RequantSpec) -> None:
    acc, reached = spec.bounds["acc"], Reached()
    values = np.array([[acc.low], [acc.high]])
    code = requant.requantise(values, spec, requantiser())
    reached.add(acc=values, product=values * WIDEST, code=code).equal(spec.bounds)


def layer(bounds: dict[str, Interval], count: int) -> tuple[linear.LinearParams, dict[str, Any]]:
    """Output channels with all weights at one end, and biases that fill what they leave of acc."""
    weight, room = bounds["weight"], bounds["bias"]
    rows = np.repeat([[weight.low], [weight.high]], count, axis=1)
    params = linear.LinearParams(
        weight=np.vstack([rows, rows]), bias=np.repeat([room.low, room.high], 2)
    )
    return params, {"weight": params.weight, "bias": params.bias}


@each(linear.SPEC_GRID)
def test_linear_layer(spec: linear.LinearSpec) -> None:
    bounds, reached = spec.bounds, Reached()
    params, fixed = layer(bounds, spec.in_features)
    plain = linear.LinearSpec(**{**vars_of(spec), "out_bits": None})
    none = linear.LinearParams(weight=params.weight, bias=np.zeros(4, int))
    for value in (bounds["input"].low, bounds["input"].high):
        x = np.full(spec.in_features, value)
        reached.add(
            input=x,
            product=params.weight[:, 0] * value,
            total=linear.linear(x, plain, none),
            acc=linear.linear(x, plain, params),
            **fixed,
        )
    reached.equal(bounds)


def vars_of(spec: Any) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in spec.__dataclass_fields__}


@each(patch_embed.SPEC_GRID)
def test_patch_embedding(spec: patch_embed.PatchEmbedSpec) -> None:
    bounds, reached = spec.bounds, Reached()
    params, fixed = layer(bounds, spec.linear.in_features)
    none = linear.LinearParams(weight=params.weight, bias=np.zeros(4, int))
    for value in (0, 255):
        image = np.full((spec.channels, spec.patch, spec.patch), value, np.uint8)
        reached.add(
            input=image,
            product=params.weight[:, 0] * value,
            total=patch_embed.patch_embed(image, spec, none),
            acc=patch_embed.patch_embed(image, spec, params),
            **fixed,
        )
    reached.equal(bounds)


@each(SCORE_GRID)
def test_scores(spec: ScoreSpec) -> None:
    code, reached = spec.bounds["input"], Reached()
    q = np.stack([np.full((1, spec.head_dim), value) for value in (code.low, code.high)], axis=1)
    acc = (q @ q.swapaxes(-1, -2))[0]
    for bias in (spec.bounds["bias"].low, spec.bounds["bias"].high):
        params = ScoreParams(requantiser(), np.full((1, 2, 2), bias))
        reached.add(
            input=q,
            product=np.multiply.outer([code.low, code.high], [code.low, code.high]),
            acc=acc,
            scaled=acc * WIDEST,
            bias=bias,
            biased=acc * WIDEST + bias,
            score=attention_scores(q, q, spec, params),
        )
    reached.equal(spec.bounds)


@each([spec for spec in ATTEND_GRID if spec.codes == "any"])
def test_any_codes_times_v(spec: AttendSpec) -> None:
    bounds, reached, count = spec.bounds, Reached(), spec.softmax.max_tokens
    v = np.empty((1, count, 2), int)
    v[..., 0], v[..., 1] = bounds["value"].low, bounds["value"].high
    for code in (0, 1, spec.softmax.last_code):
        trace = attend_trace(np.full((1, 1, count), code), v, spec, requantiser())
        shift = spec.shifts[code]
        weight = 0 if shift is None else 1 << shift
        odd = spec.per_octave == 2 and code % 2 == 1
        reached.add(
            value=v,
            weight=weight,
            even_weights=0 if odd else weight * count,
            odd_weights=weight * count if odd else 0,
            even=trace.even,
            odd=trace.odd,
            product=trace.odd * SQRT2,
            acc=trace.acc,
            code=trace.code,
        )
    reached.equal(bounds)


def heaviest(spec: AttendSpec, counted: np.ndarray) -> np.ndarray:
    """Codes of the row whose ``counted`` weights (one a code) sum to most: of all softmax rows that have one
    maximum and n scores at one distance below it."""
    unit, best, most = spec.softmax, np.zeros(1, int), -1
    params, top = softmax.SoftmaxParams(frac=unit.frac_bits), unit.bounds["score"].high
    step, n = 1 << unit.frac_bits, np.arange(unit.max_tokens)
    for distance in range(min((unit.exp_bits + 1) * step, top - unit.bounds["score"].low)):
        # The codes of the maximum and of the others, for every n at once.
        total = unit.exp2[0] + n * (unit.exp2[distance % step] >> distance // step)
        log = softmax.read_log2(total, np.array(unit.log2), unit.frac_bits)
        log += (1 << unit.code_shift >> 1) - ((unit.exp_bits - 1) << unit.frac_bits)
        first, rest = (
            np.minimum(log + d >> unit.code_shift, unit.last_code) for d in (0, distance)
        )
        weights = counted[first] + n * counted[rest]
        if int(weights.max()) > most:
            most = int(weights.max())
            row = np.full(int(weights.argmax()) + 1, top - distance)
            row[0] = top
            best = softmax.softmax(row, unit, params)
    assert int(counted[best].sum()) == most, "the row is the one that was found"
    return best


@each([spec for spec in ATTEND_GRID if spec.codes == "softmax"])
def test_codes_of_a_softmax_times_v(spec: AttendSpec) -> None:
    """How much a row of codes weighs is proven from above, by real numbers: no row weighs quite that. Rows of
    two levels attain 85 % and more of it, and need the accumulator's last bit."""
    bounds, value, per = spec.bounds, spec.bounds["value"], spec.per_octave
    shift = [0 if s is None else 1 << s for s in spec.shifts]
    odd = np.arange(len(shift)) % 2 == 1 if per == 2 else np.zeros(len(shift), bool)
    weight = np.array(shift)
    goals = {"even": np.where(odd, 0, weight), "odd": np.where(odd, weight, 0)}
    # acc: even weights count as they are, odd ones SQRT2 times as much.
    goals["acc"] = np.where(odd, weight * SQRT2, weight << 15)
    for name in goals if per == 2 else ("even", "acc"):
        codes = heaviest(spec, goals[name])
        v = np.stack([np.full(codes.size, end) for end in (value.low, value.high)], axis=-1)
        trace = attend_trace(codes[None, None], v[None], spec, requantiser())
        reached = Reached().add(**{name: getattr(trace, name)})
        end, bound = reached.ends[name], bounds[name]
        assert bound.low <= end.low <= 0.85 * bound.low
        assert bound.high >= end.high >= 0.85 * bound.high
        if name == "acc":
            reached.as_wide(name, bound)


@each(gelu.SPEC_GRID)
def test_table_of_a_function(spec: gelu.GeluSpec) -> None:
    x, code = spec.bounds["input"], spec.bounds["code"]
    table = np.resize([code.low, code.high], spec.entries)
    codes = np.array([x.low, x.low + 1, x.high])
    got = gelu.gelu(codes, spec, gelu.GeluParams(table=table))
    Reached().add(input=codes, code=got).equal(spec.bounds)


@each(residual.SPEC_GRID)
def test_residual(spec: residual.ResidualSpec) -> None:
    bounds, reached = spec.bounds, Reached()
    code, none = Interval.of_bits(spec.in_bits, signed=True), np.zeros(1, int)
    for q, zero, acc in (
        (code.high, code.low, bounds["acc"].high),
        (code.low, code.high, bounds["acc"].low),
    ):
        for shift in (bounds["shift"].low, bounds["shift"].high):
            params = residual.ResidualParams(
                in_zero_point=zero,
                in_shift=none + spec.max_shift,
                gain=bounds["gain"].high,
                multiplier=none + bounds["multiplier"].high,
                shift=shift,
                zero_point=0,
                out_shift=none + spec.max_shift,
            )
            trace = residual.residual_trace(none + q, none + acc, spec, params)
            reached.add(acc=acc, gain=params.gain, multiplier=params.multiplier, shift=shift)
            reached.add(**vars(trace))
    off = {"gain": 0, "multiplier": none}
    residual.residual(none, none, spec, residual.ResidualParams(**{**vars_of(params), **off}))
    reached.add(**off).equal(bounds)


@each(pool.SPEC_GRID)
def test_mean_of_tokens(spec: pool.PoolSpec) -> None:
    code, reached = spec.bounds["input"], Reached()
    for q, zero in ((code.low, code.high), (code.high, code.low)):
        tokens = np.full((spec.max_tokens, 1), q)
        params = pool.PoolParams(in_zero_point=zero, requant=requantiser())
        trace = pool.pool_trace(tokens, spec, params)
        reached.add(input=q, x=q - zero, product=trace.acc * WIDEST, **vars(trace))
    reached.equal(spec.bounds)


def norm(spec: layernorm.LayerNormSpec, codes: np.ndarray, **changes: Any) -> Any:
    """Trace of a row with the largest shifts, gain 0 and offset 0, and what ``changes`` says."""
    column = np.zeros(codes.size, int)
    plain = {
        "zero_point": 0,
        "point": 0,
        "eps": spec.min_eps(changes.get("point", 0)),
        "shift": column + spec.max_shift,
        "gain": column,
        "offset": column,
    }
    return layernorm.layernorm_trace(codes, spec, layernorm.LayerNormParams(**plain | changes))


ROUNDED = {
    "rsqrt": "2**14 / sqrt(v) of v in [1, 4) is between 2**13 and 2**14",
    "score": "sqrt(C - 1) is no whole number, and eps is at least 1",
    "scaled": "as the score that is multiplied",
}
"""Bounds of LayerNorm with the reason why their last values are not attained."""


@each(layernorm.SPEC_GRID)
def test_layernorm(spec: layernorm.LayerNormSpec) -> None:
    bounds, reached, count = spec.bounds, Reached(), spec.max_channels
    code = Interval.of_bits(spec.in_bits, signed=True)
    offset, none = bounds["offset"], np.zeros(count, int)
    for low, high in ((code.low, code.high), (code.high, code.low)):
        lone = np.where(np.arange(count) == 0, high, low)
        halves = np.where(np.arange(count) < count // 2, high, low)
        for row, zero in ((none + high, low), (none + low, low), (lone, low), (halves, low)):
            for end in (offset.low, offset.high):
                trace = norm(spec, row, zero_point=zero, offset=none + end)
                reached.add(offset=end, square=trace.x**2, **vars(trace))
    reached.add(**vars(norm(spec, halves, eps=(1 << spec.eps_bits) - 1)))
    # The largest z-score, one element's, with the finest point, the largest gain, the furthest offset.
    for low, high in ((code.low, code.high), (code.high, code.low)):
        lone = np.where(np.arange(count) == 0, high, low)
        for gain in (spec.gain_range.low, spec.gain_range.high):
            for end in (offset.low, offset.high):
                finest = {"point": spec.max_point, "shift": none + spec.max_shift}
                far = {"gain": none + gain, "offset": none + end}
                reached.add(**vars(norm(spec, lone, **finest, **far)))
    reached.equal(bounds, unless=ROUNDED)
    reached.as_wide("score", bounds["score"])
    reached.as_wide("scaled", bounds["scaled"])


@each(layernorm.SPEC_GRID)
def test_the_root_of_layernorm(spec: layernorm.LayerNormSpec) -> None:
    """The tightest ends of R: the table's first base, and the end of its last chord, by eps alone."""
    bound, reached = spec.bounds["rsqrt"], Reached()
    bases = [base for base, _ in spec.rsqrt]
    last = spec.rsqrt[-1][0] - (spec.rsqrt[-1][1] * 1023 >> 10)
    constant = np.zeros(1, int)
    # A constant row has D = E: the first v of the table is a power of 4, the last one less than that.
    for eps in (1 << 14, (1 << 16) - 1, (1 << spec.eps_bits) - 1):
        if spec.min_eps(0) <= eps < 1 << spec.eps_bits:
            reached.add(rsqrt=norm(spec, constant, eps=eps).rsqrt)
    assert reached.ends["rsqrt"] == Interval(last, max(bases))
    reached.as_wide("rsqrt", bound)


@each(softmax.SPEC_GRID)
def test_softmax(spec: softmax.SoftmaxSpec) -> None:
    score, reached = spec.bounds["score"], Reached()
    params = softmax.SoftmaxParams(frac=spec.frac_bits)
    full = np.zeros(spec.max_tokens, int)
    masked = np.ones(3, bool)
    for row, mask in (
        (full + score.low, None),
        (full + score.high, None),
        (np.array([score.low, score.high]), None),
        (full[:3] if spec.max_tokens >= 3 else full, masked),
        (np.array([score.high]), None),
    ):
        reached.add(score=row, **vars(softmax.softmax_trace(row, spec, params, mask)))
    reached.equal(spec.bounds)


def test_a_bound_that_is_not_reached_is_told() -> None:
    """The checks above can fail."""
    reached = Reached().add(acc=[-2, 5])
    reached.equal({"acc": Interval(-2, 5)})
    with pytest.raises(AssertionError):
        reached.equal({"acc": Interval(-2, 6)})
    with pytest.raises(AssertionError):
        reached.equal({"acc": Interval(-2, 5), "code": Interval(0, 1)})
    reached.as_wide("acc", Interval(-8, 7))
    with pytest.raises(AssertionError):
        reached.as_wide("acc", Interval(-9, 7))
    with pytest.raises(AssertionError):
        reached.as_wide("acc", Interval(-1, 7))

# SPDX-License-Identifier: Apache-2.0
"""Every operator on hundreds of rows: as it runs, and the same formula written plainly in int64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from golden import attention, gelu, layernorm, linear, pool, requant, residual, softmax
from golden.arrays import narrowest
from golden.attention import ATTEND_GRID, SCORE_GRID, attend, attention_scores
from golden.bounds import Interval
from golden.fixedpoint import rounding_shift, saturate
from golden.requant import RequantParams
from golden.scores import ScoreParams

Array = np.ndarray
Pair = tuple[Callable[[], Array], Callable[[], Array]]
"""An operator on given inputs: as it runs, and plainly."""


def draw(rng: np.random.Generator, legal: Interval, *shape: int) -> Array:
    """Values of an interval, ends often, in a type that is narrow as operators hand them on."""
    values = rng.integers(legal.low, legal.high, shape, endpoint=True)
    ends = rng.choice([legal.low, legal.high], shape)
    return np.where(rng.random(shape) < 0.2, ends, values).astype(narrowest(legal))


def requantiser(rng: np.random.Generator, channels: int, acc: Interval, bits: int) -> RequantParams:
    """Factors that use the codes and saturate here and there, the shift another one in each channel."""
    shift = 14 + max(0, acc.bits - bits) + rng.integers(0, 3, channels)
    return RequantParams(
        multiplier=rng.integers(1 << 15, 1 << 16, channels), shift=shift, zero_point=-3
    )


def rescaled(acc: Array, params: RequantParams, bits: int, after: Any = None) -> Array:
    """sat(rs(acc * M, N) + z), channels last."""
    rounded = rounding_shift(acc.astype(np.int64) * params.multiplier, params.shift)
    return saturate(rounded + (params.zero_point if after is None else after), bits)


def heads_last(acc: Array) -> Array:
    return np.moveaxis(acc, -3, -1)


def requantise_pair(rng: np.random.Generator, spec: requant.RequantSpec) -> Pair:
    acc = draw(rng, spec.bounds["acc"], 3, 70, 24)
    params = requantiser(rng, 24, spec.bounds["acc"], spec.out_bits)
    return (
        lambda: requant.requantise(acc, spec, params),
        lambda: rescaled(acc, params, spec.out_bits),
    )


def linear_pair(rng: np.random.Generator, spec: linear.LinearSpec) -> Pair:
    x = draw(rng, spec.bounds["input"], 3, 101, spec.in_features)
    bits = spec.out_bits
    params = linear.LinearParams(
        weight=draw(rng, spec.bounds["weight"], 40, spec.in_features),
        bias=draw(rng, spec.bounds["bias"], 40),
        requant=bits and requantiser(rng, 40, spec.bounds["acc"], bits),
    )

    def plain() -> Array:
        acc = x.astype(np.int64) @ params.weight.T.astype(np.int64) + params.bias
        return acc if params.requant is None else rescaled(acc, params.requant, bits or 0)

    return lambda: linear.linear(x, spec, params), plain


def scores_pair(rng: np.random.Generator, spec: Any) -> Pair:
    d = min(48, spec.head_dim)
    q, k = draw(rng, spec.bounds["input"], 2, 5, 3, 61, d)
    given = replace(requantiser(rng, 3, spec.bounds["acc"], spec.score_bits), zero_point=0)
    bias = draw(rng, spec.bounds["bias"], 3, 61, 61) if rng.random() < 0.5 else None
    params = ScoreParams(given, bias)

    def plain() -> Array:
        acc = q.astype(np.int64) @ k.swapaxes(-1, -2).astype(np.int64)
        after = 0 if bias is None else np.moveaxis(bias, 0, -1)
        return np.moveaxis(rescaled(heads_last(acc), given, spec.score_bits, after), -1, -3)

    return lambda: attention_scores(q, k, spec, params), plain


def softmax_pair(rng: np.random.Generator, spec: softmax.SoftmaxSpec) -> Pair:
    count = min(61, spec.max_tokens)
    near = rng.normal(0, 3 << spec.frac_bits, (2, 3, 47, count)).astype(int)
    bound = spec.bounds["score"]
    scores = np.clip(near, bound.low, bound.high).astype(narrowest(bound))
    scores[0, :, :5] = draw(rng, bound, 3, 5, count)
    low = max(0, spec.frac_bits - 3)
    params = softmax.SoftmaxParams(frac=int(rng.integers(low, spec.frac_bits, endpoint=True)))
    mask = rng.random((47, count)) < 0.3 if rng.random() < 0.5 else None
    return (
        lambda: softmax.softmax(scores, spec, params, mask),
        lambda: softmax.softmax_trace(scores, spec, params, mask).code,
    )


def attend_pair(rng: np.random.Generator, spec: attention.AttendSpec) -> Pair:
    unit, count = spec.softmax, min(61, spec.softmax.max_tokens)
    rows = rng.normal(0, 3 << unit.frac_bits, (5, 3, count, count)).astype(int)
    bound = unit.bounds["score"]
    finest = softmax.SoftmaxParams(frac=unit.frac_bits)
    codes = softmax.softmax_trace(np.clip(rows, bound.low, bound.high), unit, finest).code
    v = draw(rng, spec.bounds["value"], 5, 3, count, 9)
    if spec.codes == "any":
        codes[:, :, :3] = 0
        v = np.where(rng.random(v.shape) < 0.5, v, spec.bounds["value"].high)
    params = requantiser(rng, 3, spec.bounds["acc"], spec.out_bits)

    def plain() -> Array:
        weight = np.array([0 if shift is None else 1 << shift for shift in spec.shifts])[codes]
        odd = codes % 2 == 1 if spec.per_octave == 2 else np.zeros(codes.shape, bool)
        even_sum, odd_sum = (np.where(part, weight, 0) @ v.astype(np.int64) for part in (~odd, odd))
        acc = even_sum + rounding_shift(odd_sum * 46341, 15)
        return np.moveaxis(rescaled(heads_last(acc), params, spec.out_bits), -1, -3)

    return lambda: attend(codes, v, spec, params), plain


def gelu_pair(rng: np.random.Generator, spec: gelu.GeluSpec) -> Pair:
    x = draw(rng, spec.bounds["input"], 3, 40, 50)
    table = draw(rng, spec.bounds["code"], spec.entries).astype(np.int64)
    params = gelu.GeluParams(table=table)
    return (
        lambda: gelu.gelu(x, spec, params),
        lambda: table[x.astype(np.int64) + spec.entries // 2],
    )


def residual_pair(rng: np.random.Generator, spec: residual.ResidualSpec) -> Pair:
    bounds, shifts = spec.bounds, Interval(0, spec.max_shift)
    stream = Interval.of_bits(spec.in_bits, signed=True)
    # Of the widths that networks have, and now and then the sum's largest, where z' finds no room.
    shift = int(rng.choice([spec.gain_bits - 1, 20, bounds["shift"].high]))
    params = residual.ResidualParams(
        in_zero_point=int(draw(rng, stream)),
        in_shift=draw(rng, shifts, 24),
        gain=int(draw(rng, bounds["gain"])),
        multiplier=draw(rng, bounds["multiplier"], 24),
        shift=shift,
        zero_point=int(draw(rng, bounds["code"])),
        out_shift=draw(rng, shifts, 24),
    )
    codes, acc = draw(rng, stream, 70, 24), draw(rng, bounds["acc"], 3, 70, 24)
    return (
        lambda: residual.residual(codes, acc, spec, params),
        lambda: residual.residual_trace(codes, acc, spec, params).code,
    )


def pool_pair(rng: np.random.Generator, spec: pool.PoolSpec) -> Pair:
    tokens = draw(rng, spec.bounds["input"], 4, min(40, spec.max_tokens), 24)
    given = requantiser(rng, 24, spec.bounds["acc"], spec.out_bits)
    params = pool.PoolParams(in_zero_point=int(draw(rng, spec.bounds["input"])), requant=given)

    def plain() -> Array:
        acc = (tokens.astype(np.int64) - params.in_zero_point).sum(axis=-2)
        return rescaled(acc, given, spec.out_bits)

    return lambda: pool.pool(tokens, spec, params), plain


def layernorm_pair(rng: np.random.Generator, spec: layernorm.LayerNormSpec) -> Pair:
    count, point = min(48, spec.max_channels), int(rng.integers(0, spec.max_point, endpoint=True))
    code, offset = Interval.of_bits(spec.in_bits, signed=True), 1 << spec.output_shift
    params = layernorm.LayerNormParams(
        zero_point=int(draw(rng, code)),
        eps=int(rng.integers(spec.min_eps(point), 1 << min(20, spec.eps_bits))),
        point=point,
        shift=draw(rng, Interval(0, spec.max_shift), count),
        gain=draw(rng, spec.gain_range, count),
        offset=rng.integers(-offset, offset, count),
    )
    codes = draw(rng, code, 3, 45, count)
    return (
        lambda: layernorm.layernorm(codes, spec, params),
        lambda: layernorm.layernorm_trace(codes, spec, params).code,
    )


@dataclass(frozen=True)
class Operator:
    """An operator: its inputs, the specs of its grid, and the module with its parameters' preparation."""

    pair: Callable[[np.random.Generator, Any], Pair]
    grid: tuple[Any, ...]


OPERATORS = {
    "requantise": Operator(requantise_pair, requant.SPEC_GRID),
    "linear": Operator(linear_pair, linear.SPEC_GRID),
    "scores": Operator(scores_pair, SCORE_GRID),
    "softmax": Operator(softmax_pair, softmax.SPEC_GRID),
    "attend": Operator(attend_pair, ATTEND_GRID),
    "gelu": Operator(gelu_pair, gelu.SPEC_GRID),
    "residual": Operator(residual_pair, residual.SPEC_GRID),
    "pool": Operator(pool_pair, pool.SPEC_GRID),
    "layernorm": Operator(layernorm_pair, layernorm.SPEC_GRID),
}

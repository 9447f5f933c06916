# SPDX-License-Identifier: Apache-2.0
"""The operators as they run, narrow, folded and in blocks, against the same formulas plainly in int64.

Rows by the hundred and specs of every grid; the blocks are made small, so that each call has many of them and
a last one that is not full.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from golden import (
    arrays,
    attention,
    gelu,
    layernorm,
    linear,
    matmul,
    pool,
    requant,
    residual,
    scores,
    softmax,
)
from golden.arrays import Params, blocks, narrowest, scratch, tiled
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
CASES = [
    pytest.param(operator.pair, spec, id=f"{name} {index}")
    for name, operator in OPERATORS.items()
    for index, spec in enumerate(operator.grid)
]


def pairs(name: str, seed: int = 0) -> list[Pair]:
    """The operator with all specs of its grid."""
    operator = OPERATORS[name]
    return [operator.pair(np.random.default_rng(seed), spec) for spec in operator.grid]


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of some twenty rows, a tile of a few."""
    monkeypatch.setattr(arrays, "BLOCK", 1 << 10)
    monkeypatch.setattr(linear, "BLOCK", 1 << 10)
    monkeypatch.setattr(linear, "ROWS", 32)
    monkeypatch.setattr(arrays, "LENGTH", 100)


@pytest.mark.parametrize(("pair", "spec"), CASES)
def test_as_it_runs_is_as_it_reads(pair: Callable[..., Pair], spec: Any) -> None:
    for seed in range(4):
        fast, plain = pair(np.random.default_rng(seed), spec)
        assert (fast() == plain()).all()


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize(("pair", "spec"), CASES)
def test_in_small_blocks_too(pair: Callable[..., Pair], spec: Any) -> None:
    fast, plain = pair(np.random.default_rng(7), spec)
    assert (fast() == plain()).all()


@pytest.mark.parametrize(("pair", "spec"), CASES)
def test_results_are_narrow_and_nobody_else_writes_to_them(
    pair: Callable[..., Pair], spec: Any
) -> None:
    first, second = (pair(np.random.default_rng(seed), spec)[0] for seed in (1, 2))
    result = first()
    assert result.dtype.itemsize <= (4 if getattr(spec, "out_bits", 8) is None else 2)
    kept = result.copy()
    second()
    assert (result == kept).all()


# ------------------------------------------------------------------------------- negative twins


def wrong(name: str) -> bool:
    return any((fast() != plain()).any() for fast, plain in pairs(name))


BREAKS: dict[str, tuple[tuple[str, ...], Any, str, Any]] = {
    # what is broken: operators that must notice, where, and what it becomes
    "rounding": (
        ("requantise", "linear", "scores", "attend", "residual", "pool", "layernorm"),
        requant.Finish,
        "__init__",
        lambda self, wide, n, *rest: (
            REAL_FINISH(self, wide, n, *rest),
            setattr(self, "offset", self.offset + ((1 << n.astype(int) + self.up) >> 1)),
        )[0],
    ),
    "tile": (
        ("residual", "layernorm"),
        None,
        "tiled",
        lambda column: np.roll(tiled(column), 1),
    ),
    "last block": (
        ("linear", "softmax", "attend", "scores", "residual", "layernorm"),
        None,
        "blocks",
        lambda rows, width: [part for part in blocks(rows, width) if part.stop < rows],
    ),
    "exponentials": (
        ("softmax",),
        softmax,
        "_exponentials",
        lambda exp2, count: REAL_EXPONENTIALS(exp2, count) + 300,
    ),
    "table": (("gelu",), np, "roll", lambda table, by: np.concatenate([table[1:], table[:1]])),
}
REAL_EXPONENTIALS = softmax._exponentials
REAL_FINISH = requant.Finish.__init__
HOMES = (linear, residual, layernorm, softmax, attention, requant, scores)


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("broken", BREAKS)
def test_the_comparison_sees_what_is_broken(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names, home, attribute, instead = BREAKS[broken]
    for name in names:
        assert not wrong(name)
    for place in HOMES if home is None else (home,):
        if hasattr(place, attribute):
            monkeypatch.setattr(place, attribute, instead)
    for name in names:
        assert wrong(name), f"{name} does not notice a broken {broken}"


# ---------------------------------------------------------------------------------- parameters


def test_parameters_are_prepared_once_for_each_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    check = requant.RequantParams.check

    def counted(self: Any, spec: Any) -> None:
        calls.append(spec)
        check(self, spec)

    monkeypatch.setattr(requant.RequantParams, "check", counted)
    params = RequantParams(multiplier=np.array([1 << 15]), shift=np.array([16]), zero_point=0)
    for spec in (requant.RequantSpec(), requant.RequantSpec(out_bits=4)):
        for _ in range(3):
            requant.requantise(np.array([[7]]), spec, params)
        # A spec that is equal is the same.
        requant.requantise(np.array([[7]]), replace(spec), params)
    assert calls == [requant.RequantSpec(), requant.RequantSpec(out_bits=4)]
    requant.requantise(np.array([[7]]), requant.RequantSpec(), replace(params, zero_point=1))
    assert len(calls) == 3


def test_parameters_that_do_not_suit_are_refused_each_time() -> None:
    params = RequantParams(multiplier=np.array([5]), shift=np.array([16]), zero_point=0)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^Multiplier must be from 32768 to 65535, not 5$"):
            requant.requantise(np.array([[7]]), requant.RequantSpec(), params)


def test_nobody_changes_parameters_that_are_in_use() -> None:
    given = np.array([1 << 15])
    params = RequantParams(multiplier=given, shift=np.array([14]), zero_point=0)
    spec, acc = requant.RequantSpec(), np.array([[7]])
    assert requant.requantise(acc, spec, params).tolist() == [[14]]
    given[0] = 65535
    assert params.multiplier.tolist() == [1 << 15]
    assert requant.requantise(acc, spec, params).tolist() == [[14]]
    with pytest.raises(ValueError, match="read-only"):
        params.multiplier[0] = 65535
    # What is read-only already is not copied again.
    assert replace(params, zero_point=1).multiplier is params.multiplier


def test_all_parameters_with_arrays_are_such() -> None:
    kinds = (
        RequantParams,
        ScoreParams,
        linear.LinearParams,
        gelu.GeluParams,
        residual.ResidualParams,
        pool.PoolParams,
        layernorm.LayerNormParams,
    )
    assert all(issubclass(kind, Params) for kind in kinds)


# ------------------------------------------------------------------------------------- threads


def test_threads_do_not_meet() -> None:
    """Each operator on other inputs in each of four threads at once, over and over."""
    for name in OPERATORS:
        work = [pair for seed in range(4) for pair in pairs(name, seed)]
        alone = [fast() for fast, _ in work]
        with ThreadPoolExecutor(4) as pool_of_threads:
            for _ in range(3):
                together = list(pool_of_threads.map(lambda pair: pair[0](), work))
                assert all((a == b).all() for a, b in zip(alone, together, strict=True)), name


def test_scratch_is_kept_in_its_thread_alone() -> None:
    mine = scratch("test", (3, 4), np.int64)
    assert np.shares_memory(mine, scratch("test", (12,), np.int16))
    assert not np.shares_memory(mine, scratch("other", (3, 4), np.int64))
    found: list[Array] = []
    thread = threading.Thread(target=lambda: found.append(scratch("test", (3, 4), np.int64)))
    thread.start()
    thread.join()
    assert found[0].shape == mine.shape and not np.shares_memory(mine, found[0])


# ------------------------------------------------------------------------- intervals decide, not values


def test_an_offset_that_finds_no_room_comes_late() -> None:
    """Both ways to add z: folded into the rounding, and behind the shift."""
    for shift, folded in ((20, True), (60, False)):
        n = np.array([shift, 15])
        finish = requant.Finish(Interval.of_bits(40, signed=True), n, 8, -7)
        assert (finish._late is None) == folded
        m = np.array([65535, 40000])
        for acc in (-(1 << 23), -1, 0, 5, (1 << 23) - 1):
            params = RequantParams(multiplier=m, shift=n, zero_point=-7)
            rows = np.array([[acc, acc]])
            got = requant.requantise(rows, requant.RequantSpec(acc_bits=24), params)
            assert got.tolist() == rescaled(rows, params, 8).tolist()


def test_types_follow_from_intervals() -> None:
    for bits, kind in ((8, np.int8), (9, np.int16), (16, np.int16), (17, np.int32), (33, np.int64)):
        assert narrowest(Interval.of_bits(bits, signed=True)) == kind
    with pytest.raises(ValueError, match=r"^Interval must fit in 64 bits with sign, not Interval"):
        narrowest(Interval(0, 1 << 63))
    zero = np.zeros((1, 1), np.int8)
    for bound, kind in ((Interval(0, 46340), np.int32), (Interval(0, 46341), np.int64)):
        assert matmul.exact_matmul(zero, zero, bound, bound).dtype == kind


def test_blocks_cover_each_row_once() -> None:
    for rows, width in ((0, 5), (1, 5), (7, 1 << 20), (1000, 1 << 10), (5, 0)):
        covered = [row for part in blocks(rows, width) for row in range(rows)[part]]
        assert covered == list(range(rows))

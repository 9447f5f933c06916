# SPDX-License-Identifier: Apache-2.0
"""The operators as they run, narrow, folded and in blocks, against the same formulas plainly in int64.

Rows by the hundred and specs of every grid; the blocks are made small, so that each call has many of them and
a last one that is not full.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from operator_pairs import OPERATORS, Array, Pair, rescaled

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
from golden.bounds import Interval
from golden.requant import RequantParams
from golden.scores import ScoreParams

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

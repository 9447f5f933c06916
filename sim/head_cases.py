# SPDX-License-Identifier: Apache-2.0
"""Cases for the unit of codes and v: golden's corners, numbers solved for, lengths, stalls, resets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np

from golden.attention import SQRT2_BITS, AttendSpec, attend_rows
from golden.requant import MULTIPLIER, SHIFT, RequantParams
from sim.heads import PORTS, Case, Head
from sim.job import Pattern

__all__ = ["LENGTHS", "corner_heads", "drawn", "head_cases", "length_classes", "one_head", "root_ties"]

LENGTHS = (1, 2, 3, 5, 8)
"""Rows between the shortest and the longest."""


def one_head(params: RequantParams, head: int) -> RequantParams:
    """The parameters of a head."""
    own = slice(head, head + 1)
    return RequantParams(
        multiplier=params.multiplier[own], shift=params.shift[own], zero_point=params.zero_point
    )


def corner_heads(spec: AttendSpec) -> Iterator[Head]:
    """Both heads of every corner, 3 lanes; of long rows, which take their time, one and the other in turn."""
    for turn, (_, codes, v, params) in enumerate(attend_rows(spec)):
        for head in range(2) if codes.shape[-1] <= 200 else (turn % 2,):
            yield Head(list(codes[head]), v[head], one_head(params, head))


def drawn(
    spec: AttendSpec, lanes: int, lengths: Sequence[int], shift: int = 15, seed: int = 0, more: int = 0
) -> Head:
    """A head of rows of these lengths, codes and v at random; M is 1/2 to 1 of ``2**(16 - shift)``.

    more: tokens of v behind the longest row.
    """
    rng, value, last = np.random.default_rng(seed), spec.bounds["value"], spec.softmax.last_code
    rows = [rng.integers(0, last, n, endpoint=True) for n in lengths]
    v = rng.integers(value.low, value.high, (max(lengths) + more, lanes), endpoint=True)
    multiplier = np.array([1 << 15 if seed == 0 else int(rng.integers(1 << 15, 1 << 16))])
    return Head(
        rows, v, RequantParams(multiplier=multiplier, shift=np.array([shift]), zero_point=seed)
    )


def length_classes(spec: AttendSpec) -> dict[str, tuple[int, int]]:
    """Classes of row lengths, first and last length of each."""
    longest = spec.softmax.max_tokens
    return {"one": (1, 1), "two": (2, 2), "longer": (3, longest - 1), "longest": (longest, longest)}


def _params(multiplier: int, shift: int, zero_point: int = 0) -> RequantParams:
    return RequantParams(
        multiplier=np.array([multiplier]), shift=np.array([shift]), zero_point=zero_point
    )


def _filled(spec: AttendSpec, lanes: int, seed: int) -> Head:
    """Rows that lead to accumulators of every size, of either sign."""
    rng, last = np.random.default_rng(seed), spec.softmax.last_code
    value, longest = spec.bounds["value"], spec.softmax.max_tokens
    v = rng.integers(value.low, value.high, (longest, lanes), endpoint=True)
    v[: longest // 2] = np.minimum(np.abs(v[: longest // 2]), value.high) * (1 - 2 * (np.arange(lanes) % 2))
    rows = [rng.integers(low, low + 2, longest // 2 or 1, endpoint=True) for low in (0, 4, 9)]
    return Head([np.minimum(row, last) for row in rows], v, _params(1 << 15, 15))


def finishing(spec: AttendSpec, lanes: int) -> list[Head]:
    """Every shift and the ends of the requantiser's parameters, on accumulators of every size."""
    code, heads = spec.bounds["code"], []
    for shift in range(SHIFT.high + 1):
        multiplier = (MULTIPLIER.low, MULTIPLIER.high, 45_000)[shift % 3]
        zero = (0, code.low, code.high, -3)[shift % 4]
        filled = _filled(spec, lanes, shift)
        heads.append(Head(filled.rows, filled.v, _params(multiplier, shift, zero)))
    for multiplier, shift, zero in product(
        (MULTIPLIER.low, MULTIPLIER.high), (SHIFT.low, SHIFT.high), (code.low, code.high)
    ):
        filled = _filled(spec, lanes, shift + 100)
        heads.append(Head(filled.rows, filled.v, _params(multiplier, shift, zero)))
    return heads


def unsaturated(spec: AttendSpec, lanes: int) -> list[Head]:
    """Small accumulators and shifts: nothing saturates, and each bit of a product with M is rounded at."""
    shifts, heads = spec.shifts, []
    deepest = next(code for code, shift in enumerate(shifts) if shift == 0)
    for shift, seed in product(range(spec.out_bits + 1), range(3)):
        rng, tokens = np.random.default_rng([shift, seed]), 4
        largest = min(spec.bounds["value"].high, (1 << shift >> 1) // tokens)
        v = rng.integers(-max(largest, 1), max(largest, 1), (tokens, lanes), endpoint=True)
        rows = [np.full(count, deepest) for count in range(1, tokens + 1)]
        rows.append(np.full(1, spec.softmax.last_code))  # an accumulator of 0
        multiplier = int(rng.integers(MULTIPLIER.low, MULTIPLIER.high, endpoint=True))
        heads.append(Head(rows, v, _params(multiplier, shift)))
    return heads


def ties(spec: AttendSpec, lanes: int) -> list[Head]:
    """Sums on a tie of the root's rounding, and of the requantiser's; and one beside it, on either side."""
    shifts, heads = spec.shifts, []
    deepest = next(code for code, shift in enumerate(shifts) if shift == 0)
    half = np.array([[1] * lanes, [-1] * lanes]) * (1 + 2 * np.arange(lanes))
    rows = [np.array([deepest]), np.array([deepest, deepest])]
    heads.append(Head(rows, half, _params(MULTIPLIER.low, 16)))
    heads.append(Head(rows, -half, _params(MULTIPLIER.low, 16)))
    if root_ties(spec):
        wanted, largest = 1 << SQRT2_BITS - 1 - (shifts[1] or 0), spec.bounds["value"].high
        parts = [min(largest, wanted - done) for done in range(0, wanted, largest)]
        for sign in (1, -1):
            v = sign * np.array([*parts, 1])[:, None] * np.ones(lanes, dtype=np.int64)
            tied = np.array([1] * len(parts))
            rows = [tied, np.array([*tied, deepest]), np.array([*tied, 1])]
            heads += [Head(rows, v, _params(MULTIPLIER.low, 15, z)) for z in (0, 1)]
    return heads


def root_ties(spec: AttendSpec) -> bool:
    """Whether a product by SQRT2, an odd number, can be on a tie: for odd multiples of half of 2**15."""
    return spec.per_octave == 2 and spec.bounds["odd"].high >= 2 << SQRT2_BITS - 1


def _crossed(spec: AttendSpec, lanes: int) -> list[Case]:
    """Every class of length, in the head of the row before and in a new one, against every stall."""
    cases = []
    for name, ports in (("none", ""), ("in", "i"), ("out", "o"), ("both", "io")):
        heads = [drawn(spec, lanes, (1,), 16)]
        for turn, (low, high) in enumerate(length_classes(spec).values()):
            heads.append(drawn(spec, lanes, ((low + high) // 2,) * 2, 16, turn))
        stalls = {port: Pattern(0.4, 2) for port in ports}
        cases.append(Case(f"crossed_{name}", heads, stalls))
    return cases


def head_cases(spec: AttendSpec, lanes: int, seed: int = 1) -> list[Case]:
    """All cases of a unit; 3 lanes have golden's corners, too."""
    longest = spec.softmax.max_tokens

    def mixed(count: int, *lengths: int, more: int = 0) -> list[Head]:
        return [drawn(spec, lanes, lengths, 16, seed + turn, more) for turn in range(count)]

    lengths = [n for n in LENGTHS if n < longest]
    every = [longest, *lengths, longest, 1]
    shuffled = [int(n) for n in np.random.default_rng(seed).permutation(every)]
    cases = [
        Case("no_stall", mixed(4, longest // 2, longest // 2, longest // 2)),
        Case("mixed_lengths", mixed(3, *every) + mixed(2, *shuffled)),
        Case("rows_of_one", mixed(2, *[1] * 60)),
        Case("heads_of_one", [drawn(spec, lanes, (1,), 16, turn) for turn in range(20)]),
        Case("more_tokens", mixed(4, 1, 3, 2, more=longest - 3)),
        Case("sets_late", mixed(6, 4, 2, 2) + mixed(2, longest, longest), late=True),
        Case("strays", mixed(4, 2, longest), strays=True),
        Case("finishing", finishing(spec, lanes)),
        Case("unsaturated", unsaturated(spec, lanes)),
        Case("ties", ties(spec, lanes)),
        *_crossed(spec, lanes),
        # v of the head after next waits while the last row of this one pauses.
        Case("stall_i_last_row", mixed(5, 1, longest), {"i": Pattern(0.7, 8)}),
        Case("stall_o_full", mixed(2, *[1] * 60), {"o": Pattern(0.7, 8)}),
        Case("nothing_leaves", mixed(2, *[1] * 60), held=120),
        Case("nothing_leaves_long", mixed(3, *[3] * 20), held=200),
    ]
    for name, ports in (*((port, (port,)) for port in PORTS), ("all", PORTS)):
        for share, burst in ((0.3, 1), (0.7, 8)):
            stalls: dict[str, Any] = {port: Pattern(share, burst) for port in ports}
            cases.append(Case(f"stall_{name}_{share}", mixed(4, *every), stalls))
    few = mixed(3, longest, 1, 2)
    cases += [Case(f"reset_after_{cycles}", few, reset_after=cycles) for cycles in (2, 9, 30, 41, 70)]
    if lanes == 3:
        cases.append(Case("corners", list(corner_heads(spec))))
    return cases

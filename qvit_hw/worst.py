# SPDX-License-Identifier: Apache-2.0
"""A search for the rows on which the integers are furthest from real numbers.

    python -m qvit_hw.worst [--steps 400] [--seed 1] [--out golden/worst_rows.json]

Climbs hills without a gradient: a row is changed in a few dozen ways at once, the worst of them goes on,
from several starts and lengths for each spec of the grids. What a file already holds is one of the starts, so
that a search never ends with less than it began with. The rows are kept as permanent vectors
(:mod:`golden.worst`), which golden tests and simulations use ever after.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from golden import layernorm as norm
from golden import softmax as soft
from golden.fixedpoint import Ints
from golden.layernorm import LayerNormParams, LayerNormSpec, layernorm
from golden.softmax import SoftmaxParams, SoftmaxSpec, softmax
from golden.worst import (
    AIMS,
    COLUMNS,
    SCHEMA,
    VECTORS,
    WorstRow,
    pack_row,
    worst_layernorm,
    worst_softmax,
)

__all__ = ["layernorm_apart", "search", "softmax_apart", "softmax_sum"]

BROOD = 32
"""Changed rows that are tried at once."""
Floats = npt.NDArray[np.float64]
Row = npt.NDArray[np.int64]
Score = Callable[[Ints], Floats]


def softmax_apart(scores: Ints, spec: SoftmaxSpec, params: SoftmaxParams) -> Floats:
    """Most distance, in codes, of a row's codes from ``-log2(softmax)``; rows [..., N]."""
    per_octave = 2 if spec.base == "sqrt2" else 1
    t = scores / (1 << params.frac)
    distance = t.max(axis=-1, keepdims=True) - t
    exact = per_octave * (distance + np.log2(np.exp2(-distance).sum(axis=-1, keepdims=True)))
    apart = np.abs(softmax(scores, spec, params) - np.minimum(exact, spec.last_code))
    return np.asarray(apart.max(axis=-1), np.float64)


def softmax_sum(scores: Ints, spec: SoftmaxSpec, params: SoftmaxParams) -> Floats:
    """Sum of what the codes of a row mean; rows [..., N]."""
    per_octave = 2 if spec.base == "sqrt2" else 1
    codes = softmax(scores, spec, params).astype(np.int64)
    meant = np.where(codes == spec.last_code, 0.0, np.exp2(-codes / per_octave))
    return np.asarray(meant.sum(axis=-1), np.float64)


def layernorm_apart(codes: Ints, spec: LayerNormSpec, params: LayerNormParams) -> Floats:
    """Most distance, in codes, of a row's codes from LayerNorm in real numbers; rows [..., C].

    Real numbers have the layer's E, gains and offsets as they are, and end where codes end.
    """
    x = (codes.astype(np.int64) - params.zero_point) << params.shift
    count = params.channels
    total = x.sum(axis=-1, keepdims=True)
    variance = count * (x * x).sum(axis=-1, keepdims=True) - total * total + params.eps
    z = (count * x - total) / np.sqrt(variance.astype(np.float64))
    gain = params.gain if spec.affine == "dyadic" else 1 << params.gain
    exact = (np.ldexp(z, params.point) * gain + params.offset) / (1 << spec.output_shift)
    code = spec.bounds["code"]
    apart = np.abs(layernorm(codes, spec, params) - np.clip(exact, code.low, code.high))
    return np.asarray(apart.max(axis=-1), np.float64)


# -------------------------------------------------------------------------------------------- climbing


def climb(
    start: Row, score: Score, low: int, high: int, rng: np.random.Generator, steps: int
) -> Row:
    """Change a row step by step so that its score grows; elements stay in [low, high]."""
    best, top = start.copy(), float(score(start[None])[0])
    for _ in range(steps):
        brood = np.repeat(best[None], BROOD, axis=0)
        for row in brood:
            for _ in range(int(rng.integers(1, 4))):
                _change(row, low, high, rng)
        found = score(brood)
        place = int(found.argmax())
        if found[place] >= top:
            best, top = brood[place].copy(), float(found[place])
    return best


def _change(row: Row, low: int, high: int, rng: np.random.Generator) -> None:
    """One change of a row: of an element, of all that equal it, or of many."""
    kind, place = int(rng.integers(8)), int(rng.integers(row.size))
    value = int(row[place])
    step = int(rng.choice((-1, 1))) << int(rng.integers(0, 6))
    if kind == 0:
        row[place] = rng.integers(low, high, endpoint=True)
    elif kind == 1:
        row[place] = value + step
    elif kind in (2, 3):
        row[row == value] = value + step
    elif kind == 4:
        row[rng.random(row.size) < rng.random()] = value
    elif kind == 5:
        row[int(rng.integers(row.size))] = value
    elif kind == 6:
        begin, end = np.sort(rng.integers(0, row.size, 2, endpoint=True))
        row[begin:end] += step
    else:
        row[row <= value] += step
    np.clip(row, low, high, out=row)


def _lengths(longest: int) -> list[int]:
    return sorted({min(n, longest) for n in (2, 5, 17, 64, 197, 577, longest)})


def _softmax(spec: SoftmaxSpec, rng: np.random.Generator, steps: int) -> Iterator[WorstRow]:
    """The worst row of each aim."""
    low, high = spec.bounds["score"].low, spec.bounds["score"].high
    params, unit = SoftmaxParams(frac=spec.frac_bits), 1 << spec.frac_bits
    scores: dict[str, Score] = {
        "code": lambda rows: softmax_apart(rows, spec, params),
        "sum high": lambda rows: softmax_sum(rows, spec, params),
        "sum low": lambda rows: -softmax_sum(rows, spec, params),
    }
    known = [row for row in worst_softmax(spec) if row.own] if VECTORS.is_file() else []
    for aim, score in scores.items():
        starts = [row.elements for row in known if row.aim == aim]
        for length in _lengths(spec.max_tokens):
            # All equal; one above many that are flushed, or nearly; and a bell.
            octaves = (0, 3, spec.exp_bits - 2, spec.exp_bits - 1)
            starts += [_two_levels(length, high, high - unit * down, low) for down in octaves]
            bell = rng.normal(high - 2 * unit, 2 * unit, length)
            starts.append(np.clip(bell, low, high).astype(np.int64))
        yield _best(aim, starts, score, params, low, high, rng, steps)


def _two_levels(length: int, top: int, rest: int, low: int) -> Row:
    row = np.full(length, max(rest, low))
    row[0] = top
    return row


def _best(
    aim: str,
    starts: list[Any],
    score: Score,
    params: Any,
    low: int,
    high: int,
    rng: np.random.Generator,
    steps: int,
) -> WorstRow:
    """Climb a little from every start, and from the best four of them on to the end."""
    rows = [climb(start.astype(np.int64), score, low, high, rng, steps // 8) for start in starts]
    rows.sort(key=lambda row: float(score(row[None])[0]), reverse=True)
    rows = [climb(row, score, low, high, rng, steps) for row in rows[:4]]
    best = max(rows, key=lambda row: float(score(row[None])[0]))
    return WorstRow(aim, best, params, round(abs(float(score(best[None])[0])) * 1e6))


def _layernorm(spec: LayerNormSpec, rng: np.random.Generator, steps: int) -> Iterator[WorstRow]:
    """The worst row: codes climb, and then the parameters; the offset puts one channel at a tie."""
    low, high = -(1 << (spec.in_bits - 1)), (1 << (spec.in_bits - 1)) - 1
    best = [row for row in worst_layernorm(spec) if row.own] if VECTORS.is_file() else []
    for length in _lengths(min(spec.max_channels, 1024)):
        for point in (spec.max_point, spec.max_point - 4):
            params = _plain(spec, length, point, rng)
            one_hot = np.full(length, low)
            one_hot[0] = high
            for start in (one_hot, rng.integers(low, high, length, endpoint=True)):
                best.append(_norm_row(start, spec, params, rng, steps // 8))
    best.sort(key=lambda row: row.millionths, reverse=True)
    found = [_norm_row(row.elements, spec, row.params, rng, steps) for row in best[:4]]
    yield max([*best[:1], *found], key=lambda row: row.millionths)


def _plain(spec: LayerNormSpec, count: int, point: int, rng: np.random.Generator) -> LayerNormParams:
    """The finest parameters: the largest gain, any shifts."""
    return LayerNormParams(
        zero_point=-(1 << (spec.in_bits - 1)),
        eps=spec.min_eps(point),
        point=point,
        shift=rng.integers(0, spec.max_shift, count, endpoint=True),
        gain=np.full(count, spec.gain_range.high),
        offset=np.zeros(count, np.int64),
    )


def _norm_row(
    codes: Row, spec: LayerNormSpec, params: LayerNormParams, rng: np.random.Generator, steps: int
) -> WorstRow:
    """Climb with codes, then with one column of parameters after the other, then with codes again."""
    low, high = -(1 << (spec.in_bits - 1)), (1 << (spec.in_bits - 1)) - 1
    offset = spec.bounds["offset"]
    ranges = {
        "shift": (0, spec.max_shift),
        "gain": (spec.gain_range.low, spec.gain_range.high),
        "offset": (offset.low, offset.high),
    }
    params = _at_ties(codes, spec, params)
    for _ in range(2):
        codes = climb(codes, _of_codes(spec, params), low, high, rng, steps // 2)
        for name in COLUMNS:
            column = getattr(params, name)
            found = climb(
                column, _of_column(codes, spec, params, name), *ranges[name], rng, steps // 16 + 1
            )
            changes: dict[str, Any] = {name: found}
            params = replace(params, **changes)
        for eps in (spec.min_eps(params.point), 1 << 20, (1 << spec.eps_bits) - 1):
            other = replace(params, eps=min(max(eps, params.eps), (1 << spec.eps_bits) - 1))
            if layernorm_apart(codes, spec, other) > layernorm_apart(codes, spec, params):
                params = other
        params = _at_ties(codes, spec, params)
    return WorstRow("code", codes, params, round(float(layernorm_apart(codes, spec, params)) * 1e6))


def _of_codes(spec: LayerNormSpec, params: LayerNormParams) -> Score:
    """The score of codes by fixed parameters."""
    return lambda rows: layernorm_apart(rows, spec, params)


def _of_column(codes: Ints, spec: LayerNormSpec, params: LayerNormParams, name: str) -> Score:
    """The score of a row by one column of its parameters."""

    def score(columns: Ints) -> Floats:
        changed = (replace(params, **{name: column}) for column in columns)
        return np.array([float(layernorm_apart(codes, spec, each)) for each in changed])

    return score


def _at_ties(codes: Ints, spec: LayerNormSpec, params: LayerNormParams) -> LayerNormParams:
    """Offsets that put each channel at a tie of the last rounding, if that makes the row worse."""
    legal, best = spec.bounds["offset"], params
    half = 1 << (spec.output_shift - 1)
    none = replace(params, offset=np.zeros(params.channels, np.int64))
    scaled = norm.layernorm_trace(codes, spec, none).scaled
    for step in (-1, 0):
        for code in (0, 1, -1):
            offset = np.clip((code << spec.output_shift) + half + step - scaled, legal.low, legal.high)
            tied = replace(params, offset=offset)
            if layernorm_apart(codes, spec, tied) > layernorm_apart(codes, spec, best):
                best = tied
    return best


def search(steps: int, seed: int, told: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """The entries of the file: the worst row of each aim for each spec of the grids."""
    entries = []
    for spec in soft.SPEC_GRID:
        for row in _softmax(spec, np.random.default_rng(seed), steps):
            entries.append(pack_row("softmax", spec, row))
            told(f"softmax, {row.aim} {row.millionths / 1e6:.6f}, {row.elements.size} elements: {spec}")
    for other in norm.SPEC_GRID:
        for row in _layernorm(other, np.random.default_rng(seed), steps):
            entries.append(pack_row("layernorm", other, row))
            told(f"layernorm, {row.aim} {row.millionths / 1e6:.6f}, {row.elements.size} elements: {other}")
    assert {entry["aim"] for entry in entries} == set(AIMS)
    return entries


def main() -> int:
    """Search and write the file; return 0."""
    parser = argparse.ArgumentParser(description="Searches the rows on which integers are most wrong.")
    parser.add_argument("--steps", type=int, default=400, help="of each climb")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=VECTORS)
    options = parser.parse_args()
    rows = search(options.steps, options.seed)
    lines = ",\n".join(json.dumps(row) for row in rows)
    head = f'"schema": {json.dumps(SCHEMA)}, "version": 1'
    options.out.write_text(f"{{{head}, \"rows\": [\n{lines}\n]}}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

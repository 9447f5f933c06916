# SPDX-License-Identifier: Apache-2.0
"""What the units are made to go through: stalls, lengths, parameters, resets, numeric corners.

A scenario is a :class:`sim.job.Case`: data, made from golden and a seed. The same list serves the
command line and the tests; whatever the spec does not admit is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from golden.cycles import RowPipeline
from golden.layernorm import (
    TABLE,
    WORD,
    LayerNormParams,
    LayerNormSpec,
    layernorm,
    layernorm_pipeline,
    layernorm_trace,
)
from golden.layernorm import corner_rows as layernorm_corners
from golden.softmax import SoftmaxParams, SoftmaxSpec, softmax, softmax_pipeline, softmax_trace
from golden.softmax import corner_rows as softmax_corners
from golden.witness import layernorm_witnesses, softmax_witnesses
from sim.job import Case, Pattern, Unit

__all__ = ["LENGTHS", "Operator", "Row", "back_to_back", "case_of", "operator", "scenarios"]

LENGTHS = (1, 49, 197, 257, 577)
"""Row lengths of real networks; the lengths around ``lanes`` join them."""
PLAIN_LENGTH = 197
SHARES = (0.1, 0.5, 0.9)
BURST = 24
EXTREMES = ("largest variance", "one hot", "uniform")
TOO_LONG = 1
"""Status bit: a row was too long."""


@dataclass(frozen=True)
class Row:
    """One row and the parameters it is computed with."""

    elements: npt.NDArray[np.int64]
    params: Any
    mask: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Operator:
    """What a scenario needs to know about an operator.

    trace gives the intermediate values of a row; random_params parameters for rows of up to so many
    elements; params_of the parameters that words have written.
    """

    spec: Any
    longest: int
    low: int
    high: int
    pipeline: Callable[[int], RowPipeline]
    golden: Callable[[Row], npt.NDArray[np.int64]]
    trace: Callable[[Row], Any]
    random_params: Callable[[np.random.Generator, int], Any]
    params_of: Callable[[dict[int, int], int], Any]
    corners: Callable[[], list[tuple[str, Row]]]
    witnesses: Callable[[int], list[Row]]
    masks: bool


def operator(op: str, spec: dict[str, Any]) -> Operator:
    """Return the operator called ``op`` with the fields of its spec."""
    if op == "softmax":
        return _softmax(SoftmaxSpec(**spec))
    if op == "layernorm":
        return _layernorm(LayerNormSpec(**spec))
    raise ValueError(f"Operator must be softmax or layernorm, not {op!r}")


def _softmax(spec: SoftmaxSpec) -> Operator:
    def params(rng: np.random.Generator, _: int) -> SoftmaxParams:
        low = max(0, spec.frac_bits - 3)
        return SoftmaxParams(frac=int(rng.integers(low, spec.frac_bits, endpoint=True)))

    score = spec.bounds["score"]
    return Operator(
        spec=spec,
        longest=spec.max_tokens,
        low=score.low,
        high=score.high,
        pipeline=lambda lanes: softmax_pipeline(spec, lanes),
        golden=lambda row: softmax(row.elements, spec, row.params, row.mask).astype(np.int64),
        trace=lambda row: softmax_trace(row.elements, spec, row.params, row.mask),
        random_params=params,
        params_of=lambda words, _: SoftmaxParams(frac=words[0]),
        corners=lambda: [
            (n, Row(np.asarray(x, np.int64), p, mask)) for n, x, mask, p in softmax_corners(spec)
        ],
        witnesses=lambda lanes: [Row(x, p) for _, x, p in softmax_witnesses(spec, lanes)],
        masks=True,
    )


def _layernorm(spec: LayerNormSpec) -> Operator:
    def params(rng: np.random.Generator, count: int) -> LayerNormParams:
        gain = spec.gain_range
        half = 1 << (spec.output_shift + spec.out_bits - 3)
        return LayerNormParams(
            zero_point=int(rng.integers(-(1 << (spec.in_bits - 1)), 1 << (spec.in_bits - 1))),
            eps=1 << int(rng.integers(0, spec.eps_bits)),
            point=int(rng.integers(spec.max_point // 2, min(13, spec.max_point + 1))),
            shift=rng.integers(0, spec.max_shift, count, endpoint=True),
            gain=rng.integers(gain.low, gain.high, count, endpoint=True),
            offset=rng.integers(-half, half, count),
        )

    def cut(row: Row) -> LayerNormParams:
        """The parameters of the row's channels: the unit counts what arrives."""
        count = row.elements.shape[-1]
        given: LayerNormParams = row.params
        columns = {name: getattr(given, name)[:count] for name in ("shift", "gain", "offset")}
        return replace(given, **columns)

    def params_of(words: dict[int, int], count: int) -> LayerNormParams:
        """The parameters that a row of ``count`` channels sees after these writes."""

        def signed(value: int) -> int:
            return value - (1 << 32) if value >> 31 else value

        columns = {
            name: np.array([signed(words[base | channel]) for channel in range(count)], np.int64)
            for name, base in TABLE.items()
        }
        return LayerNormParams(
            zero_point=signed(words[WORD["zero_point"]]),
            point=words[WORD["point"]],
            eps=words[WORD["eps_low"]] | words[WORD["eps_high"]] << 32,
            **columns,
        )

    return Operator(
        spec=spec,
        longest=spec.max_channels,
        low=-(1 << (spec.in_bits - 1)),
        high=(1 << (spec.in_bits - 1)) - 1,
        pipeline=lambda lanes: layernorm_pipeline(spec, lanes),
        golden=lambda row: layernorm(row.elements, spec, cut(row)).astype(np.int64),
        trace=lambda row: layernorm_trace(row.elements, spec, cut(row)),
        random_params=params,
        params_of=params_of,
        corners=lambda: [(n, Row(x, p)) for n, x, p in layernorm_corners(spec)],
        witnesses=lambda _: [Row(x, p) for _, x, p in layernorm_witnesses(spec)],
        masks=False,
    )


def case_of(name: str, rows: Sequence[Row], op: Operator, lanes: int, **changes: Any) -> Case:
    """The case that sends these rows; parameters are written wherever they change.

    Cycles are predicted if nothing pauses and the parameters never change.
    """
    lengths = np.array([row.elements.size for row in rows], dtype=np.int64)
    params, current = [], None
    for index, row in enumerate(rows):
        if row.params is not current:
            params.append((index, row.params.words(op.spec)))
            current = row.params
    mask = None
    if op.masks:
        blank = [np.zeros(row.elements.size, bool) if row.mask is None else row.mask for row in rows]
        mask = np.concatenate(blank)
    case = Case(
        name=name,
        lengths=lengths,
        elements=np.concatenate([row.elements for row in rows]).astype(np.int64),
        expected=_golden(rows, op),
        params=params,
        mask=mask,
    )
    case = replace(case, **changes)
    stalled = case.stall_in.share or case.stall_out.share or case.ready_late
    if not stalled and len(params) == 1:
        case.timing = predict(op, lanes, lengths)
    return case


def _golden(rows: Sequence[Row], op: Operator) -> npt.NDArray[np.int64]:
    """Golden codes of the rows, like rows in one call."""
    codes = []
    for _, group in groupby(rows, key=lambda row: (row.elements.size, id(row.params))):
        alike = list(group)
        masks = [np.zeros(r.elements.size, bool) if r.mask is None else r.mask for r in alike]
        stacked = np.stack([row.elements for row in alike])
        whole = Row(stacked, alike[0].params, np.stack(masks) if op.masks else None)
        codes.append(op.golden(whole).reshape(-1))
    return np.concatenate(codes)


def predict(op: Operator, lanes: int, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """First and last cycle in and out of every row, by golden's cycle model."""
    rows = op.pipeline(lanes).schedule(lengths.tolist())
    told = [(row.first_in, row.last_in, row.first_out, row.last_out) for row in rows]
    return np.array(told, dtype=np.int64)


class _Maker:
    """Makes random rows of an operator, of up to ``longest`` elements."""

    def __init__(self, op: Operator, seed: int, longest: int = max(LENGTHS)) -> None:
        self.op, self.rng = op, np.random.default_rng(seed)
        self.longest = min(longest, op.longest)
        self.params = self.new_params()

    def new_params(self) -> Any:
        return self.op.random_params(self.rng, self.longest)

    def row(self, length: int, params: Any = None) -> Row:
        op, rng = self.op, self.rng
        if rng.random() < 0.5:
            elements = rng.integers(op.low, op.high, length, endpoint=True)
        else:
            bell = rng.normal((op.low + op.high) / 2, (op.high - op.low) / 16, length)
            elements = np.clip(bell.astype(np.int64), op.low, op.high)
        mask = rng.random(length) < 0.1 if op.masks else None
        return Row(elements, self.params if params is None else params, mask)

    def rows(self, lengths: Sequence[int]) -> list[Row]:
        return [self.row(length) for length in lengths]


def mixed_lengths(op: Operator, lanes: int, rng: np.random.Generator, count: int) -> list[int]:
    """Each length that the spec admits, and more of them, ``count`` in all, in random order."""
    wanted = {*LENGTHS, lanes - 1, lanes, lanes + 1, 2 * lanes}
    legal = sorted(length for length in wanted if 1 <= length <= op.longest)
    lengths = [*legal, *rng.choice(legal, max(0, count - len(legal))).tolist()]
    return [int(length) for length in rng.permutation(lengths)]


def back_to_back(
    unit: Unit, count: int = 64, length: int = PLAIN_LENGTH, *, seed: int = 1
) -> Case:
    """Rows of one length without a pause: takes count * ceil(length / lanes) + latency cycles."""
    op = operator(unit.op, unit.spec)
    length = min(length, op.longest)
    return case_of("back_to_back", _Maker(op, seed, length).rows([length] * count), op, unit.lanes)


def corners(op: Operator, lanes: int, longest: int | None = None) -> Case:
    """The corner rows of golden, parameters changing row by row.

    Those up to ``longest`` elements, and the extremes of the spec's longest row, which fill the
    accumulators.
    """
    rows = [
        row
        for name, row in op.corners()
        if longest is None
        or row.elements.size <= longest
        or (row.elements.size == op.longest and name.startswith(EXTREMES))
    ]
    return case_of("corners", rows, op, lanes)


def tables(op: Operator, lanes: int) -> Case:
    """A row for each entry of each look-up table that sees it off by one (``golden.witness``)."""
    rows = [row for row in op.witnesses(lanes) if row.elements.size <= op.longest]
    return case_of("tables", rows, op, lanes)


def buffer_full(op: Operator, lanes: int, seed: int) -> Case:
    """More rows than the unit's buffers hold, against an output that is hardly ever taken."""
    pipeline = op.pipeline(lanes)
    length = min(PLAIN_LENGTH, op.longest)
    ring = 1 << (pipeline.max_beats + pipeline.slack - 1).bit_length()
    held = ring * len(pipeline.waits) + pipeline.latency(1)  # and the beats inside its pipelines
    rows = -(-2 * held // pipeline.beats(length))
    sent = _Maker(op, seed, length).rows([length] * rows)
    return case_of("buffer_full", sent, op, lanes, stall_out=Pattern(0.9), must_refuse=True)


def params_overlap(op: Operator, lanes: int, seed: int) -> Case:
    """Parameters that change again while rows of the change before last are still under way."""
    length = min(PLAIN_LENGTH, op.longest)
    rows: list[Row] = []
    for turn in range(2):
        make = _Maker(op, seed + turn, length)
        rows += make.rows([length] * 10)
        for _ in range(2):
            short = _Maker(op, seed + len(rows), 1)
            rows += short.rows([1])
    return case_of("params_overlap", rows, op, lanes, stall_out=Pattern(0.9))


def params_early(op: Operator, lanes: int, seed: int) -> Case:
    """Parameters that change in the middle of a row, which keeps those of its first beat."""
    length = min(5 * lanes, op.longest)
    rows = [_Maker(op, seed + turn, length).row(length) for turn in range(8)]
    return case_of("params_early", rows, op, lanes, params_early=True)


def too_long(op: Operator, lanes: int, seed: int) -> Case:
    """Rows that are longer than the unit's longest: cut there, the next row is not harmed."""
    make = _Maker(op, seed, op.longest)
    sent = [op.longest + 1, 5, op.longest + 3 * lanes, op.longest, 7 * lanes + 1, 1]
    sent = [n if i != 4 else min(n, op.longest) for i, n in enumerate(sent)]
    sent[1] = min(sent[1], op.longest)
    rows = make.rows(sent)
    masks = [None if row.mask is None else row.mask[: op.longest] for row in rows]
    kept = [Row(r.elements[: op.longest], r.params, m) for r, m in zip(rows, masks, strict=True)]
    case = case_of("row_too_long", kept, op, lanes)
    case.out_lengths, case.lengths = case.lengths, np.array(sent, dtype=np.int64)
    case.elements = np.concatenate([row.elements for row in rows])
    if op.masks:
        case.mask = np.concatenate([row.mask for row in rows if row.mask is not None])
    case.timing, case.status = None, TOO_LONG
    return case


def scenarios(
    unit: Unit, *, seed: int = 1, rows: int = 12, corner_length: int | None = None
) -> list[Case]:
    """All scenarios of a unit; ``rows`` rows in each, corner rows up to ``corner_length``."""
    op, lanes = operator(unit.op, unit.spec), unit.lanes
    make = _Maker(op, seed)
    plain = make.rows([min(PLAIN_LENGTH, op.longest)] * rows)
    mixed = make.rows(mixed_lengths(op, lanes, make.rng, 2 * rows))
    cases = [case_of("no_stall", plain, op, lanes), case_of("mixed_lengths", mixed, op, lanes)]
    few = min(rows, 6)
    for side in ("in", "out", "both"):
        for share in SHARES:
            pattern = Pattern(share)
            stalled = {f"stall_{s}": pattern for s in ("in", "out") if side in (s, "both")}
            name = f"stall_{side}_{share}"
            cases.append(case_of(name, (mixed if share == 0.5 else plain)[:few], op, lanes, **stalled))
    bursts = {"stall_in": Pattern(0.5, BURST), "stall_out": Pattern(0.5, BURST)}
    cases.append(case_of("stall_bursts", mixed, op, lanes, **bursts))

    # One long row and very many of a beat: more rows wait than the queues hold.
    short = make.rows([min(577, op.longest), *[1] * 80, min(40, op.longest), *[lanes] * 40])
    short = [row for row in short if row.elements.size <= op.longest]
    cases.append(case_of("short_rows", short, op, lanes))

    changing = []
    for index in range(max(4, rows // 2)):
        params = make.new_params()
        length = int(make.rng.choice([1, lanes + 1, 49, PLAIN_LENGTH]))
        changing += [make.row(min(length, op.longest), params) for _ in range(1 + index % 3)]
    cases.append(case_of("params_change", changing, op, lanes))
    stalled = {"stall_in": Pattern(0.3), "stall_out": Pattern(0.7, 8)}
    cases.append(case_of("params_change_stalled", changing, op, lanes, **stalled))

    # A long row first: the reset comes into its input, its statistics, its output.
    long = [*make.rows([min(577, op.longest)]), *mixed[:few]]
    for after in (1, 2, 40, 200):
        cases.append(case_of(f"reset_after_{after}", long, op, lanes, reset_after=after))
    cases += [params_overlap(op, lanes, seed), buffer_full(op, lanes, seed)]
    if op.longest > lanes:
        cases.append(params_early(op, lanes, seed))
    cases.append(case_of("ready_late", mixed[:few], op, lanes, ready_late=True))
    cases.append(too_long(op, lanes, seed))
    cases += [corners(op, lanes, corner_length), tables(op, lanes)]
    return cases

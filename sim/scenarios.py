# SPDX-License-Identifier: Apache-2.0
"""What the units are made to go through: stalls, lengths, parameters, resets, numeric corners.

A scenario is a :class:`sim.job.Case`: data, made from golden and a seed. The same list serves the
command line and the tests; whatever the spec does not admit is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from golden.cycles import OUTPUT_DEPTH, QUEUE_DEPTH
from golden.worst import worst_layernorm, worst_softmax
from sim.job import Case, Pattern, Unit
from sim.operators import Operator, Row, operator

__all__ = ["LENGTHS", "Operator", "Row", "back_to_back", "case_of", "length_classes", "operator", "scenarios"]

LENGTHS = (1, 49, 197, 257, 577)
"""Row lengths of real networks; the lengths around ``lanes`` join them."""
PLAIN_LENGTH = 197
SHARES = (0.1, 0.5, 0.9)
BURST = 24
WORST: dict[str, Callable[[Any], list[Any]]] = {"softmax": worst_softmax, "layernorm": worst_layernorm}
"""Operators of which the worst rows are kept (``golden.worst``)."""
FOREIGN = 64
"""Elements of a row that is worst for another spec."""
WORST_STALLS = {
    "softmax": ((5, 8, 24, 172), (56, 57, 62, 67, 72, 74, 80, 83)),
    "layernorm": ((6, 8), (49, 50, 60, 67, 68, 74, 77, 83, 92, 175)),
}
"""Turns in which input and output pause: of 12 pauses those found to delay rows most (of small units)."""
STALLED_LENGTHS = (17, 3, 24, 24, 1, 9)
"""Lengths of the rows that they were found with."""
EXTREMES = ("largest variance", "one hot", "uniform")
TOO_LONG = 1
"""Status bit: a row was too long."""


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
    stalled = case.stall_in.pauses or case.stall_out.pauses or case.ready_late
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


def tables(op: Operator, lanes: int, witnesses: list[Row]) -> Case:
    """A row for each entry of each look-up table that sees it off by one (``golden.witness``)."""
    rows = [row for row in witnesses if row.elements.size <= op.longest]
    return case_of("tables", rows, op, lanes)


def worst_rows(unit: Unit, op: Operator, longest: int | None = None) -> Case:
    """The rows on which the numbers are known to be most wrong, of this spec in full, of others in part."""
    rows = []
    for worst in WORST[unit.op](op.spec):
        count = min(worst.elements.size, longest or op.longest)
        count = count if worst.own else min(count, FOREIGN)
        params = worst.params
        if unit.op == "layernorm":
            columns = {name: getattr(params, name)[:count] for name in ("shift", "gain", "offset")}
            params = replace(params, **columns)
        rows.append(Row(worst.elements[:count], params))
    return case_of("worst_rows", rows, op, unit.lanes)


def buffer_full(op: Operator, lanes: int, seed: int) -> Case:
    """More rows than the unit's buffers hold, against an output that is hardly ever taken."""
    pipeline = op.pipeline(lanes)
    length = min(PLAIN_LENGTH, op.longest)
    ring = 1 << (pipeline.max_beats + pipeline.slack - 1).bit_length()
    held = ring * len(pipeline.waits) + pipeline.latency(1)  # and the beats inside its pipelines
    held = max(held, OUTPUT_DEPTH)
    rows = -(-2 * held // pipeline.beats(length))
    sent = _Maker(op, seed, length).rows([length] * rows)
    return case_of("buffer_full", sent, op, lanes, stall_out=Pattern(0.9), must_refuse=True)


def rows_waiting(op: Operator, lanes: int, seed: int) -> Case:
    """Rows of a beat, more than a unit's queues count, against an output that is hardly ever taken."""
    rows = _Maker(op, seed, lanes).rows([min(lanes, op.longest)] * 3 * QUEUE_DEPTH)
    return case_of("rows_waiting", rows, op, lanes, stall_out=Pattern(0.9))


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


def length_classes(lanes: int, longest: int) -> dict[str, tuple[int, int]]:
    """Classes of row lengths, first and last length of each, those that differ and exist."""
    classes = {
        "one": (1, 1),
        "lanes - 1": (lanes - 1, lanes - 1),
        "lanes": (lanes, lanes),
        "lanes + 1": (lanes + 1, lanes + 1),
        "longer": (lanes + 2, longest - 1),
        "longest": (longest, longest),
    }
    found: dict[str, tuple[int, int]] = {}
    for name, (low, high) in classes.items():
        if 1 <= low <= high <= longest and (low, high) not in found.values():
            found[name] = low, high
    return found


def crossed(op: Operator, lanes: int, seed: int) -> list[Case]:
    """Every class of length with the parameters of the row before and with new ones, against every stall."""
    cases = []
    for name, sides in (("none", ()), ("in", ("in",)), ("out", ("out",)), ("both", ("in", "out"))):
        rows = _Maker(op, seed, lanes).rows([1])
        for turn, (low, high) in enumerate(length_classes(lanes, op.longest).values()):
            length = min((low + high) // 2, 5 * lanes + 1) if low < high else low
            rows += _Maker(op, seed + turn, length).rows([length, length])
        stalled = {f"stall_{side}": Pattern(0.4, 2) for side in sides}
        cases.append(case_of(f"crossed_{name}", rows, op, lanes, **stalled))
    return cases


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
    cases += [rows_waiting(op, lanes, seed), params_overlap(op, lanes, seed), buffer_full(op, lanes, seed)]
    cases += crossed(op, lanes, seed)
    if op.longest > lanes:
        cases.append(params_early(op, lanes, seed))
    cases.append(case_of("ready_late", mixed[:few], op, lanes, ready_late=True))
    cases.append(too_long(op, lanes, seed))
    cases.append(corners(op, lanes, corner_length))
    if witnesses := op.witnesses(lanes):
        cases.append(tables(op, lanes, witnesses))
    if unit.op in WORST:
        inside, outside = (Pattern(turns=turns) for turns in WORST_STALLS[unit.op])
        rows_sent = make.rows([min(length, op.longest) for length in STALLED_LENGTHS])
        cases.append(
            case_of("worst_stalls", rows_sent, op, lanes, stall_in=inside, stall_out=outside)
        )
        cases.append(worst_rows(unit, op, corner_length))
    return cases

# SPDX-License-Identifier: Apache-2.0
"""Expected against measured: how many elements differ, and where the first one is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.job import Case, Outcome

__all__ = ["Comparison", "Divergence", "compare"]


@dataclass(frozen=True)
class Divergence:
    """The first element that differs; ``rtl`` is None if it never came."""

    row: int
    column: int
    cycle: int
    golden: int
    rtl: int | None

    def __str__(self) -> str:
        got = "nothing" if self.rtl is None else self.rtl
        return (
            f"row {self.row}, column {self.column}, cycle {self.cycle}: "
            f"golden {self.golden}, RTL {got}"
        )


@dataclass(frozen=True)
class Comparison:
    """Elements compared, how many differ or never came, by how much, and the first of them.

    framing: the first of them has the right value in a beat whose tkeep or tlast is wrong.
    """

    elements: int
    mismatches: int
    max_difference: int
    divergence: Divergence | None
    timing_fault: str | None
    framing: bool = False

    @property
    def fault(self) -> str | None:
        """What is wrong, in one line; None if nothing is."""
        if self.divergence is not None:
            framing = ", but tkeep or tlast of its beat is wrong" if self.framing else ""
            found = f"{self.mismatches} of {self.elements} elements differ"
            return f"{found}; first: {self.divergence}{framing}"
        return self.timing_fault


def compare(case: Case, outcome: Outcome, lanes: int) -> Comparison:
    """Compare every element that came, its framing, and every row's cycles if they are known."""
    total, came = case.expected.size, outcome.codes.size
    expected = case.expected[:came]
    difference = np.abs(outcome.codes.astype(np.int64) - expected.astype(np.int64))
    wrong = np.ones(total, dtype=bool)
    wrong[:came] = (difference != 0) | ~outcome.framed
    divergence, framing = None, False
    if wrong.any():
        at = int(wrong.argmax())
        ends = np.cumsum(case.received)
        row = int(np.searchsorted(ends, at, side="right"))
        column = at - int(ends[row] - case.received[row])
        beats = -(-case.received // lanes)
        beat = int(beats[:row].sum()) + column // lanes
        cycles = outcome.beat_cycles
        cycle = int(cycles[beat]) if beat < cycles.size else int(cycles[-1]) if cycles.size else 0
        rtl = int(outcome.codes[at]) if at < came else None
        framing = at < came and not difference[at]
        divergence = Divergence(row, column, cycle, int(case.expected[at]), rtl)
    return Comparison(
        elements=total,
        mismatches=int(wrong.sum()),
        max_difference=int(difference.max()) if came else 0,
        divergence=divergence,
        timing_fault=_timing_fault(case, outcome),
        framing=framing,
    )


def _timing_fault(case: Case, outcome: Outcome) -> str | None:
    if case.must_refuse and not outcome.stall_in_cycles:
        return "the input was never refused, though more was sent than the unit can hold"
    if case.timing is None or np.array_equal(case.timing, outcome.timing):
        return None
    rows = min(len(case.timing), len(outcome.timing))
    wrong = (case.timing[:rows] != outcome.timing[:rows]).any(axis=1)
    row = int(wrong.argmax()) if wrong.any() else rows
    told = case.timing[row].tolist() if row < len(case.timing) else None
    seen = outcome.timing[row].tolist() if row < len(outcome.timing) else None
    return f"row {row}: (first in, last in, first out, last out) must be {told}, not {seen}"

# SPDX-License-Identifier: Apache-2.0
"""Cycle model of a row unit: exact, and asserted against the RTL cycle by cycle.

A row unit reads a row of ``ceil(N / lanes)`` beats, waits for a statistic of the whole row, reads
the row again from a buffer, and so on; every phase takes one beat a cycle and different rows are
in different phases at the same time. A unit without such a statistic (a requantiser, a table) is a
row unit of one phase: no wait, and a latency that no row's length changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from golden.fixedpoint import integer

__all__ = [
    "OUTPUT_DEPTH",
    "QUEUE_DEPTH",
    "RowPipeline",
    "RowTiming",
    "holding",
    "stream_pipeline",
    "tree_levels",
]

QUEUE_DEPTH = 32
"""Rows that have arrived and are not yet read for the last time; it binds only where dozens of rows of
a few beats follow a row of very many."""
OUTPUT_DEPTH = 16
"""Beats of a unit's output queue: more than the cycles from the last read of a beat to its transfer."""


def tree_levels(lanes: int) -> int:
    """Levels of a binary tree over ``lanes`` inputs: ceil(log2(lanes))."""
    return (integer(lanes, "Lanes", 1, 32) - 1).bit_length()


@dataclass(frozen=True)
class RowTiming:
    """Cycle numbers of one row: first and last beat accepted, first and last beat delivered."""

    first_in: int
    last_in: int
    first_out: int
    last_out: int


@dataclass(frozen=True)
class RowPipeline:
    """Timing of a row unit whose output is always accepted and whose input is always offered.

    waits: for each phase after the first, cycles from the last beat of the phase before it (as
    accepted or read) to the first read of the phase; empty where a row is read once.  drain: cycles
    from the last phase's read of a beat (its arrival, where there is one phase) to that beat on the
    output.  max_beats: of the longest row that a buffer holds, 0 where there is none.
    """

    lanes: int
    waits: tuple[int, ...]
    drain: int
    max_beats: int

    @property
    def slack(self) -> int:
        """Beats that a row buffer must hold beyond the longest row so as never to stall the input."""
        return max(self.waits, default=-1) + 1

    def beats(self, length: int) -> int:
        """Beats of a row of ``length`` elements: the initiation interval, ceil(length / lanes)."""
        return -(-length // self.lanes)

    def latency(self, length: int) -> int:
        """Cycles from the first beat of a lone row accepted to its first beat delivered."""
        return len(self.waits) * (self.beats(length) - 1) + sum(self.waits) + self.drain

    def schedule(self, lengths: Sequence[int], start: int = 0) -> list[RowTiming]:
        """Timing of rows of these lengths, one after the other, the first beat at cycle ``start``."""
        rows: list[RowTiming] = []
        accepted, busy = start, [start] * len(self.waits)
        for index, length in enumerate(lengths):
            beats = self.beats(length)
            first = accepted
            if self.waits and index >= QUEUE_DEPTH:
                first = max(first, rows[index - QUEUE_DEPTH].last_out - self.drain + 2)
            last = first + beats - 1
            accepted = last + 1
            begin, done = first, last
            for phase, wait in enumerate(self.waits):
                begin = max(done + wait, busy[phase])
                done = begin + beats - 1
                busy[phase] = done + 1
            rows.append(RowTiming(first, last, begin + self.drain, done + self.drain))
        return rows


def stream_pipeline(lanes: int, stages: int) -> RowPipeline:
    """Cycle model of a unit that reads each row once, through ``stages`` registers.

    A beat that is taken in cycle t is in the last of them in t + stages, from there it is written to the
    output queue, and is on the output a cycle later: as in every unit, so that back-pressure needs no wire
    through the stages.
    """
    return RowPipeline(
        lanes=integer(lanes, "Lanes", 1, 32), waits=(), drain=stages + 1, max_beats=0
    )


def holding(stages: int) -> int:
    """Cycles behind a beat in which such a unit accepts no parameter for the bank that the beat uses.

    The last register but one is the last that looks at a scalar, and what is accepted is there two cycles
    later; tables are read with the beat.
    """
    return max(stages - 3, 0)

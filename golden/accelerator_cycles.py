# SPDX-License-Identifier: Apache-2.0
"""Cycle model of the accelerator: when each instruction of a program works, without simulating anything.

It walks through the program as the sequencer does (``docs/accelerator.md``), an instruction, a tile and a
pass at a time; each duration below is one of the hardware's, in cycles. The stream is a FIFO that the bus
fills by ``bandwidth`` words a cycle from ``latency`` cycles after the start on. A memory that answers at
random is not modelled.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from golden.accelerator import AcceleratorSpec
from golden.cycles import RowPipeline
from golden.layernorm import layernorm_pipeline
from golden.matrix_cycles import MatrixArray
from golden.program import (
    INSTRUCTION_BYTES,
    PARAMETER_WORDS,
    RECORD_BYTES,
    Instruction,
    Op,
    Sink,
    Tile,
    Wait,
)
from golden.softmax import softmax_pipeline

__all__ = ["DRAIN_LATENCY", "FIFO_WORDS", "Span", "Timeline", "timeline"]

FIFO_WORDS = 512
"""Words between the bus and the sequencer."""
DRAIN_LATENCY = 15
"""Cycles from a sum to its result in memory."""
COPY = 2
"""Cycles from a pass's first address to its tile's copy, when the next one can be loaded."""
MOVER = 3
"""Cycles from an instruction about rows to its first beat at the unit."""


@dataclass(frozen=True)
class Span:
    """A unit ("array", "layernorm", "softmax", "stream") works for an instruction, from begin to end."""

    instruction: int
    unit: str
    begin: int
    end: int


@dataclass(frozen=True)
class Timeline:
    """All spans in order; the array's passes of an instruction are one span.

    cycles: from start to end.  waited: those of them in which the sequencer waits for a unit.
    macs: multiplications that the array did, zeros of partial tiles included.  words: of the stream.
    """

    spans: list[Span]
    cycles: int
    waited: int
    macs: int
    words: int

    def busy(self, unit: str) -> int:
        """Cycles in which a unit has something to do, by its spans."""
        return sum(span.end - span.begin for span in self.spans if span.unit == unit)


class _Supply:
    """When words of the stream are there: ``take`` gives the cycle behind the last of some."""

    def __init__(self, latency: int, bandwidth: Fraction) -> None:
        step = Fraction(bandwidth.denominator, bandwidth.numerator)
        self._ready, self._step = Fraction(latency), step
        self._taken: list[tuple[int, int]] = []
        self._oldest = 0
        self.words = 0

    def take(self, now: int, count: int) -> int:
        """The cycle after ``count`` words have been taken, one a cycle from ``now`` on at the earliest."""
        if not count:
            return now
        self.words += count
        # The bus has filled the FIFO as far as there was room: room came with words taken long before.
        while self._oldest < len(self._taken) - 1 and (
            self._taken[self._oldest + 1][0] <= self.words - FIFO_WORDS
        ):
            self._oldest += 1
        if self._taken and self._taken[self._oldest][0] <= self.words - FIFO_WORDS:
            self._ready = max(self._ready, Fraction(self._taken[self._oldest][1]))
        self._ready += self._step * count
        end = max(now + count, -(-self._ready.numerator // self._ready.denominator))
        self._taken.append((self.words, end))
        return end


class _Machine:
    """Units and when they are free, in cycles."""

    def __init__(self, spec: AcceleratorSpec, supply: _Supply) -> None:
        self.spec, self.supply = spec, supply
        self.size = spec.size
        self.idle = {Wait.ARRAY: 0, Wait.LAYERNORM: 0, Wait.SOFTMAX: 0}
        self.latency = 1 + MatrixArray(rows=self.size, columns=self.size).latency
        self.pass_free = self.tile_free = self.block_free = 0
        self.rows: dict[Op, tuple[Wait, RowPipeline]] = {
            Op.LAYERNORM: (Wait.LAYERNORM, layernorm_pipeline(spec.layernorm, self.size)),
            Op.SOFTMAX: (Wait.SOFTMAX, softmax_pipeline(spec.softmax, self.size)),
        }
        self.macs = self.waited = 0

    def _when(self, now: int, free: int) -> int:
        """When a unit is free that the sequencer waits for from ``now`` on."""
        self.waited += max(0, free - now)
        return max(now, free)

    def fetched(self, now: int) -> int:
        """An instruction has come."""
        return self.supply.take(now, INSTRUCTION_BYTES // self.size)

    def issued(self, now: int, step: Instruction) -> int:
        """The cycle in which an instruction is handed over: the units that it waits for are idle."""
        units = [unit for unit in self.idle if step.wait & unit]
        if step.op in self.rows:
            units.append(self.rows[step.op][0])
        now = self._when(now, max((self.idle[unit] for unit in units), default=0))
        return max(now, *self.idle.values()) if step.op is Op.END else now

    def execute(self, now: int, step: Instruction) -> tuple[int, str, int, int]:
        """(when the sequencer goes on, unit at work, from, to) of an instruction handed over at ``now``."""
        if step.op is Op.LOAD:
            end = self.loaded(now + 1, step)
            return end, "stream", now, end
        if step.op is Op.WRITE:
            end = self.written(now + 1, step)
            return end, "stream", now, end
        if step.op is Op.MULTIPLY:
            end, first, last = self.multiplied(now + 1, step)
            return end, "array", first, last
        if step.op in self.rows:
            return now + 1, step.op.name.lower(), *self.moved(now, step)
        return now + 1, "", now, now

    def loaded(self, now: int, step: Instruction) -> int:
        """LOAD: words of memory, and a cycle to see that none is left."""
        wide = step["sink"] == Sink.STREAM and self.spec.stream_bits > 8
        return self.supply.take(now, step["count"] << wide) + 1

    def written(self, now: int, step: Instruction) -> int:
        """WRITE: a record a cycle, unless it comes in two words; and a cycle to see that none is left."""
        words = -(-step["count"] * RECORD_BYTES // self.size)
        return max(self.supply.take(now, words), now + step["count"]) + 1

    def moved(self, now: int, step: Instruction) -> tuple[int, int]:
        """Rows: (first cycle, cycle in which the unit is idle again)."""
        unit, pipeline = self.rows[step.op]
        length = (step["depth"] - 1) * self.size + step["last_lanes"]
        rows = pipeline.schedule([length] * step["tokens"])
        self.idle[unit] = now + MOVER + rows[-1].last_out + 1
        return now + 1, self.idle[unit]

    def multiplied(self, now: int, step: Instruction) -> tuple[int, int, int]:
        """Products: (cycle behind the last pass taken, first address, last result)."""
        tokens, begin = step["tokens"], -1
        from_memory = step["tile"] != Tile.STREAM
        for _ in range(step["blocks"]):
            now = self.supply.take(self._when(now, self.block_free), PARAMETER_WORDS)
            for k in range(step["depth"]):
                now = self._when(now, self.tile_free)
                now = now + self.size + 1 if from_memory else self.supply.take(now, self.size)
                now = self._when(now, self.pass_free)
                begin = now if begin < 0 else begin
                self.pass_free = now + tokens
                self.tile_free = now + COPY
                if k + 1 == step["depth"]:
                    self.block_free = now + self.latency + 1
                now += 1
        last = self.pass_free - 1 + self.latency + DRAIN_LATENCY
        self.idle[Wait.ARRAY] = last + 1
        self.macs += step["blocks"] * step["depth"] * tokens * self.size**2
        return now, begin, last + 1


def timeline(
    program: Iterable[Instruction],
    spec: AcceleratorSpec,
    image_words: int,
    *,
    latency: int = 16,
    bandwidth: Fraction | int = 1,
) -> Timeline:
    """When each instruction of a program works. ``latency``: cycles from the start to the first word;
    ``bandwidth``: words of the stream that the bus brings in a cycle, above 0 and at most 1.
    """
    if not 0 < bandwidth <= 1:
        raise ValueError(f"Bandwidth must be above 0 and at most 1, not {bandwidth!r}")
    machine = _Machine(spec, _Supply(latency, Fraction(bandwidth)))
    now = machine.supply.take(0, image_words) + 1
    spans = [Span(-1, "stream", 0, now)]
    for index, step in enumerate(program):
        now = machine.issued(machine.fetched(now), step)
        now, unit, begin, end = machine.execute(now, step)
        if unit:
            spans.append(Span(index, unit, begin, end))
    return Timeline(spans, now, machine.waited, machine.macs, machine.supply.words)

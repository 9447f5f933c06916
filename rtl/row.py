# SPDX-License-Identifier: Apache-2.0
"""Row storage: how a unit reads a row a second time once a statistic of the whole row is known.

Every row unit is a chain of phases that each take one beat a cycle. Between two phases stands a
:class:`RowStore`: a ring of beats, written as they come, and a queue of row descriptors, written
when a row's statistic is ready. One ring serves rows of any length without a bubble, because the
reader frees a beat for each that the writer adds; two banks of a whole row would be twice as large
and would still stall on mixed lengths.

No stage of a phase can stall. A beat is taken only if its place at the far end is already free
(*credit*), so back-pressure needs no wire through the pipeline.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Mux, Shape, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from golden.cycles import OUTPUT_DEPTH, QUEUE_DEPTH

__all__ = ["OUTPUT_DEPTH", "PARAM_WRITE", "Credits", "OutputQueue", "RowStore", "delayed", "popcount", "tree"]

PARAM_WRITE = data.StructLayout({"address": 14, "data": 32})
"""One write of a unit's parameter port: word address and value."""


def delayed(m: Module, value: Any, cycles: int, name: str) -> Any:
    """``value`` as it was ``cycles`` cycles ago, through registers ``<name>_1``, ``<name>_2``, ..."""
    for cycle in range(1, cycles + 1):
        register = Signal.like(value, name=f"{name}_{cycle}")
        m.d.sync += register.eq(value)
        value = register
    return value


def tree(m: Module, values: list[Any], node: Any, name: str) -> Any:
    """Reduce ``values`` pairwise with ``node(a, b)``, a register after each level.

    A value without a partner is delayed, so that the latency is ``tree_levels(len(values))``.
    """
    level = 0
    while len(values) > 1:
        results = []
        for index in range(0, len(values), 2):
            pair = values[index : index + 2]
            result = Value.cast(node(*pair) if len(pair) == 2 else pair[0])
            register = Signal(result.shape(), name=f"{name}_{level}_{index // 2}")
            m.d.sync += register.eq(result)
            results.append(register)
        values, level = results, level + 1
    return values[0]


def popcount(bits: Value) -> Value:
    """Number of ones in ``bits``."""
    return sum((bit for bit in bits), start=Value.cast(0))


class Credits(wiring.Component):
    """Count of free places: ``room`` while one is free, ``take`` uses one, ``give`` returns one.

    Members: ``room : Out(1)``, ``take : In(1)`` (only while ``room``), ``give : In(1)``.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        super().__init__({"room": Out(1), "take": In(1), "give": In(1)})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        used = Signal(range(self._count + 1))
        with m.If(self.take & ~self.give):
            m.d.sync += used.eq(used + 1)
        with m.Elif(self.give & ~self.take):
            m.d.sync += used.eq(used - 1)
        m.d.comb += self.room.eq(used != self._count)
        return m


class OutputQueue(wiring.Component):
    """The end of a unit: a short queue whose places are promised to beats under way.

    A beat taken now (``take``, only while ``room``) is written some fixed number of cycles later
    (``write``, ``payload``) and shows on ``o`` one cycle after that. ``depth`` must exceed the
    cycles from take to transfer for the unit to run at one beat a cycle.

    Members: ``room : Out(1)``, ``take : In(1)``, ``write : In(1)``, ``payload : In(layout)``,
    ``o : Out(stream.Signature(layout))``.
    """

    def __init__(self, layout: data.StructLayout, depth: int) -> None:
        self._layout, self._depth = layout, depth
        super().__init__(
            {
                "room": Out(1),
                "take": In(1),
                "write": In(1),
                "payload": In(layout),
                "o": Out(stream.Signature(layout)),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.queue = queue = SyncFIFO(width=self._layout.size, depth=self._depth)
        m.submodules.credits = credits = Credits(self._depth)
        m.d.comb += [
            queue.w_data.eq(self.payload.as_value()),
            queue.w_en.eq(self.write),
            self.o.payload.as_value().eq(queue.r_data),
            self.o.valid.eq(queue.r_rdy),
            queue.r_en.eq(self.o.ready),
            self.room.eq(credits.room),
            credits.take.eq(self.take),
            credits.give.eq(self.o.valid & self.o.ready),
        ]
        return m


class RowStore(wiring.Component):
    """Ring of beats and queue of row descriptors between two phases.

    Writing phase: ``take`` with ``take_last`` claims a place (only while ``room``); ``write`` stores
    ``beat_in`` later, in order; ``count`` marks a beat at the stage where the row's statistic is
    complete, and with ``count_last`` the descriptor ``row_in`` is queued.

    Reading phase: from the cycle after that, ``step`` goes high for each beat of the row while
    ``go``, with ``step_last`` for its last; a cycle later ``valid``, ``first``, ``last``,
    ``beat_out`` and ``row_out`` describe it. Rows follow each other without a gap.

    Parameters: layouts of a beat and of a descriptor, ``max_beats`` of a row, ``slack`` beats that
    the ring holds beyond a whole row (the phase's latency, so that it never fills by itself).
    """

    def __init__(
        self,
        beat: data.StructLayout,
        row: data.StructLayout,
        *,
        max_beats: int,
        slack: int,
    ) -> None:
        self._beat, self._row, self._max_beats = beat, row, max_beats
        self._depth = 1 << (max_beats + slack - 1).bit_length()
        super().__init__(
            {
                "room": Out(1),
                "take": In(1),
                "take_last": In(1),
                "write": In(1),
                "beat_in": In(beat),
                "count": In(1),
                "count_last": In(1),
                "row_in": In(row),
                "go": In(1),
                "step": Out(1),
                "step_last": Out(1),
                "valid": Out(1),
                "first": Out(1),
                "last": Out(1),
                "beat_out": Out(beat),
                "row_out": Out(row),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.beats = beats = Credits(self._depth)
        m.submodules.rows = rows = Credits(QUEUE_DEPTH)
        m.d.comb += [
            self.room.eq(beats.room & rows.room),
            beats.take.eq(self.take),
            rows.take.eq(self.take & self.take_last),
            beats.give.eq(self.step),
        ]
        head, pop = self._descriptors(m)
        m.d.comb += rows.give.eq(pop)

        # `left` counts the beats still to be read after this one.
        busy = Signal()
        left = Signal(range(max(self._max_beats, 2)))
        m.d.comb += [
            self.step.eq((busy | head.valid) & self.go),
            pop.eq(self.step & ~busy),
            self.step_last.eq(Mux(busy, left == 1, head.payload.more == 0)),
        ]
        with m.If(self.step):
            m.d.sync += [
                left.eq(Mux(busy, left - 1, head.payload.more)),
                busy.eq(~self.step_last),
            ]
        with m.If(pop):
            m.d.sync += self.row_out.eq(head.payload.row)
        m.d.sync += [self.valid.eq(self.step), self.first.eq(pop), self.last.eq(self.step_last)]
        self._ring(m)
        return m

    def _descriptors(self, m: Module) -> tuple[Any, Signal]:
        """The queue of descriptors, each with the row's beats less one; its head and its pop."""
        more = Signal(range(max(self._max_beats, 2)))
        with m.If(self.count):
            m.d.sync += more.eq(Mux(self.count_last, 0, more + 1))
        layout = data.StructLayout({"row": self._row, "more": Shape.cast(more.shape())})
        m.submodules.queue = queue = SyncFIFO(width=layout.size, depth=QUEUE_DEPTH)
        entry = Signal(layout)
        head = stream.Signature(layout).create(path=("head",))
        pop = Signal()
        m.d.comb += [
            entry.row.eq(self.row_in),
            entry.more.eq(more),
            queue.w_data.eq(entry.as_value()),
            queue.w_en.eq(self.count & self.count_last),
            head.payload.as_value().eq(queue.r_data),
            head.valid.eq(queue.r_rdy),
            queue.r_en.eq(pop),
        ]
        return head, pop

    def _ring(self, m: Module) -> None:
        """The beats: one write port, one read port, as a block RAM has them."""
        m.submodules.ring = ring = Memory(shape=self._beat, depth=self._depth, init=[])
        writer, reader = ring.write_port(), ring.read_port()
        m.d.comb += [
            writer.en.eq(self.write),
            writer.data.eq(self.beat_in),
            reader.en.eq(self.step),
            self.beat_out.eq(reader.data),
        ]
        with m.If(self.write):
            m.d.sync += writer.addr.eq(writer.addr + 1)
        with m.If(self.step):
            m.d.sync += reader.addr.eq(reader.addr + 1)

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

from amaranth.hdl import Module, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from golden.cycles import OUTPUT_DEPTH, QUEUE_DEPTH

__all__ = [
    "OUTPUT_DEPTH",
    "PARAM_WRITE",
    "Credits",
    "OutputQueue",
    "Queue",
    "RowStore",
    "delayed",
    "popcount",
    "row_places",
    "tree",
]

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
    """Free ones of ``count`` places: ``room`` while one is free, ``take`` uses one, ``give`` returns one.

    ``count`` is a power of two; ``free``: whether the places are free at first. (The items of a queue are
    such places: writing one gives, reading one takes, and there is none at first.)

    ``room`` is a register with no logic behind it. It falls when the last place is taken, which two
    counters tell: they only go up, and equality is cheaper than a difference that goes up and down.

    Members: ``room : Out(1)``, ``take : In(1)`` (only while ``room``), ``give : In(1)``.
    """

    def __init__(self, count: int, *, free: bool = True) -> None:
        self._count = count
        super().__init__({"room": Out(1, init=free), "take": In(1), "give": In(1)})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        given = Signal(range(self._count))
        next_taken = Signal(range(self._count), init=1)  # one ahead of what has been taken
        # Gates and not a choice, which would become a clock enable: ``take`` is late, and this is one LUT.
        m.d.sync += self.room.eq(self.give | (self.room & ~(self.take & (next_taken == given))))
        with m.If(self.give):
            m.d.sync += given.eq(given + 1)
        with m.If(self.take):
            m.d.sync += next_taken.eq(next_taken + 1)
        return m


def row_places() -> Credits:
    """A unit's count of rows: taken with the last beat that arrives, given back with the last that is read
    for the last time. Each of its stores then has a descriptor for every row.
    """
    return Credits(QUEUE_DEPTH)


class Queue(wiring.Component):
    """Short queue in LUT RAM that shows its oldest entry; ``depth`` is a power of two.

    There is no full: whoever writes has promised itself the place (:class:`Credits`).

    Members: ``write : In(1)``, ``entry : In(layout)``, ``valid : Out(1)``, ``head : Out(layout)``,
    ``pop : In(1)`` (only while ``valid``).
    """

    def __init__(self, layout: Any, depth: int) -> None:
        self._layout, self._depth = layout, depth
        ports = {"write": In(1), "entry": In(layout), "valid": Out(1), "head": Out(layout)}
        super().__init__({**ports, "pop": In(1)})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.storage = storage = Memory(shape=self._layout, depth=self._depth, init=[])
        m.submodules.items = items = Credits(self._depth, free=False)
        writer, reader = storage.write_port(), storage.read_port(domain="comb")
        m.d.comb += [
            items.give.eq(self.write),
            items.take.eq(self.pop),
            self.valid.eq(items.room),
            writer.en.eq(self.write),
            writer.data.eq(self.entry),
            self.head.eq(reader.data),
        ]
        with m.If(self.write):
            m.d.sync += writer.addr.eq(writer.addr + 1)
        with m.If(self.pop):
            m.d.sync += reader.addr.eq(reader.addr + 1)
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
        m.submodules.queue = queue = Queue(self._layout, self._depth)
        m.submodules.credits = credits = Credits(self._depth)
        transfer = self.o.valid & self.o.ready
        m.d.comb += [
            queue.write.eq(self.write),
            queue.entry.eq(self.payload),
            queue.pop.eq(transfer),
            self.o.payload.eq(queue.head),
            self.o.valid.eq(queue.valid),
            self.room.eq(credits.room),
            credits.take.eq(self.take),
            credits.give.eq(transfer),
        ]
        return m


class RowStore(wiring.Component):
    """Ring of beats and queue of row descriptors between two phases.

    Writing phase: ``take`` claims a place (only while ``room``); ``write`` stores ``beat_in`` later, in
    order; ``count`` marks a beat at the stage where the row's statistic is complete, and with
    ``count_last`` the descriptor ``row_in`` is queued: its place is one of :func:`row_places`.

    Reading phase: from the cycle after that, ``step`` goes high for each beat of the row while ``go``,
    ``done`` with the last of them; a cycle later ``valid``, ``first``, ``last``, ``beat_out`` and
    ``row_out`` describe it. Rows follow each other without a gap.

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
                "write": In(1),
                "beat_in": In(beat),
                "count": In(1),
                "count_last": In(1),
                "row_in": In(row),
                "go": In(1),
                "step": Out(1),
                "done": Out(1),
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
        m.d.comb += [
            self.room.eq(beats.room),
            beats.take.eq(self.take),
            beats.give.eq(self.step),
        ]
        end = Signal(self._depth.bit_length() - 1)
        layout = data.StructLayout({"row": self._row, "end": end.shape()})
        m.submodules.queue = queue = Queue(layout, QUEUE_DEPTH)
        # Beats are counted in the order of their places: the count is where a row ends.
        with m.If(self.count):
            m.d.sync += end.eq(end + 1)
        opening, closing, place = Signal(init=1), Signal(), self._ring(m)
        m.d.comb += [
            queue.write.eq(self.count & self.count_last),
            queue.entry.row.eq(self.row_in),
            queue.entry.end.eq(end),
            self.step.eq(queue.valid & self.go),
            closing.eq(place == queue.head.end),
            self.done.eq(self.step & closing),
            queue.pop.eq(self.done),
        ]
        with m.If(self.step):
            m.d.sync += opening.eq(closing)
        m.d.sync += [
            self.row_out.eq(queue.head.row),
            self.valid.eq(self.step),
            self.first.eq(opening),
            self.last.eq(closing),
        ]
        return m

    def _ring(self, m: Module) -> Signal:
        """The beats: one write port, one read port, as a block RAM has them; the place read next."""
        attrs = {"no_rw_check": 1}  # what is being written is never read
        m.submodules.ring = ring = Memory(
            shape=self._beat, depth=self._depth, init=[], attrs=attrs
        )
        writer, reader = ring.write_port(), ring.read_port(domain="comb")
        stored = Signal(self._beat, reset_less=True)
        m.d.comb += [
            writer.en.eq(self.write),
            writer.data.eq(self.beat_in),
            self.beat_out.eq(stored),
        ]
        with m.If(self.write):
            m.d.sync += writer.addr.eq(writer.addr + 1)
        with m.If(self.step):
            m.d.sync += [reader.addr.eq(reader.addr + 1), stored.eq(reader.data)]
        place: Signal = reader.addr
        return place

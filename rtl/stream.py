# SPDX-License-Identifier: Apache-2.0
"""The frame of a unit that reads each row once: a beat a cycle through a fixed number of registers.

What a subclass adds are its parameters and what one lane computes. No stage can stall: a beat is taken
only if its place in the output queue is free, as in the units that store rows (:mod:`rtl.row`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, Shape, Signal, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from golden.cycles import OUTPUT_DEPTH, RowPipeline, holding
from golden.words import TABLE_WORDS
from rtl.arith import carried
from rtl.row import PARAM_WRITE, OutputQueue, delayed

__all__ = ["Banks", "Parameter", "StreamUnit", "Turns"]


@dataclass(frozen=True)
class Parameter:
    """A scalar (no ``entries``) or a table of the parameter port: its first word, its shape, its meaning."""

    name: str
    word: int
    shape: Shape
    text: str
    entries: int = 0


class StreamUnit(wiring.Component):
    """One phase: lanes codes out for lanes elements in, ``pipeline.drain`` cycles later.

    Parameters
    ----------
    spec : Any
        The operator's spec.
    lanes : int
        Elements per beat, 1 to 32. No result depends on it.
    pipeline : RowPipeline
        Exact cycle model: a beat a cycle, each after the same latency.
    parameters : Sequence[Parameter]
        What the port writes; the one called ``commit`` ends a set.
    field, element, code_bits : str, Any, int
        Name and shape of an element of the input; width of a signed code of the output.

    Members
    -------
    i : In(stream.Signature(...))
        ``field``: lanes elements; ``keep``: a prefix of ones, all ones but in the last beat of a row;
        ``last``: ends a row. Rows with parameters per channel have up to 4096 elements.
    o : Out(stream.Signature(...))
        ``code``: lanes signed codes; ``keep`` and ``last`` as they came in.
    params : In(stream.Signature(PARAM_WRITE))
        The operator's ``words``. Writes fill the bank that no row uses (the port waits for it);
        ``commit`` makes it current for rows whose first beat comes later.
    """

    def __init__(
        self,
        spec: Any,
        *,
        lanes: int,
        pipeline: RowPipeline,
        parameters: Sequence[Parameter],
        field: str,
        element: Any,
        code_bits: int,
    ) -> None:
        self._spec, self._lanes, self._pipeline = spec, lanes, pipeline
        self._parameters, self._field = tuple(parameters), field
        code = data.ArrayLayout(signed(code_bits), lanes)
        beat_in = {field: data.ArrayLayout(element, lanes), "keep": lanes, "last": 1}
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout(beat_in))),
                "o": Out(
                    stream.Signature(data.StructLayout({"code": code, "keep": lanes, "last": 1}))
                ),
                "params": In(stream.Signature(PARAM_WRITE)),
            }
        )

    @property
    def spec(self) -> Any:
        """What is fixed when the unit is built."""
        return self._spec

    @property
    def lanes(self) -> int:
        """Elements per beat."""
        return self._lanes

    @property
    def pipeline(self) -> RowPipeline:
        """Exact cycle model."""
        return self._pipeline

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """What the parameter port writes."""
        return self._parameters

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        stages, beat, taken = self._pipeline.drain - 1, self.i.payload, Signal()
        m.submodules.output = output = OutputQueue(
            self.o.signature.members["payload"].shape, OUTPUT_DEPTH
        )
        m.d.comb += [
            self.i.ready.eq(output.room),
            taken.eq(self.i.valid & self.i.ready),
            output.take.eq(taken),
            output.write.eq(delayed(m, taken, stages, "taken")),
            output.payload.keep.eq(carried(m, beat.keep, stages, "keep")),
            output.payload.last.eq(carried(m, beat.last, stages, "last")),
        ]
        banks = Banks(m, self.params, self._parameters, self._lanes, stages, taken, beat.last)
        for lane, code in enumerate(self._codes(m, banks)):
            m.d.comb += output.payload.code[lane].eq(code)
        wiring.connect(m, output.o, wiring.flipped(self.o))
        return m

    def _codes(self, m: Module, banks: Banks) -> list[Value]:
        """Each lane's code in the last of the registers."""
        raise NotImplementedError


class Turns:
    """Two banks that take turns: one for arriving rows, the other (``idle``) being written.

    A row keeps the bank that was current at its first beat (``bank``, beside the beat). No stage can stall,
    so the idle one is ``free`` when no row is in the midst of arriving with it and none of its beats came
    within ``held`` cycles. ``opening``: the next beat is the first of a row.
    """

    def __init__(self, m: Module, held: int, taken: Value, last: Value) -> None:
        self._m, self._current = m, Signal(name="current_bank")
        self.opening, arriving = Signal(init=1, name="opening"), Signal(name="arriving_bank")
        self.bank, self.idle = Mux(self.opening, self._current, arriving), ~self._current
        with m.If(taken):
            m.d.sync += [self.opening.eq(last), arriving.eq(self.bank)]
        free = []
        for index in range(2):
            free.append(self.opening | (arriving != index))
            if held:
                passing = Signal(held, name=f"passing_{index}")
                m.d.sync += passing.eq(Cat(taken & (self.bank == index), passing))
                free[index] &= ~passing.any()
        self.free = Array(free)[self.idle]

    def switch(self, when: Value) -> None:
        """Rows whose first beat comes later use what is idle now."""
        with self._m.If(when):
            self._m.d.sync += self._current.eq(self.idle)


class Banks:
    """Two banks of parameters, of which a row keeps the one that was current at its first beat."""

    def __init__(
        self,
        m: Module,
        port: Any,
        parameters: Sequence[Parameter],
        lanes: int,
        stages: int,
        taken: Value,
        last: Value,
    ) -> None:
        self._m, self._lanes = m, lanes
        self._parameters = {parameter.name: parameter for parameter in parameters}
        turns = Turns(m, holding(stages), taken, last)
        beat = Signal(range(max(-(-TABLE_WORDS // lanes), 2)))
        self._beat, self._bank = beat, [turns.bank]
        for stage in range(1, stages):
            self._bank.append(carried(m, self._bank[-1], 1, f"bank_at_{stage}"))
        with m.If(taken):
            m.d.sync += beat.eq(Mux(last, 0, beat + 1))
        m.d.comb += port.ready.eq(turns.free)
        written, commit = port.valid & port.ready, self._parameters["commit"].word
        turns.switch(written & (port.payload.address == commit))
        self._writing = delayed(m, written, 1, "written")
        self._word = carried(m, port.payload, 1, "word")
        self._into = carried(m, turns.idle, 1, "written_bank")
        # channel div lanes; for lanes that are no power of two by an exact reciprocal.
        channel = port.payload.address[: TABLE_WORDS.bit_length() - 1]
        quotient = (channel * -(-(1 << 17) // lanes)) >> 17
        self._row, self._lane = Signal.like(beat, name="row"), Signal(range(max(lanes, 2)))
        m.d.sync += [self._row.eq(quotient), self._lane.eq(channel - quotient * lanes)]

    def scalar(self, name: str, stage: int) -> Value:
        """A scalar of the row whose beat is in register ``stage``."""
        parameter, m, values = self._parameters[name], self._m, []
        for index in range(2):
            value = Signal(parameter.shape, name=f"{name}_{index}")
            hit = self._writing & (self._word.address == parameter.word) & (self._into == index)
            with m.If(hit):
                m.d.sync += value.eq(self._word.data)
            values.append(value)
        return Mux(self._bank[stage], values[1], values[0])

    def per_channel(self, name: str) -> list[Value]:
        """A table's entry for each lane's channel, in register 2: block RAMs answer late in the cycle."""
        entries = []
        for lane in range(self._lanes):
            address = Cat(self._beat, self._bank[0])
            entries.append(
                self._memory(name, lane, self._row, address, self._lane == lane)
            )
        return entries

    def per_code(self, name: str, codes: Sequence[Value]) -> list[Value]:
        """A table's entry for each lane's code, in register 2; each lane has the whole table."""
        bits = len(codes[0])
        return [
            self._memory(name, lane, self._word.address[:bits], Cat(code, self._bank[0]), 1)
            for lane, code in enumerate(codes)
        ]

    def _memory(self, name: str, lane: int, place: Value, address: Value, chosen: Any) -> Value:
        """A lane's memory of a table, both banks of it."""
        m, parameter = self._m, self._parameters[name]
        deep = 1 << len(address)
        # Deep and narrow ones would otherwise end up in LUTs, at several LUTs a bit.
        attrs = {"ram_style": "block"} if deep > 128 else {}
        memory = Memory(shape=unsigned(parameter.shape.width), depth=deep, init=[], attrs=attrs)
        m.submodules[f"{name}_memory_{lane}"] = memory
        writer, reader = memory.write_port(), memory.read_port()
        table = self._word.address[TABLE_WORDS.bit_length() - 1 :] == parameter.word // TABLE_WORDS
        m.d.comb += [
            writer.en.eq(self._writing & table & chosen),
            writer.addr.eq(Cat(place, self._into)),
            writer.data.eq(self._word.data),
            reader.addr.eq(address),
        ]
        entry = carried(m, reader.data, 1, f"{name}_{lane}")
        return entry.as_signed() if parameter.shape.signed else entry

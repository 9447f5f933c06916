# SPDX-License-Identifier: Apache-2.0
"""Rows from one memory through a row unit to another memory.

Row t, for t below ``tokens``, is the words ``source_base + k * stride + t``, k below ``depth``; what the unit
gives goes to ``sink_base + k * sink_stride + t``. The array works meanwhile: nothing here is shared
with it but the memories.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from golden.accelerator import AcceleratorSpec
from golden.program import ROW_MEMORIES, Op
from rtl.arith import carried
from rtl.row import PARAM_WRITE, delayed

__all__ = ["RowMover", "rows_layout"]



def rows_layout(spec: AcceleratorSpec, op: Op) -> data.StructLayout:
    """The operands of an instruction about rows, as wide as its memories and the longest row need.

    Of a count that is a power of two the highest bit is left out: counted down, 0 is as good.
    """
    source, sink = (spec.address_bits(name) for name in ROW_MEMORIES[op])
    longest = spec.layernorm.max_channels if op is Op.LAYERNORM else spec.softmax.max_tokens
    return data.StructLayout(
        {
            "last_lanes": range(spec.size + 1),
            "tokens": min(source, sink),
            "depth": range(max(longest // spec.size, 2)),
            "source_base": source,
            "sink_base": sink,
            "stride": source,
            "sink_stride": sink,
        }
    )


class RowMover(wiring.Component):
    """A row unit with its reader and its writer.

    Parameters
    ----------
    rows : amaranth.lib.data.StructLayout
        The operands of an instruction: :func:`rows_layout`.
    unit : rtl.softmax.Log2Softmax or rtl.layernorm.PtfLayerNorm
        Has a lane for each element of a word.
    field : str
        Name of the elements in a beat that goes in.
    fill : int or None
        What is written behind the last element of a row; None leaves what the unit gives.

    A word is read each cycle; a row of so many beats takes as many cycles. The unit takes each of them,
    because each word that it gives is taken: ``make prove`` shows it ("full rate").

    Members
    -------
    start : In(stream.Signature(rows))
        Taken when no rows are under way.
    read, write : memory ports; a word read is there in the cycle after ``en``.
    params : In(stream.Signature(PARAM_WRITE))
        The unit's.
    busy : Out(1)
        Rows are under way.
    """

    def __init__(
        self, rows: data.StructLayout, unit: Any, *, field: str, fill: int | None = None
    ) -> None:
        self._rows, self._unit, self._field, self._fill = rows, unit, field, fill
        beat_in = unit.i.signature.members["payload"].shape
        beat_out = unit.o.signature.members["payload"].shape
        self._in, self._out = beat_in[field].shape, beat_out["code"].shape
        read = {"en": Out(1), "address": Out(rows["source_base"].shape), "word": In(self._in)}
        write = {"en": Out(1), "address": Out(rows["sink_base"].shape), "word": Out(self._out)}
        super().__init__(
            {
                "start": In(stream.Signature(rows)),
                "read": Out(wiring.Signature(read)),
                "write": Out(wiring.Signature(write)),
                "params": In(stream.Signature(PARAM_WRITE)),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.unit = unit = self._unit
        wiring.connect(m, wiring.flipped(self.params), unit.params)
        rows = Signal(self._rows)
        begins = Signal()
        m.d.comb += [self.start.ready.eq(~self.busy), begins.eq(self.start.valid & ~self.busy)]
        with m.If(begins):
            m.d.sync += [rows.eq(self.start.payload), self.busy.eq(1)]
        self._reader(m, rows, begins)
        with m.If(self._writer(m, rows, begins)):
            m.d.sync += self.busy.eq(0)
        return m

    def _steps(
        self, m: Module, rows: Any, begins: Value, step: Value, ends: str, name: str
    ) -> tuple[Value, Value, Value]:
        """Walk through all words, row by row: (address, last word of a row, last of all).

        ``ends``: "source" or "sink", whose base and stride count.
        """
        base = f"{ends}_base"
        stride = rows.stride if ends == "source" else rows.sink_stride
        tokens = Signal.like(rows.tokens, name=f"{name}_tokens")  # left, as are beats
        beats = Signal.like(rows.depth, name=f"{name}_beats")
        row = Signal.like(rows[base], name=f"{name}_row")
        address = Signal.like(rows[base], name=f"{name}_address")
        last, final = Signal(name=f"{name}_last"), Signal(name=f"{name}_final")
        m.d.comb += [last.eq(beats == 1), final.eq(last & (tokens == 1))]
        with m.If(begins):
            given = self.start.payload
            m.d.sync += [tokens.eq(given.tokens), beats.eq(given.depth)]
            m.d.sync += [row.eq(given[base]), address.eq(given[base])]
        with m.Elif(step):
            m.d.sync += [beats.eq(beats - 1), address.eq(address + stride)]
            with m.If(last):
                m.d.sync += [beats.eq(rows.depth), tokens.eq(tokens - 1)]
                m.d.sync += [row.eq(row + 1), address.eq(row + 1)]
        return address, last, final

    def _reader(self, m: Module, rows: Any, begins: Value) -> None:
        """Read a word a cycle; it comes in the next, and its way from the memory takes another."""
        unit, reading = self._unit, Signal()
        address, last, final = self._steps(m, rows, begins, reading, "source", "read")
        m.d.comb += [self.read.en.eq(reading), self.read.address.eq(address)]
        with m.If(begins):
            m.d.sync += reading.eq(1)
        with m.Elif(final):
            m.d.sync += reading.eq(0)
        last = carried(m, last, 2, "arrives_last")
        m.d.comb += [
            unit.i.valid.eq(delayed(m, reading, 2, "arrives")),
            unit.i.payload[self._field].eq(carried(m, self.read.word, 1, "word")),
            unit.i.payload.last.eq(last),
            unit.i.payload.keep.eq(Mux(last, self._lanes(rows), -1)),
        ]

    def _lanes(self, rows: Any) -> Value:
        """A one for each element of a row's last beat."""
        count = self._unit.lanes
        return Cat(Const(lane) < rows.last_lanes for lane in range(count))

    def _writer(self, m: Module, rows: Any, begins: Value) -> Value:
        """Write what the unit gives; high with the last word."""
        unit, step = self._unit, Signal()
        address, _, final = self._steps(m, rows, begins, step, "sink", "write")
        m.d.comb += [
            unit.o.ready.eq(1),
            step.eq(unit.o.valid),
            self.write.en.eq(step),
            self.write.address.eq(address),
            self.write.word.eq(unit.o.payload.code),
        ]
        if self._fill is not None:
            for lane in range(unit.lanes):
                with m.If(~unit.o.payload.keep[lane]):
                    m.d.comb += self.write.word[lane].eq(self._fill)
        done = Signal()
        m.d.comb += done.eq(step & final)
        return done

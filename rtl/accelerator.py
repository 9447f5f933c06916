# SPDX-License-Identifier: Apache-2.0
"""The accelerator: a whole network from pixels to logits, as ``docs/accelerator.md`` describes it.

What is here are the memories and the wires; the work is done in :mod:`rtl.dma`, :mod:`rtl.sequencer`,
:mod:`rtl.matrix`, :mod:`rtl.drain` and the row units behind :mod:`rtl.rows`.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import (
    Cat,
    Const,
    Module,
    Mux,
    ResetInserter,
    Shape,
    Signal,
    Value,
    signed,
    unsigned,
)
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from golden.accelerator import AcceleratorSpec
from golden.program import Error, Op, Sink, Source
from rtl.arith import look_up
from rtl.control import ALIGNMENT, Control
from rtl.dma import PAUSE, BurstReader
from rtl.drain import Drain
from rtl.layernorm import PtfLayerNorm
from rtl.matrix import MatrixEngine
from rtl.rows import RowMover, rows_layout
from rtl.sequencer import Sequencer
from rtl.softmax import Log2Softmax

__all__ = ["Accelerator", "Core"]

PATIENCE = PAUSE + 1
"""Cycles without a word, and with none under way, after which a program has ended too early."""


class Core(wiring.Component):
    """Everything between the stream of words and the outputs; a reset makes it forget all but memories.

    Members
    -------
    start, image_words, stream : In
        As of :class:`rtl.sequencer.Sequencer`.
    ended, failure, stream_wait, unit_wait : Out
        Likewise.
    array_busy, layernorm_busy, softmax_busy : Out(1)
        A word goes through the array; a row unit has rows.
    outputs : memory read port of the outputs.
    """

    def __init__(self, spec: AcceleratorSpec, *, port_bits: int = 27) -> None:
        self._spec, self._port_bits = spec, port_bits
        outputs = {
            "en": In(1),
            "address": In(spec.address_bits("outputs")),
            "word": Out(data.ArrayLayout(signed(32), spec.size)),
        }
        super().__init__(
            {
                "start": In(1),
                "image_words": In(32),
                "stream": In(stream.Signature(data.ArrayLayout(8, spec.size))),
                "ended": Out(1),
                "failure": Out(Error),
                "stream_wait": Out(1),
                "unit_wait": Out(1),
                "array_busy": Out(1),
                "layernorm_busy": Out(1),
                "softmax_busy": Out(1),
                "outputs": Out(wiring.Signature(outputs)),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        spec = self._spec
        m.submodules.sequencer = sequencer = Sequencer(spec)
        m.submodules.array = array = MatrixEngine(spec, port_bits=self._port_bits)
        m.submodules.drain = drain = Drain(spec, port_bits=self._port_bits)
        norm = PtfLayerNorm(spec.layernorm, lanes=spec.size, port_bits=self._port_bits)
        rows = rows_layout(spec, Op.LAYERNORM)
        m.submodules.layernorm = layernorm = RowMover(rows, norm, field="code")
        m.submodules.softmax = softmax = RowMover(
            rows_layout(spec, Op.SOFTMAX),
            Log2Softmax(spec.softmax, lanes=spec.size),
            field="score",
            fill=spec.softmax.last_code,
        )
        m.d.comb += [sequencer.start.eq(self.start), sequencer.image_words.eq(self.image_words)]
        for name in ("ended", "failure", "stream_wait", "unit_wait"):
            m.d.comb += getattr(self, name).eq(getattr(sequencer, name))
        wiring.connect(m, wiring.flipped(self.stream), sequencer.stream)
        for source, target in (
            (sequencer.tile, array.load),
            (sequencer.pass_, array.go),
            (sequencer.block, drain.load),
            (sequencer.layernorm, layernorm.start),
            (sequencer.softmax, softmax.start),
            (sequencer.layernorm_params, layernorm.params),
            (sequencer.softmax_params, softmax.params),
            (sequencer.gelu_params, drain.table),
        ):
            wiring.connect(m, source, target)
        wiring.connect(m, array.sums, drain.sums)
        result = drain.result
        m.d.comb += [
            sequencer.idle.eq(
                Cat(
                    ~(array.busy | array.sums.valid | drain.busy | result.valid),
                    ~layernorm.busy,
                    ~softmax.busy,
                )
            ),
            array.put.valid.eq(result.valid & (result.sink == Sink.SUMS)),
            array.put.token.eq(result.token),
            array.put.acc.eq(result.y),
            self.array_busy.eq(array.read.en),
            self.layernorm_busy.eq(layernorm.busy),
            self.softmax_busy.eq(softmax.busy),
        ]
        self._memories(m, sequencer, array, drain, layernorm, softmax)
        self._probes(m, drain, layernorm, softmax)
        return m

    # ------------------------------------------------------------------------------------ memories

    def _memories(
        self, m: Module, sequencer: Any, array: Any, drain: Any, layernorm: Any, softmax: Any
    ) -> None:
        """Each memory's one writer of the moment and its reader."""
        spec, result = self._spec, drain.result

        def drained(sink: Sink) -> tuple[Value, Value, list[Value]]:
            return result.valid & (result.sink == sink), result.address, list(result.y)

        def written(port: Any) -> tuple[Value, Value, list[Value]]:
            return port.en, port.address, list(port.word)

        code = signed(8)
        features = self._memory(
            m,
            "features",
            spec.features,
            code,
            [drained(Sink.FEATURES), written(layernorm.write), written(sequencer.features)],
            array.read.en & (array.read.source == Source.FEATURES),
            array.read.address,
        )
        queries = self._memory(
            m,
            "queries",
            spec.queries,
            code,
            [drained(Sink.QUERIES)],
            array.read.en & (array.read.source == Source.QUERIES),
            array.read.address,
        )
        codes = self._memory(
            m,
            "codes",
            spec.codes,
            unsigned(spec.softmax.code_bits),
            [written(softmax.write)],
            array.read.en & (array.read.source == Source.CODES),
            array.read.address,
        )
        self._operands(m, array, features, queries, codes)
        for name, sink, port in (
            ("keys", Sink.KEYS, sequencer.keys),
            ("values", Sink.VALUES, sequencer.values),
        ):
            depth = getattr(spec, name)
            word = self._memory(m, name, depth, code, [drained(sink)], port.en, port.address)
            m.d.comb += port.word.eq(word)
        residual = self._memory(
            m,
            "stream",
            spec.stream,
            signed(spec.stream_bits),
            [drained(Sink.STREAM), written(sequencer.residual)],
            drain.stream.en | layernorm.read.en,
            Mux(drain.stream.en, drain.stream.address, layernorm.read.address),
        )
        m.d.comb += [drain.stream.word.eq(residual), layernorm.read.word.eq(residual)]
        scores = self._memory(
            m,
            "scores",
            spec.scores,
            signed(spec.softmax.score_bits),
            [drained(Sink.SCORES)],
            softmax.read.en,
            softmax.read.address,
        )
        m.d.comb += softmax.read.word.eq(scores)
        outputs = self._memory(
            m,
            "outputs",
            spec.outputs,
            signed(32),
            [drained(Sink.OUTPUTS)],
            self.outputs.en,
            self.outputs.address,
        )
        m.d.comb += self.outputs.word.eq(outputs)

    def _memory(
        self,
        m: Module,
        name: str,
        depth: int,
        element: Shape,
        writers: list[tuple[Value, Value, list[Value]]],
        read: Value,
        address: Value,
    ) -> Any:
        """A memory of words of ``size`` elements; the first writer that wants to write does.

        Returns the word read, there in the cycle after ``read``.
        """
        layout = data.ArrayLayout(element, self._spec.size)
        memory = Memory(shape=layout, depth=depth, init=[])
        m.submodules[f"{name}_memory"] = memory
        writer, reader = memory.write_port(), memory.read_port()
        m.d.comb += [reader.en.eq(read), reader.addr.eq(address)]
        for valid, place, word in reversed(writers):
            with m.If(valid):
                m.d.comb += [writer.en.eq(1), writer.addr.eq(place)]
                m.d.comb += [writer.data[lane].eq(each) for lane, each in enumerate(word)]
        return reader.data

    def _operands(self, m: Module, array: Any, features: Any, queries: Any, codes: Any) -> None:
        """The array's words: 8-bit codes as they are, softmax codes as the powers of two they mean."""
        spec, read = self._spec, array.read
        source, even, odd = Signal(2), Signal(), Signal()
        m.d.sync += [source.eq(read.source), even.eq(read.even), odd.eq(read.odd)]
        powers = [0 if shift is None else 1 << shift for shift in spec.attend.shifts]
        both = spec.attend.per_octave == 1
        for lane in range(spec.size):
            power = look_up(powers, codes[lane], spec.operand_bits - 1)
            counts = Const(1) if both else Mux(codes[lane][0], odd, even)
            with m.Switch(source):
                with m.Case(Source.CODES):
                    m.d.comb += read.word[lane].eq(Mux(counts, power, 0))
                with m.Case(Source.QUERIES):
                    m.d.comb += read.word[lane].eq(queries[lane])
                with m.Default():
                    m.d.comb += read.word[lane].eq(features[lane])

    def _probes(self, m: Module, drain: Any, layernorm: Any, softmax: Any) -> None:
        """Every word that is computed, for a testbench to look at by name."""
        for name, value in (
            ("sums", drain.biased.valid),
            ("sums_word", drain.biased.acc.as_value()),
            ("drain", drain.result.valid),
            ("drain_word", drain.result.y.as_value()),
            ("layernorm", layernorm.write.en),
            ("layernorm_word", layernorm.write.word.as_value()),
            ("softmax", softmax.write.en),
            ("softmax_word", softmax.write.word.as_value()),
        ):
            probe = Signal(len(value), name=f"probe_{name}")
            m.d.comb += probe.eq(value)


class Accelerator(wiring.Component):
    """The core behind its bus: AXI4 to read memory, AXI4-Lite for registers, an interrupt.

    Parameters
    ----------
    spec : AcceleratorSpec
    port_bits : int
        As of :class:`rtl.layernorm.PtfLayerNorm`.

    Members
    -------
    m_axi_* : AXI4 read master, words of ``size`` bytes (:class:`rtl.dma.BurstReader`).
    s_axil_* : AXI4-Lite slave (:class:`rtl.control.Control`).
    irq : Out(1)
        High while a run is done and the interrupt is enabled.
    """

    title = "accelerator for vision transformers"

    def __init__(self, spec: AcceleratorSpec, *, port_bits: int = 27) -> None:
        self._spec, self._port_bits = spec, port_bits
        self._control, self._bus = Control(spec), BurstReader(size=spec.size, align=1 << ALIGNMENT)
        super().__init__(
            {
                name: member
                for part in (self._control, self._bus)
                for name, member in part.signature.members.items()
                if name.startswith(("m_axi_", "s_axil_", "irq"))
            }
        )

    @property
    def spec(self) -> AcceleratorSpec:
        """What is built."""
        return self._spec

    @property
    def lanes(self) -> int:
        """Elements of a word."""
        return self._spec.size

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.control = control = self._control
        m.submodules.bus = bus = self._bus
        clear = Signal()
        core = Core(self._spec, port_bits=self._port_bits)
        m.submodules.core = ResetInserter(clear)(core)
        for part in (control, bus):
            for name, member in part.signature.members.items():
                if name in self.signature.members:
                    inner, outer = getattr(part, name), getattr(self, name)
                    both = (inner, outer) if member.flow == In else (outer, inner)
                    m.d.comb += both[0].eq(both[1])
        for name in ("image_address", "image_words", "program_address", "program_words"):
            m.d.comb += getattr(bus, name).eq(getattr(control, name))
        wiring.connect(m, bus.o, core.stream)
        m.d.comb += [
            core.image_words.eq(control.image_words),
            core.outputs.en.eq(control.outputs.en),
            core.outputs.address.eq(control.outputs.address),
            control.outputs.word.eq(core.outputs.word),
        ]
        for name in ("array_busy", "layernorm_busy", "softmax_busy", "stream_wait", "unit_wait"):
            m.d.comb += getattr(control, name).eq(getattr(core, name))
        self._run(m, control, bus, core, clear)
        return m

    def _run(self, m: Module, control: Any, bus: Any, core: Any, clear: Signal) -> None:
        """From start to finish; a run that fails ends here, whatever the core was about."""
        error, starved = Signal(Error), Signal(range(PATIENCE + 1))
        with m.If(core.stream_wait & ~bus.busy):
            m.d.sync += starved.eq(starved + 1)
        with m.Else():
            m.d.sync += starved.eq(0)
        with m.FSM():
            with m.State("idle"):
                with m.If(control.start):
                    m.d.comb += [bus.start.eq(1), core.start.eq(1)]
                    m.next = "running"
            with m.State("running"):
                m.d.sync += error.eq(Error.NONE)
                with m.If(bus.error):
                    m.d.sync += error.eq(Error.BUS)
                    m.next = "clear"
                with m.Elif(core.failure != 0):
                    m.d.sync += error.eq(core.failure)
                    m.next = "clear"
                with m.Elif(core.ended):
                    m.next = "clear"
                with m.Elif(starved == PATIENCE):
                    m.d.sync += error.eq(Error.ENDED)
                    m.next = "clear"
            with m.State("clear"):
                m.d.comb += [clear.eq(1), bus.stop.eq(1)]
                m.next = "flush"
            with m.State("flush"):
                # Words under way are swallowed: a new run begins with its own.
                with m.If(~bus.busy):
                    m.d.comb += [control.finished.eq(1), control.error.eq(error)]
                    m.next = "idle"

# SPDX-License-Identifier: Apache-2.0
"""Takes the stream apart: the image, instructions, and what follows them.

One instruction after the other (``docs/accelerator.md``): wait for the units that it names, then hand it
over. The sequencer itself loads tiles and parameters, one tile ahead of the array.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from golden.accelerator import SINKS, SOURCES, AcceleratorSpec
from golden.program import (
    FIELDS,
    INSTRUCTION_BYTES,
    PARAMETER_WORDS,
    RECORD_BYTES,
    Error,
    Op,
    Sink,
    Tile,
    Unit,
)
from rtl.drain import parameters_layout
from rtl.matrix import pass_layout, tile_layout
from rtl.row import PARAM_WRITE
from rtl.rows import rows_layout

__all__ = ["Sequencer"]


class Sequencer(wiring.Component):
    """Executes one program; a reset makes it forget whatever it was about.

    Members
    -------
    start : In(1)
        A run begins; ``image_words`` are the image's.
    stream : In(stream.Signature(bytes))
        The image's words, then the program's.
    idle : In(3)
        Array and drain, LayerNorm, softmax; a bit of golden.program.Wait each.
    features, residual : memory write ports, for the image and LOAD.
    tile, pass_, block : streams to the array and the drain.
    keys, values : memory read ports; a word is there in the cycle after ``en``.
    layernorm, softmax : rows to the movers.
    layernorm_params, softmax_params, gelu_params : writes to the units.
    ended : Out(1)
        The program is at its end and all is idle.
    failure : Out(Error)
        An error code, or 0: the program cannot go on.
    stream_wait, unit_wait : Out(1)
        What the sequencer waits for in this cycle.
    """

    def __init__(self, spec: AcceleratorSpec) -> None:
        self._spec = spec
        size = spec.size
        code = data.ArrayLayout(signed(8), size)
        wide = data.ArrayLayout(signed(spec.stream_bits), size)
        params = Out(stream.Signature(PARAM_WRITE))

        def port(memory: str, word: Any) -> Any:
            address = Out(spec.address_bits(memory))
            return Out(wiring.Signature({"en": Out(1), "address": address, "word": word}))

        super().__init__(
            {
                "start": In(1),
                "image_words": In(32),
                "stream": In(stream.Signature(data.ArrayLayout(8, size))),
                "idle": In(3),
                "features": port("features", Out(code)),
                "residual": port("stream", Out(wide)),
                "tile": Out(stream.Signature(tile_layout(spec))),
                "pass_": Out(stream.Signature(pass_layout(spec))),
                "block": Out(stream.Signature(parameters_layout(spec))),
                "keys": port("keys", In(code)),
                "values": port("values", In(code)),
                "layernorm": Out(stream.Signature(rows_layout(spec, Op.LAYERNORM))),
                "softmax": Out(stream.Signature(rows_layout(spec, Op.SOFTMAX))),
                "layernorm_params": params,
                "softmax_params": params,
                "gelu_params": params,
                "ended": Out(1),
                "failure": Out(Error),
                "stream_wait": Out(1),
                "unit_wait": Out(1),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        spec, limits = self._spec, self._spec.limits
        self._instruction = Signal(8 * INSTRUCTION_BYTES, name="instruction")
        self._wants = Signal(name="wants")  # this state takes words of the stream
        self._left = Signal(range(limits["count"] + 1), name="left")  # words or records
        self._address = Signal(spec.address_bits(*SINKS), name="address")
        # Counted down, 0 is as good as a power of two.
        self._blocks = Signal(range(limits["blocks"]), name="blocks_left")
        self._depth = Signal(range(limits["depth"]), name="depth_left")
        self._fresh = Signal(name="fresh")  # the first tile of a block
        self._count = Signal(range(max(spec.size, PARAMETER_WORDS)), name="word_count")
        self._source = Signal(spec.address_bits(*SOURCES), name="source_address")
        self._origin = Signal(spec.address_bits("keys", "values"), name="tile_origin")
        self._tile = Signal.like(self._origin, name="tile_address")
        m.d.comb += [
            self.features.address.eq(self._address),
            self.residual.address.eq(self._address),
            self.features.word.as_value().eq(self.stream.payload.as_value()),
            self.stream_wait.eq(self._wants & ~self.stream.valid),
        ]
        with m.FSM():
            with m.State("idle"):
                with m.If(self.start):
                    m.d.sync += [self._left.eq(self.image_words), self._address.eq(0)]
                    m.next = "image"
            with m.State("image"):
                # Pixels are unsigned, codes are not: without bit 7 inverted, p would be p - 256 or p.
                flip = Const(int.from_bytes(b"\x80" * self._spec.size, "little"))
                pixels = self.stream.payload.as_value() ^ flip
                m.d.comb += self.features.word.as_value().eq(pixels)
                with m.If(self.image_words > limits["image_words"]):
                    m.d.comb += self.failure.eq(Error.IMAGE)
                with m.If(self._next_of_left(m)):
                    m.d.comb += self.features.en.eq(1)
            self._fetch(m)
            self._issue(m)
            self._load(m)
            self._write(m)
            self._multiply(m)
        return m

    def _field(self, name: str) -> Value:
        """A field of the instruction."""
        place = FIELDS[name]
        value = self._instruction[place.low : place.low + place.bits]
        return value.as_signed() if place.signed else value

    def _take(self, m: Module) -> Value:
        """Take a word of the stream in this state; whether there is one."""
        m.d.comb += [self._wants.eq(1), self.stream.ready.eq(1)]
        return self.stream.valid

    def _next_of_left(self, m: Module) -> Signal:
        """Take ``left`` words, one a cycle, for addresses upwards, then fetch; whether there is one now."""
        there = Signal()
        with m.If(self._left == 0):
            m.next = "fetch"
        with m.Else():
            m.d.comb += there.eq(self._take(m))
        with m.If(there):
            m.d.sync += [self._address.eq(self._address + 1), self._left.eq(self._left - 1)]
        return there

    def _fetch(self, m: Module) -> None:
        """An instruction, in as many words as it has."""
        bits = 8 * self._spec.size
        count = len(self._instruction) // bits
        part = Signal(range(max(count, 2)))
        with m.State("fetch"):
            with m.If(self._take(m)):
                word = self.stream.payload.as_value()
                m.d.sync += self._instruction.eq(Cat(self._instruction, word)[bits:])
                m.d.sync += part.eq(part + 1)
                with m.If(part == count - 1):
                    m.d.sync += part.eq(0)
                    m.next = "issue"

    def _issue(self, m: Module) -> None:
        """Wait for the units, then begin."""
        headed = Signal()
        op, wait, count = self._field("op"), self._field("wait"), self._field("count")
        rows = {Op.LAYERNORM: self.layernorm, Op.SOFTMAX: self.softmax}
        # More of them were refused in front of the program.
        image_words = self.image_words[: self._spec.limits["image_words"].bit_length()]
        for unit in rows.values():
            for name in unit.payload.shape().members:
                m.d.comb += unit.payload[name].eq(self._field(name))
        with m.State("issue"):
            with m.If(~headed & (op != Op.HEAD)):
                m.d.comb += self.failure.eq(Error.HEAD)
            with m.Elif((wait & ~self.idle).any()):
                m.d.comb += self.unit_wait.eq(1)
            with m.Else():
                m.d.sync += [self._left.eq(count), self._address.eq(self._field("sink_base"))]
                with m.Switch(op):
                    with m.Case(Op.HEAD):
                        m.d.sync += headed.eq(1)
                        m.next = "fetch"
                        with m.If(self._field("fingerprint") != self._spec.fingerprint):
                            m.d.comb += self.failure.eq(Error.CONFIGURATION)
                        with m.Elif(self._field("image_words") != image_words):
                            m.d.comb += self.failure.eq(Error.IMAGE)
                    with m.Case(Op.LOAD):
                        m.next = "load"
                    with m.Case(Op.WRITE):
                        m.next = "write"
                    with m.Case(Op.MULTIPLY):
                        self._begin(m)
                        m.next = "parameters"
                    for each, unit in rows.items():
                        with m.Case(each):
                            m.d.comb += [unit.valid.eq(1), self.unit_wait.eq(~unit.ready)]
                            with m.If(unit.ready):
                                m.next = "fetch"
                    with m.Case(Op.END):
                        m.d.comb += self.ended.eq(self.idle.all())
                    with m.Default():
                        m.d.comb += self.failure.eq(Error.OPERATION)

    def _load(self, m: Module) -> None:
        """Words of a memory; one of the residual stream may need two of the stream."""
        word = self.stream.payload
        to_residual = self._field("sink") == Sink.STREAM
        low = Signal.like(word, name="low_bytes")
        half = Signal()
        whole = self._spec.stream_bits <= 8
        for lane in range(self._spec.size):
            element = word[lane] if whole else Cat(low[lane], word[lane])
            m.d.comb += self.residual.word[lane].eq(element[: self._spec.stream_bits].as_signed())
        def written() -> None:
            with m.If(self._next_of_left(m)):
                m.d.comb += [self.residual.en.eq(to_residual), self.features.en.eq(~to_residual)]
                m.d.sync += half.eq(0)

        with m.State("load"):
            if whole:
                written()
            else:
                with m.If(to_residual & ~half & (self._left != 0)):
                    with m.If(self._take(m)):
                        m.d.sync += [low.eq(word), half.eq(1)]
                with m.Else():
                    written()

    def _write(self, m: Module) -> None:
        """Records of a unit's parameters, one after the other out of a word (or out of two)."""
        bits = 8 * self._spec.size
        record = Signal(8 * RECORD_BYTES)
        ports = {
            Unit.LAYERNORM: self.layernorm_params,
            Unit.SOFTMAX: self.softmax_params,
            Unit.GELU: self.gelu_params,
        }
        ready, last = Signal(), Signal()
        for port in ports.values():
            m.d.comb += [
                port.payload.address.eq(record[:32]),
                port.payload.data.eq(record[32:]),
            ]
        m.d.comb += ready.eq(Array(port.ready for port in ports.values())[self._field("unit")])
        word = self.stream.payload.as_value()
        each = max(1, bits // len(record))  # records of a word
        place = Signal(range(each)) if each > 1 else Const(0, 1)
        complete = Signal()
        if bits < len(record):
            low, half = Signal(bits), Signal()
            m.d.comb += [record.eq(Cat(low, word)), complete.eq(half)]
        else:
            m.d.comb += [record.eq(word.word_select(place, len(record))), complete.eq(1)]
        with m.State("write"):
            with m.If(self._left == 0):
                m.next = "fetch"
            with m.Else():
                m.d.comb += self._wants.eq(1)
                valid = self.stream.valid & complete
                for unit, port in ports.items():
                    m.d.comb += port.valid.eq(valid & (self._field("unit") == unit))
                m.d.comb += last.eq((place == each - 1) | (self._left == 1))
                m.d.comb += self.unit_wait.eq(valid & ~ready)
                with m.If(valid & ready):
                    m.d.comb += self.stream.ready.eq(last)
                    m.d.sync += self._left.eq(self._left - 1)
                    if each > 1:
                        m.d.sync += place.eq(Mux(last, 0, place + 1))
                    if bits < len(record):
                        m.d.sync += half.eq(0)
                if bits < len(record):
                    with m.If(~half & self.stream.valid):
                        m.d.comb += self.stream.ready.eq(1)
                        m.d.sync += [low.eq(word), half.eq(1)]

    def _begin(self, m: Module) -> None:
        """A product's first block."""
        m.d.sync += [
            self._blocks.eq(self._field("blocks")),
            self._depth.eq(self._field("depth")),
            self._fresh.eq(1),
            self._source.eq(self._field("source_base")),
            self._origin.eq(self._field("tile_base")),
            self._tile.eq(self._field("tile_base")),
        ]

    def _multiply(self, m: Module) -> None:
        """For each block of columns its parameters; for each tile of it L words, then a pass."""
        size = self._spec.size
        self._parameters(m)
        tile, last_word = self._field("tile"), self._count == size - 1
        by_row = tile == Tile.VALUES
        # A memory answers a cycle later: the words asked for, and those that have come.
        asked = Signal(range(size + 1))
        arrives = Signal()
        m.d.sync += arrives.eq(self.keys.en)  # both memories are asked at once
        for port in (self.keys, self.values):
            m.d.comb += port.address.eq(self._tile + asked)
        m.d.comb += [self.tile.payload.last.eq(last_word), self.tile.payload.row.eq(by_row)]
        source = Mux(by_row, self.values.word.as_value(), self.keys.word.as_value())
        with m.State("tile"):
            with m.If(tile == Tile.STREAM):
                m.d.comb += [
                    self._wants.eq(1),
                    self.tile.payload.word.as_value().eq(self.stream.payload.as_value()),
                    self.tile.valid.eq(self.stream.valid),
                    self.stream.ready.eq(self.tile.ready),
                ]
            with m.Else():
                # Nothing is asked for before there is room, and then there is room for all of it.
                ask = self.tile.ready & (asked != size)
                m.d.comb += [self.keys.en.eq(ask), self.values.en.eq(ask)]
                m.d.sync += asked.eq(asked + ask)
                m.d.comb += [
                    self.tile.payload.word.as_value().eq(source),
                    self.tile.valid.eq(arrives),
                ]
            m.d.comb += self.unit_wait.eq(~self.tile.ready)
            with m.If(self.tile.valid & self.tile.ready):
                m.d.sync += self._count.eq(self._count + 1)
                with m.If(last_word):
                    m.d.sync += [self._count.eq(0), asked.eq(0)]
                    m.next = "pass"
        with m.State("pass"):
            m.d.comb += [self.pass_.valid.eq(1), self.unit_wait.eq(~self.pass_.ready)]
            with m.If(self.pass_.ready):
                self._next_tile(m, by_row)

    def _parameters(self, m: Module) -> None:
        """The parameters of a block of columns, and what a pass is told."""
        last_word = self._count == PARAMETER_WORDS - 1
        block, whole = self.block.payload, ("sink", "gelu", "clamp", "gain", "zero_in", "zero_out")
        m.d.comb += [block[name].eq(self._field(name)) for name in whole]
        m.d.comb += [
            block.address.eq(self._address),
            block.word.eq(self.stream.payload),
            block.last.eq(last_word),
        ]
        given = self.pass_.payload
        m.d.comb += [given[name].eq(self._field(name)) for name in ("source", "even", "odd", "tokens")]
        m.d.comb += [
            given.base.eq(self._source),
            given.first.eq(self._fresh & ~self._field("resume")),
            given.last.eq(self._depth == 1),
        ]
        with m.State("parameters"):
            m.d.comb += [
                self._wants.eq(1),
                self.block.valid.eq(self.stream.valid),
                self.stream.ready.eq(self.block.ready),
                self.unit_wait.eq(~self.block.ready),
            ]
            with m.If(self.block.valid & self.block.ready):
                m.d.sync += self._count.eq(self._count + 1)
                with m.If(last_word):
                    m.d.sync += self._count.eq(0)
                    m.next = "tile"

    def _next_tile(self, m: Module, by_row: Value) -> None:
        """On to the next tile of the block, the next block or the next instruction."""
        stride, size = self._field("stride"), self._spec.size
        with m.If(self.pass_.payload.last):
            origin = self._origin + Mux(by_row, stride, size)
            m.d.sync += [
                self._depth.eq(self._field("depth")),
                self._fresh.eq(1),
                self._blocks.eq(self._blocks - 1),
                self._source.eq(self._field("source_base")),
                self._origin.eq(origin),
                self._tile.eq(origin),
                self._address.eq(self._address + self._field("sink_stride")),
            ]
            m.next = "parameters"
            with m.If(self._blocks == 1):
                m.next = "fetch"
        with m.Else():
            m.d.sync += [
                self._depth.eq(self._depth - 1),
                self._fresh.eq(0),
                self._source.eq(self._source + stride),
                self._tile.eq(self._tile + Mux(by_row, size, stride)),
            ]
            m.next = "tile"

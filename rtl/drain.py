# SPDX-License-Identifier: Apache-2.0
"""The drain of the accelerator: from a token's sums to what a memory gets, L lanes a cycle.

    acc = sum + bias
    X   = (stream - zero_in) << a              where the sink is the stream, else 0
    y   = clamp(rs(X * M1 + acc * M2, n) + zero_out),  then the GELU table where it is asked for

It is :mod:`golden.residual`, of which :mod:`golden.requant` is the case X = 0.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from golden.accelerator import SINKS, AcceleratorSpec
from golden.accelerator_cycles import DRAIN_LATENCY
from golden.program import PARAMETER_WORDS, Sink
from rtl.arith import carried, floor_shift, product
from rtl.matrix import sums_signature
from rtl.row import PARAM_WRITE

__all__ = [
    "Drain",
    "biased_signature",
    "block_layout",
    "parameters_layout",
    "result_signature",
    "stream_signature",
]

Y_BITS = 32
"""Width of a result, the largest ``clamp``."""
MAX_ALIGN = 7


def block_layout(spec: AcceleratorSpec) -> data.StructLayout:
    """What holds for all lanes of a column block."""
    points = {"zero_in": signed(spec.stream_bits), "zero_out": signed(16)}
    address = spec.address_bits(*SINKS)
    return data.StructLayout({"sink": 3, "gelu": 1, "clamp": 6, "gain": 32, **points, "address": address})


def parameters_layout(spec: AcceleratorSpec) -> data.StructLayout:
    """A word of the lanes' parameters (:func:`golden.program.parameter_words`); with ``last`` the block's."""
    word = data.ArrayLayout(unsigned(8), spec.size)
    fields = {name: member.shape for name, member in block_layout(spec)}
    return data.StructLayout({"word": word, "last": 1, **fields})


def stream_signature(spec: AcceleratorSpec) -> wiring.Signature:
    """Reading words of the stream memory, each a cycle after its address."""
    word = data.ArrayLayout(signed(spec.stream_bits), spec.size)
    return wiring.Signature({"en": Out(1), "address": Out(spec.address_bits("stream")), "word": In(word)})


def result_signature(spec: AcceleratorSpec) -> wiring.Signature:
    """A token's L results, and where they go."""
    lanes = data.ArrayLayout(signed(Y_BITS), spec.size)
    place = {"sink": Out(3), "address": Out(spec.address_bits(*SINKS)), "token": Out(range(spec.max_tokens))}
    return wiring.Signature({"valid": Out(1), **place, "y": Out(lanes)})


def biased_signature(spec: AcceleratorSpec) -> wiring.Signature:
    """A token's L sums with their biases."""
    return wiring.Signature({"valid": Out(1), "acc": Out(data.ArrayLayout(signed(32), spec.size))})


class _Lane:
    """A lane's parameters: bias, M2, n, a."""

    def __init__(self, lane: int) -> None:
        self.bias = Signal(signed(32), name=f"bias_{lane}", reset_less=True)
        self.multiplier = Signal(24, name=f"multiplier_{lane}", reset_less=True)
        self.shift = Signal(6, name=f"shift_{lane}", reset_less=True)
        self.align = Signal(3, name=f"align_{lane}", reset_less=True)


class Drain(wiring.Component):
    """Bias, requantiser or residual, and GELU of L lanes.

    Parameters
    ----------
    spec : AcceleratorSpec
        Lanes, width of the stream, width of the GELU table's input.
    port_bits : int
        As of :func:`rtl.arith.product`: nothing but the number of multipliers depends on it.

    Latency: ``latency`` cycles from sums to their result, whatever becomes of them; a token a cycle.

    Members
    -------
    load : In(stream.Signature(parameters_layout(spec)))
        Parameters of the next column block, 9 words into a shadow set: byte j of every lane's record is in
        word j; the other fields count with ``last``. Ready until the set is full, and again when the
        first sums of the block have taken it over.
    sums : In(sums_signature(spec))
        Sums, token 0 of a block first.
    stream : Out(stream_signature(spec))
        The stream memory, read at ``address`` + token where the sink is the stream.
    table : In(stream.Signature(PARAM_WRITE))
        The GELU table: address, the code modulo 2**gelu_bits; data, the output code. Not while ``busy``.
    result : Out(result_signature(spec))
        ``y`` for ``sink`` at ``address``; where the sink is outputs, ``y`` is acc.
    biased : Out(biased_signature(spec))
        acc, two cycles after the sums: nothing takes it but testbenches.
    busy : Out(1)
        Sums are under way: from the cycle after ``sums.valid`` to that of ``result.valid``.
    """

    latency = DRAIN_LATENCY

    def __init__(self, spec: AcceleratorSpec, *, port_bits: int = 27) -> None:
        self._spec, self._port_bits = spec, port_bits
        super().__init__(
            {
                "load": In(stream.Signature(parameters_layout(spec))),
                "sums": In(sums_signature(spec)),
                "stream": Out(stream_signature(spec)),
                "table": In(stream.Signature(PARAM_WRITE)),
                "result": Out(result_signature(spec)),
                "biased": Out(biased_signature(spec)),
                "busy": Out(1),
            }
        )

    @property
    def spec(self) -> AcceleratorSpec:
        """What is fixed when the accelerator is built."""
        return self._spec

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        lanes, block, address = self._parameters(m)
        # Comments with a figure alone: the cycle, counted from the sums, of what the line makes.
        adds, under_way = block.sink == Sink.STREAM, Signal(self.latency)
        m.d.sync += under_way.eq(Cat(self.sums.valid, under_way))
        m.d.comb += [
            self.stream.en.eq(under_way[0] & adds),  # 1
            self.stream.address.eq(address),
            self.result.valid.eq(under_way[-1]),  # 15
            self.result.token.eq(carried(m, self.sums.token, 15, "token_on")),
            self.result.address.eq(carried(m, address, 14, "address_on")),
            self.result.sink.eq(carried(m, block.sink, 14, "sink_on")),
            self.biased.valid.eq(under_way[1]),  # 2
            self.busy.eq(under_way.any()),
            self.table.ready.eq(1),
        ]

        gain = carried(m, block.gain, 4, "gain")  # 5
        beyond = Signal(Y_BITS - 1)  # the bits that repeat the sign of a result of `clamp` bits
        clamp = carried(m, block.clamp, 10, "clamp")
        m.d.sync += beyond.eq(Cat(clamp <= bit + 1 for bit in range(Y_BITS - 1)))  # 12
        zero_out = carried(m, block.zero_out, 10, "zero_out")  # 11
        gelu = carried(m, block.gelu, 13, "gelu")  # 14
        sums = carried(m, self.sums.acc, 1, "sums")
        for lane, x in enumerate(self._stream(m, lanes, block.zero_in, adds)):
            own = lanes[lane]
            acc = Signal(signed(32), name=f"acc_{lane}", reset_less=True)
            m.d.sync += acc.eq(sums[lane] + own.bias)  # 2
            m.d.comb += self.biased.acc[lane].eq(acc)
            kept = product(m, x, gain, f"kept_{lane}", port_bits=self._port_bits)  # 7
            operand = carried(m, acc, 3, f"operand_{lane}")  # 5
            multiplier = carried(m, own.multiplier, 4, f"multiplier_{lane}")
            branch = product(m, operand, multiplier, f"branch_{lane}", port_bits=self._port_bits)  # 7
            total = Signal(signed(max(len(x) + 32, 32 + 24) + 1), name=f"total_{lane}", reset_less=True)
            m.d.sync += total.eq(kept + branch)  # 8
            # One more bit below the point: h = floor(T / 2**(n - 1)); rs(T, n) + z = (h + 1 + 2z) >> 1.
            double, shift = Cat(Const(0, 1), total), carried(m, own.shift, 7, f"shift_{lane}")
            halves = floor_shift(m, double, shift, f"halves_{lane}")  # 11
            moved = Signal(signed(len(total) + 1), name=f"moved_{lane}", reset_less=True)
            m.d.sync += moved.eq((halves + Cat(Const(1, 1), zero_out).as_signed())[1:].as_signed())  # 12
            y = self._clamped(m, moved, beyond, f"y_{lane}")  # 13
            code = self._table(m, y, lane)  # 14
            plain = carried(m, y, 1, f"plain_{lane}")
            m.d.sync += self.result.y[lane].eq(Mux(gelu, code, plain))  # 15
        return m

    def _parameters(self, m: Module) -> tuple[list[_Lane], Any, Signal]:
        """The lanes' and the block's parameters, in the cycle after sums; the token's address then."""
        size, load, opening = self._spec.size, self.load.payload, Signal()
        words = data.ArrayLayout(data.ArrayLayout(unsigned(8), size), PARAMETER_WORDS)
        shadow = Signal(words, reset_less=True)
        block = Signal(block_layout(self._spec), reset_less=True)
        full = Signal()
        m.d.comb += [self.load.ready.eq(~full), opening.eq(self.sums.valid & self.sums.first)]
        with m.If(opening):
            m.d.sync += full.eq(0)
        with m.If(self.load.valid & self.load.ready):
            m.d.sync += shadow.as_value().eq(Cat(shadow.as_value()[8 * size :], load.word.as_value()))
            with m.If(load.last):
                m.d.sync += full.eq(1)
                m.d.sync += [block[name].eq(load[name]) for name, _ in block_layout(self._spec)]

        working = Signal(block_layout(self._spec))
        address = Signal.like(block.address)
        outputs = block.sink == Sink.OUTPUTS  # gets acc: y of a factor of 1
        with m.If(opening):
            m.d.sync += working.eq(block)
            with m.If(outputs):
                m.d.sync += [working.clamp.eq(Y_BITS), working.zero_out.eq(0), working.gelu.eq(0)]
        m.d.sync += address.eq(Mux(opening, block.address, working.address) + self.sums.token)
        lanes = []
        for lane in range(size):
            record = Cat(word[lane] for word in shadow)
            own = _Lane(lane)
            with m.If(opening):
                m.d.sync += [
                    own.bias.eq(record[:32]),
                    own.multiplier.eq(Mux(outputs, 1, record[32:56])),
                    own.shift.eq(Mux(outputs, 0, record[56:64])),
                    own.align.eq(record[64:]),
                ]
            lanes.append(own)
        return lanes, working, address

    def _stream(self, m: Module, lanes: list[_Lane], zero_in: Value, adds: Value) -> list[Signal]:
        """X of each lane, 5 cycles after the sums."""
        bits = self._spec.stream_bits
        word = carried(m, self.stream.word, 1, "word")  # 3
        point = carried(m, zero_in, 2, "point")
        adding = carried(m, adds, 3, "adding")  # 4
        results = []
        for lane, own in enumerate(lanes):
            centered = Signal(signed(bits + 1), name=f"centered_{lane}", reset_less=True)
            m.d.sync += centered.eq(word[lane] - point)  # 4
            align = carried(m, own.align, 3, f"align_{lane}")
            x = Signal(signed(bits + 1 + MAX_ALIGN), name=f"x_{lane}", reset_less=True)
            m.d.sync += x.eq(Mux(adding, centered << align, 0))  # 5
            results.append(x)
        return results

    def _clamped(self, m: Module, value: Value, beyond: Value, name: str) -> Signal:
        """``value`` saturated, a cycle later: every bit of ``beyond`` has to be its sign."""
        sign, y = value[-1], Signal(signed(Y_BITS), name=name, reset_less=True)
        low, high = value[: Y_BITS - 1], value[Y_BITS - 1 :]
        fits = (high.all() | ~high.any()) & ~(Mux(sign, ~low, low) & beyond).any()
        m.d.sync += y.eq(Cat(Mux(fits, low, Mux(sign, beyond, ~beyond)), sign))
        return y

    def _table(self, m: Module, y: Value, lane: int) -> Value:
        """GELU of ``y``, a cycle later."""
        bits = self._spec.gelu_bits
        # By themselves tools make it of LUTs: 64 a lane, and twice as many for 9 bits.
        table = Memory(shape=signed(8), depth=1 << bits, init=[], attrs={"ram_style": "block"})
        m.submodules[f"table_{lane}"] = table
        writer, reader = table.write_port(), table.read_port()
        m.d.comb += [
            writer.en.eq(self.table.valid),
            writer.addr.eq(self.table.payload.address),
            writer.data.eq(self.table.payload.data),
            reader.addr.eq(y[:bits]),
        ]
        return reader.data

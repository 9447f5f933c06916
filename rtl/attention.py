# SPDX-License-Identifier: Apache-2.0
"""Codes and v: the RTL of :mod:`golden.attention`'s product by shifts, a code of a row each cycle.

    acc_j = sum_i v_ij << (T - octave(c_i)),  to base sqrt 2 one sum of even codes and one of odd ones
    y_j   = sat(rs((even_j + rs(odd_j * SQRT2, 15)) * M, N) + z)

No multiplier before a row's last code: what multiplies, does so once per output.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from golden.attend_unit import WORD, AttendPipeline, attend_pipeline
from golden.attention import SQRT2, SQRT2_BITS, AttendSpec
from golden.cycles import OUTPUT_DEPTH
from golden.requant import MULTIPLIER, SHIFT
from rtl.arith import carried, look_up, product
from rtl.requant import requantised
from rtl.row import PARAM_WRITE, OutputQueue, delayed
from rtl.stream import Banks, Parameter, Turns

__all__ = ["ShiftAttend"]


class ShiftAttend(wiring.Component):
    """Streaming product of softmax codes and v; the formula is :mod:`golden.attention`'s, bit for bit.

    Parameters
    ----------
    spec : AttendSpec
        Widths, the meaning of codes and the longest row.
    lanes : int
        Channels of v computed side by side, 1 to 32. A head of more channels is as many runs of its codes as
        it has groups of ``lanes``, each with its own part of v.
    port_bits : int
        Width of the wider port of the target's multipliers (:class:`rtl.layernorm.PtfLayerNorm`).

    Latency and initiation interval: ``pipeline``; N cycles a row of N codes, row after row. Codes that
    ``spec.bounds`` does not cover (another softmax's) wrap.

    Members
    -------
    i : In(stream.Signature(...))
        ``code``: one of a row; ``last``: ends a row, which has as many codes as v has tokens, or fewer.
    v : In(stream.Signature(...))
        ``value``: lanes signed channels of a token, token 0 first; ``last``: ends a head's v, of up to
        ``max_tokens``, and makes it current for rows whose first code comes later. It fills the bank that
        no row uses (the port waits for it), while rows go on with the other.
    o : Out(stream.Signature(...))
        ``code``: lanes signed codes, a beat a row.
    params : In(stream.Signature(PARAM_WRITE))
        :func:`golden.attend_unit.attend_words`, in banks as in :class:`~rtl.stream.StreamUnit`.
    """

    def __init__(self, spec: AttendSpec, *, lanes: int, port_bits: int = 27) -> None:
        self._spec, self._lanes, self._port_bits = spec, lanes, port_bits
        self._pipeline = attend_pipeline(spec, lanes)
        self._parameters = (
            Parameter(
                "multiplier",
                WORD["multiplier"],
                unsigned(MULTIPLIER.bits),
                f"M, {MULTIPLIER.low} to {MULTIPLIER.high}",
            ),
            Parameter("shift", WORD["shift"], unsigned(SHIFT.bits), f"N, 0 to {SHIFT.high}"),
            Parameter("zero_point", WORD["zero_point"], signed(spec.out_bits), "z, signed"),
            Parameter("commit", WORD["commit"], unsigned(0), "ends a set"),
        )
        self._token = data.ArrayLayout(signed(spec.value_bits), lanes)
        code = data.ArrayLayout(signed(spec.out_bits), lanes)
        beats = {
            "i": {"code": spec.softmax.code_bits, "last": 1},
            "v": {"value": self._token, "last": 1},
            "o": {"code": code},
        }
        i, v, o = (stream.Signature(data.StructLayout(beat)) for beat in beats.values())
        params = stream.Signature(PARAM_WRITE)
        super().__init__({"i": In(i), "v": In(v), "o": Out(o), "params": In(params)})

    @property
    def spec(self) -> AttendSpec:
        """Widths, the meaning of codes and the longest row."""
        return self._spec

    @property
    def lanes(self) -> int:
        """Channels of v computed side by side."""
        return self._lanes

    @property
    def pipeline(self) -> AttendPipeline:
        """Exact cycle model."""
        return self._pipeline

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """What the parameter port writes."""
        return self._parameters

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        drain, beat, taken, ends = self._pipeline.drain, self.i.payload, Signal(), Signal()
        # Rows of one code each: more places than cycles from a code to its beat's transfer, a power of two.
        m.submodules.output = output = OutputQueue(
            self.o.signature.members["payload"].shape, max(OUTPUT_DEPTH, 1 << drain.bit_length())
        )
        m.d.comb += [
            self.i.ready.eq(output.room),
            taken.eq(self.i.valid & self.i.ready),
            ends.eq(taken & beat.last),
            output.take.eq(ends),
            output.write.eq(delayed(m, ends, drain - 1, "ends")),
        ]
        values, opening = self._values(m, taken)
        accs, stage = self._accumulators(m, values, taken, opening)
        banks = Banks(m, self.params, self._parameters, self._lanes, drain - 1, taken, beat.last)
        # From registers: every lane's multiplier takes them, far apart on the device.
        factors = {
            name: carried(m, banks.scalar(name, stage - 1), 1, f"{name}_now")
            for name in ("multiplier", "shift")
        }
        factors["zero_point"] = banks.scalar("zero_point", stage + 6)
        for lane, acc in enumerate(accs):
            code = requantised(m, acc, self._spec.requant, lane, self._port_bits, **factors)
            m.d.comb += output.payload.code[lane].eq(code)
        wiring.connect(m, output.o, wiring.flipped(self.o))
        return m

    def _values(self, m: Module, taken: Value) -> tuple[Any, Value]:
        """The v of the code's token, in register 2 (block RAMs answer late); whether the code opens a row."""
        tokens, last = range(max(self._spec.softmax.max_tokens, 2)), self.i.payload.last
        turns, token, filled = Turns(m, 0, taken, last), Signal(tokens), Signal(tokens)
        memory = Memory(
            shape=self._token, depth=2 << len(token), init=[], attrs={"ram_style": "block"}
        )
        m.submodules.values = memory
        writer, reader, written = memory.write_port(), memory.read_port(), Signal()
        m.d.comb += [
            self.v.ready.eq(turns.free),
            written.eq(self.v.valid & self.v.ready),
            writer.en.eq(written),
            writer.addr.eq(Cat(filled, turns.idle)),
            writer.data.eq(self.v.payload.value),
            reader.addr.eq(Cat(token, turns.bank)),
        ]
        with m.If(written):
            m.d.sync += filled.eq(Mux(self.v.payload.last, 0, filled + 1))
        with m.If(taken):
            m.d.sync += token.eq(Mux(last, 0, token + 1))
        turns.switch(written & self.v.payload.last)
        return carried(m, reader.data, 1, "v"), turns.opening

    def _accumulators(
        self, m: Module, values: Any, taken: Value, opening: Value
    ) -> tuple[list[Value], int]:
        """Each lane's acc, and the register in which it is when the row's last code would be there."""
        spec, bounds = self._spec, self._spec.bounds
        shifts, sums = meanings(spec)
        code = carried(m, self.i.payload.code, 1, "code")  # 1
        shift = carried(m, look_up(shifts, code, max(spec.top.bit_length(), 3)), 1, "shift")  # 2
        goes = carried(m, look_up(sums, code, spec.per_octave), 3, "goes")  # 4
        rest = carried(m, shift[:2], 1, "rest")  # 3
        valid, first = delayed(m, taken, 4, "taken"), carried(m, opening, 4, "opening")  # 4
        accs = []
        for lane in range(self._lanes):
            term = values[lane]
            for name, amount in (("far", Cat(Const(0, 2), shift[2:])), ("term", rest)):  # 3, 4
                moved = Signal(signed(spec.value_bits + spec.top), name=f"{name}_{lane}", reset_less=True)
                m.d.sync += moved.eq(term << amount)
                term = moved
            totals = []
            for parity, name in enumerate(("even", "odd")[: spec.per_octave]):
                total = Signal(signed(bounds[name].bits), name=f"{name}_{lane}", reset_less=True)
                with m.If(valid):
                    m.d.sync += total.eq(Mux(first, 0, total) + Mux(goes[parity], term, 0))  # 5
                totals.append(total)
            accs.append(totals[0] if len(totals) == 1 else self._joined(m, totals[0], totals[1], lane))
        return accs, 5 if spec.per_octave == 1 else 8

    def _joined(self, m: Module, even: Value, odd: Value, lane: int) -> Value:
        """``even + rs(odd * SQRT2, 15)`` in 3 cycles."""
        bounds, name = self._spec.bounds, f"root_{lane}"
        root = product(m, odd, Const(SQRT2, unsigned(16)), name, port_bits=self._port_bits)
        root = root[: bounds["product"].bits].as_signed()
        acc = Signal(signed(bounds["acc"].bits), name=f"acc_{lane}", reset_less=True)
        m.d.sync += acc.eq(carried(m, even, 2, f"even_now_{lane}") + nearest(root, SQRT2_BITS))
        return acc


def meanings(spec: AttendSpec) -> tuple[list[int], list[int]]:
    """For each code: how far v goes left, and a bit for the sum it goes to: none, the even or the odd one."""
    shifts = [shift or 0 for shift in spec.shifts]
    sums = [
        0 if shift is None else 1 << code % spec.per_octave for code, shift in enumerate(spec.shifts)
    ]
    return shifts, sums


def nearest(value: Value, bits: int) -> Value:
    """``rs(value, bits)``, half up; combinational: what is below the point adds its upper bit."""
    return (value >> bits) + value[bits - 1]

# SPDX-License-Identifier: Apache-2.0
"""AXI tops: a row unit behind AXI4-Stream data ports and an AXI4-Lite register port.

The adapter passes beats through without a register: it adds no cycle (``ADAPTER_LATENCY``) and no
bubble. A lane occupies whole bytes of ``tdata``, lane 0 lowest: scores and signed codes are
sign-extended to their slot, unsigned codes zero-extended. ``tkeep`` must be all ones but in a row's
last beat, where it is a prefix of whole slots, at least one.

What would break a row unit is repaired here and noted in sticky bits of STATUS:

- a row longer than the unit's longest ends there; the rest, up to its ``tlast``, is swallowed;
- a bad ``tkeep`` is read as its longest legal prefix (lane 0 always, every lane before ``tlast``);
- a kept element outside its width is cut to its low bits.

Registers lie at byte address ``INFO_BASE``; every other legal address is a parameter word (byte
address = 4 x word address), write-only, answered once the unit has taken it. Wrong accesses have no
effect: DECERR where nothing is mapped, SLVERR for a write with strobes missing, a write to a
read-only register and a read of a parameter.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from amaranth import Cat, ClockDomain, ClockSignal, Const, Module, Mux, ResetSignal, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from golden.layernorm import TABLE, WORD, LayerNormSpec
from golden.softmax import SoftmaxSpec
from rtl.axil import DECERR, OKAY, SLVERR, axil_ports, write_channel

__all__ = ["ADAPTER_LATENCY", "INFO_BASE", "AxiLayerNorm", "AxiRowUnit", "AxiSoftmax", "Register"]

ADAPTER_LATENCY = 0
"""Cycles that the adapter adds between the ports of the core and those of the top."""
INFO_BASE = 0x3F00
"""Byte address of the first register: above the scalar parameters, below the tables."""
IDENTITY = 0x51564954
MAP_VERSION = 1
ADDRESS_BITS = 14
STATUS_TEXT = (
    "sticky, write 1 to clear; bit 0: a row was too long, bit 1: a bad tkeep, "
    "bit 2: an element outside its width"
)
NAMED_VALUES = {"2": 0, "sqrt2": 1, "dyadic": 0, "shift": 1}


@dataclass(frozen=True)
class Register:
    """One entry of the register map: byte offset, access ("RO", "RW1C" or "WO"), width in bits."""

    name: str
    offset: int
    access: str
    width: int
    description: str
    words: int = 1


def slot_bytes(bits: int) -> int:
    """Whole bytes that an element of ``bits`` bits occupies in ``tdata``."""
    return -(-bits // 8)


class AxiRowUnit(wiring.Component):
    """AXI4-Stream and AXI4-Lite around ``core``; clock ``aclk``, synchronous reset ``aresetn``.

    core: a row unit with streams ``i``, ``o`` and ``params``.  field: name of its input elements.
    longest: elements of its longest row.  in_bits, out_bits: widths of an element.  out_signed:
    whether codes are signed.
    """

    operator = ""
    operator_id = 0

    def __init__(
        self,
        core: Any,
        *,
        field: str,
        longest: int,
        in_bits: int,
        out_bits: int,
        out_signed: bool,
    ) -> None:
        self._core, self._field, self.longest = core, field, longest
        self.in_bits, self.out_bits, self.out_signed = in_bits, out_bits, out_signed
        self._in_slot, self._out_slot = slot_bytes(in_bits), slot_bytes(out_bits)
        lanes: int = core.lanes
        ports: dict[str, Any] = {
            "aclk": In(1),
            "aresetn": In(1),
            "s_axis_tdata": In(8 * self._in_slot * lanes),
            "s_axis_tkeep": In(self._in_slot * lanes),
            "s_axis_tlast": In(1),
            "s_axis_tvalid": In(1),
            "s_axis_tready": Out(1),
            "m_axis_tdata": Out(8 * self._out_slot * lanes),
            "m_axis_tkeep": Out(self._out_slot * lanes),
            "m_axis_tlast": Out(1),
            "m_axis_tvalid": Out(1),
            "m_axis_tready": In(1),
            **axil_ports(ADDRESS_BITS + 2),
        }
        if self.has_mask:
            ports["s_axis_tuser"] = In(lanes)
        super().__init__(ports)

    @property
    def has_mask(self) -> bool:
        """Whether ``s_axis_tuser`` masks elements."""
        return "mask" in self._core.i.payload.shape().members

    @property
    def core(self) -> Any:
        """The row unit inside."""
        return self._core

    @property
    def spec(self) -> Any:
        """The spec of the row unit."""
        return self._core.spec

    @property
    def lanes(self) -> int:
        """Elements per beat."""
        return int(self._core.lanes)

    @property
    def info(self) -> list[tuple[Register, int]]:
        """The readable registers and what they read as, but for ``status`` and ``rows``."""
        fixed: list[tuple[str, int, str]] = [
            ("id", IDENTITY, "the letters QVIT"),
            ("operator", self.operator_id, "1: softmax, 2: layernorm, 3: gelu, 4: requant, 5: residual"),
            ("version", MAP_VERSION, "version of this register map"),
            ("lanes", self.lanes, "elements per beat"),
            ("status", 0, STATUS_TEXT),
            ("rows", 0, "rows delivered since reset, modulo 2**32"),
        ]
        registers = []
        for i, (name, number, text) in enumerate(fixed):
            access, width = ("RW1C", 3) if name == "status" else ("RO", 32)
            registers.append((Register(name, INFO_BASE + 4 * i, access, width, text), number))
        for i, (name, value) in enumerate(asdict(self.spec).items()):
            text = f"spec: {name}"
            if isinstance(value, str):
                names = ("2", "sqrt2") if name == "base" else ("dyadic", "shift")
                text += f" ({', '.join(f'{NAMED_VALUES[n]}: {n}' for n in names)})"
                value = NAMED_VALUES[value]
            offset = INFO_BASE + 0x40 + 4 * i
            registers.append((Register(f"spec_{name}", offset, "RO", 32, text), value))
        return registers

    @property
    def param_registers(self) -> list[Register]:
        """The parameter words."""
        raise NotImplementedError

    @property
    def registers(self) -> list[Register]:
        """The whole register map."""
        return [*self.param_registers, *(register for register, _ in self.info)]

    def elaborate(self, platform: Any) -> Module:
        """Core, adapters and registers."""
        m = Module()
        m.domains.sync = ClockDomain("sync")
        m.d.comb += [ClockSignal().eq(self.aclk), ResetSignal().eq(~self.aresetn)]
        m.submodules.core = self._core
        found = self._elaborate_input(m)
        rows = self._elaborate_output(m)
        status = Signal(3)
        clear = self._elaborate_writes(m)
        m.d.sync += status.eq((status & ~clear) | found)
        self._elaborate_reads(m, {"status": status, "rows": rows})
        return m

    def _elaborate_input(self, m: Module) -> Value:
        """Connect the input stream; return the status bits that this cycle finds."""
        core, lanes, slot = self._core, self.lanes, self._in_slot
        beats = -(-self.longest // lanes)
        legal = (1 << (self.longest - (beats - 1) * lanes)) - 1

        prefix: list[Value] = [Const(1)]
        for lane in range(1, lanes):
            whole = self.s_axis_tkeep.word_select(lane, slot).all()
            prefix.append(prefix[-1] & whole)
        expected = Signal(lanes)
        m.d.comb += expected.eq(Mux(self.s_axis_tlast, Cat(prefix), (1 << lanes) - 1))
        spread = Cat(bit.replicate(slot) for bit in expected)

        beat = Signal(range(beats))
        at_limit, ends, swallow = Signal(), Signal(), Signal()
        keep = Signal(lanes)
        m.d.comb += [
            at_limit.eq(beat == beats - 1),
            ends.eq(self.s_axis_tlast | at_limit),
            keep.eq(Mux(at_limit, expected & legal, expected)),
            core.i.valid.eq(self.s_axis_tvalid & ~swallow),
            core.i.p.keep.eq(keep),
            core.i.p.last.eq(ends),
            self.s_axis_tready.eq(core.i.ready | swallow),
        ]
        if self.has_mask:
            m.d.comb += core.i.p.mask.eq(self.s_axis_tuser)
        outside = Signal(lanes)
        elements = core.i.p[self._field]
        for lane in range(lanes):
            element = self.s_axis_tdata.word_select(lane, 8 * slot)
            sign = element[self.in_bits - 1 :]
            target = Value.cast(elements[lane])  # of several fields, where one is not enough
            m.d.comb += target.eq(element[: self.in_bits].as_signed())
            m.d.comb += outside[lane].eq(sign.any() & ~sign.all() & keep[lane])

        transfer, found = Signal(), Signal(3)
        m.d.comb += transfer.eq(self.s_axis_tvalid & core.i.ready & ~swallow)
        with m.If(transfer):
            m.d.sync += [beat.eq(Mux(ends, 0, beat + 1)), swallow.eq(ends & ~self.s_axis_tlast)]
            too_long = at_limit & (~self.s_axis_tlast | (expected & ~Const(legal, lanes)).any())
            m.d.comb += found.eq(Cat(too_long, self.s_axis_tkeep != spread, outside.any()))
        with m.Elif(swallow & self.s_axis_tvalid):
            m.d.sync += swallow.eq(~self.s_axis_tlast)
        return found

    def _elaborate_output(self, m: Module) -> Signal:
        """Connect the output stream; return the counter of rows delivered."""
        core, slot = self._core, self._out_slot
        rows = Signal(32)
        codes = []
        for lane in range(self.lanes):
            code = Value.cast(core.o.p.code[lane])
            wide = Signal(8 * slot, name=f"out_{lane}")
            m.d.comb += wide.eq(code.as_signed() if self.out_signed else code)
            codes.append(wide)
        m.d.comb += [
            self.m_axis_tdata.eq(Cat(codes)),
            self.m_axis_tkeep.eq(Cat(bit.replicate(slot) for bit in Value.cast(core.o.p.keep))),
            self.m_axis_tlast.eq(core.o.p.last),
            self.m_axis_tvalid.eq(core.o.valid),
            core.o.ready.eq(self.m_axis_tready),
        ]
        with m.If(core.o.valid & self.m_axis_tready & core.o.p.last):
            m.d.sync += rows.eq(rows + 1)
        return rows

    def _is_parameter(self, word: Value) -> Value:
        """Whether a word address names a parameter."""
        raise NotImplementedError

    def _elaborate_writes(self, m: Module) -> Value:
        """Write channel: a write every other cycle; return the status bits to clear."""
        params = self._core.params
        write = write_channel(m, self)
        word, full = write.word, write.full
        m.d.comb += [params.p.address.eq(word), params.p.data.eq(write.value)]
        clear = Signal(3)
        parameter, known = Signal(), Signal()
        addresses = {register.name: register.offset // 4 for register, _ in self.info}
        is_status = word == addresses["status"]
        m.d.comb += [
            parameter.eq(self._is_parameter(word)),
            known.eq(Cat(word == address for address in addresses.values()).any()),
        ]
        with m.If(write.there):
            m.d.comb += params.valid.eq(parameter & full)
            m.d.comb += write.done.eq(~params.valid | params.ready)
        with m.If(write.done):
            m.d.sync += write.response.eq(OKAY)
            with m.If(~parameter & ~known):
                m.d.sync += write.response.eq(DECERR)
            with m.Elif(~full | ~(parameter | is_status)):
                m.d.sync += write.response.eq(SLVERR)
            with m.Elif(is_status):
                m.d.comb += clear.eq(write.value[:3])
        return clear

    def _elaborate_reads(self, m: Module, live: dict[str, Signal]) -> None:
        """Read channel: the registers of ``info``; the data is a register of its own."""
        r_valid, r_data, response = Signal(), Signal(32), Signal(2)
        word = self.s_axil_araddr[2:]
        m.d.comb += [
            self.s_axil_arready.eq(~r_valid),
            self.s_axil_rvalid.eq(r_valid),
            self.s_axil_rdata.eq(r_data),
            self.s_axil_rresp.eq(response),
        ]
        with m.If(r_valid):
            m.d.sync += r_valid.eq(~self.s_axil_rready)
        with m.Elif(self.s_axil_arvalid):
            m.d.sync += [r_valid.eq(1), r_data.eq(0), response.eq(DECERR)]
            with m.If(self._is_parameter(word)):
                m.d.sync += response.eq(SLVERR)
            with m.Switch(word):
                for register, value in self.info:
                    with m.Case(register.offset // 4):
                        m.d.sync += [r_data.eq(live.get(register.name, value)), response.eq(OKAY)]


class AxiSoftmax(AxiRowUnit):
    """AXI top of :class:`rtl.softmax.Log2Softmax`; ``s_axis_tuser`` has a mask bit per lane."""

    operator = "softmax"
    operator_id = 1
    title = "softmax to log2 codes"

    def __init__(self, spec: SoftmaxSpec, *, lanes: int, core: Any = None) -> None:
        if core is None:
            from rtl.softmax import Log2Softmax

            core = Log2Softmax(spec, lanes=lanes)
        super().__init__(
            core,
            field="score",
            longest=spec.max_tokens,
            in_bits=spec.score_bits,
            out_bits=spec.code_bits,
            out_signed=False,
        )

    @property
    def param_registers(self) -> list[Register]:
        """One word."""
        spec = self.spec
        low = max(0, spec.frac_bits - 3)
        text = f"fraction bits of the scores, {low} to {spec.frac_bits}, sampled at a row's start"
        return [Register("frac", 0, "WO", spec.frac_bits.bit_length(), text)]

    def _is_parameter(self, word: Value) -> Value:
        return ~word.any()


class AxiLayerNorm(AxiRowUnit):
    """AXI top of :class:`rtl.layernorm.PtfLayerNorm`, which explains ``port_bits``."""

    operator = "layernorm"
    operator_id = 2
    title = "LayerNorm of power-of-two-factor codes"

    def __init__(
        self, spec: LayerNormSpec, *, lanes: int, port_bits: int = 27, core: Any = None
    ) -> None:
        if core is None:
            from rtl.layernorm import PtfLayerNorm

            core = PtfLayerNorm(spec, lanes=lanes, port_bits=port_bits)
        super().__init__(
            core,
            field="code",
            longest=spec.max_channels,
            in_bits=spec.in_bits,
            out_bits=spec.out_bits,
            out_signed=True,
        )

    @property
    def param_registers(self) -> list[Register]:
        """Scalars, the commit word, three tables."""
        spec = self.spec
        texts = {
            "zero_point": "zero point of the input codes, signed",
            "point": f"fraction bits of the z-score, 0 to {spec.max_point}",
            "eps_low": "E, bits 31 to 0",
            "eps_high": "E, the bits above",
            "commit": "any write makes the words written so far current for the rows that follow",
        }
        tables = {
            "shift": f"PTF shift of a channel, 0 to {spec.max_shift}",
            "gain": "gain of a channel, " + ("signed" if spec.affine == "dyadic" else "0 to 7"),
            "offset": f"offset of a channel, {spec.bounds['offset'].bits} bits signed",
        }
        bits = {
            "zero_point": spec.in_bits,
            "point": spec.max_point.bit_length(),
            "eps_low": min(spec.eps_bits, 32),
            "eps_high": max(spec.eps_bits - 32, 0),
            "commit": 0,
            "shift": spec.max_shift.bit_length(),
            "gain": 16 if spec.affine == "dyadic" else 3,
            "offset": spec.bounds["offset"].bits,
        }
        return [
            *(Register(name, 4 * word, "WO", bits[name], texts[name]) for name, word in WORD.items()),
            *(
                Register(name, 4 * word, "WO", bits[name], tables[name], spec.max_channels)
                for name, word in TABLE.items()
            ),
        ]

    def _is_parameter(self, word: Value) -> Value:
        channel, table = word[:12], word[12:]
        in_table = (table != 0) & (channel < self.spec.max_channels)
        return in_table | (word <= max(WORD.values()))

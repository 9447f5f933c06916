# SPDX-License-Identifier: Apache-2.0
"""The accelerator's registers: what a host writes to start a run and reads when it is done.

``docs/accelerator.md`` has the map. Wrong accesses have no effect: DECERR where nothing is mapped, SLVERR
for a write with strobes missing, to a read-only register, or to the run's addresses and sizes while it
is under way. ``start`` clears what is left of the run before: done, error and counters.
"""

from __future__ import annotations

from typing import Any

from amaranth import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.data import ArrayLayout
from amaranth.lib.wiring import In, Out, Signature
from amaranth.utils import exact_log2

from golden.accelerator import AcceleratorSpec
from golden.program import Error
from rtl.axi import Register
from rtl.axil import DECERR, OKAY, SLVERR, axil_ports, write_channel

__all__ = ["ALIGNMENT", "COUNTERS", "OUTPUTS_BASE", "REGISTERS", "Control", "outputs_signature"]

IDENTITY = int.from_bytes(b"qvit", "big")
MAP_VERSION = 1
OUTPUTS_BASE = 0x4000
COUNTERS = ("array_busy", "layernorm_busy", "softmax_busy", "stream_wait", "unit_wait")
"""Inputs that are counted while a run is under way, in the order of their registers."""
ALIGNMENT = 6
"""Low bits of an address that are always 0."""

REGISTERS = tuple(
    Register(name, offset, access, width, text)
    for name, offset, access, width, text in (
        ("id", 0x00, "RO", 32, "the letters qvit"),
        ("version", 0x04, "RO", 32, "version of this register map"),
        ("fingerprint_low", 0x08, "RO", 32, "fingerprint of the spec, low half"),
        ("fingerprint_high", 0x0C, "RO", 32, "and high half"),
        ("control", 0x10, "WO", 1, "bit 0: start, ignored while busy"),
        ("status", 0x14, "RW1C", 8, "bit 0: busy, bit 1: done, write 1 to clear; bits 7 to 4: error"),
        ("interrupt", 0x18, "RW", 1, "bit 0: raise irq while done"),
        ("image_address_low", 0x20, "RW", 32, "address of the image in bytes, a multiple of 64"),
        ("image_address_high", 0x24, "RW", 32, "and its high half"),
        ("image_words", 0x28, "RW", 32, "words of the image"),
        ("program_address_low", 0x30, "RW", 32, "address of the program in bytes, a multiple of 64"),
        ("program_address_high", 0x34, "RW", 32, "and its high half"),
        ("program_words", 0x38, "RW", 32, "words of the program"),
        ("cycles_low", 0x40, "RO", 32, "cycles of the run, from start to done"),
        ("cycles_high", 0x44, "RO", 32, "and the high half"),
        ("array_busy", 0x48, "RO", 32, "cycles in which a source word went through the array"),
        ("layernorm_busy", 0x4C, "RO", 32, "cycles in which LayerNorm had a row"),
        ("softmax_busy", 0x50, "RO", 32, "cycles in which softmax had a row"),
        ("stream_wait", 0x54, "RO", 32, "cycles in which the sequencer waited for the stream"),
        ("unit_wait", 0x58, "RO", 32, "cycles in which it waited for a unit"),
        ("size", 0x5C, "RO", 32, "elements of a word"),
    )
)
_RUN = tuple(r.name for r in REGISTERS if r.name.startswith(("image_", "program_")))
"""Registers that describe the run, and keep still while it is under way."""


def _zeros(name: str) -> int:
    """Low bits of a register that are always 0."""
    return ALIGNMENT if name.endswith("address_low") else 0


def outputs_signature(spec: AcceleratorSpec) -> Signature:
    """Read port of the outputs as who reads them has it; ``word`` is valid in the cycle after ``en``."""
    return Signature(
        {
            "en": Out(1),
            "address": Out(spec.address_bits("outputs")),
            "word": In(ArrayLayout(signed(32), spec.size)),
        }
    )


class Control(wiring.Component):
    """Registers behind AXI4-Lite.

    Members towards the core:

    - ``start : Out(1)``: a pulse; ``image_address, program_address : Out(64)``,
      ``image_words, program_words : Out(32)``: constant from there to ``finished``.
    - ``finished : In(1)``: a pulse, with ``error : In(Error)``.
    - ``array_busy, layernorm_busy, softmax_busy, stream_wait, unit_wait : In(1)``: cycles to count.
    - ``outputs : Out(outputs_signature(size))``: read port of the outputs.

    Members towards the host: ``irq : Out(1)`` and the ports of :func:`rtl.axil.axil_ports`.
    """

    def __init__(self, spec: AcceleratorSpec) -> None:
        self._spec = spec
        end = OUTPUTS_BASE + 4 * spec.outputs * spec.size
        super().__init__(
            {
                "start": Out(1),
                "image_address": Out(64),
                "image_words": Out(32),
                "program_address": Out(64),
                "program_words": Out(32),
                "finished": In(1),
                "error": In(Error),
                **{name: In(1) for name in COUNTERS},
                "outputs": Out(outputs_signature(spec)),
                "irq": Out(1),
                **axil_ports((end - 1).bit_length()),
            }
        )

    @property
    def spec(self) -> AcceleratorSpec:
        """What this is the control of."""
        return self._spec

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        busy, done, error, interrupt = Signal(), Signal(), Signal(Error), Signal()
        written: dict[str, Value] = {"interrupt": interrupt}
        for region in ("image", "program"):
            address, words = Signal(64 - ALIGNMENT, name=f"{region}_place"), getattr(self, f"{region}_words")
            m.d.comb += getattr(self, f"{region}_address").eq(Cat(Const(0, ALIGNMENT), address))
            written[f"{region}_address_low"] = address[: 32 - ALIGNMENT]
            written[f"{region}_address_high"] = address[32 - ALIGNMENT :]
            written[f"{region}_words"] = words
        live: dict[str, Any] = {
            "id": IDENTITY,
            "version": MAP_VERSION,
            "fingerprint_low": self._spec.fingerprint & 0xFFFFFFFF,
            "fingerprint_high": self._spec.fingerprint >> 32,
            "control": 0,
            "status": Cat(busy, done, Const(0, 2), error),
            "size": self._spec.size,
            **self._counters(m, busy),
            **{name: Cat(Const(0, _zeros(name)), value) for name, value in written.items()},
        }
        start, clear = self._writes(m, written, busy)
        self._reads(m, live)
        m.d.sync += self.start.eq(start)
        with m.If(start):
            m.d.sync += [busy.eq(1), done.eq(0), error.eq(0)]
        with m.Elif(busy & self.finished):
            m.d.sync += [busy.eq(0), done.eq(1), error.eq(self.error)]
        with m.Elif(clear):
            m.d.sync += [done.eq(0), error.eq(0)]
        m.d.comb += self.irq.eq(done & interrupt)
        return m

    def _counters(self, m: Module, busy: Signal) -> dict[str, Value]:
        """The counters, by the names of their registers; ``start`` is the first cycle that counts."""
        cycles = Signal(64)
        with m.If(busy):
            m.d.sync += cycles.eq(Mux(self.start, 0, cycles) + 1)
        found: dict[str, Value] = {"cycles_low": cycles[:32], "cycles_high": cycles[32:]}
        for name in COUNTERS:
            count = Signal(32, name=f"count_{name}")
            with m.If(busy):
                m.d.sync += count.eq(Mux(self.start, 0, count) + getattr(self, name))
            found[name] = count
        return found

    def _writes(self, m: Module, written: dict[str, Value], busy: Signal) -> tuple[Value, Value]:
        """Write channel; returns the pulses that start a run and that clear done."""
        write = write_channel(m, self)
        start, clear = Signal(), Signal()
        m.d.comb += write.done.eq(write.there)
        window = self._in_window(write.word)
        with m.If(write.there):
            m.d.sync += write.response.eq(Mux(window, SLVERR, DECERR))
            with m.Switch(write.word):
                for register in REGISTERS:
                    with m.Case(register.offset // 4):
                        m.d.sync += write.response.eq(SLVERR)
                        if register.access == "RO":
                            continue
                        still = busy if register.name in _RUN else Const(0)
                        with m.If(write.full & ~still):
                            m.d.sync += write.response.eq(OKAY)
                            if register.name == "control":
                                m.d.comb += start.eq(write.value[0] & ~busy)
                            elif register.name == "status":
                                m.d.comb += clear.eq(write.value[1])
                            else:
                                value = write.value[_zeros(register.name) :]
                                m.d.sync += written[register.name].eq(value)
        return start, clear

    def _reads(self, m: Module, live: dict[str, Any]) -> None:
        """Read channel: a register at once, an output when its word has come."""
        r_valid, r_data, response = Signal(), Signal(32), Signal(2)
        fetching = Signal()
        lane_bits = exact_log2(self._spec.size)
        place = self.s_axil_araddr[2:] - OUTPUTS_BASE // 4
        lane = Signal(lane_bits)
        m.d.comb += [
            self.s_axil_arready.eq(~r_valid & ~fetching),
            self.s_axil_rvalid.eq(r_valid),
            self.s_axil_rdata.eq(r_data),
            self.s_axil_rresp.eq(response),
            self.outputs.address.eq(place[lane_bits:]),
        ]
        with m.If(fetching):
            m.d.sync += [fetching.eq(0), r_valid.eq(1), r_data.eq(self.outputs.word[lane])]
        with m.Elif(r_valid):
            m.d.sync += r_valid.eq(~self.s_axil_rready)
        with m.Elif(self.s_axil_arvalid):
            word = self.s_axil_araddr[2:]
            m.d.sync += [r_valid.eq(1), r_data.eq(0), response.eq(DECERR)]
            with m.Switch(word):
                for register in REGISTERS:
                    with m.Case(register.offset // 4):
                        m.d.sync += [r_data.eq(live[register.name]), response.eq(OKAY)]
            with m.If(self._in_window(word)):
                m.d.comb += self.outputs.en.eq(1)
                m.d.sync += [fetching.eq(1), r_valid.eq(0), lane.eq(place), response.eq(OKAY)]

    def _in_window(self, word: Value) -> Value:
        """Whether a word address names an output."""
        first = OUTPUTS_BASE // 4
        return (word >= first) & (word < first + self._spec.outputs * self._spec.size)

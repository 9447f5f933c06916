# SPDX-License-Identifier: Apache-2.0
"""The parameters of :mod:`rtl.layernorm`: two banks of them, scalars in registers, columns in memories.

A column has a value for each channel, and each lane a memory of its channels: word ``beat`` of lane
``l`` is the value of channel ``beat * lanes + l``.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib.memory import Memory

from golden.cycles import QUEUE_DEPTH
from golden.layernorm import TABLE, WORD, LayerNormSpec
from rtl.arith import carried
from rtl.row import RowStore, delayed

__all__ = ["LayerNormBanks"]

CHANNEL_BITS = 12
NARROW = 4
"""Words of so many bits have block RAMs of 4096 of them in any family."""
ROWS_UNDER_WAY = QUEUE_DEPTH + 31
"""Rows that may be under way at once: those queued, one arriving, and those inside the pipelines."""


class LayerNormBanks:
    """Two banks of parameters: one for arriving rows, the other being written.

    A row keeps the bank that was current at its first beat. The port is ready while no row uses the
    bank that is not current, so that a write never reaches a row under way.
    """

    def __init__(self, m: Module, spec: LayerNormSpec, lanes: int, port: Any, deepest: int) -> None:
        """``deepest``: words of the family's deepest block RAM."""
        self._spec, self._lanes, self._deepest = spec, lanes, deepest
        self._beats = -(-spec.max_channels // lanes)
        self.current = Signal(name="current_bank")
        self.arriving = Signal(name="arriving_bank")
        self.arrives, self.leaves = Signal(name="row_arrives"), Signal(name="row_leaves")
        self.eps = Array(Signal(spec.eps_bits, name=f"eps_{bank}") for bank in range(2))
        self.point = Array(Signal(range(spec.max_point + 1), name=f"point_{b}") for b in range(2))
        self._zero_point = Array(
            Signal(signed(spec.in_bits), name=f"zero_point_{bank}") for bank in range(2)
        )
        offset_bits = spec.bounds["offset"].bits + 1  # the rounding half is added in
        self._columns = {
            "shift": self._memories(m, "shift", max(spec.max_shift.bit_length(), 1)),
            "gain": self._memories(m, "gain", spec.gain_range.bits),
            "offset": self._memories(m, "offset", offset_bits),
        }
        self._write(m, port)

    def _memories(self, m: Module, name: str, width: int) -> list[list[Memory]]:
        """For each lane one memory, with the bank as the highest address bit, or one for each bank.

        Two where both banks in one would take two rows of block RAMs: the choice between those comes before
        the register that is the RAM's own, and block RAMs are slow; that between banks comes behind it.
        """
        depth = 2 << max(self._beats - 1, 1).bit_length()
        # Deep and narrow ones would otherwise end up in LUTs, at several LUTs a bit.
        attrs: dict[str, Any] = {"ram_style": "block"} if depth > 128 else {}
        attrs["no_rw_check"] = 1  # no row reads the bank that is written
        parts = 2 if depth > self._deepest and width > NARROW else 1
        memories: list[list[Memory]] = []
        for lane in range(self._lanes):
            memories.append([])
            for bank in range(parts):
                memory = Memory(shape=unsigned(width), depth=depth // parts, init=[], attrs=attrs)
                m.submodules[f"{name}_memory_{lane}" + (f"_{bank}" if parts > 1 else "")] = memory
                memories[-1].append(memory)
        return memories

    def _step(self, m: Module, beat: Signal, step: Value, last: Value) -> None:
        """Count a row's beats, from 0."""
        with m.If(step & last):
            m.d.sync += beat.eq(0)
        with m.Elif(step):
            m.d.sync += beat.eq(beat + 1)

    def _address(self, bank: Value, beat: Value) -> Value:
        bits = max(self._beats - 1, 1).bit_length()
        return Cat(beat[:bits], *[0] * (bits - len(beat[:bits])), bank)

    def _write(self, m: Module, port: Any) -> None:
        """Decode a write in one cycle, carry it out in the next; a commit acts at once."""
        spec, idle, bank = self._spec, ~self.current, Signal(name="write_bank")
        write, word = Signal(name="write"), Signal(32, name="write_data")
        address = Signal(len(port.payload.address), name="write_address")
        row = Signal(CHANNEL_BITS, name="write_row")
        lane = Signal(range(max(self._lanes, 2)), name="write_lane")
        channel = port.payload.address[:CHANNEL_BITS]
        # channel div lanes; for lanes that are no power of two by an exact reciprocal.
        quotient = (channel * -(-(1 << 17) // self._lanes)) >> 17
        m.d.sync += [
            write.eq(port.valid & port.ready),
            word.eq(port.payload.data),
            address.eq(port.payload.address),
            row.eq(quotient),
            lane.eq(channel - quotient * self._lanes),
            bank.eq(idle),
        ]
        commit = Signal()
        m.d.comb += commit.eq(port.valid & port.ready & (port.payload.address == WORD["commit"]))
        with m.If(commit):
            m.d.sync += self.current.eq(idle)
        self._free(m, port, commit)
        scalar = write & (address[CHANNEL_BITS:] == 0)
        half = 1 << (spec.output_shift - 1)
        for index in range(2):
            for name, target in (
                ("zero_point", self._zero_point[index]),
                ("point", self.point[index]),
                ("eps_low", self.eps[index][:32]),
                ("eps_high", self.eps[index][32:]),
            ):
                hit = scalar & (address[:CHANNEL_BITS] == WORD[name]) & (bank == index)
                with m.If(hit):
                    m.d.sync += target.eq(word)
        for name, memories in self._columns.items():
            value = (word.as_signed() + half) if name == "offset" else word
            hit = write & (address[CHANNEL_BITS:] == TABLE[name] >> CHANNEL_BITS)
            for index, banks in enumerate(memories):
                for number, memory in enumerate(banks):
                    writer = memory.write_port()
                    chosen = (bank == number) if len(banks) > 1 else 1
                    m.d.comb += [
                        writer.en.eq(hit & (lane == index) & chosen),
                        writer.addr.eq(self._address(bank, row)[: len(writer.addr)]),
                        writer.data.eq(value),
                    ]

    def _free(self, m: Module, port: Any, commit: Value) -> None:
        """Ready to write once the rows that were under way at the last commit have left: in order, hence
        when as many have left as had arrived.
        """
        rows = {name: Signal(range(ROWS_UNDER_WAY + 1), name=name) for name in ("arrived", "left", "mark")}
        with m.If(self.arrives):
            m.d.sync += rows["arrived"].eq(rows["arrived"] + 1)
        with m.If(self.leaves):
            m.d.sync += rows["left"].eq(rows["left"] + 1)
        free, committed = Signal(init=1), delayed(m, commit, 1, "committed")
        m.d.comb += port.ready.eq(free)
        with m.If(committed):  # rows that arrive from now on have the new bank
            m.d.sync += rows["mark"].eq(rows["arrived"])
        with m.If(commit):
            m.d.sync += free.eq(0)
        with m.Elif(~committed & (rows["left"] == rows["mark"])):
            m.d.sync += free.eq(1)

    def _read(self, m: Module, name: str, bank: Value, beat: Value, cycles: int) -> list[Value]:
        """One column's entries of a beat, some cycles after its address."""
        found: list[list[Value]] = []
        for lane, banks in enumerate(self._columns[name]):
            found.append([])
            for number, memory in enumerate(banks):
                reader = memory.read_port(domain="comb")
                m.d.comb += reader.addr.eq(self._address(bank, beat)[: len(reader.addr)])
                entry = f"{name}_entry_{lane}" + (f"_{number}" if len(banks) > 1 else "")
                found[-1].append(carried(m, reader.data, cycles, entry))
        if len(found[0]) == 1:
            return [entry for (entry,) in found]
        late = delayed(m, bank, cycles, f"{name}_bank")
        return [Mux(late, second, first) for first, second in found]

    def arrive(
        self, m: Module, taken: Value, opening: Value, last: Value
    ) -> tuple[list[Value], Value]:
        """Choose the bank of an arriving row; shifts and zero point one cycle after each beat."""
        beat = Signal(range(max(self._beats, 2)), name="arriving_beat")
        bank = Mux(opening, self.current, self.arriving)
        self._step(m, beat, taken, last)
        with m.If(taken):
            m.d.sync += self.arriving.eq(bank)
        m.d.comb += self.arrives.eq(taken & opening)
        return self._read(m, "shift", bank, beat, 1), self._zero_point[self.arriving]

    def leave(self, m: Module, rows: RowStore) -> tuple[list[Value], list[Value]]:
        """Gains and offsets, 7 and 10 cycles after a beat's ``rows.valid``; releases the bank."""
        beat = Signal(range(max(self._beats, 2)), name="leaving_beat")
        self._step(m, beat, rows.valid, rows.last)
        bank = delayed(m, rows.row_out.bank, 5, "leaving_bank")
        beat = delayed(m, beat, 5, "leaving_beat")
        gains = self._read(m, "gain", bank, beat, 2)
        bank, beat = delayed(m, bank, 3, "offset_bank"), delayed(m, beat, 3, "offset_beat")
        offsets = self._read(m, "offset", bank, beat, 2)
        m.d.comb += self.leaves.eq(delayed(m, rows.valid & rows.last, 9, "released"))
        return gains, [offset.as_signed() for offset in offsets]

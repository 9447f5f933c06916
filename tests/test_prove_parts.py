# amaranth: UnusedElaboratable=no
# SPDX-License-Identifier: Apache-2.0
"""The parts of units: what is proven of them by induction is refuted of parts that are broken on purpose."""

from __future__ import annotations

import re

import numpy as np
import pytest
from amaranth.hdl import Cat, Const, Mux, Signal
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.memory import Memory

import rtl.axi
import rtl.dma
from qvit_hw.proofs import bursts, packing, row_store, turns
from qvit_hw.proofs.property import Counterexample
from rtl.row import Queue, RowStore
from rtl.stream import Turns
from sim.stream import pack


def refuted(found, text):
    """The counterexample speaks of beats, rows and golden's names, not of the netlist."""
    assert isinstance(found, Counterexample), text
    assert text in found.text
    assert "$" not in found.text
    assert "__" not in found.text
    return found


# -------------------------------------------------------------------------------------- rows of beats


def ring_with(*, writes, reads):
    """``RowStore._ring`` that writes, or goes on to the next beat, only where it may."""

    def ring(self, m):
        m.submodules.ring = ring = Memory(shape=self._beat, depth=self._depth, init=[])
        writer, reader = ring.write_port(), ring.read_port(domain="comb")
        stored = Signal(self._beat, reset_less=True)
        m.d.comb += [
            writer.en.eq(self.write & writes(self)),
            writer.data.eq(self.beat_in),
            self.beat_out.eq(stored),
        ]
        m.d.sync += writer.addr.eq(writer.addr + self.write)
        with m.If(self.step):
            m.d.sync += stored.eq(reader.data)
        m.d.sync += reader.addr.eq(reader.addr + (self.step & reads(self)))
        return reader.addr

    return ring


RINGS = {
    "a beat written is not the last": {"writes": lambda s: ~s.step, "reads": lambda s: 1},
    "a beat that waits changes or moves": {"writes": lambda s: 1, "reads": lambda s: ~s.take},
}


@pytest.mark.parametrize("text", RINGS)
def test_a_ring_that_loses_or_repeats_a_beat(text, monkeypatch):
    monkeypatch.setattr(RowStore, "_ring", ring_with(**RINGS[text]))
    refuted(row_store.stores(2, 2), f"row store: {text}, with ")


def store_with(change):
    """``RowStore.elaborate``, then what breaks it."""
    plain = RowStore.elaborate

    def elaborate(self, platform):
        m = plain(self, platform)
        change(m, self)
        return m

    return elaborate


def swap_first(m, store):
    with m.If(store.write):
        m.d.sync += store.first.eq(store.last)


def swap_row(m, store):
    with m.If(store.count & store.count_last & store.take):
        m.d.comb += m.submodules.queue.entry.row.eq(~store.row_in.as_value())


def row_too_many(m, store):
    with m.If(store.count):
        m.d.comb += m.submodules.queue.write.eq(1)


def lost_count(m, store):
    with m.If(store.take & store.step):
        m.d.comb += m.submodules.beats.give.eq(0)


def wrong_end(m, store):
    with m.If(store.count & store.take):
        m.d.comb += m.submodules.queue.entry.end.eq(Cat(store.write))


def hide_valid(m, store):
    m.d.sync += store.valid.eq(store.step & ~store.write)


STORES = {
    swap_first: "the beat read has another row's descriptor, first or last",
    swap_row: "a row that becomes complete has another's descriptor or end",
    wrong_end: "a row that becomes complete has another's descriptor or end",
    row_too_many: "a row that waits changes",
    lost_count: "beats or rows are lost or counted twice",
    hide_valid: "a beat is announced that was not read, or none that was",
}


@pytest.mark.parametrize("change", STORES)
def test_a_store_that_tells_a_row_wrong(change, monkeypatch):
    monkeypatch.setattr(RowStore, "elaborate", store_with(change))
    refuted(row_store.stores(2, 2), f"row store: {STORES[change]}, with ")


def test_a_queue_of_rows_that_shows_the_newest(monkeypatch):
    def newest(self, platform):
        m = plain(self, platform)
        with m.If(self.write & self.pop):
            m.d.sync += m.submodules.storage.read_ports[0].addr.eq(0)
        return m

    plain = Queue.elaborate
    monkeypatch.setattr(Queue, "elaborate", newest)
    refuted(row_store.stores(2, 2), "row store: ")


def test_a_store_as_it_is():
    assert row_store.stores(2, 2) is None


# ------------------------------------------------------------------------------------------- banks


def always_free(own):
    own.free = Const(1, 1)


def never_free(own):
    own.free = Const(0, 1)


def newest_bank(own):
    own.bank = Mux(own.opening, own._current, own._current)


def free_too_early(own):
    own.free = own.free | ~own.opening


USED = "a bank is free that beats use, or is not that none uses"
BANKS = {
    always_free: USED,
    never_free: USED,
    free_too_early: USED,
    newest_bank: "a row changes its bank",
}


@pytest.mark.parametrize("change", BANKS)
def test_banks_that_do_not_take_turns(change, monkeypatch):
    plain = Turns.__init__

    def changed(self, *given):
        plain(self, *given)
        change(self)

    monkeypatch.setattr(Turns, "__init__", changed)
    found = refuted(turns.turns(2), f"banks, 2 cycles a beat: {BANKS[change]}; ")
    assert re.search(r"taken [01]{4}, last [01]{4}, bank [01]{4}, idle [01]{4}, free [01]{4}$", found.text)


def test_banks_that_stay(monkeypatch):
    monkeypatch.setattr(Turns, "switch", lambda self, when: None)
    refuted(turns.turns(2), "banks do not take turns")


def test_a_row_that_does_not_end(monkeypatch):
    plain = Turns.__init__

    def endless(self, m, held, taken, last):
        plain(self, m, held, taken, Const(0, 1))

    monkeypatch.setattr(Turns, "__init__", endless)
    refuted(turns.turns(1), "a row does not end")


# ------------------------------------------------------------------------------------------- bursts


def test_a_pause_that_is_longer_than_told(monkeypatch):
    monkeypatch.setattr(bursts, "PAUSE", 1)
    refuted(bursts.bursts(4, 32), "a pause of more than 1 cycles with 0 words of a region left, arready ")


def test_a_queue_that_is_smaller_than_promised(monkeypatch):
    def shallow(*, width, depth):
        return SyncFIFOBuffered(width=width, depth=depth - 1)

    monkeypatch.setattr(rtl.dma, "SyncFIFOBuffered", shallow)
    refuted(bursts.bursts(4, 32), "bursts: words are lost count of, with promised 32, under way ")


def test_a_reader_that_promises_more_than_it_has(monkeypatch):
    monkeypatch.setattr(bursts, "BURST", 8)
    plain = rtl.dma.BurstReader

    def generous(*, size, depth, burst, align):
        return plain(size=size, depth=depth + 8, burst=burst, align=align)

    monkeypatch.setattr(bursts, "BurstReader", generous)
    refuted(bursts.bursts(4, 32), "bursts: words are lost count of")


# ---------------------------------------------------------------------------------------- AXI beats


def test_bits_are_where_the_testbench_has_them():
    """What is asked of ``pack`` bit by bit is what it does to whole rows."""
    rng = np.random.default_rng(3)
    for lanes, slot in ((1, 1), (3, 2), (4, 5)):
        where, legal = packing.places(lanes, slot), packing.keeps(lanes, slot)
        for count in range(1, lanes + 1):
            row = rng.integers(-1 << 8 * slot - 1, 1 << 8 * slot - 1, count)
            beat = pack(row, np.array([count]), lanes, slot)
            placed = sum(
                (int(value) >> bit & 1) << where[lane][bit]
                for lane, value in enumerate(row)
                for bit in range(8 * slot)
            )
            assert (beat.data, beat.keep) == ([placed], [legal[count - 1]])


def test_a_top_as_it_is():
    assert packing.beats_in("softmax, 3 lanes") is None
    assert packing.beats_out("residual, 4 lanes") is None


def broken(name, method, change):
    """A top whose adapter is the real one on a changed side."""
    make = packing.TOPS[name]

    def build():
        top = make()
        plain = getattr(top, method)

        def other(m):
            result = plain(m)
            change(m, top)
            return result

        vars(top)[method] = other
        return top

    return build


def cut_short(m, top):
    m.d.comb += top.core.i.p.score[1].eq(top.s_axis_tdata.word_select(1, 8))


def keep_all(m, top):
    m.d.comb += top.core.i.p.keep.eq(-1)


def endless_row(m, top):
    m.d.comb += top.core.i.p.last.eq(top.s_axis_tlast)


def always_ready(m, top):
    m.d.comb += top.s_axis_tready.eq(1)


def no_sign(m, top):
    m.d.comb += top.m_axis_tdata.eq(top.core.o.p.code[0].as_unsigned())


def one_byte(m, top):
    m.d.comb += top.m_axis_tkeep.eq(top.core.o.p.keep[:1])


INTO = {
    cut_short: "an element is not its slot's low bits",
    keep_all: "keep is not the longest legal prefix",
    endless_row: "last is wrong",
    always_ready: "a beat is taken that is not, or the other way",
}
OUT = {
    no_sign: "a code is not its slot's number",
    one_byte: "keep is not that of whole slots",
}


@pytest.mark.parametrize("change", INTO)
def test_a_top_that_takes_beats_wrong(change, monkeypatch):
    name = "softmax, 4 lanes"
    monkeypatch.setitem(packing.TOPS, name, broken(name, "_elaborate_input", change))
    found = refuted(packing.beats_in(name), f"AXI top of {name}: {INTO[change]}; beat ")
    assert found.values.keys() >= {"tdata", "tkeep", "tlast"}


@pytest.mark.parametrize("change", OUT)
def test_a_top_that_gives_beats_wrong(change, monkeypatch):
    name = "layernorm, 4 lanes"
    monkeypatch.setitem(packing.TOPS, name, broken(name, "_elaborate_output", change))
    refuted(packing.beats_out(name), f"AXI top of {name}: {OUT[change]}; code ")


def test_a_top_that_forgets_what_it_found(monkeypatch):
    plain = rtl.axi.AxiRowUnit._elaborate_input
    monkeypatch.setattr(rtl.axi.AxiRowUnit, "_elaborate_input", lambda self, m: plain(self, m) & 0b101)
    refuted(packing.beats_in("gelu, 8 lanes"), "something is not noted")


def test_a_top_that_finds_what_is_not(monkeypatch):
    plain = rtl.axi.AxiRowUnit._elaborate_input
    monkeypatch.setattr(rtl.axi.AxiRowUnit, "_elaborate_input", lambda self, m: plain(self, m) | 0b010)
    refuted(packing.beats_in("gelu, 8 lanes"), "something is noted that was not so")

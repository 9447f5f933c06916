# amaranth: UnusedElaboratable=no
# SPDX-License-Identifier: Apache-2.0
"""The parts of units: what is proven of them by induction is refuted of parts that are broken on purpose."""

from __future__ import annotations

import re

import pytest
from amaranth.hdl import Cat, Const, Mux, Signal
from amaranth.lib.memory import Memory

from qvit_hw.proofs import row_store, turns
from qvit_hw.proofs.property import Counterexample
from rtl.row import Queue, RowStore
from rtl.stream import Turns


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
    "beats or rows are lost or counted twice": {"writes": lambda s: 1, "reads": lambda s: ~s.take},
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


def count_twice(m, store):
    with m.If(store.count & store.take):
        m.d.comb += m.submodules.queue.entry.end.eq(Cat(store.write))


def hide_valid(m, store):
    m.d.sync += store.valid.eq(store.step & ~store.write)


STORES = {
    swap_first: "the beat read has another row's descriptor, first or last",
    swap_row: "a row that becomes complete has another's descriptor or end",
    count_twice: "beats or rows are lost or counted twice",
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

    def endless(self, m, stages, taken, last):
        plain(self, m, stages, taken, Const(0, 1))

    monkeypatch.setattr(Turns, "__init__", endless)
    refuted(turns.turns(1), "a row does not end")

# amaranth: UnusedElaboratable=no
# SPDX-License-Identifier: Apache-2.0
"""Every kind of proof about streams and accumulators refutes a unit that is broken on purpose."""

from __future__ import annotations

import pickle
import re
from dataclasses import replace

import pytest
from amaranth.hdl import Const, Module, Mux, Signal
from amaranth.lib.wiring import In

import rtl.row
import rtl.softmax
import rtl.stream
from golden.bounds import Interval
from qvit_hw.proofs import (
    accumulators,
    bursts,
    independence,
    packing,
    partial_sums,
    queues,
    registers,
    row_store,
    streams,
    turns,
)
from qvit_hw.proofs.accumulators import holds, tight, witness
from qvit_hw.proofs.registers import ACCUMULATORS
from qvit_hw.proofs.subjects import SUBJECTS, Depths
from rtl.row import Credits, OutputQueue, Queue, RowStore

QUICK = 10
"""Cycles of runs of the shortest unit."""


def credits_with(*, endless=False, leak=False):
    """``Credits.elaborate`` of places without an end, or that loses one given back while another is taken."""

    def elaborate(self, platform):
        m = Module()
        places = self.room.init  # and not the items of a queue
        given = Signal(range(self._count))
        next_taken = Signal(range(self._count), init=1)
        lost = self.take if leak and places else Const(0, 1)
        with m.If(self.give & ~lost):
            m.d.sync += [given.eq(given + 1), self.room.eq(1)]
        never = self.give if endless and places else Const(1, 1)
        with m.Elif(self.take & (next_taken == given) & never):
            m.d.sync += self.room.eq(0)
        with m.If(self.take):
            m.d.sync += next_taken.eq(next_taken + 1)
        return m

    return elaborate


def queue_with(*, fewer=1, hasty=False, shy=False):
    """``OutputQueue.elaborate`` with fewer places, without regard to ready, or valid only while ready."""

    def elaborate(self, platform):
        m = Module()
        m.submodules.queue = queue = Queue(self._layout, self._depth // fewer)
        m.submodules.credits = credits = Credits(self._depth)
        transfer = queue.valid & (1 if hasty else self.o.ready)
        m.d.comb += [
            queue.write.eq(self.write),
            queue.entry.eq(self.payload),
            queue.pop.eq(transfer),
            self.o.payload.eq(queue.head),
            self.o.valid.eq(queue.valid & self.o.ready if shy else queue.valid),
            self.room.eq(credits.room),
            credits.take.eq(self.take),
            credits.give.eq(transfer),
        ]
        return m

    return elaborate


class Forgetful(RowStore):
    """A store that marks no beat as the first of its row: what is summed behind it is never cleared."""

    def __init__(self, beat, row, *, max_beats, slack):
        self._given = {"beat": beat, "row": row, "max_beats": max_beats, "slack": slack}
        super().__init__(beat, row, max_beats=max_beats, slack=slack)

    def elaborate(self, platform):
        m = Module()
        m.submodules.inner = inner = RowStore(**self._given)
        inner._depth = self._depth
        for name, member in self.signature.members.items():
            ours, its = getattr(self, name), getattr(inner, name)
            if member.flow == In:
                m.d.comb += its.eq(ours)
            elif name != "first":
                m.d.comb += ours.eq(its)
        return m


def told(found, *words):
    """The counterexample's text, which speaks of rows, beats and golden's names and not of the netlist."""
    assert found is not None
    for word in words:
        assert re.search(word, found.text), found.text
    assert "$" not in found.text
    assert "__" not in found.text
    return found.text


def test_properties_are_listed_once_and_can_be_sent_to_a_process():
    modules = (streams, queues, row_store, turns, packing, bursts, accumulators)
    listed = [each for module in modules for each in module.properties()]
    assert len({(each.unit, each.name) for each in listed}) == len(listed) >= 50
    assert {each.kind for each in listed} == {"stream", "accumulator"}
    for each in listed:
        assert each.claim
        assert each.scope
        assert pickle.loads(pickle.dumps(each)).check.func is each.check.func


def test_the_shortest_unit_keeps_every_claim():
    assert streams.keeps_order("gelu", QUICK) is None
    assert streams.stable("gelu", QUICK) is None
    assert streams.valid_alone("gelu") is None
    assert streams.whole_memories("gelu") is None
    assert streams.progress("gelu", 4, 8) is None
    assert streams.full_rate("gelu", 20) is None
    assert independence.independent("gelu", QUICK) is None


def test_shallow_queues_are_the_same_unit_at_other_depths():
    before = rtl.row.QUEUE_DEPTH
    circuit, _, _ = SUBJECTS["softmax"]().build(Depths(output=2, ring=4, rows=2))
    deep, _, _ = SUBJECTS["softmax"]().build()
    assert circuit.inputs.keys() >= {"i__valid", "i__payload", "o__ready", "params__valid"}
    assert len(circuit.states) == len(deep.states)
    assert before == rtl.row.QUEUE_DEPTH


# ------------------------------------------------------------------------------------------ parts


def test_credits_without_an_end(monkeypatch):
    monkeypatch.setattr(Credits, "elaborate", credits_with(endless=True))
    told(queues.counts(4), r"3 of 4 places in use, 1 taken and 0 given: room 1 with 4 in use")
    told(queues.queues(4), "output queue of 4: occupancy is lost, with . beats waiting")
    told(row_store.stores(2, 2), "row store: beats or rows are lost or counted twice, with . taken")
    told(row_store.in_cycles(10), r"row store: beat \d+ is")
    told(streams.keeps_order("gelu", QUICK), r"row \d, beat \d: keep \[.*\] and last \[.\] delivered")


def test_credits_that_are_lost(monkeypatch):
    monkeypatch.setattr(Credits, "elaborate", credits_with(leak=True))
    told(queues.counts(4), "1 taken and 1 given")
    told(streams.full_rate("gelu", 24), r"row \d+: input not ready in cycle \d+")


def test_queue_too_short(monkeypatch):
    monkeypatch.setattr(OutputQueue, "elaborate", queue_with(fewer=2))
    told(queues.queues(4), "output queue of 4")
    told(streams.keeps_order("gelu", QUICK, Depths(4, 4, 2)), r"row \d, beat \d: keep \[.*\] and last")


def test_queue_that_ends_before_its_addresses(monkeypatch):
    monkeypatch.setattr(rtl.stream, "OUTPUT_DEPTH", 17)
    told(streams.whole_memories("gelu"), "gelu: of 32 addresses a memory has 17 words")


# ---------------------------------------------------------------------------------------- handshake


def test_queue_that_does_not_wait(monkeypatch):
    monkeypatch.setattr(OutputQueue, "elaborate", queue_with(hasty=True))
    told(streams.stable("gelu", QUICK), r"beat \d: output \(code .*\) waits in cycle \d+ and is")
    told(streams.keeps_order("gelu", QUICK), r"row \d, beat \d: keep")
    told(streams.progress("gelu", 6, 8), r"\d rows complete after 6 cycles; 8 cycles later.* beats of")


def test_valid_that_waits_for_ready(monkeypatch):
    monkeypatch.setattr(OutputQueue, "elaborate", queue_with(shy=True))
    told(streams.valid_alone("gelu"), "valid 0 while ready is 0, valid 1 while it is 1")


# -------------------------------------------------------------------------------- rows and parameters


def test_sum_that_is_not_cleared_between_rows(monkeypatch):
    monkeypatch.setattr(rtl.softmax, "RowStore", Forgetful)
    text = told(independence.independent("softmax", 26), r"row [23], beat \d: codes \[.*\], alone \[.*\]")
    assert "after a first row [score" in text


def test_row_that_is_wrong_alone(monkeypatch):
    subject = SUBJECTS["gelu"]()
    codes = [[[*codes[:-1], codes[-1] ^ 1] for codes in each] for each in subject.codes]
    monkeypatch.setitem(SUBJECTS, "gelu", lambda: replace(subject, codes=codes))
    told(independence.independent("gelu", QUICK), "row 1 of numbers, alone, with the first set")


def test_parameters_written_under_a_row(monkeypatch):
    plain = rtl.stream.Turns.__init__

    def hasty(self, *args):
        plain(self, *args)
        self.free = Const(1, 1)

    monkeypatch.setattr(rtl.stream.Turns, "__init__", hasty)
    told(independence.independent("requant", 16), r"row 2, beat \d: codes .*, alone \[.*\] .* with the first")


def test_bank_of_the_row_that_is_not_kept(monkeypatch):
    plain = rtl.stream.Turns.__init__

    def forgetful(self, *args):
        plain(self, *args)
        self.bank = Mux(self.opening, self._current, self._current)

    monkeypatch.setattr(rtl.stream.Turns, "__init__", forgetful)
    told(independence.independent("gelu", QUICK), "row 2, beat 2: codes .* with the first set")


# ------------------------------------------------------------------------------------- accumulators


@pytest.mark.parametrize("name", ["softmax total", "attention odd"])
def test_accumulators_are_as_wide_as_they_must_be(name):
    assert holds(name) is None
    found, sums = witness(name), ACCUMULATORS[name]()
    assert found is not None
    assert len(found.row) == sums.count
    assert found.golden in range(sums.interval.low, sums.interval.high + 1)
    assert found.wrapped != found.golden
    assert (found.wrapped - found.golden) % (1 << sums.bits - 1) == 0
    assert tight(name) is None


def test_register_of_one_bit_less(monkeypatch):
    plain = registers.wider
    monkeypatch.setattr(registers, "wider", lambda spec, name, more: plain(spec, name, more - 1))
    told(holds("softmax total"), "total: golden's interval has 16 bits, the register 15")


def test_register_of_one_bit_too_many(monkeypatch):
    plain = registers.wider
    monkeypatch.setattr(registers, "wider", lambda spec, name, more: plain(spec, name, more + 1))
    told(tight("softmax total"), r"total: 32768 of row \[.*\] is right with 15 bits, too")


def test_interval_that_is_too_narrow(monkeypatch):
    sums = ACCUMULATORS["softmax total"]()
    narrow = replace(sums, each=Interval(0, sums.each.high - 1), bits=sums.bits)
    monkeypatch.setitem(ACCUMULATORS, "softmax total", lambda: narrow)
    told(holds("softmax total"), r"total: after \d+ elements \d+, after 2 more \d+; golden.s interval of")


def test_partial_sums_of_one_bit_less(monkeypatch):
    assert partial_sums.tight() is None
    monkeypatch.setattr(partial_sums, "SPEC", replace(partial_sums.SPEC, acc_bits=25))
    told(partial_sums.tight(), "acc: 8323072 after 127 passes is right with 24 bits, too")


def test_row_too_short_to_need_every_bit(monkeypatch):
    sums = ACCUMULATORS["attention even"]()
    monkeypatch.setitem(ACCUMULATORS, "attention even", lambda: replace(sums, bits=sums.bits + 1))
    told(tight("attention even"), "even: no row of 8 elements needs bit")


def test_row_of_a_softmax_that_does_not_need_every_bit(monkeypatch):
    name = "attention even, softmax"
    assert tight(name) is None
    alone = registers._attention("even", "sqrt2", (0,))
    monkeypatch.setitem(ACCUMULATORS, name, lambda: alone)
    told(tight(name), r"even: -64 of row \[0\] is right with 7 bits, too")

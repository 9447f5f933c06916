# SPDX-License-Identifier: Apache-2.0
"""The words of a run, read from external memory over AXI4 before they are needed.

A burst is asked for only when the FIFO has room for all of it beside what is under way, so that the bus
never waits for the reader; up to ``depth`` words are under way, so that the reader does not wait for the
bus either, as long as its latency is less than ``depth - burst`` cycles.

Every burst but the last of a region ends at a multiple of ``burst`` words. As that many bytes divide
4 KiB, none crosses such a boundary, which AXI forbids.
"""

from __future__ import annotations

from typing import Any

from amaranth import Cat, Const, Module, Mux, ResetInserter, Signal, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.data import ArrayLayout
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from golden.accelerator import SIZES
from golden.accelerator_cycles import FIFO_WORDS

__all__ = ["PAUSE", "BurstReader"]

BOUNDARY = 4096
LONGEST_BURST = 256
INCREMENTING = 1
PAUSE = 2
"""Cycles: to take the program's address behind the image, and to ask."""
NORMAL_MEMORY = 0b0011
"""``arcache``: bufferable and modifiable, so that an interconnect may join or widen bursts."""


class BurstReader(wiring.Component):
    """AXI4 read master and FIFO: first the image's words, then the program's.

    size: bytes of a word, the width of the bus.  depth: words of the FIFO.  burst: words of the
    longest burst, a power of two, at most 4 KiB.  align: addresses are multiples of so many bytes, a power
    of two, at least ``size``, which it is without.

    Members:

    - ``start : In(1)``: begin a run, only while not ``busy`` and with nothing on ``o``.
    - ``image_address, program_address : In(64)``: bytes, multiples of ``align``;
      ``image_words, program_words : In(32)``; all of them constant while ``busy``.
    - ``stop : In(1)``: forget the run: no further burst is asked for, what is under way is swallowed
      (``busy`` until it was), the FIFO is emptied.
    - ``o``: the words, uint8 [size].
    - ``busy : Out(1)``: words are under way. Of a run that has more it is low for ``PAUSE`` cycles at most,
      unless the FIFO has a word.
    - ``error : Out(1)``: a response was not OKAY: a pulse, no later than its word is on ``o``.
    - ``m_axi_ar*``, ``m_axi_r*``: the read channels of AXI4, without ids.
    """

    def __init__(
        self, *, size: int, depth: int = FIFO_WORDS, burst: int = 16, align: int | None = None
    ) -> None:
        if size not in SIZES:
            raise ValueError(f"Size must be one of {SIZES}, not {size!r}")
        longest = min(LONGEST_BURST, BOUNDARY // size)
        if burst & (burst - 1) or not 2 <= burst <= longest:
            raise ValueError(f"Burst must be a power of two from 2 to {longest}, not {burst!r}")
        if depth < 2 * burst:
            raise ValueError(f"Depth must be at least {2 * burst}, two bursts, not {depth!r}")
        align = size if align is None else align
        if align & (align - 1) or align < size:
            raise ValueError(f"Alignment must be a power of two of at least {size}, not {align!r}")
        self._size, self._depth, self._burst, self._align = size, depth, burst, align
        super().__init__(
            {
                "start": In(1),
                "image_address": In(64),
                "image_words": In(32),
                "program_address": In(64),
                "program_words": In(32),
                "stop": In(1),
                "o": Out(stream.Signature(ArrayLayout(unsigned(8), size))),
                "busy": Out(1),
                "error": Out(1),
                "m_axi_araddr": Out(64),
                "m_axi_arlen": Out(8),
                "m_axi_arsize": Out(3),
                "m_axi_arburst": Out(2),
                "m_axi_arcache": Out(4),
                "m_axi_arprot": Out(3),
                "m_axi_arvalid": Out(1),
                "m_axi_arready": In(1),
                "m_axi_rdata": In(8 * size),
                "m_axi_rresp": In(2),
                "m_axi_rlast": In(1),
                "m_axi_rvalid": In(1),
                "m_axi_rready": Out(1),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        asked, length = self._requests(m)
        arrived = Signal()
        under_way = Signal(range(self._depth + 1))
        # Words are counted, so that rlast has nothing to add.
        m.d.comb += [
            self.m_axi_rready.eq(self.busy),
            arrived.eq(self.m_axi_rvalid & self.m_axi_rready),
        ]
        m.d.sync += under_way.eq(under_way + Mux(asked, length, 0) - arrived)
        m.d.sync += self.error.eq(arrived & (self.m_axi_rresp != 0))
        swallow = Signal()
        with m.If(self.start):
            m.d.sync += swallow.eq(0)
        with m.Elif(self.stop):
            m.d.sync += swallow.eq(1)

        queue = SyncFIFOBuffered(width=8 * self._size, depth=self._depth)
        m.submodules.queue = ResetInserter(self.stop)(queue)
        m.d.comb += [
            queue.w_data.eq(self.m_axi_rdata),
            queue.w_en.eq(arrived & ~swallow),
            self.o.payload.as_value().eq(queue.r_data),
            self.o.valid.eq(queue.r_rdy),
            queue.r_en.eq(self.o.ready),
            self.busy.eq(under_way != 0),
        ]
        return m

    def _requests(self, m: Module) -> tuple[Signal, Signal]:
        """Address channel. Returns whether a burst is asked for, and its words."""
        word_bits, burst_bits = exact_log2(self._size), exact_log2(self._burst)
        low = word_bits + burst_bits
        first = min(exact_log2(self._align), low)  # the lowest bit that an address may have
        block, ahead = Signal(64 - low), Signal(low - first, name="offset") if low > first else Cat()
        offset = Cat(Const(0, first - word_bits), ahead)  # words behind a multiple of a burst
        left, none, program_next = Signal(32, name="left"), Signal(), Signal()
        asked, length = Signal(), Signal(burst_bits + 1)
        rest = Signal(burst_bits + 1)
        m.d.comb += [
            none.eq(left == 0),
            rest.eq(self._burst - offset),
            length.eq(Mux(left < rest, left, rest)),
        ]
        # Words that are in the FIFO or promised a place there.
        promised = Signal(range(self._depth + 1))
        free = ~self.m_axi_arvalid | self.m_axi_arready
        room = promised <= self._depth - self._burst
        m.d.comb += asked.eq(~none & room & free & ~self.stop)
        m.d.sync += promised.eq(promised + Mux(asked, length, 0) - (self.o.valid & self.o.ready))
        with m.If(self.m_axi_arready):
            m.d.sync += self.m_axi_arvalid.eq(0)
        with m.If(asked):
            m.d.sync += [
                self.m_axi_arvalid.eq(1),
                self.m_axi_araddr.eq(Cat(Const(0, word_bits), offset, block)),
                self.m_axi_arlen.eq((length - 1)[:burst_bits]),
                left.eq(left - length),
                block.eq(block + 1),
                ahead.eq(0),
            ]
        with m.Elif(program_next & none):
            m.d.sync += [
                Cat(ahead, block).eq(self.program_address[first:]),
                left.eq(self.program_words),
                program_next.eq(0),
            ]
        with m.If(self.start):
            m.d.sync += [
                Cat(ahead, block).eq(self.image_address[first:]),
                left.eq(self.image_words),
                program_next.eq(1),
            ]
        with m.If(self.stop):
            m.d.sync += [left.eq(0), program_next.eq(0), promised.eq(0)]
        m.d.comb += [
            self.m_axi_arsize.eq(word_bits),
            self.m_axi_arburst.eq(INCREMENTING),
            self.m_axi_arcache.eq(NORMAL_MEMORY),
            self.m_axi_arprot.eq(0),
        ]
        return asked, length

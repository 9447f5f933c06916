# amaranth: UnusedElaboratable=no
# SPDX-License-Identifier: Apache-2.0
"""The burst reader against a memory that is slow, pauses and fails: every word, in order, once."""

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from amaranth.sim import Simulator

import rtl.dma
from rtl.dma import PAUSE, BurstReader

LIMIT = 20_000


@dataclass
class Memory:
    """External memory: word i of it holds i in its low bytes. Checks what it is asked for."""

    size: int
    burst: int
    rng: np.random.Generator
    latency: tuple[int, int] = (1, 1)
    gaps: float = 0.0
    bad: int | None = None
    """Word whose response is SLVERR."""
    asked: list[tuple[int, int]] = field(default_factory=list)
    longest: int = 0
    """Most words under way at a time."""

    def word(self, index):
        raw = (index * 0x9E3779B97F4A7C15 + 1) & (1 << 8 * self.size) - 1
        return raw.to_bytes(self.size, "little")

    def content(self, address, words):
        first = address // self.size
        return [self.word(first + i) for i in range(words)]

    async def serve(self, ctx, dut):
        due = deque()  # (cycle from which it may be answered, word)
        last, cycle, held, offered = 0, 0, None, False
        ready = False
        while True:
            ctx.set(dut.m_axi_arready, ready)
            if due and not offered and due[0][0] <= cycle and self.rng.random() >= self.gaps:
                offered = True
                word = due[0][1]
                ctx.set(dut.m_axi_rdata, int.from_bytes(self.word(word), "little"))
                ctx.set(dut.m_axi_rresp, 2 if word == self.bad else 0)
            ctx.set(dut.m_axi_rvalid, offered)
            _, _, valid, address, length, taken = (
                await ctx.tick().sample(
                    dut.m_axi_arvalid, dut.m_axi_araddr, dut.m_axi_arlen, dut.m_axi_rready
                )
            )
            cycle += 1
            if held is not None:
                assert valid, "arvalid fell before arready"
                assert (address, length) == held, "a request changed before arready"
            held = (address, length) if valid and not ready else None
            if offered and taken:
                due.popleft()
                offered = False
            if valid and ready:
                self.check(address, length + 1)
                at = cycle + int(self.rng.integers(*self.latency, endpoint=True))
                last = max(at, last)  # responses keep their order
                due.extend((last, address // self.size + i) for i in range(length + 1))
                self.longest = max(self.longest, len(due))
            ready = self.rng.random() >= self.gaps

    def check(self, address, words):
        assert address % self.size == 0
        assert 1 <= words <= self.burst
        assert address // 4096 == (address + words * self.size - 1) // 4096, "a burst crosses 4 KiB"
        self.asked.append((address, words))


def simulate(dut, memory, script):
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)

    async def serve(ctx):
        await memory.serve(ctx, dut)

    simulator.add_testbench(serve, background=True)
    simulator.add_testbench(script)
    simulator.run()


async def begin(ctx, dut, image, program):
    for name, (address, words) in (("image", image), ("program", program)):
        ctx.set(getattr(dut, f"{name}_address"), address)
        ctx.set(getattr(dut, f"{name}_words"), words)
    ctx.set(dut.start, 1)
    await ctx.tick()
    ctx.set(dut.start, 0)


async def take(ctx, dut, count, rng, pauses=0.0):
    """Take ``count`` words, or those that come; also the cycles it took."""
    words, cycles, quiet = [], 0, 0
    while len(words) < count:
        ready = rng.random() >= pauses
        ctx.set(dut.o.ready, ready)
        _, _, valid, busy, payload = await ctx.tick().sample(
            dut.o.valid, dut.busy, dut.o.payload.as_value()
        )
        cycles += 1
        assert cycles < LIMIT, "words are missing"
        quiet = 0 if valid or busy else quiet + 1
        if valid and ready:
            words.append(payload.to_bytes(memory_size(dut), "little"))
        elif quiet > PAUSE:
            break
    ctx.set(dut.o.ready, 0)
    return words, cycles


def memory_size(dut):
    return len(dut.m_axi_rdata) // 8


def regions(rng, size, limit=200):
    """An image and a program at places of their own, small, empty and at the end of a page at times."""
    found = []
    for at in (1 << 20, 1 << 40):
        address = at + 64 * int(rng.integers(0, 256))
        if rng.random() < 0.3:
            address = at + 4096 - 64
        found.append((address, int(rng.choice([0, 1, 2, 17, rng.integers(1, limit)]))))
    return found


def check_order(reader, size, seed):
    """Every word in order, whatever the memory does."""
    rng = np.random.default_rng([seed, size])
    burst = int(rng.choice([2, 16, 64]))
    align = int(rng.choice([size, 64]))  # regions() are at multiples of 64
    dut = reader(size=size, depth=int(rng.choice([2 * burst, 256])), burst=burst, align=align)
    memory = Memory(size, burst, rng, latency=(1, int(rng.choice([1, 20, 200]))), gaps=0.4)

    async def script(ctx):
        for pauses in (0.0, 0.5, 0.0):
            image, program = regions(rng, size)
            await begin(ctx, dut, image, program)
            words, _ = await take(ctx, dut, 1 << 20, rng, pauses)
            assert words == memory.content(*image) + memory.content(*program)
            assert not ctx.get(dut.busy)
            assert not ctx.get(dut.o.valid)
            assert not ctx.get(dut.error)

    simulate(dut, memory, script)


def test_an_empty_run_asks_for_nothing():
    dut = BurstReader(size=16)
    memory = Memory(16, 16, np.random.default_rng(0))

    async def script(ctx):
        await begin(ctx, dut, (64, 0), (128, 0))
        assert await take(ctx, dut, 1, memory.rng) == ([], PAUSE + 1)
        await ctx.tick().repeat(50)

    simulate(dut, memory, script)
    assert memory.asked == []


@pytest.mark.parametrize("latency", [1, 200])
def test_a_word_a_cycle_behind_any_latency(latency):
    dut = BurstReader(size=16)
    memory = Memory(16, 16, np.random.default_rng(0), latency=(latency, latency))

    async def script(ctx):
        await begin(ctx, dut, (4096 - 64, 1000), (1 << 30, 2000))
        words, cycles = await take(ctx, dut, 3000, memory.rng)
        assert len(words) == 3000
        assert cycles <= 3000 + latency + 10

    simulate(dut, memory, script)


def test_never_more_under_way_than_the_fifo_has_room_for():
    dut = BurstReader(size=4, depth=64, burst=16)
    memory = Memory(4, 16, np.random.default_rng(0), latency=(200, 200))

    async def script(ctx):
        await begin(ctx, dut, (64, 1000), (0, 0))
        await ctx.tick().repeat(1000)
        assert sum(words for _, words in memory.asked) == 64
        assert len((await take(ctx, dut, 1000, memory.rng))[0]) == 1000

    simulate(dut, memory, script)
    assert memory.longest == 64


def check_stop(reader, seed):
    """After a stop nothing is left, and the next run is whole."""
    rng = np.random.default_rng(seed)
    dut = reader(size=8, depth=64, burst=16)
    memory = Memory(8, 16, rng, latency=(1, 100), gaps=0.3)

    async def script(ctx):
        for _ in range(8):
            image, program = regions(rng, 8, 400)
            await begin(ctx, dut, image, program)
            await take(ctx, dut, int(rng.integers(0, 40)), rng, 0.3)
            await ctx.tick().repeat(int(rng.integers(1, 100)))
            ctx.set(dut.stop, 1)
            await ctx.tick()
            ctx.set(dut.stop, 0)
            asked, cycles = len(memory.asked), 0
            while ctx.get(dut.busy):
                assert not ctx.get(dut.o.valid)
                await ctx.tick()
                cycles += 1
                assert cycles < LIMIT
            await ctx.tick().repeat(PAUSE)
            assert len(memory.asked) <= asked + 1  # one may have been offered already
            assert not ctx.get(dut.o.valid)
            image, program = regions(rng, 8)
            await begin(ctx, dut, image, program)
            words, _ = await take(ctx, dut, 1 << 20, rng)
            assert words == memory.content(*image) + memory.content(*program)

    simulate(dut, memory, script)


def check_bad_response(reader):
    """A bad response is told once, no later than its word."""
    dut = reader(size=8, depth=64, burst=16)
    memory = Memory(8, 16, np.random.default_rng(0), bad=20)

    async def script(ctx):
        await begin(ctx, dut, (0, 40), (0, 0))
        told = words = 0
        for _ in range(200):
            ctx.set(dut.o.ready, 1)
            _, _, error, valid = await ctx.tick().sample(dut.error, dut.o.valid)
            told += error
            words += valid
            assert told == 1 or words <= 20
        assert (told, words) == (1, 40)

    simulate(dut, memory, script)


@pytest.mark.parametrize("size", [4, 8, 16, 32])
@pytest.mark.parametrize("seed", range(4))
def test_every_word_in_order_whatever_the_memory_does(size, seed):
    check_order(BurstReader, size, seed)


@pytest.mark.parametrize("seed", range(6))
def test_after_a_stop_nothing_is_left_and_the_next_run_is_whole(seed):
    check_stop(BurstReader, seed)


def test_a_bad_response():
    check_bad_response(BurstReader)


MUTANTS = {
    "a burst that crosses 4 KiB": ("rest.eq(self._burst - offset)", "rest.eq(self._burst)"),
    "a FIFO that overflows": ("& room & free", "& free"),
    "a request that is taken back": ("with m.If(self.m_axi_arready):", "with m.If(Const(1)):"),
    "an end before the last word": ("self.busy.eq(under_way != 0)", "self.busy.eq(self.m_axi_arvalid)"),
    "words of the run before": ("queue.w_en.eq(arrived & ~swallow)", "queue.w_en.eq(arrived)"),
    "a FIFO that is not emptied": ("ResetInserter(self.stop)(queue)", "queue"),
    "requests after a stop": ("left.eq(0), program_next.eq(0), ", "left.eq(0), "),
    "an error that stays": ("self.error.eq(arrived &", "self.error.eq(self.error | arrived &"),
    "an error that is not seen": ("(self.m_axi_rresp != 0)", "self.m_axi_rresp[0]"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_seeded_bug_is_found(name):
    old, new = MUTANTS[name]
    source = Path(rtl.dma.__file__).read_text()
    assert source.count(old) == 1
    scope = {"__name__": "rtl.dma_mutant"}
    exec(compile(source.replace(old, new), "rtl/dma_mutant.py", "exec"), scope)
    reader = scope["BurstReader"]

    def every_check():
        for seed in range(4):
            check_order(reader, 8, seed)
            check_stop(reader, seed)
        check_bad_response(reader)

    with pytest.raises(AssertionError):
        every_check()


def test_wrong_sizes_are_refused():
    for size in (2, 64):
        with pytest.raises(ValueError, match=r"^Size must be one of"):
            BurstReader(size=size)
    for burst in (1, 12, 512, 256):
        with pytest.raises(ValueError, match=r"^Burst must be a power of two from 2 to 128"):
            BurstReader(size=32, depth=2048, burst=burst)
    for align in (8, 48):
        with pytest.raises(ValueError, match=r"^Alignment must be a power of two of at least 16"):
            BurstReader(size=16, align=align)
    with pytest.raises(ValueError, match=r"^Depth must be at least 32"):
        BurstReader(size=16, depth=31)

# amaranth: UnusedElaboratable=no
# SPDX-License-Identifier: Apache-2.0
"""The accelerator's registers: what a host reads and writes, and what the core gets of it."""

from pathlib import Path

import numpy as np
import pytest
from amaranth.sim import Simulator

import rtl.control
from golden.accelerator import AcceleratorSpec
from rtl.control import COUNTERS, OUTPUTS_BASE, REGISTERS, Control

OKAY, SLVERR, DECERR = 0, 2, 3
SPEC = AcceleratorSpec(size=8, outputs=20)
AT = {register.name: register.offset for register in REGISTERS}
LIMIT = 100


class Host:
    """Reads and writes as AXI4-Lite has it, with pauses."""

    def __init__(self, ctx, dut, rng):
        self.ctx, self.dut, self.rng = ctx, dut, rng

    async def write(self, address, value, strobe=0xF):
        """Write; the two channels begin at random times."""
        ctx, dut = self.ctx, self.dut
        ctx.set(dut.s_axil_awaddr, address)
        ctx.set(dut.s_axil_wdata, value)
        ctx.set(dut.s_axil_wstrb, strobe)
        begin = {"aw": int(self.rng.integers(0, 4)), "w": int(self.rng.integers(0, 4))}
        for cycle in range(LIMIT):
            for name, at in begin.items():
                ctx.set(getattr(dut, f"s_axil_{name}valid"), at is not None and cycle >= at)
            ready = self.rng.random() < 0.5
            ctx.set(dut.s_axil_bready, ready)
            _, _, aw, w, answered, response = await ctx.tick().sample(
                dut.s_axil_awready, dut.s_axil_wready, dut.s_axil_bvalid, dut.s_axil_bresp
            )
            for name, taken in (("aw", aw), ("w", w)):
                if begin[name] is not None and cycle >= begin[name] and taken:
                    begin[name] = None
            if answered and ready:
                ctx.set(dut.s_axil_bready, 0)
                return response
        raise AssertionError("no response to a write")

    async def read(self, address):
        ctx, dut = self.ctx, self.dut
        ctx.set(dut.s_axil_araddr, address)
        ctx.set(dut.s_axil_arvalid, 1)
        asked = False
        for _ in range(LIMIT):
            ready = self.rng.random() < 0.5
            ctx.set(dut.s_axil_rready, ready)
            _, _, taken, answered, data, response = await ctx.tick().sample(
                dut.s_axil_arready, dut.s_axil_rvalid, dut.s_axil_rdata, dut.s_axil_rresp
            )
            if not asked and taken:
                asked = True
                ctx.set(dut.s_axil_arvalid, 0)
            elif asked and answered and ready:
                ctx.set(dut.s_axil_rready, 0)
                return data, response
        raise AssertionError("no response to a read")

    async def value(self, name):
        data, response = await self.read(AT[name])
        assert response == OKAY
        return data


class Core:
    """Counts the pulses of start, answers the outputs' port."""

    def __init__(self):
        self.started = 0
        rng = np.random.default_rng(5)
        self.outputs = rng.integers(-(1 << 31), 1 << 31, (SPEC.outputs, SPEC.size))

    async def serve(self, ctx, dut):
        while True:
            _, _, start, en, address = await ctx.tick().sample(
                dut.start, dut.outputs.en, dut.outputs.address
            )
            self.started += start
            word = self.outputs[address % SPEC.outputs] if en else np.full(SPEC.size, 0x5A5A5A5A)
            for lane, value in enumerate(word):
                ctx.set(dut.outputs.word[lane], int(value))


def simulate(control, script, seed=0):
    dut, core = control(SPEC), Core()
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)

    async def serve(ctx):
        await core.serve(ctx, dut)

    async def run(ctx):
        await script(ctx, dut, Host(ctx, dut, np.random.default_rng(seed)), core)

    simulator.add_testbench(serve, background=True)
    simulator.add_testbench(run)
    simulator.run()


async def finish(ctx, dut, error=0):
    ctx.set(dut.finished, 1)
    ctx.set(dut.error, error)
    await ctx.tick()
    ctx.set(dut.finished, 0)
    ctx.set(dut.error, 0)


def check_reads(control):
    """What is fixed, and that nothing else is there."""

    async def script(ctx, dut, host, core):
        fixed = {
            "id": 0x71766974,
            "version": 1,
            "fingerprint_low": SPEC.fingerprint & 0xFFFFFFFF,
            "fingerprint_high": SPEC.fingerprint >> 32,
            "size": 8,
        }
        for name in AT:
            assert await host.value(name) == fixed.get(name, 0), name
        end = OUTPUTS_BASE + 4 * SPEC.outputs * SPEC.size
        for address in (0x1C, 0x2C, 0x3C, 0x60, 0x1000, OUTPUTS_BASE - 4, end):
            assert await host.read(address) == (0, DECERR), hex(address)
            assert await host.write(address, 1) == DECERR, hex(address)
        for index in (0, 1, 7, 8, SPEC.outputs * SPEC.size - 1):
            found = await host.read(OUTPUTS_BASE + 4 * index)
            assert found == (int(core.outputs.flat[index]) & 0xFFFFFFFF, OKAY)
            assert await host.write(OUTPUTS_BASE + 4 * index, 1) == SLVERR

    simulate(control, script)


def check_writes(control):
    """What can be written, reads back and reaches the core."""

    async def script(ctx, dut, host, core):
        wanted = {
            "image_address_low": 0x12345640,
            "image_address_high": 0x9ABCDEF0,
            "image_words": 0xFFFFFFFF,
            "program_address_low": 0xFFFFFFC0,
            "program_address_high": 0x1,
            "program_words": 77,
            "interrupt": 1,
        }
        for name, value in wanted.items():
            for strobe in (0x0, 0x1, 0x7, 0xE):
                assert await host.write(AT[name], value, strobe) == SLVERR
            assert await host.value(name) == 0
            assert await host.write(AT[name], value) == OKAY
        for name, value in wanted.items():
            assert await host.value(name) == value, name
        assert ctx.get(dut.image_address) == 0x9ABCDEF012345640
        assert ctx.get(dut.program_address) == 0x1FFFFFFC0
        assert ctx.get(dut.image_words) == 0xFFFFFFFF
        assert ctx.get(dut.program_words) == 77
        assert await host.write(AT["image_address_low"], 0x7F) == OKAY
        assert await host.value("image_address_low") == 0x40
        for name in ("id", "version", "fingerprint_low", "cycles_low", "unit_wait", "size"):
            assert await host.write(AT[name], 0xFFFFFFFF) == SLVERR, name
        assert await host.write(AT["control"], 0) == OKAY
        assert await host.write(AT["control"], 1, 0x1) == SLVERR
        assert core.started == 0

    simulate(control, script)


def check_runs(control):
    """Start, busy, done, error, interrupt, and the next run."""

    async def script(ctx, dut, host, core):
        for count, error in enumerate((0, 5, 6, 0), 1):
            await host.write(AT["interrupt"], 0)
            assert await host.write(AT["image_words"], count) == OKAY
            assert await host.write(AT["control"], 1) == OKAY
            assert core.started == count
            assert await host.value("status") == 1  # what is left of the run before has gone
            assert await host.write(AT["control"], 1) == OKAY
            assert core.started == count  # ignored
            assert await host.write(AT["image_words"], 1000) == SLVERR
            assert await host.write(AT["program_address_high"], 1000) == SLVERR
            assert ctx.get(dut.image_words) == count
            assert await host.write(AT["status"], 2) == OKAY
            await finish(ctx, dut, error)
            assert await host.value("status") == 2 | error << 4
            assert not ctx.get(dut.irq)
            await host.write(AT["interrupt"], 1)
            assert ctx.get(dut.irq)
            if count % 2 == 0:
                await host.write(AT["status"], 1)
                assert ctx.get(dut.irq)
                await host.write(AT["status"], 2)
                assert not ctx.get(dut.irq)
                assert await host.value("status") == 0
        await finish(ctx, dut, 3)
        assert await host.value("status") == 0  # no run, nothing to finish

    simulate(control, script)


def check_counters(control):
    """Each counts its own input while a run is under way, from 0, and cycles all of them."""

    async def script(ctx, dut, host, core):
        rng = np.random.default_rng(3)
        for length in (1, 2, 100, 7):
            assert await host.write(AT["control"], 0) == OKAY
            for name in COUNTERS:
                ctx.set(getattr(dut, name), 1)
            ctx.set(dut.s_axil_bready, 1)
            ctx.set(dut.s_axil_awaddr, AT["control"])
            ctx.set(dut.s_axil_wdata, 1)
            ctx.set(dut.s_axil_wstrb, 0xF)
            ctx.set(dut.s_axil_awvalid, 1)
            ctx.set(dut.s_axil_wvalid, 1)
            await ctx.tick()
            ctx.set(dut.s_axil_awvalid, 0)
            ctx.set(dut.s_axil_wvalid, 0)
            while not ctx.get(dut.start):
                await ctx.tick()
            wanted = dict.fromkeys(COUNTERS, 0)
            for cycle in range(length):
                for name in COUNTERS:
                    on = bool(rng.random() < 0.5)
                    wanted[name] += on
                    ctx.set(getattr(dut, name), on)
                ctx.set(dut.finished, cycle == length - 1)
                await ctx.tick()
            ctx.set(dut.finished, 0)
            for name in COUNTERS:
                ctx.set(getattr(dut, name), 1)
            await ctx.tick().repeat(5)
            assert await host.value("cycles_low") == length
            assert await host.value("cycles_high") == 0
            for name, count in wanted.items():
                assert await host.value(name) == count, name

    simulate(control, script)


CHECKS = [check_reads, check_writes, check_runs, check_counters]


@pytest.mark.parametrize("check", CHECKS)
def test_registers(check):
    check(Control)


@pytest.mark.parametrize("size", [4, 32])
def test_the_window_holds_every_output(size):
    spec = AcceleratorSpec(size=size, outputs=65536)
    dut = Control(spec)
    assert len(dut.s_axil_araddr) == (OUTPUTS_BASE + 4 * 65536 * size - 1).bit_length()
    assert len(Control(AcceleratorSpec()).s_axil_awaddr) == 15


MUTANTS = {
    "a start while busy": ("start.eq(write.value[0] & ~busy)", "start.eq(write.value[0])"),
    "an address that moves": ("with m.If(write.full & ~still):", "with m.If(write.full):"),
    "half a write": ("with m.If(write.full & ~still):", "with m.If(~still):"),
    "an error that stays": ("[done.eq(0), error.eq(0)]\n        m.d.comb", "[done.eq(0)]\n        m.d.comb"),
    "an interrupt that nobody asked for": ("self.irq.eq(done & interrupt)", "self.irq.eq(done)"),
    "a run that nobody started": ("m.Elif(busy & self.finished)", "m.Elif(self.finished)"),
    "a counter that goes on": ("Mux(self.start, 0, cycles)", "cycles"),
    "a word too early": ("lane.eq(place)", "lane.eq(0)"),
    "a window too large": ("(word < first + self._spec.outputs * self._spec.size)", "1"),
    "an address out of line": ("return ALIGNMENT if", "return 0 if"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_seeded_bug_is_found(name):
    old, new = MUTANTS[name]
    source = Path(rtl.control.__file__).read_text()
    assert source.count(old) == 1
    scope = {"__name__": "rtl.control_mutant"}
    exec(compile(source.replace(old, new), "rtl/control_mutant.py", "exec"), scope)

    def every_check():
        for check in CHECKS:
            check(scope["Control"])

    with pytest.raises(AssertionError):
        every_check()

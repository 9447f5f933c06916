# SPDX-License-Identifier: Apache-2.0
"""The accelerator's registers: each where the map says, and nothing done by an access that is wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ReadOnly, Timer

from sim.axil import DECERR, OKAY, SLVERR
from sim.session import Run
from sim.tb_accelerator import COUNTERS, OUTPUTS_BASE, PERIOD, SESSION, Host, read_outcome

AT = SESSION.registers
HALVES = {f"{part}_address_{half}" for part in ("image", "program") for half in ("low", "high")}
RUN = HALVES | {"image_words", "program_words"}
WRITABLE = RUN | {"interrupt"}
WRITTEN = WRITABLE | {"control", "status"}
"""What takes a write with all strobes; the rest may be read only."""
PARTS = (0x0, 0x1, 0x2, 0x4, 0x7, 0x8, 0xB, 0xD, 0xE)
"""Strobes of less than a whole write."""
END = OUTPUTS_BASE + 4 * SESSION.window
ADDRESS_BITS = (END - 1).bit_length()
WIDTHS = {"cycles": 64}
"""Of counters, where it is not 32."""
HALF = -1
PATTERNS = (0x5555_5555_5555_5000, 0xAAAA_AAAA_AAAA_A000)
"""Added to counters while they count: what takes years to reach."""


async def started(dut: Any) -> Host:
    """A host after reset."""
    host = Host(dut)
    dut.host_run.value = -1
    await host.reset()
    return host


def kept(name: str, value: int) -> int:
    """What a register holds of a written value."""
    if name == "interrupt":
        return value & 1
    return value & ~63 & 0xFFFFFFFF if name.endswith("_low") else value


async def read_all(host: Host) -> dict[str, int]:
    """All registers by name."""
    return {name: await host.read(name) for name in AT}


@cocotb.test()
async def fixed(dut: Any) -> None:
    """After a reset a register is 0 or always the same; the bits of an address within a word mean nothing."""
    host = await started(dut)
    wanted = dict.fromkeys(AT, 0) | dict(SESSION.fixed)
    assert await read_all(host) == wanted
    for name, offset in AT.items():
        for place in (1, 2, 3):
            assert await host.read_at(offset + place) == wanted[name], f"{name} at byte {place}"


@cocotb.test()
async def decoded(dut: Any) -> None:
    """Registers and outputs are where the map says; no address with one wrong bit is theirs."""
    host, run = await started(dut), SESSION.runs[0]
    host.memory(run)
    await host.start(run)
    await host.finish(run.limit)  # behind a run, counters are not 0
    for name in WRITABLE:
        await host.write(name, 0xFFFFFFFF)
    wanted = {AT[name]: value for name, value in (await read_all(host)).items()}
    edges = {*AT.values(), OUTPUTS_BASE, END - 4, END, OUTPUTS_BASE - 4, 0x7C}
    near = edges | {at ^ 1 << bit for at in edges for bit in range(2, ADDRESS_BITS)}
    for address in sorted(at for at in near if at < 1 << ADDRESS_BITS):
        window = OUTPUTS_BASE <= address < END
        value, response = await host.ask(address)
        assert response == (OKAY if window or address in wanted else DECERR), f"read of {address:#x}"
        assert window or value == wanted.get(address, 0), f"read of {address:#x}: {value:#x}"
        strobe = 0xF if not window and address not in wanted else 0
        _, response = await host.ask(address, 0xFFFFFFFF, strobe)
        there = window or address in wanted
        assert response == (SLVERR if there else DECERR), f"write of {address:#x}"
    assert {AT[name]: value for name, value in (await read_all(host)).items()} == wanted


@cocotb.test()
async def written(dut: Any) -> None:
    """What is written reads back, every bit of it, and changes nothing else; half a write does nothing."""
    host, rng = await started(dut), np.random.default_rng(1)
    holds = await read_all(host)
    for turn in range(6):
        for name in sorted(AT):
            value = int(rng.integers(1 << 32)) if turn > 1 else 0xFFFFFFFF * (1 - turn)
            if name in ("control", "status"):
                value &= ~3
            for strobe in (*rng.choice(PARTS, 2).tolist(), 0xF):
                _, response = await host.ask(AT[name], value, strobe)
                good = name in WRITTEN and strobe == 0xF
                assert response == (OKAY if good else SLVERR), f"write of {name}, strobes {strobe:#x}"
                if name in WRITABLE and good:
                    holds[name] = kept(name, value)
                assert await host.read(name) == holds[name], f"{name} behind strobes {strobe:#x}"
        assert await read_all(host) == holds
    for strobe in PARTS:
        assert (await host.ask(AT["control"], 1, strobe))[1] == SLVERR
        assert await host.read("status") == 0, "half a write must not start a run"


@cocotb.test()
async def channels(dut: Any) -> None:
    """Address before value, value before address, answers taken late, a write before the last's answer."""
    host = await started(dut)
    lates = ("host_address_late", "host_value_late", "host_ready_late")
    value = 0
    for late in ((0, 0, 0), (0, 5, 0), (5, 0, 0), (0, 0, 9), (3, 1, 12), (1, 3, 12), (4, 4, 1), (0, 1, 3)):
        for again in (0, 1):
            value = value + 0x1234567 & 0x7FFFFFFF
            for name, cycles in zip(lates, late, strict=True):
                getattr(dut, name).value = cycles
            dut.host_again.value = again
            await host.write("image_words", value)
            value += again
            assert await host.read("image_words") == value, f"late by {late}, again {again}"
            assert await host.ask(0x7C) == (0, DECERR)
            assert (await host.ask(0x7C, 1))[1] == DECERR
            assert await host.read_at(AT["id"]) == SESSION.fixed["id"]
    for name in (*lates, "host_again"):
        getattr(dut, name).value = 0
    host.check()


@asynccontextmanager
async def running(dut: Any, **changes: Any) -> AsyncIterator[tuple[Host, Run]]:
    """The session's first run, under way."""
    host, run = await started(dut), replace(SESSION.runs[0], **changes)
    host.memory(run)
    await host.start(run)
    yield host, run
    outcome = await read_outcome(host, run, 0)
    assert outcome.outputs == list(run.expected or ())
    for name, (least, most) in run.counters.items():
        assert least <= outcome.counters[name] <= most, f"{name}: {outcome.counters[name]}"


@cocotb.test()
async def still(dut: Any) -> None:
    """A run under way is neither changed nor begun again, and does not raise an interrupt nobody wants."""
    async with running(dut) as (host, run):
        before = await read_all(host)
        await host.write("interrupt", 0)
        for name in RUN:
            assert (await host.ask(AT[name], ~before[name] & 0xFFFFFFFF))[1] == SLVERR, name
        for name, value in (("control", 1), ("status", 2), ("control", 0), ("status", 3)):
            await host.write(name, value)
            assert await host.read("status") == 1, f"{name} must do nothing while busy"
        after = await read_all(host)
        assert {name: after[name] for name in RUN} == {name: before[name] for name in RUN}
        counted = int(run.counters["cycles"][1])
        await Timer(PERIOD * counted, "step")
        assert await host.read("status") == 2, "the run must be over"
        assert not int(dut.host_irq.value), "nobody wants an interrupt"
        for strobe in PARTS:
            await host.ask(AT["interrupt"], 1, strobe)
            await host.ask(AT["status"], 2, strobe)
        for value in (0xFFFFFFFD, 0):
            await host.write("status", value)
        assert await host.read("status") == 2, "only bit 1 clears done"
        assert not int(dut.host_irq.value), "nobody wants an interrupt"
        await host.write("interrupt", 1)
        await Timer(PERIOD * 2, "step")
        assert int(dut.host_irq.value), "done, and the interrupt is wanted"


@cocotb.test()
async def counted(dut: Any) -> None:
    """Counters go on through every bit: those that the cycles of a run do not reach are set from here."""
    control, usual = dut.dut.control, dict[str, int]()
    for offset, late in ((0, 0), (0, 1), (HALF, 0), (HALF, 1), *((pattern, 0) for pattern in PATTERNS)):
        host, run = await started(dut), SESSION.runs[0]
        bus = run.bus or SESSION.bus
        host.memory(replace(run, bus=replace(bus, latency=bus.latency + late)))
        await host.start(run)
        await Timer(1, "step")  # between two edges of the clock
        registers = {name: getattr(control, f"count_{name}") for name in COUNTERS}
        registers["cycles"] = control.cycles
        before = {name: int(register.value) for name, register in registers.items()}
        for name, register in registers.items():
            # Half a run from its end, a counter carries through all bits.
            value = before[name] + offset if offset != HALF else before[name] - usual[name] // 2
            register.value = value % (1 << WIDTHS.get(name, 32))
        await ReadOnly()
        # A netlist may have some bits of a register elsewhere, where they cannot be set.
        moved = {name: int(register.value) - before[name] for name, register in registers.items()}
        await host.finish(run.limit)
        found = (await read_outcome(host, run, 0)).counters
        for name, value in found.items():
            count = (value - moved[name]) % (1 << WIDTHS.get(name, 32))
            count -= late * (name in ("cycles", "stream_wait"))
            least, most = run.counters.get(name, (0, run.counters["cycles"][1]))
            assert least <= count <= most, f"{name}: {value:#x}, set {moved[name]:#x} higher"
            assert usual.setdefault(name, count) == count, f"{name}: {count}, where it was {usual[name]}"

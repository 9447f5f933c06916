# SPDX-License-Identifier: Apache-2.0
"""An AXI implementation that is not ours (cocotbext-axi) is the accelerator's memory and its host.

It refuses bursts that cross 4 KiB or whose words are wider than the bus, answers SLVERR outside its
memory, and takes and gives words at its own times. That a request stays as it is until it is taken is not
among its checks; ``accelerator_bench.sv`` has that one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import First, RisingEdge, Timer
from cocotbext.axi import (
    AddressSpace,
    AxiLiteBus,
    AxiLiteMaster,
    AxiReadBus,
    AxiResp,
    AxiSlaveRead,
    MemoryRegion,
)

from sim.bench import JOB_VARIABLE
from sim.session import BASE, Outcome, Run, Session
from sim.stream import PERIOD

FOLDER = Path(os.environ[JOB_VARIABLE])
SESSION = Session.read(FOLDER)
OUTPUTS_BASE = 0x4000
RESET_CYCLES = 4
PAUSES = ("none", "memory", "host", "both")
"""Who pauses; one run after the other has the next."""
UNMAPPED = (0x1C, 0x60, OUTPUTS_BASE - 4)
"""Between the registers, behind them, before the outputs."""


def coin(seed: int) -> Iterator[bool]:
    """Pause or not, at random, for ever."""
    numbers = np.random.default_rng(seed)
    while True:
        yield from numbers.integers(0, 2, 1024).astype(bool).tolist()


class Outside:
    """cocotbext-axi on both sides of the accelerator."""

    def __init__(self, dut: Any, pauses: str) -> None:
        self.dut = dut
        content = bytearray((FOLDER / "memory.bin").read_bytes())
        space = AddressSpace()
        space.register_region(MemoryRegion(len(content), content), BASE)
        memory = AxiSlaveRead(AxiReadBus.from_prefix(dut, "m_axi"), dut.clk, dut.rst, target=space)
        self.master = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axil"), dut.clk, dut.rst)
        write, read = self.master.write_if, self.master.read_if
        channels: list[Any] = []
        if pauses in ("memory", "both"):
            channels += [memory.ar_channel, memory.r_channel]
        if pauses in ("host", "both"):
            channels += [write.aw_channel, write.w_channel, write.b_channel]
            channels += [read.ar_channel, read.r_channel]
        for seed, channel in enumerate(channels):
            channel.set_pause_generator(coin(seed))

    async def reset(self) -> None:
        """Start the clock, and reset."""
        self.dut.breach.value = 0
        self.dut.rst.value = 1
        Clock(self.dut.clk, PERIOD, unit="step").start()
        await Timer(PERIOD * RESET_CYCLES, "step")
        self.dut.rst.value = 0
        await Timer(PERIOD * RESET_CYCLES, "step")

    async def read(self, address: int, count: int = 1) -> list[int]:
        """So many words from an address on, asked for without waiting for one another."""
        answer = await self.master.read(address, 4 * count)
        assert answer.resp == AxiResp.OKAY, f"a read of {address:#x} is answered {answer.resp!r}"
        words: list[int] = np.frombuffer(answer.data, "<i4").tolist()
        return words

    async def write(self, name: str, value: int) -> None:
        """Set the register ``name``."""
        answer = await self.master.write(SESSION.registers[name], value.to_bytes(4, "little"))
        assert answer.resp == AxiResp.OKAY, f"a write of {name} is answered {answer.resp!r}"

    async def status(self) -> int:
        """The register of that name."""
        return (await self.read(SESSION.registers["status"]))[0]

    async def finish(self, run: Run) -> None:
        """Start a run, and wait for its interrupt."""
        for part in ("image", "program"):
            address = getattr(run, f"{part}_address")
            await self.write(f"{part}_address_low", address & 0xFFFFFFFF)
            await self.write(f"{part}_address_high", address >> 32)
            await self.write(f"{part}_words", getattr(run, f"{part}_words"))
        await self.write("interrupt", 1)
        assert not int(self.dut.irq.value), "there must be no interrupt before a start"
        await self.write("control", 1)
        assert await self.status() == 1, "status must be busy behind a start"
        if not int(self.dut.irq.value):
            await First(RisingEdge(self.dut.irq), Timer(PERIOD * run.limit, "step"))
        assert int(self.dut.irq.value), f"no interrupt in {run.limit:,} cycles"


@cocotb.test()
@cocotb.parametrize(
    (("index", "pauses"), [(i, PAUSES[i % len(PAUSES)]) for i in range(len(SESSION.runs))])
)
async def outside(dut: Any, index: int, pauses: str) -> None:
    """Do a run from its registers to its outputs, leave what was read, and check it."""
    run, outside = SESSION.runs[index], Outside(dut, pauses)
    await outside.reset()
    for name, value in SESSION.fixed.items():
        (found,) = await outside.read(SESSION.registers[name])
        assert found & 0xFFFFFFFF == value, f"register {name} must be {value:#x}"
    await outside.finish(run)
    status = await outside.status()
    assert status == run.error << 4 | 2, f"status must be done and error {run.error}, not {status:#x}"
    outputs = await outside.read(OUTPUTS_BASE, run.outputs)
    (cycles,) = await outside.read(SESSION.registers["cycles_low"])
    Outcome(status >> 4, outputs, {"cycles": cycles}, 0.0).write(FOLDER, index)
    await outside.write("status", 2)
    assert await outside.status() == 0, "status must be 0 once done is cleared"
    assert not int(dut.irq.value), "the interrupt must end once done is cleared"
    for place, (output, wanted) in enumerate(zip(outputs, run.expected or (), strict=True)):
        assert output == wanted, f"output {place} must be {wanted}, not {output}"


@cocotb.test()
async def refused(dut: Any) -> None:
    """What is not mapped answers DECERR; a word written in part answers SLVERR, and is not written."""
    outside = Outside(dut, "host")
    await outside.reset()
    for address in UNMAPPED:
        assert (await outside.master.read(address, 4)).resp == AxiResp.DECERR
        assert (await outside.master.write(address, bytes(4))).resp == AxiResp.DECERR
    place = SESSION.registers["image_words"]
    await outside.write("image_words", 0x01234567)
    assert (await outside.master.write(place, bytes(2))).resp == AxiResp.SLVERR
    assert await outside.read(place) == [0x01234567]


@cocotb.test()
async def breached(dut: Any) -> None:
    """Bursts that cross 4 KiB; cocotbext-axi must end this test with an AssertionError."""
    outside = Outside(dut, "none")
    await outside.reset()
    dut.breach.value = 0xFFC
    await outside.finish(SESSION.runs[0])

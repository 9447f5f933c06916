# SPDX-License-Identifier: Apache-2.0
"""The accelerator's host: one cocotb test for each run of the session, on the same hardware."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cocotb
from cocotb.triggers import FallingEdge, First, RisingEdge, Timer

from sim.axil import OKAY
from sim.bench import JOB_VARIABLE, PROGRESS_FILE
from sim.session import BASE, Outcome, Run, Session
from sim.words import difference

SESSION = Session.read(Path(os.environ[JOB_VARIABLE]))
OUTPUTS_BASE = 0x4000
PERIOD = 2
"""Steps of a cycle of the bench's clock."""
GLANCE = 50_000
"""Cycles after which a run is looked at while it lasts."""
RESET_CYCLES = 5
PATIENCE = 1000
"""Cycles in which a register answers."""
COUNTERS = ("array_busy", "layernorm_busy", "softmax_busy", "stream_wait", "unit_wait")


def folder() -> Path:
    """Where this process writes: a mutant is a child of the process that began, with a folder of its own."""
    return Path(os.environ[JOB_VARIABLE])


class Host:
    """Reads and writes registers by name."""

    def __init__(self, dut: Any) -> None:
        self.dut = dut

    def memory(self, run: Run) -> None:
        """Where a run's memory is, and how it answers."""
        for name, value in asdict(run.bus or SESSION.bus).items():
            getattr(self.dut, f"host_{name}").value = value
        self.dut.host_shy.value = int(run.shy)
        self.dut.host_base.value = (BASE + run.shift) % (1 << 64)

    async def reset(self) -> None:
        """Reset; the bench sees to it that nothing is offered meanwhile."""
        self.dut.host_rst.value = 1
        await Timer(PERIOD * RESET_CYCLES, "step")
        self.dut.host_rst.value = 0
        await Timer(PERIOD * RESET_CYCLES, "step")

    async def ask(self, address: int, value: int | None = None, strobe: int = 0xF) -> tuple[int, int]:
        """Read an address, or write a value; return what was read and the response."""
        dut = self.dut
        dut.host_address.value, dut.host_write.value = address, int(value is not None)
        dut.host_value.value, dut.host_strobe.value = value or 0, strobe
        dut.host_ask.value = 1
        answer = RisingEdge(dut.host_answered)
        await First(answer, Timer(PERIOD * PATIENCE, "step"))
        assert int(dut.host_answered.value), f"{address:#x} is not answered in {PATIENCE} cycles"
        dut.host_ask.value = 0
        await FallingEdge(dut.host_answered)
        return int(dut.host_data.value), int(dut.host_response.value)

    async def read(self, name: str) -> int:
        """The register ``name``."""
        return await self.read_at(SESSION.registers[name])

    async def read_at(self, address: int) -> int:
        """The word at an address, which must be there."""
        value, response = await self.ask(address)
        assert response == OKAY, f"a read of {address:#x} is answered {response}"
        return value

    async def write(self, name: str, value: int) -> None:
        """Set the register ``name``."""
        _, response = await self.ask(SESSION.registers[name], value)
        assert response == OKAY, f"a write of {name} is answered {response}"

    async def start(self, run: Run) -> None:
        """Say where everything is, and begin."""
        for part in ("image", "program"):
            address = (getattr(run, f"{part}_address") + run.shift) % (1 << 64)
            await self.write(f"{part}_address_low", address & 0xFFFFFFFF)
            await self.write(f"{part}_address_high", address >> 32)
            await self.write(f"{part}_words", getattr(run, f"{part}_words"))
        await self.write("interrupt", 1)
        await self.write("control", 1)

    def check(self) -> None:
        """AssertionError for a broken rule of AXI, or for work behind the end of a run."""
        faults = int(self.dut.faults.value)
        assert not faults, f"rules {faults:#011b} are broken"

    async def finish(self, limit: int) -> None:
        """Wait for the interrupt; AssertionError if it does not come, or for a broken rule of AXI."""
        interrupt, waited = RisingEdge(self.dut.host_irq), 0
        while not int(self.dut.host_irq.value):
            assert waited < limit, f"no interrupt in {limit:,} cycles"
            step = min(GLANCE, limit - waited)
            await First(interrupt, Timer(PERIOD * step, "step"))
            waited += step
            self.check()
            (folder() / PROGRESS_FILE).write_text(str(PROGRESS.done + waited))


class Progress:
    """Cycles of the runs that are over."""

    done = 0


PROGRESS = Progress()


@cocotb.test()
@cocotb.parametrize(index=list(range(len(SESSION.runs))))
async def runs(dut: Any, index: int) -> None:
    """Do a run from its registers to its outputs, leave what was read, and check it."""
    run, host = SESSION.runs[index], Host(dut)
    dut.host_run.value = index
    host.memory(run)
    if index == 0 or run.reset:
        await host.reset()
    for name, value in SESSION.fixed.items():
        assert await host.read(name) == value, f"register {name} must be {value:#x}"
    assert await host.read("status") == 0, "status must be 0 before a start"
    begun = time.monotonic()
    await host.start(run)
    if run.abandon:
        await Timer(PERIOD * run.abandon, "step")
        assert await host.read("status") == 1, "the run must last until it is abandoned"
        await host.reset()
        assert await host.read("status") == 0, "status must be 0 behind a reset"
        dut.host_run.value = -1
        return
    await host.finish(run.limit)
    seconds = time.monotonic() - begun
    outcome = await read_outcome(host, run, seconds)
    outcome.write(folder(), index)
    PROGRESS.done += outcome.counters["cycles"]
    assert outcome.error == run.error, f"error must be {run.error}, not {outcome.error}"
    for name, (least, most) in run.counters.items():
        count = outcome.counters[name]
        assert least <= count <= most, f"{name} must be {least} to {most}, not {count}"
    expected = outcome.outputs if run.expected is None else run.expected
    for place, (found, wanted) in enumerate(zip(outcome.outputs, expected, strict=True)):
        assert found == wanted, f"output {place} must be {wanted}, not {found}"
    dut.host_run.value = -1
    await Timer(PERIOD * 2, "step")
    wrong = difference(folder(), index)
    assert wrong is None, wrong


async def read_outcome(host: Host, run: Run, seconds: float) -> Outcome:
    """Status, counters and outputs; done is cleared, and with it the interrupt."""
    status = await host.read("status")
    assert status & 0xF == 2, f"status must be done and nothing else, not {status:#x}"
    counters = {name: await host.read(name) for name in COUNTERS}
    counters["cycles"] = await host.read("cycles_low") | await host.read("cycles_high") << 32
    words = [await host.read_at(OUTPUTS_BASE + 4 * place) for place in range(run.outputs)]
    outputs = [word - (1 << 32) if word >> 31 else word for word in words]
    await host.write("status", 2)
    assert await host.read("status") == 0, "status must be 0 once done is cleared"
    await Timer(PERIOD, "step")
    assert not int(host.dut.host_irq.value), "the interrupt must end once done is cleared"
    host.check()
    return Outcome(status >> 4, outputs, counters, seconds)

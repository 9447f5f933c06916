# SPDX-License-Identifier: Apache-2.0
"""The testbench of a row unit behind its AXI top: one case at a time, the same for every operator."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import RisingEdge

from sim.axil import OKAY, AxiLite
from sim.compare import compare
from sim.job import Case, Job, Outcome, Unit, Words
from sim.stream import (
    PERIOD,
    KnownChecker,
    Sink,
    Source,
    StabilityChecker,
    cycle_now,
    pack,
    stalls,
    unpack,
)

__all__ = ["JOB_VARIABLE", "PROGRESS_FILE", "Bench", "load_job", "run_case"]

JOB_VARIABLE = "QVIT_JOB"
"""Environment variable with the job's folder."""
PROGRESS_FILE = "progress"
"""File in that folder: beats delivered so far."""
PROGRESS_STEP = 4096
RESET_CYCLES = 3
SILENT_LIMIT = 50_000


def load_job() -> Job:
    """The job that this simulator process is to do."""
    return Job.read(Path(os.environ[JOB_VARIABLE]))


class Bench:
    """A unit's ports, driven and watched."""

    def __init__(self, dut: Any, unit: Unit) -> None:
        self.dut, self.unit = dut, unit
        clock = dut.aclk
        self.edge = RisingEdge(clock)
        self.source = Source(dut, clock, has_user=unit.has_mask)
        self.sink = Sink(dut, clock)
        self.axil = AxiLite(dut, clock)
        self.knows = False  # whether unknown values are watched for
        self.probes: dict[str, list[int]] = {probe["name"]: [] for probe in unit.probes}

    async def start(self) -> None:
        """Start the clock, everything idle, and reset."""
        self.source.idle()
        self.axil.idle()
        self.dut.m_axis_tready.value = 0
        self.dut.aresetn.value = 0
        Clock(self.dut.aclk, PERIOD, unit="step").start(start_high=False)
        await self.reset()

    async def reset(self) -> None:
        """Reset for a few cycles; nothing may be offered during it and right after it."""
        self.dut.aresetn.value = 0
        await self.edge  # the edge at which the unit sees it
        for cycle in range(RESET_CYCLES):
            await self.edge
            for name in ("m_axis_tvalid", "s_axil_bvalid", "s_axil_rvalid"):
                if int(getattr(self.dut, name).value):
                    raise AssertionError(f"{name} is high in cycle {cycle} of a reset")
        self.dut.aresetn.value = 1
        await self.edge
        if "icarus" in cocotb.SIM_NAME.lower() and not self.knows:
            self.knows = True
            cocotb.start_soon(KnownChecker(self.dut, self.dut.aclk).watch())

    async def set_params(self, words: Words) -> None:
        """Write parameter words; all must be accepted."""
        responses = await self.axil.write_all([(4 * word, value) for word, value in words])
        if any(response != OKAY for response in responses):
            at = next(i for i, response in enumerate(responses) if response != OKAY)
            raise AssertionError(f"write of word {words[at][0]:#x} answered {responses[at]}")

    async def watch_probe(self, probe: dict[str, Any]) -> None:
        """Record a statistic at each of its strobes."""
        signal, valid = self._inside(probe["signal"]), self._inside(probe["valid"])
        while True:
            await self.edge
            if valid.value == 1:
                value = signal.value
                number = value.to_signed() if probe["signed"] else value.to_unsigned()
                self.probes[probe["name"]].append(number)

    def _inside(self, path: str) -> Any:
        handle = self.dut
        for name in path.split("."):
            handle = getattr(handle, name)
        return handle

    async def start_row_and_reset(self, case: Case, pauses: Any) -> None:
        """Send the first beats of the case, and reset in the middle of it."""
        beats = self._beats(case)
        await self.set_params(case.params[0][1])
        self.dut.m_axis_tready.value = 1
        source = Source(self.dut, self.dut.aclk, has_user=self.unit.has_mask)
        sending = cocotb.start_soon(source.send(beats, pauses))
        for _ in range(case.reset_after):
            await self.edge
        sending.cancel()
        source.idle()
        await self.reset()

    def _beats(self, case: Case) -> Any:
        unit = self.unit
        return pack(case.elements, case.lengths, unit.lanes, unit.in_slot, case.mask)

    async def run(self, case: Case, rng: np.random.Generator, report: Any) -> None:
        """Do everything that the case asks for; AssertionError if a rule is broken."""
        unit, dut = self.unit, self.dut
        await self.start()
        if case.reset_after:
            await self.start_row_and_reset(case, stalls(case.stall_in, rng))
        beats = self._beats(case)
        gates: dict[int, Callable[[], Awaitable[None]]] = {}
        for row, words in case.params:
            if row == 0:
                await self.set_params(words)
            else:
                at = beats.starts[row - 1] + 1 if case.params_early else beats.starts[row]
                gates[at] = partial(self.set_params, words)
        for prefix, user in (("s_axis", unit.has_mask), ("m_axis", False)):
            if case.stall_in.pauses or case.stall_out.pauses or case.ready_late:
                checker = StabilityChecker(dut, dut.aclk, prefix, user)
                cocotb.start_soon(checker.watch())
        if case.probes:
            for probe in unit.probes:
                cocotb.start_soon(self.watch_probe(probe))
        cocotb.start_soon(report())
        sending = cocotb.start_soon(self.source.send(beats, stalls(case.stall_in, rng), gates))
        expected = int((-(-case.received // unit.lanes)).sum())
        pauses = stalls(case.stall_out, rng)
        await self.sink.receive(expected, pauses, SILENT_LIMIT, late=case.ready_late)
        await sending
        await self.sink.expect_silence(200)
        await self._check_registers(case)

    async def _check_registers(self, case: Case) -> None:
        rows, response = await self.axil.read(self.unit.registers["rows"])
        if (rows, response) != (len(case.received), OKAY):
            raise AssertionError(f"register rows must be {len(case.received)}, not {rows}")
        status, _ = await self.axil.read(self.unit.registers["status"])
        if status != case.status:
            raise AssertionError(f"register status must be {case.status}, not {status}")
        if status:
            await self.axil.write(self.unit.registers["status"], status)
            cleared, _ = await self.axil.read(self.unit.registers["status"])
            if cleared:
                raise AssertionError(f"register status must be clear, not {cleared}")

    def outcome(self, case: Case) -> Outcome:
        """What was measured so far, cycles counted from the first beat that was accepted."""
        unit, sink, source = self.unit, self.sink, self.source
        codes, framed = unpack(
            sink.data,
            sink.keep,
            sink.last,
            case.received,
            unit.lanes,
            unit.out_slot,
            unit.out_signed,
        )
        zero = source.first[0] if source.first else cycle_now()
        cycles = np.array(sink.cycles, dtype=np.int64) - zero
        ends = np.cumsum(-(-case.received // unit.lanes))
        ends = ends[ends <= cycles.size]
        starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)[: ends.size]
        inputs = np.array([source.first[: ends.size], source.final[: ends.size]], dtype=np.int64)
        done = min(ends.size, inputs.shape[1])
        timing = np.stack([*(inputs - zero)[:, :done], cycles[starts[:done]], cycles[ends[:done] - 1]])
        return Outcome(
            codes=codes,
            framed=framed,
            beat_cycles=cycles,
            timing=timing.T,
            stall_in_cycles=source.refused,
            stall_out_cycles=sink.held_back,
            probes=self.probes,
        )


async def run_case(dut: Any, job: Job, index: int) -> None:
    """Run one case of the job and leave its outcome in the job's folder; fail on any difference."""
    folder = Path(os.environ[JOB_VARIABLE])
    case, bench = job.cases[index], Bench(dut, job.unit)
    before = sum(int((-(-c.received // job.unit.lanes)).sum()) for c in job.cases[:index])

    async def report() -> None:
        while True:
            (folder / PROGRESS_FILE).write_text(str(before + len(bench.sink.data)))
            for _ in range(PROGRESS_STEP):
                await bench.edge

    begun, error = time.monotonic(), None
    try:
        await bench.run(case, np.random.default_rng([job.seed, index]), report)
    except (AssertionError, ValueError) as fault:
        error = str(fault)
        raise
    finally:
        outcome = bench.outcome(case)
        outcome.error, outcome.seconds = error, time.monotonic() - begun
        outcome.write(folder, index)
    found = compare(case, outcome, job.unit.lanes)
    if found.fault is not None:
        raise AssertionError(f"case {case.name}: {found.fault} (seed {job.seed})")

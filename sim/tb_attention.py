# SPDX-License-Identifier: Apache-2.0
"""cocotb tests of the unit of codes and v: one for each case of the job, heads at its plain ports.

One loop drives all four ports: what a port is offered follows from the cycles before alone, and so does
every cycle of a run in which nothing stalls.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import RisingEdge

from sim.bench import JOB_VARIABLE
from sim.heads import Feed, HeadJob, Told
from sim.stream import PERIOD, stalls

FOLDER = Path(os.environ[JOB_VARIABLE])
JOB = HeadJob.read(FOLDER)
RESET_CYCLES = 3
SILENT_LIMIT = 3000
"""Cycles in which something must be transferred."""
ENDLESS = 1_000_000
SILENCE = 60
"""Cycles behind the last row in which nothing may come."""


class Source:
    """Offers the words of an input port; a word that is offered stays until it is taken."""

    def __init__(
        self, dut: Any, port: str, feed: Feed, pauses: Iterator[bool], late: bool
    ) -> None:
        self.valid, self.ready, self.payload = (
            getattr(dut, f"{port}__{name}") for name in ("valid", "ready", "payload")
        )
        self.feed, self.pauses, self.late = feed, pauses, late
        self.gates: dict[int, list[tuple[str, int]]] = {}
        for index, other, count in feed.gates:
            self.gates.setdefault(index, []).append((other, count))
        self.taken: list[int] = []
        self.offered = self.held = False
        self.refused = 0
        self.valid.value = 0

    def offer(self, sources: dict[str, Source]) -> None:
        """Decide about the next edge."""
        if self.held:
            return
        index = len(self.taken)
        self.offered = (
            index < len(self.feed.words)
            and not next(self.pauses)
            and all(
                len(sources[other].taken) + (self.late and sources[other].offered) >= count
                for other, count in self.gates.get(index, ())
            )
        )
        self.valid.value = int(self.offered)
        if self.offered:
            self.payload.value = self.feed.words[index]

    def observe(self, now: int) -> bool:
        """Behind the edge: whether the port took the word."""
        self.held = self.offered and not int(self.ready.value)
        self.refused += self.held
        if not self.offered or self.held:
            return False
        self.taken.append(now)
        return True


class Sink:
    """Takes rows and compares them; what is offered must stay until it is taken."""

    def __init__(self, dut: Any, pauses: Iterator[bool], case: Told) -> None:
        self.valid, self.ready, self.payload = dut.o__valid, dut.o__ready, dut.o__payload
        self.pauses, self.case = pauses, case
        self.taken: list[int] = []
        self.waiting: int | None = None
        self.refused = 0

    def decide(self, now: int) -> None:
        """Decide about the next edge."""
        self.taking = now >= self.case.held and not next(self.pauses)
        self.ready.value = int(self.taking)

    def observe(self, now: int) -> bool:
        """Behind the edge: whether a row was taken."""
        valid = int(self.valid.value)
        if self.waiting is not None:
            assert valid, f"o__valid fell before o__ready rose, in cycle {now}"
            kept = int(self.payload.value) == self.waiting
            assert kept, f"o__payload changed before o__ready rose, in cycle {now}"
        self.waiting = int(self.payload.value) if valid and not self.taking else None
        self.refused += self.waiting is not None
        if not valid or not self.taking:
            return False
        self._compare(int(self.payload.value), now)
        self.taken.append(now)
        return True

    def _compare(self, word: int, now: int) -> None:
        """A row with golden's codes."""
        row, bits = len(self.taken), JOB.out_bits
        for lane, wanted in enumerate(self.case.expected[row]):
            low = word >> bits * lane & ((1 << bits) - 1)
            code = low - (low >> bits - 1 << bits)
            assert code == wanted, f"row {row}, lane {lane}, cycle {now}: golden {wanted}, RTL {code}"


async def reset(dut: Any, edge: Any) -> None:
    """Reset for a few cycles; nothing may be offered during it."""
    for port in ("i", "v", "params"):
        getattr(dut, f"{port}__valid").value = 0
    dut.o__ready.value = 0
    dut.rst.value = 1
    await edge  # the edge at which the unit sees it
    for cycle in range(RESET_CYCLES):
        await edge
        assert not int(dut.o__valid.value), f"o__valid is high in cycle {cycle} of a reset"
    dut.rst.value = 0


async def send(
    dut: Any, edge: Any, case: Told, rng: np.random.Generator, cycles: int
) -> tuple[dict[str, Source], Sink]:
    """Send heads and compare rows until all have come, or for so many cycles."""
    pauses = {port: stalls(pattern, rng) for port, pattern in case.stalls.items()}
    sources = {
        port: Source(dut, port, feed, pauses[port], case.late and port != "i")
        for port, feed in case.feeds.items()
    }
    sink, moved = Sink(dut, pauses["o"], case), case.held
    for now in range(cycles):
        for source in sources.values():
            source.offer(sources)
        sink.decide(now)
        await edge
        # All of them, whatever the first says.
        if any([source.observe(now) for source in sources.values()] + [sink.observe(now)]):
            moved = max(moved, now)
        assert now - moved < SILENT_LIMIT, f"nothing moves in {SILENT_LIMIT} cycles"
        if now + 1 == case.held:
            taken = len(sources["i"].taken)
            assert taken == case.filled, f"a unit that is full must hold {case.filled} codes, not {taken}"
        if len(sink.taken) == len(case.expected):
            break
    return sources, sink


@cocotb.test()
@cocotb.parametrize(case=list(range(len(JOB.cases))))
async def rows(dut: Any, case: int) -> None:
    """Send the heads of a case; every row is golden's, every cycle that is known is kept."""
    told, rng, edge = JOB.cases[case], np.random.default_rng([JOB.seed, case]), RisingEdge(dut.clk)
    Clock(dut.clk, PERIOD, unit="step").start(start_high=False)
    await reset(dut, edge)
    if told.reset_after:
        await send(dut, edge, told, rng, told.reset_after)
        await reset(dut, edge)
    sources, sink = await send(dut, edge, told, rng, ENDLESS)
    for _ in range(SILENCE):
        sink.ready.value = 1
        for source in sources.values():
            source.offer(sources)
        await edge
        for source in sources.values():
            source.observe(-1)
        assert not int(sink.valid.value), "a row that no codes asked for"
    seen = {port: source.taken for port, source in sources.items()} | {"o": sink.taken}
    for port, wanted in (told.cycles or {}).items():
        fault = differs(seen[port], wanted)
        assert seen[port] == wanted, f"case {told.name}: {port} {fault} (seed {JOB.seed})"
    refused = {port: source.refused for port, source in sources.items()} | {"o": sink.refused}
    (FOLDER / f"refused{case}.json").write_text(json.dumps(refused), encoding="utf-8")


def differs(seen: list[int], wanted: list[int]) -> str:
    """Where two lists of cycles begin to differ."""
    pairs = enumerate(zip(seen, wanted, strict=False))
    at = next((at for at, (one, other) in pairs if one != other), min(len(seen), len(wanted)))
    return f"transfer {at} must be in cycle {wanted[at:at + 1]}, not {seen[at:at + 1]}"

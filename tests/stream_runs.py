# SPDX-License-Identifier: Apache-2.0
"""Rows through a stream unit's own ports, in Amaranth's simulator: cheap enough for every spec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from amaranth.sim import Simulator

from rtl.stream import StreamUnit
from sim.operators import Operator, Row

LIMIT = 200


@dataclass
class Seen:
    """Codes of each row, the cycles in which its beats came and went, and of each parameter write."""

    codes: list[npt.NDArray[np.int64]] = field(default_factory=list)
    entered: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    written: list[int] = field(default_factory=list)


def beats(elements: npt.NDArray[np.int64], unit: StreamUnit) -> list[int]:
    """A row's payloads: elements, keep, last."""
    lanes, layout = unit.lanes, unit.i.payload.shape()
    bits = (layout.size - lanes - 1) // lanes
    words = []
    for start in range(0, elements.size, lanes):
        part = elements[start : start + lanes].tolist()
        word = sum((value & ((1 << bits) - 1)) << bits * lane for lane, value in enumerate(part))
        word |= ((1 << len(part)) - 1) << bits * lanes
        words.append(word | (start + lanes >= elements.size) << (bits + 1) * lanes)
    return words


def run(unit: StreamUnit, op: Operator, rows: Sequence[Row]) -> Seen:
    """Every row as soon as its parameters are written; the output is always taken."""
    seen, cycle = Seen(), 0
    count = sum(-(-row.elements.size // unit.lanes) for row in rows)

    async def send(context: Any) -> None:
        nonlocal cycle
        current, i, params = None, unit.i, unit.params
        for row in rows:
            if row.params is not current:
                current = row.params
                for address, value in current.words(op.spec):
                    context.set(params.payload, {"address": address, "data": value})
                    context.set(params.valid, 1)
                    await params_taken(context)
                context.set(params.valid, 0)
            for word in beats(row.elements, unit):
                context.set(i.payload.as_value(), word)
                context.set(i.valid, 1)
                ready = 0
                while not ready:
                    *_, ready = await context.tick().sample(i.ready)
                    cycle += 1
                seen.entered.append(cycle)
            context.set(i.valid, 0)
        for _ in range(LIMIT):
            await context.tick()
            cycle += 1
            if len(seen.left) == count:
                return

    async def params_taken(context: Any) -> None:
        nonlocal cycle
        for _ in range(LIMIT):
            *_, ready = await context.tick().sample(unit.params.ready)
            cycle += 1
            if ready:
                seen.written.append(cycle)
                return
        raise AssertionError("the parameter port waits for ever")

    async def receive(context: Any) -> None:
        context.set(unit.o.ready, 1)
        own, part = 0, []
        async for *_, valid, payload in context.tick().sample(unit.o.valid, unit.o.payload):
            own += 1
            if not valid:
                continue
            seen.left.append(own)
            kept = int(payload.keep).bit_count()
            assert int(payload.keep) == (1 << kept) - 1
            part += [int(payload.code[lane]) for lane in range(kept)]
            if payload.last:
                seen.codes.append(np.array(part, np.int64))
                part = []

    simulator = Simulator(unit)
    simulator.add_clock(1e-6)
    simulator.add_testbench(send)
    simulator.add_testbench(receive, background=True)
    simulator.run()
    return seen


def check(unit: StreamUnit, op: Operator, rows: Sequence[Row]) -> None:
    """Demand golden's codes, and golden's latency of every beat."""
    seen = run(unit, op, rows)
    assert [codes.tolist() for codes in seen.codes] == [op.golden(row).tolist() for row in rows]
    assert {after - before for before, after in zip(seen.entered, seen.left, strict=True)} == {
        unit.pipeline.drain
    }

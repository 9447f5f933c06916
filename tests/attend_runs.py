# SPDX-License-Identifier: Apache-2.0
"""Heads through the ports of the unit of codes and v, in Amaranth's simulator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from amaranth.hdl import Module, Signal
from amaranth.sim import Simulator

from golden.attend_unit import attend_words
from rtl.attention import ShiftAttend
from sim.heads import Head

LIMIT = 3000
"""Cycles that a port may wait: longer than any row."""


@dataclass
class Seen:
    """Each row's codes; the cycles in which its first and last code entered, its beat left, v came in."""

    codes: list[list[int]] = field(default_factory=list)
    first: list[int] = field(default_factory=list)
    last: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


def run(unit: ShiftAttend, heads: Sequence[Head], stalls: int = 0) -> Seen:
    """Every head as soon as it can go: v and parameters fill the idle banks while the head before runs.

    stalls: 0 for none, or the seed of a third of idle cycles at each port.
    """
    seen, rng = Seen(), np.random.default_rng(stalls)
    m, clock = Module(), Signal(32)
    m.submodules.unit = unit
    m.d.sync += clock.eq(clock + 1)
    count = sum(len(head.rows) for head in heads)
    begun: list[int] = []  # heads whose last row has begun: the next one's set may be ended
    ended = {"v": 0, "params": 0}  # heads whose set is complete

    def idle() -> bool:
        return stalls > 0 and rng.random() < 1 / 3

    async def give(context: Any, port: Any, word: int) -> int:
        """The cycle in which the port took the word."""
        while idle():
            await context.tick()
        context.set(port.payload.as_value(), word)
        context.set(port.valid, 1)
        for _ in range(LIMIT):
            *_, ready, now = await context.tick().sample(port.ready, clock)
            if ready:
                context.set(port.valid, 0)
                return int(now)
        raise AssertionError("a port waits for ever")

    async def until(context: Any, done: Any) -> None:
        for _ in range(100 * LIMIT):
            if done():
                return
            await context.tick()
        raise AssertionError("a set is never ended")

    async def codes(context: Any) -> None:
        bits = unit.spec.softmax.code_bits
        for index, head in enumerate(heads):
            await until(context, lambda index=index: min(ended.values()) > index)
            for number, row in enumerate(head.rows):
                for place, code in enumerate(row.tolist()):
                    now = await give(context, unit.i, code | (place == len(row) - 1) << bits)
                    if place == 0:
                        seen.first.append(now)
                        if number == len(head.rows) - 1:
                            begun.append(index)
                seen.last.append(now)

    async def values(context: Any) -> None:
        bits = unit.spec.value_bits
        for index, head in enumerate(heads):
            for place, token in enumerate(head.v.tolist()):
                last = place == len(head.v) - 1
                if last:
                    await until(context, lambda index=index: len(begun) >= index)
                word = sum((x & ((1 << bits) - 1)) << bits * lane for lane, x in enumerate(token))
                seen.tokens.append(await give(context, unit.v, word | last << bits * unit.lanes))
            ended["v"] += 1

    async def params(context: Any) -> None:
        for index, head in enumerate(heads):
            *writes, commit = attend_words(head.params, unit.spec, 0)
            for address, value in writes:
                await give(context, unit.params, address | value << 14)
            await until(context, lambda index=index: len(begun) >= index)
            await give(context, unit.params, commit[0])
            ended["params"] += 1

    async def receive(context: Any) -> None:
        while len(seen.codes) < count:
            ready = not idle()
            context.set(unit.o.ready, ready)
            *_, valid, code, now = await context.tick().sample(unit.o.valid, unit.o.payload.code, clock)
            if valid and ready:
                seen.left.append(int(now))
                seen.codes.append([int(code[lane]) for lane in range(unit.lanes)])
            assert now < 50 * LIMIT, "rows are missing"

    simulator = Simulator(m)
    simulator.add_clock(1e-6)
    for process in (codes, values, params, receive):
        simulator.add_testbench(process)
    simulator.run()
    return seen


def check(unit: ShiftAttend, heads: Sequence[Head], stalls: int = 0) -> Seen:
    """Demand golden's codes and, where nothing stalls, golden's cycles of every row."""
    seen = run(unit, heads, stalls)
    assert seen.codes == [codes for head in heads for codes in head.golden(unit.spec)]
    if not stalls:
        done = 0
        for head in heads:
            own = slice(done, done + len(head.rows))
            done = own.stop
            timing = unit.pipeline.schedule([len(row) for row in head.rows], seen.first[own][0])
            assert seen.first[own] == [row.first_in for row in timing]
            assert seen.last[own] == [row.last_in for row in timing]
            assert seen.left[own] == [row.first_out for row in timing]
    return seen

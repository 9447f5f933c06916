# amaranth: UnusedElaboratable=no
# SPDX-License-Identifier: Apache-2.0
"""The array against NumPy's products and the cycle model, in Amaranth's own simulator."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from amaranth.sim import Simulator

import rtl.matrix
from golden.accelerator import AcceleratorSpec
from golden.layernorm import LayerNormSpec
from golden.matrix_cycles import MatrixArray, Product, back_to_back
from golden.softmax import SoftmaxSpec
from rtl.matrix import LOOP, MatrixEngine

Ints = npt.NDArray[np.int64]

SIZE = 4
SPEC = AcceleratorSpec(
    size=SIZE,
    max_tokens=32,
    features=64,
    layernorm=LayerNormSpec(max_channels=64),
    softmax=SoftmaxSpec(max_tokens=32),
)
TOP = 1 << SPEC.attend.top
"""The largest operand: a code of 0."""


@dataclass(frozen=True)
class Pass:
    """One pass: its tile [input, output], where its words lie and what becomes of the sums."""

    tile: Ints
    base: int
    tokens: int
    first: bool = True
    last: bool = True
    row: bool = False
    source: int = 0


@dataclass
class Seen:
    """What left the engine: (cycle, first, token, acc); cycles of taken passes and of addresses."""

    sums: list[tuple[int, int, int, list[int]]] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)
    addresses: list[tuple[int, int, int]] = field(default_factory=list)
    busy: list[int] = field(default_factory=list)


def run(
    passes: Sequence[Pass],
    memory: Ints,
    *,
    gap: float = 0.0,
    puts: Iterable[tuple[int, Sequence[int]]] = (),
    spec: AcceleratorSpec = SPEC,
) -> Seen:
    """Passes over ``memory`` [source, address, input], each as early as the engine takes it.

    ``gap``: chance of a cycle without a word for the tile. ``puts`` come before everything.
    """
    engine, seen, rng = MatrixEngine(spec), Seen(), np.random.default_rng(7)
    cycle, over = 0, False

    async def load(ctx: Any) -> None:
        for each in passes:
            for index in range(spec.size):
                word = each.tile[index] if each.row else each.tile[:, index]
                while rng.random() < gap:
                    await ctx.tick()
                beat = {"word": word.tolist(), "row": int(each.row), "last": int(index == spec.size - 1)}
                ctx.set(engine.load.payload, beat)
                ctx.set(engine.load.valid, 1)
                await ctx.tick().until(engine.load.ready)
                ctx.set(engine.load.valid, 0)

    async def go(ctx: Any) -> None:
        for token, acc in puts:
            ctx.set(engine.put.valid, 1)
            ctx.set(engine.put.token, token)
            ctx.set(engine.put.acc, list(acc))
            await ctx.tick()
        ctx.set(engine.put.valid, 0)
        for each in passes:
            fields = {name: int(getattr(each, name)) for name in ("source", "base", "tokens", "first", "last")}
            ctx.set(engine.go.payload, {**fields, "even": 1, "odd": 0})
            ctx.set(engine.go.valid, 1)
            await ctx.tick().until(engine.go.ready)
            ctx.set(engine.go.valid, 0)

    async def read(ctx: Any) -> None:
        while True:
            read = engine.read
            _, _, en, source, address = await ctx.tick().sample(read.en, read.source, read.address)
            # A word lasts one cycle: what the engine does not register in time is gone.
            word = memory[source, address] if en else rng.integers(-99, 99, spec.size)
            ctx.set(engine.read.word, word.tolist())

    async def watch(ctx: Any) -> None:
        nonlocal cycle
        wanted = sum(each.tokens for each in passes if each.last)
        for cycle in range(100_000):
            signals = (engine.sums.valid, engine.sums.first, engine.sums.token, engine.sums.acc)
            _, _, valid, first, token, acc, en, source, address, taken, busy = await ctx.tick().sample(
                *signals,
                *(engine.read.en, engine.read.source, engine.read.address),
                *(engine.go.valid & engine.go.ready, engine.busy),
            )
            if valid:
                seen.sums.append((cycle, first, token, list(acc)))
            if en:
                seen.addresses.append((cycle, source, address))
            if taken:
                seen.taken.append(cycle)
            if busy:
                seen.busy.append(cycle)
            if len(seen.sums) == wanted and cycle > seen.sums[-1][0] + 2 * engine.latency:
                return
        pytest.fail(f"{len(seen.sums)} of {wanted} sums came")

    simulator = Simulator(engine)
    simulator.add_clock(1e-6)
    for process in (load, go, read):
        simulator.add_testbench(process, background=True)
    simulator.add_testbench(watch)
    simulator.run()
    return seen


def test_dot_products() -> None:
    rng = np.random.default_rng(0)
    memory = rng.integers(-128, 128, (3, 64, SIZE))
    passes = [Pass(rng.integers(-128, 128, (SIZE, SIZE)), 5 * k, 7, k == 0, k == 2, k == 1) for k in range(3)]
    wanted = sum(memory[0, each.base : each.base + 7] @ each.tile for each in passes)
    assert [acc for *_, acc in run(passes, memory).sums] == np.asarray(wanted).tolist()

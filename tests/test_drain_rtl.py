# amaranth: UnusedElaboratable=no
# SPDX-License-Identifier: Apache-2.0
"""The drain against golden.residual and golden.requant, in Amaranth's own simulator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from amaranth.sim import Simulator

import rtl.drain
from golden.accelerator import AcceleratorSpec
from golden.fixedpoint import rounding_shift, saturate
from golden.layernorm import LayerNormSpec
from golden.program import Sink, parameter_words
from golden.requant import RequantSpec, requantise
from golden.requant import corner_rows as requant_corners
from golden.residual import ResidualSpec, residual
from golden.residual import corner_rows as residual_corners
from golden.softmax import SoftmaxSpec
from rtl.drain import Drain

Ints = npt.NDArray[np.int64]

SIZE = 4


def spec(stream_bits: int = 8, gelu_bits: int = 8) -> AcceleratorSpec:
    """A small accelerator."""
    return AcceleratorSpec(
        size=SIZE,
        max_tokens=32,
        stream_bits=stream_bits,
        gelu_bits=gelu_bits,
        layernorm=LayerNormSpec(max_channels=64, in_bits=stream_bits),
        softmax=SoftmaxSpec(max_tokens=32),
    )


@dataclass(frozen=True, kw_only=True)
class Block:
    """A column block: sums and words of the stream [tokens, lanes], parameters."""

    sums: Ints
    stream: Ints
    bias: Ints
    multiplier: Ints
    shift: Ints
    align: Ints
    sink: Sink = Sink.FEATURES
    gelu: bool = False
    clamp: int = 8
    gain: int = 0
    zero_in: int = 0
    zero_out: int = 0
    address: int = 0

    def expected(self, table: Ints) -> Ints:
        """What docs/accelerator.md says."""
        acc = (self.sums + self.bias + (1 << 31)) % (1 << 32) - (1 << 31)
        if self.sink == Sink.OUTPUTS:
            return acc
        x = (self.stream - self.zero_in) << self.align if self.sink == Sink.STREAM else 0
        total = x * self.gain + acc * self.multiplier
        y = saturate(rounding_shift(total, self.shift) + self.zero_out, self.clamp)
        return np.asarray(table[y % len(table)]) if self.gelu else y


@dataclass
class Seen:
    """Results in their order: (sink, address, token, y); cycles of sums, of results and busy ones."""

    results: list[tuple[int, int, int, list[int]]] = field(default_factory=list)
    entered: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    busy: list[int] = field(default_factory=list)


def run(unit: AcceleratorSpec, blocks: Sequence[Block], table: Ints | None = None) -> Seen:
    """Each block's sums as soon as its parameters are there, a token a cycle."""
    drain, seen, rng = Drain(unit), Seen(), np.random.default_rng(3)
    memory: dict[int, list[int]] = {}

    async def load(ctx: Any) -> None:
        for block in blocks:
            words = parameter_words(block.bias, block.multiplier, block.shift, block.align)
            scalars = ("sink", "gelu", "clamp", "gain", "zero_in", "zero_out", "address")
            for index, word in enumerate(words):
                last = index == len(words) - 1
                # What comes with the other words does not count.
                fields = {name: int(getattr(block, name)) if last else 1 for name in scalars}
                ctx.set(drain.load.payload, {"word": word.tolist(), "last": int(last), **fields})
                ctx.set(drain.load.valid, 1)
                await ctx.tick().until(drain.load.ready)
            ctx.set(drain.load.valid, 0)

    async def feed(ctx: Any) -> None:
        for address, code in enumerate([] if table is None else table.tolist()):
            ctx.set(drain.table.payload, {"address": address, "data": code & 0xFF})
            ctx.set(drain.table.valid, 1)
            await ctx.tick().until(drain.table.ready)
        ctx.set(drain.table.valid, 0)
        for block in blocks:
            while ctx.get(drain.load.ready):
                await ctx.tick()
            for token, acc in enumerate(block.sums.tolist()):
                memory[block.address + token] = block.stream[token].tolist()
                ctx.set(drain.sums.valid, 1)
                ctx.set(drain.sums.first, int(token == 0))
                ctx.set(drain.sums.token, token)
                ctx.set(drain.sums.acc, acc)
                await ctx.tick()
            ctx.set(drain.sums.valid, 0)
            ctx.set(drain.sums.first, 1)  # without valid it means nothing

    async def read(ctx: Any) -> None:
        half = 1 << (unit.stream_bits - 1)
        while True:
            stream = drain.stream
            _, _, en, address = await ctx.tick().sample(stream.en, stream.address)
            word = memory[address] if en else rng.integers(-half, half, SIZE).tolist()
            ctx.set(stream.word, word)

    async def watch(ctx: Any) -> None:
        wanted, result = sum(len(block.sums) for block in blocks), drain.result
        signals = (result.valid, result.sink, result.address, result.token, result.y, result.acc)
        for cycle in range(100_000):
            sampled = await ctx.tick().sample(*signals, drain.sums.valid, drain.busy)
            valid, sink, address, token, y, acc, entered, busy = sampled[2:]
            if valid:
                seen.left.append(cycle)
                seen.results.append((sink, address, token, list(acc if sink == Sink.OUTPUTS else y)))
            if entered:
                seen.entered.append(cycle)
            if busy:
                seen.busy.append(cycle)
            if len(seen.results) == wanted and cycle > seen.left[-1] + 2:
                return
        pytest.fail(f"{len(seen.results)} of {wanted} results came")

    simulator = Simulator(drain)
    simulator.add_clock(1e-6)
    for process in (load, feed, read):
        simulator.add_testbench(process, background=True)
    simulator.add_testbench(watch)
    simulator.run()
    return seen


def check(unit: AcceleratorSpec, blocks: Sequence[Block], table: Ints | None = None) -> Seen:
    """Values, places, latency and busy cycles of a run."""
    seen = run(unit, blocks, table)
    results = iter(seen.results)
    for number, block in enumerate(blocks):
        codes = block.expected(np.zeros(1, np.int64) if table is None else table)
        for token, wanted in enumerate(codes.tolist()):
            place = (int(block.sink), block.address + token, token)
            assert next(results) == (*place, wanted), f"block {number}: {block}"
    assert seen.left == [cycle + Drain.latency for cycle in seen.entered]
    under_way = {cycle + step for cycle in seen.entered for step in range(1, Drain.latency + 1)}
    assert seen.busy == sorted(under_way)
    return seen


def random_block(rng: np.random.Generator, unit: AcceleratorSpec, tokens: int, **fixed: Any) -> Block:
    """Any parameters, with results within the codes more often than not."""
    shift = rng.integers(0, 40)
    reach = min(1 << int(rng.integers(4, 32)), (1 << 31) - 1)
    half = 1 << (unit.stream_bits - 1)
    block = Block(
        sums=rng.integers(-reach, reach, (tokens, SIZE)),
        stream=rng.integers(-half, half, (tokens, SIZE)),
        bias=rng.integers(-reach, reach, SIZE),
        multiplier=rng.integers(0, 1 << 24, SIZE),
        shift=np.minimum(shift + rng.integers(0, 8, SIZE), 62),
        align=rng.integers(0, 8, SIZE),
        sink=Sink(int(rng.integers(0, 8))),
        clamp=int(rng.integers(3, 33)),
        gain=int(rng.integers(0, 1 << 32)) >> int(rng.integers(0, 32)),
        zero_in=int(rng.integers(-half, half)),
        zero_out=int(rng.integers(-(1 << 15), 1 << 15)),
        address=int(rng.integers(0, 1 << 16) - tokens) % (1 << 16),
    )
    return replace(block, **fixed)


@pytest.mark.parametrize("stream_bits", [8, 12, 16])
def test_random_blocks(stream_bits: int) -> None:
    rng, unit = np.random.default_rng(stream_bits), spec(stream_bits)
    check(unit, [random_block(rng, unit, tokens) for tokens in rng.integers(1, 21, 60).tolist()])

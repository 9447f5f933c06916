# amaranth: UnusedElaboratable=no
# SPDX-License-Identifier: Apache-2.0
"""The drain against golden.residual and golden.requant, in Amaranth's own simulator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from amaranth.hdl import Cat, Const, Value
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
from rtl.arith import carried, floor_shift
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


def run(
    unit: AcceleratorSpec, blocks: Sequence[Block], table: Ints | None = None, *, port_bits: int = 27
) -> Seen:
    """Each block's sums as soon as its parameters are there, a token a cycle."""
    drain, seen, rng = Drain(unit, port_bits=port_bits), Seen(), np.random.default_rng(3)
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
        signals = (result.valid, result.sink, result.address, result.token, result.y)
        for cycle in range(100_000):
            sampled = await ctx.tick().sample(*signals, drain.sums.valid, drain.busy)
            valid, sink, address, token, y, entered, busy = sampled[2:]
            if valid:
                seen.left.append(cycle)
                seen.results.append((sink, address, token, list(y)))
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


def check(
    unit: AcceleratorSpec, blocks: Sequence[Block], table: Ints | None = None, *, port_bits: int = 27
) -> Seen:
    """Values, places, latency and busy cycles of a run."""
    seen = run(unit, blocks, table, port_bits=port_bits)
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
        address=int(rng.integers(0, spec().stream - tokens)),
    )
    return replace(block, **fixed)


@pytest.mark.parametrize("port_bits", [18, 27])
@pytest.mark.parametrize("stream_bits", [8, 12, 16])
def test_random_blocks(stream_bits: int, port_bits: int) -> None:
    rng, unit = np.random.default_rng(stream_bits), spec(stream_bits)
    blocks = [random_block(rng, unit, tokens) for tokens in rng.integers(1, 21, 60).tolist()]
    check(unit, blocks, port_bits=port_bits)


def test_blocks_follow_without_a_gap() -> None:
    """Parameters change between two sums; the next ones are loaded meanwhile."""
    rng, unit = np.random.default_rng(5), spec()
    seen = check(unit, [random_block(rng, unit, 11) for _ in range(20)])
    assert np.diff(seen.entered).tolist() == [1] * 219


@pytest.mark.parametrize("gelu_bits", [8, 10])
def test_gelu(gelu_bits: int) -> None:
    rng, unit = np.random.default_rng(gelu_bits), spec(gelu_bits=gelu_bits)
    table = rng.integers(-128, 128, 1 << gelu_bits)
    fixed: dict[str, Any] = {"clamp": gelu_bits, "multiplier": np.full(SIZE, 1 << 20), "zero_out": 3}
    blocks = [
        random_block(rng, unit, 20, gelu=gelu, sink=sink, shift=np.full(SIZE, n), **fixed)
        for sink in (Sink.FEATURES, Sink.OUTPUTS, Sink.STREAM)
        for gelu in (True, False)
        for n in (20, 24, 28, 32)
    ]
    # Every entry is met.
    sums = np.arange(-(1 << (gelu_bits - 1)), 1 << (gelu_bits - 1)).reshape(-1, SIZE)
    plain = {"shift": np.full(SIZE, 20), "bias": np.zeros(SIZE, np.int64), "sink": Sink.KEYS, "gelu": True}
    for part in np.array_split(sums, len(sums) // 16):
        blocks.append(random_block(rng, unit, len(part), sums=part, **fixed | plain | {"zero_out": 0}))
    check(unit, blocks, table)


def wrapped(acc: Ints) -> Ints:
    """As 32 bits signed."""
    return np.asarray((acc + (1 << 31)) % (1 << 32) - (1 << 31))


def residual_blocks(bits: int) -> tuple[list[Block], Ints]:
    """The corner rows of golden.residual, a block for each lanes' worth, and the golden codes."""
    shape = ResidualSpec(in_bits=bits, out_bits=bits, max_shift=7, gain_bits=32, multiplier_bits=24)
    rng, blocks, wanted = np.random.default_rng(bits), [], []
    for _, codes, acc, params in residual_corners(shape):
        wanted.append(residual(codes, acc, shape, params).reshape(-1, SIZE))
        for start in range(0, len(codes), SIZE):
            lanes = slice(start, start + SIZE)
            bias = rng.integers(-(1 << 31), 1 << 31, SIZE)
            block = Block(
                sums=wrapped(acc[lanes] - bias)[None],
                stream=codes[None, lanes],
                bias=bias,
                multiplier=params.multiplier[lanes],
                shift=params.shift + params.out_shift[lanes],
                align=params.in_shift[lanes],
                sink=Sink.STREAM,
                clamp=bits,
                gain=params.gain,
                zero_in=params.in_zero_point,
                zero_out=params.zero_point,
            )
            blocks.append(block)
    return blocks, np.concatenate(wanted)


@pytest.mark.parametrize("port_bits", [18, 27])
@pytest.mark.parametrize("bits", [8, 16])
def test_residual_corners(bits: int, port_bits: int) -> None:
    blocks, wanted = residual_blocks(bits)
    seen = check(spec(bits), blocks, port_bits=port_bits)
    assert [y for *_, y in seen.results] == wanted.tolist()


def requant_blocks(bits: int, sink: Sink = Sink.SCORES) -> tuple[list[Block], Ints]:
    """The corner rows of golden.requant, the same in each lane, and the golden codes."""
    blocks, wanted, shape = [], [], RequantSpec(out_bits=bits)
    for _, acc, params in requant_corners(shape):
        wanted.append(requantise(acc, shape, params).repeat(SIZE, axis=1))
        block = Block(
            sums=acc.repeat(SIZE, axis=1),
            stream=np.zeros((len(acc), SIZE), np.int64),
            bias=np.zeros(SIZE, np.int64),
            multiplier=params.multiplier.repeat(SIZE),
            shift=params.shift.repeat(SIZE),
            align=np.zeros(SIZE, np.int64),
            sink=sink,
            clamp=bits,
            gain=(1 << 32) - 1,  # of no effect: there is no stream
            zero_in=-1,
            zero_out=params.zero_point,
        )
        blocks.append(block)
    return blocks, np.concatenate(wanted)


@pytest.mark.parametrize(("bits", "sink"), [(3, Sink.VALUES), (8, Sink.QUERIES), (16, Sink.SUMS)])
def test_requant_corners(bits: int, sink: Sink) -> None:
    blocks, wanted = requant_blocks(bits, sink)
    seen = check(spec(), blocks)
    assert [y for *_, y in seen.results] == wanted.tolist()


def test_a_dropped_half_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def floor(m: Any, value: Value, amount: Value, name: str) -> Value:
        return Cat(Const(0, 1), floor_shift(m, value, amount, name)[1:]).as_signed()

    monkeypatch.setattr(rtl.drain, "floor_shift", floor)
    blocks, _ = requant_blocks(8)
    with pytest.raises(AssertionError, match="block 0"):
        check(spec(), blocks)


@pytest.mark.parametrize("name", ["multiplier_2", "shift_0", "zero_out", "clamp", "address_on", "point"])
def test_a_parameter_out_of_step_is_noticed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def late(m: Any, value: Any, cycles: int, of: str) -> Any:
        return carried(m, value, cycles + (of == name), of)

    monkeypatch.setattr(rtl.drain, "carried", late)
    rng, unit = np.random.default_rng(9), spec()
    blocks = [random_block(rng, unit, 11, sink=Sink.STREAM, shift=np.full(SIZE, 30)) for _ in range(8)]
    with pytest.raises(AssertionError):
        check(unit, blocks)

# amaranth: UnusedElaboratable=no
# SPDX-License-Identifier: Apache-2.0
"""The array against NumPy's products and the cycle model, in Amaranth's own simulator."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from amaranth.hdl import Const
from amaranth.sim import Simulator

import rtl.matrix
from golden.accelerator import AcceleratorSpec
from golden.layernorm import LayerNormSpec
from golden.matrix_cycles import MatrixArray, Product, back_to_back
from golden.softmax import SoftmaxSpec
from rtl.arith import carried
from rtl.matrix import MatrixEngine
from rtl.row import delayed

Ints = npt.NDArray[np.int64]

SIZE = 4
SPEC = AcceleratorSpec(
    size=SIZE,
    max_tokens=32,
    features=64,
    layernorm=LayerNormSpec(max_channels=64),
    softmax=SoftmaxSpec(max_tokens=32),
)
DEEP = replace(SPEC, softmax=SoftmaxSpec(max_tokens=32, code_bits=5))
"""Powers up to 2**22: split at the multipliers of either kind, in three and in two."""
TOP = 1 << SPEC.attend.top
"""The largest operand: a code of 0."""
PORTS = (18, 27)
"""Of multipliers that make one product, and two."""


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
    port_bits: int = 27,
) -> Seen:
    """Passes over ``memory`` [source, address, input], each as early as the engine takes it.

    ``gap``: chance of a cycle without a word for the tile. ``puts`` come before everything.
    """
    engine, seen, rng = MatrixEngine(spec, port_bits=port_bits), Seen(), np.random.default_rng(7)

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
            names = ("source", "base", "tokens", "first", "last")
            fields = {name: int(getattr(each, name)) for name in names}
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


def expected(passes: Sequence[Pass], memory: Ints, puts: Iterable[tuple[int, Sequence[int]]] = ()) -> Ints:
    """Sums that leave, in their order, as docs/accelerator.md has them."""
    sums, left = np.zeros((SPEC.max_tokens, SIZE), np.int64), []
    for token, acc in puts:
        sums[token] = acc
    for each in passes:
        part = memory[each.source, each.base : each.base + each.tokens] @ each.tile
        if not each.first:
            part = part + sums[: each.tokens]
        if each.last:
            left.append(part)
        else:
            sums[: each.tokens] = part
    return np.concatenate(left)


def check(passes: Sequence[Pass], memory: Ints, **how: Any) -> Seen:
    """Values, order, addresses, latency and busy cycles of a run."""
    seen = run(passes, memory, **how)
    wanted = expected(passes, memory, how.get("puts", ()))
    assert [acc for *_, acc in seen.sums] == wanted.tolist()
    begun = zip(seen.taken, passes, strict=True)
    issued = [(taken + t, each, t) for taken, each in begun for t in range(each.tokens)]
    assert seen.addresses == [(cycle, each.source, each.base + t) for cycle, each, t in issued]
    latency = MatrixEngine(SPEC).latency
    left = [(cycle + latency, int(t == 0), t) for cycle, each, t in issued if each.last]
    assert [place for *place, _ in seen.sums] == [list(place) for place in left]
    assert seen.busy == sorted({cycle + step for cycle, *_ in issued for step in range(1, latency + 1)})
    return seen


def layer(
    rng: np.random.Generator, depth: int, blocks: int, tokens: int, *, resume: bool = False
) -> list[Pass]:
    """A product of ``depth`` x ``blocks`` random tiles, columns and rows mixed."""
    return [
        Pass(
            tile=rng.integers(-128, 128, (SIZE, SIZE)),
            base=int(rng.integers(0, 64 - tokens)),
            tokens=tokens,
            first=k == 0 and not resume,
            last=k == depth - 1,
            row=bool(rng.integers(0, 2)),
            source=int(rng.integers(0, 3)),
        )
        for _ in range(blocks)
        for k in range(depth)
    ]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


@pytest.fixture
def memory(rng: np.random.Generator) -> Ints:
    """Words of all three sources: codes and powers of two."""
    words = rng.integers(-128, 128, (3, 64, SIZE))
    words[2] = (1 << rng.integers(0, SPEC.attend.top + 1, (64, SIZE))) * rng.integers(0, 2, (64, SIZE))
    return words


@pytest.mark.parametrize("port_bits", PORTS)
@pytest.mark.parametrize("gap", [0.0, 0.5])
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 6, 7, 20])
def test_products(
    rng: np.random.Generator, memory: Ints, tokens: int, gap: float, port_bits: int
) -> None:
    products = ((3, 2, tokens), (1, 2, tokens), (2, 1, 21 - tokens))
    passes = [each for shape in products for each in layer(rng, *shape)]
    check(passes, memory, gap=gap, port_bits=port_bits)


@pytest.mark.parametrize("tokens", [SIZE + 2, 9, 20])
def test_cycles_are_the_models(rng: np.random.Generator, memory: Ints, tokens: int) -> None:
    """From the first word of the first tile to the last sum; one cycle more is the source memory's."""
    seen = check(layer(rng, 3, 2, tokens) + layer(rng, 2, 2, tokens), memory)
    products = [Product(tokens=tokens, inputs=k * SIZE, outputs=2 * SIZE) for k in (3, 2)]
    array = MatrixArray(rows=SIZE, columns=SIZE)
    assert seen.sums[-1][0] + 1 == back_to_back(products, array) + 1
    assert np.diff(seen.taken).tolist() == [tokens] * 9  # no gap


@pytest.mark.parametrize("tokens", range(1, SIZE + 2))
def test_short_passes_wait_for_their_tile(rng: np.random.Generator, memory: Ints, tokens: int) -> None:
    seen = check(layer(rng, 3, 2, tokens), memory)
    assert np.diff(seen.taken).tolist() == [SIZE + 2] * 5


def test_sums_put_and_resumed(rng: np.random.Generator, memory: Ints) -> None:
    """As for codes of base sqrt 2."""
    puts = [(t, rng.integers(-(1 << 30), 1 << 30, SIZE).tolist()) for t in rng.permutation(6).tolist()]
    check(layer(rng, 2, 1, 6, resume=True), memory, puts=puts)


OPERANDS = (-128, -127, -1, 0, 1, 127, *(1 << shift for shift in range(23)))
WEIGHTS = (-128, -127, -1, 0, 1, 127)


def corner_passes(operands: Sequence[int]) -> tuple[list[Pass], Ints]:
    """Each operand alone in a word, in turn in each row, by each pair of weights in neighbouring columns."""
    pairs = [[lower, upper] * (SIZE // 2) for lower in WEIGHTS for upper in WEIGHTS]
    words = np.zeros((len(operands), SIZE), np.int64)
    words[range(len(operands)), np.arange(len(operands)) % SIZE] = operands
    memory = np.zeros((3, 64, SIZE), np.int64)
    memory[0, : len(operands)] = words
    return [Pass(np.array([pair] * SIZE), 0, len(operands)) for pair in pairs], memory


@pytest.mark.parametrize("port_bits", PORTS)
@pytest.mark.parametrize("spec", [SPEC, DEEP], ids=["top14", "top22"])
def test_every_operand_by_every_corner_of_weights(spec: AcceleratorSpec, port_bits: int) -> None:
    operands = [each for each in OPERANDS if each <= 1 << spec.attend.top]
    check(*corner_passes(operands), spec=spec, port_bits=port_bits)


@pytest.mark.parametrize("port_bits", PORTS)
@pytest.mark.parametrize("weight", [-128, 127])
@pytest.mark.parametrize("code", [TOP, -128, 127, 0])
def test_extremes(weight: int, code: int, port_bits: int) -> None:
    tile, memory = np.full((SIZE, SIZE), weight), np.full((3, 64, SIZE), code)
    check([Pass(tile, 0, 3, k == 0, k == 2, k == 1) for k in range(3)], memory, port_bits=port_bits)


@pytest.mark.parametrize(("constant", "value"), [("FIELD", 14), ("PACKING_PORT", 26)])
def test_fields_too_narrow_are_noticed(
    monkeypatch: pytest.MonkeyPatch, constant: str, value: int
) -> None:
    monkeypatch.setattr(rtl.matrix, constant, value)
    with pytest.raises(AssertionError):
        check(*corner_passes(OPERANDS[:16]), port_bits=value if constant == "PACKING_PORT" else 27)


def test_products_not_shifted_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MatrixEngine, "_shifted", lambda self, product, shifts: product)
    with pytest.raises(AssertionError):
        check(*corner_passes([1 << 10, 1 << 11]))
    check(*corner_passes([1 << 10]))


@pytest.mark.parametrize("port_bits", [17, 28])
def test_port_bits_out_of_range(port_bits: int) -> None:
    with pytest.raises(ValueError, match=rf"^Multiplier port width must be from 18 to 27, not {port_bits}$"):
        MatrixEngine(SPEC, port_bits=port_bits)


def test_sums_wrap() -> None:
    """24 bits of -2**23 * 3."""
    narrow = replace(SPEC, acc_bits=24)
    tile, memory = np.full((SIZE, SIZE), -128), np.full((3, 64, SIZE), TOP)
    seen = run([Pass(tile, 0, 1, k == 0, k == 2) for k in range(3)], memory, spec=narrow)
    assert [acc for *_, acc in seen.sums] == [[-(1 << 23)] * SIZE]


def _stuck(name: str, value: int) -> Any:
    """``carried`` with one of its signals replaced by a constant."""

    def patched(m: Any, signal: Any, cycles: int, of: str) -> Any:
        return Const(value, 1) if of == name else carried(m, signal, cycles, of)

    return patched


@pytest.mark.parametrize("value", [0, 1])
def test_accumulators_that_are_never_or_always_cleared_are_noticed(
    rng: np.random.Generator, memory: Ints, monkeypatch: pytest.MonkeyPatch, value: int
) -> None:
    monkeypatch.setattr(rtl.matrix, "carried", _stuck("fresh", value))
    with pytest.raises(AssertionError):
        check(layer(rng, 2, 2, 7), memory)


def test_a_tile_copied_late_is_noticed(
    rng: np.random.Generator, memory: Ints, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(m: Any, signal: Any, cycles: int, name: str) -> Any:
        return delayed(m, signal, cycles + (name == "copy"), name)

    monkeypatch.setattr(rtl.matrix, "delayed", late)
    with pytest.raises(AssertionError):
        check(layer(rng, 2, 2, 7), memory)

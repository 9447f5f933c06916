# amaranth: UnusedElaboratable=no
# SPDX-License-Identifier: Apache-2.0
"""Pipelined arithmetic helpers against Python integers, in Amaranth's own simulator."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from amaranth.back import rtlil
from amaranth.hdl import Elaboratable, Module, Shape, Signal, Value, signed, unsigned
from amaranth.sim import Simulator

from golden.layernorm import LayerNormSpec
from golden.softmax import SoftmaxSpec
from rtl.arith import look_up, normalise, product, shift_right, squares
from rtl.layernorm import PtfLayerNorm
from rtl.row import popcount, tree
from rtl.softmax import Log2Softmax


class Bench(Elaboratable):
    """Inputs of given shapes into a helper; its outputs, as signals."""

    def __init__(self, shapes: Sequence[Shape], build: Callable[..., Any]) -> None:
        self.inputs = [Signal(shape, name=f"input_{n}") for n, shape in enumerate(shapes)]
        self.outputs: list[Value] = []
        self._module = m = Module()
        result = build(m, *self.inputs)
        for value in result if isinstance(result, tuple) else (result,):
            self.outputs.append(Signal(value.shape(), name=f"output_{len(self.outputs)}"))
            m.d.comb += self.outputs[-1].eq(value)
        m.d.sync += Signal().eq(1)

    def elaborate(self, platform: Any) -> Module:
        return self._module


def run(bench: Bench, stimuli: Sequence[Sequence[int]], latency: int) -> list[tuple[int, ...]]:
    """One stimulus a cycle; the outputs ``latency`` cycles later."""
    got: list[tuple[int, ...]] = []

    async def drive(context: Any) -> None:
        for cycle in range(len(stimuli) + latency):
            for signal, value in zip(bench.inputs, stimuli[min(cycle, len(stimuli) - 1)], strict=True):
                context.set(signal, int(value))
            sampled = await context.tick().sample(*bench.outputs)
            if cycle >= latency:
                got.append(tuple(int(value) for value in sampled[2:]))

    simulator = Simulator(bench)
    simulator.add_clock(1e-6)
    simulator.add_testbench(drive)
    simulator.run()
    return got


@pytest.mark.parametrize("width", [4, 5, 9, 10])
def test_squares(width: int) -> None:
    """Three values: two share a table, up to 9 bits, and the third has one of its own."""
    bench = Bench([signed(width)] * 3, lambda m, *x: tuple(squares(m, x, "square")))
    values = range(-(1 << (width - 1)), 1 << (width - 1))
    rows = [[x, -1 - x, x // 2] for x in values]
    assert run(bench, rows, 3) == [tuple(x * x for x in row) for row in rows]


@pytest.mark.parametrize("port_bits", [18, 27])
@pytest.mark.parametrize("b_shape", [signed(21), unsigned(26), unsigned(34), signed(24)])
def test_product(b_shape: Shape, port_bits: int) -> None:
    rng = np.random.default_rng(1)
    half = 1 << (b_shape.width - 1)
    low, high = (-half, half - 1) if b_shape.signed else (0, 2 * half - 1)
    pairs = [(a, b) for a in (-2048, -1, 0, 1, 2047) for b in (low, 0, 1, high)]
    pairs += zip(rng.integers(-2048, 2048, 200).tolist(), rng.integers(low, high, 200).tolist(), strict=False)
    bench = Bench([signed(12), b_shape], lambda m, a, b: product(m, a, b, "p", port_bits=port_bits))
    assert run(bench, pairs, 2) == [(a * b,) for a, b in pairs]


@pytest.mark.parametrize(("port_bits", "products"), [(18, 4), (27, 2)])
def test_product_takes_the_wide_port_where_it_saves_most(port_bits: int, products: int) -> None:
    """32 x 24 bits: 17 + 15 by 25 with the sign, not 17 + 15 by 17 + 7."""
    m = Module()
    product(m, Signal(signed(32)), Signal(24), "p", port_bits=port_bits)
    text = rtlil.convert(m, ports=[])
    assert len(set(re.findall(r"p_part_\d+_\d+", text))) == products


@pytest.mark.parametrize(("a", "b"), [(-(1 << 31), (1 << 24) - 1), ((1 << 31) - 1, 1), (-1, 1 << 23)])
@pytest.mark.parametrize("port_bits", [18, 27])
def test_product_of_two_wide_factors(a: int, b: int, port_bits: int) -> None:
    shapes = [signed(32), unsigned(24)]
    bench = Bench(shapes, lambda m, a, b: product(m, a, b, "p", port_bits=port_bits))
    assert run(bench, [(a, b)], 2) == [(a * b,)]


@pytest.mark.parametrize(("width", "keep"), [(44, 16), (18, 20), (34, 19), (56, 16), (16, 16)])
def test_normalise(width: int, keep: int) -> None:
    rng = np.random.default_rng(2)
    values = [1 << n for n in range(width)] + [(1 << n) - 1 for n in range(1, width + 1)]
    draws = zip(rng.integers(0, 1 << width, 300), rng.integers(0, width, 300), strict=True)
    values += [int(v) >> int(s) | 1 for v, s in draws]

    def expected(x: int) -> tuple[int, int]:
        zeros = width - x.bit_length()
        aligned = x << zeros
        return (aligned >> (width - keep) if width >= keep else aligned << (keep - width)), zeros

    bench = Bench([unsigned(width)], lambda m, x: normalise(m, x, keep, "n"))
    got = run(bench, [[x] for x in values], 3)
    # The zeros come as a sum of registers, in the same cycle.
    assert got == [expected(x) for x in values]


@pytest.mark.parametrize(("width", "keep", "amount_bits"), [(41, 21, 6), (20, 20, 4), (50, 23, 6)])
def test_shift_right(width: int, keep: int, amount_bits: int) -> None:
    rng = np.random.default_rng(3)
    half = 1 << (width - 1)
    pairs = [(v, n) for v in (-half, -1, 0, 1, half - 1) for n in range(min(width, 1 << amount_bits))]
    pairs += [(int(v), int(n)) for v, n in zip(
        rng.integers(-half, half, 300), rng.integers(0, min(width, 1 << amount_bits), 300), strict=False
    )]

    def expected(x: int, n: int) -> int:
        low = (x >> n) & ((1 << keep) - 1)
        return low - (1 << keep) if low >> (keep - 1) else low

    bench = Bench(
        [signed(width), unsigned(amount_bits)], lambda m, x, n: shift_right(m, x, n, keep, "s")
    )
    assert run(bench, pairs, 3) == [(expected(*pair),) for pair in pairs]


@pytest.mark.parametrize("count", [1, 2, 3, 8, 13])
def test_tree_has_a_register_a_level(count: int) -> None:
    rng = np.random.default_rng(count)
    rows = rng.integers(-128, 128, (20, count)).tolist()
    bench = Bench([signed(8)] * count, lambda m, *x: tree(m, list(x), lambda a, b: a + b, "t"))
    assert run(bench, rows, (count - 1).bit_length()) == [(sum(row),) for row in rows]


def test_popcount_and_look_up() -> None:
    bench = Bench([unsigned(7)], lambda m, x: (popcount(x), look_up(range(9, 137), x, 8)))
    assert run(bench, [[x] for x in range(128)], 0) == [(x.bit_count(), x + 9) for x in range(128)]


@pytest.mark.parametrize("unit", [Log2Softmax, PtfLayerNorm])
@pytest.mark.parametrize("lanes", [0, 33])
def test_lanes_out_of_range(unit: Any, lanes: int) -> None:
    spec = SoftmaxSpec() if unit is Log2Softmax else LayerNormSpec()
    with pytest.raises(ValueError, match=rf"^Lanes must be from 1 to 32, not {lanes}$"):
        unit(spec, lanes=lanes)
    with pytest.raises(TypeError, match=r"^Lanes must be an integer, not 2\.0$"):
        unit(spec, lanes=2.0)


def test_port_bits_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"^Multiplier port width must be from 18 to 27, not 17$"):
        PtfLayerNorm(LayerNormSpec(), lanes=2, port_bits=17)

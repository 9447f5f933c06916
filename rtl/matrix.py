# SPDX-License-Identifier: Apache-2.0
"""The array of the accelerator: L x L multipliers, L trees of adders, a memory of partial sums.

A *pass* holds a tile of L inputs x L outputs while tokens go by, one a cycle; see ``docs/accelerator.md``
for what a program makes of it and :mod:`golden.matrix_cycles` for its cycles.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from golden.accelerator import AcceleratorSpec
from golden.matrix_cycles import MatrixArray
from rtl.arith import carried
from rtl.row import delayed

__all__ = ["MatrixEngine", "pass_layout", "read_signature", "sums_signature", "tile_layout"]

def tile_layout(spec: AcceleratorSpec) -> data.StructLayout:
    """A word of a tile: its column, or with ``row`` its row; ``last`` with the L-th."""
    return data.StructLayout({"word": data.ArrayLayout(signed(8), spec.size), "row": 1, "last": 1})


def pass_layout() -> data.StructLayout:
    """A pass: its source words and what becomes of the sums."""
    flags = {"source": 2, "even": 1, "odd": 1}
    return data.StructLayout({**flags, "base": 16, "tokens": 16, "first": 1, "last": 1})


def read_signature(spec: AcceleratorSpec) -> wiring.Signature:
    """Reading source words, each a cycle after its address."""
    word = data.ArrayLayout(signed(spec.operand_bits), spec.size)
    address = {"en": Out(1), "source": Out(2), "even": Out(1), "odd": Out(1), "address": Out(16)}
    return wiring.Signature({**address, "word": In(word)})


def sums_signature(spec: AcceleratorSpec) -> wiring.Signature:
    """A token's L sums; ``first`` with token 0. Nobody can stop them."""
    acc = data.ArrayLayout(signed(spec.acc_bits), spec.size)
    token = range(spec.max_tokens)
    return wiring.Signature({"valid": Out(1), "first": Out(1), "token": Out(token), "acc": Out(acc)})


class MatrixEngine(wiring.Component):
    """Array with its accumulators: ``sums[t] = (0 if first else sums[t]) + x[t] @ tile`` a pass.

    Parameters
    ----------
    spec : AcceleratorSpec
        Edge of the array, width of its operands, words and width of the accumulators.

    A pass takes ``tokens`` cycles (at least 1) and the next one follows without a gap if its tile is there.
    A tile is loaded from the third cycle of the pass before on, so that passes are L + 2 cycles apart or
    more; reading a partial sum, adding and writing it takes 4, so that no pass meets the sums of the last.
    ``latency``: from an address to its sums. Sums wrap at ``acc_bits``.

    Members
    -------
    load : In(stream.Signature(tile_layout(spec)))
        L words fill the shadow tile: word c is its column c (the weights of output c), or with ``row``
        its row c (the weights of input c). Ready until the tile is full, and again from the cycle in
        which it is copied to the working tile.
    go : In(stream.Signature(pass_layout()))
        A pass over the words ``base`` + t of memory ``source``, t in range(``tokens``), with the tile loaded
        last. It is taken in the cycle of its first address. ``first``: sums start from 0. ``last``: they
        go to ``sums`` and not to the accumulators.
    read : Out(read_signature(spec))
        The source memories.
    sums : Out(sums_signature(spec))
        Results of the passes marked ``last``.
    put : In(...)
        ``acc`` becomes the partial sums of ``token``. Not while ``busy``.
    busy : Out(1)
        A pass is under way: from the cycle after it is taken to that in which its last sums are written or
        on ``sums``.
    """

    def __init__(self, spec: AcceleratorSpec) -> None:
        self._spec = spec
        acc = data.ArrayLayout(signed(spec.acc_bits), spec.size)
        put = {"valid": Out(1), "token": Out(range(spec.max_tokens)), "acc": Out(acc)}
        super().__init__(
            {
                "load": In(stream.Signature(tile_layout(spec))),
                "go": In(stream.Signature(pass_layout())),
                "read": Out(read_signature(spec)),
                "sums": Out(sums_signature(spec)),
                "put": In(wiring.Signature(put)),
                "busy": Out(1),
            }
        )

    @property
    def spec(self) -> AcceleratorSpec:
        """What is fixed when the accelerator is built."""
        return self._spec

    @property
    def latency(self) -> int:
        """Cycles from an address to its sums: the memory's, and those of the cycle model's array."""
        return 1 + MatrixArray(rows=self._spec.size, columns=self._spec.size).latency

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        copy = Signal()  # the shadow tile becomes the working one
        shadow, full = self._load(m, copy)
        passing = self._issue(m, full, copy)
        # Data path, in cycles after the address: 1 word, 2 operand, 3 the multipliers' ports.
        operand = carried(m, self.read.word, 2, "operand")
        m.d.comb += copy.eq(delayed(m, passing.valid & passing.opening, 2, "copy"))
        dots = []
        for column, tile in enumerate(shadow):
            weights = Signal.like(tile, name=f"weights_{column}", reset_less=True)
            with m.If(copy):
                m.d.sync += weights.eq(tile)
            dots.append(self._dot(m, operand, weights, f"sum_{column}"))
        self._accumulate(m, dots, passing)
        return m

    def _load(self, m: Module, copy: Value) -> tuple[list[Any], Signal]:
        """The shadow tile's columns, written one by one or shifted through; whether it is full."""
        size, word = self._spec.size, self.load.payload.word
        full = Signal()
        count = Signal(range(size))
        taken = Signal()
        m.d.comb += [self.load.ready.eq(~full | copy), taken.eq(self.load.valid & self.load.ready)]
        with m.If(copy):
            m.d.sync += full.eq(0)
        with m.If(taken):
            m.d.sync += [count.eq(count + 1), full.eq(self.load.payload.last)]
        columns = []
        for column in range(size):
            shadow = Signal.like(word, name=f"shadow_{column}", reset_less=True)
            with m.If(taken & self.load.payload.row):
                m.d.sync += shadow.eq(Cat(shadow.as_value()[8:], word[column]))
            with m.Elif(taken & (count == column)):
                m.d.sync += shadow.eq(word)
            columns.append(shadow)
        return columns, full

    def _issue(self, m: Module, full: Value, copy: Value) -> Any:
        """Passes become addresses; what to do with each word and its sums."""
        go, held, tokens = self.go, Signal(pass_layout()), range(self._spec.max_tokens)
        left, token, taken = Signal(tokens), Signal(tokens), Signal()
        promised = Signal()  # the shadow tile belongs to a pass that has begun
        m.d.comb += [go.ready.eq(full & ~promised & (left == 0)), taken.eq(go.valid & go.ready)]
        with m.If(copy):
            m.d.sync += promised.eq(0)
        with m.Elif(taken):
            m.d.sync += promised.eq(1)
        now = pass_layout()(Mux(taken, go.payload.as_value(), held.as_value()))
        layout = {"valid": 1, "opening": 1, "first": 1, "last": 1, "token": token.shape()}
        passing = Signal(data.StructLayout(layout))
        m.d.comb += [
            self.read.source.eq(now.source),
            self.read.even.eq(now.even),
            self.read.odd.eq(now.odd),
            self.read.en.eq(passing.valid),
            self.read.address.eq(now.base),
            passing.valid.eq(taken | (left != 0)),
            passing.opening.eq(taken),
            passing.first.eq(now.first),
            passing.last.eq(now.last),
            passing.token.eq(Mux(taken, 0, token)),
        ]
        with m.If(passing.valid):
            m.d.sync += [
                held.eq(now),
                held.base.eq(now.base + 1),
                token.eq(passing.token + 1),
                left.eq(Mux(taken, go.payload.tokens, left) - 1),
            ]
        return passing

    def _dot(self, m: Module, operand: Any, weights: Any, name: str) -> Value:
        """Dot product of the operands and a column of the working tile: products, then a tree of sums."""
        values: list[Value] = [operand[row] * weights[row] for row in range(self._spec.size)]
        level = 0
        while True:
            registers = []
            for index, value in enumerate(values):
                register = Signal(value.shape(), name=f"{name}_{level}_{index}", reset_less=True)
                m.d.sync += register.eq(value)
                registers.append(register)
            if len(registers) == 1:
                return registers[0]
            values = [a + b for a, b in zip(registers[::2], registers[1::2], strict=True)]
            level += 1

    def _accumulate(self, m: Module, dots: list[Value], passing: Any) -> None:
        """Add to the partial sums; results of a last pass leave instead of being written."""
        spec = self._spec
        acc = data.ArrayLayout(signed(spec.acc_bits), spec.size)
        memory = Memory(shape=acc, depth=spec.max_tokens, init=[])
        m.submodules.accumulators = memory
        writer, reader = memory.write_port(), memory.read_port()
        early = delayed(m, passing, self.latency - 3, "early")
        late = delayed(m, early, 3, "late")
        before, fresh = Signal(acc, reset_less=True), delayed(m, early.first, 1, "fresh")
        m.d.comb += reader.addr.eq(early.token)
        # Block RAMs answer late in the cycle: their output goes straight into a register.
        m.d.sync += before.as_value().eq(Mux(fresh, 0, reader.data.as_value()))
        total = Signal(acc, reset_less=True)
        m.d.sync += [total[i].eq(before[i] + dot) for i, dot in enumerate(dots)]
        m.d.comb += [
            writer.en.eq(late.valid & ~late.last | self.put.valid),
            writer.addr.eq(Mux(self.put.valid, self.put.token, late.token)),
            writer.data.eq(Mux(self.put.valid, self.put.acc.as_value(), total.as_value())),
            self.sums.valid.eq(late.valid & late.last),
            self.sums.first.eq(late.opening),
            self.sums.token.eq(late.token),
            self.sums.acc.eq(total),
        ]
        under_way = Signal(self.latency)
        m.d.sync += under_way.eq(Cat(passing.valid, under_way))
        m.d.comb += self.busy.eq(under_way.any())

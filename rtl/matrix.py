# SPDX-License-Identifier: Apache-2.0
"""The array of the accelerator: L x L multipliers, L trees of adders, a memory of partial sums.

A *pass* holds a tile of L inputs x L outputs while tokens go by, one a cycle; see ``docs/accelerator.md``
for what a program makes of it and :mod:`golden.matrix_cycles` for its cycles.

**Two products a multiplier.** A port of 27 bits takes the weights of two columns, w1 * 2**18 + w0. Times x
and with 2**17 added (a constant, which a DSP slice adds), the product has w1 * x in its upper 18 bits and
w0 * x + 2**17 in its lower ones, with no borrow between them as long as w * x fits 18 bits: x up to 2**10,
where codes end at 2**7. A softmax code, which means a power of two up to 2**22, is therefore split into
x = 2**(s mod 11) and s div 11, by which the products are shifted behind the multiplier.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from golden.accelerator import SOURCES, AcceleratorSpec
from golden.fixedpoint import integer
from golden.matrix_cycles import MatrixArray
from rtl.arith import carried
from rtl.row import delayed

__all__ = ["MatrixEngine", "pass_layout", "read_signature", "sums_signature", "tile_layout"]

PACKING_PORT = 27
"""Bits of a multiplier's port that take the weights of two columns."""
FIELD = 18
"""Bits of each of two products in one; also of a multiplier's other port."""
Shifts = list[tuple[int, Value]]
"""Ways to the left, and the flag of each."""


def tile_layout(spec: AcceleratorSpec) -> data.StructLayout:
    """A word of a tile: its column, or with ``row`` its row; ``last`` with the L-th."""
    return data.StructLayout({"word": data.ArrayLayout(signed(8), spec.size), "row": 1, "last": 1})


def pass_layout(spec: AcceleratorSpec) -> data.StructLayout:
    """A pass: its source words and what becomes of the sums."""
    flags = {"source": 2, "even": 1, "odd": 1}
    words = {"base": spec.address_bits(*SOURCES), "tokens": range(spec.max_tokens)}  # 0: all of them
    return data.StructLayout({**flags, **words, "first": 1, "last": 1})


def read_signature(spec: AcceleratorSpec) -> wiring.Signature:
    """Reading source words, each a cycle after its address: codes of 8 bits or powers of two."""
    word = data.ArrayLayout(signed(spec.operand_bits), spec.size)
    flags = {"en": Out(1), "source": Out(2), "even": Out(1), "odd": Out(1)}
    return wiring.Signature({**flags, "address": Out(spec.address_bits(*SOURCES)), "word": In(word)})


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
    port_bits : int
        Wider port of the target's multipliers, 18 to 27; from 27 on one makes the products of two columns.
        Neither a result nor a cycle depends on it.

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
    go : In(stream.Signature(pass_layout(spec)))
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

    def __init__(self, spec: AcceleratorSpec, *, port_bits: int = PACKING_PORT) -> None:
        self._spec = spec
        self._packed = integer(port_bits, "Multiplier port width", FIELD, PACKING_PORT) == PACKING_PORT
        acc = data.ArrayLayout(signed(spec.acc_bits), spec.size)
        put = {"valid": Out(1), "token": Out(range(spec.max_tokens)), "acc": Out(acc)}
        super().__init__(
            {
                "load": In(stream.Signature(tile_layout(spec))),
                "go": In(stream.Signature(pass_layout(spec))),
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
        # Data path, in cycles after the address: 1 word, 2 word, 3 the multipliers' ports, 4 products.
        m.d.comb += copy.eq(delayed(m, passing.valid & passing.opening, 2, "copy"))
        products = self._products(m, self._operands(m), shadow, copy)
        dots = [self._sum(m, column, f"sum_{index}") for index, column in enumerate(products)]
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
            # The last one takes every word: the one that stays is its own.
            with m.Elif(taken & (count == column) if column < size - 1 else taken):
                m.d.sync += shadow.eq(word)
            columns.append(shadow)
        return columns, full

    def _issue(self, m: Module, full: Value, copy: Value) -> Any:
        """Passes become addresses; what to do with each word and its sums."""
        layout, tokens = pass_layout(self._spec), range(self._spec.max_tokens)
        go, held = self.go, Signal(layout)
        left, token, taken = Signal(tokens), Signal(tokens), Signal()
        promised = Signal()  # the shadow tile belongs to a pass that has begun
        m.d.comb += [go.ready.eq(full & ~promised & (left == 0)), taken.eq(go.valid & go.ready)]
        with m.If(copy):
            m.d.sync += promised.eq(0)
        with m.Elif(taken):
            m.d.sync += promised.eq(1)
        now = layout(Mux(taken, go.payload.as_value(), held.as_value()))
        word = {"valid": 1, "opening": 1, "first": 1, "last": 1, "token": token.shape()}
        passing = Signal(data.StructLayout(word))
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

    def _operands(self, m: Module) -> list[tuple[Signal, Shifts]]:
        """Each row's operand, and how far its products go left: (bits, a flag in the cycle after it)."""
        step = FIELD - 7 if self._packed else FIELD - 1  # powers below 2**step fit
        operands = []
        for row, word in enumerate(carried(m, self.read.word, 1, "word")):
            operand = Signal(signed(step + 1), name=f"operand_{row}", reset_less=True)
            power, shifts = word, []
            for low in range(step, len(word) - 1, step):
                part = word[low : min(low + step, len(word) - 1)]
                far = part.any() & ~word[-1]  # in negative codes these bits are all set
                power = Mux(far, part, power)
                shifts.append((low, carried(m, far, 2, f"far_{row}_{low}")))
            m.d.sync += operand.eq(power)
            operands.append((operand, shifts))
        return operands

    def _products(
        self, m: Module, operands: list[tuple[Signal, Shifts]], shadow: list[Any], copy: Value
    ) -> list[list[Value]]:
        """The products of each column, a cycle after the operands; the working tile."""
        together = 2 if self._packed else 1
        products: list[list[Value]] = []
        for first in range(0, len(shadow), together):
            tile = shadow[first : first + together]
            # 32 bits and not 27: simulators take such an element in one step.
            layout = data.ArrayLayout(signed(32 if self._packed else 8), len(operands))
            weights = Signal(layout, name=f"weights_{first}", reset_less=True)
            with m.If(copy):
                for row, each in enumerate(zip(*tile, strict=True)):
                    m.d.sync += weights[row].eq(each[0] + (each[1] << FIELD) if self._packed else each[0])
            columns: list[list[Value]] = [[] for _ in range(together)]
            for row, (operand, shifts) in enumerate(operands):
                held = weights[row][:PACKING_PORT].as_signed() if self._packed else weights[row]
                fields = self._multiplied(m, held, operand, f"product_{first}_{row}")
                for column, field in zip(columns, fields, strict=True):
                    column.append(self._shifted(field, shifts))
            products += columns
        return products

    def _multiplied(self, m: Module, weights: Signal, operand: Signal, name: str) -> list[Value]:
        """A multiplier's one or two products."""
        if not self._packed:
            product = Signal(signed(len(weights) + len(operand) - 1), name=name, reset_less=True)
            m.d.sync += product.eq(weights * operand)
            return [product]
        half = 1 << (FIELD - 1)
        both = Signal(2 * FIELD, name=name, reset_less=True)
        m.d.sync += both.eq(weights * operand + half)
        return [(both[:FIELD] ^ half).as_signed(), both[FIELD:].as_signed()]

    def _shifted(self, product: Value, shifts: Shifts) -> Value:
        """A product moved left; as wide as the largest, of two codes or a weight and a power."""
        value = product
        for low, flag in shifts:
            value = Mux(flag, product << low, value)
        return value[: max(16, 8 + self._spec.attend.top)].as_signed()

    def _sum(self, m: Module, values: list[Value], name: str) -> Value:
        """Their sum: a tree of adders, a register after each level."""
        level = 0
        while len(values) > 1:
            level += 1
            registers = []
            for index, (a, b) in enumerate(zip(values[::2], values[1::2], strict=True)):
                register = Signal((a + b).shape(), name=f"{name}_{level}_{index}", reset_less=True)
                m.d.sync += register.eq(a + b)
                registers.append(register)
            values = list(registers)
        return values[0]

    def _accumulate(self, m: Module, dots: list[Value], passing: Any) -> None:
        """Add to the partial sums; results of a last pass leave instead of being written."""
        spec = self._spec
        acc = data.ArrayLayout(signed(spec.acc_bits), spec.size)
        memory = Memory(shape=acc, depth=spec.max_tokens, init=[])
        m.submodules.accumulators = memory
        writer, reader = memory.write_port(), memory.read_port()
        early = carried(m, passing, self.latency - 3, "early")
        late = carried(m, early, 3, "late")
        under_way = Signal(self.latency)
        m.d.sync += under_way.eq(Cat(passing.valid, under_way))
        valid = under_way[-1]
        before, fresh = Signal(acc, reset_less=True), carried(m, early.first, 1, "fresh")
        m.d.comb += reader.addr.eq(early.token)
        # Block RAMs answer late in the cycle: their output goes straight into a register.
        m.d.sync += before.as_value().eq(Mux(fresh, 0, reader.data.as_value()))
        total = Signal(acc, reset_less=True)
        m.d.sync += [total[i].eq(before[i] + dot) for i, dot in enumerate(dots)]
        m.d.comb += [
            writer.en.eq(valid & ~late.last | self.put.valid),
            writer.addr.eq(Mux(self.put.valid, self.put.token, late.token)),
            writer.data.eq(Mux(self.put.valid, self.put.acc.as_value(), total.as_value())),
            self.sums.valid.eq(valid & late.last),
            self.sums.first.eq(late.opening),
            self.sums.token.eq(late.token),
            self.sums.acc.eq(total),
            self.busy.eq(under_way.any()),
        ]

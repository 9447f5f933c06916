# SPDX-License-Identifier: Apache-2.0
"""Bit-vectors that are numbers where they can be and terms of a solver where they must be.

A :class:`Bits` with a ``value`` is a constant and stays one through every operation: what a reset fixes is
computed here, and the solver sees only what depends on free inputs. Operations are named as BTOR2 names them
(Niemetz et al., "Btor2, BtorMC and Boolector 3.0", CAV 2018, table 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import bitwuzla
from bitwuzla import Kind

__all__ = ["Bits", "Logic", "Memory"]

UNSIGNED = {"ult": "<", "ulte": "<=", "ugt": ">", "ugte": ">="}
SIGNED = {"slt": "<", "slte": "<=", "sgt": ">", "sgte": ">="}
KINDS = {
    "and": Kind.BV_AND,
    "or": Kind.BV_OR,
    "xor": Kind.BV_XOR,
    "add": Kind.BV_ADD,
    "sub": Kind.BV_SUB,
    "mul": Kind.BV_MUL,
    "sll": Kind.BV_SHL,
    "srl": Kind.BV_SHR,
    "sra": Kind.BV_ASHR,
    "ult": Kind.BV_ULT,
    "ulte": Kind.BV_ULE,
    "ugt": Kind.BV_UGT,
    "ugte": Kind.BV_UGE,
    "slt": Kind.BV_SLT,
    "slte": Kind.BV_SLE,
    "sgt": Kind.BV_SGT,
    "sgte": Kind.BV_SGE,
    "eq": Kind.EQUAL,
    "neq": Kind.DISTINCT,
}
PREDICATES = {*UNSIGNED, *SIGNED, "eq", "neq"}


@dataclass(frozen=True, eq=False)
class Bits:
    """``width`` bits: a number (``value``, unsigned) or a solver's ``term``, of ``halves`` if it is."""

    width: int
    value: int | None = None
    term: Any = None
    halves: tuple[Bits, Bits] | None = None

    @property
    def signed_value(self) -> int:
        """The number in two's complement; only of a constant."""
        assert self.value is not None
        return self.value - ((self.value >> (self.width - 1)) << self.width)


EXPANDED = 6
"""Memories of so many address bits are words of their own, and no array of the solver."""


@dataclass(frozen=True, eq=False)
class Memory:
    """Words: those of known addresses, and below them what ``base`` holds.

    base: a solver's array, or the word that every other address holds.
    """

    address_bits: int
    width: int
    base: Any
    words: Mapping[int, Bits] = field(default_factory=dict)


class Logic:
    """Makes bit-vectors, and asks the solver about them."""

    def __init__(self) -> None:
        self.terms = bitwuzla.TermManager()
        self._sorts: dict[int, Any] = {}
        self._names = 0

    # ------------------------------------------------------------------------------------- leaves

    def sort(self, width: int) -> Any:
        """The solver's sort of bit-vectors."""
        if width not in self._sorts:
            self._sorts[width] = self.terms.mk_bv_sort(width)
        return self._sorts[width]

    def const(self, value: int, width: int) -> Bits:
        """A number, modulo 2**width."""
        return Bits(width, value & ((1 << width) - 1))

    def free(self, width: int, name: str = "") -> Bits:
        """A new variable."""
        self._names += 1
        return Bits(width, None, self.terms.mk_const(self.sort(width), f"{name}#{self._names}"))

    def free_memory(self, address_bits: int, width: int, name: str = "") -> Memory:
        """A memory with anything in it."""
        if address_bits <= EXPANDED:
            words = {place: self.free(width, f"{name}[{place}]") for place in range(1 << address_bits)}
            return Memory(address_bits, width, self.const(0, width), words)
        self._names += 1
        sort = self.terms.mk_array_sort(self.sort(address_bits), self.sort(width))
        return Memory(address_bits, width, self.terms.mk_const(sort, f"{name}#{self._names}"))

    def filled_memory(self, address_bits: int, fill: Bits) -> Memory:
        """A memory of one value."""
        return Memory(address_bits, fill.width, fill)

    def term(self, bits: Bits) -> Any:
        """The solver's term of a bit-vector."""
        if bits.term is not None:
            return bits.term
        return self.terms.mk_bv_value(self.sort(bits.width), bits.value)

    # --------------------------------------------------------------------------------- operations

    def slice(self, x: Bits, high: int, low: int) -> Bits:
        """Bits ``high`` down to ``low``."""
        width = high - low + 1
        if x.value is not None:
            return self.const(x.value >> low, width)
        if width == x.width:
            return x
        if x.halves is not None:
            above, below = x.halves
            if low >= below.width:
                return self.slice(above, high - below.width, low - below.width)
            if high < below.width:
                return self.slice(below, high, low)
        return Bits(width, None, self.terms.mk_term(Kind.BV_EXTRACT, [x.term], [high, low]))

    def extend(self, x: Bits, more: int, *, signed: bool) -> Bits:
        """``more`` bits above, copies of the sign or zeros."""
        if not more:
            return x
        if x.value is not None:
            return self.const(x.signed_value if signed else x.value, x.width + more)
        kind = Kind.BV_SIGN_EXTEND if signed else Kind.BV_ZERO_EXTEND
        return Bits(x.width + more, None, self.terms.mk_term(kind, [x.term], [more]))

    def concat(self, high: Bits, low: Bits) -> Bits:
        """``high`` above ``low``."""
        width = high.width + low.width
        if high.value is not None and low.value is not None:
            return self.const(high.value << low.width | low.value, width)
        made = self.terms.mk_term(Kind.BV_CONCAT, [self.term(high), self.term(low)])
        return Bits(width, None, made, (high, low))

    def invert(self, x: Bits) -> Bits:
        """Every bit the other way."""
        if x.value is not None:
            return self.const(~x.value, x.width)
        return Bits(x.width, None, self.terms.mk_term(Kind.BV_NOT, [x.term]))

    def reduced(self, op: str, x: Bits) -> Bits:
        """``redor``, ``redand``, ``redxor``: one bit."""
        if x.value is not None:
            full = (1 << x.width) - 1
            value = {"redor": x.value != 0, "redand": x.value == full, "redxor": x.value.bit_count() & 1}
            return self.const(int(value[op]), 1)
        if x.width == 1:
            return x
        if op == "redxor":
            return Bits(1, None, self.terms.mk_term(Kind.BV_REDXOR, [x.term]))
        against = self.const(0 if op == "redor" else -1, x.width)
        return self.apply("neq" if op == "redor" else "eq", x, against)

    def choose(self, condition: Bits, x: Bits, y: Bits) -> Bits:
        """``x`` where the condition is 1, else ``y``."""
        if condition.value is not None:
            return x if condition.value else y
        if x.value is not None and x.value == y.value:
            return x
        if x.term is not None and x.term is y.term:
            return x
        terms = [self._holds(condition), self.term(x), self.term(y)]
        return Bits(x.width, None, self.terms.mk_term(Kind.ITE, terms))

    def apply(self, op: str, x: Bits, y: Bits) -> Bits:
        """A binary operation, both of one width but in shifts, whose amount may be of another."""
        if x.value is not None and y.value is not None:
            return self._folded(op, x, y)
        if op in ("and", "or", "mul"):
            for a, b in ((x, y), (y, x)):
                if a.value == 0:
                    return b if op == "or" else a
                if a.value == (1 << a.width) - 1 and op != "mul":
                    return b if op == "and" else a
        if op in ("add", "sub", "sll", "srl", "sra") and y.value == 0:
            return x
        if op == "add" and x.value == 0:
            return y
        if op in ("sll", "srl", "sra"):
            return self._shifted(op, x, y)
        made = self.terms.mk_term(KINDS[op], [self.term(x), self.term(y)])
        return self._bit(made) if op in PREDICATES else Bits(x.width, None, made)

    def _shifted(self, op: str, x: Bits, y: Bits) -> Bits:
        if y.value is not None and op != "sra":
            n, zeros = min(y.value, x.width), self.const(0, min(y.value, x.width))
            if n == x.width:
                return self.const(0, x.width)
            rest = self.slice(x, x.width - 1 - n, 0) if op == "sll" else self.slice(x, x.width - 1, n)
            return self.concat(rest, zeros) if op == "sll" else self.extend(rest, n, signed=False)
        if y.value is not None:
            n = min(y.value, x.width - 1)
            return self.extend(self.slice(x, x.width - 1, n), n, signed=True)
        wide = max(x.width, y.width)
        a = self.extend(x, wide - x.width, signed=op == "sra")
        b = self.extend(y, wide - y.width, signed=False)
        made = Bits(wide, None, self.terms.mk_term(KINDS[op], [self.term(a), self.term(b)]))
        return self.slice(made, x.width - 1, 0)

    def _folded(self, op: str, x: Bits, y: Bits) -> Bits:
        a, b = x.value, y.value
        assert a is not None
        assert b is not None
        if op in SIGNED or op in UNSIGNED:
            sign = (SIGNED | UNSIGNED)[op]
            p, q = (x.signed_value, y.signed_value) if op in SIGNED else (a, b)
            return self.const(int({"<": p < q, "<=": p <= q, ">": p > q, ">=": p >= q}[sign]), 1)
        if op in ("eq", "neq"):
            return self.const(int((a == b) == (op == "eq")), 1)
        if op in ("sll", "srl", "sra"):
            n = min(b, x.width)
            return self.const({"sll": a << n, "srl": a >> n, "sra": x.signed_value >> n}[op], x.width)
        number = {"and": a & b, "or": a | b, "xor": a ^ b, "add": a + b, "sub": a - b, "mul": a * b}
        return self.const(number[op], x.width)

    # ------------------------------------------------------------------------------------ memories

    def read(self, memory: Memory, address: Bits) -> Bits:
        """The word at an address."""
        if address.value is not None:
            return self._word(memory, address.value)
        if memory.address_bits > EXPANDED and len(memory.words) < 1 << memory.address_bits:
            if not isinstance(memory.base, Bits):
                return Bits(memory.width, None, self._select(self._array(memory), address))
            found = memory.base
            for place, word in memory.words.items():
                hit = self.apply("eq", address, self.const(place, memory.address_bits))
                found = self.choose(hit, word, found)
            return found
        words = [self._word(memory, place) for place in range(1 << memory.address_bits)]
        for bit in range(memory.address_bits):
            chosen = self.slice(address, bit, bit)
            words = [
                self.choose(chosen, high, low)
                for low, high in zip(words[::2], words[1::2], strict=True)
            ]
        return words[0]

    def write(self, memory: Memory, address: Bits, word: Bits) -> Memory:
        """The memory with another word at an address."""
        bits, width, base = memory.address_bits, memory.width, memory.base
        if address.value is not None:
            return Memory(bits, width, base, {**memory.words, address.value: word})
        if bits > EXPANDED:
            terms = [self._array(memory), self.term(address), self.term(word)]
            return Memory(bits, width, self.terms.mk_term(Kind.ARRAY_STORE, terms))
        words = {}
        for place in range(1 << bits):
            hit = self.apply("eq", address, self.const(place, bits))
            words[place] = self.choose(hit, word, self._word(memory, place))
        return Memory(bits, width, base, words)

    def choose_memory(self, condition: Bits, x: Memory, y: Memory) -> Memory:
        """``x`` where the condition is 1, else ``y``."""
        if condition.value is not None:
            return x if condition.value else y
        if x.base is y.base:
            words = {
                place: self.choose(condition, self._word(x, place), self._word(y, place))
                for place in {**x.words, **y.words}
            }
            return Memory(x.address_bits, x.width, x.base, words)
        terms = [self._holds(condition), self._array(x), self._array(y)]
        return Memory(x.address_bits, x.width, self.terms.mk_term(Kind.ITE, terms))

    def _word(self, memory: Memory, place: int) -> Bits:
        """The word at a known address."""
        if place in memory.words:
            return memory.words[place]
        if isinstance(memory.base, Bits):
            return memory.base
        address = self.const(place, memory.address_bits)
        return Bits(memory.width, None, self._select(memory.base, address))

    def _select(self, array: Any, address: Bits) -> Any:
        return self.terms.mk_term(Kind.ARRAY_SELECT, [array, self.term(address)])

    def _array(self, memory: Memory) -> Any:
        """The whole memory as the solver's array."""
        array = memory.base
        if isinstance(array, Bits):
            sort = self.terms.mk_array_sort(self.sort(memory.address_bits), self.sort(memory.width))
            array = self.terms.mk_const_array(sort, self.term(array))
        for place, word in memory.words.items():
            address = self.term(self.const(place, memory.address_bits))
            array = self.terms.mk_term(Kind.ARRAY_STORE, [array, address, self.term(word)])
        return array

    # --------------------------------------------------------------------------------- conditions

    def _holds(self, condition: Bits) -> Any:
        """A bit as a condition of the solver."""
        return self.terms.mk_term(Kind.EQUAL, [self.term(condition), self.term(self.const(1, 1))])

    def _bit(self, condition: Any) -> Bits:
        """A condition of the solver as a bit."""
        one, zero = self.term(self.const(1, 1)), self.term(self.const(0, 1))
        return Bits(1, None, self.terms.mk_term(Kind.ITE, [condition, one, zero]))

    def every(self, conditions: Sequence[Bits]) -> Bits:
        """Whether all are 1."""
        result = self.const(1, 1)
        for condition in conditions:
            result = self.apply("and", result, condition)
        return result

    def some(self, conditions: Sequence[Bits]) -> Bits:
        """Whether one is 1."""
        return self.invert(self.every([self.invert(condition) for condition in conditions]))

    def solve(
        self, conditions: Sequence[Bits], wanted: Sequence[Bits], *, seconds: float | None = None
    ) -> list[int] | None:
        """Values of ``wanted`` for which all conditions are 1, or None if there are none.

        TimeoutError if the solver has not decided it in so many seconds.
        """
        if any(condition.value == 0 for condition in conditions):
            return None
        options = bitwuzla.Options()
        options.set(bitwuzla.Option.PRODUCE_MODELS, True)
        if seconds is not None:
            options.set(bitwuzla.Option.TIME_LIMIT_PER, int(1000 * seconds))
        solver = bitwuzla.Bitwuzla(self.terms, options)
        for condition in conditions:
            if condition.value is None:
                solver.assert_formula(self._holds(condition))
        found = solver.check_sat()
        if found == bitwuzla.Result.UNKNOWN:
            raise TimeoutError("the solver gave up")
        if found == bitwuzla.Result.UNSAT:
            return None
        return [
            bits.value if bits.value is not None else int(solver.get_value(bits.term).value(10))
            for bits in wanted
        ]

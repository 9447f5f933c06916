# SPDX-License-Identifier: Apache-2.0
"""Golden's own code, run on symbols: the other side of a proof is not written a second time.

A :class:`Symbol` is a whole number that is not known, in an interval that is: every operation is exact and
as wide as its interval, so nothing wraps that would not wrap in golden. :func:`lifted` returns a function of
golden with the same code, for which NumPy is a small namespace that works on symbols.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np

from golden.bounds import Interval
from qvit_hw.proofs.logic import Bits, Logic

__all__ = ["Row", "Symbol", "Symbols", "lifted"]


class Symbol:
    """A whole number from ``low`` to ``high``, as two's complement bits."""

    size = 1
    shape = ()
    dtype = None

    def __init__(self, symbols: Symbols, bits: Bits, low: int, high: int) -> None:
        self._of, self.bits, self.low, self.high = symbols, bits, low, high
        self.above: frozenset[Symbol] = frozenset()
        """Symbols that are never larger, because this is a maximum of them."""

    def min(self) -> int:
        """The interval's lower end."""
        return self.low

    def max(self) -> int:
        """The interval's upper end."""
        return self.high

    def astype(self, *_: Any, **__: Any) -> Symbol:
        """Itself: symbols are as wide as they need to be."""
        return self

    def __add__(self, other: Any) -> Any:
        return self._of.linear("add", self, other)

    def __radd__(self, other: Any) -> Any:
        return self._of.linear("add", other, self)

    def __sub__(self, other: Any) -> Any:
        return self._of.linear("sub", self, other)

    def __rsub__(self, other: Any) -> Any:
        return self._of.linear("sub", other, self)

    def __neg__(self) -> Any:
        return self._of.linear("sub", 0, self)

    def __mul__(self, other: Any) -> Any:
        return self._of.times(self, other)

    def __rmul__(self, other: Any) -> Any:
        return self._of.times(other, self)

    def __lshift__(self, other: Any) -> Any:
        return self._of.left(self, other)

    def __rlshift__(self, other: Any) -> Any:
        return self._of.left(other, self)

    def __rshift__(self, other: Any) -> Any:
        return self._of.right(self, other)

    def __rrshift__(self, other: Any) -> Any:
        return self._of.right(other, self)

    def __and__(self, other: Any) -> Any:
        return self._of.bitwise("and", self, other)

    __rand__ = __and__

    def __or__(self, other: Any) -> Any:
        return self._of.bitwise("or", self, other)

    __ror__ = __or__

    def __lt__(self, other: Any) -> Any:
        return self._of.compare("slt", self, other)

    def __le__(self, other: Any) -> Any:
        return self._of.compare("slte", self, other)

    def __gt__(self, other: Any) -> Any:
        return self._of.compare("sgt", self, other)

    def __ge__(self, other: Any) -> Any:
        return self._of.compare("sgte", self, other)

    def __bool__(self) -> bool:
        raise TypeError("golden must not branch on a symbol")


class Row(np.ndarray[Any, Any]):
    """An array of symbols, of which golden asks what it asks of any array."""

    @classmethod
    def of(cls, symbols: Sequence[Any]) -> Row:
        """Symbols or integers side by side."""
        made = np.empty(len(symbols), dtype=object)
        made[:] = symbols
        return made.view(cls)

    def astype(self, *_: Any, **__: Any) -> Any:
        """Itself: symbols are as wide as they need to be."""
        return self

    def max(self, axis: Any = None, keepdims: Any = False, **_: Any) -> Any:  # type: ignore[override]
        """Of a row: its largest symbol; of everything: the largest that any can be."""
        if axis is None:
            return max(value.high for value in self.flat)
        assert self.ndim == 1
        first = self.flat[0]
        largest = reduce(first._of.larger, self.flat, first)
        return Row.of([largest]) if keepdims else largest

    def min(self, *_: Any, **__: Any) -> Any:
        """The smallest that any can be."""
        return min(value.low for value in self.flat)


class Table:
    """A table of golden's that a symbol reads."""

    def __init__(self, symbols: Symbols, entries: Sequence[Any]) -> None:
        self._of, self._entries = symbols, entries

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, tuple):
            index, column = index
            return Table(self._of, [entry[column] for entry in self._entries])[index]
        if isinstance(index, np.ndarray):
            return Row.of([self[each] for each in index.flat])
        return self._of.read(self._entries, index)


class Symbols:
    """Makes symbols and computes with them.

    times: what makes a product of two symbols; the solver's own multiplication unless it is replaced.
    """

    def __init__(self, logic: Logic) -> None:
        self.logic = logic
        self.multiply: Callable[[Symbol, Symbol], Symbol] = self.multiplied

    # ------------------------------------------------------------------------------------- leaves

    def of(self, bits: Bits, *, signed: bool) -> Symbol:
        """What a register of the netlist holds."""
        legal = Interval.of_bits(bits.width, signed=signed)
        wide = bits if signed else self.logic.extend(bits, 1, signed=False)
        return self._made(wide, legal.low, legal.high)

    def number(self, value: Any) -> Symbol:
        """A symbol, of a constant where it is none."""
        if isinstance(value, Symbol):
            return value
        value = int(value)
        return Symbol(self, self.logic.const(value, Interval(value, value).bits + 1), value, value)

    def _made(self, bits: Bits, low: int, high: int) -> Symbol:
        """As narrow as its interval, with a sign."""
        width = _width(low, high)
        if bits.width > width:
            bits = self.logic.slice(bits, width - 1, 0)
        return Symbol(self, self.logic.extend(bits, width - bits.width, signed=True), low, high)

    def wide(self, symbol: Symbol, width: int) -> Bits:
        """Its lowest bits, or its bits and copies of its sign."""
        if symbol.bits.width > width:
            return self.logic.slice(symbol.bits, width - 1, 0)
        return self.logic.extend(symbol.bits, width - symbol.bits.width, signed=True)

    # --------------------------------------------------------------------------------- operations

    def linear(self, op: str, x: Any, y: Any) -> Any:
        """Sum or difference."""
        if isinstance(x, np.ndarray) or isinstance(y, np.ndarray):
            return NotImplemented
        a, b = self.number(x), self.number(y)
        ends = (a.low + b.low, a.high + b.high) if op == "add" else (a.low - b.high, a.high - b.low)
        width = max(_width(*ends), a.bits.width, b.bits.width)
        if op == "sub" and b in a.above:
            ends = max(ends[0], 0), ends[1]
        return self._made(self.logic.apply(op, self.wide(a, width), self.wide(b, width)), *ends)

    def times(self, x: Any, y: Any) -> Any:
        """Product."""
        if isinstance(x, np.ndarray) or isinstance(y, np.ndarray):
            return NotImplemented
        return self.multiply(self.number(x), self.number(y))

    def multiplied(self, a: Symbol, b: Symbol) -> Symbol:
        """Product, as the solver multiplies."""
        low, high = product_ends(a, b)
        width = max(_width(low, high), a.bits.width, b.bits.width)
        return self._made(self.logic.apply("mul", self.wide(a, width), self.wide(b, width)), low, high)

    def exactly(self, bits: Bits, low: int, high: int) -> Symbol:
        """A number of which the caller knows that it lies in this interval."""
        return self._made(bits, low, high)

    def left(self, x: Any, y: Any) -> Any:
        """X * 2**y."""
        if isinstance(x, np.ndarray) or isinstance(y, np.ndarray):
            return NotImplemented
        a, n = self.number(x), self.number(y)
        assert n.low >= 0
        low = min(a.low << n.low, a.low << n.high)
        high = max(a.high << n.low, a.high << n.high)
        width = max(_width(low, high), a.bits.width)
        return self._made(self.logic.apply("sll", self.wide(a, width), n.bits), low, high)

    def right(self, x: Any, y: Any) -> Any:
        """floor(x / 2**y)."""
        if isinstance(x, np.ndarray) or isinstance(y, np.ndarray):
            return NotImplemented
        a, n = self.number(x), self.number(y)
        assert n.low >= 0
        low = min(a.low >> n.low, a.low >> n.high)
        high = max(a.high >> n.low, a.high >> n.high)
        return self._made(self.logic.apply("sra", a.bits, n.bits), low, high)

    def bitwise(self, op: str, x: Any, y: Any) -> Any:
        """Bits of both, or of either."""
        if isinstance(x, np.ndarray) or isinstance(y, np.ndarray):
            return NotImplemented
        a, b = self.number(x), self.number(y)
        width = max(a.bits.width, b.bits.width)
        made = self.logic.apply(op, self.wide(a, width), self.wide(b, width))
        positive = [each for each in (a, b) if each.low >= 0]
        if op == "and" and positive:
            return self._made(made, 0, min(each.high for each in positive))
        if len(positive) == 2:
            return self._made(made, 0, (1 << max(a.high, b.high).bit_length()) - 1)
        return self._made(made, -(1 << (width - 1)), (1 << (width - 1)) - 1)

    def compare(self, op: str, x: Any, y: Any) -> Bits:
        """A condition."""
        a, b = self.number(x), self.number(y)
        width = max(a.bits.width, b.bits.width)
        return self.logic.apply(op, self.wide(a, width), self.wide(b, width))

    def choose(self, condition: Any, x: Any, y: Any) -> Any:
        """``x`` where the condition holds, else ``y``."""
        if isinstance(condition, bool | np.bool_):
            return self.number(x if condition else y)
        a, b = self.number(x), self.number(y)
        low, high = min(a.low, b.low), max(a.high, b.high)
        width = _width(low, high)
        made = self.logic.choose(condition, self.wide(a, width), self.wide(b, width))
        return self._made(made, low, high)

    def larger(self, x: Any, y: Any) -> Symbol:
        """The larger of two."""
        a, b = self.number(x), self.number(y)
        found = self.choose(self.compare("sgt", a, b), a, b)
        made = self._made(found.bits, max(a.low, b.low), max(a.high, b.high))
        made.above = a.above | b.above | {a, b}
        return made

    def smaller(self, x: Any, y: Any) -> Symbol:
        """The smaller of two."""
        a, b = self.number(x), self.number(y)
        if a.high <= b.low or b.high <= a.low:
            return a if a.high <= b.low else b
        found = self.choose(self.compare("slt", a, b), a, b)
        return self._made(found.bits, min(a.low, b.low), min(a.high, b.high))

    def length(self, x: Any) -> Symbol:
        """``int.bit_length`` of a number that is not negative."""
        a = self.number(x)
        assert a.low >= 0
        found = self.number(0)
        for position in range(a.high.bit_length()):
            bit = self.logic.slice(a.bits, position, position)
            found = self.choose(bit, position + 1, found)
        return found

    def read(self, entries: Sequence[Any], index: Any) -> Symbol:
        """``entries[index]``, by the bits of the index from the lowest on."""
        at = self.number(index)
        assert at.low >= 0
        assert at.high < len(entries)
        width = _width(min(map(int, entries)), max(map(int, entries)))
        level = [self.logic.const(int(entry), width) for entry in entries]
        for position in range(max(at.high.bit_length(), 1)):
            bit = self.logic.slice(self.wide(at, position + 2), position, position)
            level += level[-1:] * (len(level) % 2)
            pairs = zip(level[::2], level[1::2], strict=True)
            level = [self.logic.choose(bit, odd, even) for even, odd in pairs]
        legal = [int(entry) for entry in entries[at.low : at.high + 1]]
        return self._made(level[0], min(legal), max(legal))

    def numpy(self) -> SimpleNamespace:
        """What golden asks of NumPy, on symbols."""

        def each(function: Callable[..., Any], *arguments: Any) -> Any:
            if not any(isinstance(argument, np.ndarray) for argument in arguments):
                return function(*arguments)
            plain = [a if isinstance(a, np.ndarray) else np.array([a], object) for a in arguments]
            return Row.of([function(*values) for values in np.broadcast(*plain)])

        def clipped(x: Any, low: Any, high: Any) -> Any:
            return each(lambda value: self.larger(self.smaller(value, high), low), x)

        def same(x: Any, *_: Any, **__: Any) -> Any:
            return x

        return SimpleNamespace(
            asarray=same,
            int64=same,
            uint8=same,
            int8=same,
            bool_=np.bool_,
            zeros=np.zeros,
            broadcast_to=np.broadcast_to,
            dtype=same,
            array=lambda x, **_: Table(self, x),
            clip=clipped,
            minimum=lambda x, y: each(self.smaller, x, y),
            maximum=lambda x, y: each(self.larger, x, y),
            where=lambda c, x, y: each(self.choose, c, x, y),
            searchsorted=lambda _, x, side: each(self.length, x),
        )


def product_ends(a: Symbol, b: Symbol) -> tuple[int, int]:
    """Interval of a product."""
    ends = Interval(a.low, a.high) * Interval(b.low, b.high)
    return ends.low, ends.high


def _width(low: int, high: int) -> int:
    """Two's complement bits of an interval."""
    return max(max(high, 0).bit_length(), max(-low - 1, 0).bit_length()) + 1


def lifted(function: Any, symbols: Symbols) -> Any:
    """``function`` of golden with the same code, on symbols; what it calls in golden is lifted, too."""
    made: dict[Any, Any] = {}
    names: dict[str, Any] = {
        "np": symbols.numpy(),
        "integers": lambda value, _: value if isinstance(value, np.ndarray) else symbols.number(value),
        "integer": lambda value, *_: value,
        "fitting": lambda value, *_: value,
        "constant": lambda table, _: Table(symbols, table),
    }

    def lift(value: Any) -> Any:
        if not isinstance(value, FunctionType) or not value.__module__.startswith("golden."):
            return value
        if value not in made:
            space: dict[str, Any] = {}
            made[value] = FunctionType(
                value.__code__, space, value.__name__, value.__defaults__, value.__closure__
            )
            made[value].__kwdefaults__ = value.__kwdefaults__
            for name, other in value.__globals__.items():
                space[name] = names[name] if name in names else _shallow(other, lift, value)
        return made[value]

    return lift(function)


def _shallow(value: Any, lift: Callable[[Any], Any], by: FunctionType) -> Any:
    """A name that golden's code looks up: a function is lifted if the code names it, the rest stays."""
    named = isinstance(value, FunctionType) and value.__name__ in by.__code__.co_names
    return lift(value) if named else value

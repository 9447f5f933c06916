# SPDX-License-Identifier: Apache-2.0
"""One question to the solver: a netlist's values and golden's, on the same inputs, must never differ.

Wide products defeat every solver of bits, so a product is a function of which the solver knows only this:
equal factors have equal products, and a factor of 0 makes 0; golden's products lie in their intervals; and
(x + y 2**n) z = x z + y z 2**n, for the ways in which the RTL cuts factors. Other functions than products
do so: a proof stands. An answer is tried again with real products before anybody is told of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amaranth.hdl import Module, Shape, Signal, Value

from golden.bounds import Interval
from qvit_hw.proofs.circuit import Circuit, State
from qvit_hw.proofs.logic import Bits, Logic
from qvit_hw.proofs.property import Counterexample
from qvit_hw.proofs.symbolic import Symbol, Symbols, lifted, product_ends

__all__ = ["Case", "Claim", "Undecided", "bench", "decide"]

FACTOR, PRODUCT = 72, 144
"""Bits of a factor, and of a product as a function."""
CHUNK = 17
"""Where the RTL cuts a factor (:func:`rtl.arith.product`)."""


class Undecided(Exception):
    """The solver found neither a proof nor a counterexample that stands."""


@dataclass(frozen=True)
class Claim:
    """A value of the netlist and golden's of the same name; both on the inputs of one :class:`Case`."""

    name: str
    rtl: Symbol
    golden: Symbol


class Case:
    """Inputs that are free, or (``numbers``) those of a counterexample; what is assumed of them.

    With numbers products are real, and whatever enters besides is 0; an input that they lack is free.
    """

    def __init__(self, numbers: Mapping[str, int] | None = None) -> None:
        self.logic = Logic()
        self.symbols = Symbols(self.logic)
        self.inputs: dict[str, Symbol] = {}
        self.assumed: list[Bits] = []
        self._exact = numbers is not None
        self._numbers = numbers
        self._products: list[tuple[Bits, Bits, Bits]] = []
        if numbers is None:
            self.symbols.multiply = self._golden_product

    def golden(self, function: Callable[..., Any]) -> Any:
        """A function of golden, on symbols."""
        return lifted(function, self.symbols)

    def input(self, name: str, legal: Interval) -> Symbol:
        """An input of golden's, anywhere in its interval."""
        width = Interval(min(legal.low, -1), max(legal.high, 0)).bits
        if self._numbers is None or name not in self._numbers:
            symbol = self.symbols.of(self.logic.free(width, name), signed=True)
            self.assumed += [
                self.symbols.compare("sgte", symbol, legal.low),
                self.symbols.compare("slte", symbol, legal.high),
            ]
            bits = symbol.bits
        else:
            bits = self.logic.const(self._numbers[name], width)
        symbol = self.symbols.exactly(bits, legal.low, legal.high)
        self.inputs[name] = symbol
        return symbol

    def run(
        self,
        circuit: Circuit,
        inputs: Mapping[str, Sequence[tuple[int | None, Symbol]]],
        outputs: Mapping[str, tuple[int, bool]],
        *,
        registers: Mapping[str, tuple[int | None, Symbol]] | None = None,
        reset: bool = False,
    ) -> dict[str, Symbol]:
        """Outputs of a netlist, each in a cycle and signed or not.

        inputs: (cycle, symbol) of each port, None for every cycle; whatever else enters is arbitrary, as is
        the first state unless ``reset``.  registers: cuts, where what a register holds in a cycle (None: in
        each) is a symbol, whatever the netlist had put there.
        """
        seen = self.run_all(
            circuit,
            inputs,
            1 + max(when for when, _ in outputs.values()),
            registers=registers,
            reset=reset,
        )
        return {
            name: self.symbols.of(seen[when][name], signed=signed)
            for name, (when, signed) in outputs.items()
        }

    def run_all(
        self,
        circuit: Circuit,
        inputs: Mapping[str, Sequence[tuple[int | None, Symbol]]],
        cycles: int,
        *,
        registers: Mapping[str, tuple[int | None, Symbol]] | None = None,
        reset: bool = True,
    ) -> list[dict[str, Bits]]:
        """All outputs of so many cycles; the rest as in :meth:`run`."""
        state = circuit.initial(self.logic) if reset else self._anything(circuit)
        cuts = [(circuit.register(name), when, symbol) for name, (when, symbol) in (registers or {}).items()]
        multiply = None if self._exact else self._product
        found = []
        for cycle in range(cycles):

            def given(name: str, width: int, cycle: int = cycle) -> Bits:
                for when, symbol in inputs.get(name, ()):
                    if when is None or when == cycle:
                        return self.symbols.wide(symbol, width)
                if name == "rst":
                    return self.logic.const(0, 1)
                return self.logic.free(width, name) if self._numbers is None else self.logic.const(0, width)

            for number, when, symbol in cuts:
                if when is None or when == cycle:
                    state[number] = self.symbols.wide(symbol, state[number].width)
            seen, state = circuit.step(self.logic, state, given, multiply)
            found.append(seen)
        return found

    def _anything(self, circuit: Circuit) -> State:
        """Any first state; with numbers, the one of zeros and of the memories' initial contents."""
        if self._numbers is None:
            return circuit.anything(self.logic)
        return {
            number: self.logic.const(0, held.width) if isinstance(held, Bits) else held
            for number, held in circuit.initial(self.logic).items()
        }

    # ------------------------------------------------------------------------------------ products

    def multiply(self) -> None:
        """Let products be products, on either side: for factors so narrow that the solver can."""
        self._exact, self.symbols.multiply = True, self.symbols.multiplied

    def identity(self, x: Symbol, y: Symbol) -> None:
        """Tell the solver that two polynomials of the same symbols are one, which it cannot know."""
        if self._numbers is None:
            self._same(self.symbols.wide(x, PRODUCT), self.symbols.wide(y, PRODUCT))

    def distributed(self, parts: Sequence[tuple[Symbol, int]], factor: Symbol) -> Symbol:
        """``sum of part * 2**n`` times a factor, of which the solver is told what the parts' products are."""
        whole: Any = 0
        result: Any = 0
        for part, places in parts:
            whole = whole + (part << places)
            result = result + ((part * factor) << places)
        if self._numbers is None:
            product = self._product_of(self._factor(whole), self._factor(factor))
            self._same(product, self.symbols.wide(result, PRODUCT))
        return self.symbols.exactly(result.bits, result.low, result.high)

    def _golden_product(self, a: Symbol, b: Symbol) -> Symbol:
        product = self._within(a, b)
        ways = [(self._pieces(a), [(b, 0)]), ([(a, 0)], self._pieces(b)), (self._pieces(a), self._pieces(b))]
        for left, right in ways:
            if len(left) * len(right) > max(1, 2 * (ways.index((left, right)) == 2)):
                self._sum_of(product, [(x, i, y, j) for x, i in left for y, j in right])
        return self.symbols.exactly(product, *product_ends(a, b))

    def _within(self, a: Symbol, b: Symbol) -> Bits:
        """The function of golden's factors; its value lies in the product of their intervals."""
        product = self._product_of(self._factor(a), self._factor(b))
        symbol, (low, high) = self.symbols.of(product, signed=True), product_ends(a, b)
        self.assumed += [
            self.symbols.compare("sgte", symbol, low),
            self.symbols.compare("slte", symbol, high),
        ]
        return product

    def _sum_of(self, product: Bits, parts: Sequence[tuple[Symbol, int, Symbol, int]]) -> None:
        """A product is the sum of the products of its factors' pieces."""
        total = self.logic.const(0, PRODUCT)
        for x, i, y, j in parts:
            part = self._within(x, y)
            moved = self.logic.apply("sll", part, self.logic.const(i + j, 8))
            total = self.logic.apply("add", total, moved)
        self._same(product, total)

    def _pieces(self, x: Symbol) -> list[tuple[Symbol, int]]:
        """Pieces of 17 bits, the last with the sign; and where they stand."""
        pieces, width = [], x.bits.width - (x.low >= 0)
        for start in range(0, width, CHUNK):
            bits = self.logic.slice(x.bits, min(start + CHUNK, width) - 1, start)
            signed = x.low < 0 and start + CHUNK >= width
            pieces.append((self.symbols.of(bits, signed=signed), start))
        return pieces

    def _factor(self, x: Symbol) -> Bits:
        return self.symbols.wide(x, FACTOR)

    def _product(self, x: Bits, y: Bits) -> Bits:
        """A multiplier of the netlist: factors that were extended to the product's width."""
        if x.value is not None or y.value is not None:
            return self.logic.apply("mul", x, y)
        wide = [self.logic.extend(b, FACTOR - b.width, signed=True) for b in (x, y)]
        return self.logic.slice(self._product_of(*wide), x.width - 1, 0)

    def _product_of(self, x: Bits, y: Bits) -> Bits:
        """The function: a new value for new factors, the same value for the same factors."""
        for a, b, product in self._products:
            if (a.term is x.term and b.term is y.term) or (a.term is y.term and b.term is x.term):
                return product
        new = self.logic.free(PRODUCT, "product")
        self._products.append((x, y, new))
        return new

    def congruence(self, claims: Sequence[Bits]) -> list[Bits]:
        """Same factors, same product: of the products on which the claims and what is assumed depend.

        The netlist multiplies in every cycle; of all but a few of these products no claim takes notice.
        """
        own = {product.term.id(): (x, y, product) for x, y, product in self._products}
        seen: set[int] = set()
        met: list[tuple[Bits, Bits, Bits]] = []
        left = [bits.term for bits in (*claims, *self.assumed) if bits.term is not None]
        while left:
            term = left.pop()
            if term.id() in seen:
                continue
            seen.add(term.id())
            left += term.children()
            if term.id() in own:
                x, y, product = own[term.id()]
                left += [factor.term for factor in (x, y) if factor.term is not None]
                met.append((x, y, product))
        found = []
        for index, (a, b, first) in enumerate(met):
            nothing = [self._is(each, 0) for each in (a, b)]
            zero = self.logic.apply("eq", first, self.logic.const(0, PRODUCT))
            found.append(self.logic.some([self.logic.invert(self.logic.some(nothing)), zero]))
            for x, y, second in met[:index]:
                alike = self.logic.some([self._equal(a, x, b, y), self._equal(a, y, b, x)])
                same = self.logic.apply("eq", first, second)
                found.append(self.logic.some([self.logic.invert(alike), same]))
        return found

    def _equal(self, a: Bits, x: Bits, b: Bits, y: Bits) -> Bits:
        return self.logic.every([self.logic.apply("eq", a, x), self.logic.apply("eq", b, y)])

    def _is(self, x: Bits, value: int) -> Bits:
        return self.logic.apply("eq", x, self.logic.const(value, x.width))

    def _same(self, x: Bits, y: Bits) -> None:
        self.assumed.append(self.logic.apply("eq", x, y))


def decide(
    ask: Callable[[Case], Sequence[Claim]], what: str, *, seconds: float = 300
) -> Counterexample | None:
    """A counterexample to the claims that ``ask`` makes of a case, or None; :class:`Undecided`."""
    case = Case()
    wrong = _differs(case, ask(case))
    conditions = [wrong, *case.assumed, *case.congruence([wrong])]
    names = list(case.inputs)
    wanted = [case.inputs[name].bits for name in names]
    try:
        found = case.logic.solve(conditions, wanted, seconds=seconds)
    except TimeoutError:
        raise Undecided(f"{what}: no answer in {seconds:g} s") from None
    if found is None:
        return None
    numbers = _numbers(names, wanted, found)
    counterexample = _replayed(ask, what, numbers)
    if counterexample is None:
        counterexample = _nearby(ask, what, numbers)
    if counterexample is None:
        raise Undecided(f"{what}: what the solver found does not stand with real products")
    return counterexample


def _differs(case: Case, claims: Sequence[Claim]) -> Bits:
    """Whether a claim is wrong."""
    return case.logic.some(
        [case.symbols.compare("neq", claim.rtl, claim.golden) for claim in claims]
    )


def _numbers(names: Sequence[str], wanted: Sequence[Bits], found: Sequence[int]) -> dict[str, int]:
    """The solver's values of inputs."""
    return {
        name: Bits(bits.width, value).signed_value
        for name, bits, value in zip(names, wanted, found, strict=True)
    }


def _replayed(
    ask: Callable[[Case], Sequence[Claim]], what: str, numbers: Mapping[str, int]
) -> Counterexample | None:
    """What differs on these numbers, if anything does."""
    for claim in ask(Case(numbers)):
        if claim.rtl.bits.value is None or claim.golden.bits.value is None:
            continue
        rtl, golden = claim.rtl.bits.signed_value, claim.golden.bits.signed_value
        if rtl != golden:
            told = ", ".join(f"{name} {value}" for name, value in numbers.items())
            return Counterexample(
                f"{what}: with {told}, golden's {claim.name} is {golden}, the RTL's is {rtl}", numbers
            )
    return None


def _nearby(
    ask: Callable[[Case], Sequence[Claim]], what: str, numbers: Mapping[str, int]
) -> Counterexample | None:
    """A counterexample that differs from these numbers in one input: products with constants are easy."""
    for name in numbers:
        case = Case({other: value for other, value in numbers.items() if other != name})
        wrong = _differs(case, ask(case))
        try:
            found = case.logic.solve([wrong, *case.assumed], [case.inputs[name].bits], seconds=10)
        except TimeoutError:
            continue
        if found is not None:
            own = _numbers([name], [case.inputs[name].bits], found)
            return _replayed(ask, what, {**numbers, **own})
    return None


def bench(shapes: Mapping[str, Shape], build: Callable[..., Mapping[str, Value]]) -> Circuit:
    """The netlist of a helper: ``build(m, **inputs)`` returns its outputs by name."""
    m = Module()
    signals = {name: Signal(shape, name=name) for name, shape in shapes.items()}
    m.d.sync += Signal(name="clocked").eq(1)  # what is combinational has a clock, too
    ports = list(signals.values())
    for name, value in build(m, **signals).items():
        port = Signal(Value.cast(value).shape(), name=name)
        m.d.comb += port.eq(value)
        ports.append(port)
    return Circuit.of(m, ports)

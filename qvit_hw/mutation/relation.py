# SPDX-License-Identifier: Apache-2.0
"""What two runs have in common: which bits of registers and memories are equal, always or under guards.

Data counts only beside its valid bit, a parameter only in some states of a machine: such bits are equal
where a small register of the unit has some value, the guard. The relation begins with every bit equal
always; what a counterexample shows to differ leaves it, for every guard that is true there (Houdini,
Flanagan and Leino, FME 2001). Guards are known by a bit only once it has left those that are always equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from bitwuzla import Kind

from qvit_hw.proofs.circuit import State
from qvit_hw.proofs.logic import Bits, Logic, Memory

__all__ = ["Chance", "Guard", "Reading", "Relation", "abstract_product"]

Guard = tuple[int, int, int]
"""A register, by line, some of its bits, and the value that they have."""
SMALL = 5
"""Bits of the widest register of which each value is a guard: valid bits and states of machines."""
WIDE = 16
"""Bits of the widest one of which each bit is a guard while it is 1: what is valid, stage by stage."""


class Reading(Logic):
    """Remembers the addresses that are read: where two memories are partly equal, it is said there."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[Bits] = []

    def read(self, memory: Memory, address: Bits) -> Bits:
        """The word at an address."""
        self.addresses.append(address)
        return super().read(memory, address)


class Chance(Reading):
    """Draws a number for whatever is free: a step is a trial then, not a question to the solver."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._draw = np.random.default_rng(seed)

    def free(self, width: int, name: str = "") -> Bits:
        """A number."""
        return self.const(int.from_bytes(self._draw.bytes(-(-width // 8)), "little"), width)

    def free_memory(self, address_bits: int, width: int, name: str = "") -> Memory:
        """A memory of one number."""
        return self.filled_memory(address_bits, self.free(width))


def abstract_product(logic: Logic) -> Callable[[Bits, Bits], Bits]:
    """A product of which nothing is known but that equal factors have equal ones.

    What is equal for any such function is equal for multiplication, and the solver need not multiply.
    """
    functions: dict[int, object] = {}

    def product(x: Bits, y: Bits) -> Bits:
        if x.term is None or y.term is None:
            return logic.apply("mul", x, y)
        if x.width not in functions:
            sort = logic.sort(x.width)
            function = logic.terms.mk_fun_sort([sort, sort], sort)
            functions[x.width] = logic.terms.mk_const(function, f"product{x.width}")
        factors = sorted((x.term, y.term), key=lambda term: term.id())
        return Bits(x.width, None, logic.terms.mk_term(Kind.APPLY, [functions[x.width], *factors]))

    return product


class Relation:
    """Equal bits by state (``always``), and more of them while a guard is true in the unit (``under``).

    Of memories there is no more: what is in them was written long before.  whole: under a guard all bits of a
    register are equal, or none is known to be, which is found out much sooner.
    """

    def __init__(self, state: State, *, whole: bool = False) -> None:
        self.whole = whole
        self.always = {number: (1 << value.width) - 1 for number, value in state.items()}
        self.under: dict[int, dict[Guard, int]] = {}
        self.memories = {number for number, value in state.items() if isinstance(value, Memory)}
        self.guards: list[Guard] = []
        for number, held in state.items():
            if isinstance(held, Memory):
                continue
            if held.width <= SMALL:
                full = (1 << held.width) - 1
                self.guards += [(number, full, value) for value in range(full + 1)]
            elif held.width <= WIDE:
                self.guards += [(number, 1 << bit, 1 << bit) for bit in range(held.width)]

    @property
    def watched(self) -> list[int]:
        """The registers that guards look at."""
        return sorted({number for number, _, _ in self.guards})

    def mask(self, logic: Logic, number: int, unit: State) -> Bits:
        """The bits of a register or memory that are equal while the unit is in a state."""
        always = self.always[number]
        width = unit[number].width
        alike: dict[int, list[Bits]] = {}
        for (register, part, value), bits in self.under.get(number, {}).items():
            held = unit[register]
            assert isinstance(held, Bits)
            looked = logic.apply("and", held, logic.const(part, held.width))
            hit = logic.apply("eq", looked, logic.const(value, held.width))
            alike.setdefault(bits, []).append(hit)
        mask = logic.const(always, width)
        for bits, hits in alike.items():
            chosen = logic.choose(logic.some(hits), logic.const(bits, width), logic.const(0, width))
            mask = logic.apply("or", mask, chosen)
        return mask

    def shrink(self, apart: Mapping[int, int], unit: Mapping[int, int]) -> None:
        """Take out what differs, by state, while the watched registers of the unit hold these numbers."""
        for number, bits in apart.items():
            lost = self.always[number] & bits
            self.always[number] &= ~lost
            if not bits or number in self.memories:
                continue
            before, kept = self.under.get(number, {}), {}
            more = lost and not (self.whole and number in self.under)
            for guard in self.guards if more else list(before):
                register, part, value = guard
                known = before.get(guard, 0) | lost
                if unit[register] & part == value:
                    known &= 0 if self.whole else ~bits
                if known:
                    kept[guard] = known
            self.under[number] = kept

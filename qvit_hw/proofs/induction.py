# SPDX-License-Identifier: Apache-2.0
"""What proofs by induction share: registers by name, and counts that an invariant speaks of.

A state in which the invariant holds, any inputs that keep the members' contract, and the invariant holds a
cycle later; at reset it holds. What it speaks of besides registers (how many beats wait) is free.
"""

from __future__ import annotations

from collections.abc import Mapping

from qvit_hw.proofs.circuit import Circuit, State
from qvit_hw.proofs.logic import Bits, Logic, Memory

__all__ = ["WIDE", "Registers", "implies", "minus", "plus", "turned"]

WIDE = 13
"""Bits of counters and addresses in claims: of rings of up to 4096 places, and one more for their sums."""


class Registers:
    """A circuit's registers by name."""

    def __init__(self, circuit: Circuit, logic: Logic, state: State) -> None:
        self._circuit, self._logic, self.state = circuit, logic, state
        self._places = {name: number for number, name in circuit.states.items()}

    def register(self, name: str) -> Bits:
        """A register."""
        bits = self.state[self._places[name]]
        assert isinstance(bits, Bits)
        return bits

    def number(self, name: str) -> Bits:
        """A register, WIDE bits."""
        bits = self.register(name)
        return self._logic.extend(bits, WIDE - bits.width, signed=False)

    def memory(self, name: str) -> Memory:
        """A memory."""
        memory = self.state[self._places[name]]
        assert isinstance(memory, Memory)
        return memory

    def step(self, inputs: Mapping[str, Bits]) -> tuple[Mapping[str, Bits], Registers]:
        """Outputs, and the state after the clock edge."""

        def given(name: str, width: int) -> Bits:
            return inputs.get(name) or self._logic.const(0, width)

        outputs, after = self._circuit.step(self._logic, self.state, given)
        return outputs, Registers(self._circuit, self._logic, after)


def turned(logic: Logic, state: Registers, part: str, used: Bits, count: int) -> Bits:
    """Whether the counters of credits stand for so many in use, modulo ``count``."""
    taken = logic.apply("sub", state.number(f"{part}next_taken"), logic.const(1, WIDE))
    both = logic.apply("sub", taken, state.number(f"{part}given"))
    mask = logic.const(count - 1, WIDE)
    return logic.apply("eq", logic.apply("and", both, mask), logic.apply("and", used, mask))


def implies(logic: Logic, condition: Bits, conclusion: Bits) -> Bits:
    """Whether the conclusion holds where the condition does."""
    return logic.apply("or", logic.invert(condition), conclusion)


def plus(logic: Logic, count: Bits, bit: Bits) -> Bits:
    """A count and a bit."""
    return logic.apply("add", count, logic.extend(bit, count.width - 1, signed=False))


def minus(logic: Logic, count: Bits, bit: Bits) -> Bits:
    """A count less a bit."""
    return logic.apply("sub", count, logic.extend(bit, count.width - 1, signed=False))

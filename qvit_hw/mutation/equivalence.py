# SPDX-License-Identifier: Apache-2.0
"""Proof that a mutant computes what the unit computes: nobody could see it.

Both run side by side on the same inputs. The relation between them says which bits of which registers and
memories are equal; it begins with all of them (van Eijk, "Sequential equivalence checking without state
space traversal", DATE 1998). A bit that one clock edge can make different is taken out, until what is left
keeps itself equal and makes the outputs equal, for all inputs and for ever. States that nothing leads
to are left out by ``settled`` steps of the unit before the one that is looked at.

Where that fails, a search from reset tells whether any input makes a difference within some cycles: none
means "bounded", one is a hint at the test that is missing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from qvit_hw.mutation.schemata import CONTROL
from qvit_hw.proofs.circuit import Circuit, State
from qvit_hw.proofs.logic import Bits, Logic, Memory

__all__ = ["Judge", "Verdict"]

SETTLED = (0, 1, 3)
"""Steps before the one looked at, tried in this order."""
DEPTH = 72
"""Cycles from reset that the bounded search looks at: a row is through by then, behind new parameters."""
PATIENCE = 5
"""Seconds for one question to the solver."""
RESETS = {"aresetn": 0, "rst": 1}
STROBES = (
    (re.compile(r"(.*_)t(?:data|keep|last|user)"), "tvalid"),
    (re.compile(r"(.*_)r(?:data|resp|last)"), "rvalid"),
    (re.compile(r"(.*_)b(?:resp)"), "bvalid"),
    (re.compile(r"(.*_)ar(?:addr|len|size|burst|cache|prot)"), "arvalid"),
    # Of a row unit that was cut off: it stores beats and parameters when they come, and else looks away.
    (re.compile(r"(.*\.(?:i|params)__)payload"), "valid"),
)
"""Outputs that mean something only while another is high."""


@dataclass(frozen=True)
class Verdict:
    """What is known about a mutant that no test saw.

    how: "proven" (equal for all inputs, for ever), "bounded" (equal for all inputs in ``cycles`` cycles from
    reset), "different" (an input shows it after ``cycles`` cycles) or "unknown".
    """

    how: str
    cycles: int = 0

    @property
    def equivalent(self) -> bool:
        """Whether it counts as no fault."""
        return self.how in ("proven", "bounded")


class _Reading(Logic):
    """Remembers the addresses that are read: where two memories are partly equal, it is said there."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[Bits] = []

    def read(self, memory: Memory, address: Bits) -> Bits:
        """The word at an address."""
        self.addresses.append(address)
        return super().read(memory, address)


@dataclass
class _Pair:
    """Two runs: states of the unit and of the mutant, and what is assumed about them."""

    logic: _Reading
    unit: State
    mutant: State
    masks: dict[int, int]
    assumed: list[Bits] = field(default_factory=list)
    partly: list[tuple[Memory, Memory, int]] = field(default_factory=list)


class Judge:
    """Compares mutants with the unit that holds them; ``btor``: BTOR2 of the netlist with the control."""

    def __init__(self, btor: str) -> None:
        self.circuit = Circuit(btor)
        self.width = self.circuit.inputs[CONTROL]

    def verdict(self, number: int, *, seconds: float = 60, depth: int = DEPTH) -> Verdict:
        """What is known about a mutant after so many seconds of the processor."""
        end = time.process_time() + seconds
        if self.proven(number, seconds=seconds / 2):
            return Verdict("proven")
        return self._bounded(number, end, depth)

    def proven(self, number: int, *, seconds: float = 60) -> bool:
        """Whether a mutant is found to be equal for all inputs and for ever."""
        end = time.process_time() + seconds
        return any(
            time.process_time() < end and self._inductive(number, settled, end) for settled in SETTLED
        )

    # ---------------------------------------------------------------------------------- for ever

    def _inductive(self, number: int, settled: int, end: float) -> bool:
        """Whether a relation is found that keeps itself and makes the outputs equal."""
        probe = Logic()
        masks = {}
        for state, value in self.circuit.anything(probe).items():
            masks[state] = (1 << value.width) - 1
        while time.process_time() < end:
            pair = self._related(masks, settled)
            inputs = self._inputs(pair.logic, {})
            seen, unit = self._step(pair.logic, pair.unit, inputs, 0)
            found, mutant = self._step(pair.logic, pair.mutant, inputs, number)
            try:
                if self._solve(pair, [self._outputs_differ(pair.logic, seen, found)], []) is not None:
                    return False
                shrunk = self._shrunk(pair, masks, unit, mutant)
            except TimeoutError:
                return False
            if not shrunk:
                return True
        return False

    def _related(self, masks: dict[int, int], settled: int) -> _Pair:
        """A state of the unit, ``settled`` steps after any, and one of the mutant in relation with it."""
        logic = _Reading()
        unit = self.circuit.anything(logic)
        for _ in range(settled):
            _, unit = self._step(logic, unit, self._inputs(logic, {}), 0)
        mutant: State = {}
        pair = _Pair(logic, unit, mutant, masks)
        for state, value in unit.items():
            mask, full = masks[state], (1 << value.width) - 1
            if mask == full:
                mutant[state] = value
            elif isinstance(value, Memory):
                other = logic.free_memory(value.address_bits, value.width, "mutant")
                mutant[state] = other
                pair.partly.append((value, other, mask))
            else:
                other_bits = logic.free(value.width, "mutant")
                kept = logic.apply("and", value, logic.const(mask, value.width))
                rest = logic.apply("and", other_bits, logic.const(full & ~mask, value.width))
                mutant[state] = logic.apply("or", kept, rest)
        return pair

    def _shrunk(self, pair: _Pair, masks: dict[int, int], unit: State, mutant: State) -> bool:
        """Take the bits that can become different out of the relation; whether there were any."""
        logic, changed = pair.logic, False
        for state, after in unit.items():
            other = mutant[state]
            mask = masks[state]
            if not mask or other is after:
                continue
            where: Bits | None = None
            if isinstance(after, Memory):
                assert isinstance(other, Memory)
                where = logic.free(after.address_bits, "where")
                left, right = logic.read(after, where), logic.read(other, where)
            else:
                assert isinstance(other, Bits)
                left, right = after, other
            while mask:
                apart = self._apart(logic, left, right, mask)
                if apart.value == 0:
                    break
                model = self._solve(pair, [apart], [left, right])
                if model is None:
                    break
                mask &= ~(model[0] ^ model[1])
            if mask != masks[state]:
                masks[state], changed = mask, True
        return changed

    @staticmethod
    def _apart(logic: Logic, left: Bits, right: Bits, mask: int) -> Bits:
        """Whether two words differ in a bit of the mask."""
        if left.term is not None and right.term is not None and left.term.id() == right.term.id():
            return logic.const(0, 1)
        bits = logic.const(mask, left.width)
        return logic.apply("neq", logic.apply("and", left, bits), logic.apply("and", right, bits))

    def _solve(self, pair: _Pair, conditions: list[Bits], wanted: list[Bits]) -> list[int] | None:
        """Ask the solver, with what the relation says of each address that was read."""
        logic = pair.logic
        said = []
        for mine, other, mask in pair.partly:
            for address in list(logic.addresses):
                if address.width == mine.address_bits:
                    left = Logic.read(logic, mine, address)
                    right = Logic.read(logic, other, address)
                    said.append(logic.invert(self._apart(logic, left, right, mask)))
        return logic.solve([*conditions, *said], wanted, seconds=PATIENCE)

    # ---------------------------------------------------------------------------------- from reset

    def _bounded(self, number: int, end: float, depth: int) -> Verdict:
        """Search all inputs of some cycles from reset for a difference."""
        logic = _Reading()
        unit = self.circuit.initial(logic)
        mutant = dict(unit)
        checked = 0
        for cycle in range(depth):
            inputs = self._inputs(logic, RESETS if cycle == 0 else {n: 1 - v for n, v in RESETS.items()})
            seen, unit = self._step(logic, unit, inputs, 0)
            found, mutant = self._step(logic, mutant, inputs, number)
            left = end - time.process_time()
            if left <= 0:
                break
            try:
                apart = self._outputs_differ(logic, seen, found)
                if apart.value != 0 and logic.solve([apart], [], seconds=left) is not None:
                    return Verdict("different", cycle + 1)
            except TimeoutError:
                break
            checked = cycle + 1
        return Verdict("bounded", checked) if checked == depth else Verdict("unknown", checked)

    # -------------------------------------------------------------------------------------- steps

    @staticmethod
    def _inputs(logic: Logic, fixed: dict[str, int]) -> Callable[[str, int], Bits]:
        """Inputs of a cycle, the same for both runs."""
        known: dict[str, Bits] = {}

        def given(name: str, width: int) -> Bits:
            if name not in known:
                known[name] = logic.const(fixed[name], width) if name in fixed else logic.free(width, name)
            return known[name]

        return given

    def _step(
        self, logic: Logic, state: State, inputs: Callable[[str, int], Bits], number: int
    ) -> tuple[dict[str, Bits], State]:
        """A cycle of the mutant ``number``; 0 is the unit."""
        chosen = logic.const(number, self.width)
        return self.circuit.step(
            logic, state, lambda name, width: chosen if name == CONTROL else inputs(name, width)
        )

    @staticmethod
    def _outputs_differ(logic: Logic, seen: dict[str, Bits], found: dict[str, Bits]) -> Bits:
        """Whether an output differs that means something."""
        apart: list[Bits] = []
        for name, value in seen.items():
            if name.endswith(f".{CONTROL}"):
                continue  # of a module that was cut off: it goes to the mutants there
            other: Any = found[name]
            if value.term is not None and other.term is not None and value.term.id() == other.term.id():
                continue
            differs = logic.apply("neq", value, other)
            for pattern, strobe in STROBES:
                match = pattern.fullmatch(name)
                if match and match[1] + strobe in seen:
                    differs = logic.every([differs, seen[match[1] + strobe]])
            apart.append(differs)
        return logic.some(apart)

# SPDX-License-Identifier: Apache-2.0
"""Proof that a mutant computes what the unit computes: nobody could see it.

Both run side by side on the same inputs. A relation between them says which bits of which registers and
memories are equal, always or under a guard (:mod:`qvit_hw.mutation.relation`); it begins with all of them
(van Eijk, "Sequential equivalence checking without state space traversal", DATE 1998). A bit that one clock
edge can make different is taken out, until what is left keeps itself equal and makes the outputs equal, for
all inputs and for ever. States that nothing leads to are left out by ``settled`` steps of the unit before
the one that is looked at; the first steps from the initial state are then looked at by themselves.

Where that fails, a search from reset tells whether any input makes a difference within some cycles: none
means "bounded", one is a hint at the test that is missing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from qvit_hw.mutation.relation import Chance, Reading, Relation, abstract_product
from qvit_hw.mutation.schemata import CONTROL
from qvit_hw.proofs.circuit import NOTHING, Circuit, State
from qvit_hw.proofs.logic import Bits, Logic, Memory

__all__ = ["Judge", "Verdict"]

ATTEMPTS = (
    *((0, True, True), (1, True, True), (0, True, False), (1, True, False)),
    *((0, False, False), (1, False, False), (3, True, False), (3, False, False)),
)
"""Steps before the one looked at, whether nothing is known of products, and whether registers count as a
whole, tried in this order."""
IDLE = 24
"""Trials in a row that take nothing out of the relation before the solver is asked."""
MODELS = 4
"""Counterexamples that the solver is asked for before there are trials again, which are cheaper."""
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
    # Streams and ports of memories: nobody looks at what is not offered, or at an address not asked for.
    *((re.compile(r"(.*__)(?!valid|ready|en|busy).+"), strobe) for strobe in ("valid", "en")),
)
"""Outputs that mean something only while another is high."""
WORD = re.compile(r"(.*__)word")
"""Outputs that mean something in the cycle after an input ``en`` of the same port was high: what is read."""
SHORT = 2
"""Bits of an input of such a port that say what is read; more are an address."""
Inputs = Callable[[str, int], Bits]
"""Inputs of a cycle by name and width, the same for both runs."""


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


@dataclass
class _Pair:
    """Two runs: states of the unit and of the mutant, and where two memories are partly equal."""

    logic: Reading
    unit: State
    mutant: State
    multiply: Callable[[Bits, Bits], Bits] | None
    partly: list[tuple[Memory, Memory, Bits]] = field(default_factory=list)


class Judge:
    """Compares mutants with the unit that holds them; ``btor``: BTOR2 of the netlist with the control."""

    def __init__(self, btor: str) -> None:
        self.circuit = Circuit(btor)
        self.width = self.circuit.inputs[CONTROL]
        # What was asked for in the cycle before is one more register: en, and what is short.
        given = self.circuit.inputs
        self.reads: dict[str, int] = {}
        self.asked: dict[int, list[str]] = {}
        for match in filter(None, map(WORD.fullmatch, self.circuit.outputs)):
            enable, place = f"{match[1]}en", NOTHING - 1 - len(self.reads)
            if enable in given:
                more = [name for name in given if name.startswith(match[1]) and given[name] <= SHORT]
                self.reads[match[0]] = place
                self.asked[place] = [enable, *(name for name in more if name != enable)]

    def verdict(
        self, number: int, around: Sequence[Judge] = (), *, seconds: float = 60, depth: int = DEPTH
    ) -> Verdict:
        """What is known about a mutant after so many seconds of the processor for each question.

        around: judges of the unit with others around it. Equal there for ever is equal; a search from
        reset says something of the unit alone, as those around it take hundreds of cycles until anything
        reaches it.
        """
        if any(judge.proven(number, seconds=seconds) for judge in (self, *around)):
            return Verdict("proven")
        return self._bounded(number, time.process_time() + seconds, depth)

    def proven(self, number: int, *, seconds: float = 60) -> bool:
        """Whether a mutant is found to be equal for all inputs and for ever."""
        end = time.process_time() + seconds
        return any(
            time.process_time() < end and self._inductive(number, settled, abstract, whole, end)
            for settled, abstract, whole in ATTEMPTS
        )

    # ---------------------------------------------------------------------------------- for ever

    def _inductive(
        self, number: int, settled: int, abstract: bool, whole: bool, end: float
    ) -> bool:
        """Whether a relation is found that keeps itself and makes the outputs equal.

        settled: steps of the unit before the one looked at.  abstract: know nothing of products.  whole: as
        of :class:`~qvit_hw.mutation.relation.Relation`.
        """
        relation = Relation(self._anything(Logic()), whole=whole)
        while time.process_time() < end:
            try:
                if not self._tried(relation, number, settled, end):
                    return False
                pair = self._related(Reading(), relation, settled, abstract)
                holds, shrunk = self._kept(pair, relation, number)
                if holds and not shrunk:
                    pair = self._begun(abstract)
                    for _ in range(settled):
                        holds, changed = self._kept(pair, relation, number)
                        shrunk |= changed
                        if not holds:
                            return False
            except TimeoutError:
                return False
            if not holds or not shrunk:
                return holds
        return False

    def _tried(self, relation: Relation, number: int, settled: int, end: float) -> bool:
        """Shrink by trials until several of them find nothing; whether the outputs were equal in all."""
        idle = seed = 0
        while idle < IDLE and time.process_time() < end:
            pair = self._related(Chance(seed), relation, settled, abstract=False)
            holds, shrunk = self._kept(pair, relation, number)
            if not holds:
                return False
            idle, seed = 0 if shrunk else idle + 1, seed + 1
        return True

    def _related(self, logic: Reading, relation: Relation, settled: int, abstract: bool) -> _Pair:
        """A state of the unit, ``settled`` steps after any, and one of the mutant in relation with it."""
        multiply = abstract_product(logic) if abstract else None
        unit = self._anything(logic)
        for _ in range(settled):
            _, unit = self._step(logic, unit, self._inputs(logic, {}), 0, multiply)
        pair = _Pair(logic, unit, {}, multiply)
        for state, value in unit.items():
            mask = relation.mask(logic, state, unit)
            if mask.value == (1 << value.width) - 1:
                pair.mutant[state] = value
            elif isinstance(value, Memory) and isinstance(logic, Chance):
                pair.mutant[state] = logic.filled_memory(
                    value.address_bits, self._mixed(logic, value.base, mask)
                )
            elif isinstance(value, Memory):
                other = logic.free_memory(value.address_bits, value.width, "mutant")
                pair.mutant[state] = other
                pair.partly.append((value, other, mask))
            else:
                pair.mutant[state] = self._mixed(logic, value, mask)
        return pair

    @staticmethod
    def _mixed(logic: Logic, value: Bits, mask: Bits) -> Bits:
        """A word that is equal in the bits of the mask, and anything else in the others."""
        kept = logic.apply("and", value, mask)
        rest = logic.apply("and", logic.free(value.width, "mutant"), logic.invert(mask))
        return logic.apply("or", kept, rest)

    def _begun(self, abstract: bool) -> _Pair:
        """Both runs in their initial state: settled steps say nothing of the first ones."""
        logic = Reading()
        unit = self._initial(logic)
        return _Pair(logic, unit, dict(unit), abstract_product(logic) if abstract else None)

    def _kept(self, pair: _Pair, relation: Relation, number: int) -> tuple[bool, bool]:
        """Go a step: whether outputs are equal, and whether the relation had to shrink to hold behind it."""
        logic, inputs, asked = pair.logic, self._inputs(pair.logic, {}), pair.unit
        seen, pair.unit = self._step(logic, pair.unit, inputs, 0, pair.multiply)
        found, pair.mutant = self._step(logic, pair.mutant, inputs, number, pair.multiply)
        if self._solve(pair, [self._outputs_differ(logic, asked, seen, found)], []) is not None:
            return False, False
        words = self._words(pair)
        watched = [held for held in map(pair.unit.__getitem__, relation.watched) if isinstance(held, Bits)]
        wanted = [*(word for both in words.values() for word in both), *watched]
        for turn in range(MODELS):
            apart = [
                self._apart(logic, *both, relation.mask(logic, state, pair.unit))
                for state, both in words.items()
            ]
            model = self._solve(pair, [logic.some(apart)], wanted)
            if model is None:
                return True, turn > 0
            values = iter(model)
            differ = {state: next(values) ^ next(values) for state in words}
            relation.shrink(differ, dict(zip(relation.watched, values, strict=True)))
        return True, True

    @staticmethod
    def _words(pair: _Pair) -> dict[int, tuple[Bits, Bits]]:
        """What may be different: registers, and a memory's word at any address, of unit and mutant."""
        words = {}
        for state, mine in pair.unit.items():
            other = pair.mutant[state]
            if other is mine:
                continue
            if isinstance(mine, Memory):
                assert isinstance(other, Memory)
                where = pair.logic.free(mine.address_bits, "where")
                mine, other = pair.logic.read(mine, where), pair.logic.read(other, where)
            assert isinstance(other, Bits)
            if mine.term is None or other.term is None or mine.term.id() != other.term.id():
                words[state] = mine, other
        return words

    @staticmethod
    def _apart(logic: Logic, left: Bits, right: Bits, mask: Bits) -> Bits:
        """Whether two words differ in a bit of the mask."""
        differs = logic.apply("and", logic.apply("xor", left, right), mask)
        return logic.apply("neq", differs, logic.const(0, left.width))

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
        """Search all inputs of some cycles for a difference, behind a cycle of reset if there is one.

        What is put out in that one comes from before: it may be anything.
        """
        logic = Reading()
        unit = self._initial(logic)
        mutant = dict(unit)
        if RESETS.keys() & self.circuit.inputs.keys():
            inputs = self._inputs(logic, RESETS)
            _, unit = self._step(logic, unit, inputs, 0)
            _, mutant = self._step(logic, mutant, inputs, number)
        checked, apart = 0, list[Bits]()
        for cycle in range(depth):
            inputs = self._inputs(logic, {name: 1 - value for name, value in RESETS.items()})
            asked = unit
            seen, unit = self._step(logic, unit, inputs, 0)
            found, mutant = self._step(logic, mutant, inputs, number)
            apart.append(self._outputs_differ(logic, asked, seen, found))
            if cycle + 1 < min(2 * checked, depth):
                continue  # one question about many cycles is answered sooner than one about each of them
            left = end - time.process_time()
            if left <= 0:
                break
            try:
                model = logic.solve([logic.some(apart)], apart, seconds=left)
            except TimeoutError:
                break
            if model is not None:
                return Verdict("different", checked + model.index(1) + 1)
            checked, apart = cycle + 1, []
        return Verdict("bounded", checked) if checked == depth else Verdict("unknown", checked)

    # -------------------------------------------------------------------------------------- steps

    def _anything(self, logic: Logic) -> State:
        """Any state."""
        return self.circuit.anything(logic) | self._remembered(logic, self._inputs(logic, {}))

    def _initial(self, logic: Logic) -> State:
        """The initial state, before which nothing was asked for."""
        nothing = self._remembered(logic, lambda _, width: logic.const(0, width))
        return self.circuit.initial(logic) | nothing

    def _remembered(self, logic: Logic, inputs: Inputs) -> State:
        """What a cycle asks for."""
        widths = self.circuit.inputs
        return {
            place: reduce(logic.concat, [inputs(name, widths[name]) for name in reversed(names)])
            for place, names in self.asked.items()
        }

    @staticmethod
    def _inputs(logic: Logic, fixed: dict[str, int]) -> Inputs:
        """Inputs of a cycle, the same for both runs."""
        known: dict[str, Bits] = {}

        def given(name: str, width: int) -> Bits:
            if name not in known:
                known[name] = logic.const(fixed[name], width) if name in fixed else logic.free(width, name)
            return known[name]

        return given

    def _step(
        self,
        logic: Logic,
        state: State,
        inputs: Inputs,
        number: int,
        multiply: Callable[[Bits, Bits], Bits] | None = None,
    ) -> tuple[dict[str, Bits], State]:
        """A cycle of the mutant ``number``; 0 is the unit."""
        chosen = logic.const(number, self.width)
        outputs, after = self.circuit.step(
            logic, state, lambda name, width: chosen if name == CONTROL else inputs(name, width), multiply
        )
        return outputs, after | self._remembered(logic, inputs)

    def _outputs_differ(
        self, logic: Logic, asked: State, seen: dict[str, Bits], found: dict[str, Bits]
    ) -> Bits:
        """Whether an output differs that means something; asked: the unit's state, with what was read."""
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
            if name in self.reads:
                before = asked[self.reads[name]]
                assert isinstance(before, Bits)
                differs = logic.every([differs, logic.slice(before, 0, 0)])
            apart.append(differs)
        return logic.some(apart)

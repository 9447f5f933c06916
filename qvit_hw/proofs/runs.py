# SPDX-License-Identifier: Apache-2.0
"""A stream unit from reset on, cycle by cycle, with any beats and any stalls; and what was found.

A :class:`Run` steps a subject's netlist with inputs of the solver's and counts rows and beats beside it. What
the solver finds becomes a :class:`Trace`: the beats that went in and came out, in numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qvit_hw.proofs.circuit import State
from qvit_hw.proofs.logic import Bits, Logic
from qvit_hw.proofs.subjects import Depths, Fields, Subject

__all__ = ["COUNT_BITS", "Cycle", "Run", "Seen", "Trace"]

COUNT_BITS = 6
"""Of counters of beats: no run has as many cycles."""


@dataclass(frozen=True)
class Cycle:
    """The ports in a cycle; ``taken`` and ``given``: a beat goes in, a beat comes out."""

    valid: Bits
    beat: Bits
    taken: Bits
    out_valid: Bits
    out_ready: Bits
    out: Bits
    given: Bits

    @property
    def ports(self) -> list[Bits]:
        """All of them, in order."""
        return [self.valid, self.beat, self.taken, self.out_valid, self.out_ready, self.out, self.given]


@dataclass(frozen=True)
class Seen:
    """A beat that was transferred: in which cycle, which beat of which row (both from 1), its payload."""

    cycle: int
    row: int
    place: int
    payload: int


class Trace:
    """The cycles that the solver found, as numbers: of each the ports as in :class:`Cycle`."""

    def __init__(
        self, fields: Fields, out: Fields, cycles: Sequence[Sequence[int]], notes: Sequence[int]
    ) -> None:
        self._fields, self._out = fields, out
        self.accepted = self._transferred(cycles, 2, 1, fields)
        self.delivered = self._transferred(cycles, 6, 5, out)
        self.cycles, self.notes = cycles, notes

    def _transferred(
        self, cycles: Sequence[Sequence[int]], flag: int, payload: int, fields: Fields
    ) -> list[Seen]:
        seen, row, place = [], 1, 1
        for cycle, ports in enumerate(cycles):
            if ports[flag]:
                seen.append(Seen(cycle, row, place, ports[payload]))
                ends = "last" not in fields or ports[payload] >> fields["last"][0] & 1
                row, place = (row + 1, 1) if ends else (row, place + 1)
        return seen

    def elements(self, payload: int, name: str, *, out: bool = False) -> list[int]:
        """A field's elements as unsigned numbers."""
        low, width, count = (self._out if out else self._fields)[name]
        return [payload >> (low + width * at) & ((1 << width) - 1) for at in range(count)]

    def tell(self, payload: int, *, out: bool = False) -> str:
        """A payload in words."""
        fields = self._out if out else self._fields
        parts = [
            f"{name} {' '.join(map(str, self.elements(payload, name, out=out)))}" for name in fields
        ]
        return ", ".join(parts)

    @property
    def stalls(self) -> str:
        """When input was offered and output ready, a digit a cycle."""
        offered = "".join(str(ports[0]) for ports in self.cycles)
        ready = "".join(str(ports[4]) for ports in self.cycles)
        return f"input valid {offered}, output ready {ready}"

    def row(self, number: int) -> str:
        """The beats of an accepted row."""
        beats = [f"[{self.tell(each.payload)}]" for each in self.accepted if each.row == number]
        return " ".join(beats) or "[none]"


class Run:
    """A subject under way.

    place: beats accepted of the row that arrives; rows: rows accepted, saturating at 3.
    """

    def __init__(self, subject: Subject, depths: Depths | None = None) -> None:
        self.subject, self.logic, self.cycles = subject, Logic(), list[Cycle]()
        self.circuit, self.fields, self.out = subject.build(depths)
        self.state: State = self.circuit.initial(self.logic)
        self.place = self.number(0, COUNT_BITS)
        self.rows = self.number(0, 2)
        self.ready_in = self.number(1)

    # --------------------------------------------------------------------------------- the ports

    def number(self, value: int, width: int = 1) -> Bits:
        """A constant."""
        return self.logic.const(value, width)

    def step(
        self,
        *,
        valid: Bits | None = None,
        beat: Bits | None = None,
        ready: Bits | None = None,
        word: tuple[Bits, Bits] | None = None,
        value: int | None = None,
    ) -> dict[str, Bits]:
        """One cycle; what is not given is idle. word: valid and payload at ``params``; value: at ``v``."""
        no, logic = self.number(0), self.logic
        inputs = {
            "rst": no,
            "clk": no,
            "i__valid": valid or no,
            "o__ready": ready or no,
            "params__valid": word[0] if word else no,
            "v__valid": self.number(int(value is not None)),
        }
        if beat is not None:
            inputs["i__payload"] = beat
        if word is not None:
            inputs["params__payload"] = word[1]

        def given(name: str, width: int) -> Bits:
            if name == "v__payload" and value is not None:
                return self.number(value, width)
            return inputs.get(name) or logic.free(width, name)

        outputs, self.state = self.circuit.step(logic, self.state, given)
        return outputs

    def prepare(self, chosen: int = 0) -> None:
        """Write a set of parameters, and the v that rows are multiplied by."""
        for address, data in self.subject.words[chosen]:
            word = self.number(address | data << 14, 46)
            taken = self.step(word=(self.number(1), word))["params__ready"]
            assert taken.value == 1, "the port of parameters is free before any row"
        for payload in self.subject.before:
            taken = self.step(value=payload)["v__ready"]
            assert taken.value == 1, "the port of v is free before any row"
        self.step()
        self.step()

    def field(self, payload: Bits, name: str, *, out: bool = False) -> Bits:
        """A field of a payload."""
        low, width, count = (self.out if out else self.fields)[name]
        return self.logic.slice(payload, low + width * count - 1, low)

    @property
    def width(self) -> int:
        """Bits of the input's payload."""
        return self.circuit.inputs["i__payload"]

    def any_beat(self) -> Bits:
        """A beat of any content; ``last`` is 1 in the longest row's last beat."""
        beat, most = self.logic.free(self.width, "beat"), self.subject.max_beats
        if not most:
            return beat
        low = self.fields["last"][0]
        assert low == self.width - 1
        ends = self.logic.apply("eq", self.place, self.number(most - 1, COUNT_BITS))
        ends = self.logic.apply("or", ends, self.field(beat, "last"))
        return self.logic.concat(ends, self.logic.slice(beat, low - 1, 0))

    def advance(
        self,
        *,
        valid: Bits | None = None,
        beat: Bits | None = None,
        ready: Bits | None = None,
        word: tuple[Bits, Bits] | None = None,
    ) -> tuple[Cycle, dict[str, Bits]]:
        """A cycle that counts; what is not given is anything."""
        logic = self.logic
        valid = valid or logic.free(1, "valid")
        ready = ready or logic.free(1, "ready")
        beat = beat or self.any_beat()
        outputs = self.step(valid=valid, beat=beat, ready=ready, word=word)
        self.ready_in = outputs["i__ready"]
        taken = logic.apply("and", valid, outputs["i__ready"])
        given = logic.apply("and", outputs["o__valid"], ready)
        cycle = Cycle(valid, beat, taken, outputs["o__valid"], ready, outputs["o__payload"], given)
        self.cycles.append(cycle)
        ends, ended = self.ends(cycle), self.number(0, COUNT_BITS)
        last = self.field(beat, "last")
        self.place = logic.choose(taken, logic.choose(last, ended, self.add(self.place)), self.place)
        full = logic.apply("eq", self.rows, self.number(3, 2))
        self.rows = logic.choose(logic.apply("and", ends, logic.invert(full)), self.add(self.rows), self.rows)
        return cycle, outputs

    def ends(self, cycle: Cycle) -> Bits:
        """Whether the cycle takes the last beat of a row."""
        return self.logic.apply("and", cycle.taken, self.field(cycle.beat, "last"))

    def add(self, count: Bits, what: Bits | None = None) -> Bits:
        """A counter and a bit, or 1."""
        one = self.number(1, count.width)
        if what is not None:
            one = self.logic.extend(what, count.width - 1, signed=False)
        return self.logic.apply("add", count, one)

    # ---------------------------------------------------------------------------------- questions

    def find(
        self, conditions: Sequence[Bits], notes: Sequence[Bits] = (), *, seconds: float = 600
    ) -> Trace | None:
        """Cycles in which all conditions are 1; ``notes`` become the trace's."""
        ports = [port for cycle in self.cycles for port in cycle.ports]
        found = self.logic.solve(conditions, [*notes, *ports], seconds=seconds)
        if found is None:
            return None
        told, found, each = found[: len(notes)], found[len(notes) :], len(self.cycles[0].ports)
        cycles = [found[at : at + each] for at in range(0, len(found), each)]
        return Trace(self.fields, self.out, cycles, told)

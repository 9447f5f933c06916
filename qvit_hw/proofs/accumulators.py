# SPDX-License-Identifier: Apache-2.0
"""Accumulators never overflow, and none has a bit too many.

**Holds**, by induction over elements, for all time: a netlist whose register is ``MARGIN`` bits wider than
``spec.bounds`` says starts anywhere; once its pipelines hold nothing of that, a register that lies in
golden's interval of n elements lies, a cycle later, in the interval of n + lanes. The wider register cannot
wrap unseen, and in the interval of the longest row it never needs more than the bits of the narrower one.

**Tight**: the solver looks for a row whose sum needs the last bit. The row runs through golden, and through a
netlist whose register lacks that bit, where the sum must come out wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from golden.bounds import Interval
from qvit_hw.proofs import partial_sums
from qvit_hw.proofs.circuit import Circuit, State
from qvit_hw.proofs.logic import Bits, Logic
from qvit_hw.proofs.property import Counterexample, Property
from qvit_hw.proofs.registers import ACCUMULATORS, Accumulator

__all__ = ["Witness", "holds", "properties", "tight", "witness"]

MARGIN = 4
"""Bits by which a register is wider where it must show that it does not need them."""
FLUSH = 18
"""Cycles after which no accumulator's summand comes from a register that held anything."""
WORK = 56
"""Bits of the sums that intervals are compared in."""


@dataclass(frozen=True)
class Witness:
    """A row whose sum needs every bit: golden's sum, and that of a register with one bit less."""

    row: list[int]
    golden: int
    wrapped: int


# --------------------------------------------------------------------------------------- induction


def holds(name: str) -> Counterexample | None:
    """The register stays in golden's interval: at reset, and with every cycle from then on."""
    sums = ACCUMULATORS[name]()
    circuit, logic = Circuit.of(sums.make(MARGIN), watch=[sums.register]), Logic()
    first, _ = circuit.step(logic, circuit.initial(logic), partial(_free, logic))
    if first[sums.register].width != sums.bits + MARGIN:
        width = first[sums.register].width - MARGIN
        return Counterexample(f"{sums.value}: golden's interval has {sums.bits} bits, the register {width}")
    if sums.count > 1 and first[sums.register].value != 0:
        return Counterexample(f"{sums.value}: the register does not start at 0")
    state = circuit.anything(logic)
    values: list[Bits] = []
    for _ in range(FLUSH + 2):
        outputs, state = circuit.step(logic, state, partial(_free, logic))
        value = outputs[sums.register]
        values.append(logic.extend(value, WORK - value.width, signed=sums.signed))
    before, after = values[-2:]
    n, assumed = logic.const(1, WORK), list[Bits]()
    if sums.count > 1:
        n = logic.extend(logic.free(16, "n"), WORK - 16, signed=False)
        assumed = [
            logic.apply("ulte", n, logic.const(sums.count - sums.lanes, WORK)),
            *_within(logic, before, sums.each, n),
        ]
        n = logic.apply("add", n, logic.const(sums.lanes, WORK))
    inside = logic.every(_within(logic, after, sums.each, n))
    found = logic.solve([*assumed, logic.invert(inside)], [n, before, after], seconds=600)
    if found is None:
        return None
    count, old, new = (Bits(WORK, value).signed_value for value in found)
    low, high = min(sums.each.low, 0) * count, max(sums.each.high, 0) * count
    return Counterexample(
        f"{sums.value}: after {count - sums.lanes} elements {old}, after {sums.lanes} more {new}; golden's "
        f"interval of {count} is {low} to {high}",
        {"elements": count, "before": old, "after": new},
    )


def _free(logic: Logic, name: str, width: int) -> Bits:
    return logic.const(0, width) if name in ("rst", "clk") else logic.free(width, name)


def _within(logic: Logic, value: Bits, each: Interval, count: Bits) -> list[Bits]:
    """Conditions that ``value`` lies in the interval of ``count`` such elements."""
    low, high = (logic.const(end, WORK) for end in (min(each.low, 0), max(each.high, 0)))
    return [
        logic.apply("slte", logic.apply("mul", low, count), value),
        logic.apply("slte", value, logic.apply("mul", high, count)),
    ]


# --------------------------------------------------------------------------------------- tightness


def tight(name: str) -> Counterexample | None:
    """None if there is a row that a register of one bit less gets wrong."""
    sums = ACCUMULATORS[name]()
    found = witness(name)
    if found is None:
        return Counterexample(
            f"{sums.value}: no row of {sums.count} elements needs bit {sums.bits - 1}, counted from 0"
        )
    if found.wrapped == found.golden:
        return Counterexample(
            f"{sums.value}: {found.golden} of row {found.row} is right with {sums.bits - 1} bits, too",
            {"row": found.row, sums.value: found.golden},
        )
    return None


def witness(name: str) -> Witness | None:
    """A row whose sum does not fit into one bit less, and what a register of so many bits makes of it."""
    sums = ACCUMULATORS[name]()
    logic = Logic()
    elements = [logic.free(sums.element, f"element_{at}") for at in range(sums.count)]
    values = _sums(sums, logic, 0, elements)
    less = Interval.of_bits(sums.bits - 1, signed=sums.signed)
    beyond = []
    for value in values:
        wide = logic.extend(value, WORK - value.width, signed=sums.signed)
        low, high = logic.const(less.low, WORK), logic.const(less.high, WORK)
        beyond += [logic.apply("slt", wide, low), logic.apply("sgt", wide, high)]
    row = list(sums.row) or logic.solve([logic.some(beyond)], elements, seconds=600)
    if row is None:
        return None
    golden = sums.golden(row)
    numbers = [logic.const(value, sums.element) for value in row]
    seen = [_number(sums, value) for value in _sums(sums, logic, 0, numbers)]
    at = seen.index(golden)
    wrapped = _number(sums, _sums(sums, logic, -1, numbers)[at])
    return Witness(row, golden, wrapped)


def _number(sums: Accumulator, value: Bits) -> int:
    assert value.value is not None, "the row is all numbers"
    return value.signed_value if sums.signed else value.value


def _sums(sums: Accumulator, logic: Logic, more: int, elements: Sequence[Bits]) -> list[Bits]:
    """The register, cycle by cycle, while a row of such elements goes through a unit fresh from reset."""
    circuit = Circuit.of(sums.make(more), watch=[sums.register])
    state = circuit.initial(logic)

    def step(state: State, **inputs: Bits) -> tuple[Mapping[str, Bits], State]:
        return circuit.step(logic, state, lambda name, width: inputs.get(name) or logic.const(0, width))

    one = logic.const(1, 1)
    for address, data in sums.words:
        word = logic.const(address | data << 14, 46)
        _, state = step(state, params__valid=one, params__payload=word)
    for payload in sums.before:
        width = circuit.inputs["v__payload"]
        _, state = step(state, v__valid=one, v__payload=logic.const(payload, width))
    for _ in range(2):
        _, state = step(state)
    width, values = circuit.inputs["i__payload"], []
    for at in range(0, len(elements), sums.lanes):
        beat = elements[at]
        for element in elements[at + 1 : at + sums.lanes]:
            beat = logic.concat(element, beat)
        marks = sums.marks(at + sums.lanes >= len(elements))
        beat = logic.concat(logic.const(marks, width - beat.width), beat)
        outputs, state = step(state, i__valid=one, i__payload=beat)
        values.append(outputs[sums.register])
    for _ in range(2 * FLUSH + len(elements)):
        outputs, state = step(state)
        values.append(outputs[sums.register])
    return values


def properties() -> list[Property]:
    """All of them."""
    listed = partial_sums.properties()
    for name, make in ACCUMULATORS.items():
        sums = make()
        row = f"a row of {sums.count}" if sums.count > 1 else "any element"
        held = Property(
            sums.unit,
            f"{sums.value} does not overflow",
            "accumulator",
            f"The {sums.bits} bits of {sums.value} hold the sum of {row}: {sums.interval.low} to "
            f"{sums.interval.high}.",
            f"{sums.scope}; induction over beats, all inputs",
            partial(holds, name),
        )
        found = "a row of golden's codes" if sums.row else "a row that the solver finds"
        needed = Property(
            sums.unit,
            f"{sums.value}{sums.of} is tight",
            "accumulator",
            f"With {sums.bits - 1} bits a row exists whose {sums.value} is wrong.",
            f"{sums.scope}; {found}, on golden and on a netlist of one bit less",
            partial(tight, name),
        )
        # That a softmax's codes never weigh more than golden's bound is shown in golden.attention.
        listed += [needed] if sums.row else [held, needed]
    return listed

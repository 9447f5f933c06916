# SPDX-License-Identifier: Apache-2.0
"""Two banks that take turns: a row has one bank, nobody writes it meanwhile, and the other one comes free.

Any state, any inputs in so many cycles as beats are under way: what is claimed of the last of these cycles is
claimed of every one, as nothing that was before is left in the registers. The cycles after reset are claimed
by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from amaranth.hdl import Module, Value, unsigned

from golden.attend_unit import attend_pipeline
from golden.attention import AttendSpec
from golden.cycles import holding
from golden.gelu import GeluSpec, gelu_pipeline
from golden.requant import RequantSpec, requant_pipeline
from golden.residual import ResidualSpec, residual_pipeline
from qvit_hw.proofs.case import bench
from qvit_hw.proofs.circuit import Circuit
from qvit_hw.proofs.induction import Registers, implies
from qvit_hw.proofs.logic import Bits, Logic
from qvit_hw.proofs.property import Counterexample, Property
from rtl.stream import Turns

__all__ = ["properties", "turns"]

HELD = {
    "attention, v": 0,
    "attention": holding(attend_pipeline(AttendSpec(), 1).drain - 1),
    "gelu": holding(gelu_pipeline(GeluSpec(), 1).drain - 1),
    "requant": holding(requant_pipeline(RequantSpec(), 1).drain - 1),
    "residual": holding(residual_pipeline(ResidualSpec(), 1).drain - 1),
}
"""Cycles behind a beat in which nobody may write its bank, by unit."""
INPUTS = ("taken", "last", "switch")


@dataclass(frozen=True)
class Cycle:
    """A beat may be taken, the last of a row; banks may switch where the idle one is free."""

    taken: Bits
    last: Bits
    switch: Bits
    bank: Bits
    idle: Bits
    free: Bits
    opens: Bits


def circuit(held: int) -> Circuit:
    """The netlist."""

    def build(m: Module, taken: Value, last: Value, switch: Value) -> Mapping[str, Value]:
        own = Turns(m, held, taken, last)
        own.switch(switch & own.free)
        return {"bank": own.bank, "idle": own.idle[0], "free": own.free, "opens": own.opening}

    return bench(dict.fromkeys(INPUTS, unsigned(1)), build)


def turns(held: int) -> Counterexample | None:
    """Rows keep their bank, banks are free when they may be, and come free, from any state and from reset."""
    netlist = circuit(held)
    for reset in (False, True):
        logic = Logic()
        state = Registers(netlist, logic, netlist.initial(logic) if reset else netlist.anything(logic))
        cycles: list[Cycle] = []
        for _ in range(held + 2):
            given = {name: logic.free(1, name) for name in INPUTS}
            seen, state = state.step(given)
            cycles.append(Cycle(**given, **seen))
        # From reset on every number of cycles counts; from anything, as many as are remembered.
        for count in range(2, held + 3) if reset else (held + 2,):
            found = _wrong(logic, cycles[:count], held)
            if found is not None:
                return found
    return None


def _wrong(logic: Logic, cycles: Sequence[Cycle], held: int) -> Counterexample | None:
    """What is wrong in the last two of the cycles, if anything can be."""
    *past, before, now = cycles

    def both(*conditions: Bits) -> Bits:
        return logic.every(conditions)

    def no(condition: Bits) -> Bits:
        return logic.invert(condition)

    def same(x: Bits, y: Bits) -> Bits:
        return logic.apply("eq", x, y)

    ends = both(before.taken, before.last)
    under_way = both(no(before.opens), no(before.taken))
    inside = logic.some([both(before.taken, no(before.last)), under_way])
    behind = cycles[len(cycles) - 1 - min(held, len(past) + 1) : -1]
    used = [both(each.taken, same(each.bank, now.idle)) for each in behind]
    arrives = both(no(now.opens), same(now.bank, now.idle))
    switched = both(before.switch, before.free)
    kept = [no(both(each.switch, each.free)) for each in behind]
    first = cycles[len(cycles) - 1 - len(behind)]
    left = logic.some([first.opens, logic.apply("neq", first.bank, now.idle)])
    claims = {
        "a row does not begin with the bank that is not written": implies(
            logic, now.opens, logic.apply("neq", now.bank, now.idle)
        ),
        "a row changes its bank": implies(logic, inside, both(no(now.opens), same(now.bank, before.bank))),
        "a row does not end": implies(logic, ends, now.opens),
        "a row begins by itself": implies(logic, both(before.opens, no(before.taken)), now.opens),
        "banks do not take turns": same(logic.apply("xor", now.idle, before.idle), switched),
        "a bank is free that beats use, or is not that none uses": same(
            now.free, no(logic.some([*used, arrives]))
        ),
        "a beat's own bank is free": no(both(now.taken, now.free, same(now.bank, now.idle))),
        "a bank that no row uses does not come free": implies(logic, both(left, *kept), now.free),
    }
    shown = [bits for each in cycles for bits in (each.taken, each.last, each.bank, each.idle, each.free)]
    for text, claim in claims.items():
        found = logic.solve([no(claim)], shown)
        if found is not None:
            names = ("taken", "last", "bank", "idle", "free")
            told = ", ".join(
                f"{name} {''.join(map(str, found[at :: len(names)]))}" for at, name in enumerate(names)
            )
            return Counterexample(f"banks, {held} cycles a beat: {text}; cycle by cycle {told}")
    return None


def properties() -> list[Property]:
    """All of them."""
    return [
        Property(
            "banks",
            f"turns of {name}",
            "stream",
            "A row keeps the bank current at its first beat; nobody writes it before its last beat has been "
            f"in for {held} cycles; then it comes free, whatever rows come, until banks switch.",
            "induction: all time, any beats and any writes",
            partial(turns, held),
        )
        for name, held in HELD.items()
    ]

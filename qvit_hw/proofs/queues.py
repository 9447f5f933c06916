# SPDX-License-Identifier: Apache-2.0
"""What stream units are made of: credits and output queues, by :mod:`qvit_hw.proofs.induction`."""

from __future__ import annotations

from functools import partial

from amaranth.lib import data

from qvit_hw.proofs.circuit import Circuit
from qvit_hw.proofs.induction import WIDE, Registers, implies, minus, plus, turned
from qvit_hw.proofs.logic import Bits, Logic
from qvit_hw.proofs.property import Counterexample, Property
from rtl.row import Credits, OutputQueue

__all__ = ["counts", "properties", "queues"]

BEAT = data.StructLayout({"tag": 3})


def counts(count: int) -> Counterexample | None:
    """Credits: room is there while fewer are in use than ``count``, which are those taken and not given.

    Two counters go round; the number in use is what they stand for, and ``room`` tells 0 from ``count``.
    """
    circuit, logic = Circuit.of(Credits(count)), Logic()
    used, take, give = logic.free(WIDE, "used"), logic.free(1, "take"), logic.free(1, "give")
    idle = {"take": logic.const(0, 1), "give": logic.const(0, 1)}

    def sound(state: Registers, used: Bits) -> list[Bits]:
        most = logic.const(count, WIDE)
        return [
            logic.apply("ulte", used, most),
            turned(logic, state, "", used, count),
            logic.apply("eq", state.step(idle)[0]["room"], logic.apply("ult", used, most)),
        ]

    start = Registers(circuit, logic, circuit.initial(logic))
    if logic.every(sound(start, logic.const(0, WIDE))).value != 1:
        return Counterexample("credits: places are in use after reset")
    before = Registers(circuit, logic, circuit.anything(logic))
    outputs, after = before.step({"take": take, "give": give})
    moved = logic.apply("sub", plus(logic, used, take), logic.extend(give, WIDE - 1, signed=False))
    assumed = [
        *sound(before, used),
        implies(logic, take, outputs["room"]),
        implies(logic, give, logic.apply("ugt", used, logic.const(0, WIDE))),
    ]
    wrong = logic.invert(logic.every(sound(after, moved)))
    room = after.step(idle)[0]["room"]
    found = logic.solve([*assumed, wrong], [used, take, give, moved, room])
    if found is None:
        return None
    return Counterexample(
        f"credits: {found[0]} of {count} places in use, {found[1]} taken and {found[2]} given: "
        f"room {found[4]} with {found[3]} in use"
    )


def queues(depth: int) -> Counterexample | None:
    """Output queue: no beat lost, duplicated, reordered or changed while it waits; promises can be kept.

    In any state there are ``level`` beats waiting and ``promised`` ones under way; one of those that wait, so
    many places behind the first, is watched.
    """
    circuit, logic = Circuit.of(OutputQueue(BEAT, depth)), Logic()
    inputs = {name: logic.free(1, name) for name in ("take", "write", "o__ready")}
    inputs["payload"] = logic.free(BEAT.size, "payload")
    level, promised = logic.free(WIDE, "level"), logic.free(WIDE, "promised")
    place, tag = logic.free(WIDE, "place"), logic.free(BEAT.size, "tag")
    zero, mask = logic.const(0, WIDE), logic.const(depth - 1, WIDE)

    def sound(state: Registers, level: Bits, promised: Bits) -> list[Bits]:
        used, most = logic.apply("add", level, promised), logic.const(depth, WIDE)
        outputs = state.step({})[0]
        behind = logic.apply("add", state.number("queue.reader__addr"), level)
        writes = state.number("queue.$signature__addr")
        return [
            logic.apply("ulte", level, most),
            logic.apply("ulte", promised, most),
            logic.apply("ulte", used, most),
            turned(logic, state, "credits.", used, depth),
            turned(logic, state, "queue.items.", logic.apply("sub", most, level), depth),
            logic.apply("eq", writes, logic.apply("and", behind, mask)),
            logic.apply("eq", outputs["room"], logic.apply("ult", used, most)),
            logic.apply("eq", outputs["o__valid"], logic.apply("ugt", level, zero)),
        ]

    def at(state: Registers, offset: Bits) -> Bits:
        memory = state.memory("queue.storage")
        address = logic.apply("add", state.number("queue.reader__addr"), offset)
        return logic.read(memory, logic.slice(address, memory.address_bits - 1, 0))

    start = Registers(circuit, logic, circuit.initial(logic))
    if logic.every(sound(start, zero, zero)).value != 1:
        return Counterexample("output queue: not empty after reset")
    before = Registers(circuit, logic, circuit.anything(logic))
    outputs, after = before.step(inputs)
    assumed = [
        *sound(before, level, promised),
        implies(logic, inputs["take"], outputs["room"]),
        implies(logic, inputs["write"], logic.apply("ugt", promised, zero)),
        logic.apply("ult", place, level),
        logic.apply("eq", at(before, place), tag),
    ]
    gone = logic.apply("and", outputs["o__valid"], inputs["o__ready"])
    is_first = logic.apply("eq", place, zero)
    later = minus(logic, place, gone)
    then = minus(logic, plus(logic, level, inputs["write"]), gone)
    owed = minus(logic, plus(logic, promised, inputs["take"]), inputs["write"])
    claims = {
        "occupancy is lost": logic.every(sound(after, then, owed)),
        "the first beat is not the one offered": implies(
            logic, is_first, logic.apply("eq", outputs["o__payload"], tag)
        ),
        "a beat that waits changes or moves": implies(
            logic,
            logic.invert(logic.apply("and", gone, is_first)),
            logic.apply("eq", at(after, later), tag),
        ),
        "a beat written is not the last": implies(
            logic,
            inputs["write"],
            logic.apply("eq", at(after, minus(logic, then, logic.const(1, 1))), inputs["payload"]),
        ),
    }
    for text, claim in claims.items():
        wanted = [level, promised, *inputs.values(), outputs["o__valid"]]
        found = logic.solve([*assumed, logic.invert(claim)], wanted)
        if found is not None:
            return Counterexample(
                f"output queue of {depth}: {text}, with {found[0]} beats waiting and {found[1]} promised, "
                f"taken {found[2]}, written {found[3]}, ready {found[4]}, valid {found[6]}"
            )
    return None


def properties() -> list[Property]:
    """All of them."""
    listed = []
    for count in (2, 4, 32):
        claim = f"Of {count} places as many are in use as were taken and not given back; room while fewer."
        scope = "induction: all time, take only while room, give only what was taken"
        listed.append(
            Property("credits", f"{count} places", "stream", claim, scope, partial(counts, count))
        )
    for depth in (2, 4, 16, 32):
        claim = (
            f"{depth} places: what is written leaves once, in order and unchanged, waits unchanged, and "
            "a promised place is always free."
        )
        scope = "induction: all time, take only while room, write only what was taken"
        listed.append(
            Property("output queue", f"{depth} places", "stream", claim, scope, partial(queues, depth))
        )
    return listed

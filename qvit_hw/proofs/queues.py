# SPDX-License-Identifier: Apache-2.0
"""What stream units are made of: credits and output queues for all time, the ring of rows in many cycles.

Credits and queues by induction: a state in which the invariant holds, any inputs that keep the members'
contract, and the invariant holds a cycle later; at reset it holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from amaranth.lib import data

from qvit_hw.proofs.circuit import Circuit, State
from qvit_hw.proofs.logic import Bits, Logic, Memory
from qvit_hw.proofs.property import Counterexample, Property
from rtl.row import Credits, OutputQueue, RowStore

__all__ = ["counts", "properties", "queues", "stores"]

BEAT = data.StructLayout({"tag": 3})
ROW = data.StructLayout({"row": 3})
WIDE = 8
"""Bits of counters and addresses in claims."""


class _State:
    """A circuit's registers by name."""

    def __init__(self, circuit: Circuit, logic: Logic, state: State) -> None:
        self._circuit, self._logic, self.state = circuit, logic, state
        self._places = {name: number for number, name in circuit.states.items()}

    def number(self, name: str) -> Bits:
        """A register, WIDE bits."""
        bits = self.state[self._places[name]]
        assert isinstance(bits, Bits)
        return self._logic.extend(bits, WIDE - bits.width, signed=False)

    def memory(self, name: str) -> Memory:
        """A memory."""
        memory = self.state[self._places[name]]
        assert isinstance(memory, Memory)
        return memory

    def step(self, inputs: Mapping[str, Bits]) -> tuple[Mapping[str, Bits], _State]:
        """Outputs, and the state after the clock edge."""

        def given(name: str, width: int) -> Bits:
            return inputs.get(name) or self._logic.const(0, width)

        outputs, after = self._circuit.step(self._logic, self.state, given)
        return outputs, _State(self._circuit, self._logic, after)


def counts(count: int) -> Counterexample | None:
    """Credits: ``used`` is what was taken and not given, never more than ``count``; room while it is less."""
    circuit, logic = Circuit.of(Credits(count)), Logic()
    most, zero = logic.const(count, WIDE), logic.const(0, WIDE)
    take, give = logic.free(1, "take"), logic.free(1, "give")
    start = _State(circuit, logic, circuit.initial(logic))
    if start.number("used").value != 0:
        return Counterexample("credits: places are in use after reset")
    before = _State(circuit, logic, circuit.anything(logic))
    outputs, after = before.step({"take": take, "give": give})
    used, room = before.number("used"), outputs["room"]
    assumed = [
        logic.apply("ulte", used, most),
        _implies(logic, take, room),
        _implies(logic, give, logic.apply("ugt", used, zero)),
    ]
    moved = logic.apply("sub", _plus(logic, used, take), logic.extend(give, WIDE - 1, signed=False))
    holds = [
        logic.apply("eq", after.number("used"), moved),
        logic.apply("ulte", after.number("used"), most),
        logic.apply("eq", room, logic.apply("ult", used, most)),
    ]
    found = logic.solve(
        [*assumed, logic.invert(logic.every(holds))], [used, take, give, room, after.number("used")]
    )
    if found is None:
        return None
    return Counterexample(
        f"credits: {found[0]} of {count} places in use and room {found[3]}; {found[1]} taken and {found[2]} "
        f"given: {found[4]} in use"
    )


def queues(depth: int) -> Counterexample | None:
    """Output queue: no beat lost, duplicated, reordered or changed while it waits; promises can be kept."""
    circuit, logic = Circuit.of(OutputQueue(BEAT, depth)), Logic()
    start = _State(circuit, logic, circuit.initial(logic))
    registers = ("queue.level", "credits.used", "queue.r_port__addr", "queue.w_port__addr")
    if any(start.number(name).value != 0 for name in registers):
        return Counterexample("output queue: not empty after reset")
    before = _State(circuit, logic, circuit.anything(logic))
    inputs = {name: logic.free(1, name) for name in ("take", "write", "o__ready")}
    inputs["payload"] = logic.free(BEAT.size, "payload")
    outputs, after = before.step(inputs)
    place, tag = logic.free(WIDE, "place"), logic.free(BEAT.size, "tag")
    most, zero = logic.const(depth, WIDE), logic.const(0, WIDE)

    def sound(state: _State) -> list[Bits]:
        level, used = state.number("queue.level"), state.number("credits.used")
        first = state.number("queue.r_port__addr")
        return [
            logic.apply("ult", first, most),
            logic.apply("ulte", level, used),
            logic.apply("ulte", used, most),
            logic.apply("eq", state.number("queue.w_port__addr"), _round(logic, first, level, depth)),
        ]

    def at(state: _State, offset: Bits) -> Bits:
        memory = state.memory("queue.storage")
        address = _round(logic, state.number("queue.r_port__addr"), offset, depth)
        return logic.read(memory, logic.slice(address, memory.address_bits - 1, 0))

    level, used = before.number("queue.level"), before.number("credits.used")
    assumed = [
        *sound(before),
        _implies(logic, inputs["take"], outputs["room"]),
        _implies(logic, inputs["write"], logic.apply("ult", level, used)),  # of a promised place
        logic.apply("ult", place, level),  # the beat that is watched, so many behind the first
        logic.apply("eq", at(before, place), tag),
    ]
    gone = logic.apply("and", outputs["o__valid"], inputs["o__ready"])
    is_first = logic.apply("eq", place, zero)
    later = logic.apply("sub", place, logic.extend(gone, WIDE - 1, signed=False))
    behind = logic.apply("sub", after.number("queue.level"), logic.const(1, WIDE))
    claims = {
        "occupancy is lost": logic.every(sound(after)),
        "a beat that waits is not offered": logic.apply(
            "eq", outputs["o__valid"], logic.apply("ugt", level, zero)
        ),
        "the first beat is not the one offered": _implies(
            logic, is_first, logic.apply("eq", outputs["o__payload"], tag)
        ),
        "a beat that waits changes or moves": _implies(
            logic,
            logic.invert(logic.apply("and", gone, is_first)),
            logic.every(
                [
                    logic.apply("eq", at(after, later), tag),
                    logic.apply("ult", later, after.number("queue.level")),
                ]
            ),
        ),
        "a beat written is not the last": _implies(
            logic, inputs["write"], logic.apply("eq", at(after, behind), inputs["payload"])
        ),
    }
    for text, claim in claims.items():
        wanted = [level, used, *inputs.values(), outputs["o__valid"]]
        found = logic.solve([*assumed, logic.invert(claim)], wanted)
        if found is not None:
            return Counterexample(
                f"output queue of {depth}: {text}, with {found[0]} beats waiting, {found[1] - found[0]} "
                f"promised, taken {found[2]}, written {found[3]}, ready {found[4]}, valid {found[6]}"
            )
    return None


def stores(cycles: int, latency: int = 2) -> Counterexample | None:
    """Row store: beats come back in order, first, last and descriptor with them.

    Rows of 1 or 2 beats, any of them at any time while there is room; read at any time. ``write`` and
    ``count`` come ``latency`` cycles after ``take``, as in a phase.
    """
    circuit, logic = Circuit.of(RowStore(BEAT, ROW, max_beats=2, slack=2)), Logic()
    state = _State(circuit, logic, circuit.initial(logic))
    no, zero = logic.const(0, 1), logic.const(0, WIDE)
    n = logic.free(WIDE, "n")
    taken, read = zero, zero
    kept, known = logic.const(0, BEAT.size + 1 + ROW.size), no
    row = logic.const(0, ROW.size)
    place = no
    line: list[list[Bits]] = [[no, no, logic.const(0, BEAT.size), row]] * latency
    wrong, ports = [], []
    for _ in range(cycles):
        go, tag = logic.free(1, "go"), logic.free(BEAT.size, "tag")
        arrived = line[-1]
        inputs = {
            "go": go,
            "write": arrived[0],
            "beat_in": arrived[2],
            "count": arrived[0],
            "count_last": logic.apply("and", arrived[0], arrived[1]),
            "row_in": arrived[3],
        }
        # `room` is a function of the registers alone: what it is for idle inputs, it is for all.
        room = state.step(inputs)[0]["room"]
        take = logic.apply("and", logic.free(1, "take"), room)
        last = logic.apply("or", logic.free(1, "last"), place)
        inputs |= {"take": take, "take_last": logic.apply("and", take, last)}
        outputs, state = state.step(inputs)

        seen = logic.apply("and", outputs["valid"], logic.apply("eq", read, n))
        out = logic.concat(logic.concat(outputs["beat_out"], outputs["last"]), outputs["row_out"])
        differs = logic.some([logic.invert(known), logic.apply("neq", out, kept)])
        wrong.append(logic.apply("and", seen, differs))
        ports += [take, last, tag, row]
        ports += [outputs[name] for name in ("valid", "last", "beat_out", "row_out")]

        here = logic.apply("and", take, logic.apply("eq", taken, n))
        kept = logic.choose(here, logic.concat(logic.concat(tag, last), row), kept)
        known = logic.apply("or", known, here)
        taken, read = _plus(logic, taken, take), _plus(logic, read, outputs["valid"])
        place = logic.choose(take, logic.invert(last), place)
        line = [[take, last, tag, row], *line[:-1]]
        ended = logic.extend(logic.apply("and", take, last), ROW.size - 1, signed=False)
        row = logic.apply("add", row, ended)
    found = logic.solve([logic.some(wrong)], ports)
    if found is None:
        return None
    went, came = [], []
    for at in range(0, len(found), 8):
        took, last_in, tag_in, row_in, valid, last_out, tag_out, row_out = found[at : at + 8]
        went += [(tag_in, last_in, row_in)] * took
        came += [(tag_out, last_out, row_out)] * valid
    first = next(at for at, beat in enumerate(came) if at >= len(went) or beat != went[at])
    given = went[first] if first < len(went) else "none"
    return Counterexample(f"row store: beat {first + 1} is (beat, last, row) {came[first]}, and was {given}")


def _implies(logic: Logic, condition: Bits, conclusion: Bits) -> Bits:
    return logic.apply("or", logic.invert(condition), conclusion)


def _plus(logic: Logic, count: Bits, bit: Bits) -> Bits:
    return logic.apply("add", count, logic.extend(bit, count.width - 1, signed=False))


def _round(logic: Logic, address: Bits, offset: Bits, depth: int) -> Bits:
    """``(address + offset) mod depth``, both at most ``depth``."""
    total, whole = logic.apply("add", address, offset), logic.const(depth, WIDE)
    return logic.choose(logic.apply("ugte", total, whole), logic.apply("sub", total, whole), total)


def properties() -> list[Property]:
    """All of them."""
    listed = []
    for count in (2, 5, 32):
        claim = f"Of {count} places as many are in use as were taken and not given back; room while fewer."
        scope = "induction: all time, take only while room, give only what was taken"
        listed.append(
            Property("credits", f"{count} places", "stream", claim, scope, partial(counts, count))
        )
    for depth in (2, 5, 16):
        claim = (
            f"{depth} places: what is written leaves once, in order and unchanged, waits without a change, and "
            "a promised place is always free."
        )
        scope = "induction: all time, take only while room, write only what was taken"
        listed.append(
            Property("output queue", f"{depth} places", "stream", claim, scope, partial(queues, depth))
        )
    listed.append(
        Property(
            "row store",
            "beats and descriptors in order",
            "stream",
            "The n-th beat read is the n-th taken, with last and its row's descriptor.",
            "rows of 1 or 2 beats, ring of 4; any beats and stalls in 16 cycles from reset on",
            partial(stores, 16),
        )
    )
    return listed

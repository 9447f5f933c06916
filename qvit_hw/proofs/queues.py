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
    """Credits: room is there while fewer are in use than ``count``, which are those taken and not given.

    Two counters go round; the number in use is what they stand for, and ``room`` tells 0 from ``count``.
    """
    circuit, logic = Circuit.of(Credits(count)), Logic()
    used, take, give = logic.free(WIDE, "used"), logic.free(1, "take"), logic.free(1, "give")
    idle = {"take": logic.const(0, 1), "give": logic.const(0, 1)}

    def sound(state: _State, used: Bits) -> list[Bits]:
        most = logic.const(count, WIDE)
        return [
            logic.apply("ulte", used, most),
            _turned(logic, state, "", used, count),
            logic.apply("eq", state.step(idle)[0]["room"], logic.apply("ult", used, most)),
        ]

    start = _State(circuit, logic, circuit.initial(logic))
    if logic.every(sound(start, logic.const(0, WIDE))).value != 1:
        return Counterexample("credits: places are in use after reset")
    before = _State(circuit, logic, circuit.anything(logic))
    outputs, after = before.step({"take": take, "give": give})
    moved = logic.apply("sub", _plus(logic, used, take), logic.extend(give, WIDE - 1, signed=False))
    assumed = [
        *sound(before, used),
        _implies(logic, take, outputs["room"]),
        _implies(logic, give, logic.apply("ugt", used, logic.const(0, WIDE))),
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


def _turned(logic: Logic, state: _State, part: str, used: Bits, count: int) -> Bits:
    """Whether the counters of credits stand for so many in use, modulo ``count``."""
    taken = logic.apply("sub", state.number(f"{part}next_taken"), logic.const(1, WIDE))
    both = logic.apply("sub", taken, state.number(f"{part}given"))
    mask = logic.const(count - 1, WIDE)
    return logic.apply("eq", logic.apply("and", both, mask), logic.apply("and", used, mask))


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

    def sound(state: _State, level: Bits, promised: Bits) -> list[Bits]:
        used, most = logic.apply("add", level, promised), logic.const(depth, WIDE)
        outputs = state.step({})[0]
        behind = logic.apply("add", state.number("queue.reader__addr"), level)
        writes = state.number("queue.$signature__addr")
        return [
            logic.apply("ulte", level, most),
            logic.apply("ulte", promised, most),
            logic.apply("ulte", used, most),
            _turned(logic, state, "credits.", used, depth),
            _turned(logic, state, "queue.items.", logic.apply("sub", most, level), depth),
            logic.apply("eq", writes, logic.apply("and", behind, mask)),
            logic.apply("eq", outputs["room"], logic.apply("ult", used, most)),
            logic.apply("eq", outputs["o__valid"], logic.apply("ugt", level, zero)),
        ]

    def at(state: _State, offset: Bits) -> Bits:
        memory = state.memory("queue.storage")
        address = logic.apply("add", state.number("queue.reader__addr"), offset)
        return logic.read(memory, logic.slice(address, memory.address_bits - 1, 0))

    start = _State(circuit, logic, circuit.initial(logic))
    if logic.every(sound(start, zero, zero)).value != 1:
        return Counterexample("output queue: not empty after reset")
    before = _State(circuit, logic, circuit.anything(logic))
    outputs, after = before.step(inputs)
    assumed = [
        *sound(before, level, promised),
        _implies(logic, inputs["take"], outputs["room"]),
        _implies(logic, inputs["write"], logic.apply("ugt", promised, zero)),
        logic.apply("ult", place, level),
        logic.apply("eq", at(before, place), tag),
    ]
    gone = logic.apply("and", outputs["o__valid"], inputs["o__ready"])
    is_first = logic.apply("eq", place, zero)
    later = _minus(logic, place, gone)
    then = _minus(logic, _plus(logic, level, inputs["write"]), gone)
    owed = _minus(logic, _plus(logic, promised, inputs["take"]), inputs["write"])
    claims = {
        "occupancy is lost": logic.every(sound(after, then, owed)),
        "the first beat is not the one offered": _implies(
            logic, is_first, logic.apply("eq", outputs["o__payload"], tag)
        ),
        "a beat that waits changes or moves": _implies(
            logic,
            logic.invert(logic.apply("and", gone, is_first)),
            logic.apply("eq", at(after, later), tag),
        ),
        "a beat written is not the last": _implies(
            logic,
            inputs["write"],
            logic.apply("eq", at(after, _minus(logic, then, logic.const(1, 1))), inputs["payload"]),
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
        inputs["take"] = take
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


def _minus(logic: Logic, count: Bits, bit: Bits) -> Bits:
    return logic.apply("sub", count, logic.extend(bit, count.width - 1, signed=False))


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

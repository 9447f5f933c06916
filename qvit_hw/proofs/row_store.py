# SPDX-License-Identifier: Apache-2.0
"""The ring of rows between two phases: what is read is what was taken, beat for beat and row for row.

In plain terms a store is a list of beats, the one that is read next in front. ``taken`` of them have a place,
``written`` ones are in the ring, ``counted`` ones are known to a row; of ``rows`` complete rows each has a
descriptor and a last beat. By induction: any such list, any inputs that keep the members' contract, and a
cycle later the store is that list with what was taken behind it, and without what was read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from amaranth.lib import data

from golden.cycles import QUEUE_DEPTH
from qvit_hw.proofs.circuit import Circuit
from qvit_hw.proofs.induction import WIDE, Registers, implies, minus, plus, turned
from qvit_hw.proofs.logic import Bits, Logic
from qvit_hw.proofs.property import Counterexample, Property
from rtl.row import RowStore

__all__ = ["in_cycles", "properties", "stores"]

BEAT = data.StructLayout({"tag": 3})
ROW = data.StructLayout({"row": 3})
SHAPES = ((2, 2), (5, 3), (768, 14))
"""Of stores: longest row, and beats beyond it; the last is LayerNorm's of 3072 channels in 4 lanes."""


@dataclass(frozen=True)
class List:
    """Beats with a place, written, counted; complete rows; whether a row begins with the next beat read."""

    taken: Bits
    written: Bits
    counted: Bits
    rows: Bits
    between: Bits


class Store:
    """A store's circuit, and what its registers say about the list."""

    def __init__(self, max_beats: int, slack: int) -> None:
        unit = RowStore(BEAT, ROW, max_beats=max_beats, slack=slack)
        self.circuit, self.logic, self.depth = Circuit.of(unit), Logic(), unit._depth

    def number(self, value: int) -> Bits:
        """A count."""
        return self.logic.const(value, WIDE)

    def beat(self, state: Registers, place: Bits) -> Bits:
        """The beat so many places behind the one that is read next."""
        ring = state.memory("ring")
        at = self.logic.apply("add", state.number("reader__addr"), place)
        return self.logic.read(ring, self.logic.slice(at, ring.address_bits - 1, 0))

    def row(self, state: Registers, row: Bits) -> tuple[Bits, Bits]:
        """Of the complete row so many behind the first: its descriptor, and where its last beat is."""
        entries, logic = state.memory("queue.storage"), self.logic
        at = logic.apply("add", state.number("queue.reader__addr"), row)
        entry = logic.read(entries, logic.slice(at, entries.address_bits - 1, 0))
        end = logic.slice(entry, entry.width - 1, ROW.size)
        place = logic.apply("sub", end, logic.slice(state.number("reader__addr"), end.width - 1, 0))
        return logic.slice(entry, ROW.size - 1, 0), logic.extend(place, WIDE - end.width, signed=False)

    def ended(self, state: Registers, rows: Bits) -> Bits:
        """Beats up to the last of so many rows."""
        logic = self.logic
        last = self.row(state, minus(logic, rows, logic.const(1, 1)))[1]
        some = logic.apply("ugt", rows, self.number(0))
        return logic.choose(some, plus(logic, last, logic.const(1, 1)), self.number(0))

    def sound(self, state: Registers, held: List, pairs: Sequence[tuple[Bits, Bits]]) -> list[Bits]:
        """Whether the registers are those of a list of such counts, its rows looked at in some pairs."""
        logic, depth = self.logic, self.number(self.depth)
        here, first = state.number("reader__addr"), state.number("queue.reader__addr")

        def stands(register: str, start: Bits, count: Bits, places: int) -> Bits:
            at = logic.apply("and", logic.apply("add", start, count), self.number(places - 1))
            return logic.apply("eq", state.number(register), at)

        asked, after = state.step({"go": logic.const(1, 1)})
        free = logic.apply("sub", self.number(QUEUE_DEPTH), held.rows)
        some = logic.apply("ugt", held.rows, self.number(0))
        found = [
            logic.apply("ulte", held.counted, held.written),
            logic.apply("ulte", held.written, held.taken),
            logic.apply("ulte", held.taken, depth),
            logic.apply("ulte", held.rows, self.number(QUEUE_DEPTH)),
            turned(logic, state, "beats.", held.taken, self.depth),
            turned(logic, state, "queue.items.", free, QUEUE_DEPTH),
            stands("\\$signature__addr", here, held.written, self.depth),
            stands("end", here, held.counted, self.depth),
            stands("queue.$signature__addr", first, held.rows, QUEUE_DEPTH),
            logic.apply("eq", asked["room"], logic.apply("ult", held.taken, depth)),
            logic.apply("eq", asked["step"], some),
            logic.apply("eq", after.step({})[0]["first"], held.between),
        ]
        # Every row that is complete ends at a counted beat, and behind all rows before it.
        for row, other in pairs:
            there, behind = logic.apply("ult", other, held.rows), logic.apply("ult", row, other)
            end, other_end = self.row(state, row)[1], self.row(state, other)[1]
            later = implies(logic, behind, logic.apply("ult", end, other_end))
            counted = logic.apply("ult", other_end, held.counted)
            found.append(implies(logic, there, logic.apply("and", counted, later)))
        return found

    def belongs(self, state: Registers, place: Bits, row: Bits) -> Bits:
        """Whether a beat belongs to a complete row: it is not behind its last, nor in the row before."""
        logic = self.logic
        return logic.every(
            [
                logic.apply("ulte", place, self.row(state, row)[1]),
                logic.apply("ulte", self.ended(state, row), place),
            ]
        )


def stores(max_beats: int, slack: int) -> Counterexample | None:
    """A cycle of a store of any list: a watched beat leaves first and with its row, or stays as it is.

    Contract: take while ``room``; write what was taken, in this cycle or before, and count what was written;
    no descriptor beyond ``QUEUE_DEPTH``, which :func:`rtl.row.row_places` sees to.
    """
    store = Store(max_beats, slack)
    circuit, logic, nothing = store.circuit, store.logic, store.number(0)
    empty = List(nothing, nothing, nothing, nothing, logic.const(1, 1))
    if logic.every(store.sound(Registers(circuit, logic, circuit.initial(logic)), empty, [])).value != 1:
        return Counterexample("row store: not empty after reset")
    counts = {name: logic.free(WIDE, name) for name in ("taken", "written", "counted", "rows")}
    held = List(**counts, between=logic.free(1, "between"))
    inputs = {name: logic.free(width, name) for name, width in circuit.inputs.items()}
    inputs["rst"] = logic.const(0, 1)
    before = Registers(circuit, logic, circuit.anything(logic))
    outputs, after = before.step(inputs)
    shown, _ = after.step({})
    take, write, count = inputs["take"], inputs["write"], inputs["count"]
    step, done = outputs["step"], outputs["done"]
    queued = logic.apply("and", count, inputs["count_last"])
    to_write, to_count = plus(logic, held.taken, take), plus(logic, held.written, write)
    then = List(
        minus(logic, to_write, step),
        minus(logic, to_count, step),
        minus(logic, plus(logic, held.counted, count), step),
        minus(logic, plus(logic, held.rows, queued), done),
        logic.choose(step, done, held.between),
    )
    # A beat of the list, and a row: where the beat's is complete, the one that it belongs to.
    place, row, one = logic.free(WIDE, "place"), logic.free(WIDE, "row"), logic.const(1, 1)
    other, row_before = logic.free(WIDE, "other"), minus(logic, row, one)
    pairs = [(nothing, row_before), (row_before, row), (row, other), (nothing, other)]
    assumed = [
        *store.sound(before, held, [*pairs, (nothing, minus(logic, held.rows, one))]),
        implies(logic, take, outputs["room"]),
        implies(logic, write, logic.apply("ult", held.written, to_write)),
        implies(logic, count, logic.apply("ult", held.counted, to_count)),
        implies(logic, queued, logic.apply("ult", held.rows, store.number(QUEUE_DEPTH))),
    ]
    beat, (told, end) = store.beat(before, place), store.row(before, row)
    leaves = logic.apply("and", step, logic.apply("eq", place, nothing))
    stays, later, row_later = logic.invert(leaves), minus(logic, place, step), minus(logic, row, done)
    told_later, end_later = store.row(after, row_later)
    written = logic.apply("ult", place, held.written)
    complete = logic.every([logic.apply("ult", row, held.rows), store.belongs(before, place, row)])
    open_ = logic.every(
        [
            logic.apply("ult", later, then.counted),
            logic.apply("ulte", store.ended(before, held.rows), place),
        ]
    )
    newest, last_beat = minus(logic, then.rows, one), minus(logic, then.counted, one)
    told_new, end_new = store.row(after, newest)

    def same(x: Bits, y: Bits) -> Bits:
        return logic.apply("eq", x, y)

    claims: list[tuple[str, list[Bits], list[Bits]]] = [
        ("a beat is announced that was not read, or none that was", [], [same(shown["valid"], step)]),
        ("the beat read is not the first", [written, leaves], [same(shown["beat_out"], beat)]),
        ("a beat that waits changes or moves", [written, stays], [same(store.beat(after, later), beat)]),
        (
            "a beat written is not the last",
            [write],
            [same(store.beat(after, minus(logic, then.written, one)), inputs["beat_in"])],
        ),
        (
            "the beat read has another row's descriptor, first or last",
            [complete, leaves],
            [
                same(shown["row_out"], told),
                same(shown["last"], same(end, place)),
                same(done, shown["last"]),
                same(shown["first"], held.between),
            ],
        ),
        (
            "a row that waits changes",
            [complete, stays],
            [
                store.belongs(after, later, row_later),
                same(told_later, told),
                same(end_later, minus(logic, end, step)),
            ],
        ),
        (
            "a row that becomes complete has another's descriptor or end",
            [open_, queued],
            [
                store.belongs(after, later, newest),
                same(told_new, inputs["row_in"]),
                same(end_new, last_beat),
            ],
        ),
        (
            "beats or rows are lost or counted twice",
            [logic.apply("ulte", plus(logic, nothing, done), row)],
            store.sound(after, then, [(row_later, minus(logic, other, done))]),
        ),
    ]
    names = ["take", "write", "count", "count_last", "go"]
    for text, conditions, claim in claims:
        wanted = [*counts.values(), *(inputs[name] for name in names), place]
        found = logic.solve([*assumed, *conditions, logic.invert(logic.every(claim))], wanted, seconds=300)
        if found is not None:
            have = ", ".join(f"{value} {name}" for value, name in zip(found, counts, strict=False))
            given = ", ".join(f"{name} {value}" for name, value in zip(names, found[4:], strict=False))
            return Counterexample(
                f"row store: {text}, with {have}; beat {found[-1]} behind the first; {given}",
                dict(zip([*counts, *names, "beat"], found, strict=True)),
            )
    return None


def in_cycles(cycles: int, latency: int = 2) -> Counterexample | None:
    """Row store: beats come back in order, first, last and descriptor with them.

    Rows of 1 or 2 beats, any of them at any time while there is room; read at any time. ``write`` and
    ``count`` come ``latency`` cycles after ``take``, as in a phase.
    """
    circuit, logic = Circuit.of(RowStore(BEAT, ROW, max_beats=2, slack=2)), Logic()
    state = Registers(circuit, logic, circuit.initial(logic))
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
        taken, read = plus(logic, taken, take), plus(logic, read, outputs["valid"])
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


def properties() -> list[Property]:
    """All of them."""
    listed = [
        Property(
            "row store",
            f"rows of up to {max_beats} beats",
            "stream",
            "What is taken is read once, in order and unchanged, with first, last and its row's descriptor; "
            "nothing that waits is overwritten, and a complete row can be read.",
            "induction: all time, any stalls; take while room, write what was taken, count what was written",
            partial(stores, max_beats, slack),
        )
        for max_beats, slack in SHAPES
    ]
    claim = "The n-th beat read is the n-th taken, with last and its row's descriptor."
    scope = "rows of 1 or 2 beats, ring of 4; any beats and stalls in 16 cycles from reset on"
    name = "beats and descriptors in order"
    return [*listed, Property("row store", name, "stream", claim, scope, partial(in_cycles, 16))]

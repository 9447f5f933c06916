# SPDX-License-Identifier: Apache-2.0
"""Stream units keep their beats: order, stability, progress, and rows that know nothing of each other.

Every claim is about a whole unit from reset on (the parameters written first), for any beats and any stalls
of either side in so many cycles. :mod:`qvit_hw.proofs.queues` has the parts they are made of, for all time.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from amaranth.back import rtlil

from qvit_hw.proofs.logic import Bits
from qvit_hw.proofs.property import Counterexample, Property
from qvit_hw.proofs.runs import COUNT_BITS, Run, Trace
from qvit_hw.proofs.subjects import SHALLOW, SUBJECTS, Depths

__all__ = [
    "full_rate",
    "independent",
    "keeps_order",
    "progress",
    "properties",
    "stable",
    "valid_alone",
    "whole_memories",
]


# ------------------------------------------------------------------------------------------ order


def keeps_order(name: str, cycles: int, depths: Depths | None = SHALLOW) -> Counterexample | None:
    """The n-th beat delivered has keep and last of the n-th accepted one, for any n; and there is such a one.

    n is a constant that nobody knows: what is claimed of it is claimed of every beat.
    """
    run = Run(SUBJECTS[name](), depths)
    run.prepare()
    logic = run.logic
    n = logic.free(COUNT_BITS, "n")
    accepted, delivered = run.number(0, COUNT_BITS), run.number(0, COUNT_BITS)
    known = run.number(0)
    kept: Bits | None = None
    wrong = []
    for _ in range(cycles):
        cycle, _ = run.advance()
        enters = run.ends(cycle) if run.subject.reduces else cycle.taken
        leaves = logic.apply("and", cycle.given, logic.apply("eq", delivered, n))
        mark = None
        if not run.subject.reduces:
            mark = logic.concat(run.field(cycle.beat, "keep"), run.field(cycle.beat, "last"))
            out = logic.concat(
                run.field(cycle.out, "keep", out=True), run.field(cycle.out, "last", out=True)
            )
            if kept is not None:
                differs = logic.every([known, logic.apply("neq", kept, out)])
                wrong.append(logic.apply("and", leaves, differs))
        wrong.append(logic.apply("and", leaves, logic.invert(known)))
        here = logic.apply("and", enters, logic.apply("eq", accepted, n))
        if mark is not None:
            kept = mark if kept is None else logic.choose(here, mark, kept)
        known = logic.apply("or", known, here)
        accepted, delivered = run.add(accepted, enters), run.add(delivered, cycle.given)
    if run.find([logic.apply("ugte", delivered, run.number(2, COUNT_BITS))]) is None:
        return Counterexample(f"two beats do not come out in {cycles} cycles, whatever the stalls")
    trace = run.find([logic.some(wrong)])
    return None if trace is None else _out_of_order(trace, reduces=run.subject.reduces)


def _out_of_order(trace: Trace, *, reduces: bool) -> Counterexample:
    """The first beat delivered that is not the one accepted."""
    for at, beat in enumerate(trace.delivered):
        before = [each for each in trace.accepted if each.cycle < beat.cycle]
        if reduces:
            rows = [each.row for each in before if trace.elements(each.payload, "last") == [1]]
            if at >= len(rows):
                return Counterexample(
                    f"row {at + 1}: delivered in cycle {beat.cycle}, when {len(rows)} rows were complete; "
                    f"{trace.stalls}"
                )
            continue
        told = trace.tell(beat.payload, out=True)
        if at >= len(before):
            return Counterexample(
                f"beat {at + 1}: ({told}) delivered in cycle {beat.cycle}, when {len(before)} were accepted; "
                f"{trace.stalls}"
            )
        given = before[at]
        marks = [
            (trace.elements(given.payload, field), trace.elements(beat.payload, field, out=True))
            for field in ("keep", "last")
        ]
        if any(a != b for a, b in marks):
            return Counterexample(
                f"row {given.row}, beat {given.place}: keep {marks[0][1]} and last {marks[1][1]} delivered "
                f"in cycle {beat.cycle}, {marks[0][0]} and {marks[1][0]} accepted in cycle {given.cycle}; "
                f"{trace.stalls}"
            )
    raise AssertionError("the trace keeps its order")


# --------------------------------------------------------------------------------------- handshake


def stable(name: str, cycles: int, depths: Depths | None = SHALLOW) -> Counterexample | None:
    """An output that waits stays: valid and not ready means valid and the same payload in the next cycle."""
    run = Run(SUBJECTS[name](), depths)
    run.prepare()
    logic, wrong = run.logic, []
    for at in range(cycles):
        cycle, _ = run.advance()
        if at:
            past = run.cycles[at - 1]
            waited = logic.apply("and", past.out_valid, logic.invert(past.out_ready))
            moved = logic.apply("neq", past.out, cycle.out)
            wrong.append(logic.apply("and", waited, logic.some([logic.invert(cycle.out_valid), moved])))
    trace = run.find([logic.some(wrong)])
    if trace is None:
        return None
    for at, (before, after) in enumerate(zip(trace.cycles, trace.cycles[1:], strict=False)):
        if before[3] and not before[4] and (not after[3] or before[5] != after[5]):
            then = f"valid with ({trace.tell(after[5], out=True)})" if after[3] else "not valid"
            return Counterexample(
                f"beat {1 + sum(beat.cycle < at for beat in trace.delivered)}: output "
                f"({trace.tell(before[5], out=True)}) waits in cycle {at} and is {then} in the next; "
                f"{trace.stalls}"
            )
    raise AssertionError("the trace is stable")


def valid_alone(name: str) -> Counterexample | None:
    """Neither output valid nor payload is a function of output ready, in any state whatever."""
    run = Run(SUBJECTS[name](), SHALLOW)
    logic, subject = run.logic, run.subject
    state = run.circuit.anything(logic)
    inputs: dict[str, Bits] = {}
    seen = []
    for ready in (0, 1):

        def given(port: str, width: int, ready: int = ready) -> Bits:
            if port == "o__ready":
                return logic.const(ready, 1)
            return inputs.setdefault(port, logic.free(width, port))

        outputs, _ = run.circuit.step(logic, state, given)
        seen.append(logic.concat(outputs["o__valid"], outputs["o__payload"]))
    found = logic.solve([logic.apply("neq", *seen)], [seen[0], seen[1]])
    if found is None:
        return None
    low, high = (f"valid {each >> (seen[0].width - 1)}" for each in found)
    return Counterexample(
        f"{subject.name}: output {low} while ready is 0, {high} while it is 1, in one state"
    )


def whole_memories(name: str) -> Counterexample | None:
    """Every memory has as many words as its address tells apart; the solver's arrays have no other size."""
    text = rtlil.convert(SUBJECTS[name]().make(), emit_src=False)
    for size in re.findall(r"^ *memory width \d+ size (\d+)", text, re.MULTILINE):
        if int(size).bit_count() != 1:
            reached = 1 << int(size).bit_length()
            return Counterexample(f"{name}: of {reached} addresses a memory has {size} words")
    return None


# ---------------------------------------------------------------------------------------- progress


def progress(
    name: str, stalled: int, within: int, depths: Depths | None = None
) -> Counterexample | None:
    """After any cycles with stalls: all complete rows are out, and a beat is taken, within so many more."""
    run = Run(SUBJECTS[name](), depths)
    run.prepare()
    logic = run.logic
    zero, one = run.number(0), run.number(1)
    # Beats: of complete rows, and of all.
    complete, accepted = run.number(0, COUNT_BITS), run.number(0, COUNT_BITS)
    delivered = run.number(0, COUNT_BITS)
    for at in range(stalled + within):
        idle = at >= stalled
        cycle, _ = run.advance(valid=zero if idle else None, ready=one if idle else None)
        ends = run.ends(cycle)
        accepted = run.add(accepted, ends if run.subject.reduces else cycle.taken)
        complete = logic.choose(ends, accepted, complete)
        delivered = run.add(delivered, cycle.given)
    held = logic.apply("ult", delivered, complete)
    run.step(ready=one)
    stuck = logic.some([held, logic.invert(run.ready_in)])
    trace = run.find([stuck])
    if trace is None:
        return None
    rows = sum(trace.elements(each.payload, "last") == [1] for each in trace.accepted)
    return Counterexample(
        f"{rows} rows complete after {stalled} cycles; {within} cycles later, with output always ready, "
        f"{len(trace.delivered)} beats of {len(trace.accepted)} are out; {trace.stalls}"
    )


def full_rate(name: str, cycles: int) -> Counterexample | None:
    """With input always valid and output always ready, every cycle takes a beat."""
    run = Run(SUBJECTS[name]())
    run.prepare()
    one, wrong = run.number(1), []
    for _ in range(cycles):
        cycle, _ = run.advance(valid=one, ready=one)
        wrong.append(run.logic.invert(cycle.taken))
    trace = run.find([run.logic.some(wrong)])
    if trace is None:
        return None
    at = next(at for at, ports in enumerate(trace.cycles) if not ports[2])
    row = 1 + sum(trace.elements(each.payload, "last") == [1] for each in trace.accepted if each.cycle < at)
    return Counterexample(f"row {row}: input not ready in cycle {at}, with output ready in every cycle")


# --------------------------------------------------------------------------------- rows and parameters


def independent(name: str, cycles: int, depths: Depths | None = SHALLOW) -> Counterexample | None:
    """After any first row, rows have golden's codes of them alone, with the parameters of their first beat.

    The first row has any beats; the second is the subject's first one, the third its second one and so on in
    turns. The last three words of the second set of parameters are written from the first cycle on, and then
    a word of it again, which goes to the bank of the rows that came before and has to wait for them.
    """
    run = Run(SUBJECTS[name](), depths)
    run.prepare()
    logic, subject = run.logic, run.subject
    table = [run.number(address | data << 14, 46) for address, data in subject.words[1]]
    size, table = len(table), [*table, table[subject.late]]
    for word in table[: size - 3]:
        run.step(word=(run.number(1), word))
    written = run.number(max(size - 3, 0), COUNT_BITS)
    sets = [run.number(0)] * 4  # of each row
    out_place, out_rows = run.number(0, COUNT_BITS), run.number(0, 2)
    wrong = []
    for _ in range(cycles):
        committed = logic.apply("ugte", written, run.number(size, COUNT_BITS))
        more = logic.apply("ult", written, run.number(len(table), COUNT_BITS))
        opens = logic.apply("eq", run.place, run.number(0, COUNT_BITS))
        rows = run.rows
        cycle, outputs = run.advance(beat=_beat(run), word=(more, _of(run, table, written)))
        opens = logic.apply("and", opens, cycle.taken)
        for at in range(4):
            here = logic.apply("and", opens, logic.apply("eq", rows, run.number(at, 2)))
            sets[at] = logic.choose(here, committed, sets[at])
        written = run.add(written, logic.apply("and", more, outputs["params__ready"]))

        for row in (1, 2):
            this_row = logic.apply("eq", out_rows, run.number(row, 2))
            beats = 1 if subject.reduces else subject.beats(row - 1)
            for place in range(beats):
                this = logic.apply("eq", out_place, run.number(place, COUNT_BITS))
                codes = [_codes_of(run, each, row - 1, place) for each in range(2)]
                code = run.field(cycle.out, "code", out=True)
                code = logic.slice(code, codes[0].width - 1, 0)
                wanted = logic.choose(sets[row], codes[1], codes[0])
                wrong.append(logic.every([cycle.given, this_row, this, logic.apply("neq", code, wanted)]))
        ends = cycle.given
        if not subject.reduces:
            ends = logic.apply("and", ends, run.field(cycle.out, "last", out=True))
        zero = run.number(0, COUNT_BITS)
        out_place = logic.choose(cycle.given, logic.choose(ends, zero, run.add(out_place)), out_place)
        full = logic.apply("eq", out_rows, run.number(3, 2))
        out_rows = logic.choose(logic.apply("and", ends, logic.invert(full)), run.add(out_rows), out_rows)
    if run.find([logic.apply("ugte", out_rows, run.number(2, 2))]) is None:
        return Counterexample(f"two rows do not come out in {cycles} cycles, whatever the stalls")
    trace = run.find([logic.some(wrong)], sets)
    return None if trace is None else _carried_over(run, trace)


def _of(run: Run, table: list[Bits], place: Bits) -> Bits:
    """An entry of a list."""
    result = table[0]
    for at, entry in enumerate(table):
        result = run.logic.choose(run.logic.apply("eq", place, run.number(at, COUNT_BITS)), entry, result)
    return result


def _beat(run: Run) -> Bits:
    """A beat of the row that arrives: anything in the first row, the subject's rows after it."""
    logic, beat = run.logic, run.any_beat()
    for row in range(3):
        number = row % len(run.subject.rows)
        here = logic.apply("eq", run.rows, run.number(row + 1, 2))
        for place in range(run.subject.beats(number)):
            this = logic.apply("eq", run.place, run.number(place, COUNT_BITS))
            known = run.number(_payload(run, number, place), run.width)
            beat = logic.choose(logic.apply("and", here, this), known, beat)
    return beat


def _payload(run: Run, row: int, place: int) -> int:
    """A beat of one of the subject's rows; lanes that are not kept have ones in them."""
    payload, lanes = 0, run.subject.lanes
    for name, elements in run.subject.rows[row].items():
        low, width, _ = run.fields[name]
        own = elements[place * lanes : (place + 1) * lanes]
        for lane, element in enumerate([*own, *[-1] * (lanes - len(own))]):
            payload |= (element & ((1 << width) - 1)) << (low + width * lane)
        kept = len(own)
    if "keep" in run.fields:
        payload |= ((1 << kept) - 1) << run.fields["keep"][0]
    last = place == run.subject.beats(row) - 1
    return payload | last << run.fields["last"][0]


def _codes_of(run: Run, chosen: int, row: int, place: int) -> Bits:
    """Golden's codes of a beat's kept lanes, as they stand in the payload."""
    _, width, _ = run.out["code"]
    lanes, codes = run.subject.lanes, run.subject.codes[chosen][row]
    own, value = codes[place * lanes : (place + 1) * lanes], 0
    for lane, code in enumerate(own):
        value |= (code & ((1 << width) - 1)) << (width * lane)
    return run.number(value, width * len(own))


def _carried_over(run: Run, trace: Trace) -> Counterexample:
    """The first code that is not golden's."""
    subject = run.subject
    for beat in trace.delivered:
        if beat.row not in (2, 3):
            continue
        chosen = trace.notes[beat.row - 1]
        at = (beat.place - 1) * subject.lanes
        golden = [code % (1 << run.out["code"][1]) for code in subject.codes[chosen][beat.row - 2]]
        golden = golden[at : at + subject.lanes]
        codes = trace.elements(beat.payload, "code", out=True)[: len(golden)]
        if codes != golden:
            which = ("first", "second")[chosen]
            return Counterexample(
                f"row {beat.row}, beat {beat.place}: codes {codes}, golden {golden} (unsigned) with the "
                f"{which} set of parameters, after a first row {trace.row(1)}; {trace.stalls}",
                {"codes": codes, "golden": golden},
            )
    raise AssertionError("the trace has golden's codes")


# ------------------------------------------------------------------------------------------- list

CYCLES = {"softmax": 30, "layernorm": 46, "gelu": 12, "requant": 18, "residual": 18, "attention": 26}
"""Of the runs with any stalls: two rows and more come out."""
RATE_CYCLES = 28
STALLED = 6


def properties() -> list[Property]:
    """All of them."""
    return [each for name in SUBJECTS for each in _of_unit(name)]


def _of_unit(name: str) -> list[Property]:
    subject, cycles = SUBJECTS[name](), CYCLES[name]
    within = subject.latency + STALLED
    stalls = f"{subject.scope}; any beats and stalls in {cycles} cycles from reset on, {SHALLOW}"
    true_depths = f"{subject.scope}; queues as deep as they are built"
    order = (
        "No row is delivered before it was accepted, and none twice."
        if subject.reduces
        else "The n-th beat delivered has keep and last of the n-th accepted, for any n: no beat is lost, "
        "duplicated or reordered, and a row has one last, at its end."
    )
    second = "equal golden's of it alone, with the parameters current at its first beat."
    free = (
        f"{within} cycles after the last stall (golden's latency, and the cycles of stalls before) every "
        "complete row is out and the input is ready."
    )
    claims: list[tuple[str, str, str, Callable[[], Counterexample | None]]] = [
        ("beats in order", order, stalls, partial(keeps_order, name, cycles)),
        (
            "stable under stall",
            "Output that is valid and not taken is there in the next cycle, with the same payload.",
            stalls,
            partial(stable, name, cycles),
        ),
        (
            "valid does not wait for ready",
            "Output valid and payload are no function of output ready.",
            f"{subject.scope}; every state and input",
            partial(valid_alone, name),
        ),
        (
            "memories are whole",
            "No address lies outside its memory: each has a power of two of words.",
            subject.scope,
            partial(whole_memories, name),
        ),
        (
            "no deadlock",
            free,
            f"{true_depths}; any beats and stalls in {STALLED} cycles from reset on",
            partial(progress, name, STALLED, within),
        ),
        (
            "full rate",
            "While every cycle offers a beat and takes one, the input is always ready.",
            f"{true_depths}; rows of any length in {RATE_CYCLES} cycles from reset on",
            partial(full_rate, name, RATE_CYCLES),
        ),
        (
            "nothing carried over",
            f"After any first row, whatever its beats, the codes of a row {second}",
            f"{stalls}; rows of numbers behind a first one of anything, new parameters meanwhile",
            partial(independent, name, cycles),
        ),
    ]
    return [Property(name, title, "stream", claim, scope, check) for title, claim, scope, check in claims]

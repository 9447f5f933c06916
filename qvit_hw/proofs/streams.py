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

from qvit_hw.proofs.independence import independent
from qvit_hw.proofs.logic import Bits
from qvit_hw.proofs.property import Counterexample, Property
from qvit_hw.proofs.runs import COUNT_BITS, Run, Trace
from qvit_hw.proofs.subjects import SHALLOW, SUBJECTS, Depths

__all__ = [
    "full_rate",
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
    free = (
        f"{within} cycles after the last stall (golden's latency, and the cycles of stalls before) every "
        "complete row is out and the input is ready."
    )
    alone = "After any first row a row has the codes that it has alone, with the parameters as it begins."
    elements = ("rows of numbers", "one of two rows of any elements", "rows of any elements")
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
            alone,
            f"{stalls}; {elements[len(subject.anything)]} behind the first, new parameters meanwhile",
            partial(independent, name, cycles),
        ),
    ]
    return [Property(name, title, "stream", claim, scope, check) for title, claim, scope, check in claims]

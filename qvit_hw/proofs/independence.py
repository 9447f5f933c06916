# SPDX-License-Identifier: Apache-2.0
"""Rows that know nothing of each other: after any first row a row has the codes that it has alone.

Alone is: the first row after reset, always offered and always taken. Its elements are the same in both runs;
where the solver takes it, anything. Of the subject's rows of numbers the codes alone must be golden's.
"""

from __future__ import annotations

from collections.abc import Sequence

from qvit_hw.proofs.logic import Bits
from qvit_hw.proofs.property import Counterexample
from qvit_hw.proofs.runs import COUNT_BITS, Run, Trace
from qvit_hw.proofs.subjects import SHALLOW, SUBJECTS, Depths

__all__ = ["alone", "independent"]


def independent(name: str, cycles: int, depths: Depths | None = SHALLOW) -> Counterexample | None:
    """After any first row, rows have the codes of them alone, with the parameters of their first beat.

    The first row has any beats; the second is as long as the subject's first one, the third as its second one
    and so on in turns. The last three words of the second set of parameters are written from the first cycle
    on, and then a word of it again, which goes to the bank of the rows that came before and has to wait for
    them.
    """
    run = Run(SUBJECTS[name](), depths)
    wrong_alone = _not_golden(run)
    if wrong_alone is not None:
        return wrong_alone
    logic, subject = run.logic, run.subject
    rows = [_beats(run, row, anything=row in subject.anything) for row in (0, 1)]
    wanted = [[alone(run, chosen, row, rows[row]) for row in (0, 1)] for chosen in (0, 1)]
    run.state = run.circuit.initial(logic)
    run.prepare()
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
        before = run.rows
        cycle, outputs = run.advance(beat=_beat(run, rows), word=(more, _of(run, table, written)))
        opens = logic.apply("and", opens, cycle.taken)
        for at in range(4):
            here = logic.apply("and", opens, logic.apply("eq", before, run.number(at, 2)))
            sets[at] = logic.choose(here, committed, sets[at])
        written = run.add(written, logic.apply("and", more, outputs["params__ready"]))

        for row in (1, 2):
            this_row = logic.apply("eq", out_rows, run.number(row, 2))
            for place, codes in enumerate(zip(*(wanted[chosen][row - 1] for chosen in (0, 1)), strict=True)):
                this = logic.apply("eq", out_place, run.number(place, COUNT_BITS))
                code = logic.slice(run.field(cycle.out, "code", out=True), codes[0].width - 1, 0)
                differs = logic.apply("neq", code, logic.choose(sets[row], codes[1], codes[0]))
                wrong.append(logic.every([cycle.given, this_row, this, differs]))
        ends = cycle.given
        if not subject.reduces:
            ends = logic.apply("and", ends, run.field(cycle.out, "last", out=True))
        zero = run.number(0, COUNT_BITS)
        out_place = logic.choose(cycle.given, logic.choose(ends, zero, run.add(out_place)), out_place)
        full = logic.apply("eq", out_rows, run.number(3, 2))
        out_rows = logic.choose(logic.apply("and", ends, logic.invert(full)), run.add(out_rows), out_rows)
    if run.find([logic.apply("ugte", out_rows, run.number(2, 2))]) is None:
        return Counterexample(f"two rows do not come out in {cycles} cycles, whatever the stalls")
    notes = [*sets, *(code for each in wanted for row in each for code in row)]
    trace = run.find([logic.some(wrong)], notes)
    return None if trace is None else _carried_over(run, trace, wanted)


def alone(run: Run, chosen: int, row: int, beats: Sequence[Bits]) -> list[Bits]:
    """The codes of a row as the first after reset, with a set of parameters: kept lanes, beat by beat."""
    run.state = run.circuit.initial(run.logic)
    run.prepare(chosen)
    one, found, left = run.number(1), list[Bits](), list(beats)
    for _ in range(2 * run.subject.latency + 8):
        outputs = run.step(valid=one if left else None, beat=left[0] if left else None, ready=one)
        if left and outputs["i__ready"].value == 1:
            del left[0]
        if outputs["o__valid"].value == 1:
            code = run.field(outputs["o__payload"], "code", out=True)
            found.append(run.logic.slice(code, _width(run, row, len(found)) - 1, 0))
    assert len(found) == (1 if run.subject.reduces else len(beats)), "a row alone comes out whole"
    return found


def _not_golden(run: Run) -> Counterexample | None:
    """The first of the subject's rows of numbers whose codes alone are not golden's."""
    subject = run.subject
    for chosen, codes in enumerate(subject.codes):
        for row, golden in enumerate(codes):
            found = [code.value for code in alone(run, chosen, row, _beats(run, row))]
            wanted = [_packed(run, golden, at) for at in range(len(found))]
            if found != wanted or not found:
                which = ("first", "second")[chosen]
                told = f"row {row + 1} of numbers, alone, with the {which} set of parameters"
                return Counterexample(f"{told}: codes {found}, golden {wanted}")
    return None


def _of(run: Run, table: list[Bits], place: Bits) -> Bits:
    """An entry of a list."""
    result = table[0]
    for at, entry in enumerate(table):
        result = run.logic.choose(run.logic.apply("eq", place, run.number(at, COUNT_BITS)), entry, result)
    return result


def _beat(run: Run, rows: Sequence[Sequence[Bits]]) -> Bits:
    """A beat of the row that arrives: anything in the first row, the two rows in turns after it."""
    logic, beat = run.logic, run.any_beat()
    for row in range(3):
        here = logic.apply("eq", run.rows, run.number(row + 1, 2))
        for place, known in enumerate(rows[row % 2]):
            this = logic.apply("eq", run.place, run.number(place, COUNT_BITS))
            beat = logic.choose(logic.apply("and", here, this), known, beat)
    return beat


def _beats(run: Run, row: int, *, anything: bool = False) -> list[Bits]:
    """A row of the subject's, or one of any elements in all lanes, of the same length."""
    marks = min(run.fields[name][0] for name in ("keep", "last") if name in run.fields)
    beats = []
    for place in range(run.subject.beats(row)):
        payload = _payload(run, row, place)
        known, elements = run.number(payload >> marks, run.width - marks), run.number(payload, marks)
        beats.append(run.logic.concat(known, run.logic.free(marks, "elements") if anything else elements))
    return beats


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


def _width(run: Run, row: int, place: int) -> int:
    """Bits of the codes of a beat's kept lanes."""
    lanes, codes = run.subject.lanes, run.subject.codes[0][row]
    return run.out["code"][1] * len(codes[place * lanes : (place + 1) * lanes])


def _packed(run: Run, codes: Sequence[int], place: int) -> int:
    """Codes of a beat as they stand in the payload."""
    _, width, _ = run.out["code"]
    lanes, value = run.subject.lanes, 0
    for lane, code in enumerate(codes[place * lanes : (place + 1) * lanes]):
        value |= (code & ((1 << width) - 1)) << (width * lane)
    return value


def _carried_over(run: Run, trace: Trace, wanted: Sequence[Sequence[Sequence[Bits]]]) -> Counterexample:
    """The first codes that a row does not have alone."""
    _, width, _ = run.out["code"]
    notes = iter(trace.notes[4:])
    numbers = [[[next(notes) for _ in row] for row in each] for each in wanted]
    for beat in trace.delivered:
        if beat.row not in (2, 3):
            continue
        chosen = trace.notes[beat.row - 1]
        own = numbers[chosen][beat.row - 2][beat.place - 1]
        count = _width(run, beat.row - 2, beat.place - 1) // width
        own_codes = [own >> width * lane & ((1 << width) - 1) for lane in range(count)]
        codes = trace.elements(beat.payload, "code", out=True)[:count]
        if codes != own_codes:
            which = ("first", "second")[chosen]
            return Counterexample(
                f"row {beat.row}, beat {beat.place}: codes {codes}, alone {own_codes} (unsigned) with the "
                f"{which} set of parameters, of {trace.row(beat.row)} after a first row {trace.row(1)}; "
                f"{trace.stalls}",
                {"codes": codes, "alone": own_codes},
            )
    raise AssertionError("the trace has the codes of rows alone")

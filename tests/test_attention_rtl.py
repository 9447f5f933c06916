# amaranth: UnusedElaboratable=no
# SPDX-License-Identifier: Apache-2.0
"""The unit of codes and v against golden, every row's cycles, and the bugs that the rows must see."""

from __future__ import annotations

import json
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
from amaranth.hdl import Const
from attend_runs import check, run

import rtl.arith
import rtl.attention
import rtl.requant
import rtl.stream
from golden.attend_unit import attend_pipeline, attend_words
from golden.attention import ATTEND_GRID, AttendSpec
from golden.cycles import OUTPUT_DEPTH
from golden.requant import RequantParams
from golden.softmax import SoftmaxSpec, corner_rows, softmax
from qvit_hw import mutate
from qvit_hw.mutation.attention import MODULE, HeadUnit
from qvit_hw.simulate import find_tools
from rtl.attention import ShiftAttend, meanings
from sim.bench import JOB_VARIABLE
from sim.head_cases import corner_heads, drawn, one_head
from sim.heads import PORTS, Head, HeadJob, Told
from sim.runner import run_tests

ROOT = AttendSpec(
    codes="any", out_bits=16, softmax=SoftmaxSpec(base="sqrt2", code_bits=3, max_tokens=20)
)
"""Base sqrt 2, with accumulators that fit a code: with a factor of 1 every bit of them shows."""
OCTAVE = AttendSpec(codes="any", out_bits=16, softmax=SoftmaxSpec(code_bits=3, max_tokens=20))
"""The same to base 2."""


@pytest.mark.parametrize("spec", ATTEND_GRID, ids=lambda spec: str(ATTEND_GRID.index(spec)))
def test_corners(spec):
    check(ShiftAttend(spec, lanes=3), list(corner_heads(spec)))


@pytest.mark.parametrize("spec", [ATTEND_GRID[0], ATTEND_GRID[1]])
def test_rows_of_the_softmax(spec):
    """Codes as they come, in accumulators that only a softmax's codes leave whole."""
    rng, value = np.random.default_rng(3), spec.bounds["value"]
    shift = np.array([spec.bounds["acc"].bits + 16 - spec.out_bits])
    params = RequantParams(multiplier=np.array([50000]), shift=shift, zero_point=3)
    heads = []
    for _, scores, mask, given in corner_rows(spec.softmax):
        if np.size(scores) <= 200:
            codes = softmax(np.asarray(scores), spec.softmax, given, mask).astype(np.int64).ravel()
            v = rng.integers(value.low, value.high, (codes.size, 2), endpoint=True)
            heads.append(Head([codes, codes[::-1]], v, params))
    assert len(heads) > 10
    check(ShiftAttend(spec, lanes=2), heads)


@pytest.mark.parametrize(("spec", "lanes"), [(ROOT, 1), (OCTAVE, 5), (ROOT, 8), (OCTAVE, 32)])
def test_random_rows_of_any_length(spec, lanes):
    lengths = (20, 1, 1, 2, 19, 3, 7)
    check(ShiftAttend(spec, lanes=lanes), [drawn(spec, lanes, lengths, 16, seed) for seed in range(4)])


def test_narrow_multipliers_change_neither_codes_nor_cycles():
    spec = ATTEND_GRID[3]
    check(ShiftAttend(spec, lanes=3, port_bits=18), list(corner_heads(spec))[:12])


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("spec", [ROOT, OCTAVE])
def test_stalls_at_every_port(spec, seed):
    heads = [drawn(spec, 3, (5, 1, 1, 1, 20, 2, 1), 16, seed + turn) for turn in range(6)]
    check(ShiftAttend(spec, lanes=3), heads, stalls=seed)


# ---------------------------------------------------------------------------------------- cycles


def test_the_cycle_model():
    assert attend_pipeline(AttendSpec(), 8).drain == 13
    assert attend_pipeline(ROOT, 8).latency(197) == 196 + 16
    (first, second) = attend_pipeline(ROOT, 8).schedule([3, 2], 5)
    assert (first.first_in, first.last_in, first.first_out, first.last_out) == (5, 7, 23, 23)
    assert (second.first_in, second.last_out) == (8, 25)
    with pytest.raises(ValueError, match=r"^Lanes must be from 1 to 32, not 33$"):
        attend_pipeline(ROOT, 33)


@pytest.mark.parametrize("spec", [ROOT, OCTAVE])
def test_rows_of_one_code_leave_one_a_cycle(spec):
    check(ShiftAttend(spec, lanes=2), [drawn(spec, 2, (1,) * 60)])


def test_a_queue_as_short_as_the_latency_is_seen(monkeypatch):
    queue = rtl.attention.OutputQueue
    monkeypatch.setattr(rtl.attention, "OutputQueue", lambda layout, _: queue(layout, OUTPUT_DEPTH))
    with pytest.raises(AssertionError):
        check(ShiftAttend(ROOT, lanes=2), [drawn(ROOT, 2, (1,) * 60)])


def test_a_head_follows_the_one_before_without_a_gap():
    """Its v and parameters came in meanwhile; the third head's v waits for the first head's bank."""
    lengths = (12, 12, 12)
    heads = [drawn(ROOT, 2, lengths, 16, seed) for seed in range(4)]
    seen = check(ShiftAttend(ROOT, lanes=2), heads)
    assert seen.first[1:] == [last + 1 for last in seen.last[:-1]]
    assert seen.tokens[12] < seen.first[1], "the second v comes in while the first row does"
    assert seen.tokens[24] == seen.last[2] + 1, "behind the first head's last code, which has read its v"


def test_ports_that_never_wait_are_seen(monkeypatch):
    class Always:
        def __init__(self, values):
            pass

        def __getitem__(self, index):
            return Const(1)

    monkeypatch.setattr(rtl.stream, "Array", Always)
    with pytest.raises(AssertionError):
        check(ShiftAttend(ROOT, lanes=2), [drawn(ROOT, 2, (12, 12), 16, seed) for seed in range(4)])


# ----------------------------------------------------------------------------------- seeded bugs


def parity_ignored(spec):
    shifts, sums = meanings(spec)
    return shifts, [min(each, 1) for each in sums]


def last_counted(spec):
    shifts, sums = meanings(spec)
    return shifts, [*sums[:-1], 1]


def without_half(value, bits):
    return value >> bits


def settled_without_half(value, after, bits):
    near = rtl.arith.saturated(value, bits + 2)
    return rtl.arith.saturated((near >> 1) + after, bits)


def unsigned_second(m, a, b, name, **ports):
    """The requantiser's accumulator without its sign."""
    return rtl.arith.product(m, a, b.as_unsigned(), name, **ports)


def unsigned_first(m, a, b, name, **ports):
    """The odd codes' sum without its sign."""
    return rtl.arith.product(m, a.as_unsigned(), b, name, **ports)


def early(name):
    return lambda m, value, cycles, called: rtl.arith.carried(m, value, cycles - (called == name), called)


def never(name):
    return lambda m, value, cycles, called: rtl.arith.carried(
        m, Const(0) if called == name else value, cycles, called
    )


BUGS = [
    (ROOT, rtl.attention, "meanings", parity_ignored),
    (ROOT, rtl.attention, "meanings", last_counted),
    (OCTAVE, rtl.attention, "meanings", last_counted),
    (ROOT, rtl.attention, "nearest", without_half),
    (ROOT, rtl.attention, "product", unsigned_first),
    (ROOT, rtl.attention, "carried", early("even_now_0")),
    (OCTAVE, rtl.attention, "carried", early("goes")),
    (OCTAVE, rtl.attention, "carried", early("rest")),
    (OCTAVE, rtl.attention, "carried", early("v")),
    (OCTAVE, rtl.attention, "carried", never("opening")),
    (OCTAVE, rtl.requant, "product", unsigned_second),
    (OCTAVE, rtl.requant, "settled", settled_without_half),
    (ROOT, rtl.requant, "carried", early("shift_now_1")),
]


@pytest.mark.parametrize(("spec", "module", "name", "bug"), BUGS)
def test_a_seeded_bug_is_seen(spec, module, name, bug, monkeypatch):
    shifts = (15, 15) if module is rtl.attention else (17, 15, 16)
    heads = [drawn(spec, 2, (1, 9, 20, 2), shift) for shift in shifts]
    check(ShiftAttend(spec, lanes=2), heads)
    monkeypatch.setattr(module, name, bug)
    seen = run(ShiftAttend(spec, lanes=2), heads)
    assert seen.codes != [codes for head in heads for codes in head.golden(spec)]


@pytest.mark.parametrize(("code", "spec"), [(23, ATTEND_GRID[5]), (62, ATTEND_GRID[6])])
def test_codes_below_the_deepest_octave_count_nothing(code, spec, monkeypatch):
    """Nor would they if a shift below zero became one of zero: that is seen."""
    (head,) = [drawn(spec, 2, (2,), 15)]
    head = Head([np.array([code, code])], np.full((2, 2), 100), head.params)
    check(ShiftAttend(spec, lanes=2), [head])
    shifts, sums = meanings(spec)
    monkeypatch.setattr(rtl.attention, "meanings", lambda _: (shifts, [each or 1 for each in sums]))
    with pytest.raises(AssertionError):
        check(ShiftAttend(spec, lanes=2), [head])


# --------------------------------------------------------------------------------------- Verilog

SMALL = HeadUnit("attention", ROOT, only=("heads_of_one", "sets_late", "nothing_leaves", "reset_after_30"))


def code(case):
    case.expected[7][1] ^= 1


def cycle(port):
    def shifted(case):
        case.cycles[port][-1] += 1

    return shifted


EDITS = (
    *((name, lambda case: None, None) for name in SMALL.only),
    ("heads_of_one", code, "row 7, lane 1, cycle"),
    *(("heads_of_one", cycle(port), f"case heads_of_one: {port} transfer") for port in PORTS),
    ("sets_late", lambda case: case.expected.append([0] * 3), "nothing moves in"),
    ("sets_late", lambda case: case.expected.pop(), "a row that no codes asked for"),
    ("nothing_leaves", lambda case: setattr(case, "filled", 33), "must hold 33 codes, not 32"),
)
"""Cases, what golden expects of them edited, what the testbench says."""


def test_its_verilog_does_what_golden_expects_and_nothing_else(tmp_path):
    job = HeadJob.of(SMALL.cases(), ROOT, 3)
    simulation, _ = SMALL.built(SMALL.verilog(), tmp_path, find_tools("verilator"), SMALL.cases())
    cases = []
    for name, edit, _ in EDITS:
        told = SimpleNamespace(**deepcopy(vars(next(case for case in job.cases if case.name == name))))
        edit(told)
        cases.append(Told(**vars(told)))
    HeadJob(3, job.out_bits, cases).write(tmp_path)
    tests = [f"{MODULE}.rows/case={at}" for at in range(len(EDITS))]
    faults = run_tests(simulation, MODULE, tests, tmp_path, env={JOB_VARIABLE: str(tmp_path)})
    for (_, _, said), fault in zip(EDITS, faults.values(), strict=True):
        assert (fault is None) if said is None else said in (fault or "")


@pytest.mark.parametrize(
    ("only", "count", "status"),
    [(("ties", "stall_o_full", "strays", "unsaturated", "crossed_both"), 16, 0), (("heads_of_one",), 24, 1)],
)
def test_its_mutants_are_found_but_not_by_a_poor_testbench(only, count, status, tmp_path):
    unit = HeadUnit("attention", ROOT, only=only)
    assert mutate.run(out=tmp_path, count=count, subjects=[unit], patience=1) == status
    (told,) = json.loads((tmp_path / "mutation.json").read_text())["units"]
    assert (told["survived"] > 0) == status


# ----------------------------------------------------------------------------------------- words


def test_words_are_a_heads_own():
    two = RequantParams(multiplier=np.array([40000, 50000]), shift=np.array([9, 10]), zero_point=-3)
    assert attend_words(two, AttendSpec(), 1) == [(0, 50000), (1, 10), (2, (1 << 32) - 3), (3, 0)]
    assert attend_words(one_head(two, 0), AttendSpec(), 1)[0] == (0, 40000)
    with pytest.raises(ValueError, match=r"^Zero point must be from -8 to 7, not 8$"):
        attend_words(
            RequantParams(multiplier=np.array([40000]), shift=np.array([9]), zero_point=8),
            AttendSpec(out_bits=4),
            0,
        )

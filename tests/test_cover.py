# SPDX-License-Identifier: Apache-2.0
"""Coverage of a tiny unit: what is hit, what is not, and the reader of Verilator's counts."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from time import sleep

import pytest
from sim_units import make_unit

from golden.softmax import SoftmaxSpec
from qvit_hw import cover
from qvit_hw.covering import accelerator
from qvit_hw.covering.counts import Counted, Gap, Place, parse
from qvit_hw.covering.subjects import Found, RowUnit
from qvit_hw.errors import UserError
from qvit_hw.mutation.accelerator import UNITS
from qvit_hw.mutation.attention import HEAD_UNITS
from qvit_hw.trial import Desk, trial, wide_trial
from sim.accelerator import TOP
from sim.accelerator_corners import measure_session
from sim.corners import BINS, FEATURES
from sim.coverage import Point, count, measure, rows_of
from sim.head_corners import measure_heads
from sim.heads import PORTS
from sim.runner import RunFailed
from sim.scenarios import operator, scenarios

TINY = SoftmaxSpec(max_tokens=16)


@pytest.fixture(scope="module")
def unit(tmp_path_factory):
    return make_unit("softmax", TINY, 4, tmp_path_factory.mktemp("unit"))


def test_the_scenarios_hit_every_bin(unit):
    points = measure("softmax", operator("softmax", unit.spec), unit.lanes, scenarios(unit))
    assert {point.name: point.missed for point in points if point.missed} == {}
    crossing = points[-1]
    assert crossing.name == "stall in x stall out x length x params change"
    assert len(crossing.bins) == 2 * 2 * 6 * 2
    assert sum(len(point.bins) for point in points) > 100


def test_a_bin_that_no_row_hits_is_told(unit):
    cases = [case for case in scenarios(unit) if not case.name.startswith("crossed")]
    points = measure("softmax", operator("softmax", unit.spec), unit.lanes, cases)
    assert "yes, yes, longer, yes" in points[-1].missed
    some = measure("softmax", operator("softmax", unit.spec), unit.lanes, cases[:1])
    missed = {point.name: point.missed for point in some}
    assert "maximum masked" not in missed["mask"] or "all masked" in missed["mask"]
    assert "just above code 3" in missed["threshold"] or "all minimum" in missed["row"]


def test_every_sample_counts_and_nothing_else():
    samples = [{"a": {"x", "y"}, "b": 1, "c": False}, {"a": set()}, {"a": {"x"}, "b": 2, "c": True}]
    points = count("u", {"a": "xyz"}, {"b": [1, 2], "c": [False, True]}, samples)
    found = {point.name: point.bins for point in points}
    assert found["a"] == {"x": 2, "y": 1, "z": 0}
    assert found["b x c"] == {"1, no": 1, "1, yes": 0, "2, no": 0, "2, yes": 1}


def test_designs_that_are_counted_at_once_do_not_meet():
    def slow():
        for _ in range(20):
            sleep(0.001)  # another thread goes on
            yield {"b": 1, "c": True}

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda top: count(top, {}, {"b": [1, 2], "c": [False, True]}, slow()), "pqrs"))
    assert [[point.bins for point in points] for points in found] == [[p.bins for p in found[0]]] * 4
    assert max(found[0][0].bins.values()) == 20



def test_rows_are_sampled_with_the_parameters_they_were_computed_with(unit):
    op = operator("softmax", unit.spec)
    for case in scenarios(unit):
        computed = [op.golden(sample.row) for sample in rows_of(case, op)]
        assert [code for row in computed for code in row.tolist()] == case.expected.tolist(), case.name


@pytest.mark.parametrize("unit", HEAD_UNITS, ids=lambda unit: unit.name)
def test_the_heads_hit_every_bin_and_fewer_do_not(unit):
    waits = dict.fromkeys(PORTS, 1)
    cases = unit.cases()
    points = measure_heads(unit.name, unit.spec, cases, [waits] * len(cases))
    assert {point.name: point.missed for point in points if point.missed} == {}
    assert len(points[-1].bins) == 2 * 2 * 4 * 2
    few = [case for case in cases if case.name not in ("corners", "ties", "crossed_both")]
    points = measure_heads(unit.name, unit.spec, few, [waits | {"i": 0}] * len(few))
    missed = {point.name: point.missed for point in points if point.missed}
    assert missed["waits"] == ["i"]
    assert missed["acc"]
    assert ("tie of the root" in missed) == (unit.spec.per_octave == 2)
    assert "yes, yes, two, yes" in points[-1].missed


@pytest.mark.parametrize("desk", [trial, wide_trial])
def test_the_runs_of_the_accelerator_hit_every_bin_and_networks_alone_do_not(desk, tmp_path):
    desk = desk()
    desk.prepared(tmp_path)
    points = measure_session(desk.spec, desk.session, tmp_path / "memory.bin")
    assert set(points) == set(UNITS)
    missed = {(unit, p.name): p.missed for unit, found in points.items() for p in found}
    assert {name: bins for name, bins in missed.items() if bins} == {}
    poor = Desk(desk.spec)
    poor.memory, poor.runs = desk.memory, desk.runs[:1]
    points = measure_session(desk.spec, poor.session, tmp_path / "memory.bin")
    missed = {(unit, p.name): p.missed for unit, found in points.items() for p in found}
    assert all(any(bins for (unit, _), bins in missed.items() if unit == each) for each in UNITS)
    assert "abandoned" in missed["control", "ends"]
    assert "BUS" in missed["control", "ends"]


@pytest.mark.parametrize("fault", [None, "output 0 must be 1, not 2"])
def test_the_accelerator_s_counts_are_told_by_unit(fault, tmp_path, monkeypatch):
    """What the simulator leaves is given; to build one with all counters takes too long for a test."""
    modules = ("qvit_accelerator_bus", "qvit_accelerator_bus_queue", "qvit_accelerator_core_softmax_unit")
    written = [record("branch", module, 2, "if", f"bench.{module}", at) for at, module in enumerate(modules)]

    def ran(simulation, module, names, folder, **more):
        (folder / "coverage.dat").write_text("".join(written), encoding="latin-1")
        return dict.fromkeys(names, fault)

    def built(tools, verilog, spec, folder, counters):
        (folder / f"{TOP}.v").write_text("module bench;\n  a <= b;\n", encoding="utf-8")

    monkeypatch.setattr(accelerator, "build_bench", built)
    monkeypatch.setattr(accelerator, "run_tests", ran)
    subject = accelerator.ACCELERATORS[0]
    if fault is not None:
        with pytest.raises(RunFailed, match=f"^accelerator fails: .*{fault}"):
            subject.run(tmp_path, None)
        return
    found = subject.run(tmp_path, None)
    assert tuple(found) == subject.units
    assert {unit: each.counted.share("line") for unit, each in found.items() if each.counted.hits} == {
        "dma": (1, 2)
    }


@pytest.mark.parametrize("name", BINS)
def test_every_operator_has_bins_and_features_of_the_same_names(name):
    assert BINS.keys() == FEATURES.keys()
    from qvit_hw.generate import DEFAULTS

    op = operator(name, asdict(DEFAULTS[name]))
    row = op.corners()[0][1]
    assert FEATURES[name](op.spec, row, op.trace(row)).keys() == BINS[name](op.spec).keys()


def record(kind, module, line, what, instance, count):
    """A line as Verilator writes it."""
    told = {"f": "u.v", "l": line, "n": 3, "t": kind, "page": f"v_{kind}/{module}", "o": what, "h": instance}
    return "C '" + "".join(f"\x01{key}\x02{value}" for key, value in told.items()) + f"' {count}\n"


RECORDS = "# SystemC::Coverage-3\n" + "".join(
    record(*each)
    for each in (
        ("branch", "top", 2, "if", "top.a", 0),
        ("branch", "top", 2, "if", "top.b", 4),
        ("line", "top", 3, "else", "top.a", 0),
        ("toggle", "top", 1, "a__02eb[3]:0->1", "top.a", 0),
        ("toggle", "top", 1, "__0247[3]:0->1", "top.a", 0),
        ("toggle", "other", 1, "x:0->1", "top.c", 1),
    )
)


def test_counts_are_read_added_up_and_explained(tmp_path):
    (tmp_path / "coverage.dat").write_text(RECORDS, encoding="latin-1")
    counted = parse(tmp_path / "coverage.dat", "module top;\n  if (a) b;\n  else c;\n")
    assert counted.modules() == ["top", "other"]
    assert counted.share("line") == (1, 2)
    assert counted.share("toggle", "top") == (0, 1)
    assert counted.share("toggle") == (1, 2)
    lost = Place("top", "line", 3, "else c;", "else 3")
    bit = Place("top", "toggle", 1, "a.b[3]:0->1")
    reasons = [("line", "else", "why"), ("toggle", "line", "no")]
    assert counted.gaps(reasons) == [Gap(lost, "why"), Gap(bit, "")]
    assert parse(tmp_path / "coverage.dat", "\n\n\n", only="other").modules() == ["other"]
    assert Counted({}).share("line") == (0, 0)


class Told:
    """A subject that says what it found of its two units."""

    name, what, units = "both", "told", ("good", "told")

    def __init__(self, missed=0, hits=1, text="c <= d;"):
        places = {Place("told", "line", line, "a <= b;"): 1 for line in range(200)}
        found = Found([Point("p", {"one": 1, "two": 1 - missed})], Counted(places | {}))
        found.counted.hits[Place("told", "line", 500, text)] = hits
        self.found = {"good": Found([Point("p", {"one": 1})], Counted(places)), "told": found}

    def run(self, folder, tools):
        return self.found


@pytest.mark.parametrize(
    ("subject", "status"),
    [
        (Told(), 0),
        (Told(missed=1), 1),
        (Told(hits=0), 1),
        (Told(hits=0, text="if (wake_up_3 ) begin end"), 0),
    ],
)
def test_a_missed_bin_and_a_gap_without_reason_make_status_1(subject, status, tmp_path):
    assert cover.run(out=tmp_path, subjects=[subject]) == status
    good, unit = json.loads((tmp_path / "coverage.json").read_text())["units"]
    assert (good["unit"], good["passed"]) == ("good", True)
    assert unit["passed"] == (status == 0)
    assert cover.run(out=tmp_path, subjects=[subject], only=["good"]) == 0
    assert len(json.loads((tmp_path / "coverage.json").read_text())["units"]) == 1


def test_a_testbench_that_leaves_a_bin_makes_status_1(tmp_path):
    poor = RowUnit("softmax", SoftmaxSpec(max_tokens=4, code_bits=3), 1, only=("mixed_lengths",))
    assert cover.run(out=tmp_path, subjects=[poor]) == 1
    document = json.loads((tmp_path / "coverage.json").read_text())
    (unit,) = document["units"]
    assert not document["passed"]
    assert unit["missed"] == sum(len(point["missed"]) for point in unit["points"]) > 0
    assert 0.5 < unit["line"]["share"] < 1
    assert {gap["kind"] for gap in unit["gaps"]} == {"line", "toggle"}
    assert (tmp_path / "coverage.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("options", "said"),
    [({"jobs": 0}, "Processes must be at least 1"), ({"only": ["sofmax"]}, "No unit is called 'sofmax'")],
)
def test_what_cannot_be_is_refused(options, said, tmp_path):
    with pytest.raises(UserError, match=f"^{said}"):
        cover.run(out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()

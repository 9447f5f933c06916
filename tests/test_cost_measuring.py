# SPDX-License-Identifier: Apache-2.0
"""Costs: how a unit is measured, what the cache holds of it, and what is counted in what tools say."""

import json
import re
from dataclasses import replace

import pytest

from golden.gelu import GeluSpec
from qvit_hw.costing import cache, measuring, targets
from qvit_hw.costing.measuring import Task, measure, measure_all, tasks_for
from qvit_hw.costing.targets import TARGETS
from qvit_hw.costing.units import DEFAULT_UNITS, UNITS, unit_rtlil
from qvit_hw.costing.yosys import Failed, run_passes
from qvit_hw.errors import UserError

TINY = Task("gelu", 1, "xcup", spec=GeluSpec(in_bits=4, out_bits=4))
SAID = """Info: Device utilisation:
Info: 	          TRELLIS_COMB:    2544/  83640     3%
Info: 	            TRELLIS_FF:    1862/  83640     2%
Info: 	                DP16KD:       6/    208     2%
Info: 	            MULT18X18D:       0/    156     0%
Info: Max frequency for clock '$glbnet$clk': 128.11 MHz (FAIL at 150.00 MHz)
Info: Max frequency for clock '$glbnet$clk': 122.41 MHz (FAIL at 150.00 MHz)
"""
"""What nextpnr printed of the softmax at 8 lanes, shortened: the second frequency is the routed one."""


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QVIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# ------------------------------------------------------------------------------------- measuring


def test_a_unit_is_measured_once_and_again_when_its_entry_was_changed(own_cache, monkeypatch):
    first = measure(TINY)
    assert first.figures["LUT"] > 10
    assert first.figures["FF"] > 10
    assert first.figures["DSP"] == 0
    assert first.density == 1 / first.figures["LUT"]
    (entry,) = (own_cache / "cost").iterdir()
    stored = json.loads(entry.read_text())
    runs = []
    monkeypatch.setattr(measuring, "_run", lambda *task: runs.append(task) or stored["value"])
    assert measure(TINY) == first
    assert runs == []
    for damage in (
        lambda found: found["value"]["figures"].update(LUT=1),
        lambda found: found.update(key="other"),
        lambda found: found.pop("sha256"),
    ):
        changed = json.loads(json.dumps(stored))
        damage(changed)
        entry.write_text(json.dumps(changed))
        runs.clear()
        assert measure(TINY) == first
        assert len(runs) == 1
    entry.write_text("{")
    assert measure(TINY) == first
    assert len(runs) == 2


def test_the_cache_s_key_holds_all_that_figures_depend_on(own_cache, monkeypatch):
    keys = []
    monkeypatch.setattr(cache, "load", lambda key: keys.append(key) or {"figures": {}, "parts": {}})
    measure(TINY)
    measure(TINY)
    assert keys[0] == keys[1]
    measure(replace(TINY, spec=GeluSpec(in_bits=5, out_bits=4)))
    measure(replace(TINY, variant="no DSP"))
    monkeypatch.setattr(measuring, "tool_versions", lambda *_: {"pyosys": "0"})
    measure(TINY)
    monkeypatch.setattr(measuring, "COUNTING", 0)
    measure(TINY)
    assert len(set(keys)) == 5


def test_a_tool_that_fails_leaves_a_note_and_nothing_in_the_cache(own_cache, monkeypatch):
    def fail(*_):
        raise Failed("ERROR: no such cell")

    monkeypatch.setattr(measuring, "_run", fail)
    (found,) = measure_all([TINY], 1)
    assert found.figures == {"note": "failed: ERROR: no such cell"}
    assert not (own_cache / "cost").exists()


def test_an_error_of_yosys_is_told_in_its_words(tmp_path):
    with pytest.raises(Failed, match=r"ERROR: .*nonsense"):
        run_passes(["nonsense"], tmp_path)


def test_latches_are_refused_and_registers_are_not(tmp_path):
    flop = 'cell $dff \\r\n parameter \\WIDTH 1\n parameter \\CLK_POLARITY 1\n connect \\CLK \\c\n'
    latch = 'cell $dlatch \\r\n parameter \\WIDTH 1\n parameter \\EN_POLARITY 1\n connect \\EN \\c\n'
    for name, cell in (("flop", flop), ("latch", latch)):
        folder = tmp_path / name
        folder.mkdir()
        text = (
            "module \\top\n wire input 1 \\c\n wire input 2 \\d\n wire output 3 \\q\n"
            f" {cell} connect \\D \\d\n connect \\Q \\q\n end\nend\n"
        )
        (folder / "unit.il").write_text(text)
        run_passes(targets._READ, folder)
    targets._no_latches(tmp_path / "flop")
    with pytest.raises(Failed, match="latches"):
        targets._no_latches(tmp_path / "latch")


@pytest.mark.parametrize("name", DEFAULT_UNITS)
def test_every_unit_has_its_rtlil(name):
    chained = unit_rtlil(name, 1, 27, chained=True)
    (top,) = re.findall(r"(?ms)^module \\top$.*?^end$", chained)
    ports = re.findall(r"^  wire (?:width \d+ )?(?:input|output) \d+ +(\S+)$", top, re.M)
    assert sorted(ports) == ["\\clk", "\\first", "\\parity", "\\rst"]


def test_the_same_unit_gives_the_same_text():
    text = unit_rtlil("gelu", 1, 27)
    unit_rtlil.cache_clear()
    assert unit_rtlil("gelu", 1, 27) == text
    assert unit_rtlil("gelu", 2, 27) != text


def test_defaults_leave_the_accelerator_out_and_take_it_by_name():
    tasks = tasks_for(DEFAULT_UNITS, list(TARGETS), None)
    assert {task.unit for task in tasks} == set(UNITS) - {"accelerator"}
    named = tasks_for(["accelerator"], list(TARGETS), None)
    assert [(task.target, task.lanes) for task in named] == [("xcup", 16), ("ecp5", 16)]


HIERARCHY = """module \\top.core.array
 wire input 1 \\clk
 wire width 4 input 2 \\d
 wire width 4 output 3 \\q
 cell $dff \\r
  parameter \\WIDTH 4
  parameter \\CLK_POLARITY 1
  connect \\CLK \\clk
  connect \\D \\d
  connect \\Q \\q
 end
end
module \\top.core
 wire input 1 \\clk
 wire width 4 input 2 \\d
 wire width 4 output 3 \\q
 cell \\top.core.array \\array
  connect \\clk \\clk
  connect \\d \\d
  connect \\q \\q
 end
end
module \\top
 wire input 1 \\clk
 wire width 4 input 2 \\d
 wire width 4 output 3 \\q
 wire width 4 \\w
 cell \\top.core \\core
  connect \\clk \\clk
  connect \\d \\w
  connect \\q \\q
 end
 cell $xor \\x
  parameter \\A_SIGNED 0
  parameter \\B_SIGNED 0
  parameter \\A_WIDTH 4
  parameter \\B_WIDTH 4
  parameter \\Y_WIDTH 4
  connect \\A \\d
  connect \\B { \\d [0] \\d [3:1] }
  connect \\Y \\w
 end
end
"""


def test_parts_of_a_hierarchy_add_up(tmp_path):
    parts = TARGETS["xcup"].parts(HIERARCHY, tmp_path)
    assert {name: (figures["LUT"], figures["FF"]) for name, figures in parts.items()} == {
        "array": (0, 4),
        "memories, wires": (4, 0),
        "total": (4, 4),
    }


# -------------------------------------------------------------------------------------- counting


def test_lut_counts_what_is_ram_and_block_rams_come_in_halves():
    cells = {"LUT6": 10, "LUT1": 1, "INV": 2, "RAM32M16": 1, "SRL16E": 3, "FDRE": 7, "FDSE": 1,
             "RAMB18E2": 1, "RAMB36E2": 2, "DSP48E2": 4, "CARRY4": 9}
    assert targets.count_xcup(cells) == {"LUT": 24, "LUT as memory": 11, "FF": 8, "DSP": 4, "BRAM": 2.5}


def test_nextpnr_s_words_are_understood_and_silence_is_no_frequency():
    assert targets.frequency(SAID) == 122.41
    assert targets.used(SAID, "TRELLIS_COMB") == 2544
    with pytest.raises(Failed, match="no frequency"):
        targets.frequency(SAID.partition("Info: Max")[0])
    with pytest.raises(Failed, match="SB_LUT4"):
        targets.used(SAID, "SB_LUT4")


def test_what_does_not_fit_is_told():
    fits = {"LUT": 5280, "BRAM": 30, "DSP": 8}
    assert targets.too_many(fits, "up5k") is None
    assert targets.too_many(fits | {"LUT": 5281}, "up5k") == "does not fit: 5,281 LUTs of 5,280"
    assert targets.too_many(fits, "hx8k") == "does not fit: 8 multipliers of 0"


def test_area_is_told_in_nands_of_the_library():
    assert targets.nand2_area("cell (NAND2X1) {\n area : 24;\n pin(A) {}") == 24
    assert targets.nand2_area('cell ("sky130_fd_sc_hd__nand2_1") {\n leakage : 1;\n area : 3.75;') == 3.75
    with pytest.raises(UserError, match="NAND2"):
        targets.nand2_area("cell (INVX1) { area : 16; }")

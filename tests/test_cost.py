# SPDX-License-Identifier: Apache-2.0
"""Costs: what is counted, what the cache and the baseline do with it, and the README's table."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from pages import page_faults

from golden.gelu import GeluSpec
from qvit_hw import cli
from qvit_hw.costing import baseline, cache, measuring, targets
from qvit_hw.costing.measuring import Row, Task, measure, measure_all, tasks_for
from qvit_hw.costing.page import cost_page
from qvit_hw.costing.peers import PEERS
from qvit_hw.costing.tables import markdown, parts_markdown
from qvit_hw.costing.targets import TARGETS
from qvit_hw.costing.units import DEFAULT_UNITS, UNITS, unit_rtlil
from qvit_hw.costing.yosys import Failed, run_passes
from qvit_hw.errors import MissingTool, UserError

ROOT = Path(__file__).resolve().parents[1]
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


def row(unit="softmax", lanes=2, target="xcup", variant="default", **figures) -> Row:
    return Row(unit, lanes, target, variant, {"LUT": 1000, "FF": 500, "DSP": 0, "BRAM": 2} | figures)


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


# -------------------------------------------------------------------------------------- baseline


@pytest.mark.parametrize(("after", "bad"), [(1060, True), (1040, False), (1050, False), (500, False)])
def test_growth_beyond_five_percent_is_flagged(after, bad):
    found = baseline.changes([row(LUT=after)], [row()])
    assert [change.bad for change in found] == [bad]
    told = baseline.flagged(found)
    assert len(told) == bad
    if bad:
        sentence = "Unit softmax costs over 5 % more than the baseline: LUT 1,000 to 1,060 (+6.0 %)"
        assert told == [f"{sentence} at 2 lanes on xcup."]


@pytest.mark.parametrize(("after", "bad"), [(94.0, True), (96.0, False), (140.0, False)])
def test_a_lost_frequency_is_flagged(after, bad):
    found = baseline.changes([row(MHz=after)], [row(MHz=100.0)])
    assert [change.bad for change in found] == [bad]


def test_a_unit_that_no_longer_fits_has_lost_its_frequency():
    found = baseline.changes([row(note="does not fit")], [row(MHz=100.0)])
    assert [(change.name, change.bad) for change in found] == [("MHz", True)]
    assert baseline.changes([row(MHz=100.0)], [row(note="does not fit")]) == []


def test_the_first_dsp_is_growth_and_a_new_unit_is_none():
    assert "DSP 0 to 1 (new)" in baseline.flagged(baseline.changes([row(DSP=1)], [row()]))[0]
    assert baseline.changes([row(lanes=4, LUT=9999)], [row()]) == []


def test_a_unit_has_one_sentence():
    before = [row(), row(lanes=8), row("gelu")]
    after = [row(LUT=2000, FF=900), row(lanes=8, LUT=1100), row("gelu", LUT=2000)]
    told = baseline.flagged(baseline.changes(after, before))
    assert [sentence.split()[1] for sentence in told] == ["softmax", "gelu"]
    assert told[0].count(";") == 2


def test_the_baseline_comes_back_as_it_was_written(tmp_path):
    path = tmp_path / "baseline.json"
    assert baseline.read(path) == []
    rows = [row(lanes=8), row(MHz=120.5)]
    path.write_text(baseline.text(rows, {"pyosys": "1"}))
    assert baseline.read(path) == sorted(rows, key=lambda each: each.key)
    assert baseline.text(rows[::-1], {"pyosys": "1"}) == path.read_text()
    merged = baseline.accepted(rows, [row(LUT=7)])
    assert {(each.lanes, each.figures["LUT"]) for each in merged} == {(8, 1000), (2, 7)}
    path.write_text('{"schema": "other"}')
    with pytest.raises(UserError, match="accept"):
        baseline.read(path)


# ---------------------------------------------------------------------------------- the command


@pytest.fixture
def command(tmp_path, monkeypatch, own_cache):
    """A function that runs the command on faked measurements, its baseline in a folder of the test's."""
    monkeypatch.setattr(baseline, "BASELINE", tmp_path / "baseline.json")
    monkeypatch.setattr(baseline.read, "__defaults__", (tmp_path / "baseline.json",))

    def run(*arguments: str, **figures: float) -> int:
        def faked(tasks, jobs, advance):
            return [row(task.unit, task.lanes, task.target, task.variant, **figures) for task in tasks]

        monkeypatch.setattr("qvit_hw.cost.measure_all", faked)
        return cli.invoke(["cost", "--out", str(tmp_path / "cost"), "--target", "xcup", *arguments])

    return run


def test_status_is_1_for_growth_until_it_is_accepted(command, tmp_path, capsys):
    assert command() == 0
    assert command("--accept") == 0
    assert command(LUT=1040) == 0
    capsys.readouterr()
    assert command("--op", "softmax", LUT=1060) == 1
    printed = capsys.readouterr()
    assert printed.err.count("grown:") == 1
    assert "Unit softmax" in printed.err
    document = json.loads((tmp_path / "cost" / "cost.json").read_text())
    assert (document["schema"], document["version"]) == ("qvit-hw/cost", 1)
    assert len(document["grown"]) == 1
    assert "+6.0 %" in (tmp_path / "cost" / "cost.html").read_text()
    assert command("--accept", LUT=1060) == 0
    assert command(LUT=1060) == 0


def test_markdown_is_the_table_alone(command, capsys):
    assert command("--markdown", "--lanes", "2") == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert all(line.startswith("|") for line in lines)
    assert lines[2] == "| softmax | 2 | 1,000 | 500 | 0 | 2 | 2.00e-3 |  |  |"
    assert len(lines) == 2 + len(DEFAULT_UNITS) + len(PEERS)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--op", "nothing"], "Unit must be one of softmax"),
        (["--lanes", "33"], "Lanes must be"),
        (["--jobs", "0"], "Jobs must be at least 1, not 0"),
        (["--op", "accelerator", "--lanes", "8"], "accelerator must be 16 or 32, not 8"),
    ],
)
def test_bad_input_is_refused(command, capsys, arguments, part, tmp_path):
    assert command(*arguments) == 2
    assert part in capsys.readouterr().err
    assert not (tmp_path / "cost").exists()


def test_unknown_targets_and_foreign_folders_are_refused(command, capsys, tmp_path):
    assert command("--target", "tpu") == 2
    assert "Target must be one of xcup, ecp5, ice40, asic, not 'tpu'" in capsys.readouterr().err
    (tmp_path / "cost").mkdir()
    (tmp_path / "cost" / "mine.txt").write_text("mine")
    assert command() == 2
    assert "left alone" in capsys.readouterr().err


def test_a_missing_tool_is_told_before_any_work(command, capsys, monkeypatch, tmp_path):
    assert command("--target", "asic", "--liberty", str(tmp_path / "none.lib")) == 3
    assert "qflow-tech-osu018" in capsys.readouterr().err
    monkeypatch.setattr(targets.shutil, "which", lambda name: None)
    for target in ("ecp5", "ice40"):
        assert command("--target", target) == 3
        assert f"yowasp-nextpnr-{target} is not installed: pip install" in capsys.readouterr().err
    assert not (tmp_path / "cost").exists()
    targets.check_tools(TARGETS["xcup"])
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingTool, match="pyosys"):
        targets.check_tools(TARGETS["xcup"])


def test_without_a_target_those_without_a_tool_are_left_out_and_named(capsys, monkeypatch):
    from rich.console import Console

    from qvit_hw.cost import _targets

    monkeypatch.setattr(targets.shutil, "which", lambda name: None)
    assert _targets(None, Path(__file__), Console(stderr=True)) == ["xcup", "asic"]
    assert "not measured: ecp5" in capsys.readouterr().err


# -------------------------------------------------------------------------------------- the page


def test_the_page_has_bars_of_ours_and_of_the_peers():
    rows = [row(), row("layernorm", 8, DSP=20), row(target="ecp5", MHz=120.0)]
    page = cost_page(rows, [row()], [], {"pyosys": "0.60"})
    assert page_faults(page) == []
    assert page.count('<div class="costbar ours"') == 3
    for peer in PEERS:
        assert peer.name in page
    assert "None has grown" in page
    worse = cost_page([row(LUT=2000)], [row()], ["Unit softmax costs more."], {})
    assert "Unit softmax costs more." in worse
    assert 'class="verdict fail"' in worse


def test_the_accelerator_is_told_by_unit():
    parts = {"array": {"LUT": 5, "BRAM": 7.5}, "total": {"LUT": 9, "BRAM": 8}}
    whole = Row("accelerator", 16, "xcup", "default", parts["total"], parts)
    assert parts_markdown([whole]).splitlines() == [
        "", "16 x 16 on xcup", "", "| unit | LUT | BRAM |", "|---|---:|---:|",
        "| array | 5 | 7.5 |", "| total | 9 | 8 |",
    ]
    assert "accelerator, 16 × 16" in cost_page([whole], [], [], {})


def test_peers_are_as_the_reference_has_them():
    """Ratios that hardware.md states, against figures typed in from it: a slip in either would show."""
    stated = {("HG-PIPE", "softmax"): 2.01e-3, ("ITA", "softmax"): 1.85e-3, ("HG-PIPE", "layernorm"): 0.99e-3,
              ("heo-ji, 8 rows", "layernorm"): 0.70e-3, ("heo-ji, 32 rows", "layernorm"): 0.67e-3,
              ("HG-PIPE, no DSP, no BRAM", "softmax"): 0.79e-3, ("HG-PIPE, no DSP", "layernorm"): 0.16e-3}
    assert {(peer.name, peer.op): round(peer.density, 5) for peer in PEERS} == stated
    fast = {(peer.name, peer.op): round(peer.throughput, 3) for peer in PEERS if peer.throughput}
    assert fast == {("HG-PIPE", "softmax"): 0.057, ("ITA", "softmax"): 0.048, ("HG-PIPE", "layernorm"): 0.043}


# ------------------------------------------------------------------------------------ the README


def readme_table() -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return text.partition("<!-- cost: begin -->\n")[2].partition("<!-- cost: end -->")[0]


def test_the_readme_s_table_is_what_the_baseline_says():
    assert baseline.BASELINE.is_file()
    assert readme_table() == markdown(baseline.read())


def test_the_readme_s_check_can_fail():
    rows = baseline.read()
    place = next(n for n, each in enumerate(rows) if each.key == ("softmax", 8, "xcup", "default"))
    rows[place] = replace(rows[place], figures=rows[place].figures | {"LUT": 1})
    assert readme_table() != markdown(rows)

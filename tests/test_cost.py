# SPDX-License-Identifier: Apache-2.0
"""Costs: what the baseline, the command, the page and the README's table do with what was measured."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from pages import page_faults

from qvit_hw import cli
from qvit_hw.costing import baseline, targets
from qvit_hw.costing.measuring import Row
from qvit_hw.costing.page import cost_page
from qvit_hw.costing.peers import PEERS
from qvit_hw.costing.tables import markdown, parts_markdown
from qvit_hw.costing.targets import TARGETS
from qvit_hw.costing.units import DEFAULT_UNITS
from qvit_hw.costing.yosys import Failed, execute
from qvit_hw.errors import MissingTool, UserError

ROOT = Path(__file__).resolve().parents[1]


def row(unit="softmax", lanes=2, target="xcup", variant="default", **figures) -> Row:
    return Row(unit, lanes, target, variant, {"LUT": 1000, "FF": 500, "DSP": 0, "BRAM": 2} | figures)


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
def command(tmp_path, monkeypatch):
    """A function that runs the command on faked measurements, its baseline in a folder of the test's."""
    monkeypatch.setenv("QVIT_CACHE", str(tmp_path / "cache"))
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
    assert document["passed"] is False
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


CELLS = "library (x) { cell (NAND2X1) { area : 24; pin (Y) { direction : output; } } %s"
"""A Liberty file but for its end."""


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "must have a NAND2 cell with an area, not none"),
        (bytes(range(256)), "must have a NAND2 cell with an area, not none"),
        ((CELLS % "}").replace("24", "0.0").encode(), "must have a NAND2 cell with an area, not none"),
        ((CELLS % "").encode(), "cannot be read: Syntax error in liberty file on line 1"),
    ],
    ids=["empty", "no text", "no area", "cut off"],
)
def test_a_liberty_file_that_is_none_is_refused(command, capsys, tmp_path, content, reason):
    path = tmp_path / "mine.lib"
    path.write_bytes(content)
    assert command("--target", "asic", "--liberty", str(path)) == 2
    assert capsys.readouterr().err == f"error: Liberty file '{path}' {reason}.\n"
    assert not (tmp_path / "cost").exists()
    assert command("--liberty", str(path)) == 0, "xcup asks for no Liberty file"


def test_a_liberty_file_is_taken_in_any_encoding(command, tmp_path):
    path = tmp_path / "mine.lib"
    path.write_bytes(b"/* caf\xe9 */ " + (CELLS % "}").encode())
    assert command("--target", "asic", "--liberty", str(path)) == 0


def test_a_tool_s_sentence_keeps_one_full_stop(tmp_path):
    words = [sys.executable, "-c", "import sys; sys.exit('ERROR: No entries.')"]
    with pytest.raises(Failed, match=r"^ERROR: No entries$"):
        execute(words, tmp_path, "log")


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

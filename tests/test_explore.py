# SPDX-License-Identifier: Apache-2.0
"""The trade-off: points are what their commands build, the study is shared, the page says what is in it."""

import importlib.util
import json
import shlex
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from pages import page_faults

from golden.layernorm import layernorm_pipeline
from golden.softmax import softmax_pipeline
from qvit_hw import cli, explore
from qvit_hw.bundle import load_bundle
from qvit_hw.costing.measuring import Row
from qvit_hw.errors import UserError
from qvit_hw.exploring import trial as trying
from qvit_hw.exploring.measured import Measured, objectives
from qvit_hw.exploring.page import document, tradeoff_page
from qvit_hw.exploring.space import (
    SPACE,
    Origin,
    chosen_preset,
    commands,
    narrowed,
    settings_of,
    starts,
)
from qvit_hw.exploring.study import Point, front, open_study, points, search
from qvit_hw.exploring.trial import Lab
from qvit_hw.presets import find_preset

CHOICE = {
    **starts()[0],
    "affine": "shift",
    "lanes": 4,
    "base": "sqrt2",
    "code_bits": 5,
    "exp_bits": 12,
    "score_bits": 14,
    "log_index_bits": 10,
    "table_bits": 4,
    "weight_bits": 6,
    "residual_bits": 12,
    "gelu_bits": 10,
}
SETUP = {"model": "digits", "calibration": 32, "data": "digits, 359 images", "tools": {"pyosys": "1"}}


@pytest.fixture
def mapped(monkeypatch):
    """Units are not mapped: a LUT a bit of an exponential or an input, and a lane."""

    def faked(tasks, jobs):
        def luts(task):
            width = task.spec.exp_bits if task.unit == "softmax" else task.spec.in_bits
            return width * task.lanes

        return [
            Row(task.unit, task.lanes, task.target, "default",
                {"LUT": luts(task), "FF": 1, "DSP": 2, "BRAM": 0.5, "MHz": 100.0 + task.lanes})
            for task in tasks
        ]

    monkeypatch.setattr(trying, "measure_all", faked)


@pytest.fixture(scope="module")
def lab() -> Lab:
    return Lab(Origin(), "digits", 40)


# --------------------------------------------------------------------------------------- choices


def test_starts_are_the_presets_and_every_choice_is_of_the_space():
    for space, count in ((SPACE, 10), (narrowed([2], []), 10), (narrowed([], ["code_bits=4"]), 2)):
        assert len(starts(space)) == count
        for start in starts(space):
            assert list(start) == list(SPACE)
            assert all(value in space[name] for name, value in start.items())
            assert settings_of(start) == []
            assert chosen_preset(start) == find_preset(start["preset"])


def test_a_space_can_be_narrowed():
    space = narrowed([4, 1], ["exp_bits=15", "base=2", "base=sqrt2"])
    assert space["lanes"] == (1, 4)
    assert space["exp_bits"] == (15,)
    assert space["base"] == ("2", "sqrt2")
    assert space["code_bits"] == SPACE["code_bits"]
    wrong = {"exp_bits=99": "Exp bits must be one of 12, 15, 18, not 99", "x=1": "NAME=VALUE"}
    wrong |= {
        lacking: f"^Fixed value '{lacking}' lacks its value: it must be one of 12, 15, 18\\.$"
        for lacking in ("exp_bits", "exp_bits=")
    }
    for setting, part in wrong.items():
        with pytest.raises(UserError, match=part):
            narrowed([], [setting])


def test_settings_are_what_differs_from_the_preset():
    preset = chosen_preset(CHOICE)
    for name in SPACE:
        if name not in ("preset", "affine", "lanes"):
            assert getattr(preset, name) == CHOICE[name]
    assert "frac_bits=4" not in settings_of(CHOICE)
    assert "exp_bits=12" in settings_of(CHOICE)


def test_a_point_s_commands_build_what_was_measured(lab, mapped, tmp_path, monkeypatch):
    """The commands are run as they stand: bundle and manifest have the specs that the point says."""
    measured = lab.try_choice(CHOICE)
    monkeypatch.chdir(tmp_path)
    for line in commands(CHOICE, replace(lab.origin)):
        program, *arguments = shlex.split(line)
        assert program == "qvit-hw"
        assert cli.invoke(arguments) == 0
    bundle = load_bundle(tmp_path / "bundle")
    assert {op: asdict(spec) for op, spec in bundle.specs.items()} == measured.specs
    manifest = json.loads((tmp_path / "rtl" / "manifest.json").read_text())
    for unit in manifest["units"]:
        assert unit["spec"] == measured.specs[unit["op"]]
        assert unit["lanes"] == 4
    data = lab.data
    right = (bundle.network(data.images(lab.numbers)).argmax(axis=1) == data.labels).mean()
    assert right == measured.top1
    assert sum(each["bits"] * bundle.network[name].params.weight.size
               for name, each in bundle.plan["weights"].items()) == measured.weight_bits
    other = lab.try_choice({**CHOICE, "exp_bits": 18})
    assert other.specs != measured.specs


def test_a_command_names_its_origin():
    origin = Origin("deit tiny", Path("w.pt"), True, 224, Path("my photos"), 8)
    assert shlex.split(commands(starts()[0], origin)[0]) == [
        "qvit-hw", "calibrate", "--model", "deit tiny", "--checkpoint", "w.pt", "--pretrained",
        "--image-size", "224", "--images", "my photos", "--calibration", "8",
        "--preset", "w8a8p4", "--affine", "dyadic", "--out", "bundle",
    ]


# --------------------------------------------------------------------------------------- measures


def test_a_trial_runs_the_golden_model_and_adds_up_the_units(lab, mapped):
    fine, coarse = (lab.try_choice({**starts()[0], "act_bits": bits}) for bits in (8, 4))
    assert fine.sqnr_db > coarse.sqnr_db + 6
    assert fine.top1 > 0.9
    assert (fine.lut, fine.dsp, fine.bram) == (8 * 15 + 8 * 8, 4, 1.0)
    assert fine.mhz is None
    small = lab.try_choice({**starts()[0], "weight_bits": 4})
    assert (fine.weight_bits - small.weight_bits) * 2 == fine.weight_bits - 8 * _fixed(lab)


def _fixed(lab) -> int:
    """Weights of the patch embedding and the head, which keep 8 bits."""
    nodes = (*lab.loaded.network.of("patch_embed"), lab.loaded.network.output)
    return sum(node.weight.numel() for node in nodes)


def test_cycles_are_the_pipelines_own(lab, mapped):
    measured = lab.try_choice({**starts()[0], "lanes": 2})
    softmax = softmax_pipeline(chosen_preset(starts()[0]).softmax_spec(), 2)
    norm = layernorm_pipeline(chosen_preset(starts()[0]).layernorm_spec("dyadic"), 2)
    rows = 4 * (4 * 17 * 9 + softmax.latency(17)) + 9 * (17 * 32 + norm.latency(64))
    assert measured.cycles == rows
    assert lab.try_choice({**starts()[0], "lanes": 8}).cycles < measured.cycles / 2


def test_with_the_frequency_time_is_the_objective(mapped):
    lab = Lab(Origin(), "digits", 4, frequency=True)
    measured = lab.try_choice({**starts()[0], "lanes": 2})
    assert measured.mhz == 102.0
    assert measured.microseconds == measured.cycles / 102.0
    assert list(objectives(True)) == ["sqnr_db", "lut", "microseconds", "weight_bits"]
    assert measured.values(True)[2] == measured.microseconds
    assert measured.values(False)[2] == measured.cycles


def test_a_choice_that_cannot_be_built_is_refused(lab, mapped, monkeypatch):
    unmapped = Row("softmax", 1, "xcup", "default", {"note": "failed: ERROR"})
    monkeypatch.setattr(trying, "measure_all", lambda tasks, jobs: [unmapped])
    with pytest.raises(UserError, match=r"^Unit softmax cannot be mapped: failed: ERROR\.$"):
        lab.try_choice(starts()[0])


# -------------------------------------------------------------------------------------- the study


def fake(choice) -> Measured:
    """Accuracy and area that follow from a choice."""
    bits = choice["act_bits"] + choice["weight_bits"] + choice["code_bits"]
    specs = {"softmax": {}, "layernorm": {}}
    return Measured(float(bits), 0.5, 100.0 * choice["lanes"] + bits, 1, 0, 0, 1000 // choice["lanes"],
                    choice["weight_bits"], specs, {})


def refusing(choice) -> Measured:
    if choice["preset"] == "w8a8p5":
        raise UserError("Choice cannot be built.")
    return fake(choice)


@pytest.mark.parametrize("storage", ["study.journal", "sqlite:///{}/study.db"])
def test_a_study_goes_on_where_it_was(tmp_path, storage):
    where = storage.format(tmp_path) if "://" in storage else str(tmp_path / storage)
    for count in (3, 5):
        search(open_study(where, SETUP, False), fake, count, 1, False)
    study = open_study(where, SETUP, False)
    found = points(study)
    assert len([each for each in study.get_trials() if each.state.is_finished()]) == 8
    assert [point.choice for point in found[:8]] == starts()[:8]
    other = open_study(where, {**SETUP, "data": "others"}, False)
    assert points(other) == []


def test_a_search_is_repeatable_and_the_seed_matters(tmp_path):
    found = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        study = open_study(str(tmp_path / name), SETUP, False)
        search(study, fake, 13, seed, False)
        found.append([point.choice for point in points(study)])
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_a_choice_that_fails_does_not_end_the_search(tmp_path):
    study = open_study(str(tmp_path / "s"), SETUP, False)
    search(study, refusing, 10, 1, False)
    found = points(study)
    assert len(found) == 8
    assert all(point.choice["preset"] != "w8a8p5" for point in found)


def test_an_interrupt_leaves_a_study_that_goes_on(tmp_path):
    def interrupted(choice):
        if choice["preset"] == "w6a6":
            raise KeyboardInterrupt
        return fake(choice)

    where = str(tmp_path / "s")
    with pytest.raises(KeyboardInterrupt):
        search(open_study(where, SETUP, False), interrupted, 5, 1, False)
    study = open_study(where, SETUP, False)
    assert len(points(study)) == 2
    search(study, fake, 8, 1, False)
    assert len(points(study)) == 10


WORKER = """
import sys
sys.path.insert(0, {root!r})
from qvit_hw.exploring.measured import Measured
from qvit_hw.exploring.study import open_study, search
def fake(choice):
    return Measured(1.0, None, choice["lanes"], 1, 0, 0, 1, 1, {{}}, {{}})
search(open_study({where!r}, {setup!r}, False), fake, 6, {seed}, False)
assert "torch" not in sys.modules
"""


def test_two_processes_share_one_study(tmp_path):
    where = str(tmp_path / "study.journal")
    root = str(Path(__file__).resolve().parents[1])
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER.format(root=root, where=where, setup=SETUP, seed=seed)]
        )
        for seed in (1, 2)
    ]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    trials = open_study(where, SETUP, False).get_trials()
    finished = [each for each in trials if each.state.is_finished()]
    assert len({each.number for each in finished}) == len(finished) == 12


def test_storages_that_cannot_be_used_are_told(tmp_path):
    with pytest.raises(UserError, match=r"^Storage 'nothing://x' cannot be used: "):
        open_study("nothing://x", SETUP, False)
    with pytest.raises(UserError, match=r"^Storage '.*' must be a file or an URL, not a folder\.$"):
        open_study(str(tmp_path), SETUP, False)


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("content", ["f", "[]", '{"op_code": "0"}', '{"a": 1}', "[" * 100_000])
def test_a_file_that_is_no_journal_stays_as_it_is(tmp_path, content, behind):
    storage = tmp_path / "s"
    if behind:
        open_study(str(storage), SETUP, False)
    with storage.open("a") as file:
        file.write(content + "\n" * behind)
    before = storage.read_bytes()
    with pytest.raises(UserError, match=r"^Storage '.*' is no journal \(line \d+\): it is left alone\.$"):
        open_study(str(storage), SETUP, False)
    assert storage.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_study_whose_last_line_broke_off_goes_on(tmp_path):
    storage = tmp_path / "s"
    search(open_study(str(storage), SETUP, False), fake, 4, 1, False)
    content = storage.read_bytes()
    storage.write_bytes(content[:-9])
    assert len(points(open_study(str(storage), SETUP, False))) == 3
    search(open_study(str(storage), SETUP, False), fake, 2, 1, False)
    assert len(points(open_study(str(storage), SETUP, False))) >= 5
    storage.write_bytes(b"")
    assert points(open_study(str(storage), SETUP, False)) == []


# --------------------------------------------------------------------------------- the front, page


def point(number, *values, **choice) -> Point:
    choice = {**CHOICE, **choice}
    record = replace(fake(choice), sqnr_db=values[0], lut=values[1]).record()
    return Point(number, choice, record, values)


def test_the_front_is_whatever_is_not_beaten():
    directions = ["maximize", "minimize"]
    found = [point(0, 20.0, 100.0), point(1, 20.0, 90.0), point(2, 30.0, 200.0), point(3, 19.0, 95.0)]
    assert front(found, directions) == {1, 2}
    assert front([*found, point(4, 20.0, 90.0)], directions) == {1, 2, 4}  # neither beats its equal
    assert front(found, ["minimize", "minimize"]) == {1, 3}
    assert front([], directions) == set()


def test_the_page_has_every_point_its_commands_and_nothing_from_elsewhere():
    found = [point(3, 20.0, 100.0, 5.0, 6.0), point(7, 10.0, 120.0, 5.0, 6.0, base="2")]
    told = document(found, SETUP, Origin(), False)
    assert [each["front"] for each in told["points"]] == [True, False]
    page = tradeoff_page(told)
    own, plotly = page.replace(_plotly(), ""), _plotly() in page
    assert plotly
    assert page_faults(own) == []
    assert "1 <small>of 2 points" in page
    for number in (3, 7):
        assert f'<tr data-number="{number}"' in page
    data = own.partition('id="data">')[2].partition("</script>")[0]
    assert json.loads(data)["points"] == told["points"]
    assert told["points"][0]["commands"] == commands(CHOICE, Origin())
    assert "<" not in data


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def test_the_page_of_nothing_says_so():
    page = tradeoff_page(document([], SETUP, Origin(), False))
    assert "There are no points yet" in page
    assert page_faults(page) == []


# ------------------------------------------------------------------------------------ the command


def test_the_command_writes_page_and_json_and_goes_on(mapped, tmp_path, monkeypatch):
    monkeypatch.setattr(explore, "unit_rtlil", lambda *_: "")
    options = ["explore", "--out", str(tmp_path / "t"), "--limit", "8", "--lanes", "2", "--lanes", "1"]
    for trials, total in (("2", 2), ("1", 3), ("0", 3)):
        assert cli.invoke([*options, "--trials", trials]) == 0
        told = json.loads((tmp_path / "t" / "tradeoff.json").read_text())
        assert (told["schema"], told["version"]) == ("qvit-hw/tradeoff", 1)
        assert len(told["points"]) == total
    assert told["setup"]["space"]["lanes"] == [1, 2]
    assert {each["choice"]["lanes"] for each in told["points"]} == {2}
    assert sorted(each.name for each in (tmp_path / "t").iterdir()) == [
        "study.journal", "tradeoff.html", "tradeoff.json",
    ]
    assert np.isfinite([each["sqnr_db"] for each in told["points"]]).all()


def test_an_interrupted_command_leaves_its_page(mapped, tmp_path, monkeypatch):
    monkeypatch.setattr(explore, "unit_rtlil", lambda *_: "")
    calls = []

    def once(self, choice):
        calls.append(choice)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fake(choice)

    monkeypatch.setattr(Lab, "try_choice", once)
    assert cli.invoke(["explore", "--out", str(tmp_path / "t"), "--limit", "2", "--trials", "9"]) == 130
    assert len(json.loads((tmp_path / "t" / "tradeoff.json").read_text())["points"]) == 1


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--trials", "-1"], "Trials must be at least 0, not -1."),
        (["--jobs", "0"], "Jobs must be at least 1, not 0."),
        (["--lanes", "3"], "Lanes must be one of 1, 2, 4, 8, not 3."),
        (["--bundle", "nowhere"], "nowhere"),
        (["--data", "nowhere", "--trials", "0"], "nowhere"),
    ],
)
def test_bad_input_is_refused(arguments, part, tmp_path, capsys):
    assert cli.invoke(["explore", "--out", str(tmp_path / "t"), *arguments]) == 2
    assert part in capsys.readouterr().err
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("package", ["optuna", "plotly", "pyosys"])
def test_a_missing_package_is_told_before_any_work(package, tmp_path, capsys, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else real(name)
    )
    assert cli.invoke(["explore", "--out", str(tmp_path / "t")]) == 3
    assert package in capsys.readouterr().err
    assert not (tmp_path / "t").exists()

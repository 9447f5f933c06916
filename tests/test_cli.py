# SPDX-License-Identifier: Apache-2.0
"""The command line's frame: exit statuses, one sentence on stderr, options, and the verdict of a report."""

import importlib
import inspect
import json
import subprocess
import sys
from types import ModuleType

import pytest
from report_samples import make_results

from qvit_hw import cli
from qvit_hw.errors import MissingTool, UserError

COMMANDS = (
    *("calibrate", "evaluate", "export", "generate", "simulate", "report"),
    *("compile", "estimate", "run", "demo"),
    *("prove", "cost", "explore", "index"),
)


def fake(monkeypatch, name: str, run) -> None:
    """Put a module with this `run` in place of the command's."""
    module = ModuleType(f"qvit_hw.{name}")
    module.run = run
    monkeypatch.setitem(sys.modules, f"qvit_hw.{name}", module)


# ------------------------------------------------------------------------------------- the frame


def declaration(command: str):
    """The function that declares the command's options, in whichever file of commands it is."""
    apps = [cli.app, *(group.typer_instance for group in cli.app.registered_groups)]
    functions = [entry.callback for app in apps for entry in app.registered_commands]
    return next(function for function in functions if function.__name__ == command)


@pytest.mark.parametrize("command", COMMANDS)
def test_options_are_those_of_the_module_that_does_the_work(command):
    declared = inspect.signature(declaration(command)).parameters
    wanted = inspect.signature(importlib.import_module(f"qvit_hw.{command}").run).parameters
    assert set(declared) == set(wanted)
    for name, parameter in wanted.items():
        if parameter.default is not inspect.Parameter.empty:
            assert str(declared[name].default) == str(parameter.default), name


@pytest.mark.parametrize("status", [0, 1])
def test_a_command_s_status_is_the_exit_status(monkeypatch, status):
    fake(monkeypatch, "report", lambda **options: status)
    assert cli.invoke(["report", "--results", "x"]) == status


def test_user_errors_become_one_line_and_status_2(monkeypatch, capsys):
    def run(**options):
        raise UserError("The thing must be blue.")

    fake(monkeypatch, "report", run)
    assert cli.invoke(["report", "--results", "x"]) == 2
    printed = capsys.readouterr()
    assert printed.err == "error: The thing must be blue.\n"
    assert printed.out == ""


def test_a_missing_tool_has_a_status_of_its_own(monkeypatch, capsys):
    def run(**options):
        raise MissingTool("There is no compiler.")

    fake(monkeypatch, "simulate", run)
    assert cli.invoke(["simulate", "--bundle", "b", "--rtl", "r", "--out", "o"]) == 3
    assert capsys.readouterr().err == "error: There is no compiler.\n"


def test_an_interrupt_has_the_status_that_shells_give_it(monkeypatch, capsys):
    def run(**options):
        raise KeyboardInterrupt

    fake(monkeypatch, "report", run)
    assert cli.invoke(["report", "--results", "x"]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_bug_is_no_user_error(monkeypatch):
    def run(**options):
        raise ZeroDivisionError

    fake(monkeypatch, "report", run)
    with pytest.raises(ZeroDivisionError):
        cli.invoke(["report", "--results", "x"])


def test_what_the_disk_refuses_is_one_line_and_status_2(monkeypatch, capsys):
    def run(**options):
        raise PermissionError(13, "Permission denied", "/some/file")

    fake(monkeypatch, "report", run)
    assert cli.invoke(["report", "--results", "x"]) == 2
    assert capsys.readouterr().err == "error: '/some/file': Permission denied.\n"


@pytest.mark.parametrize("command", ["calibrate", "generate", "simulate", "demo"])
def test_an_output_that_cannot_be_made_is_told_before_any_work(
    command, bundle, rtl, refused, tmp_path
):
    (tmp_path / "file").write_text("")
    more = ["--bundle", bundle, "--rtl", rtl] if command == "simulate" else []
    refused(command, *more, "--out", tmp_path / "file" / "o" / "p", part="is not a folder.")
    refused(command, *more, "--out", "/proc/qvit-hw", part="'/proc/qvit-hw' cannot be written: ")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["mend"], "No such command 'mend'"),
        (["report"], "--results"),
        (["report", "--results", "x", "--colour"], "--colour"),
        (["generate", "--out", "x", "--lanes", "many"], "--lanes"),
    ],
)
def test_usage_errors_are_one_line_and_status_2(arguments, part, refused):
    refused(*arguments, part=part)


@pytest.mark.parametrize("module", ["qvit_hw", "qvit_hw.report"])
def test_modules_run_as_commands(module, tmp_path):
    arguments = ["report"] if module == "qvit_hw" else []
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments, "--results", str(tmp_path / "none")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == f"error: Results folder {str(tmp_path / 'none')!r} does not exist.\n"


def test_help_waits_for_nothing_heavy():
    script = (
        "import sys; from qvit_hw.cli import invoke\n"
        "assert invoke(['--help']) == 0 and invoke(['calibrate', '--help']) == 0\n"
        "heavy = {'torch', 'timm', 'amaranth', 'cocotb', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in COMMANDS)


def test_version_names_everything_that_can_change_a_result(capsys):
    assert cli.invoke(["--version"]) == 0
    told = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert {"qvit-hw", "numpy", "amaranth", "yosys", "cocotb", "verilator", "icarus"} <= set(told)
    assert told["yosys"] == "0.50.0.0.post130"


def test_results_tell_the_model_and_where_its_weights_come_from(bundle, rtl, tmp_path):
    options = ["--op", "softmax", "--rows", "1", "--no-scenarios", "--out", str(tmp_path / "out")]
    assert cli.invoke(["simulate", "--bundle", str(bundle), "--rtl", str(rtl), *options]) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())["bundle"]["model"]
    assert found == json.loads((bundle / "manifest.json").read_text())["model"]
    page = tmp_path / "report.html"
    results = ["--results", str(tmp_path / "out"), "--out", str(page)]
    assert cli.invoke(["report", *results]) == 0
    assert "<dd>sample: made up</dd>" in page.read_text()


@pytest.mark.parametrize(("flip", "status"), [(None, 0), ("blocks.0.attn", cli.MISMATCH)])
def test_report_s_status_is_the_verdict(flip, status, bundle, tmp_path):
    (tmp_path / "bundle").symlink_to(bundle)
    results = make_results(tmp_path / "results", bundle, flip=flip)
    out = tmp_path / "report.html"
    assert cli.invoke(["report", "--results", str(results), "--out", str(out)]) == status
    assert out.is_file()


ABSENT = """
import importlib.util, sys

PACKAGES = ("pyosys", "bitwuzla", "cocotb_coverage")
there = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name in PACKAGES else there(name, *more)

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in PACKAGES:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
from qvit_hw.cli import invoke
sys.exit(invoke(sys.argv[1:]))
"""
"""The command line where the packages of the extra ``verify`` are not installed."""


@pytest.mark.parametrize("command", ["prove", "cover", "mutate"])
def test_packages_that_are_missing_are_told(command, tmp_path):
    words = [sys.executable, "-c", ABSENT, command, "--out", str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stderr == "error: pyosys is not installed: pip install 'qvit-hw[verify]'.\n"
    assert done.returncode == cli.MISSING_TOOL
    assert not (tmp_path / "out").exists()

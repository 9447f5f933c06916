# SPDX-License-Identifier: Apache-2.0
"""The command line: exit statuses, one sentence on stderr, nothing half-written, and the demo's chain."""

import importlib
import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from accelerator_samples import make_program, make_run
from PIL import Image
from report_samples import make_bundle, make_results
from safetensors.numpy import load_file, save_file

from qvit_hw import cli
from qvit_hw.errors import MissingTool, Unsupported, UserError

COMMANDS = (
    *("calibrate", "evaluate", "export", "generate", "simulate", "report"),
    *("compile", "estimate", "run", "demo"),
    *("prove", "cost", "explore", "index"),
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("sample") / "bundle")


@pytest.fixture(scope="module")
def rtl(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rtl") / "rtl"
    assert cli.invoke(["generate", "--bundle", str(bundle), "--lanes", "2", "--out", str(out)]) == 0
    return out


@pytest.fixture
def refused(capsys, tmp_path):
    """A function: the command must exit with a status, say one sentence with `part`, leave no `out`."""
    before = set(tmp_path.rglob("*"))

    def check(*arguments, part: str, status: int = cli.BAD_INPUT, made: set[Path] = frozenset()):
        before.update(tmp_path.rglob("*"))
        found = cli.invoke([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert found == status, printed.err
        last = printed.err.strip().splitlines()[-1]
        assert last.startswith("error: "), printed.err
        assert part in last
        assert "Traceback" not in printed.err
        assert set(tmp_path.rglob("*")) - before == set(made), "something was left behind"

    return check


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


# -------------------------------------------------------------------------------------- calibrate


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--model", "resnet50"], "resnet50"),
        (["--model", "no_such_model"], "Unknown model 'no_such_model'"),
        (["--preset", "w1a1"], "Preset must be one of"),
        (["--observer", "guess"], "Observer must be one of"),
        (["--affine", "float"], "Affine must be one of"),
        (["--score", "error"], "Score chooses widths under a budget: give a --budget, too."),
        (["--score", "luck", "--budget", "size:6"], "Score must be one of error, "),
        (["--calibration", "0"], "at least 1, not 0"),
        (["--vector-images", "0"], "at least 1, not 0"),
        (["--checkpoint", "no/such.safetensors"], "does not exist"),
        (["--images", "no/such/folder"], "no/such/folder"),
    ],
)
def test_calibrate_refuses(options, part, refused, tmp_path):
    refused("calibrate", *options, "--out", tmp_path / "bundle", part=part)


def test_calibrate_refuses_a_checkpoint_that_does_not_fit(refused, tmp_path):
    save_file({"other.weight": np.zeros((2, 2), np.float32)}, tmp_path / "odd.safetensors")
    refused(
        "calibrate",
        "--checkpoint",
        tmp_path / "odd.safetensors",
        "--out",
        tmp_path / "bundle",
        part="The checkpoint does not fit 'digits'",
    )


def test_calibrate_refuses_a_checkpoint_of_nan(refused, tmp_path):
    weights = load_file(Path(cli.__file__).parent / "models" / "digits.safetensors")
    weights["blocks.0.norm1.weight"] = np.full_like(weights["blocks.0.norm1.weight"], np.nan)
    save_file(weights, tmp_path / "nan.safetensors")
    refused(
        "calibrate",
        "--checkpoint",
        tmp_path / "nan.safetensors",
        "--out",
        tmp_path / "bundle",
        part="NaN",
    )


def test_calibrate_refuses_a_folder_without_images(refused, tmp_path):
    (tmp_path / "photos").mkdir()
    refused(
        "calibrate", "--images", tmp_path / "photos", "--out", tmp_path / "bundle", part="photos"
    )


def test_calibrate_refuses_a_file_that_is_no_image(refused, tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "b.png").write_bytes(b"not a picture")
    refused(
        "calibrate", "--images", tmp_path / "photos", "--out", tmp_path / "bundle", part="b.png"
    )


def test_calibrate_leaves_a_folder_with_other_files_alone(refused, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    refused("calibrate", "--out", tmp_path / "mine", part="is left alone")


# --------------------------------------------------------------------------- generate and simulate


@pytest.mark.parametrize("lanes", ["0", "-1", "33"])
def test_generate_refuses_lanes(lanes, refused, tmp_path):
    refused("generate", "--lanes", lanes, "--out", tmp_path / "rtl", part=f"1 to 32, not {lanes}")


def test_generate_refuses_an_unknown_operator(refused, tmp_path):
    refused("generate", "--op", "mean", "--out", tmp_path / "rtl", part="mean")


def test_generate_refuses_a_file_in_the_way(refused, tmp_path):
    (tmp_path / "rtl").write_text("")
    refused("generate", "--out", tmp_path / "rtl", part="rtl")


def test_generate_refuses_a_bundle_that_is_none(refused, tmp_path):
    refused(
        "generate", "--bundle", tmp_path / "no", "--out", tmp_path / "rtl", part="is not a bundle"
    )


def spoiled(bundle: Path, out: Path, change) -> Path:
    """A copy of the bundle whose tensors or manifest were changed, its hashes put right or not."""
    out.mkdir()
    for path in bundle.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    change(out)
    return out


def drop_file(out: Path) -> None:
    (out / "network.safetensors").unlink()


def flip_byte(out: Path) -> None:
    path = out / "network.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def rename_tensor(out: Path) -> None:
    edit_manifest(out, lambda m: m["layers"][0]["vectors"].update(input="nowhere"))


def widen_dtype(out: Path) -> None:
    edit_manifest(out, lambda m: m["tensors"]["blocks.0.norm1/shift"].update(dtype="int64"))


def shift_too_far(out: Path) -> None:
    edit_manifest(out, lambda m: spec_of(m, "blocks.0.norm1").update(max_shift=1))


def row_too_long(out: Path) -> None:
    edit_manifest(out, lambda m: spec_of(m, "blocks.0.attn").update(max_tokens=8))


def other_unit(out: Path) -> None:
    edit_manifest(out, lambda m: m["specs"]["softmax"].update(max_tokens=128))


def spec_of(manifest, name: str):
    return next(node for node in manifest["network"]["nodes"] if node["name"] == name)["spec"]


def edit_manifest(out: Path, change) -> None:
    path = out / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


FAULTS = [
    (drop_file, "lacks the file 'network.safetensors'"),
    (flip_byte, "has a wrong hash"),
    (rename_tensor, "lacks the tensor 'nowhere'"),
    (widen_dtype, "has a wrong dtype"),
    (shift_too_far, "PTF shift must be from 0 to 1"),
    (row_too_long, "Row length must be at most 8, not 17"),
    (other_unit, "has parts that disagree: node 'blocks.0.attn' has another spec of softmax"),
]


@pytest.mark.parametrize(("change", "part"), FAULTS)
@pytest.mark.parametrize("command", ["generate", "simulate", "report"])
def test_a_bad_bundle_is_refused_by_every_command(
    command, change, part, bundle, rtl, refused, tmp_path
):
    bad = spoiled(bundle, tmp_path / "bad", change)
    more = {
        "generate": ["--out", tmp_path / "out"],
        "simulate": ["--rtl", rtl, "--out", tmp_path / "out"],
        "report": ["--out", tmp_path / "report.html"],
    }[command]
    if command == "report":
        more += ["--results", make_results(tmp_path / "results", bundle)]
    refused(command, "--bundle", bad, *more, part=part)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--op", "gelu"], "gelu"),
        (["--simulator", "spice"], "spice"),
        (["--rows", "0"], "0"),
        (["--rows", "-3"], "-3"),
        (["--rows", "some"], "some"),
    ],
)
def test_simulate_refuses(options, part, bundle, rtl, refused, tmp_path):
    refused(
        "simulate",
        "--bundle",
        bundle,
        "--rtl",
        rtl,
        "--out",
        tmp_path / "out",
        *options,
        part=part,
    )


def test_simulate_refuses_rtl_that_is_not_there(bundle, refused, tmp_path):
    refused(
        "simulate",
        "--bundle",
        bundle,
        "--rtl",
        tmp_path / "no",
        "--out",
        tmp_path / "out",
        part="no",
    )


@pytest.mark.parametrize("simulator", ["verilator", "icarus"])
def test_without_its_tools_simulate_says_what_is_missing(
    simulator, bundle, rtl, refused, tmp_path, monkeypatch
):
    """No compiler for Verilator, no Icarus at all: neither is on an empty PATH."""
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.delenv("CXX", raising=False)
    refused(
        "simulate",
        "--bundle",
        bundle,
        "--rtl",
        rtl,
        "--simulator",
        simulator,
        "--out",
        tmp_path / "out",
        part="",
        status=cli.MISSING_TOOL,
    )


def test_broken_verilog_is_told_by_file_and_line(bundle, rtl, refused, tmp_path):
    edited = tmp_path / "rtl"
    shutil.copytree(rtl, edited)
    text = (edited / "qvit_softmax.v").read_text()
    (edited / "qvit_softmax.v").write_text("\nmodule oops;\n  wire = ;\nendmodule\n" + text)
    options = ["--bundle", bundle, "--rtl", edited, "--op", "softmax", "--allow-modified"]
    part = "error: qvit_softmax.v does not compile: line 3: "
    refused("simulate", *options, "--out", tmp_path / "deep" / "out", part=part)


def test_results_tell_the_model_and_where_its_weights_come_from(bundle, rtl, tmp_path):
    options = ["--op", "softmax", "--rows", "1", "--no-scenarios", "--out", str(tmp_path / "out")]
    assert cli.invoke(["simulate", "--bundle", str(bundle), "--rtl", str(rtl), *options]) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())["bundle"]["model"]
    assert found == json.loads((bundle / "manifest.json").read_text())["model"]
    page = tmp_path / "report.html"
    results = ["--results", str(tmp_path / "out"), "--out", str(page)]
    assert cli.invoke(["report", *results]) == 0
    assert "<dd>sample: made up</dd>" in page.read_text()


# ------------------------------------------------------------------------------- report and demo


@pytest.mark.parametrize(("flip", "status"), [(None, 0), ("blocks.0.attn", cli.MISMATCH)])
def test_report_s_status_is_the_verdict(flip, status, bundle, tmp_path):
    (tmp_path / "bundle").symlink_to(bundle)
    results = make_results(tmp_path / "results", bundle, flip=flip)
    out = tmp_path / "report.html"
    assert cli.invoke(["report", "--results", str(results), "--out", str(out)]) == status
    assert out.is_file()


@pytest.fixture
def chain(monkeypatch, bundle):
    """The demo's steps, each but the last replaced by one that leaves a prepared folder."""
    calls: list[str] = []

    def prepare(
        flip: str | None = None, fail: str | None = None, wrong: int | None = None
    ) -> list[str]:
        def step(name, make):
            def run(**options):
                calls.append(name)
                if name == fail:
                    kind = Unsupported if name == "compile" else UserError
                    raise kind(f"{name} has no luck.")
                make(**options)
                return int({"simulate": flip, "run": wrong}.get(name) is not None)

            return run

        def calibrate(*, model, out):
            make_bundle(out)

        def generate(*, bundle, out):
            out.mkdir()

        def simulate(*, bundle, rtl, rows, out):
            make_results(out, bundle, flip=flip)

        def compile(*, bundle, config, fit, out):
            make_program(out, bundle)

        def execute(*, program, images, check, tensors, out):
            make_run(out, program, flip=wrong)

        for name, make in (
            ("calibrate", calibrate),
            ("generate", generate),
            ("simulate", simulate),
            ("compile", compile),
            ("run", execute),
        ):
            module = importlib.import_module(f"qvit_hw.{name}")
            monkeypatch.setattr(module, "run", step(name, make))
        return calls

    return prepare


def test_the_demo_refuses_a_model_before_any_work(chain, refused, tmp_path):
    calls = chain()
    refused("demo", "--model", "zzz", "--out", tmp_path / "demo", part="Unknown model 'zzz'")
    assert calls == []


def test_the_demo_misses_its_tools_before_any_work(chain, refused, tmp_path, monkeypatch):
    calls = chain()
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    refused("demo", "--out", tmp_path / "demo", part="is missing", status=cli.MISSING_TOOL)
    assert calls == []


def test_a_demo_that_fails_at_once_leaves_no_folder(chain, refused, tmp_path):
    chain(fail="calibrate")
    refused("demo", "--out", tmp_path / "deep" / "demo", part="calibrate has no luck.")


def test_the_demo_chains_the_steps_and_ends_with_the_verdict(chain, tmp_path, capsys):
    calls = chain()
    assert cli.invoke(["demo", "--out", str(tmp_path / "demo")]) == 0
    assert calls == ["calibrate", "generate", "simulate", "compile", "run"]
    out = capsys.readouterr().out
    assert "0 mismatches in 1,559 elements of 3 layers and 1 scenarios" in " ".join(out.split())
    assert "3 of 3 images bit-exact on the accelerator; " in " ".join(out.split())
    assert out.replace("\n", "").rstrip().endswith("report.html")
    assert (tmp_path / "demo" / "report.html").is_file()


def test_a_mismatch_in_the_demo_still_gets_its_report(chain, tmp_path, capsys):
    chain(flip="blocks.0.norm2")
    assert cli.invoke(["demo", "--out", str(tmp_path / "demo")]) == cli.MISMATCH
    assert "1 mismatches" in capsys.readouterr().out
    assert "First difference in blocks.0.norm2" in (tmp_path / "demo" / "report.html").read_text()


def test_an_image_that_differs_in_the_demo_still_gets_its_report(chain, tmp_path, capsys):
    chain(wrong=1)
    assert cli.invoke(["demo", "--out", str(tmp_path / "demo")]) == cli.MISMATCH
    out = " ".join(capsys.readouterr().out.split())
    assert "2 of 3 images bit-exact on the accelerator" in out
    assert "image-1, head: row 0, column 0" in out
    assert "image-1" in (tmp_path / "demo" / "report.html").read_text()


@pytest.mark.parametrize(("flip", "status"), [(None, 0), ("blocks.0.attn", cli.MISMATCH)])
def test_a_network_that_the_accelerator_cannot_run_is_told(chain, tmp_path, capsys, flip, status):
    calls = chain(flip=flip, fail="compile")
    command = ["demo", "--model", "swin_tiny_patch4_window7_224", "--out", str(tmp_path / "demo")]
    assert cli.invoke(command) == status
    assert calls == ["calibrate", "generate", "simulate", "compile"]
    sentence = "The network did not run on the accelerator: compile has no luck."
    assert sentence in " ".join(capsys.readouterr().out.split())
    assert sentence in (tmp_path / "demo" / "report.html").read_text()
    assert json.loads((tmp_path / "demo" / "report.json").read_text())["accelerator"] is None


def test_digits_that_the_accelerator_does_not_run_are_no_success(chain, tmp_path, capsys):
    chain(fail="compile")
    assert cli.invoke(["demo", "--out", str(tmp_path / "demo")]) == cli.BAD_INPUT
    assert "error: compile has no luck." in capsys.readouterr().err


def test_the_demo_stops_at_the_first_step_that_fails(chain, tmp_path, capsys):
    calls = chain(fail="generate")
    assert cli.invoke(["demo", "--out", str(tmp_path / "demo")]) == cli.BAD_INPUT
    assert calls == ["calibrate", "generate"]
    assert capsys.readouterr().err == "error: generate has no luck.\n"


def test_a_second_demo_starts_afresh(chain, tmp_path):
    chain(flip="blocks.0.attn")
    cli.invoke(["demo", "--out", str(tmp_path / "demo")])
    chain()
    assert cli.invoke(["demo", "--out", str(tmp_path / "demo")]) == 0

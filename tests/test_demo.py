# SPDX-License-Identifier: Apache-2.0
"""The demo: its steps in their order, what ends it, and the verdict that it ends with."""

import importlib
import json

import pytest
from accelerator_samples import make_program, make_run
from report_samples import make_bundle, make_results

from qvit_hw import cli
from qvit_hw.errors import Unsupported, UserError


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

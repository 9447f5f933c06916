# SPDX-License-Identifier: Apache-2.0
"""The check can fail: seeded bugs in the Verilog turn the whole run red, and it says where."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file
from sim_units import CONTROL_FAULTS, FAULTS, edit, make_unit

from golden.gelu import GeluSpec
from golden.layernorm import LayerNormSpec
from golden.softmax import SoftmaxSpec
from qvit_hw import cli, generate, simulate
from qvit_hw.errors import UserError
from sim.job import Job
from sim.runner import build, run_job
from sim.scenarios import scenarios
from sim.tools import find

PROBES = {
    "softmax": ["maximum", "total", "log_total"],
    "layernorm": ["total", "squares", "variance", "rsqrt", "rsqrt_shift"],
}


def results(out):
    return json.loads((out / "results.json").read_text())


def test_the_unit_as_it_is_passes(bundle, rtl, tmp_path):
    out = tmp_path / "out"
    options = ["--bundle", bundle, "--rtl", rtl, "--out", out]
    assert cli.invoke(["simulate", *map(str, options)]) == 0
    told = results(out)
    assert told["passed"]
    layers = [run for run in told["runs"] if run["layer"]]
    assert [run["layer"] for run in layers] == ["blocks.0.norm1", "blocks.0.norm2", "blocks.0.attn"]
    assert sum(run["mismatches"] for run in told["runs"]) == 0
    assert all(run["cycles"] == run["cycles_predicted"] for run in layers)
    assert {run["scenario"] for run in told["runs"]} > {"vectors", "corners", "row_too_long"}
    outputs = load_file(out / "outputs.safetensors")
    assert sorted(outputs) == sorted(run["output"] for run in layers)
    for unit in ("qvit_softmax", "qvit_layernorm"):
        assert told["rtl"][unit] == hashlib.sha256((rtl / f"{unit}.v").read_bytes()).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["table", "rounding", "state"])
@pytest.mark.parametrize("op", ["softmax", "layernorm"])
def test_a_seeded_bug_turns_the_run_red(op, fault, bundle, rtl, tmp_path):
    bad, out = tmp_path / "bad", tmp_path / "out"
    shutil.copytree(rtl, bad)
    file = bad / f"qvit_{op}.v"
    file.write_text(edit(file.read_text(), *FAULTS[op][fault]))
    options = ["--bundle", bundle, "--rtl", bad, "--op", op, "--out", out, "--no-scenarios"]
    options += ["--scenarios"] if fault == "table" else []
    assert cli.invoke(["simulate", *map(str, options), "--allow-modified"]) == 1
    told = results(out)
    assert not told["passed"]
    wrong = [run for run in told["runs"] if run["mismatches"]]
    assert wrong
    for run in wrong:
        assert run["fault"]
        place = run["divergence"]
        assert place["golden"] != place["rtl"]
        assert 0 <= place["row"] < run["rows"]
        assert place["cycle"] > 0
    place = wrong[0]["divergence"]
    assert [entry["name"] for entry in place["intermediates"]] == PROBES[op]
    assert all(entry["rtl"] is not None for entry in place["intermediates"])
    assert (out / place["waveform"]).stat().st_size > 1000
    if fault == "state":  # the row alone would be right: it is run again behind the one before it
        unequal = [entry["name"] for entry in place["intermediates"] if not entry["equal"]]
        assert unequal[0] == {"softmax": "total", "layernorm": "squares"}[op]
    codes = load_file(out / "outputs.safetensors")
    for run in told["runs"]:
        if run["layer"] and run["mismatches"]:
            assert np.ptp(codes[run["output"]]) > 0


CONTROL_SCENARIOS = {"buffer_full", "params_overlap", "params_early", "ready_late"}


@pytest.mark.slow
@pytest.mark.parametrize(("op", "fault"), CONTROL_FAULTS)
def test_a_bug_of_control_is_seen_by_a_scenario(op, fault, tmp_path):
    specs = {
        "softmax": SoftmaxSpec(max_tokens=200),
        "layernorm": LayerNormSpec(max_channels=200),
        "gelu": GeluSpec(in_bits=6, out_bits=16),
    }
    unit = make_unit(op, specs[op], 8, tmp_path)
    text = unit.verilog.read_text()
    unit.verilog.write_text(edit(text, *CONTROL_FAULTS[op, fault], all_places=True))
    cases = [case for case in scenarios(unit, rows=6) if case.name in CONTROL_SCENARIOS]
    assert len(cases) == len(CONTROL_SCENARIOS)
    simulation = build(find("verilator"), unit.verilog, unit.top)
    (tmp_path / "run").mkdir()
    assert any(fault for _, fault in run_job(simulation, Job(unit, cases), tmp_path / "run"))


def test_modified_verilog_needs_the_option(bundle, rtl, tmp_path):
    bad = tmp_path / "bad"
    shutil.copytree(rtl, bad)
    file = bad / "qvit_softmax.v"
    file.write_text(file.read_text() + "\n")
    with pytest.raises(UserError, match=r"^qvit_softmax\.v is not the file .*--allow-modified\.$"):
        simulate.run(bundle=bundle, rtl=bad, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rtl_of_another_spec_is_refused(bundle, tmp_path):
    other = tmp_path / "rtl"
    assert generate.run(out=other, op="softmax", lanes=2) == 0
    with pytest.raises(UserError, match=r"max_tokens must be 64, not 1024\.$"):
        simulate.run(bundle=bundle, rtl=other, out=tmp_path / "out")


def test_verilog_that_does_not_compile_is_told(bundle, rtl, tmp_path):
    bad = tmp_path / "bad"
    shutil.copytree(rtl, bad)
    file = bad / "qvit_softmax.v"
    file.write_text(file.read_text().replace("endmodule", "endmodul", 1))
    with pytest.raises(UserError, match=r"^qvit_softmax\.v does not compile: line \d+: "):
        simulate.run(
            bundle=bundle, rtl=bad, op="softmax", out=tmp_path / "out", allow_modified=True
        )
    assert not (tmp_path / "out" / "results.json").exists()

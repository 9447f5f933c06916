# SPDX-License-Identifier: Apache-2.0
"""After its reset nothing depends on what was in registers and memories before.

The Verilog is simulated without any initial value (:mod:`unknowns`) on Verilator, with noise in their place,
other noise each time. On Icarus, where they are X, it is in ``test_sim_icarus.py``.
"""

import re
from dataclasses import replace
from functools import partial

import pytest
import torch
from sim_units import make_unit
from unknowns import uninitialised, without_reset

import qvit_hw.accelerator
from golden.accelerator import AcceleratorSpec
from golden.gelu import GeluSpec
from golden.layernorm import LayerNormSpec
from golden.requant import RequantSpec
from golden.residual import ResidualSpec
from golden.softmax import SoftmaxSpec
from golden.vit import VitModel
from qvit_hw.accelerator import Accelerator, emitted
from qvit_hw.calibration import calibrate_network
from qvit_hw.compiler.layout import fitted
from qvit_hw.compiler.schedule import compile_network
from qvit_hw.compiler.stages import recognise
from qvit_hw.integers import export
from qvit_hw.models import load_model
from qvit_hw.models.digits import digits_images
from qvit_hw.presets import find_preset
from sim.accelerator import build_bench, simulate
from sim.compare import compare
from sim.job import Job
from sim.runner import NOISE, ROW_UNIT, build, run_job
from sim.scenarios import scenarios
from sim.tools import find

SEEDS = (1, 2, 3)
UNITS = {
    "softmax": (SoftmaxSpec(max_tokens=40), 4),
    "layernorm": (LayerNormSpec(max_channels=24), 3),
    "gelu": (GeluSpec(in_bits=6), 2),
    "requant": (RequantSpec(acc_bits=24), 2),
    "residual": (ResidualSpec(), 2),
}
CASES = ("no_stall", "stall_both_0.5", "params_overlap", "reset_after_40")


def noisy(op, text, folder, seeds=SEEDS):
    """Faults of all cases under each seed; ``text``: edits the uninitialised Verilog."""
    spec, lanes = UNITS[op]
    unit = make_unit(op, spec, lanes, folder)
    unit.verilog.write_text(text(uninitialised(unit.verilog.read_text())))
    # Of a unit that keeps no row the rows are long: the first case will do.
    names = CASES if op in ("softmax", "layernorm") else CASES[:2]
    cases = [case for case in scenarios(unit, rows=2) if case.name in names]
    assert len(cases) == len(names)
    style = replace(ROW_UNIT, verilator=(*ROW_UNIT.verilator, *NOISE))
    simulation = build(find("verilator"), unit.verilog, unit.top, style=style)
    faults = []
    for seed in seeds:
        noise = (f"+verilator+seed+{seed}", "+verilator+rand+reset+2")
        results = run_job(simulation, Job(unit, cases), folder / str(seed), plusargs=noise)
        for case, (outcome, fault) in zip(cases, results, strict=True):
            found = compare(case, outcome, lanes)
            assert fault is not None or found.elements == case.expected.size > 0
            faults.append(fault or found.fault or outcome.error)
    return faults


@pytest.mark.parametrize("op", UNITS)
def test_units_with_noise_for_initial_values(op, tmp_path):
    assert not any(noisy(op, lambda text: text, tmp_path))


def test_a_register_without_its_reset_is_found(tmp_path):
    faults = noisy("softmax", lambda text: without_reset(text, "rows"), tmp_path, seeds=(1,))
    assert "register rows must be" in faults[0]


def test_the_transformation_takes_every_initial_value(tmp_path):
    unit = make_unit("layernorm", *UNITS["layernorm"], tmp_path)
    text = unit.verilog.read_text()
    bare = uninitialised(text)
    assert text.count("initial begin") > 3
    # What is left are tables, which nothing writes.
    left = set(re.findall(r"initial begin\n +(\w+)\[0\]", bare))
    assert bare.count("initial begin") == len(left) < text.count("initial begin")
    assert not any(re.search(rf"(?m)^ *{name} ?\[.*\] <= ", bare) for name in left)
    assert not re.search(r"(?m)^  reg .* = ", bare)
    assert uninitialised(bare) == bare
    table = "module t(x);\n  reg [3:0] rom [1:0];\n  initial begin\n    rom[0] = 4'h1;\n    rom[1] = 4'h2;\n"
    table += "  end\n"
    assert uninitialised(table) == table
    written = f"{table}  always @(posedge clk)\n    rom[x] <= 4'h0;\n"
    assert "initial" not in uninitialised(written)


# ------------------------------------------------------------------------------------ the accelerator

SMALL = dict.fromkeys(("features", "queries", "keys", "values", "stream", "scores", "codes"), 2048)


@pytest.mark.slow
def test_the_accelerator_with_noise_for_initial_values(tmp_path, monkeypatch):
    """Images of digits: every logit is golden's, whatever the noise."""
    loaded = load_model("digits")
    known = torch.tensor(digits_images("train")[0][:8])
    twin, _ = calibrate_network(loaded.network, known, find_preset("default"))
    model = VitModel(export(loaded.network, twin.plan), loaded.input_size)
    spec = AcceleratorSpec(size=4, max_tokens=32, outputs=16, **SMALL)
    program = compile_network(model, fitted(recognise(model), spec))
    images = digits_images("test")[0][:2]
    verilog = uninitialised(emitted(program.spec))
    accelerator = Accelerator(program)
    accelerator.__dict__["simulation"] = build_bench(
        find("verilator"), verilog, program.spec, tmp_path, noise=True
    )
    for seed in SEEDS:
        noise = (f"+verilator+seed+{seed}", "+verilator+rand+reset+2")
        with monkeypatch.context() as patch:
            patch.setattr(qvit_hw.accelerator, "simulate", partial(simulate, plusargs=noise))
            found = accelerator.run(images, expected=list(model(images)), watch=seed == 1)
        assert [execution.fault for execution in found] == [None] * len(images)
        assert [e.outputs.tolist() for e in found] == model(images).tolist()

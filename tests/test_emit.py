# SPDX-License-Identifier: Apache-2.0
"""Emitted Verilog: the same bytes everywhere, plain names, clean under Verilator's lint."""

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from golden.layernorm import LayerNormSpec
from golden.softmax import SoftmaxSpec
from qvit_hw.generate import DEFAULTS, WAIVERS, build_unit
from rtl.axi import AxiLayerNorm, AxiSoftmax
from rtl.emit import emit
from sim.tools import find

ROOT = Path(__file__).resolve().parent.parent
TOPS = {
    "softmax": lambda lanes: AxiSoftmax(SoftmaxSpec(), lanes=lanes),
    "layernorm": lambda lanes: AxiLayerNorm(LayerNormSpec(), lanes=lanes),
}
BUDGET = {
    # Rule: most of it that a unit may show per lane, and on top of that. More than that is a bug.
    "DECLFILENAME": (0, 1),
    "INITIALDLY": (0, 14),
    "PROCASSINIT": (31, 290),
    "UNUSEDSIGNAL": (55, 260),
    "WIDTHEXPAND": (11, 48),
}


@pytest.fixture(scope="module")
def verilog():
    return {(op, lanes): emit(TOPS[op](lanes), f"qvit_{op}") for op in TOPS for lanes in (1, 8, 13)}


EMIT_ALL = f"""
import hashlib, sys
sys.path.insert(0, {str(ROOT)!r})
from golden.accelerator import AcceleratorSpec
from golden.softmax import SoftmaxSpec
from qvit_hw.generate import DEFAULTS, build_unit
from rtl.accelerator import Accelerator
from rtl.axi import AxiSoftmax
from rtl.emit import emit
texts = {{op: build_unit(op, spec, 2).verilog for op, spec in DEFAULTS.items()}}
texts["accelerator"] = emit(Accelerator(AcceleratorSpec(size=4)), "qvit_accelerator")
texts["plain"] = emit(AxiSoftmax(SoftmaxSpec(), lanes=8), "qvit_softmax")
for name, text in texts.items():
    print(name, hashlib.sha256(text.encode()).hexdigest())
# What a set of strings gives first differs from seed to seed: the twin of the texts, which do not.
print("order", next(iter({{str(number) for number in range(10_000)}})))
"""


@pytest.mark.slow
def test_the_same_bytes_in_every_process(verilog, tmp_path):
    """Every unit and the accelerator, whatever the seed of Python's hashes and the working folder."""
    told = []
    for seed in ("0", "4242"):
        folder = tmp_path / seed
        folder.mkdir()
        ran = subprocess.run(
            [sys.executable, "-c", EMIT_ALL],
            cwd=folder,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
        told.append(dict(line.split() for line in ran.stdout.splitlines()))
    orders = {each.pop("order") for each in told}
    assert len(orders) == 2, "the seeds make no difference to anything"
    assert told[0] == told[1]
    assert set(told[0]) == {*DEFAULTS, "accelerator", "plain"}
    assert told[0]["plain"] == hashlib.sha256(verilog["softmax", 8].encode()).hexdigest()


@pytest.mark.parametrize("op", TOPS)
def test_no_path_no_date_no_tool(op, verilog):
    text = verilog[op, 8]
    assert not re.search(r"(?i)/(home|root|usr|tmp|work)/|site-packages|\.py\b|\.cc\b", text)
    assert not re.search(r"\b(19|20)\d\d-\d\d|\d\d:\d\d:\d\d|(?i:yosys|amaranth)", text)
    assert "(* src" not in text


@pytest.mark.parametrize("op", TOPS)
def test_header_and_names(op, verilog):
    lines = verilog[op, 8].splitlines()
    assert lines[0].startswith("// qvit-hw: ")
    assert lines[1].startswith("// 8 elements per beat, ")
    assert lines[2] == "// SPDX-License-Identifier: Apache-2.0"
    modules = re.findall(r"(?m)^module (\S+?)\s?\(", verilog[op, 8])
    assert modules[0] == f"qvit_{op}"
    assert f"qvit_{op}_core" in modules
    assert all(re.fullmatch(rf"qvit_{op}\w*", module) for module in modules)
    assert len(set(modules)) == len(modules)
    ports = re.search(r"module \w+\(([^)]*)\)", verilog[op, 8])[1]
    assert {"aclk", "aresetn", "s_axis_tdata", "m_axis_tready", "s_axil_awaddr"} <= {
        port.strip() for port in ports.split(",")
    }


def lint(text, op, folder, *, waivers):
    tools = find("verilator")
    (folder / f"qvit_{op}.v").write_text(text)
    (folder / "waivers.vlt").write_text(WAIVERS)
    sources = [*(["waivers.vlt"] if waivers else []), f"qvit_{op}.v"]
    command = [tools.command, "--lint-only", "-Wall", "-Wno-fatal", "--top-module", f"qvit_{op}"]
    ran = subprocess.run(
        [*command, *sources], cwd=folder, env=tools.env, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert "%Error" not in ran.stderr
    return Counter(re.findall(r"%Warning-(\w+):", ran.stderr))


@pytest.mark.parametrize("lanes", [1, 8, 13])
@pytest.mark.parametrize("op", TOPS)
def test_lint(op, lanes, verilog, tmp_path):
    assert lint(verilog[op, lanes], op, tmp_path, waivers=True) == {}
    found = lint(verilog[op, lanes], op, tmp_path, waivers=False)
    assert set(found) <= set(BUDGET)
    for rule, count in found.items():
        per_lane, more = BUDGET[rule]
        assert count <= per_lane * lanes + more, (rule, count)


@pytest.mark.parametrize("op", ["gelu", "requant", "residual"])
def test_lint_of_the_stream_units(op, tmp_path):
    for lanes in (1, 3):
        text = build_unit(op, DEFAULTS[op], lanes).verilog
        assert lint(text, op, tmp_path, waivers=True) == {}


def test_lint_sees_a_fault(verilog, tmp_path):
    """The waivers hide no latch and no truncated value."""
    text = verilog["softmax", 8]
    latch = "\n  reg hung;\n  always @* if (aresetn) hung = s_axis_tvalid;\nendmodule"
    assert lint(text.replace("\nendmodule", latch, 1), "softmax", tmp_path, waivers=True)["LATCH"]
    cut = "\n  wire [3:0] cut = s_axil_wdata;\nendmodule"
    found = lint(text.replace("\nendmodule", cut, 1), "softmax", tmp_path, waivers=True)
    assert found["WIDTHTRUNC"]


def test_waivers_are_few_and_explained():
    rules = re.findall(r"(?m)^lint_off -rule (\w+) ", WAIVERS)
    assert sorted(rules) == sorted(BUDGET)
    lines = WAIVERS.splitlines()
    for rule in rules:
        at = next(i for i, line in enumerate(lines) if f"-rule {rule} " in line)
        assert lines[at - 1].startswith("// ")


def test_emit_leaves_the_environment_alone(monkeypatch):
    monkeypatch.delenv("AMARANTH_USE_YOSYS", raising=False)
    emit(AxiSoftmax(SoftmaxSpec(max_tokens=8), lanes=1), "top")
    assert "AMARANTH_USE_YOSYS" not in os.environ
    monkeypatch.setenv("AMARANTH_USE_YOSYS", "system")
    emit(AxiSoftmax(SoftmaxSpec(max_tokens=8), lanes=1), "top")
    assert os.environ["AMARANTH_USE_YOSYS"] == "system"


@pytest.mark.parametrize(
    ("name", "error", "part"),
    [
        (3, TypeError, r"^Module name must be a string, not 3$"),
        ("9lives", ValueError, r"^Module name must be a Verilog identifier, not '9lives'$"),
        ("a b", ValueError, r"^Module name must be a Verilog identifier, not 'a b'$"),
    ],
)
def test_bad_names(name, error, part):
    with pytest.raises(error, match=part):
        emit(None, name)

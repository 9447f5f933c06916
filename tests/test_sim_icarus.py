# SPDX-License-Identifier: Apache-2.0
"""The second opinion: the same Verilog and the same scenarios in Icarus, where unknowns are X."""

import pytest
from report_samples import make_bundle
from sim_units import FAULTS, edit, make_unit, simulate
from unknowns import uninitialised, without_reset

from golden.gelu import GeluSpec
from golden.layernorm import LayerNormSpec
from golden.requant import RequantSpec
from golden.residual import ResidualSpec
from golden.softmax import SoftmaxSpec
from qvit_hw import cli, generate
from sim.scenarios import back_to_back, scenarios

pytestmark = pytest.mark.icarus

UNITS = [
    ("softmax", SoftmaxSpec(max_tokens=64), 4),
    ("softmax", SoftmaxSpec(base="sqrt2", code_bits=5, max_tokens=40), 3),
    ("layernorm", LayerNormSpec(max_channels=40), 4),
    ("layernorm", LayerNormSpec(max_channels=24, affine="shift", in_bits=10, out_bits=6), 3),
]

STREAMS = [
    ("gelu", GeluSpec(in_bits=6, out_bits=16), 8),
    ("requant", RequantSpec(acc_bits=24, out_bits=4), 8),
    ("residual", ResidualSpec(in_bits=16, max_shift=0, gain_bits=32), 8),
]
SHORT = ("no_stall", "stall_both_0.5", "params_early", "corners")
"""Of a unit that keeps no row: the others are about rows that it keeps, or of thousands of elements."""


@pytest.mark.parametrize(("op", "spec", "lanes"), UNITS, ids=lambda value: str(value)[:40])
def test_scenarios(op, spec, lanes, tmp_path):
    unit = make_unit(op, spec, lanes, tmp_path)
    cases = [*scenarios(unit, rows=4, corner_length=16), back_to_back(unit, 8)]
    simulate(unit, cases, tmp_path / "run", "icarus")


@pytest.mark.parametrize(("op", "spec", "lanes"), STREAMS, ids=lambda value: str(value)[:40])
def test_stream_units(op, spec, lanes, tmp_path):
    unit = make_unit(op, spec, lanes, tmp_path)
    cases = [case for case in scenarios(unit, rows=2) if case.name in SHORT]
    assert len(cases) == len(SHORT)
    simulate(unit, cases, tmp_path / "run", "icarus")


UNKNOWN = {
    # All channels of a beat have parameters: 0 << X is 0 in hardware, and X in Icarus.
    "softmax": (SoftmaxSpec(max_tokens=40), 4, ("no_stall", "mixed_lengths", "reset_after_40")),
    "layernorm": (LayerNormSpec(max_channels=24), 3, ("no_stall", "stall_both_0.5", "reset_after_40")),
    "gelu": (GeluSpec(in_bits=6), 2, ("no_stall",)),
    "requant": (RequantSpec(acc_bits=24), 2, ("no_stall",)),
    "residual": (ResidualSpec(), 2, ("no_stall",)),
}


def unknown(op, folder, change=lambda text: text):
    """Simulate a unit whose registers and memories begin as X; no port it drives may be X after reset."""
    spec, lanes, names = UNKNOWN[op]
    unit = make_unit(op, spec, lanes, folder)
    unit.verilog.write_text(change(uninitialised(unit.verilog.read_text())))
    cases = [case for case in scenarios(unit, rows=2) if case.name in names]
    assert len(cases) == len(names)
    simulate(unit, cases, folder / "run", "icarus")


@pytest.mark.parametrize("op", UNKNOWN)
def test_nothing_is_unknown_after_reset(op, tmp_path):
    unknown(op, tmp_path)


@pytest.mark.parametrize("register", ["swallow", "s_axil_rvalid", "rows"])
def test_a_register_without_its_reset_is_found(register, tmp_path):
    """Its X reaches a handshake, or a register that is read."""
    with pytest.raises(AssertionError, match="no_stall"):
        unknown("gelu", tmp_path, lambda text: without_reset(text, register))


def test_the_command_runs_it_and_sees_a_bug(tmp_path):
    bundle = make_bundle(tmp_path / "bundle")
    rtl = tmp_path / "rtl"
    assert generate.run(out=rtl, bundle=bundle, op="softmax", lanes=8) == 0
    options = ["simulate", "--bundle", bundle, "--rtl", rtl, "--op", "softmax", "--no-scenarios"]
    options += ["--simulator", "icarus", "--out", tmp_path / "good"]
    assert cli.invoke([*map(str, options), "--waves"]) == 0
    assert (tmp_path / "good" / "waves" / "softmax-0.fst").stat().st_size > 1000
    file = rtl / "qvit_softmax.v"
    file.write_text(edit(file.read_text(), *FAULTS["softmax"]["state"]))
    options[-1] = tmp_path / "bad"
    assert cli.invoke([*map(str, options), "--allow-modified"]) == 1
    assert list((tmp_path / "bad" / "waves").glob("*.fst"))

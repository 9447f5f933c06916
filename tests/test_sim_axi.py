# SPDX-License-Identifier: Apache-2.0
"""The AXI side of the tops: registers, repairs, and a second AXI implementation as the master."""

import numpy as np
import pytest
from sim_units import make_unit

from golden.gelu import GeluSpec
from golden.layernorm import LayerNormSpec
from golden.residual import ResidualSpec
from golden.softmax import SoftmaxParams, SoftmaxSpec
from qvit_hw.mutation.subjects import register_case
from sim.bench import JOB_VARIABLE
from sim.job import Job
from sim.runner import build, run_tests
from sim.scenarios import Row, case_of, operator
from sim.tools import find

SPECS = {
    "softmax": SoftmaxSpec(max_tokens=100),
    "layernorm": LayerNormSpec(max_channels=100, in_bits=12),
}


NAMES = (
    *("readable", "refused", "decoded", "channel_order"),
    *("late_response", "late_read", "untouched", "kept", "repaired"),
)
"""All tests of the module."""


@pytest.fixture(scope="module", params=["softmax", "layernorm"])
def unit(request, tmp_path_factory):
    return make_unit(request.param, SPECS[request.param], 4, tmp_path_factory.mktemp("unit"))


def job_folder(unit, folder, lengths):
    op = operator(unit.op, unit.spec)
    rng = np.random.default_rng(3)
    params = op.random_params(rng, op.longest)
    rows = [Row(op.telling_row(rng, n), params) for n in lengths]
    folder.mkdir()
    Job(unit, [case_of("rows", rows, op, unit.lanes)]).write(folder)
    return {JOB_VARIABLE: str(folder)}


def run_all(unit, module, names, folder, lengths):
    env = job_folder(unit, folder, lengths)
    simulation = build(find("verilator"), unit.verilog, unit.top)
    faults = run_tests(simulation, module, [f"{module}.{name}" for name in names], folder, env=env)
    assert faults == dict.fromkeys(faults)


def test_the_row_behind_a_refused_write_has_other_codes_by_each_frac(tmp_path):
    unit = make_unit("softmax", SoftmaxSpec(max_tokens=64), 2, tmp_path)
    op, elements = operator(unit.op, unit.spec), register_case(unit).elements
    codes = {tuple(op.golden(Row(elements, SoftmaxParams(frac=frac)))) for frac in range(1, 5)}
    assert len(codes) == 4
    far = Row(elements[::2], SoftmaxParams(frac=4))
    assert [*op.golden(far)] == [*op.golden(Row(far.elements, SoftmaxParams(frac=3)))]


def test_registers_and_repairs(unit, tmp_path):
    run_all(unit, "sim.tb_axi", NAMES, tmp_path / "run", [15])


@pytest.mark.parametrize(
    ("op", "spec"), [("gelu", GeluSpec(in_bits=6)), ("residual", ResidualSpec(acc_bits=12))]
)
def test_registers_and_repairs_of_a_stream_unit(op, spec, tmp_path):
    unit = make_unit(op, spec, 4, tmp_path)
    run_all(unit, "sim.tb_axi", NAMES, tmp_path / "run", [15])


def test_a_second_axi_implementation_agrees(unit, tmp_path):
    names = [f"outside/pauses={p}" for p in ("none", "source", "sink", "both")]
    run_all(unit, "sim.tb_outside", names, tmp_path / "run", [1, 3, 4, 5, 49, 100, 8, 2, 97])

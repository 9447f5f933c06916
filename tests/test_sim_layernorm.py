# SPDX-License-Identifier: Apache-2.0
"""The emitted layernorm unit in Verilator: every scenario on every spec of the grid, every cycle."""

import pytest
from sim_units import check_every_scenario, make_unit, simulate

from golden.layernorm import SPEC_GRID, LayerNormSpec
from sim.scenarios import scenarios

UNITS = [
    # (spec, lanes): every spec of the grid, every power of two.
    (SPEC_GRID[3], 1),
    (SPEC_GRID[4], 2),
    (SPEC_GRID[5], 4),
    (SPEC_GRID[0], 8),
    (SPEC_GRID[1], 16),
    (SPEC_GRID[2], 32),
]


def test_the_grid_is_covered():
    assert {spec for spec, _ in UNITS} == set(SPEC_GRID)
    assert {1, 2, 4, 8, 16, 32} <= {lanes for _, lanes in UNITS}


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "lanes"), UNITS, ids=lambda value: str(value)[:60])
def test_scenarios(spec, lanes, tmp_path):
    # A row of many channels takes three parameter writes for each.
    corner_length = None if spec.max_channels < 500 else 300
    check_every_scenario("layernorm", spec, lanes, tmp_path, corner_length)


def test_small_unit_takes_every_scenario(tmp_path):
    unit = make_unit("layernorm", LayerNormSpec(max_channels=200), 8, tmp_path)
    names = [case.name for case in scenarios(unit, rows=4)]
    assert len(names) == len(set(names)) >= 20


@pytest.mark.slow
def test_narrow_multipliers_change_neither_codes_nor_cycles(tmp_path):
    """Built for multipliers of 18 bits, the unit passes what it passes with those of 27."""
    narrow = make_unit("layernorm", LayerNormSpec(max_channels=200), 8, tmp_path, port_bits=18)
    assert "scaled_0_part_0_17" in narrow.verilog.read_text()
    simulate(narrow, scenarios(narrow, rows=4), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("affine", ["dyadic", "shift"])
def test_banks_that_one_block_ram_does_not_hold_have_one_each(affine, tmp_path):
    spec = LayerNormSpec(affine=affine)
    wide = make_unit("layernorm", spec, 2, tmp_path, port_bits=27)
    assert "offset_memory_0_1" not in wide.verilog.read_text()
    unit = make_unit("layernorm", spec, 2, tmp_path, port_bits=18)
    assert "offset_memory_0_1" in unit.verilog.read_text()
    names = {"params_change_stalled", "params_overlap", "crossed_both", "row_too_long"}
    cases = [case for case in scenarios(unit, rows=4, corner_length=8) if case.name in names]
    assert {case.name for case in cases} == names
    longest = max(case.received.max() for case in cases)
    assert longest == spec.max_channels, "the highest addresses of the tables"
    simulate(unit, cases, tmp_path / "run")

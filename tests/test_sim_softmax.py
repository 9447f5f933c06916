# SPDX-License-Identifier: Apache-2.0
"""The emitted softmax unit in Verilator: every scenario on every spec of the grid, every cycle."""

import pytest
from sim_units import check_every_scenario, make_unit

from golden.softmax import SPEC_GRID, SoftmaxSpec
from sim.scenarios import scenarios

UNITS = [
    # (spec, lanes): every spec of the grid, every power of two.
    (SPEC_GRID[5], 1),
    (SPEC_GRID[4], 2),
    (SPEC_GRID[2], 3),
    (SPEC_GRID[3], 4),
    (SPEC_GRID[0], 8),
    (SPEC_GRID[1], 16),
    (SPEC_GRID[0], 32),
]


def test_the_grid_is_covered():
    assert {spec for spec, _ in UNITS} == set(SPEC_GRID)
    assert {1, 2, 4, 8, 16, 32} <= {lanes for _, lanes in UNITS}


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "lanes"), UNITS, ids=lambda value: str(value)[:60])
def test_scenarios(spec, lanes, tmp_path):
    check_every_scenario("softmax", spec, lanes, tmp_path)


def test_small_unit_takes_every_scenario(tmp_path):
    unit = make_unit("softmax", SoftmaxSpec(max_tokens=200), 8, tmp_path)
    names = [case.name for case in scenarios(unit, rows=4)]
    assert len(names) == len(set(names)) >= 20

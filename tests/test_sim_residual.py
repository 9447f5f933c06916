# SPDX-License-Identifier: Apache-2.0
"""The emitted residual in Verilator: every scenario, every cycle; more specs: ``test_stream_rtl.py``."""

import pytest
from sim_units import check_every_scenario

from golden.residual import SPEC_GRID

UNITS = [(SPEC_GRID[0], 8), (SPEC_GRID[1], 3)]


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "lanes"), UNITS, ids=lambda value: str(value)[:60])
def test_scenarios(spec, lanes, tmp_path):
    check_every_scenario("residual", spec, lanes, tmp_path)

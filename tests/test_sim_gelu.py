# SPDX-License-Identifier: Apache-2.0
"""The emitted GELU table in Verilator: every scenario, every cycle; more specs: ``test_stream_rtl.py``."""

import pytest
from sim_units import check_every_scenario

from golden.gelu import GeluSpec


@pytest.mark.slow
def test_scenarios(tmp_path):
    check_every_scenario("gelu", GeluSpec(), 8, tmp_path)

# SPDX-License-Identifier: Apache-2.0
"""Tests that need Icarus Verilog are there if it is; CI demands them with QVIT_REQUIRE_ICARUS=1."""

import os

from sim.tools import have_icarus

RUN_ICARUS = have_icarus() or os.environ.get("QVIT_REQUIRE_ICARUS") == "1"

collect_ignore = [] if RUN_ICARUS else ["test_sim_icarus.py"]


def pytest_report_header():
    """Say in one line what is not run."""
    return [] if RUN_ICARUS else "Icarus Verilog is not installed: tests/test_sim_icarus.py is not run"

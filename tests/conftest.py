# SPDX-License-Identifier: Apache-2.0
"""What all tests share: threads, Hypothesis's patience, and which tests are there.

Tests that need Icarus Verilog are there if it is; CI demands them with QVIT_REQUIRE_ICARUS=1.
"""

import os

import pytest
from hypothesis import settings

from sim.tools import have_icarus

RUN_ICARUS = have_icarus() or os.environ.get("QVIT_REQUIRE_ICARUS") == "1"

collect_ignore = [] if RUN_ICARUS else ["test_sim_icarus.py"]

# A time limit per example fails on a busy machine and says nothing about the code.
settings.register_profile("no deadline", settings.default, deadline=None)
settings.load_profile("no deadline")


def pytest_report_header():
    """Say in one line what is not run."""
    return [] if RUN_ICARUS else "Icarus Verilog is not installed: tests/test_sim_icarus.py is not run"


@pytest.fixture
def one_thread():
    """Let torch compute on one thread: small tensors are slower on several."""
    from qvit_hw.measuring import one_thread  # here, so that tests without torch do not wait for it

    with one_thread():
        yield

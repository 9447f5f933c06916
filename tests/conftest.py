# SPDX-License-Identifier: Apache-2.0
"""What all tests share: threads, Hypothesis's patience, and which tests are there.

Tests that need Icarus Verilog or a browser are there if it is; CI demands them with QVIT_REQUIRE_ICARUS=1 and
QVIT_REQUIRE_BROWSER=1.
"""

import os
import shutil

import pytest
from hypothesis import settings

from sim.tools import have_icarus

RUN_ICARUS = have_icarus() or os.environ.get("QVIT_REQUIRE_ICARUS") == "1"

RUN_BROWSER = shutil.which("chromium") is not None or os.environ.get("QVIT_REQUIRE_BROWSER") == "1"
ABSENT = {
    "test_sim_icarus.py": None if RUN_ICARUS else "Icarus Verilog",
    "test_pages.py": None if RUN_BROWSER else "Chromium",
}

collect_ignore = [name for name, lacks in ABSENT.items() if lacks]

# A time limit per example fails on a busy machine and says nothing about the code.
settings.register_profile("no deadline", settings.default, deadline=None)
settings.load_profile("no deadline")


def pytest_report_header():
    """Say what is not run, a line each."""
    return [f"{lacks} is not installed: tests/{name} is not run" for name, lacks in ABSENT.items() if lacks]


@pytest.fixture
def one_thread():
    """Let torch compute on one thread: small tensors are slower on several."""
    from qvit_hw.measuring import one_thread  # here, so that tests without torch do not wait for it

    with one_thread():
        yield

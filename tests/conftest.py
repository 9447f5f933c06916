# SPDX-License-Identifier: Apache-2.0
"""What all tests share: threads, Hypothesis's patience, a bundle, and which tests are there.

Tests that need Icarus Verilog or a browser are there if it is; CI demands them with QVIT_REQUIRE_ICARUS=1 and
QVIT_REQUIRE_BROWSER=1.
"""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

from qvit_hw import cli
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


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    """A small bundle, made up; a module that needs one of a real network has its own."""
    from report_samples import make_bundle  # here, so that tests without bundles do not wait for it

    return make_bundle(tmp_path_factory.mktemp("sample") / "bundle")


@pytest.fixture(scope="session")
def rtl(bundle, tmp_path_factory):
    """The bundle's units in Verilog, of two lanes."""
    out = tmp_path_factory.mktemp("rtl") / "rtl"
    assert cli.invoke(["generate", "--bundle", str(bundle), "--lanes", "2", "--out", str(out)]) == 0
    return out


@pytest.fixture
def refused(capsys, tmp_path):
    """A function: the command must exit with a status, say one sentence with `part`, leave no `out`."""
    before = set(tmp_path.rglob("*"))

    def check(*arguments, part: str, status: int = cli.BAD_INPUT, made: set[Path] = frozenset()):
        before.update(tmp_path.rglob("*"))
        found = cli.invoke([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert found == status, printed.err
        last = printed.err.strip().splitlines()[-1]
        assert last.startswith("error: "), printed.err
        assert part in last
        assert "Traceback" not in printed.err
        assert set(tmp_path.rglob("*")) - before == set(made), "something was left behind"

    return check

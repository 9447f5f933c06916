# SPDX-License-Identifier: Apache-2.0
"""A log has lines where a terminal has bars."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from qvit_hw import progress


def _logged(total: int | None) -> list[str]:
    log = StringIO()
    with progress.bars(Console(file=log), kept=True) as shown:
        task = shown.add_task("proving", total=total)
        shown.update(task, advance=1)
        shown.advance(task)
        shown.update(task, advance=2, description="proving softmax")
        shown.update(task, completed=4)
    return [line.split(" after ")[0] for line in log.getvalue().splitlines()]


def test_a_log_has_a_line_for_each_step_that_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUIET", 0.0)
    monkeypatch.setattr(progress, "PAUSE", 0.0)
    assert _logged(4) == ["proving: 25 %", "proving: 50 %", "proving softmax: 100 %"]


def test_the_end_is_told_however_soon_it_follows_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUIET", 0.0)
    assert _logged(4) == ["proving softmax: 100 %"]


def test_quick_work_and_work_of_unknown_length_leave_no_line() -> None:
    assert _logged(4) == []
    assert _logged(None) == []


def test_a_terminal_has_bars() -> None:
    log = StringIO()
    with progress.bars(Console(file=log, force_terminal=True, width=80), kept=True) as shown:
        shown.advance(shown.add_task("proving", total=1))
    assert "1/1" in log.getvalue()
    assert " after " not in log.getvalue()

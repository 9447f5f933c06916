# SPDX-License-Identifier: Apache-2.0
"""How far a command is: bars on the standard error, away from its output; in a log, lines."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

__all__ = ["bars"]

QUIET, PAUSE = 2.0, 30.0
"""Seconds: a task that is done sooner gets no line; between two lines of a task, but for its last."""


def bars(console: Console | None = None, *, counted: bool = True, kept: bool = False) -> Progress:
    """Bars with their time; where they cannot move, as in a file, a line now and then.

    console: where lines are printed meanwhile.  counted: each says how much of how many is done.  kept: they
    stay to be read when the work is done.
    """
    console = console or Console(stderr=True)
    if not console.is_terminal:
        return _Lines(console=console)
    counts = [MofNCompleteColumn()] if counted else []
    columns = (TextColumn("{task.description}"), BarColumn(), *counts, TimeElapsedColumn())
    return Progress(*columns, console=console, transient=not kept)


class _Lines(Progress):
    """Progress for a log: each task's share and time, when `PAUSE` has passed and when it is done."""

    def start(self) -> None:
        """Nothing moves."""

    def stop(self) -> None:
        """Nothing is to be wiped away."""

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._tell(task_id)

    def update(self, task_id: TaskID, **fields: Any) -> None:
        super().update(task_id, **fields)
        self._tell(task_id)

    def _tell(self, task_id: TaskID) -> None:
        with self._lock:
            task = self._tasks[task_id]
            elapsed = task.elapsed or 0.0
            due = QUIET if task.finished else task.fields.get("told", 0.0) + PAUSE
            if task.total and elapsed >= due and not task.fields.get("over"):
                task.fields |= {"told": elapsed, "over": task.finished}
                share = f"{task.percentage:.0f} % after {elapsed:.0f} s"
                self.console.print(f"{task.description}: {share}", soft_wrap=True, highlight=False)

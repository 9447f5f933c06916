# SPDX-License-Identifier: Apache-2.0
"""How far a command is: bars on the standard error, which a reader of its output does not see."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["bars"]


def bars(console: Console | None = None, *, counted: bool = True, kept: bool = False) -> Progress:
    """Bars with their time.

    console: where lines are printed meanwhile.  counted: each says how much of how many is done.  kept: they
    stay to be read when the work is done.
    """
    counts = [MofNCompleteColumn()] if counted else []
    columns = (TextColumn("{task.description}"), BarColumn(), *counts, TimeElapsedColumn())
    return Progress(*columns, console=console or Console(stderr=True), transient=not kept)

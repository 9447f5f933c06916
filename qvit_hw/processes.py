# SPDX-License-Identifier: Apache-2.0
"""How many processes a command may use, by its option ``--jobs``, and their end when it is interrupted."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from multiprocessing import active_children

from .errors import UserError

__all__ = ["ended_with", "processes"]


@contextlib.contextmanager
def ended_with() -> Iterator[None]:
    """An exception ends the processes that were begun in the block: a solver sees no interrupt for long."""
    before = {child.pid for child in active_children()}
    try:
        yield
    except BaseException:
        for child in active_children():
            if child.pid not in before:
                child.terminate()
        raise


def processes(jobs: int | None, called: str = "Processes") -> int:
    """``jobs``, or one a core; UserError for less than one."""
    if jobs is not None and jobs < 1:
        raise UserError(f"{called} must be at least 1, not {jobs!r}.")
    return jobs or os.cpu_count() or 1

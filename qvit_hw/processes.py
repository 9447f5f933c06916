# SPDX-License-Identifier: Apache-2.0
"""How many processes a command may use, by its option ``--jobs``."""

from __future__ import annotations

import os

from .errors import UserError

__all__ = ["processes"]


def processes(jobs: int | None, called: str = "Processes") -> int:
    """``jobs``, or one a core; UserError for less than one."""
    if jobs is not None and jobs < 1:
        raise UserError(f"{called} must be at least 1, not {jobs!r}.")
    return jobs or os.cpu_count() or 1

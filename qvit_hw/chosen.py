# SPDX-License-Identifier: Apache-2.0
"""What a command is asked for by ``--only``: names, or patterns of names such as ``soft*``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Protocol, TypeVar

from qvit_hw.errors import UserError

__all__ = ["chosen"]


class _Units(Protocol):
    @property
    def units(self) -> Iterable[str]: ...


S = TypeVar("S", bound=_Units)


def chosen(subjects: Iterable[S], only: Sequence[str] | None) -> list[tuple[S, list[str]]]:
    """Designs that have a unit with such a name, and those units; all without ``only``.

    UserError for a pattern that no name has.
    """
    listed = [(each, list(each.units)) for each in subjects]
    known = [name for _, names in listed for name in names]
    for pattern in only or ():
        if not any(fnmatchcase(name, pattern) for name in known):
            raise UserError(f"No unit is called {pattern!r}: there are {', '.join(known)}.")
    patterns = only or ("*",)
    parts = [(each, [n for n in names if any(fnmatchcase(n, p) for p in patterns)]) for each, names in listed]
    return [(each, names) for each, names in parts if names]

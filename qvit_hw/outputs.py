# SPDX-License-Identifier: Apache-2.0
"""Folders that a command writes: refused before any work, and not there in vain afterwards."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import UserError

__all__ = ["check_folder", "made_folder", "told"]


def check_folder(path: Path, *, replaced: bool = False) -> None:
    """Raise UserError unless the folder ``path`` is there, or can be made, and takes files.

    replaced: the folder is to be renamed into place, so that its parent must take files.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"Output {str(path)!r} must be a folder, not a file.")
    path = path.absolute()
    candidates = path.parents if replaced else (path, *path.parents)
    base = next(folder for folder in candidates if folder.exists())
    if not base.is_dir():
        raise UserError(f"Output {str(path)!r} cannot be made: {str(base)!r} is not a folder.")
    with told(path), tempfile.TemporaryDirectory(dir=base, prefix=".qvit-"):
        pass  # permissions alone say too little: not every file system takes files


@contextlib.contextmanager
def made_folder(path: Path) -> Iterator[None]:
    """Make ``path`` and its parents; whatever fails inside, those of them still empty go again."""
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        with told(path):
            path.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Tell an OSError as a UserError about the output ``path``."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(f"Output {str(path)!r} cannot be written: {reason}.") from error

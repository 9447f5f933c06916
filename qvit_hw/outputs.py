# SPDX-License-Identifier: Apache-2.0
"""What a command writes: refused before any work, there in full or not at all, nothing left in vain."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from golden.tensorfile import read_json

from .errors import UserError

__all__ = [
    "check_folder",
    "check_replaced",
    "is_of",
    "made_folder",
    "replace_folder",
    "replaced_folder",
    "told",
    "write_files",
]


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


def check_replaced(path: Path, index: str, schema: str, lacks: str = "") -> None:
    """Raise UserError unless ``path`` can become a folder of a kind: absent, empty, or of that kind.

    index, schema: the JSON file that tells the kind, and what it says.  lacks: more words on a folder of
    something else, such as " and no bundle".
    """
    if path.is_symlink():
        raise UserError(f"Output {str(path)!r} must be a folder, not a file.")
    if path.is_dir() and any(path.iterdir()) and not is_of(path / index, schema):
        raise UserError(f"Output {str(path)!r} holds other files{lacks}: it is left alone.")
    check_folder(path, replaced=True)


def is_of(index: Path, schema: str) -> bool:
    """Whether the JSON file ``index`` is there and says that it is of this schema."""
    try:
        return bool(read_json(index.read_bytes()).get("schema") == schema)
    except (OSError, ValueError, AttributeError):
        return False


@contextlib.contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder beside ``path``, which takes its place once it is filled, in full or not at all.

    UserError for an OSError.
    """
    path = path.absolute()
    with made_folder(path.parent), told(path):
        temporary = Path(tempfile.mkdtemp(prefix=".qvit-", dir=path.parent))
        try:
            new, old = temporary / "new", temporary / "old"
            new.mkdir()
            yield new
            if path.exists():
                path.rename(old)
            try:
                new.rename(path)
            except OSError:
                if old.exists():
                    old.rename(path)
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(path: Path, contents: Mapping[str, str | dict[str, Any]]) -> None:
    """Make ``path`` a folder of these files alone, by name: texts, and objects as JSON.

    UserError for an OSError.
    """
    with replaced_folder(path) as folder:
        for name, content in contents.items():
            if not isinstance(content, str):
                content = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
            (folder / name).write_text(content, encoding="utf-8")


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write files into folders that are there: each beside its place, then all renamed; may raise OSError."""
    staged: list[tuple[Path, Path]] = []
    try:
        for path, content in contents.items():
            temporary = path.with_name(f".qvit-{uuid4().hex}")
            staged.append((temporary, path))
            with temporary.open("xb") as file:  # by tempfile it would be for its owner alone
                file.write(content)
        for temporary, path in staged:
            temporary.replace(path)
    finally:
        for temporary, _ in staged:
            temporary.unlink(missing_ok=True)


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

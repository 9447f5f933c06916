# SPDX-License-Identifier: Apache-2.0
"""A reader, its input edited thousands of times, and the rules that no edit may break.

The answer is what the file says, or one of the reader's errors in one line; an audit hook of the interpreter
hears of processes, sockets and files written elsewhere; a command that refuses leaves nothing behind.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from fuzz_edits import Choices, edited
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from qvit_hw.errors import UserError

SCRATCH = Path(tempfile.gettempdir()) / "qvit-fuzz"
"""For what is made once, and for the canary; a test sets its own."""
PATIENCE = 20.0
"""Seconds of work that no small file may cost."""

Files = dict[str, bytes]


def canary() -> Path:
    """A folder that is there once what stands in a file was executed."""
    return SCRATCH / "executed"


class Watch:
    """Hears, through the interpreter's audit events, of what a reader must not do."""

    FORBIDDEN = (
        *("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn"),
        *("subprocess.Popen", "socket."),
    )
    WRITES = (
        *("os.mkdir", "os.rename", "os.remove", "os.rmdir"),
        *("os.symlink", "os.link", "os.chmod", "os.truncate"),
    )
    current: ClassVar[Watch | None] = None
    installed: ClassVar[bool] = False

    def __init__(self, folder: Path) -> None:
        self.folder, self.heard = str(folder.resolve()), list[str]()

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        if event.startswith(self.FORBIDDEN):
            self.heard.append(f"{event} {args!r}")
        elif event == "open" and isinstance(args[0], str) and isinstance(args[1], str):
            if set(args[1]) & set("wax+"):
                self._written(event, args[0])
        elif event in self.WRITES and str(args[0]).startswith("/"):  # others are within a folder held open
            self._written(event, str(args[0]))

    def _written(self, event: str, path: str) -> None:
        if not path.startswith((self.folder, "/dev/null")):
            self.heard.append(f"{event} {path!r}")

    @contextmanager
    def watching(self) -> Iterator[None]:
        if not Watch.installed:
            sys.addaudithook(_heard)
            Watch.installed = True
        Watch.current = self
        try:
            yield
        finally:
            Watch.current = None


def _heard(event: str, args: tuple[Any, ...]) -> None:
    if Watch.current is not None:
        Watch.current.hear(event, args)


@dataclass(frozen=True)
class Reader:
    """A reader, with the errors that it may answer with.

    files: a valid input; those matching ``edits`` are edited.  share: of all inputs, in thousandths.  heal:
    puts hashes right after an edit.  whole: no file or folder may be left beside the input's own.
    """

    name: str
    share: int
    make: Callable[[Path], None]
    read: Callable[[Path], object]
    errors: tuple[type[Exception], ...] = (UserError,)
    edits: tuple[str, ...] = ("*",)
    heal: Callable[[Files], None] | None = None
    statuses: tuple[int, ...] = ()


@dataclass
class Tally:
    """What became of a reader's inputs."""

    reader: Reader
    tried: int = 0
    taken: int = 0
    same: int = 0
    seconds: float = 0.0
    fault: str | None = None
    messages: set[str] = field(default_factory=set)


class Broken(Exception):
    """A rule that an input broke."""


class Trial:
    """A valid input in a folder of its own, edited in place and restored."""

    def __init__(self, reader: Reader, scratch: Path) -> None:
        self.reader, self.folder = reader, scratch / "input"
        self.watch = Watch(scratch)
        self.folder.mkdir(parents=True)
        reader.make(self.folder)
        self.valid: Files = {
            path.relative_to(self.folder).as_posix(): path.read_bytes()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }
        self.names = sorted(
            name for name in self.valid if any(Path(name).match(glob) for glob in reader.edits)
        )
        if not reader.name.endswith("bait"):
            self.outcome(self.valid)  # the input is valid before it is edited

    def edited(self, choose: Choices) -> Files:
        """All files of the input after an edit."""
        files = dict(self.valid)
        name = choose.of(self.names)
        files[name] = edited(name, files[name], choose)
        if self.reader.heal is not None and choose.below(8):
            self.reader.heal(files)
        return files

    def outcome(self, files: Files) -> str | None:
        """Read these files: None if they are taken, else the error's message; Broken for anything else."""
        before = {name for name in files if files[name] != self.valid[name]}
        for name in before:
            (self.folder / name).write_bytes(files[name])
        try:
            return self._read()
        finally:
            for name in before:
                (self.folder / name).write_bytes(self.valid[name])
            for folder in ("page", "out"):
                shutil.rmtree(self.folder / folder, ignore_errors=True)
            left = {
                path.relative_to(self.folder).as_posix()
                for path in self.folder.rglob("*")
                if path.is_file()
            } - set(self.valid)
            if left:
                raise Broken(f"left {sorted(left)}")

    def _read(self) -> str | None:
        message, begun = None, time.process_time()
        self.watch.heard.clear()
        quiet = io.StringIO()
        with self.watch.watching(), redirect_stdout(quiet), redirect_stderr(quiet), warnings.catch_warnings():
            warnings.simplefilter("error")  # a warning on stderr would be noise of a user's own input
            try:
                status = self.reader.read(self.folder)
                if self.reader.statuses and status not in self.reader.statuses:
                    raise Broken(f"exit status {status}")
            except self.reader.errors as error:
                message = str(error)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                raise Broken(f"{type(error).__name__}: {error}"[:300]) from error
        if time.process_time() - begun > PATIENCE:
            raise Broken(f"took {time.process_time() - begun:.0f} s")
        if self.watch.heard:
            raise Broken(f"did {self.watch.heard[0]}")
        if canary().exists():
            raise Broken("executed what stands in the file")
        if message is not None and ("\n" in message or not message):
            raise Broken(f"message of several lines or none: {message!r}")
        return message


def fuzz(reader: Reader, inputs: int, seed: int, out: Path | None = None) -> Tally:
    """Try so many inputs; the tally's fault is the smallest input that broke a rule."""
    tally, begun = Tally(reader), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="qvit-fuzz-") as name:
        trial = Trial(reader, Path(name))

        @seeded(seed)
        @settings(
            max_examples=inputs,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        )
        @given(st.lists(st.integers(0, (1 << 32) - 1), min_size=4, max_size=16))
        def attempt(numbers: Sequence[int]) -> None:
            files = trial.edited(Choices(numbers))
            tally.tried += 1
            tally.same += files == trial.valid
            try:
                message = trial.outcome(files)
            except Broken:
                if out is not None:
                    _keep(out / reader.name.replace(" ", "_"), files)
                raise
            tally.taken += message is None
            if message is not None and len(tally.messages) < 1000:
                tally.messages.add(message[:200])

        try:
            attempt()
        except Broken as broken:
            cause = broken.__cause__
            tally.fault = f"{broken}" + (f" ({cause!r})"[:200] if cause is not None else "")
    tally.seconds = time.monotonic() - begun
    return tally


def _keep(folder: Path, files: Files) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

# SPDX-License-Identifier: Apache-2.0
"""Runs of the accelerator: what its testbench is told, and what it leaves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = ["ALIGNMENT", "BASE", "Bus", "Memory", "Outcome", "Run", "Session"]

BASE = 0x12_3450_0000
"""Address of the memory's first byte: both halves of a register matter."""
ALIGNMENT = 64
"""Of the address of an image or a program, in bytes."""
SESSION_FILE = "session.json"


@dataclass(frozen=True)
class Bus:
    """How the memory answers: latency in cycles, gaps of 256; with a seed at random, up to the latency."""

    latency: int = 16
    gaps: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Run:
    """A run and what it must come to.

    outputs: how many are to be read.  expected: what they must be, if it is known.
    error: the code that it must end with.  limit: cycles that it may take.
    reset: reset the hardware first.  abandon: so many cycles after its start, reset the hardware instead
    of waiting (then nothing is expected).
    counters: the least and the most of what registers must count.  bus: how the memory answers, if not as in
    the session's other runs.  shift: how far from BASE the memory is; every address of the run with it.
    shy: the memory is ready for a request only once there is one.
    """

    image_address: int
    image_words: int
    program_address: int
    program_words: int
    outputs: int = 0
    expected: Sequence[int] | None = None
    error: int = 0
    limit: int = 1_000_000
    reset: bool = False
    abandon: int = 0
    counters: Mapping[str, Sequence[int]] = field(default_factory=dict)
    bus: Bus | None = None
    shift: int = 0
    shy: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a run came to: error code, outputs, registers of counters by name, seconds it took."""

    error: int
    outputs: list[int]
    counters: dict[str, int]
    seconds: float

    def write(self, folder: Path, index: int) -> None:
        """Write the file that :meth:`read` reads."""
        path = folder / f"outcome{index}.json"
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path, index: int) -> Outcome | None:
        """What a run left; None if nothing."""
        path = folder / f"outcome{index}.json"
        if not path.is_file():
            return None
        return cls(**json.loads(path.read_text(encoding="utf-8")))


class Memory:
    """External memory, filled from its first byte on."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._parts: list[bytes] = []
        self._length = 0

    def add(self, words: npt.NDArray[np.uint8]) -> int:
        """Append words [n, size]; return their address."""
        content = np.ascontiguousarray(words).tobytes()
        address = BASE + self._length
        content += bytes(-len(content) % ALIGNMENT)
        self._parts.append(content)
        self._length += len(content)
        return address

    @property
    def words(self) -> int:
        """Words that it has."""
        return self._length // self.size

    def write(self, path: Path) -> None:
        """Write its bytes."""
        path.write_bytes(b"".join(self._parts))


@dataclass(frozen=True)
class Session:
    """Runs of one simulator process, one after the other on the same hardware.

    registers: offset by name.  fixed: what registers must read as.  bus: how the memory answers.
    window: outputs that can be read.
    """

    registers: Mapping[str, int]
    fixed: Mapping[str, int]
    runs: Sequence[Run] = field(default_factory=list)
    bus: Bus = field(default_factory=Bus)
    window: int = 0

    def write(self, folder: Path) -> None:
        """Write the file that :meth:`read` reads."""
        (folder / SESSION_FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Session:
        """Read what :meth:`write` wrote."""
        told = json.loads((folder / SESSION_FILE).read_text(encoding="utf-8"))
        runs = [Run(**run | {"bus": run["bus"] and Bus(**run["bus"])}) for run in told["runs"]]
        return cls(told["registers"], told["fixed"], runs, Bus(**told["bus"]), told["window"])

# SPDX-License-Identifier: Apache-2.0
"""What crosses the border to the simulator's process: cases in, measured outputs back.

A folder with ``job.json`` (text and numbers) and ``job.npz`` (arrays); the testbench leaves
``result.json`` and ``result.npz`` in it. Nothing in them can execute.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["NO_STALL", "Case", "Job", "Outcome", "Pattern", "Unit", "load_unit"]

Words = list[tuple[int, int]]


@dataclass(frozen=True)
class Pattern:
    """When a side pauses: share of the cycles, in bursts of ``burst`` cycles on average.

    turns: instead, the numbers of the cycles, of those in which the side has a choice, in which it pauses.
    """

    share: float = 0.0
    burst: int = 1
    turns: Sequence[int] = ()

    @property
    def pauses(self) -> bool:
        """Whether the side ever pauses."""
        return self.share > 0 or bool(self.turns)


NO_STALL = Pattern()


@dataclass(frozen=True)
class Unit:
    """A unit of the RTL's manifest."""

    op: str
    top: str
    verilog: Path
    sha256: str
    lanes: int
    spec: dict[str, Any]
    in_slot: int
    out_slot: int
    out_signed: bool
    has_mask: bool
    registers: dict[str, int]
    probes: list[dict[str, Any]]
    adapter: int
    spans: list[tuple[int, int, str]]
    """Offset, words and access of each register and table."""


def load_unit(entry: dict[str, Any], folder: Path) -> Unit:
    """Return a unit from its manifest entry."""
    stream = entry["streams"]
    return Unit(
        op=entry["op"],
        top=entry["top"],
        verilog=folder / entry["file"],
        sha256=entry["sha256"],
        lanes=entry["lanes"],
        spec=entry["spec"],
        in_slot=stream["input"]["slot_bytes"],
        out_slot=stream["output"]["slot_bytes"],
        out_signed=stream["output"]["signed"],
        has_mask=stream["input"]["mask"],
        registers={register["name"]: register["offset"] for register in entry["registers"]},
        probes=entry["probes"],
        adapter=entry["cycles"]["adapter"],
        spans=[(each["offset"], each["words"], each["access"]) for each in entry["registers"]],
    )


@dataclass
class Case:
    """Rows to send and the rows that must come back.

    lengths: elements of each row sent.  elements, mask: those of all rows, one after the other.
    out_lengths, expected: the rows that must come back (``lengths`` unless a row is too long).
    params: (row, words): written after the row before it was sent and before its first beat.
    reset_after: beats that are sent, and then forgotten by a reset, before the case begins.
    timing: first_in, last_in, first_out, last_out of each row, if they are known.
    status: what the status register must hold at the end.
    params_early: parameters are written behind the first beat of the row before, which keeps its own.
    must_refuse: the case is meant to fill the unit: its input must be refused at least once.
    ready_late: the output is accepted only once it has been offered, as AXI allows.
    """

    name: str
    lengths: npt.NDArray[np.int64]
    elements: npt.NDArray[np.int64]
    expected: npt.NDArray[np.int64]
    params: list[tuple[int, Words]]
    mask: npt.NDArray[np.bool_] | None = None
    out_lengths: npt.NDArray[np.int64] | None = None
    stall_in: Pattern = NO_STALL
    stall_out: Pattern = NO_STALL
    reset_after: int = 0
    timing: npt.NDArray[np.int64] | None = None
    status: int = 0
    params_early: bool = False
    must_refuse: bool = False
    ready_late: bool = False
    probes: bool = False
    layer: str | None = None

    @property
    def received(self) -> npt.NDArray[np.int64]:
        """Lengths of the rows that must come back."""
        return self.lengths if self.out_lengths is None else self.out_lengths

    def row(self, index: int) -> slice:
        """Where the elements of a row that comes back are in ``expected``."""
        ends = np.cumsum(self.received)
        return slice(int(ends[index] - self.received[index]), int(ends[index]))


_ARRAYS = ("lengths", "elements", "expected", "mask", "out_lengths", "timing")


@dataclass
class Job:
    """The cases of one simulator process."""

    unit: Unit
    cases: list[Case]
    seed: int = 1

    def write(self, folder: Path) -> None:
        """Write ``job.json`` and ``job.npz``."""
        arrays: dict[str, Any] = {}
        cases = []
        for index, case in enumerate(self.cases):
            entry = {k: v for k, v in vars(case).items() if k not in (*_ARRAYS, "params")}
            entry["stall_in"], entry["stall_out"] = vars(case.stall_in), vars(case.stall_out)
            entry["params"] = [row for row, _ in case.params]
            for number, (_, words) in enumerate(case.params):
                arrays[f"{index}/words{number}"] = np.array(words, dtype=np.uint32).reshape(-1, 2)
            for name in _ARRAYS:
                if getattr(case, name) is not None:
                    arrays[f"{index}/{name}"] = getattr(case, name)
            cases.append(entry)
        unit = {**vars(self.unit), "verilog": str(self.unit.verilog)}
        text = json.dumps({"unit": unit, "seed": self.seed, "cases": cases})
        np.savez(folder / "job.npz", **arrays)
        (folder / "job.json").write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Job:
        """Read what :meth:`write` wrote."""
        told = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        cases = []
        with np.load(folder / "job.npz", allow_pickle=False) as arrays:
            for index, entry in enumerate(told["cases"]):
                rows = entry.pop("params")
                entry["params"] = [
                    (row, [(int(a), int(v)) for a, v in arrays[f"{index}/words{number}"]])
                    for number, row in enumerate(rows)
                ]
                for side in ("stall_in", "stall_out"):
                    turns = tuple(entry[side]["turns"])
                    entry[side] = Pattern(**{**entry[side], "turns": turns})
                for name in _ARRAYS:
                    key = f"{index}/{name}"
                    entry[name] = arrays.get(key)
                cases.append(Case(**entry))
        entry = told["unit"]
        spans = [tuple(span) for span in entry["spans"]]
        unit = Unit(**{**entry, "verilog": Path(entry["verilog"]), "spans": spans})
        return cls(unit, cases, told["seed"])


@dataclass
class Outcome:
    """What a case measured; arrays are shorter than expected if the unit stopped early.

    codes, framed: an element's value, and whether keep and last of its beat were right.
    beat_cycles: cycle of each output beat.  timing: as in :class:`Case`, one line per finished row.
    probes: name to the values in order of their strobes.  error: what stopped it, if anything.
    """

    codes: npt.NDArray[np.int64]
    framed: npt.NDArray[np.bool_]
    beat_cycles: npt.NDArray[np.int64]
    timing: npt.NDArray[np.int64]
    stall_in_cycles: int = 0
    stall_out_cycles: int = 0
    seconds: float = 0.0
    error: str | None = None
    probes: dict[str, list[int]] = field(default_factory=dict)

    def write(self, folder: Path, index: int) -> None:
        """Write ``result<index>.json`` and ``.npz``."""
        arrays: Any = {k: v for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        rest = {k: v for k, v in vars(self).items() if k not in arrays}
        np.savez(folder / f"result{index}.npz", **arrays)
        (folder / f"result{index}.json").write_text(json.dumps(rest), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path, index: int) -> Outcome:
        """Read what :meth:`write` wrote."""
        rest = json.loads((folder / f"result{index}.json").read_text(encoding="utf-8"))
        with np.load(folder / f"result{index}.npz", allow_pickle=False) as arrays:
            return cls(**{name: arrays[name] for name in arrays.files}, **rest)

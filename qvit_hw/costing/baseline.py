# SPDX-License-Identifier: Apache-2.0
"""The recorded baseline: what every unit cost when somebody last said that this is fine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from golden.tensorfile import read_json
from qvit_hw.costing.measuring import Row
from qvit_hw.errors import UserError

__all__ = [
    "BASELINE",
    "GROWN",
    "SHRUNK",
    "TOLERANCE",
    "Change",
    "accepted",
    "changes",
    "flagged",
    "read",
    "text",
]

BASELINE = Path(__file__).with_name("baseline.json")
SCHEMA = "qvit-hw/cost-baseline"
TOLERANCE = 0.05
"""Growth of a size, or loss of a frequency, beyond which a unit is flagged."""
GROWN = ("LUT", "FF", "DSP", "BRAM", "um2", "memory bits")
SHRUNK = ("MHz",)


@dataclass(frozen=True)
class Change:
    """A figure that differs from the baseline's."""

    row: Row
    name: str
    before: float
    after: float

    @property
    def share(self) -> float:
        """The difference as a share of what it was; infinite where that was nothing."""
        return (self.after - self.before) / self.before if self.before else float("inf")

    @property
    def bad(self) -> bool:
        """Whether it is flagged."""
        return self.share < -TOLERANCE if self.name in SHRUNK else self.share > TOLERANCE

    @property
    def told(self) -> str:
        """As a part of a sentence."""
        share = f"{100 * self.share:+.1f} %" if self.before else "new"
        lanes, variant = self.row.lanes, self.row.variant
        kind = "" if variant == "default" else f", {variant}"
        numbers = f"{self.name} {self.before:,g} to {self.after:,g} ({share})"
        return f"{numbers} at {lanes} lanes on {self.row.target}{kind}"


def read(path: Path = BASELINE) -> list[Row]:
    """Return the baseline's rows, none where there is no file; UserError for another file."""
    if not path.exists():
        return []
    try:
        stored: Any = read_json(path.read_bytes())
        if stored["schema"] != SCHEMA:
            raise ValueError(stored["schema"])
        return [_row(row) for row in stored["rows"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"Baseline must be a file that --accept wrote, not {str(path)!r}.") from error


def _row(entry: Any) -> Row:
    """A row of the file; TypeError or ValueError where it is none."""
    row = Row(**entry)
    names = (row.unit, row.target, row.variant)
    figures = [row.figures, *row.parts.values()]
    if not all(isinstance(name, str) for name in names) or type(row.lanes) is not int:
        raise TypeError(f"A row must be of a unit, not {entry!r}")
    if not all(type(value) in (int, float, str) for each in figures for value in each.values()):
        raise TypeError(f"Figures must be numbers or notes, not {figures!r}")
    return row


def text(rows: Sequence[Row], tools: Mapping[str, str]) -> str:
    """The file's text: the same rows give the same bytes, in whatever order they come."""
    ordered = sorted(rows, key=lambda row: row.key)
    content = {
        "schema": SCHEMA,
        "tools": dict(sorted(tools.items())),
        "rows": [row.record() for row in ordered],
    }
    return json.dumps(content, indent=1) + "\n"


def accepted(before: Sequence[Row], measured: Sequence[Row]) -> list[Row]:
    """The baseline with what was measured now in place of what it had."""
    merged = {row.key: row for row in before} | {row.key: row for row in measured}
    return list(merged.values())


def changes(measured: Sequence[Row], before: Sequence[Row]) -> list[Change]:
    """Every figure that differs; rows that the baseline does not have have none."""
    known = {row.key: row for row in before}
    found = []
    for row in measured:
        if (old := known.get(row.key)) is None:
            continue
        for name in (*GROWN, *SHRUNK):
            was, now = old.number(name), row.number(name)
            if was is not None and now is None and name in SHRUNK:
                now = 0.0  # no longer fits
            if was is not None and now is not None and was != now:
                found.append(Change(row, name, was, now))
    return found


def flagged(found: Sequence[Change]) -> list[str]:
    """A sentence for every unit that has grown, or become slower, by more than TOLERANCE."""
    units: dict[str, list[str]] = {}
    for change in found:
        if change.bad:
            units.setdefault(change.row.unit, []).append(change.told)
    return [
        f"Unit {unit} costs over {100 * TOLERANCE:g} % more than the baseline: {'; '.join(told)}."
        for unit, told in units.items()
    ]

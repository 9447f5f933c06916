# SPDX-License-Identifier: Apache-2.0
"""What Verilator has counted: a reader of ``coverage.dat``, by module, and the places never reached.

A record is a line ``C '<key><value>...' count``, each key behind a byte 1 and each value behind a byte 2.
Records of one place in several instances of a module are added up. Kinds are "line" (a branch or block of
a process) and "toggle" (a bit of a signal, once for each direction). Signals to which only Yosys has
given a name are left out: they are expressions of the others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Counted", "Gap", "Place", "parse"]

LINES = {"line", "branch"}
UNNAMED = re.compile(r"(\\?\$|wake_up_)")


@dataclass(frozen=True)
class Place:
    """Something that is counted.

    text: the line of the Verilog, or the bit and the direction in which it changes.
    """

    module: str
    kind: str
    line: int
    text: str
    detail: str = ""


@dataclass(frozen=True)
class Gap:
    """A place never reached, and why; "" if nobody knows."""

    place: Place
    reason: str


@dataclass(frozen=True)
class Counted:
    """How often each place was reached."""

    hits: dict[Place, int]

    def modules(self) -> list[str]:
        """Modules that have anything to reach."""
        return list(dict.fromkeys(place.module for place in self.hits))

    def of(self, modules: str) -> Counted:
        """Those of modules whose names match an expression."""
        return Counted({at: n for at, n in self.hits.items() if re.fullmatch(modules, at.module)})

    def share(self, kind: str, module: str | None = None) -> tuple[int, int]:
        """Places of a kind that were reached, and all of them; of a module, or of all."""
        counts = [
            count
            for place, count in self.hits.items()
            if place.kind == kind and module in (None, place.module)
        ]
        return sum(count > 0 for count in counts), len(counts)

    def gaps(self, reasons: Sequence[tuple[str, str, str]]) -> list[Gap]:
        """Places never reached, each with the first reason (kind, expression, why) that fits it."""
        found = []
        for place, count in self.hits.items():
            if not count:
                said = f"{place.module} {place.text}"
                fits = (why for kind, what, why in reasons if kind == place.kind and re.search(what, said))
                found.append(Gap(place, next(fits, "")))
        return found


def parse(data: Path, verilog: str, *, only: str = "") -> Counted:
    """The counts of a file that a simulator left.

    verilog: the text that was simulated.  only: an expression that the names of the modules match.
    """
    source = verilog.splitlines()
    hits: dict[Place, int] = {}
    for record in data.read_text(encoding="latin-1").splitlines():
        if not record.startswith("C '"):
            continue
        body, _, count = record[3:].rpartition("' ")
        told = dict(part.split("\x02", 1) for part in body.split("\x01")[1:])
        module = told["page"].partition("/")[2]
        if not re.match(only, module):
            continue
        line = int(told["l"])
        if told["t"] in LINES:
            detail = f"{told.get('o', '')} {told['n']}"
            place = Place(module, "line", line, source[line - 1].strip(), detail)
        elif told["t"] == "toggle":
            signal = _plain(told["o"])
            if UNNAMED.match(signal):
                continue
            place = Place(module, "toggle", line, signal)
        else:
            continue
        hits[place] = hits.get(place, 0) + int(count)
    return Counted(hits)


def _plain(name: str) -> str:
    """A name without Verilator's escapes: two underscores, 0 and two digits for a character."""
    return re.sub(r"__0([0-9A-Fa-f]{2})", lambda found: chr(int(found[1], 16)), name)

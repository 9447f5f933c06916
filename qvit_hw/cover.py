# SPDX-License-Identifier: Apache-2.0
"""Measures what the testbenches reach: bins of numbers, stalls and lengths; lines and bits of the Verilog.

    python -m qvit_hw.cover [--only softmax] [--jobs 2] [--out build/coverage]

writes ``coverage.json`` and ``coverage.html``. The units run the scenarios that ``simulate`` runs and the
tests of their registers, the accelerator the runs of :mod:`qvit_hw.trial`, on Verilog compiled with
Verilator's counters. Exit status: 1 if a bin is not hit, fewer than ``BAR`` of a unit's lines are reached, or
a gap has no reason among ``qvit_hw.covering.reasons``.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from qvit_hw.covering.accelerator import ACCELERATORS
from qvit_hw.covering.subjects import ROW_SUBJECTS, Found, Subject
from qvit_hw.errors import UserError
from qvit_hw.outputs import check_folder, made_folder, told, write_files
from qvit_hw.processes import processes
from qvit_hw.report_page import frame
from qvit_hw.simulate import find_tools
from sim.runner import RunFailed
from sim.tools import Tools

__all__ = ["BAR", "run"]

SUBJECTS: tuple[Subject, ...] = (*ACCELERATORS, *ROW_SUBJECTS)
BAR = 0.97
"""Share of the lines that the tests of a unit must reach."""


def run(
    *,
    out: Path,
    only: Sequence[str] | None = None,
    jobs: int | None = None,
    subjects: Sequence[Subject] = SUBJECTS,
) -> int:
    """Run the units' tests and count; write the page and its JSON; return the exit status."""
    workers = processes(jobs)
    wanted = [each for each in subjects if _units(each, only)]
    if not wanted:
        known = ", ".join(unit for each in subjects for unit in each.units)
        raise UserError(f"No unit is called {' or '.join(only or ())!r}: there are {known}.")
    check_folder(out)
    tools = find_tools("verilator")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        made_folder(out),
        tempfile.TemporaryDirectory(prefix="qvit-") as work,
        Progress(*columns, console=Console(stderr=True)) as progress,
        ThreadPoolExecutor(workers) as pool,
    ):
        bar = progress.add_task("designs simulated", total=len(wanted))

        def measured(subject: Subject) -> list[dict[str, Any]]:
            folder = Path(work) / subject.name
            folder.mkdir()
            found = subject.run(folder, tools)
            progress.advance(bar)
            return [_unit(name, subject.what, found[name]) for name in _units(subject, only)]

        try:
            units = [unit for found in pool.map(measured, wanted) for unit in found]
        except RunFailed as error:
            raise UserError(f"Simulation failed: {error}") from error
        document = _document(units, tools)
        with told(out):
            text, page = json.dumps(document, indent=1) + "\n", _page(document)
            write_files({out / "coverage.json": text.encode(), out / "coverage.html": page.encode()})
    return 0 if document["passed"] else 1


def _units(subject: Subject, only: Sequence[str] | None) -> list[str]:
    """Units of a design that are asked for."""
    return [unit for unit in subject.units if not only or any(part in unit for part in only)]


def _unit(name: str, what: str, found: Found) -> dict[str, Any]:
    """A unit as coverage.json has it."""
    counted, gaps = found.counted, found.counted.gaps(found.reasons)
    excused = {gap.place for gap in gaps if gap.reason}

    def figures(kind: str, module: str | None = None) -> dict[str, Any]:
        reached, places = counted.share(kind, module)
        never = len([each for each in excused if each.kind == kind and module in (None, each.module)])
        return {
            "reached": reached,
            "places": places,
            "share": reached / places if places else 1.0,
            "explained": never,
            "share_of_reachable": reached / (places - never) if places > never else 1.0,
        }

    modules = [
        {"module": name, "line": figures("line", name), "toggle": figures("toggle", name)}
        for name in counted.modules()
    ]
    points = [
        {"point": point.name, "bins": len(point.bins), "missed": point.missed, "hits": point.bins}
        for point in found.points
    ]
    line = figures("line")
    unexplained = sum(not gap.reason for gap in gaps)
    missed = sum(len(point.missed) for point in found.points)
    return {
        "unit": name,
        "what": what,
        "bins": sum(len(point.bins) for point in found.points),
        "missed": missed,
        "points": points,
        "line": line,
        "toggle": figures("toggle"),
        "modules": modules,
        "gaps": [
            {
                "module": gap.place.module,
                "kind": gap.place.kind,
                "line": gap.place.line,
                "text": gap.place.text,
                "reason": gap.reason,
            }
            for gap in gaps
        ],
        "unexplained": unexplained,
        "passed": not missed and not unexplained and line["share_of_reachable"] >= BAR,
    }


def _document(units: list[dict[str, Any]], tools: Tools) -> dict[str, Any]:
    """coverage.json."""
    return {
        "schema": "qvit-hw/coverage",
        "version": 1,
        "simulator": {"name": tools.name, "version": tools.version},
        "bar": BAR,
        "units": units,
        "passed": all(unit["passed"] for unit in units),
    }


def _page(document: dict[str, Any]) -> str:
    bins = sum(unit["bins"] for unit in document["units"])
    hit = bins - sum(unit["missed"] for unit in document["units"])
    return frame.render(
        "coverage.html.j2",
        kind="coverage",
        number=f"{hit:,} of {bins:,}",
        of="bins of numbers, stalls, lengths and changes are hit",
        passed=document["passed"],
        document=document,
    )


if __name__ == "__main__":
    from qvit_hw.cli import main

    main("cover")

# SPDX-License-Identifier: Apache-2.0
"""Measures what the testbenches reach: bins of numbers, stalls and lengths; lines and bits of the Verilog.

    python -m qvit_hw.cover [--only softmax] [--jobs 2] [--out build/coverage]

writes ``coverage.json`` and ``coverage.html``. The units run the scenarios that ``simulate`` runs and the
tests of their registers, the accelerator the runs of :mod:`qvit_hw.trial`, on Verilog compiled with
Verilator's counters. Exit status: 1 if a bin is not hit, fewer than ``BAR`` of a unit's lines are reached, or
a gap has no reason among ``qvit_hw.covering.reasons``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from qvit_hw.chosen import chosen
from qvit_hw.errors import UserError, check_packages
from qvit_hw.outputs import check_replaced, replace_folder
from qvit_hw.processes import processes
from qvit_hw.progress import bars
from qvit_hw.report_page import frame
from qvit_hw.simulate import find_tools
from sim.runner import RunFailed
from sim.tools import Tools

if TYPE_CHECKING:
    from qvit_hw.covering.subjects import Found, Subject

__all__ = ["BAR", "run"]

PAGE, JSON = "coverage.html", "coverage.json"
SCHEMA, VERSION = "qvit-hw/coverage", 1
BAR = 0.97
"""Share of the lines that the tests of a unit must reach."""


def run(
    *,
    out: Path,
    only: Sequence[str] | None = None,
    jobs: int | None = None,
    subjects: Sequence[Subject] | None = None,
) -> int:
    """Run the tests of ``subjects``, by default all there are, and count; write the page and its JSON.

    Returns the exit status.
    """
    check_packages("verify", "pyosys", "bitwuzla", "cocotb_coverage")
    workers = processes(jobs)
    wanted = chosen(_subjects() if subjects is None else subjects, only)
    check_replaced(out, JSON, SCHEMA, " and no coverage")
    tools = find_tools("verilator")
    with (
        tempfile.TemporaryDirectory(prefix="qvit-") as work,
        bars(kept=True) as progress,
        ThreadPoolExecutor(workers) as pool,
    ):
        bar = progress.add_task("designs simulated", total=len(wanted))

        def measured(asked: tuple[Subject, list[str]]) -> list[dict[str, Any]]:
            subject, names = asked
            folder = Path(work) / subject.name
            folder.mkdir()
            found = subject.run(folder, tools)
            progress.advance(bar)
            return [_unit(name, subject.what, found[name]) for name in names]

        try:
            units = [unit for found in pool.map(measured, wanted) for unit in found]
        except RunFailed as error:
            raise UserError(f"Simulation failed: {error}") from error
    document = _document(units, tools, only)
    replace_folder(out, {JSON: document, PAGE: _page(document)})
    _print(document, out / PAGE)
    return 0 if document["passed"] else 1


def _subjects() -> tuple[Subject, ...]:
    """All designs; what they need is there by now."""
    from qvit_hw.covering.accelerator import ACCELERATORS
    from qvit_hw.covering.subjects import ROW_SUBJECTS

    return (*ACCELERATORS, *ROW_SUBJECTS)


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


def _document(
    units: list[dict[str, Any]], tools: Tools, only: Sequence[str] | None = None
) -> dict[str, Any]:
    """coverage.json; only: what was asked for, if not everything."""
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "only": list(only or ()),
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


def _print(document: dict[str, Any], where: Path) -> None:
    console = Console(highlight=False)
    table = Table("unit", "bins", "not hit", "lines that can be reached", "gaps without a reason", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for unit in document["units"]:
        lines = f"{100 * unit['line']['share_of_reachable']:.1f} %"
        figures = unit["bins"], len([bin_ for p in unit["points"] for bin_ in p["missed"]])
        table.add_row(unit["unit"], *map(str, figures), lines, str(unit["unexplained"]))
    console.print(table)
    for unit in document["units"]:
        for point in unit["points"]:
            for name in point["missed"]:
                place = f"{point['point']}: {name}"
                console.print(f"not hit: {unit['unit']}, {place}", style="red", soft_wrap=True)
        for gap in unit["gaps"]:
            if not gap["reason"]:
                place = f"{gap['module']} line {gap['line']}: {gap['text']}"
                console.print(f"not reached: {unit['unit']}, {place}", style="red", soft_wrap=True)
    passed = "covered" if document["passed"] else "not covered"
    console.print(f"{len(document['units'])} units {passed}: {where}", soft_wrap=True)


if __name__ == "__main__":
    from qvit_hw.cli import main

    main("cover")

# SPDX-License-Identifier: Apache-2.0
"""What the units cost, with open tools, beside a recorded baseline and the peers.

    python -m qvit_hw.cost [--op softmax] [--lanes 8] [--target xcup] [--jobs 2] [--accept] [--markdown]

Yosys maps each unit to UltraScale+ (with and without DSP slices and block RAMs), to ECP5 and iCE40, which
nextpnr places and routes, and to standard cells (:mod:`qvit_hw.costing.targets`). What the cache knows is not
measured again. Status 1 if a unit has grown by over 5 % against the baseline, or lost 5 % of its frequency;
``--accept`` records what was measured as the new one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console

from golden.fixedpoint import integer
from qvit_hw.costing import baseline
from qvit_hw.costing.measuring import Row, Task, check_liberty, measure_all, tasks_for
from qvit_hw.costing.page import cost_page
from qvit_hw.costing.peers import PEERS
from qvit_hw.costing.tables import markdown, parts_markdown, terminal
from qvit_hw.costing.targets import LIBERTY, TARGETS, check_tools, find_target, tool_versions
from qvit_hw.costing.units import ACCELERATOR, DEFAULT_UNITS, find_unit
from qvit_hw.errors import MissingTool, UserError
from qvit_hw.outputs import check_replaced, replace_folder, told, write_files
from qvit_hw.processes import processes
from qvit_hw.progress import bars

__all__ = ["JSON", "PAGE", "run"]

PAGE, JSON = "cost.html", "cost.json"
SCHEMA, VERSION = "qvit-hw/cost", 1
_WIDTH = 132
"""Columns of the tables in a file."""
TABLE = ("xcup", "ecp5")
"""Targets of the README's table."""


def run(
    *,
    out: Path,
    op: list[str] | None = None,
    lanes: list[int] | None = None,
    target: list[str] | None = None,
    jobs: int | None = None,
    accept: bool = False,
    markdown: bool = False,
    liberty: Path | None = None,
) -> int:
    """Measure, print, write the page; return 1 where a unit costs over 5 % more than the baseline.

    UserError or MissingTool, before any work, for what cannot be measured.
    """
    units = [*dict.fromkeys(find_unit(name).name for name in op or DEFAULT_UNITS)]
    library = LIBERTY if liberty is None else Path(liberty)
    counts = None if lanes is None or not lanes else _lanes(lanes, units)
    console = Console(stderr=True)
    targets = _targets(target or (list(TABLE) if markdown else None), library, console)
    workers = processes(jobs, "Jobs")
    check_replaced(Path(out), JSON, SCHEMA, " and no costs")
    if any("liberty" in TARGETS[name].tools for name in targets):
        check_liberty(library)
    before = baseline.read()
    tasks = tasks_for(units, targets, counts, library)
    if not tasks:
        raise UserError(f"Target of the accelerator must be xcup or ecp5, not {', '.join(targets)!r}.")
    rows = _measure(tasks, workers, console)
    found = baseline.changes(rows, before)
    grown = baseline.flagged(found)
    failed = [f"{row.unit} at {row.lanes} lanes on {row.target} {row.figures['note']}."
              for row in rows if str(row.figures.get("note", "")).startswith("failed")]
    tools = _tools(targets, library)
    _print(rows, before, markdown)
    faults = grown + failed
    page = cost_page(rows, before, faults, tools)
    replace_folder(Path(out), {PAGE: page, JSON: _document(rows, grown, not faults, tools)})
    for sentence in failed:
        console.print(f"[red]failed:[/] {sentence}", highlight=False, soft_wrap=True)
    if accept and not failed:
        with told(baseline.BASELINE):
            text = baseline.text(baseline.accepted(before, rows), tools)
            write_files({baseline.BASELINE: text.encode()})
        console.print(f"recorded as the baseline: {len(rows)} measurements", highlight=False)
        return 0
    for sentence in grown:
        console.print(f"[red]grown:[/] {sentence}", highlight=False, soft_wrap=True)
    return int(bool(faults))


def _lanes(lanes: Sequence[int], units: Sequence[str]) -> list[int]:
    for count in lanes:
        try:
            integer(count, "Lanes", 1, 32)
        except (TypeError, ValueError) as error:
            raise UserError(f"{error}.") from error
        if ACCELERATOR in units and count not in (16, 32):
            raise UserError(f"Lanes of the accelerator must be 16 or 32, not {count!r}.")
    return [*dict.fromkeys(lanes)]


def _targets(wanted: list[str] | None, liberty: Path, console: Console) -> list[str]:
    """The targets to measure on: those asked for, or all whose tools are there."""
    if wanted:
        for name in wanted:
            check_tools(find_target(name), liberty)
        return [*dict.fromkeys(wanted)]
    check_tools(TARGETS["xcup"], liberty)
    found = []
    for name, target in TARGETS.items():
        try:
            check_tools(target, liberty)
        except MissingTool as error:
            console.print(f"[yellow]not measured:[/] {name}. {error}", highlight=False, soft_wrap=True)
        else:
            found.append(name)
    return found


def _measure(tasks: Sequence[Task], jobs: int, console: Console) -> list[Row]:
    with bars(console) as progress:
        bar = progress.add_task("measuring", total=len(tasks))

        def advance(task: Task) -> None:
            progress.update(bar, description=f"{task.target}: {task.unit}, {task.lanes} lanes", advance=1)

        return measure_all(tasks, jobs, advance)


def _tools(targets: Sequence[str], liberty: Path) -> dict[str, str]:
    tools: dict[str, str] = {}
    for name in targets:
        tools |= tool_versions(TARGETS[name], liberty)
    return tools


def _print(rows: Sequence[Row], before: Sequence[Row], plain: bool) -> None:
    """The README's table alone, or tables of everything."""
    whole = [row for row in rows if row.unit == ACCELERATOR]
    units = [row for row in rows if row.unit != ACCELERATOR]
    if plain and units:
        print(markdown(units), end="")
    elif units:
        console = Console()
        if not console.is_terminal:
            console.width = _WIDTH
        for table in terminal(units, before):
            console.print(table)
    if whole:
        print(parts_markdown(whole), end="")


def _document(
    rows: Sequence[Row], grown: Sequence[str], passed: bool, tools: Mapping[str, str]
) -> dict[str, Any]:
    """Everything, for machines."""
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "qvit_hw": metadata.version("qvit-hw"),
        "tools": dict(tools),
        "passed": passed,
        "grown": list(grown),
        "rows": [
            {**row.record(), "elements_per_cycle_per_lut": row.density, "melem_per_s_per_lut": row.throughput}
            for row in rows
        ],
        "peers": [
            {
                "name": peer.name,
                "op": peer.op,
                "bits": peer.bits,
                "source": peer.source,
                "elements_per_cycle": peer.rate,
                "LUT": peer.lut,
                "DSP": peer.dsp,
                "elements_per_cycle_per_lut": peer.density,
                "MHz": peer.mhz,
                "melem_per_s_per_lut": peer.throughput,
            }
            for peer in PEERS
        ],
    }


if __name__ == "__main__":
    from qvit_hw.cli import main

    main("cost")

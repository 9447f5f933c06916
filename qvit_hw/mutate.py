# SPDX-License-Identifier: Apache-2.0
"""Breaks the units in small ways and counts how many of the mutants their testbenches see.

    python -m qvit_hw.mutate [--only softmax] [--count 100] [--seed 1] [--jobs 2] [--out build/mutation]

prints a score for each unit and writes ``mutation.json`` and ``mutation.html``. A mutant is a bit of a
cell's port that is inverted, constant or depends on another bit (Yosys ``mutate``). It is killed if a test
fails, if the simulator gives up, or if no test ends; else it is compared with the unit: equal for all inputs
and for ever ("proven"), equal for all inputs within some cycles from reset ("bounded"), or neither, which
counts against the testbench. The score is what was killed of what is not equivalent. Exit status: 1 if the
score of a unit is below ``BAR``.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from qvit_hw.chosen import chosen
from qvit_hw.errors import UserError, check_packages
from qvit_hw.mutation.schemata import Mutant, Schemata, schemata
from qvit_hw.outputs import check_replaced, replace_folder
from qvit_hw.processes import ended_with, processes
from qvit_hw.progress import bars
from qvit_hw.report_page import frame
from qvit_hw.simulate import find_tools
from sim.mutants import ControlFailed, Fate
from sim.runner import RunFailed
from sim.tools import Tools

if TYPE_CHECKING:
    from qvit_hw.mutation.equivalence import Judge, Verdict
    from qvit_hw.mutation.subjects import Subject

__all__ = ["BAR", "run"]

PAGE, JSON = "mutation.html", "mutation.json"
SCHEMA, VERSION = "qvit-hw/mutation", 1
BAR = 0.97
"""Share of the mutants that are not equivalent which the tests of a unit must kill."""
COMPARING = 60
"""Seconds for each question about a mutant and its unit."""
HINTS = {
    "different": "an input shows it {cycles} cycles after reset: a test is missing",
    "unknown": "no input shows it within {cycles} cycles of reset; neither proven nor refuted beyond",
}


def run(
    *,
    out: Path,
    only: Sequence[str] | None = None,
    count: int = 100,
    seed: int = 1,
    jobs: int | None = None,
    subjects: Sequence[Subject] | None = None,
    patience: int = COMPARING,
) -> int:
    """Make, run and compare the mutants; write the page and its JSON; return the exit status.

    subjects: all there are without.  patience: seconds for each question about a survivor.
    """
    check_packages("verify", "pyosys", "bitwuzla")
    if count < 1:
        raise UserError(f"Mutants must be at least 1 of each unit, not {count!r}.")
    if seed < 0:
        raise UserError(f"Seed must be at least 0, not {seed!r}.")
    workers = processes(jobs)
    wanted = chosen(_subjects() if subjects is None else subjects, only)
    check_replaced(out, JSON, SCHEMA, " and no mutants")
    tools = find_tools("verilator")
    entries: list[dict[str, Any]] = []
    with bars(kept=True) as progress:
        for subject, names in wanted:
            try:
                entries += _examined(subject, names, count, seed, tools, workers, progress, patience)
            except (RunFailed, ControlFailed) as error:
                raise UserError(f"Mutants of {subject.name} cannot be run: {error}") from error
    document = _document(entries, count, seed, tools, only)
    replace_folder(out, {JSON: document, PAGE: _page(document)})
    _print(document, out / PAGE)
    return 0 if document["passed"] else 1


def _subjects() -> tuple[Subject, ...]:
    """All designs; what they need is there by now."""
    from qvit_hw.mutation.accelerator import ACCELERATOR
    from qvit_hw.mutation.attention import HEAD_UNITS
    from qvit_hw.mutation.subjects import ROW_UNITS

    return (*ROW_UNITS, *HEAD_UNITS, *ACCELERATOR)


def _examined(
    subject: Subject,
    names: Sequence[str],
    count: int,
    seed: int,
    tools: Tools,
    workers: int,
    progress: Progress,
    patience: int,
) -> list[dict[str, Any]]:
    """The mutants of a design and what became of them."""
    bar = progress.add_task(f"{subject.name}: mutants", total=None)
    groups = [subject.units[name] for name in names]
    made = schemata(
        subject.verilog(), subject.top, count, seed, groups=groups, together=subject.together
    )
    progress.update(bar, total=len(made.mutants))
    with tempfile.TemporaryDirectory(prefix="qvit-") as work:
        fates = subject.run(
            made, Path(work), tools, workers, lambda done: progress.update(bar, completed=done)
        )
    verdicts = _compared(subject, made, fates, workers, progress, patience)
    entries = []
    for mutant in made.mutants:
        unit = next(name for name in names if re.fullmatch(subject.units[name], mutant.module))
        entries.append(_entry(unit, mutant, fates[mutant.number], verdicts.get(mutant.number)))
    return entries


def _compared(
    subject: Subject,
    made: Schemata,
    fates: dict[int, Fate],
    workers: int,
    progress: Progress,
    patience: int,
) -> dict[int, Verdict]:
    """Survivors against their unit, several at a time."""
    survivors = [number for number, fate in fates.items() if not fate.killed]
    if not survivors:
        return {}
    bar = progress.add_task(f"{subject.name}: survivors compared", total=len(survivors))
    found = {}
    holders = {mutant.number: mutant.holders for mutant in made.mutants}
    with tempfile.TemporaryDirectory(prefix="qvit-") as name:
        folder = Path(name)
        for holder, circuit in made.circuits.items():
            (folder / holder).write_text(circuit, encoding="utf-8")
        with ProcessPoolExecutor(min(workers, len(survivors))) as pool, ended_with():
            asked = [
                ([str(folder / holder) for holder in holders[number]], number, patience)
                for number in survivors
            ]
            for number, verdict in zip(survivors, pool.map(_verdict, asked), strict=True):
                found[number] = verdict
                progress.advance(bar)
    return found


@cache
def _judge(path: str) -> Judge:
    from qvit_hw.mutation.equivalence import Judge

    return Judge(Path(path).read_text(encoding="utf-8"))


def _verdict(asked: tuple[Sequence[str], int, int]) -> Verdict:
    """What is known in the mutant's own unit and with the units around it."""
    paths, number, patience = asked
    own, *around = map(_judge, paths)
    return own.verdict(number, around, seconds=patience)


def _entry(unit: str, mutant: Mutant, fate: Fate, verdict: Verdict | None) -> dict[str, Any]:
    """A mutant as mutation.json has it."""
    how = fate.how if verdict is None else verdict.how
    hint = "" if verdict is None else HINTS.get(how, "").format(cycles=verdict.cycles)
    return {
        "unit": unit,
        "number": mutant.number,
        "module": mutant.module,
        "cell": mutant.cell,
        "kind": mutant.kind,
        "line": mutant.source,
        "mode": mutant.mode,
        "what": mutant.text,
        "fate": {"different": "survived", "unknown": "survived"}.get(how, how),
        "test": fate.test,
        "said": fate.said[:300],
        "cycles": 0 if verdict is None else verdict.cycles,
        "hint": hint,
    }


def _document(
    entries: list[dict[str, Any]], count: int, seed: int, tools: Tools, only: Sequence[str] | None = None
) -> dict[str, Any]:
    """mutation.json; only: what was asked for, if not everything."""
    units = []
    for name in dict.fromkeys(entry["unit"] for entry in entries):
        mine = [entry for entry in entries if entry["unit"] == name]
        fates = Counter(entry["fate"] for entry in mine)
        killed = fates["killed"] + fates["crashed"] + fates["hung"]
        faults = killed + fates["survived"]
        score = killed / faults if faults else 1.0
        tests = Counter(entry["test"] for entry in mine if entry["fate"] == "killed")
        units.append(
            {
                "unit": name,
                "mutants": len(mine),
                "killed": killed,
                "crashed": fates["crashed"],
                "hung": fates["hung"],
                "proven": fates["proven"],
                "bounded": fates["bounded"],
                "survived": fates["survived"],
                "score": score,
                "passed": score >= BAR,
                "tests": dict(tests.most_common()),
            }
        )
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "only": list(only or ()),
        "simulator": {"name": tools.name, "version": tools.version},
        "count": count,
        "seed": seed,
        "bar": BAR,
        "units": units,
        "mutants": entries,
        "passed": all(unit["passed"] for unit in units),
    }


def _page(document: dict[str, Any]) -> str:
    killed = sum(unit["killed"] for unit in document["units"])
    faults = killed + sum(unit["survived"] for unit in document["units"])
    return frame.render(
        "mutation.html.j2",
        kind="mutants",
        number=f"{100 * killed / max(faults, 1):.1f} %",
        of=f"of {faults:,} mutants are found by the testbenches",
        passed=document["passed"],
        document=document,
    )


def _print(document: dict[str, Any], where: Path) -> None:
    console = Console(highlight=False)
    counts = ("mutants", "killed", "proven", "bounded", "survived")
    table = Table("unit", *counts, "score", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for unit in document["units"]:
        table.add_row(unit["unit"], *(str(unit[name]) for name in counts), f"{100 * unit['score']:.1f} %")
    console.print(table)
    for mutant in document["mutants"]:
        if mutant["fate"] == "survived":
            place = f"{mutant['unit']} {mutant['number']}, {mutant['module']} {mutant['cell']}"
            said = f"survived: {place}: {mutant['what']} ({mutant['hint']})"
            console.print(said, style="red", soft_wrap=True, markup=False)
    below = [unit["unit"] for unit in document["units"] if not unit["passed"]]
    verdict = f"below {document['bar']:.0%}: {', '.join(below)}" if below else "none below the bar"
    console.print(f"{len(document['units'])} units, {verdict}: {where}", soft_wrap=True)


if __name__ == "__main__":
    from qvit_hw.cli import main

    main("mutate")

# SPDX-License-Identifier: Apache-2.0
"""Runs of testbenches on a design that holds many mutants, and what became of each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from sim.bench import JOB_VARIABLE
from sim.runner import Simulation, run_tests

__all__ = [
    "ORDER_FILE",
    "RESULTS_VARIABLE",
    "Fate",
    "child_folder",
    "note_stuck",
    "run_mutants",
]

ORDER_FILE = "mutants.json"
"""What ``tb_mutants`` is to do."""
RESULTS_VARIABLE = "COCOTB_RESULTS_FILE"
STUCK = "stuck"
SECONDS = 60
"""Of the processor, after which a mutant counts as hung; the unit as it is takes a tenth of that."""
CHUNK = 100
"""Mutants of a simulator process: progress is told between them."""


@dataclass(frozen=True)
class Fate:
    """What became of a mutant.

    how: "survived", "killed" (a test failed), "crashed" (the simulator gave up) or "hung" (no test ended).
    test: the test that killed it.  said: what that test said.
    """

    how: str
    test: str = ""
    said: str = ""

    @property
    def killed(self) -> bool:
        """Whether the testbench saw it."""
        return self.how != "survived"


def child_folder(folder: Path, number: int) -> Path:
    """Where a mutant's run writes."""
    return folder / f"mutant{number}"


def note_stuck(folder: Path, number: int) -> None:
    """Say that a mutant's run took too long."""
    (child_folder(folder, number) / STUCK).touch()


def run_mutants(
    simulation: Simulation,
    modules: Sequence[str],
    names: Sequence[str],
    folder: Path,
    mutants: Sequence[int],
    *,
    jobs: int = 1,
    seed: int = 1,
    seconds: int = SECONDS,
    control: str = "mutant",
    plusargs: Sequence[str] = (),
    progress: Callable[[int], None] = lambda done: None,
) -> dict[int, Fate]:
    """Run tests (full names) of testbenches on each mutant; what they read is in ``folder`` already.

    control: path below the top of the register that chooses.  progress: called with mutants that are done.
    RunFailed unless all of them pass on the design as it is.
    """
    fates: dict[int, Fate] = {}
    for begin in range(0, len(mutants), CHUNK):
        chunk = list(mutants[begin : begin + CHUNK])
        order = {"mutants": chunk, "jobs": jobs, "seconds": seconds, "control": control}
        (folder / ORDER_FILE).write_text(json.dumps(order), encoding="utf-8")
        faults = run_tests(
            simulation,
            ",".join(("sim.tb_mutants", *modules)),
            ["sim.tb_mutants.choose", *names],
            folder,
            env={JOB_VARIABLE: str(folder), "COCOTB_MAX_FAILURES": "1"},
            plusargs=plusargs,
            seed=seed,
        )
        wrong = {name: fault for name, fault in faults.items() if fault is not None}
        if wrong:
            raise ControlFailed(f"The unit as it is fails: {wrong}")
        for number in chunk:
            mine = child_folder(folder, number)
            fates[number] = _fate(mine, len(names) + 1)
            shutil.rmtree(mine)
        progress(begin + len(chunk))
    return fates


class ControlFailed(Exception):
    """The tests fail on the design as it is: nothing can be said about its mutants."""


def _fate(folder: Path, tests: int) -> Fate:
    """What a child left."""
    if (folder / STUCK).exists():
        return Fate("hung")
    try:
        cases = list(ElementTree.parse(folder / "results.xml").iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return Fate("crashed")
    for case in cases:
        fault = case.find("failure")
        fault = case.find("error") if fault is None else fault
        if fault is not None:
            said = fault.get("error_msg") or fault.get("message") or ""
            return Fate("killed", f"{case.get('classname')}.{case.get('name')}", said)
    return Fate("survived" if len(cases) == tests else "crashed")

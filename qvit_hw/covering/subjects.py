# SPDX-License-Identifier: Apache-2.0
"""What is measured: a unit, its tests, and what they have reached."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from qvit_hw.covering.counts import Counted, parse
from qvit_hw.covering.reasons import REASONS
from qvit_hw.generate import build_unit
from qvit_hw.mutation.attention import HEAD_UNITS, MODULE, HeadUnit
from qvit_hw.mutation.subjects import REGISTER_TESTS, ROW_UNITS, register_case
from qvit_hw.simulate import CORNER_LENGTH
from sim.bench import JOB_VARIABLE
from sim.coverage import Point, measure
from sim.head_corners import measure_heads
from sim.job import Job, load_unit
from sim.runner import ROW_UNIT, RunFailed, build, run_tests
from sim.scenarios import operator, scenarios
from sim.tools import Tools

__all__ = ["COUNTERS", "ROW_SUBJECTS", "Found", "Heads", "RowUnit", "Subject", "passed"]

COUNTERS = ("--coverage-line", "--coverage-toggle")
"""Arguments of Verilator."""


@dataclass(frozen=True)
class Found:
    """Coverpoints of a unit, how often each place of its Verilog was reached, why some places never are."""

    points: list[Point]
    counted: Counted
    reasons: Sequence[tuple[str, str, str]] = REASONS


class Subject(Protocol):
    """A design whose tests are measured, and the units that it consists of."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def units(self) -> Sequence[str]:
        """Its units."""

    @property
    def what(self) -> str:
        """Its configuration."""

    def run(self, folder: Path, tools: Tools) -> Mapping[str, Found]:
        """Run its tests in a folder and count, unit by unit."""


@dataclass(frozen=True)
class RowUnit:
    """A row unit behind its AXI top; only: names of the scenarios to run, all without."""

    name: str
    spec: Any
    lanes: int = 4
    only: tuple[str, ...] = ()

    @property
    def units(self) -> tuple[str, ...]:
        """It is one."""
        return (self.name,)

    @property
    def what(self) -> str:
        """Its configuration."""
        return f"{self.spec!r}, {self.lanes} lanes"

    def run(self, folder: Path, tools: Tools) -> Mapping[str, Found]:
        """The scenarios of ``simulate`` and the tests of the registers; RunFailed if one fails."""
        built = build_unit(self.name, self.spec, self.lanes)
        (folder / built.entry["file"]).write_text(built.verilog, encoding="utf-8")
        unit = load_unit(built.entry, folder)
        cases = scenarios(unit, corner_length=CORNER_LENGTH)
        cases = [case for case in cases if not self.only or case.name in self.only]
        style = replace(ROW_UNIT, verilator=COUNTERS)
        simulation = build(tools, unit.verilog, unit.top, style=style)
        Job(unit, [register_case(unit), *cases]).write(folder)
        module = f"sim.tb_{unit.op}"
        names = [f"{module}.rows/case={index}" for index in range(len(cases) + 1)]
        names += [f"sim.tb_axi.{name}" for name in REGISTER_TESTS]
        modules = f"{module},sim.tb_axi"
        passed(self.name, run_tests(simulation, modules, names, folder, env={JOB_VARIABLE: str(folder)}))
        points = measure(self.name, operator(unit.op, unit.spec), unit.lanes, cases)
        return {self.name: Found(points, parse(folder / "coverage.dat", built.verilog))}


@dataclass(frozen=True)
class Heads:
    """Codes and v, with the cases that its mutants meet."""

    unit: HeadUnit

    @property
    def name(self) -> str:
        """What it is called."""
        return self.unit.name

    @property
    def units(self) -> tuple[str, ...]:
        """It is one."""
        return (self.name,)

    @property
    def what(self) -> str:
        """Its configuration."""
        return self.unit.what

    def run(self, folder: Path, tools: Tools) -> Mapping[str, Found]:
        """All cases; RunFailed if one fails."""
        text, cases = self.unit.verilog(), self.unit.cases()
        simulation, tests = self.unit.built(text, folder, tools, cases, COUNTERS)
        passed(self.name, run_tests(simulation, MODULE, tests, folder, env={JOB_VARIABLE: str(folder)}))
        waits = [json.loads((folder / f"refused{at}.json").read_text()) for at in range(len(cases))]
        points = measure_heads(self.name, self.unit.spec, cases, waits)
        return {self.name: Found(points, parse(folder / "coverage.dat", text))}


def passed(name: str, faults: Mapping[str, str | None]) -> None:
    """RunFailed unless all tests have passed."""
    wrong = {test: fault for test, fault in faults.items() if fault is not None}
    if wrong:
        raise RunFailed(f"{name} fails: {wrong}")


ROW_SUBJECTS: tuple[Subject, ...] = (
    *(RowUnit(unit.name, unit.spec) for unit in ROW_UNITS),
    *(Heads(unit) for unit in HEAD_UNITS),
)
"""Units on their own."""

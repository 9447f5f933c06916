# SPDX-License-Identifier: Apache-2.0
"""What is mutated: a design, the units it consists of, and the tests that should notice.

Units are small, so that a mutant's run takes a fraction of a second; what is larger in a large one is more of
the same. Short cases come first: most mutants die in them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from golden.gelu import GeluSpec
from golden.layernorm import LayerNormSpec
from golden.requant import RequantSpec
from golden.residual import ResidualSpec
from golden.softmax import SoftmaxSpec
from qvit_hw.generate import BuiltUnit, build_unit
from qvit_hw.mutation.schemata import Schemata
from sim.job import Case, Job, Unit, load_unit
from sim.mutants import Fate, run_mutants
from sim.runner import build
from sim.scenarios import Row, case_of, operator, scenarios
from sim.tools import Tools

__all__ = ["ROW_UNITS", "OneUnit", "RowUnit", "Subject", "named", "ordered", "register_case"]

REGISTER_TESTS = (
    *("readable", "refused", "decoded", "channel_order"),
    *("late_response", "late_read", "untouched", "kept", "repaired"),
)
CORNER_LENGTH = 64
ROWS = 6


class Subject(Protocol):
    """A design whose mutants can be run."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def top(self) -> str:
        """Its top module."""

    @property
    def units(self) -> Mapping[str, str]:
        """Units, and what the names of their modules match."""

    @property
    def together(self) -> str:
        """Modules that are compared with any unit that has one of them."""

    def verilog(self) -> str:
        """Its text, without mutants."""

    def run(
        self, made: Schemata, folder: Path, tools: Tools, jobs: int, progress: Callable[[int], None]
    ) -> dict[int, Fate]:
        """What became of each mutant."""


@dataclass(frozen=True)
class OneUnit:
    """What a subject says of its units where it is one."""

    name: str

    @property
    def units(self) -> dict[str, str]:
        """All of it is one unit."""
        return {self.name: ".*"}

    @property
    def together(self) -> str:
        """All of it is."""
        return ""


def named(fates: Mapping[int, Fate], cases: Mapping[str, str]) -> dict[int, Fate]:
    """Fates that tell the case, by the test that ran it; a test without one keeps its name."""
    return {number: replace(fate, test=cases.get(fate.test, fate.test)) for number, fate in fates.items()}


def register_case(unit: Unit) -> Case:
    """One row of almost four beats, which the tests of the registers send."""
    op, rng = operator(unit.op, unit.spec), np.random.default_rng(3)
    elements = op.telling_row(rng, 4 * unit.lanes - 1)
    return case_of("rows", [Row(elements, op.random_params(rng, op.longest))], op, unit.lanes)


def ordered(cases: Sequence[Case], lanes: int) -> list[Case]:
    """Cases, the shortest in cycles first."""

    def cycles(case: Case) -> float:
        beats = int((-(-case.received // lanes)).sum())
        return beats / (1 - max(case.stall_in.share, case.stall_out.share))

    return sorted(cases, key=cycles)


@dataclass(frozen=True)
class RowUnit(OneUnit):
    """A row unit behind its AXI top, with its scenarios and the tests of its registers.

    only: names of the scenarios to run; all of them without.
    """

    spec: Any
    lanes: int = 2
    only: tuple[str, ...] = ()

    @property
    def top(self) -> str:
        """Its top module."""
        return f"qvit_{self.name}"

    def _built(self) -> BuiltUnit:
        return build_unit(self.name, self.spec, self.lanes)

    def verilog(self) -> str:
        """Its text, without mutants."""
        return self._built().verilog

    def run(
        self, made: Schemata, folder: Path, tools: Tools, jobs: int, progress: Callable[[int], None]
    ) -> dict[int, Fate]:
        """What became of each mutant."""
        built = self._built()
        (folder / built.entry["file"]).write_text(made.verilog, encoding="utf-8")
        unit = load_unit(built.entry, folder)
        cases = ordered(scenarios(unit, rows=ROWS, corner_length=CORNER_LENGTH), unit.lanes)
        cases = [case for case in cases if not self.only or case.name in self.only]
        if not self.only:
            cases.insert(0, register_case(unit))
        simulation = build(tools, unit.verilog, unit.top)
        Job(unit, cases).write(folder)
        module = f"sim.tb_{unit.op}"
        names = {f"{module}.rows/case={index}": case.name for index, case in enumerate(cases)}
        modules = [module]
        if not self.only:
            names |= {f"sim.tb_axi.{name}": f"registers: {name}" for name in REGISTER_TESTS}
            modules.append("sim.tb_axi")
        fates = run_mutants(
            simulation,
            modules,
            list(names),
            folder,
            [mutant.number for mutant in made.mutants],
            jobs=jobs,
            progress=progress,
        )
        return named(fates, names)


ROW_UNITS: tuple[RowUnit, ...] = (
    RowUnit("softmax", SoftmaxSpec(max_tokens=64)),
    RowUnit("layernorm", LayerNormSpec(max_channels=64)),
    RowUnit("gelu", GeluSpec(in_bits=6)),
    RowUnit("requant", RequantSpec()),
    RowUnit("residual", ResidualSpec()),
)
"""The row units."""

# SPDX-License-Identifier: Apache-2.0
"""The unit of codes and v, which has plain streams for ports: its Verilog, its cases, its mutants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from golden.attention import AttendSpec
from golden.softmax import SoftmaxSpec
from qvit_hw.mutation.schemata import Schemata
from qvit_hw.mutation.subjects import OneUnit, named
from rtl.attention import ShiftAttend
from rtl.emit import emit
from sim.head_cases import head_cases
from sim.heads import Case, HeadJob
from sim.mutants import Fate, run_mutants
from sim.runner import Simulation, Style, build
from sim.tools import Tools

__all__ = ["HEAD_UNITS", "MODULE", "HeadUnit"]

MODULE = "sim.tb_attention"
"""Its testbench."""
PORTS = tuple(f'public_flat_rw -module "{{top}}" -var "{name}"' for name in ("clk", "rst", "*__*"))


@dataclass(frozen=True)
class HeadUnit(OneUnit):
    """Codes and v behind plain streams; only: names of the cases to run, all without."""

    spec: AttendSpec
    lanes: int = 3
    only: tuple[str, ...] = ()

    @property
    def top(self) -> str:
        """Its top module."""
        return "qvit_attention"

    @property
    def what(self) -> str:
        """Its configuration."""
        return f"{self.spec!r}, {self.lanes} lanes"

    def verilog(self) -> str:
        """Its text, without mutants."""
        return emit(ShiftAttend(self.spec, lanes=self.lanes), self.top)

    def cases(self) -> list[Case]:
        """What it is asked to do, the shortest first."""
        cases = head_cases(self.spec, self.lanes)
        cases = [case for case in cases if not self.only or case.name in self.only]
        return sorted(cases, key=lambda case: sum(len(row) for head in case.heads for row in head.rows))

    def built(
        self, text: str, folder: Path, tools: Tools, cases: Sequence[Case], counters: Sequence[str] = ()
    ) -> tuple[Simulation, list[str]]:
        """The simulator of its Verilog and the tests' names; the job is in ``folder``.

        counters: more arguments of Verilator.
        """
        path = folder / f"{self.top}.v"
        path.write_text(text, encoding="utf-8")
        HeadJob.of(cases, self.spec, self.lanes).write(folder)
        simulation = build(tools, path, self.top, style=Style(PORTS, verilator=tuple(counters)))
        return simulation, [f"{MODULE}.rows/case={index}" for index in range(len(cases))]

    def run(
        self, made: Schemata, folder: Path, tools: Tools, jobs: int, progress: Callable[[int], None]
    ) -> dict[int, Fate]:
        """What became of each mutant."""
        cases = self.cases()
        simulation, tests = self.built(made.verilog, folder, tools, cases)
        numbers = [mutant.number for mutant in made.mutants]
        fates = run_mutants(simulation, [MODULE], tests, folder, numbers, jobs=jobs, progress=progress)
        return named(fates, {test: case.name for test, case in zip(tests, cases, strict=True)})


HEAD_UNITS: tuple[HeadUnit, ...] = (
    HeadUnit("attention", AttendSpec(codes="any", out_bits=16, softmax=SoftmaxSpec(max_tokens=20))),
    HeadUnit(
        "attention-sqrt2",
        AttendSpec(codes="any", out_bits=16, softmax=SoftmaxSpec(base="sqrt2", max_tokens=20)),
    ),
)
"""To either base, with accumulators that any codes leave whole and codes wide enough to show them."""

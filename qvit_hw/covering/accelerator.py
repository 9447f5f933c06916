# SPDX-License-Identifier: Apache-2.0
"""The accelerator's own modules: what the runs of :mod:`qvit_hw.trial` reach of them.

The row units behind the movers are not among them: they are measured on their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qvit_hw.accelerator import emitted
from qvit_hw.covering.counts import parse
from qvit_hw.covering.reasons import ACCELERATOR_REASONS
from qvit_hw.covering.subjects import COUNTERS, Found, passed
from qvit_hw.mutation.accelerator import ACCELERATOR, UNITS
from qvit_hw.mutation.accelerator import Accelerated as Mutated
from qvit_hw.trial import wide_trial
from sim.accelerator import MODULE, REGISTERS, TOP, build_bench, register_names, run_names
from sim.accelerator_corners import measure_session
from sim.bench import JOB_VARIABLE
from sim.runner import run_tests
from sim.tools import Tools

__all__ = ["ACCELERATORS", "Accelerated"]


@dataclass(frozen=True)
class Accelerated:
    """The accelerator with the session that its mutants meet; suffix: what is behind its units' names."""

    whole: Mutated
    suffix: str = ""

    @property
    def name(self) -> str:
        """What it is called."""
        return f"accelerator{self.suffix}"

    @property
    def units(self) -> tuple[str, ...]:
        """Its modules, in groups."""
        return tuple(f"{unit}{self.suffix}" for unit in UNITS)

    @property
    def what(self) -> str:
        """Its configuration."""
        return repr(self.whole.desk.spec)

    def run(self, folder: Path, tools: Tools) -> Mapping[str, Found]:
        """All runs and the tests of the registers; RunFailed if one fails."""
        desk = self.whole.desk
        simulation = build_bench(tools, emitted(desk.spec), desk.spec, folder, counters=COUNTERS)
        plusargs = desk.prepared(folder)
        faults = run_tests(
            simulation,
            f"{MODULE},{REGISTERS}",
            [*run_names(desk.session), *register_names()],
            folder,
            env={JOB_VARIABLE: str(folder)},
            plusargs=plusargs,
        )
        passed(self.name, faults)
        text = (folder / f"{TOP}.v").read_text(encoding="utf-8")
        counted = parse(folder / "coverage.dat", text, only="qvit_accelerator")
        points = measure_session(desk.spec, desk.session, folder / "memory.bin")
        return {
            f"{unit}{self.suffix}": Found(points[unit], counted.of(modules), ACCELERATOR_REASONS)
            for unit, modules in UNITS.items()
        }


ACCELERATORS: tuple[Accelerated, ...] = (
    *(Accelerated(whole) for whole in ACCELERATOR),
    Accelerated(Mutated(wide_trial), "-wide"),
)
"""Both kinds of accelerator: codes to base 2, and to base sqrt 2 with a stream of 16 bits."""

# SPDX-License-Identifier: Apache-2.0
"""The accelerator's own modules: their mutants do the runs of :mod:`qvit_hw.trial`.

The row units behind the movers are not among them: they are mutated on their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from qvit_hw.accelerator import emitted
from qvit_hw.compile import TOP
from qvit_hw.mutation.schemata import CONTROL, Schemata
from qvit_hw.trial import Desk, trial
from sim.accelerator import MODULE, REGISTERS, build_bench, register_names, run_names
from sim.mutants import Fate, run_mutants
from sim.tools import Tools

__all__ = ["ACCELERATOR", "UNITS", "Accelerated"]

CORE = f"{TOP}_core"
UNITS = {
    "dma": f"{TOP}_bus(_queue)?",
    "control": f"{TOP}_control",
    "sequencer": f"{CORE}_sequencer",
    "array": f"{CORE}_array",
    "drain": f"{CORE}_drain",
    "rows": f"{CORE}_(layernorm|softmax)",
    "core": f"{TOP}(_core)?",
}
"""Modules by unit."""
TOGETHER = f"{TOP}(_control)?|{CORE}(_sequencer|_array|_drain|_(layernorm|softmax))?"
"""What one of them asks for is a word of another in the next cycle."""
SECONDS = 120
"""Of the processor, after which a mutant counts as hung; each of its runs has a limit in cycles, too."""


@dataclass(frozen=True)
class Accelerated:
    """The accelerator in its bench; ``session`` makes the runs, some or all.

    registers: whether the tests of the registers are run, too; they begin with the session's first run.
    """

    session: Callable[[], Desk] = trial
    units: Mapping[str, str] = field(default_factory=lambda: UNITS)
    name: str = "accelerator"
    top: str = TOP
    together: str = TOGETHER
    registers: bool = True

    @cached_property
    def desk(self) -> Desk:
        """The session, written once: its programs are compiled, and golden's machine runs each."""
        return self.session()

    def verilog(self) -> str:
        """Its text, without mutants."""
        return emitted(self.desk.spec)

    def run(
        self, made: Schemata, folder: Path, tools: Tools, jobs: int, progress: Callable[[int], None]
    ) -> dict[int, Fate]:
        """What became of each mutant."""
        desk = self.desk
        simulation = build_bench(tools, made.verilog, desk.spec, folder)
        fates = run_mutants(
            simulation,
            [MODULE, REGISTERS] if self.registers else [MODULE],
            [*run_names(desk.session), *(register_names() if self.registers else ())],
            folder,
            [mutant.number for mutant in made.mutants],
            jobs=jobs,
            seconds=SECONDS,
            control=f"dut.{CONTROL}",
            plusargs=desk.prepared(folder),
            progress=progress,
        )
        return {
            number: Fate(fate.how, fate.test.rpartition(".")[2], fate.said) for number, fate in fates.items()
        }


ACCELERATOR: tuple[Accelerated, ...] = (Accelerated(),)
"""One configuration of the accelerator."""

# SPDX-License-Identifier: Apache-2.0
"""Measure units on targets: what the cache knows, and the rest side by side in processes of the tools."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qvit_hw.costing import cache
from qvit_hw.costing.targets import (
    GOAL_MHZ,
    LIBERTY,
    SEEDS,
    Figures,
    Target,
    Variant,
    find_target,
    nand2_area,
    tool_versions,
)
from qvit_hw.costing.units import ACCELERATOR, unit_rtlil
from qvit_hw.costing.yosys import Failed, run_passes, stop
from qvit_hw.errors import UserError

__all__ = ["Row", "Task", "check_liberty", "measure", "measure_all", "tasks_for"]

COUNTING = 2
"""Changes with what is counted as what, and how: figures of another one are not comparable."""


@dataclass(frozen=True)
class Task:
    """A unit to measure.

    variant: of the target's.  spec: another one than the unit's own.  liberty: for the target ``asic``.
    """

    unit: str
    lanes: int
    target: str
    variant: str = "default"
    spec: Any = None
    liberty: Path = LIBERTY


@dataclass(frozen=True)
class Row:
    """What was measured of a unit; parts: of a design with a hierarchy, by unit."""

    unit: str
    lanes: int
    target: str
    variant: str
    figures: Figures
    parts: dict[str, Figures] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int, str, str]:
        """What tells it from others."""
        return self.unit, self.lanes, self.target, self.variant

    def number(self, name: str) -> float | None:
        """A figure, None where it is not there."""
        value = self.figures.get(name)
        return None if value is None or isinstance(value, str) else float(value)

    @property
    def density(self) -> float | None:
        """Elements a cycle and LUT."""
        luts = self.number("LUT")
        return self.lanes / luts if luts else None

    @property
    def throughput(self) -> float | None:
        """Million elements a second and LUT."""
        mhz, density = self.number("MHz"), self.density
        return None if mhz is None or density is None else density * mhz

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def tasks_for(
    units: Sequence[str], targets: Sequence[str], lanes: Sequence[int] | None, liberty: Path = LIBERTY
) -> list[Task]:
    """Every variant of these units on these targets; without lanes, at those that the target names."""
    tasks = []
    for name in targets:
        target = find_target(name)
        for unit in units:
            whole = unit == ACCELERATOR
            if whole and not target.hierarchy:
                continue
            for count in lanes or ((16,) if whole else target.lanes):
                variants = target.variants[:1] if whole else target.variants
                tasks += [
                    Task(unit, count, name, each.name, liberty=liberty)
                    for each in variants
                    if lanes or whole or each.lanes is None or count in each.lanes
                ]
    return tasks


def check_liberty(liberty: Path) -> None:
    """Raise UserError, which names the file, unless it has a NAND2 and Yosys takes it for its cells."""
    called = f"Liberty file {str(liberty)!r}"
    nand2_area(liberty.read_text(encoding="utf-8", errors="replace"), called)
    with tempfile.TemporaryDirectory(prefix="qvit-cost-") as name:
        shutil.copy(liberty, Path(name) / "cells.lib")
        try:
            run_passes(("dfflibmap -liberty cells.lib",), Path(name))
        except Failed as error:
            raise UserError(f"{called} cannot be read: {str(error).removeprefix('ERROR: ')}.") from error


def measure(task: Task) -> Row:
    """Measure a unit, unless the cache knows; a tool that fails leaves a ``note``, nothing in the cache."""
    target = find_target(task.target)
    variant = next(each for each in target.variants if each.name == task.variant)
    rtlil = unit_rtlil(task.unit, task.lanes, target.port_bits, task.spec, target.chained)
    whole = task.unit == ACCELERATOR
    key = cache.key_of(
        counting=COUNTING,
        design=rtlil,
        passes=[target.hierarchy] if whole else list(variant.synthesis),
        placing=None if whole or variant.device is None else [variant.device, SEEDS, GOAL_MHZ],
        tools=tool_versions(target, task.liberty),
    )
    known = cache.load(key)
    if known is None:
        try:
            known = _run(task, target, variant, rtlil, whole)
        except Failed as error:
            return Row(task.unit, task.lanes, task.target, task.variant, {"note": f"failed: {error}"})
        cache.store(key, known)
    return Row(task.unit, task.lanes, task.target, task.variant, known["figures"], known["parts"])


def _run(task: Task, target: Target, variant: Variant, rtlil: str, whole: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="qvit-cost-") as name:
        folder = Path(name)
        if "liberty" in target.tools:
            shutil.copy(task.liberty, folder / "cells.lib")
        if whole:
            parts = target.parts(rtlil, folder)
            return {"figures": parts["total"], "parts": parts}
        return {"figures": target.measure(rtlil, variant, folder), "parts": {}}


def measure_all(
    tasks: Sequence[Task], jobs: int, advance: Callable[[Task], None] = lambda task: None
) -> list[Row]:
    """Measure all of them, ``jobs`` at a time; an interrupt ends the tools that run."""
    rows: dict[int, Row] = {}
    pool = ThreadPoolExecutor(max(1, jobs))
    try:
        started = {pool.submit(measure, task): place for place, task in enumerate(tasks)}
        for done in as_completed(started):
            rows[started[done]] = done.result()
            advance(tasks[started[done]])
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        stop()
        raise
    pool.shutdown()
    return [rows[place] for place in range(len(tasks))]

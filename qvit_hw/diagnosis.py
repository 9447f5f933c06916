# SPDX-License-Identifier: Apache-2.0
"""Where golden and RTL part: the diverging row once more, with a waveform and its statistics."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.job import Case, Job, Outcome, Unit
from sim.runner import build, run_job
from sim.scenarios import Operator, Row, operator
from sim.tools import Tools

__all__ = ["diagnose", "waveform_path"]


def _row_of(case: Case, index: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_] | None]:
    """Elements and mask of a row, as long as the unit takes it."""
    start = int(case.lengths[:index].sum())
    part = slice(start, start + int(case.received[index]))
    return case.elements[part], None if case.mask is None else case.mask[part]


def waveform_path(out: Path, name: str, tools: Tools) -> Path:
    """Where a waveform of the results goes."""
    folder = out / "waves"
    folder.mkdir(exist_ok=True)
    return folder / f"{name}.{'vcd' if tools.name == 'verilator' else 'fst'}"


def diagnose(
    unit: Unit, case: Case, row: int, params: Any, tools: Tools, out: Path, seed: int
) -> dict[str, Any]:
    """Run the diverging row again, on its own, with a waveform and both sides' statistics.

    If it is right alone, it runs once more behind the row before it. params: the golden parameters
    of the row, or None to read them from the case's writes.
    """
    name = (case.layer or case.name).replace("/", "_")
    waveform = waveform_path(out, f"{unit.op}-{name}-row{row}", tools)
    simulation = build(tools, unit.verilog, unit.top, waves=True)
    told: dict[str, Any] = {}
    for before in (0, 1):
        if before > row:
            break
        part = _part(case, row - before, row)
        with tempfile.TemporaryDirectory(prefix="qvit-") as work:
            job = Job(unit, [part], seed)
            outcome, fault = run_job(simulation, job, Path(work), waveform=waveform)[0]
        if before and fault is None:
            break  # right again: what the row did alone is as good
        told = {
            "intermediates": _intermediates(unit, part, outcome, params),
            "waveform": waveform.relative_to(out).as_posix(),
        }
        if fault is not None:
            break
    return told


def _part(case: Case, first: int, last: int) -> Case:
    """The case of rows ``first`` to ``last`` with the parameters that they had."""
    rows = [_row_of(case, index) for index in range(first, last + 1)]
    params = [
        (max(row - first, 0), words)
        for number, (row, words) in enumerate(case.params)
        if row <= last and (number + 1 == len(case.params) or case.params[number + 1][0] > first)
    ]
    ends = np.cumsum(case.received)
    begin = int(ends[first] - case.received[first])
    return replace(
        case,
        lengths=case.received[first : last + 1],
        out_lengths=None,
        elements=np.concatenate([elements for elements, _ in rows]),
        mask=None if case.mask is None else np.concatenate([mask for _, mask in rows]),
        expected=case.expected[begin : int(ends[last])],
        params=params,
        reset_after=0,
        timing=None,
        status=0,
        probes=True,
    )


def _intermediates(
    unit: Unit, part: Case, outcome: Outcome, params: Any
) -> list[dict[str, Any]]:
    """Statistics of the part's last row: golden's trace beside the unit's registers."""
    op = operator(unit.op, unit.spec)
    trace = _trace(op, part, params)
    found = []
    for probe in unit.probes:
        seen = outcome.probes.get(probe["name"], [])
        rtl = seen[len(part.lengths) - 1] if len(seen) >= len(part.lengths) else None
        golden = int(getattr(trace, probe["name"]).reshape(-1)[0])
        found.append(
            {"name": probe["name"], "golden": golden, "rtl": rtl, "equal": golden == rtl}
        )
    return found


def _trace(op: Operator, part: Case, params: Any) -> Any:
    elements, mask = _row_of(part, len(part.lengths) - 1)
    if params is None:
        params = op.params_of(dict(part.params[-1][1]), elements.size)
    return op.trace(Row(elements, params, mask))

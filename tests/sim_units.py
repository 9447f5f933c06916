# SPDX-License-Identifier: Apache-2.0
"""Units, built and simulated: what the simulation tests share."""

import re
from pathlib import Path
from typing import Any

from qvit_hw.generate import build_unit
from sim.compare import compare
from sim.job import Case, Job, Unit, load_unit
from sim.runner import build, run_job
from sim.tools import find


def make_unit(op: str, spec: Any, lanes: int, folder: Path) -> Unit:
    """Emit a unit into a folder."""
    built = build_unit(op, spec, lanes)
    (folder / built.entry["file"]).write_text(built.verilog)
    return load_unit(built.entry, folder)


def simulate(unit: Unit, cases: list[Case], folder: Path, simulator: str = "verilator") -> None:
    """Run the cases and demand that every element, every known cycle and every register is right."""
    simulation = build(find(simulator), unit.verilog, unit.top)
    results = run_job(simulation, Job(unit, cases), folder)
    assert len(results) == len(cases)
    for case, (outcome, fault) in zip(cases, results, strict=True):
        found = compare(case, outcome, unit.lanes)
        assert found.elements == case.expected.size > 0
        assert (fault, found.fault, outcome.error) == (None, None, None), case.name


def edit(text: str, pattern: str, by: str) -> str:
    """Replace the one place in the Verilog that a pattern matches."""
    edited, count = re.subn(pattern, by, text)
    assert count == 1, f"{count} places match {pattern}"
    return edited


FAULTS = {
    "softmax": {
        # EXP2[0] of lane 0 loses its one: 1.0 becomes 0.
        "table": (r"(?s)\A(.*?6'h00:\s+\S+ +=) 15'h4000;", r"\1 15'h0000;"),
        "rounding": (r"probe_log_total \+ 4'h8;", "probe_log_total + 4'h0;"),
        "state": (r"(\w+\[\d+\]) \? 2\d'h0+ : probe_total;", "probe_total;"),
    },
    "layernorm": {
        # The first segment of the reciprocal square root.
        "table": (r"(?s)\A(.*?)14'h3fff;", r"\g<1>14'h1fff;"),
        "rounding": (r"(\$signed\(scaled_total\)) - [^;]*half[^;]*;", r"\1;"),
        "state": (r"(\w+\[\d+\]) \? \d\d'h0+ : probe_squares;", "probe_squares;"),
    },
}
"""Seeded bugs: a bit of a table, a rounding constant, the clearing of a sum between rows."""

# SPDX-License-Identifier: Apache-2.0
"""Units, built and simulated: what the simulation tests share."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from qvit_hw.generate import build_unit
from sim.compare import compare
from sim.job import Case, Job, Unit, load_unit
from sim.runner import build, run_job
from sim.scenarios import back_to_back, operator, scenarios
from sim.tools import find


def make_unit(op: str, spec: Any, lanes: int, folder: Path, **options: Any) -> Unit:
    """Emit a unit into a folder."""
    built = build_unit(op, spec, lanes, **options)
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


def check_every_scenario(
    op: str, spec: Any, lanes: int, folder: Path, corner_length: int | None = None
) -> None:
    """Run every scenario of a unit, and 64 rows of 197 that take as long as the cycle model says."""
    unit = make_unit(op, spec, lanes, folder)
    cases = scenarios(unit, rows=10, corner_length=corner_length)
    described = operator(op, unit.spec)
    if described.longest >= 197:
        cases.append(back_to_back(unit, 64, 197))
        latency = described.pipeline(lanes).latency(197)
        told = cases[-1].timing
        assert int(np.ptp(told[:, [0, 3]])) + 1 == 64 * -(-197 // lanes) + latency
    simulate(unit, cases, folder / "run")


def edit(text: str, pattern: str, by: str, *, all_places: bool = False) -> str:
    """Replace the one place (or every place) in the Verilog that a pattern matches."""
    edited, count = re.subn(pattern, by, text)
    assert count == 1 or (all_places and count), f"{count} places match {pattern}"
    return edited


FAULTS = {
    "softmax": {
        # EXP2[1] of one lane loses its lowest bit.
        "table": (r"(?s)\A(.*?)15'h3d49;", r"\g<1>15'h3d48;"),
        "rounding": (r"probe_log_total \+ 4'h8;", "probe_log_total + 4'h0;"),
        "state": (r"(\w+\[\d+\]) \? 2\d'h0+ : probe_total;", "probe_total;"),
    },
    "layernorm": {
        # The first segment of the reciprocal square root loses its lowest bit.
        "table": (r"(?s)\A(.*?)14'h3fff;", r"\g<1>14'h3ffe;"),
        "rounding": (r"(\$signed\(scaled_total\)) - [^;]*half[^;]*;", r"\1;"),
        "state": (r"(\w+\[\d+\]) \? \d\d'h0+ : probe_squares;", "probe_squares;"),
    },
}
"""Seeded bugs: a bit of a table, a rounding constant, the clearing of a sum between rows."""

CONTROL_FAULTS = {
    # The last place of a ring, or of the output queue, is never seen to be taken.
    ("softmax", "a buffer that overflows"): (
        r"(?s)(module \w+_beats \(.*?)next_taken == given;",
        r"\g<1>1'b0;",
    ),
    ("layernorm", "a buffer that overflows"): (
        r"(?s)(module \w+_beats \(.*?)next_taken == given;",
        r"\g<1>1'b0;",
    ),
    ("gelu", "a buffer that overflows"): (
        r"(?s)(module \w+_output_credits \(.*?)next_taken == given;",
        r"\g<1>1'b0;",
    ),
    ("gelu", "a bank that changes in mid-row"): (
        r"opening \? current_bank : arriving_bank",
        "current_bank",
    ),
    ("layernorm", "a bank that is written in use"): (
        r"left == mark;",
        "1'b1;",
    ),
    ("layernorm", "a bank that changes in mid-row"): (
        r"opening \? current_bank : arriving_bank",
        "current_bank",
    ),
    ("softmax", "a parameter that changes in mid-row"): (
        r"if \(opening\) begin(\s+\S+ += align;)",
        r"if (1'b1) begin\1",
    ),
    ("softmax", "valid that waits for ready"): (
        r"(?s)wire m_axis_tvalid;(.*?)\.o__valid\(m_axis_tvalid\)",
        (r"wire m_axis_tvalid; wire offered; assign m_axis_tvalid = offered & m_axis_tready;"
        r"\1.o__valid(offered)"),
    ),
}
"""Seeded bugs of flow control and parameters, each with the places to edit."""

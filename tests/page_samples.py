# SPDX-License-Identifier: Apache-2.0
"""A page of each kind, of made-up numbers, as large as a browser should see it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from accelerator_samples import make_program, make_run
from evaluation_samples import pictures
from evaluation_samples import sample as evaluation
from report_samples import make_bundle, make_results

from qvit_hw import cost, cover, index, mutate, prove, report
from qvit_hw.costing.measuring import Row
from qvit_hw.costing.page import cost_page
from qvit_hw.evaluation_page import render as evaluation_page
from qvit_hw.exploring.measured import Measured
from qvit_hw.exploring.page import document as tradeoff
from qvit_hw.exploring.page import tradeoff_page
from qvit_hw.exploring.space import SPACE, Origin
from qvit_hw.exploring.study import Point


def report_sample(folder: Path) -> str:
    """A report of two operators and the accelerator, in which one image differs."""
    bundle = make_bundle(folder / "bundle")
    results, program = make_results(folder / "results", bundle), make_program(folder / "program", bundle)
    run = make_run(folder / "run", program, flip=1)
    report.run(results=results, out=folder / "made.html", run=run, program=program)
    return (folder / "made.html").read_text(encoding="utf-8")


def proofs_sample(folder: Path) -> str:
    """Proofs of three units, one of which is refuted."""
    units = ("softmax", "layernorm", "gelu")
    found = [
        prove.Proof(
            unit=units[number % 3],
            name=f"property {number}",
            kind="arithmetic" if number % 2 else "stream",
            claim="the code of every element is golden's, whatever came before it and whatever comes after",
            scope="all scores, 12 bits; all sums, 24 bits",
            status="refuted" if number == 4 else "proven",
            seconds=number / 7,
            text="golden 3, Verilog 4" if number == 4 else "",
            values={"score": -2048, "sum": 1 << 30} if number == 4 else None,
        )
        for number in range(12)
    ]
    return prove.page(prove.document(found, 93.5))


def coverage_sample(folder: Path) -> str:
    """Coverage of two units; one has a gap without a reason."""

    def figures(reached: int, places: int) -> dict[str, float]:
        share = reached / places
        told = {"explained": 0, "share_of_reachable": share}
        return {"reached": reached, "places": places, "share": share, **told}

    units = []
    for name, missed in (("softmax", []), ("layernorm", ["both x longest x new"])):
        reason = "" if missed else "the reset is synchronous: never in mid-cycle"
        gap = {"module": f"qvit_{name}_core_rows", "line": 812, "text": "level <= level + 1'h1;"}
        hits = {f"bin {number}": 7 * number + 1 for number in range(5)}
        units.append(
            {
                "unit": name,
                "what": f"{name}, 4 lanes",
                "bins": 90,
                "missed": len(missed),
                "points": [
                    {"point": point, "bins": 5, "missed": missed, "hits": hits}
                    for point in ("stalls x lengths x params", "maximum", "total")
                ],
                "line": figures(990 - len(missed), 1000),
                "toggle": figures(4800, 5000),
                "modules": [
                    {"module": f"{name}.{part}", "line": figures(99, 100), "toggle": figures(9, 10)}
                    for part in ("core", "core.rows", "axi")
                ],
                "gaps": [{**gap, "kind": kind, "reason": reason} for kind in ("line", "toggle")],
                "unexplained": len(missed),
                "passed": not missed,
            }
        )
    tools = type("Tools", (), {"name": "verilator", "version": "Verilator 5.48"})()
    return cover._page(cover._document(units, tools))


def mutation_sample(folder: Path) -> str:
    """Mutants of two units; one survives."""
    fates = ("killed", "hung", "proven", "survived", "killed", "bounded")
    entries = [
        {
            "unit": ("softmax", "layernorm")[number % 2],
            "number": number,
            "module": "qvit_softmax_core_rows_with_a_long_name",
            "cell": "$auto$proc_dff.cc:220:handle_dff$1234",
            "kind": "$dff",
            "line": 100 + number,
            "mode": "inv",
            "what": "bit 3 of port D is inverted, in every cycle from reset on",
            "fate": fates[number % len(fates)],
            "test": "stall_both_0.5" if fates[number % len(fates)] == "killed" else "",
            "said": "row 3, column 4",
            "cycles": 40,
            "hint": "",
        }
        for number in range(30)
    ]
    tools = type("Tools", (), {"name": "verilator", "version": "Verilator 5.48"})()
    return mutate._page(mutate._document(entries, 15, 1, tools))


def cost_sample(folder: Path) -> str:
    """Costs of units of few and of many lanes on three targets."""
    figures = {"LUT": 1000, "FF": 500, "DSP": 0, "BRAM": 2}
    rows = [
        Row(unit, lanes, target, "default", {**figures, "LUT": 400 * lanes, "MHz": 120.5 + lanes})
        for unit in ("softmax", "layernorm")
        for lanes in (2, 8)
        for target in ("xcup", "ecp5", "ice40")
    ]
    return cost_page(rows, rows[:3], ["Unit softmax costs more."], {"pyosys": "0.60"})


def tradeoff_sample(folder: Path) -> str:
    """A study of two dozen points that differ in every quantity."""
    found = []
    for number in range(24):
        choice = {name: values[number % len(values)] for name, values in SPACE.items()}
        lut, cycles = 900.0 + 731 * number % 4000, 1000 + 977 * number % 5000
        told = Measured(10 + number / 2, 0.9, lut, 1, 4, 2.5, cycles, 30_000 + 500 * number, {}, {})
        found.append(Point(number, choice, told.record(), tuple(told.values(False))))
    tools = {"yosys": "0.60"}
    setup = {"model": "digits", "calibration": 32, "data": "digits, 359 images", "tools": tools}
    return tradeoff_page(tradeoff(found, setup, Origin(), False))


def index_sample(folder: Path) -> str:
    """An index of pages of which one failed and one has no verdict; others are missing."""
    told = (
        (0, "demo/report.html", "0 mismatches", "in 7,371,809 elements", True),
        (2, "proofs/proofs.html", "40 of 41", "properties proven", False),
        (5, "a/folder with spaces/cost.html", "4", "units on xcup", None),
    )
    return index.render_index(
        [index.Page(index.KINDS[kind], *rest, "2026-01-02") for kind, *rest in told]
    )


SAMPLES: dict[str, Callable[[Path], str]] = {
    "report": report_sample,
    "evaluation": lambda _: evaluation_page(evaluation(blocks=4, differing=300), pictures()),
    "proofs": proofs_sample,
    "coverage": coverage_sample,
    "mutation": mutation_sample,
    "cost": cost_sample,
    "tradeoff": tradeoff_sample,
    "index": index_sample,
}
"""Each kind of page by the stem of its file."""
assert cost.PAGE == "cost.html"

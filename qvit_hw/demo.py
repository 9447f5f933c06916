# SPDX-License-Identifier: Apache-2.0
"""The whole way on one model: calibrate, generate, simulate, report.

    python -m qvit_hw.demo [--model digits] [--out build/demo]

leaves ``bundle/``, ``rtl/``, ``results/`` and ``report.html`` in the folder, each as the command of
that name would. The exit status is the report's: 1 if golden model and Verilog differ anywhere.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from . import calibrate, generate, report, simulate
from .models import check_name
from .outputs import check_folder, made_folder

__all__ = ["run"]


def run(*, model: str = "digits", out: Path = Path("build/demo")) -> int:
    """Take ``model`` through all four steps into the folder ``out``; return the exit status."""
    check_folder(out)
    check_name(model)
    simulate.find_tools("verilator")
    with made_folder(out):
        return _steps(model, out)


def _steps(model: str, out: Path) -> int:
    console = Console(highlight=False, soft_wrap=True)
    bundle, rtl, results, page = (out / name for name in ("bundle", "rtl", "results", "report.html"))
    began = time.monotonic()
    steps: list[tuple[str, str, Callable[[], int]]] = [
        (
            "calibrate",
            f"observe {model}, freeze it into integers, record vectors",
            lambda: calibrate.run(model=model, out=_fresh(bundle)),
        ),
        (
            "generate",
            "Verilog of both operators",
            lambda: generate.run(bundle=bundle, out=_fresh(rtl)),
        ),
        (
            "simulate",
            "every layer and scenario, every element against golden",
            lambda: simulate.run(bundle=bundle, rtl=rtl, rows="all", out=_fresh(results)),
        ),
        ("report", "page, JSON and JUnit", lambda: report.run(results=results, out=page)),
    ]
    status = 0
    for number, (name, what, step) in enumerate(steps, start=1):
        console.print(f"[bold]{number}/{len(steps)} {name}[/bold]  [dim]{what}[/dim]")
        start = time.monotonic()
        status = step()
        console.print(f"    [dim]{time.monotonic() - start:.1f} s[/dim]")
        if status not in (0, 1) or (status and name in ("calibrate", "generate")):
            return status  # a mismatch still gets its report; anything else ends here
    _verdict(console, page, time.monotonic() - began)
    return status


def _fresh(folder: Path) -> Path:
    """Remove what an earlier demo left, so that nothing of it can be mistaken for this one's."""
    if folder.is_dir():
        shutil.rmtree(folder)
    return folder


def _verdict(console: Console, page: Path, seconds: float) -> None:
    told = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    totals = told["totals"]
    colour = "green" if told["passed"] else "red"
    console.print()
    console.print(
        f"[bold {colour}]{totals['mismatches']:,} mismatches[/] in {totals['elements']:,} elements "
        f"of {totals['layers']} layers and {totals['scenarios']} scenarios, {seconds:.0f} s in all."
    )
    for reason in told["reasons"]:
        console.print(f"[{colour}]{reason}[/]")
    for operator in told["operators"]:
        if operator["float_equal_mean"] is not None:
            console.print(
                f"{operator['op']}: {100 * operator['float_equal_mean']:.2f} % of the codes are the "
                f"float operator's, worst layer {100 * operator['float_equal_worst']:.2f} % "
                f"({operator['float_equal_worst_layer']})."
            )
    console.print(f"The report: {page}")


if __name__ == "__main__":
    from .cli import main

    main("demo")

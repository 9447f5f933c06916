# SPDX-License-Identifier: Apache-2.0
"""The whole way on one model: calibrate, generate, simulate, compile, run, report.

    python -m qvit_hw.demo [--model digits] [--out build/demo]

leaves ``bundle/``, ``rtl/``, ``results/``, ``program/``, ``run/`` and ``report.html`` in the folder, each as
the command of that name would. The exit status is the report's: 1 if golden model and Verilog differ
anywhere. A network that the accelerator cannot run gets a report without it, which says why.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from . import calibrate, generate, report, simulate
from . import compile as compiler
from . import run as accelerator
from .errors import Unsupported
from .models import check_name
from .outputs import check_folder, made_folder

__all__ = ["run"]

CONFIG = "16x16"
ALWAYS_RUN = ("digits", "dinov2")
"""Models that the accelerator must run: here a refusal is an error and no remark."""
TENSORS = 8
"""Images of which every tensor is compared; of the others the outputs."""


def run(*, model: str = "digits", out: Path = Path("build/demo")) -> int:
    """Take ``model`` through all steps into the folder ``out``; return the exit status."""
    check_folder(out)
    check_name(model)
    simulate.find_tools("verilator")
    with made_folder(out):
        return _steps(model, out)


def _steps(model: str, out: Path) -> int:
    console = Console(highlight=False, soft_wrap=True)
    bundle, rtl, results, page = (
        out / name for name in ("bundle", "rtl", "results", "report.html")
    )
    program, ran = _fresh(out / "program"), _fresh(out / "run")
    notes: list[str] = []
    began = time.monotonic()

    def compiled() -> int:
        try:
            return compiler.run(bundle=bundle, config=CONFIG, fit=True, out=program)
        except Unsupported as error:
            if model in ALWAYS_RUN:
                raise
            notes.append(f"The network did not run on the accelerator: {error}")
            console.print(notes[-1], markup=False)
            return 0

    def executed() -> int:
        if notes:
            console.print("Nothing to run.")
            return 0
        images: dict[str, Any] = (
            {"images": "digits"} if model == "digits" else {"images": "bundled", "limit": 1}
        )
        return accelerator.run(program=program, **images, check="all", tensors=TENSORS, out=ran)

    def reported() -> int:
        executed = None if notes else (ran, program)
        return report.write_report(results, page, executed=executed, notes=notes)

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
        ("compile", f"the network as a program of the {CONFIG} accelerator", compiled),
        ("run", "images from pixels to logits on the accelerator's Verilog", executed),
        ("report", "page, JSON and JUnit", reported),
    ]
    status = 0
    for number, (name, what, step) in enumerate(steps, start=1):
        console.print(f"[bold]{number}/{len(steps)} {name}[/bold]  [dim]{what}[/dim]")
        start = time.monotonic()
        status = step()
        console.print(f"    [dim]{time.monotonic() - start:.1f} s[/dim]")
        if status not in (0, 1) or (status and name in ("calibrate", "generate", "compile")):
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
    if told["accelerator"] is not None:
        _accelerator_verdict(console, told["accelerator"])
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


def _accelerator_verdict(console: Console, told: Mapping[str, Any]) -> None:
    equal = told["equal"] == told["images"]
    speed = ""
    if told["cycles"] is not None:
        speed = (
            f"; {told['cycles']:,.0f} cycles an image, {told['images_per_second']:,.1f} a second at "
            f"{told['clock_mhz']:g} MHz, {100 * told['utilisation']:.1f} % of the multipliers in use"
        )
    console.print(
        f"[bold {'green' if equal else 'red'}]{told['equal']:,} of {told['images']:,} images bit-exact[/] "
        f"on the accelerator{speed}."
    )


if __name__ == "__main__":
    from .cli import main

    main("demo")

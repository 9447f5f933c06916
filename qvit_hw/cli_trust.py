# SPDX-License-Identifier: Apache-2.0
"""The commands that gather evidence: proofs, coverage, mutation, cost, trade-off, and their index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_options import PageFolder, Pretrained, run_command

__all__ = ["app"]

app = typer.Typer()

_PROOFS, _COVERAGE, _MUTATION = Path("build/proofs"), Path("build/coverage"), Path("build/mutation")
_COST, _TRADEOFF, _BUILD = Path("build/cost"), Path("build/tradeoff"), Path("build")
_Only = Annotated[
    list[str] | None,
    typer.Option(help="Only units of this name or pattern (soft*); may be given again.", show_default=False),
]
_Jobs = Annotated[int | None, typer.Option(help="Processes; one a core by default.", show_default=False)]


@app.command()
def prove(
    out: PageFolder = _PROOFS,
    only: _Only = None,
    jobs: _Jobs = None,
) -> int:
    """Prove that the units compute what golden computes, for all inputs."""
    return run_command("prove", out=out, only=only, jobs=jobs)


@app.command()
def cover(
    out: PageFolder = _COVERAGE,
    only: _Only = None,
    jobs: _Jobs = None,
) -> int:
    """Measure what the testbenches reach: bins of numbers and stalls, lines, toggles."""
    return run_command("cover", out=out, only=only, jobs=jobs)


@app.command()
def mutate(
    out: PageFolder = _MUTATION,
    only: _Only = None,
    count: Annotated[int, typer.Option(help="Mutants of each unit.")] = 100,
    seed: Annotated[int, typer.Option(help="Which mutants.")] = 1,
    jobs: _Jobs = None,
) -> int:
    """Break the units in small ways and count how many of them the testbenches see."""
    return run_command("mutate", out=out, only=only, count=count, seed=seed, jobs=jobs)


@app.command()
def cost(
    out: PageFolder = _COST,
    op: Annotated[
        list[str] | None, typer.Option(help="Unit; may be given again.", show_default=False)
    ] = None,
    lanes: Annotated[
        list[int] | None, typer.Option(help="Elements per beat; may be given again.", show_default=False)
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="xcup, ecp5, ice40 or asic; may be given again.", show_default=False),
    ] = None,
    jobs: _Jobs = None,
    accept: Annotated[
        bool, typer.Option("--accept", help="Record what was measured as the new baseline.")
    ] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the README's table and nothing else.")
    ] = False,
    liberty: Annotated[
        Path | None,
        typer.Option(help="Standard cells of asic, a Liberty file.  [default: Debian's qflow-tech-osu018]"),
    ] = None,
) -> int:
    """Size and frequency of the units with open tools, beside the recorded baseline and the peers."""
    options = {"op": op, "lanes": lanes, "target": target, "jobs": jobs, "accept": accept}
    return run_command("cost", out=out, **options, markdown=markdown, liberty=liberty)


@app.command()
def explore(
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle of the model; digits without.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the page, its JSON and the study.")] = _TRADEOFF,
    trials: Annotated[int, typer.Option(help="Points to try in this run.")] = 40,
    storage: Annotated[
        str | None,
        typer.Option(help="Optuna storage that processes share; a file in the folder.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the search.")] = 1,
    lanes: Annotated[
        list[int] | None,
        typer.Option(help="Only these lanes; may be given again.  [default: 1, 2, 4, 8]", show_default=False),
    ] = None,
    fix: Annotated[
        list[str] | None,
        typer.Option(help="Hold a value, such as exp_bits=15; may be given again.", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Images that judge: digits, bundled or a folder.", show_default=False),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="At most so many of them, spread evenly.", show_default=False)
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of images to calibrate on; without it, bundled ones.", show_default=False),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights of the bundle's model, if a file.", show_default=False)
    ] = None,
    pretrained: Pretrained = False,
    jobs: Annotated[int, typer.Option(help="Units of a point that are mapped side by side.")] = 2,
    frequency: Annotated[
        bool, typer.Option("--frequency", help="Place and route on ECP5, too, which is slow.")
    ] = False,
) -> int:
    """Search presets, widths, tables and lanes for accuracy against area, frequency and cycles."""
    options: dict[str, Any] = {"bundle": bundle, "out": out, "trials": trials, "storage": storage}
    options |= {"seed": seed, "data": data, "limit": limit, "images": images, "lanes": lanes, "fix": fix}
    options |= {"checkpoint": checkpoint, "pretrained": pretrained, "jobs": jobs}
    return run_command("explore", **options, frequency=frequency)


@app.command()
def index(
    folder: Annotated[Path, typer.Option(help="Folder in which the pages lie, at any depth.")] = _BUILD,
) -> int:
    """Link all pages of a folder from one, in `index.html`."""
    return run_command("index", folder=folder)

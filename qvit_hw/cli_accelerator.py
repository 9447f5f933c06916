# SPDX-License-Identifier: Apache-2.0
"""The commands of the whole accelerator, and the demo that takes one model through every step."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .cli_options import Bundle, Limit, Simulator, run_command

__all__ = ["app"]

app = typer.Typer()

_DEMO = Path("build/demo")
_Config = Annotated[str, typer.Option(help="Accelerator: 16x16, 32x32, or a file *.json.")]


@app.command()
def compile(
    bundle: Bundle,
    out: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    config: _Config = "16x16",
    fit: Annotated[
        bool, typer.Option("--fit", help="Take units from the bundle, memories as large as needed.")
    ] = False,
    verilog: Annotated[bool, typer.Option("--verilog", help="Write the hardware, too.")] = False,
    port_bits: Annotated[
        int, typer.Option(help="Wider port of the target's multipliers: 27, or 18.")
    ] = 27,
) -> int:
    """Write the bundle's network as a program of the accelerator, and a listing of it."""
    options = {"bundle": bundle, "config": config, "out": out, "fit": fit}
    return run_command("compile", **options, verilog=verilog, port_bits=port_bits)


@app.command()
def estimate(
    model: Annotated[
        str | None, typer.Option(help="digits, dinov2, or a ViT or DeiT of timm.")
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="Folder that calibrate wrote.")] = None,
    config: _Config = "16x16",
    preset: Annotated[str, typer.Option(help="Widths, of a model by name.")] = "default",
    clock: Annotated[float, typer.Option(help="MHz.")] = 200.0,
    bandwidth: Annotated[
        float | None, typer.Option(help="Bytes that memory brings in a cycle.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> int:
    """Cycles, images a second and what limits each layer, by the cycle model."""
    options = {"model": model, "bundle": bundle, "config": config, "preset": preset}
    return run_command("estimate", **options, clock=clock, bandwidth=bandwidth, out=out)


@app.command()
def run(
    program: Annotated[Path, typer.Option(help="Folder that compile wrote.", show_default=False)],
    images: Annotated[str, typer.Option(help="digits, bundled, or a folder of images.")] = "digits",
    limit: Limit = None,
    simulator: Simulator = "verilator",
    check: Annotated[
        str, typer.Option(help="all (every word that is computed), logits, or none.")
    ] = "logits",
    tensors: Annotated[
        int | None,
        typer.Option(
            help="With all: so many images in full, outputs of the others.", show_default=False
        ),
    ] = None,
    stalls: Annotated[
        int | None,
        typer.Option(help="Seed of a memory that answers late and with gaps.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for run.json.", show_default=False)
    ] = None,
) -> int:
    """Send images through the accelerator's Verilog and compare with golden, bit for bit."""
    return run_command(
        "run",
        program=program,
        images=images,
        limit=limit,
        simulator=simulator,
        check=check,
        tensors=tensors,
        stalls=stalls,
        out=out,
    )


@app.command()
def demo(
    model: Annotated[str, typer.Option(help="Model to take through all steps.")] = "digits",
    out: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = _DEMO,
) -> int:
    """Do all of it on one model: calibrate, generate, simulate, compile, run, report."""
    return run_command("demo", model=model, out=out)

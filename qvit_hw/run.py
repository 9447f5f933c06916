# SPDX-License-Identifier: Apache-2.0
"""Images through a compiled network on the emitted Verilog, against golden.

    python -m qvit_hw.run --program DIR [--images digits|bundled|DIR] [--limit N]
        [--simulator verilator|icarus] [--check all|logits|none] [--tensors N] [--stalls SEED] [--out DIR]

``--check all`` compares every word that the drain, LayerNorm and softmax write, tensor by tensor, with what
golden computes, and names the first element that differs (of the first N images alone, with ``--tensors``);
``logits`` compares the outputs. ``--stalls`` lets the memory answer late and with gaps, at random: that
changes cycles and nothing else. ``--out`` takes ``run.json`` and some of the images, for the report.
Exit status: 0 all equal, 1 any difference, or a run that did not come to its end.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich import box
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from golden.bundle import BundleError
from golden.vit import VitModel
from qvit_hw.accelerator import Accelerator, Execution
from qvit_hw.compiler.costs import macs_of
from qvit_hw.compiler.program import Program
from qvit_hw.divergence import Divergence, check_words, first_difference
from qvit_hw.errors import UserError
from qvit_hw.models.labelled import Labelled, load_labelled
from qvit_hw.models.registry import load_model
from qvit_hw.outputs import check_folder
from qvit_hw.progress import bars
from qvit_hw.run_record import float_outputs, write_record
from sim.session import Bus

__all__ = ["CHECKS", "STALLS", "Verdict", "run"]

CHECKS = ("all", "logits", "none")
STALLS = Bus(latency=200, gaps=64)
"""A memory that stalls: 1 to 200 cycles, and nothing in a quarter of them."""
SHOWN = 20
"""Images that the table shows; of the others, those that differ."""
BATCH = 32
"""Images of which all words are kept at a time."""
COUNTERS = {
    "array_busy": "array",
    "layernorm_busy": "LayerNorm",
    "softmax_busy": "softmax",
    "stream_wait": "waiting for the stream",
    "unit_wait": "waiting for units",
}


@dataclass(frozen=True)
class Verdict:
    """An image: its outputs on both sides, and what was wrong with it, if anything.

    tensors: compared.  wrong: those that differ, in the network's order.
    """

    name: str
    golden: list[int] | None
    rtl: list[int] | None
    fault: str | None
    counters: dict[str, int]
    seconds: float
    tensors: int = 0
    wrong: tuple[str, ...] = ()
    divergence: Divergence | None = None

    @property
    def equal(self) -> bool:
        """Whether nothing was wrong."""
        return self.fault is None and not self.wrong and self.divergence is None


def run(
    *,
    program: Path,
    images: str = "digits",
    limit: int | None = None,
    simulator: str = "verilator",
    check: str = "logits",
    tensors: int | None = None,
    stalls: int | None = None,
    out: Path | None = None,
) -> int:
    """Run, compare, print what came out; return the exit status. UserError for input that will not do."""
    if check not in CHECKS:
        raise UserError(f"Check must be {', '.join(CHECKS[:-1])} or {CHECKS[-1]}, not {check!r}.")
    if tensors is not None and tensors < 1:
        raise UserError(
            f"The number of images to compare in full must be at least 1, not {tensors}."
        )
    if stalls is not None and not 1 <= stalls < 1 << 31:
        raise UserError(f"Seed of the stalls must be from 1 to {(1 << 31) - 1}, not {stalls!r}.")
    if out is not None:
        check_folder(out)
    bus = Bus() if stalls is None else Bus(STALLS.latency, STALLS.gaps, stalls)
    accelerator = Accelerator(program, simulator=simulator, bus=bus)
    model = _model(program)
    found = _images(accelerator.program, images, limit)
    pixels = found.images(range(len(found)))
    whole = 0 if check != "all" else len(found) if tensors is None else tensors
    begun = time.monotonic()
    verdicts = _verdicts(accelerator, model, found.names, pixels, check, whole)
    _print(accelerator.program, model, verdicts, time.monotonic() - begun)
    if out is not None:
        write_record(
            out,
            accelerator.program,
            found,
            pixels,
            [{**asdict(verdict), "equal": verdict.equal} for verdict in verdicts],
            float_outputs(program / "bundle", pixels),
            simulator=accelerator.simulator,
            memory=asdict(bus),
            check=check,
            cycles_predicted=accelerator.predicted_cycles,
        )
    return 0 if all(verdict.equal for verdict in verdicts) else 1


def _model(program: Path) -> VitModel:
    try:
        return VitModel.from_bundle(program / "bundle")
    except BundleError as error:
        raise UserError(f"{error}") from error


def _images(program: Program, source: str, limit: int | None) -> Labelled:
    """The images, resized and cropped as the model's own evaluation does it."""
    image = program.image
    size = (image.channels, image.height, image.width)
    loaded = load_model(str(program.notes["model"]))
    if loaded.input_size != size:
        loaded = load_model(str(program.notes["model"]), image_size=image.height)
    return load_labelled(source, loaded, limit, unlabelled=source not in ("digits", "bundled"))


# ---------------------------------------------------------------------------------------- comparing


def _verdicts(
    accelerator: Accelerator,
    model: VitModel,
    names: Sequence[str],
    pixels: npt.NDArray[np.uint8],
    check: str,
    whole: int,
) -> list[Verdict]:
    """Build, run, compare, the first ``whole`` images tensor by tensor; progress on stderr."""
    with bars(counted=False) as progress:
        bar = progress.add_task(f"{accelerator.simulator}: build", total=None)
        _ = accelerator.simulation  # built here, so that its time is not the first image's
        progress.update(bar, description="golden")
        wanted = None if check == "none" else model(pixels)
        total = accelerator.predicted_cycles * len(pixels)
        progress.update(bar, description=f"{accelerator.simulator}: run", total=total)
        verdicts: list[Verdict] = []
        whole = min(whole, len(pixels))
        parts = [slice(first, min(first + BATCH, whole)) for first in range(0, whole, BATCH)]
        parts += [slice(whole, len(pixels))] if whole < len(pixels) else []
        for part in parts:
            first = part.start
            done = first * accelerator.predicted_cycles
            executions = accelerator.run(
                pixels[part],
                watch=first < whole,
                progress=partial(_advance, progress, bar, done),
            )
            for offset, execution in enumerate(executions):
                golden = None if wanted is None else wanted[first + offset]
                image = pixels[first + offset]
                name = names[first + offset]
                verdicts.append(
                    _verdict(accelerator.program, model, name, image, golden, execution)
                )
    return verdicts


def _advance(progress: Progress, bar: TaskID, done: int, cycles: int) -> None:
    progress.update(bar, completed=done + cycles)


def _verdict(
    program: Program,
    model: VitModel,
    name: str,
    image: npt.NDArray[np.uint8],
    golden: npt.NDArray[np.int64] | None,
    execution: Execution,
) -> Verdict:
    outcome, outputs, words = execution.outcome, execution.outputs, execution.words
    fault, tensors = execution.fault, 0
    wrong: tuple[str, ...] = ()
    divergence: Divergence | None = None
    if words is not None and fault is None:
        tensors, wrong, divergence = check_words(program, model, image, words)
    if divergence is None and golden is not None and outputs is not None:
        divergence = first_difference(program.output[0], golden[None], outputs[None])
        wrong = (program.output[0],) if divergence else ()
    return Verdict(
        name,
        None if golden is None else golden.tolist(),
        None if outputs is None else outputs.tolist(),
        fault,
        {} if outcome is None else outcome.counters,
        0.0 if outcome is None else outcome.seconds,
        tensors,
        wrong,
        divergence,
    )


# ------------------------------------------------------------------------------------------ telling


def _print(program: Program, model: VitModel, verdicts: list[Verdict], seconds: float) -> None:
    console = Console(highlight=False, soft_wrap=True)
    table = Table("image", "golden", "RTL", "equal", "cycles", "seconds", box=box.SIMPLE_HEAD)
    shown = [v for place, v in enumerate(verdicts) if place < SHOWN or not v.equal]
    for verdict in shown:
        cycles = verdict.counters.get("cycles")
        table.add_row(
            verdict.name,
            _top(verdict.golden),
            _top(verdict.rtl),
            _word(verdict),
            "" if cycles is None else f"{cycles:,}",
            f"{verdict.seconds:.2f}",
        )
    console.print(table)
    if len(shown) < len(verdicts):
        console.print(f"and {len(verdicts) - len(shown)} more, with nothing wrong\n")
    _print_counters(console, program, model, verdicts)
    for verdict in verdicts:
        if not verdict.equal:
            more = f" ({len(verdict.wrong)} tensors differ)" if len(verdict.wrong) > 1 else ""
            console.print(
                f"{verdict.name}: {verdict.fault or verdict.divergence}{more}", markup=False
            )
    good = sum(verdict.equal for verdict in verdicts)
    tensors = sum(verdict.tensors for verdict in verdicts)
    what = "not compared" if verdicts[0].golden is None else "bit-exact"
    every = f", {tensors:,} tensors compared" if tensors else ""
    console.print(f"{good} of {len(verdicts)} images {what}{every}, {seconds:.1f} s")


def _top(outputs: list[int] | None) -> str:
    return "" if outputs is None else str(int(np.argmax(outputs)))


def _word(verdict: Verdict) -> str:
    if not verdict.equal:
        return "[red]no[/]"
    return "" if verdict.golden is None else "yes"


def _print_counters(
    console: Console, program: Program, model: VitModel, verdicts: list[Verdict]
) -> None:
    """What the hardware counted, an image on average."""
    counted = [verdict.counters for verdict in verdicts if verdict.counters]
    if not counted:
        return
    cycles = sum(counters["cycles"] for counters in counted)
    table = Table("per image", "cycles", "of all", box=box.SIMPLE_HEAD)
    for name, title in COUNTERS.items():
        count = sum(counters[name] for counters in counted)
        table.add_row(title, f"{count / len(counted):,.0f}", f"{count / cycles:.1%}")
    macs = len(counted) * sum(macs_of(model, node.name) for node in model.nodes)
    share = macs / (cycles * program.spec.size**2)
    table.add_row("multiplications of use", "", f"{share:.1%}")
    console.print(table)


if __name__ == "__main__":
    from qvit_hw.cli import main

    main("run")

# SPDX-License-Identifier: Apache-2.0
"""``evaluate``: what integers cost in accuracy, layer by layer.

    python -m qvit_hw.evaluate --bundle B --data DIR|digits|bundled [--limit N] [--jobs J] [--out DIR]

Three models see the same pixels: timm's own in float, the calibrated one (float arithmetic on the integer
grids; a preset for the golden model alone has none) and the golden one (integers). The folder ``out`` becomes
a page, ``evaluation.html``, and ``evaluation.json``, which :mod:`qvit_hw.evaluation` describes; a folder of
anything else is left alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from qvit_hw import tally
from qvit_hw import timing as clock
from qvit_hw.crew import Bench, Crew, Origin
from qvit_hw.errors import UserError
from qvit_hw.evaluation import BAR, Evaluation, Speed
from qvit_hw.evaluation_page import PAGE, check_page_folder, write_page
from qvit_hw.measuring import (
    Floats,
    Outcome,
    compare_outputs,
    compare_tensors,
)
from qvit_hw.models.labelled import class_count
from qvit_hw.progress import bars
from qvit_hw.sensitivity import Watch, find_sensitivity

__all__ = ["Effort", "evaluate", "measure", "run"]

BATCH, TENSORS = 8, 16
SHOWN = 24
"""Images of which the page shows that the models disagree."""


def run(
    *,
    bundle: Path,
    data: str,
    limit: int | None = None,
    jobs: int = 1,
    batch: int = BATCH,
    out: Path = Path("evaluation"),
    checkpoint: Path | None = None,
    pretrained: bool = False,
    class_map: Path | None = None,
    unlabelled: bool = False,
    tensors: int = TENSORS,
    sensitivity: int | None = None,
    timing: bool = True,
) -> int:
    """Evaluate a bundle, write the page and the JSON into ``out``, print a summary; return 0.

    Options as of :func:`evaluate`. Raises UserError, with nothing written, for any input that will not do.
    """
    out = Path(out)
    check_page_folder(out)
    origin = Origin(Path(bundle), data, limit, checkpoint, pretrained, class_map, unlabelled)
    effort = Effort(jobs, batch, tensors, sensitivity, timing)
    bench = Bench.load(origin)
    found = measure(bench, effort, origin)
    write_page(found, out, bench.data)
    print_summary(found, out)
    return 0


def evaluate(
    bundle: Path,
    data: str = "digits",
    *,
    limit: int | None = None,
    jobs: int = 1,
    batch: int = BATCH,
    checkpoint: Path | None = None,
    pretrained: bool = False,
    class_map: Path | None = None,
    unlabelled: bool = False,
    tensors: int = TENSORS,
    sensitivity: int | None = None,
    timing: bool = False,
) -> Evaluation:
    """Evaluate a bundle and return what was found; nothing is written.

    Args:
        bundle: folder that calibrate wrote.
        data: "digits" (the held-out split), "bundled" (natural images, no labels), or a folder with
            a sub-folder per class.
        limit: at most so many images.
        jobs: processes; with more than one, call it from a module that can be imported.
        batch: images that the golden model takes at once, and in the timing. No other result depends on
            it or on ``jobs``.
        checkpoint: weights that the bundle was made of, if they were such a file.
        pretrained: take timm's pretrained weights.
        class_map: text file that names the model's classes line by line.
        unlabelled: take any folder of images, without classes.
        tensors: images whose tensors are all compared.
        sensitivity: images to try the quantisers on, one by one; 0: do not; None: 4, or up to 64 that
            have as many pixels as 4 of 224 x 224.
        timing: measure time and memory.

    Raises UserError for any input that will not do.
    """
    origin = Origin(Path(bundle), data, limit, checkpoint, pretrained, class_map, unlabelled)
    effort = Effort(jobs, batch, tensors, sensitivity, timing)
    return measure(Bench.load(origin), effort, origin)


@dataclass(frozen=True)
class Effort:
    """How much is done, see :func:`evaluate`; UserError for what makes no sense."""

    jobs: int = 1
    batch: int = BATCH
    tensors: int = TENSORS
    sensitivity: int | None = None
    timing: bool = False

    def __post_init__(self) -> None:
        for what, count, least in (
            ("processes", self.jobs, 1),
            ("images in a batch", self.batch, 1),
            ("images whose tensors are compared", self.tensors, 1),
            ("images to try quantisers on", self.sensitivity or 0, 0),
        ):
            if count < least:
                raise UserError(f"The number of {what} must be at least {least}, not {count}.")

    def images_to_try(self, input_size: tuple[int, int, int]) -> int:
        """``sensitivity``, or as many images as cost little: a few small ones tell nothing."""
        if self.sensitivity is not None:
            return self.sensitivity
        return min(max(4, 4 * 3 * 224 * 224 // math.prod(input_size)), 64)


# ---------------------------------------------------------------------------------------- measuring


def measure(bench: Bench, effort: Effort, origin: Origin | None = None) -> Evaluation:
    """Do everything; several processes and timing need the ``origin`` of the bench."""
    subject, data = bench.subject, bench.data
    if subject.calibrated is None and effort.sensitivity:
        raise UserError("Quantisers are tried in the calibrated model, which this bundle lacks.")
    console = Console(stderr=True, soft_wrap=True)
    with (
        bars(console) as progress,
        Crew(bench, effort.jobs, origin) as crew,
    ):

        def watch(what: str, tasks: Sequence[Any], results: Iterator[Any]) -> Iterator[Any]:
            return iter(progress.track(results, total=len(tasks), description=what))

        numbers = range(len(data))
        batches = [numbers[at : at + effort.batch] for at in numbers[:: effort.batch]]
        parts = watch("models", batches, crew.map(see, batches))
        outcomes = [outcome for part in parts for outcome in part]
        chosen = tally.spread(len(data), effort.tensors)
        traced = list(watch("tensors", chosen, crew.map(trace, chosen)))
        tried = tally.spread(len(data), effort.images_to_try(subject.loaded.input_size))
        tries = bool(tried) and subject.calibrated is not None
        sensitivity = find_sensitivity(crew, tried, watch) if tries else None
        speeds = _speeds(bench, effort, origin, watch) if effort.timing and origin else ()
    classifier = class_count(subject.loaded) > 0
    return Evaluation(
        model=bench.model,
        bundle=bench.bundle,
        data=data.source,
        images=len(data),
        classes=data.classes,
        accuracies=tally.accuracies(outcomes, subject.models),
        differences=tally.differences(outcomes, subject.models),
        agreements=tally.agreements(outcomes, classifier, subject.models),
        traced=len(chosen),
        lowering=max(wrong for _, wrong in traced),
        tensors=tally.tensors(subject, [sums for sums, _ in traced]),
        sensitivity=sensitivity,
        speeds=speeds,
        examples=tally.examples(outcomes, data, SHOWN) if classifier else (),
        notes=tuple(_notes(bench)),
    )


def _notes(bench: Bench) -> Iterator[str]:
    loaded = bench.subject.loaded
    if bench.data.note is not None:
        yield bench.data.note
    if not loaded.trained:
        yield f"Model {loaded.name!r} has {loaded.source}."
    if bench.subject.calibrated is None:
        yield (
            f"Preset {bench.bundle['preset']!r} is for the golden model alone: there is no calibrated model, "
            "no comparison with its codes, and no trial of single quantisers."
        )


def see(bench: Bench, numbers: Sequence[int]) -> list[Outcome]:
    """Outcomes of images of the bench."""
    labels = None if bench.data.labels is None else bench.data.labels[list(numbers)].tolist()
    return compare_outputs(bench.subject, bench.data.images(numbers), labels)


def trace(bench: Bench, number: int) -> tuple[Floats, float]:
    """Sums of every tensor of an image of the bench, and the error of lowering."""
    return compare_tensors(bench.subject, bench.data.images([number]))


def _speeds(bench: Bench, effort: Effort, origin: Origin, watch: Watch) -> tuple[Speed, ...]:
    images = bench.data.images([place % len(bench.data) for place in range(effort.batch)])
    request = {
        "bundle": str(origin.bundle.resolve()),
        "name": bench.subject.loaded.name,
        "image_size": bench.subject.image_size,
        "checkpoint": None if origin.checkpoint is None else str(origin.checkpoint.resolve()),
        "pretrained": origin.pretrained,
    }
    models = bench.subject.models
    runs = (clock.measure(model, images, request) for model in models)
    return tuple(Speed(**answer) for answer in watch("time and memory", models, runs))


# ----------------------------------------------------------------------------------------- summary


def print_summary(found: Evaluation, out: Path) -> None:
    """Print a line a model, then what matters most, a sentence each."""
    console = Console(highlight=False, soft_wrap=True)
    name, preset = found.model.get("name"), found.bundle.get("preset")
    table = Table(
        "",
        title=f"{name} ({preset}) on {found.images:,} images: {found.data}",
        title_justify="left",
        box=box.SIMPLE,
    )
    for model in found.models:
        table.add_column(model, justify="right", no_wrap=True)
    for label, values in _rows(found):
        table.add_row(label, *values)
    console.print(table)
    for each in found.differences[:1]:
        console.print(
            f"{each.model} against {each.against}: {100 * each.difference:+.2f} points (95 %: "
            f"{100 * each.low:+.2f} to {100 * each.high:+.2f}), {each.won} won, {each.lost} lost"
        )
    if found.holds is not None:
        console.print(_codes(found))
    if found.sensitivity is not None:
        groups = sorted(found.sensitivity.groups, key=lambda cost: -cost.noise)[:3]
        most = ", ".join(f"{cost.name} {_number(cost.alone_db, '.1f')} dB" for cost in groups)
        console.print(f"error enters with: {most} (of the output, nothing else quantised)")
    for note in found.notes:
        console.print(f"note: {note}")
    console.print(f"The page: {out / PAGE}")


def _rows(found: Evaluation) -> Iterator[tuple[str, list[str]]]:
    """What is known of the models: (what, a text a model)."""
    pairs = [found.between(model, found.models[0]) for model in found.models[1:]]
    if found.accuracies:
        shares = [accuracy.top1 for accuracy in found.accuracies]
        yield "top-1", [f"{100 * share.share:.2f} %" for share in shares]
        yield "95 %", [f"{100 * share.low:.1f} - {100 * share.high:.1f}" for share in shares]
        yield "top-5", [f"{100 * accuracy.top5.share:.2f} %" for accuracy in found.accuracies]
    yield "SQNR, dB", ["", *(_number(pair.sqnr_db, ".2f") for pair in pairs)]
    yield "cosine", ["", *(f"{pair.cosine:.5f}" for pair in pairs)]
    if found.speeds:
        yield "one image, ms", [f"{1e3 * speed.one:.2f}" for speed in found.speeds]
        yield f"of {found.speeds[0].batch_size}, ms", [f"{1e3 * s.batch:.2f}" for s in found.speeds]
        yield "peak memory, MiB", [f"{speed.peak / 2**20:.0f}" for speed in found.speeds]


def _codes(found: Evaluation) -> str:
    """What the calibrated and the golden model have in common."""
    total = sum(tensor.elements for tensor in found.tensors)
    wrong = sum(tensor.end_to_end or 0 for tensor in found.tensors)
    text = f"calibrated and golden: {total - wrong:,} of {total:,} codes equal"
    if not wrong:
        return text
    shares = {t.name: t.agreement for t in found.tensors if t.agreement is not None}
    worst, least = min(shares.items(), key=lambda item: item[1])
    verdict = "at least" if found.holds else f"{len(found.apart)} tensors below"
    return f"{text}, worst {worst} {100 * least:.3f} %; {verdict} {100 * BAR:g} %"


def _number(value: float | None, layout: str) -> str:
    return "exact" if value is None else format(value, layout)


if __name__ == "__main__":
    from qvit_hw.cli import main

    main("evaluate")

# SPDX-License-Identifier: Apache-2.0
"""What the report says of a run on the accelerator: facts, and the pictures that go with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from golden.bundle import BundleError
from golden.vit import VitModel

from ..compiler.costs import Costs, LayerCost, costs
from ..compiler.program import Program
from ..errors import UserError
from .pictures import thumbnail
from .results import Results
from .runs import ImageRun, RunRecord, load_run
from .timeline import LANES, Bar, Stretch, lane_names, unit_timeline

__all__ = ["CLOCK", "TOLERANCE", "Section", "gather_run"]

CLOCK = 200.0
"""MHz at which images a second are told."""
TOLERANCE = 0.01
"""Share by which counted cycles may differ from the cycle model's."""
BEST = 3
"""Classes of an image that are shown."""
MAX_DIFFERENT = 8
MODELS = ("float", "golden", "rtl")


@dataclass(frozen=True)
class Section:
    """A run, told.

    reasons: why it did not pass, one sentence each; empty if it passed.  facts: for JSON and page.
    shown: images, with a picture each.  timeline, lanes: SVG.
    """

    reasons: tuple[str, ...]
    facts: dict[str, Any]
    shown: Sequence[dict[str, Any]]
    timeline: str
    lanes: str

    @property
    def passed(self) -> bool:
        """Whether every image is bit exact, in the cycles that were predicted."""
        return not self.reasons


def gather_run(folder: Path, program_folder: Path, results: Results) -> Section:
    """Sum up the run in ``folder``; UserError if it, program and ``results`` do not belong together."""
    program = Program.load(program_folder)
    if program.notes["bundle"] != results.bundle.get("sha256"):
        raise UserError(
            f"Program {str(program_folder)!r} is of another bundle than was simulated: its hash differs."
        )
    run = load_run(folder, program)
    try:
        found = costs(program, VitModel.from_bundle(program_folder / "bundle"))
    except BundleError as error:
        raise UserError(f"{error}") from error
    facts = _facts(run, program, found)
    return Section(
        reasons=tuple(_reasons(run, facts)),
        facts=facts,
        shown=[_shown(run, number) for number in run.pictures],
        timeline=_timeline(program, found),
        lanes=lane_names(),
    )


# ----------------------------------------------------------------------------------------- verdict


def _reasons(run: RunRecord, facts: dict[str, Any]) -> Iterator[str]:
    wrong = [image for image in run.images if not image.equal]
    if wrong:
        count = f"{len(wrong)} of {len(run.images)} images"
        yield f"The accelerator differs from golden on {count}: {wrong[0].name}, {_what(wrong[0])}."
    if facts["cycles_hold"] is False:
        yield (
            f"The accelerator takes {facts['cycles']:,.0f} cycles, more than {100 * TOLERANCE:g} % off the "
            f"{facts['cycles_predicted']:,} that the cycle model says."
        )
    if not run.passed and not wrong:
        yield "The run on the accelerator itself says that it did not pass."


def _what(image: ImageRun) -> str:
    """What is wrong with an image, without a full stop."""
    if image.fault is not None:
        return image.fault.rstrip(".")
    return image.difference or (image.wrong[0] if image.wrong else "its outputs")


# ------------------------------------------------------------------------------------------- facts


def _facts(run: RunRecord, program: Program, found: Costs) -> dict[str, Any]:
    images = run.images
    counted = [image.counters for image in images if image.counters]
    cycles = sum(each["cycles"] for each in counted) / len(counted) if counted else None
    deviation = cycles / run.cycles_predicted - 1 if cycles and run.regular else None
    busy = {unit: sum(each[f"{unit}_busy"] for each in counted) for unit in list(LANES)[:3]}
    every = sum(each["cycles"] for each in counted)
    wrong = [image for image in images if not image.equal]
    return {
        "simulator": run.simulator,
        "source": run.source,
        "size": program.spec.size,
        "instructions": len(program.steps),
        "program_bytes": program.words.size,
        "images": len(images),
        "equal": len(images) - len(wrong),
        "whole": sum(image.tensors > 0 for image in images),
        "tensors": sum(image.tensors for image in images),
        "cycles": cycles,
        "cycles_predicted": run.cycles_predicted,
        "cycles_deviation": deviation,
        "cycles_hold": None if deviation is None else abs(deviation) <= TOLERANCE,
        "macs": found.macs,
        "utilisation": found.macs / (cycles * program.spec.size**2) if cycles else None,
        "busy": {unit: count / every for unit, count in busy.items()} if every else {},
        "clock_mhz": CLOCK,
        "images_per_second": 1e6 * CLOCK / cycles if cycles else None,
        "seconds": sum(image.seconds for image in images),
        "top1": _top1(images),
        "agreement": _agreement(images),
        "different": [
            {"name": image.name, "what": _what(image), "tensors": list(image.wrong)}
            for image in wrong[:MAX_DIFFERENT]
        ],
        "layers": [_layer(layer, found) for layer in found.layers],
    }


def _outputs(image: ImageRun) -> dict[str, tuple[float, ...] | None]:
    return dict(zip(MODELS, (image.exact, image.golden, image.rtl), strict=True))


def _best(values: Sequence[float]) -> list[int]:
    """Numbers of the largest outputs; of equal ones the first, as argmax has it."""
    return sorted(range(len(values)), key=lambda number: -values[number])[:BEST]


def _top1(images: Sequence[ImageRun]) -> dict[str, float]:
    """Share of images with a label that each model has right; empty where there are none."""
    labelled = [image for image in images if image.label is not None]
    shares = {}
    for model in MODELS:
        outputs = [_outputs(image)[model] for image in labelled]
        if labelled and (model != "float" or None not in outputs):
            right = (
                values is not None and _best(values)[0] == image.label
                for image, values in zip(labelled, outputs, strict=True)
            )
            shares[model] = sum(right) / len(labelled)
    return shares


def _agreement(images: Sequence[ImageRun]) -> int | None:
    """Images on which float and golden put the same output first."""
    pairs = [(image.exact, image.golden) for image in images if image.exact is not None]
    if len(pairs) < len(images):
        return None
    return sum(_best(exact)[0] == _best(golden)[0] for exact, golden in pairs)


def _layer(layer: LayerCost, found: Costs) -> dict[str, Any]:
    return {
        "name": layer.name,
        "cycles": layer.cycles,
        "share": float(Fraction(layer.cycles, found.cycles)),
        "macs": layer.macs,
        "utilisation": layer.utilisation(found.size**2) if layer.macs else None,
        "limit": layer.limit,
        "bytes": layer.bytes,
    }


# ---------------------------------------------------------------------------------------- pictures


def _shown(run: RunRecord, number: int) -> dict[str, Any]:
    image = run.images[number]

    def name(output: int) -> str:
        return str(output) if run.classes is None else run.classes[output]

    tops = {
        model: [(name(each), values[each]) for each in _best(values)]
        for model, values in _outputs(image).items()
        if values is not None
    }
    return {
        "name": image.name,
        "label": None if image.label is None else name(image.label),
        "equal": image.equal,
        "difference": None if image.equal else _what(image),
        "tops": tops,
        "picture": thumbnail(run.pictures[number]),
    }


def _timeline(program: Program, found: Costs) -> str:
    bars = []
    for span in found.timeline.spans:
        note = "image" if span.instruction < 0 else program.steps[span.instruction].note
        took = span.end - span.begin
        text = f"{LANES[span.unit]}: {note}, {took:,} cycles from {span.begin:,} on"
        bars.append(Bar(span.unit, span.begin, span.end, text))
    layers = [_stretch(layer) for layer in found.layers]
    return unit_timeline(bars, layers, found.cycles)


def _stretch(layer: LayerCost) -> Stretch:
    """``blocks.3.attn`` is the layer attn of the part blocks.3; others are a part of their own."""
    part, _, label = layer.name.rpartition(".")
    return Stretch(label if part else "", part or label, layer.begin, layer.end)

# SPDX-License-Identifier: Apache-2.0
"""``calibrate``: observe a float ViT on images and freeze it into a bundle of integers.

The vectors come from images that were not calibrated on: their integers are recorded inside the
calibrated model, and the golden model alone turns them into outputs. Float only judges. The bundle of a
preset that is for the golden model alone has no vectors and no specs of units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from golden.vit import VitModel
from qvit_hw.allocation import allocate, check_score
from qvit_hw.budget import WEIGHT_BITS, parse_budget
from qvit_hw.bundle_writer import LayerData, check_target, write_bundle
from qvit_hw.calibrated import CalibratedModel
from qvit_hw.calibration import prepare
from qvit_hw.errors import UserError
from qvit_hw.fqvit_grids import FqCalibrated, pack_fqvit
from qvit_hw.fqvit_observation import check_network
from qvit_hw.fqvit_plan import calibrate_fqvit, check_options
from qvit_hw.integers import export
from qvit_hw.models import LoadedModel, load_model
from qvit_hw.models.images import load_images
from qvit_hw.network import LayerNorm, Network, Node, Scores, split_heads
from qvit_hw.observation import Observations
from qvit_hw.plan import count_tokens
from qvit_hw.presets import adapt, find_preset, with_settings
from qvit_hw.progress import bars
from qvit_hw.references import (
    layernorm_metrics,
    layernorm_vectors,
    softmax_metrics,
    softmax_vectors,
    sqnr,
)
from qvit_hw.stored_plan import pack_plan

__all__ = [
    "CALIBRATION_IMAGES",
    "VECTOR_ROWS",
    "build_layers",
    "pick_images",
    "run",
]

CALIBRATION_IMAGES = 32
VECTOR_ROWS = 257
"""Unless told otherwise, vectors come from as many images as give every operator so many rows."""


def run(
    *,
    out: Path,
    model: str = "digits",
    checkpoint: Path | None = None,
    pretrained: bool = False,
    image_size: int | None = None,
    images: Path | None = None,
    preset: str = "w8a8p4",
    observer: str | None = None,
    weights: str | None = None,
    reparam: float | None = None,
    bias_correction: bool = False,
    refit: float | None = None,
    calibration: int = CALIBRATION_IMAGES,
    vector_images: int | None = None,
    affine: str = "dyadic",
    settings: list[str] | None = None,
    budget: str | None = None,
    score: str | None = None,
) -> int:
    """Calibrate ``model`` and write the bundle ``out``; return the exit status, 0.

    settings: widths other than the preset's, see :func:`qvit_hw.presets.with_settings`.
    budget, score: for widths layer by layer, see :mod:`qvit_hw.budget` and :mod:`qvit_hw.allocation`; the
    score is "error" unless told otherwise, and there is none without a budget.
    Raises UserError, with nothing written, for any input that will not do.
    """
    out = Path(out)
    chosen = adapt(find_preset(preset), weights, reparam, bias_correction, observer, refit)
    chosen = with_settings(chosen, settings or ())
    layernorm_spec = chosen.layernorm_spec(affine)
    if chosen.golden_only:
        check_options(
            {
                "--affine shift": affine != "dyadic",
                "--budget": budget is not None,
                "--score": score is not None,
                "--weights": weights not in (None, "minmax"),
                "--reparam": bool(reparam),
                "--bias-correction": bias_correction,
                "--refit": bool(refit),
                "--set": bool(settings),
            }
        )
    if score is not None and budget is None:
        raise UserError("Score chooses widths under a budget: give a --budget, too.")
    scored = check_score("error" if score is None else score)
    wanted = None if budget is None else parse_budget(budget)
    check_target(out)
    loaded = load_model(model, checkpoint=checkpoint, pretrained=pretrained, image_size=image_size)
    network = loaded.network
    if chosen.golden_only:
        check_network(network)
    channels = max(node.gamma.numel() for node in network if isinstance(node, LayerNorm))
    _check_rows(model, "channels", channels, layernorm_spec.max_channels)
    tokens = max((row_length(network, node) for node in network.of("softmax")), default=1)
    _check_rows(model, "tokens", tokens, chosen.softmax_spec().max_tokens)
    if vector_images is None:
        vector_images = -(-VECTOR_ROWS // tokens)
    seen_images, vectors = pick_images(loaded, images, calibration, vector_images)

    console = Console(stderr=True, soft_wrap=True)
    if not loaded.trained:
        console.print(f"[yellow]warning:[/] {loaded.name} has {loaded.source}", highlight=False)
    with bars(console) as progress:

        def watch(what: str, total: int) -> Callable[[int], None]:
            task = progress.add_task(what, total=total)

            def advance(count: int) -> None:
                progress.advance(task, count)

            return advance

        pixels = torch.tensor(seen_images)
        allocation = None
        contents: dict[str, Any] = {"specs": {}, "layers": []}
        if chosen.golden_only:
            made = calibrate_fqvit(network, pixels, chosen.observer, loaded.mean, watch=watch)
            contents["nodes"] = made.nodes
            contents["plan"], contents["scales"] = pack_fqvit(made)
            summary = partial(_print_golden_only, made, loaded, vectors, out)
        else:
            prepared = prepare(network, pixels, chosen, affine, watch)
            if wanted is not None:
                tried = watch("widths", len(WEIGHT_BITS))
                allocation = allocate(
                    network, pixels, chosen, prepared.build, wanted, scored, tried
                )
            calibrated = prepared.finish(None if allocation is None else allocation.bits, watch)
            contents["nodes"] = export(network, calibrated.plan)
            contents["plan"], contents["scales"] = pack_plan(calibrated.plan)
            contents["specs"] = {
                "layernorm": calibrated.plan.layernorm_spec,
                "softmax": calibrated.plan.softmax_spec,
            }
            contents["layers"] = layers = build_layers(
                calibrated,
                torch.tensor(vectors),
                watch("golden vectors", len(network.of("layernorm", "softmax"))),
            )
            summary = partial(_print_summary, calibrated, layers, prepared.seen, out)
    write_bundle(
        out,
        model={
            "name": loaded.name,
            "source": loaded.source,
            "input_size": list(loaded.input_size),
            "mean": list(loaded.mean),
            "std": list(loaded.std),
        },
        preset=chosen.name,
        observers={"activations": chosen.observer, "weights": chosen.weights}
        | ({} if allocation is None else {"allocation": allocation.record()}),
        images={
            "source": "bundled" if images is None else Path(images).name,
            "calibration": len(seen_images),
            "vectors": len(vectors) if contents["layers"] else 0,
        },
        input_size=loaded.input_size,
        **contents,
    )
    if allocation is not None:
        Console().print(allocation.table())
    summary()
    return 0


def row_length(network: Network, softmax: Node) -> int:
    """Length of a softmax's rows, in tokens."""
    scores = network[softmax.inputs[0]]
    assert isinstance(scores, Scores)
    if scores.windows is not None:
        return scores.windows.shape[1]
    return count_tokens(network, network[scores.inputs[0]].inputs[0])


def _check_rows(model: str, what: str, count: int, limit: int) -> None:
    if count > limit:
        raise UserError(
            f"Model {model!r} has rows of {count} {what}: the unit's maximum is {limit}."
        )


def pick_images(
    model: LoadedModel, source: Path | None, calibration: int, vectors: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (images to calibrate on, images for the vectors), uint8; disjoint where there are enough.

    A folder's images are dealt out: the vectors' share is spread evenly over it. A folder with fewer
    images than asked for gives vectors to one of them at least, and a single image serves for both.
    """
    for what, count in (("calibration", calibration), ("vector", vectors)):
        if count < 1:
            raise UserError(f"Number of {what} images must be at least 1, not {count}.")
    if source is None:
        first, _ = load_images(None, model, calibration, split="train")
        second, _ = load_images(None, model, vectors, split="test")
        return first, second
    found, _ = load_images(source, model, calibration + vectors)
    if len(found) == 1:
        return found, found
    share = min(vectors, max(1, len(found) * vectors // (calibration + vectors)))
    held = [(2 * i + 1) * len(found) // (2 * share) for i in range(share)]
    rest = np.setdiff1d(np.arange(len(found)), held)
    return found[rest], found[held]


def build_layers(
    calibrated: CalibratedModel,
    images: torch.Tensor,
    progress: Callable[[int], None] | None = None,
) -> list[LayerData]:
    """Run uint8 ``images`` and return the LayerNorms' and softmaxes' integers, golden outputs, references
    and metrics.

    Of a layer with masks (shifted windows) the windows that mask nothing are taken.
    """
    network = calibrated.network
    softmaxes = {node.inputs[0]: node for node in network.of("softmax")}
    norms = network.of("layernorm")
    values: dict[str, torch.Tensor] = {}

    def see(node: Node, out: torch.Tensor) -> torch.Tensor:
        for scores in network.consumers[node.name]:
            if isinstance(scores, Scores):
                values[scores.name] = split_heads(out, scores.heads, scores.windows)[2]
        return out

    network.run(images, see)
    recorded = calibrated.record(images, {*softmaxes, *(node.inputs[0] for node in norms)})
    layers = []
    for node in network.of("layernorm", "softmax"):
        if isinstance(node, LayerNorm):
            layers.append(_layernorm_layer(node.name, calibrated, recorded[node.inputs[0]]))
        else:
            name = node.inputs[0]
            layers.append(_softmax_layer(node, calibrated, recorded.pop(name), values.pop(name)))
        if progress is not None:
            progress(1)
    return layers


def _layernorm_layer(name: str, calibrated: CalibratedModel, codes: np.ndarray) -> LayerData:
    plan = calibrated.plan.norms[name]
    rows, golden, reference = layernorm_vectors(codes, calibrated, name)
    scale: dict[str, Any] = {"input": plan.input.scale, "output_zero_point": plan.zero_point}
    if not plan.folds:
        scale["output"] = float(plan.scale[0])
    return LayerData(
        name=name,
        op="layernorm",
        input=rows,
        golden=golden,
        reference=reference,
        scale=scale,
        metrics=layernorm_metrics(golden, reference, plan),
        folded={"scale": plan.scale, "rest": plan.rest} if plan.folds else {},
    )


def _softmax_layer(
    node: Node, calibrated: CalibratedModel, scores: np.ndarray, values: torch.Tensor
) -> LayerData:
    mask = getattr(node, "mask", None)
    v = values.numpy()
    if mask is not None:
        whole = ~mask.flatten(1).any(dim=1).numpy()
        scores, v = scores[:, whole], v[:, whole]
    rows, golden, reference = softmax_vectors(scores, calibrated, node.name)
    spec, params = calibrated.plan.softmax_spec, calibrated.plan.softmax[node.name]
    return LayerData(
        name=node.name,
        op="softmax",
        input=rows,
        golden=golden,
        reference=reference,
        scale={"input": 2.0**-params.frac},
        metrics=softmax_metrics(rows, golden, reference, v.reshape(-1, *v.shape[-2:]), spec),
        extra={"heads": int(scores.shape[-3]), "tokens": int(scores.shape[-2])},
    )


def _print_golden_only(
    made: FqCalibrated, loaded: LoadedModel, images: np.ndarray, out: Path
) -> None:
    """Print how far the golden model is from float on images that were not calibrated on."""
    golden = VitModel(made.nodes, loaded.input_size)
    exact = loaded.network.run(torch.tensor(images)).double().numpy()
    quality = sqnr(exact, made.values(golden.output, golden(images)))
    told = "exact" if quality is None else f"{quality:.2f} dB"
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"{out.name}: {len(made.nodes)} nodes for the golden model, none for hardware")
    console.print(f"output of {len(images)} other images against float: {told}")


def _print_summary(
    calibrated: CalibratedModel,
    layers: Sequence[LayerData],
    seen: Observations,
    out: Path,
) -> None:
    """Print a table per layer, and notes on what calibration had to change."""
    table = Table(
        title=f"{out.name}: golden codes against float64 on the same integers", box=box.SIMPLE
    )
    for column in ("layer", "rows", "equal %", "diff", "SQNR", "ideal", "a / f"):
        table.add_column(column, justify="left" if column == "layer" else "right", no_wrap=True)
    for layer in layers:
        metrics = layer.metrics
        if layer.op == "layernorm":
            quality, ideal = metrics.get("sqnr_db"), None
            shifts = np.bincount(calibrated.plan.norms[layer.name].params.shift, minlength=1)
            detail = "a " + " ".join(str(count) for count in shifts)
        else:
            quality, ideal = metrics.get("av_sqnr"), metrics.get("av_sqnr_ideal")
            peak, frac = seen.peaks[layer.name], calibrated.plan.softmax[layer.name].frac
            detail = f"f {frac}, peak {peak:.0f}"
        table.add_row(
            layer.name,
            str(len(layer.input)),
            f"{100 * metrics['equal']:.2f}",
            str(metrics["max_difference"]),
            *("" if value is None else f"{value:.2f}" for value in (quality, ideal)),
            detail,
        )
    console = Console()
    console.print(table)
    for op in ("layernorm", "softmax"):
        shares = [100 * layer.metrics["equal"] for layer in layers if layer.op == op]
        console.print(f"{op}: {np.mean(shares):.2f} % equal, worst layer {min(shares):.2f} %")
    preset, bits = calibrated.plan.preset, calibrated.plan.softmax_spec.score_bits
    if bits != preset.score_bits:
        console.print(f"note: scores need {bits} bits; {preset.name} has {preset.score_bits}")


if __name__ == "__main__":
    from qvit_hw.cli import main

    main("calibrate")

# SPDX-License-Identifier: Apache-2.0
"""``calibrate``: observe a float ViT on images and freeze it into a bundle of integers.

The vectors come from images that were not calibrated on: their integers are recorded inside the
calibrated model, and the golden model alone turns them into outputs. Float only judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from qvit_hw.bundle import LayerData, check_target, write_bundle
from qvit_hw.calibrated import CalibratedModel, calibrate_model
from qvit_hw.errors import UserError
from qvit_hw.models import LoadedModel, load_model
from qvit_hw.models.images import load_images, normalise
from qvit_hw.observation import Observations, observe, split_heads
from qvit_hw.observers import make_observer
from qvit_hw.presets import Preset, find_preset
from qvit_hw.references import (
    layernorm_metrics,
    layernorm_vectors,
    softmax_metrics,
    softmax_vectors,
)

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

__all__ = ["CALIBRATION_IMAGES", "VECTOR_ROWS", "build_layers", "pick_images", "run"]

CALIBRATION_IMAGES = 32
VECTOR_ROWS = 257
"""Unless told otherwise, vectors come from as many images as give every operator so many rows."""


def run(
    *,
    out: Path,
    model: str = "digits",
    checkpoint: Path | None = None,
    pretrained: bool = False,
    images: Path | None = None,
    preset: str = "w8a8p4",
    observer: str = "minmax",
    calibration: int = CALIBRATION_IMAGES,
    vector_images: int | None = None,
    affine: str = "dyadic",
) -> int:
    """Calibrate ``model`` and write the bundle ``out``; return the exit status, 0.

    Raises UserError, with nothing written, for any input that will not do.
    """
    out, chosen = Path(out), find_preset(preset)
    layernorm_spec = chosen.layernorm_spec(affine)
    make_observer(observer, "probe")
    check_target(out)
    loaded = load_model(model, checkpoint=checkpoint, pretrained=pretrained)
    tokens = loaded.model.patch_embed.num_patches + loaded.model.num_prefix_tokens
    _check_rows(model, "tokens", tokens, chosen.softmax_spec().max_tokens)
    _check_rows(model, "channels", loaded.model.embed_dim, layernorm_spec.max_channels)
    if vector_images is None:
        vector_images = -(-VECTOR_ROWS // tokens)
    seen_images, vectors = pick_images(loaded, images, calibration, vector_images)

    console = Console(stderr=True, soft_wrap=True)
    if not loaded.trained:
        console.print(f"[yellow]warning:[/] {loaded.name} has {loaded.source}", highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task(f"observing {model}", total=2 * len(seen_images))
        seen = observe(
            loaded.model,
            normalise(seen_images, loaded),
            chosen,
            observer,
            progress=lambda count: progress.advance(task, count),
        )
        calibrated = calibrate_model(loaded.model, seen, chosen, affine)
        task = progress.add_task("golden vectors", total=len(calibrated.layers))
        layers = build_layers(
            loaded.model,
            calibrated,
            normalise(vectors, loaded),
            progress=lambda: progress.advance(task),
        )
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
        observers={"activations": observer, "weights": "minmax"},
        images={
            "source": "bundled" if images is None else Path(images).name,
            "calibration": len(seen_images),
            "vectors": len(vectors),
        },
        specs={"layernorm": calibrated.layernorm_spec, "softmax": calibrated.softmax_spec},
        layers=layers,
    )
    _print_summary(calibrated, layers, seen, chosen, out)
    return 0


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


@torch.no_grad()
def _float_values(model: VisionTransformer, names: Sequence[str], inputs: torch.Tensor) -> Any:
    """Return {attention: v [B, heads, N, d]} of the float model."""
    values: dict[str, torch.Tensor] = {}
    handles = []
    for name in names:
        attention: Any = model.get_submodule(name)

        def keep(
            _module: Any,
            _args: Any,
            qkv: torch.Tensor,
            name: str = name,
            attention: Any = attention,
        ) -> None:
            values[name] = split_heads(qkv, attention.num_heads)[2]

        handles.append(attention.qkv.register_forward_hook(keep))
    try:
        model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return values


def build_layers(
    model: VisionTransformer,
    calibrated: CalibratedModel,
    inputs: torch.Tensor,
    progress: Any = None,
) -> list[LayerData]:
    """Record ``inputs`` and return every layer's integers, golden outputs, references and metrics."""
    values = _float_values(model, calibrated.topology.attentions, inputs)
    recorded = calibrated.record(inputs)
    layers = []
    for name, op in calibrated.layers:
        integers = recorded.pop(name)
        if op == "layernorm":
            layers.append(_layernorm_layer(name, calibrated, integers["input"]))
        else:
            layers.append(_softmax_layer(name, calibrated, integers["scores"], values.pop(name)))
        if progress is not None:
            progress()
    return layers


def _layernorm_layer(name: str, calibrated: CalibratedModel, codes: np.ndarray) -> LayerData:
    plan = calibrated.plans[name]
    rows, golden, reference = layernorm_vectors(codes, calibrated, name)
    scale: dict[str, Any] = {"input": plan.input.scale, "output_zero_point": plan.zero_point}
    if not plan.folds:
        scale["output"] = float(plan.scale[0])
    return LayerData(
        name=name,
        op="layernorm",
        params=plan.params,
        input=rows,
        golden=golden,
        reference=reference,
        scale=scale,
        metrics=layernorm_metrics(golden, reference, plan),
        folded={"scale": plan.scale, "rest": plan.rest} if plan.folds else {},
    )


def _softmax_layer(
    name: str, calibrated: CalibratedModel, scores: np.ndarray, values: torch.Tensor
) -> LayerData:
    rows, golden, reference = softmax_vectors(scores, calibrated, name)
    spec, params = calibrated.softmax_spec, calibrated.softmax[name]
    return LayerData(
        name=name,
        op="softmax",
        params=params,
        input=rows,
        golden=golden,
        reference=reference,
        scale={"input": 2.0**-params.frac},
        metrics=softmax_metrics(rows, golden, reference, values.numpy(), spec),
        extra={"heads": int(scores.shape[1]), "tokens": int(scores.shape[2])},
    )


def _print_summary(
    calibrated: CalibratedModel,
    layers: Sequence[LayerData],
    seen: Observations,
    preset: Preset,
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
            shifts = np.bincount(layer.params.shift, minlength=1)  # type: ignore[union-attr]
            detail = "a " + " ".join(str(count) for count in shifts)
        else:
            quality, ideal = metrics.get("av_sqnr"), metrics.get("av_sqnr_ideal")
            peak, frac = seen.peaks[layer.name], calibrated.softmax[layer.name].frac
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
    if calibrated.softmax_spec.score_bits != preset.score_bits:
        bits = calibrated.softmax_spec.score_bits
        console.print(f"note: scores need {bits} bits; {preset.name} has {preset.score_bits}")


if __name__ == "__main__":
    from qvit_hw.cli import main

    main("calibrate")

# SPDX-License-Identifier: Apache-2.0
"""What a choice gives: a network calibrated with its widths, run by the golden model; its units, mapped.

SQNR: of the golden model's outputs against timm's float ones, on images that were not calibrated on.  LUT: of
the softmax and the LayerNorm unit as Yosys maps them to UltraScale+.  Cycles: of both units for an image,
every layer after the other.  Weights: bits of all weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from golden.layernorm import layernorm_pipeline
from golden.softmax import softmax_pipeline
from golden.vit import VitModel
from qvit_hw.calibrate import pick_images
from qvit_hw.calibrated import CalibratedModel
from qvit_hw.calibration import calibrate_network
from qvit_hw.costing.measuring import Row, Task, measure_all
from qvit_hw.errors import UserError
from qvit_hw.exploring.measured import Measured
from qvit_hw.exploring.space import Choice, Origin, chosen_preset
from qvit_hw.integers import export
from qvit_hw.measuring import one_thread
from qvit_hw.models import LoadedModel, load_model
from qvit_hw.models.images import normalise
from qvit_hw.models.labelled import Labelled, load_labelled

__all__ = ["Lab"]

EXACT_DB = 200.0
"""Stands for the SQNR of outputs that are float's."""
_BATCH = 32


class Lab:
    """A model with its images, on which choices are tried.

    data: as of :func:`load_labelled`; limit: at most so many of its images.  jobs: tools side by side.
    """

    def __init__(
        self,
        origin: Origin,
        data: str,
        limit: int | None = None,
        *,
        jobs: int = 1,
        frequency: bool = False,
    ) -> None:
        self.origin, self.jobs, self.frequency = origin, jobs, frequency
        self.loaded: LoadedModel = load_model(
            origin.model,
            checkpoint=origin.checkpoint,
            pretrained=origin.pretrained,
            image_size=origin.image_size,
        )
        loose = data not in ("digits", "bundled") and not _has_classes(Path(data))
        self.data: Labelled = load_labelled(data, self.loaded, limit, unlabelled=loose)
        seen, _ = pick_images(self.loaded, origin.images, origin.calibration, 1)
        self.pixels = torch.tensor(seen)
        self.rows: dict[str, list[tuple[int, int]]] = {}

    @cached_property
    def numbers(self) -> list[int]:
        """Images that judge."""
        return list(range(len(self.data)))

    @cached_property
    def exact(self) -> np.ndarray:
        """Outputs [images, K] of timm's model."""
        outputs = []
        with torch.no_grad(), one_thread():
            for number in self.numbers:
                pixels = normalise(self.data.images([number]), self.loaded)
                outputs.append(self.loaded.model(pixels)[0].double().numpy())
        return np.stack(outputs)

    def try_choice(self, choice: Choice) -> Measured:
        """Calibrate, run, map; UserError where the network or a unit cannot have these widths."""
        try:
            calibrated, _ = calibrate_network(
                self.loaded.network, self.pixels, chosen_preset(choice), choice["affine"]
            )
            golden = VitModel(export(self.loaded.network, calibrated.plan), self.loaded.input_size)
        except ValueError as error:
            raise UserError(f"Choice cannot be built: {error}") from error
        sqnr_db, top1 = self._accuracy(calibrated, golden)
        plan, lanes = calibrated.plan, int(choice["lanes"])
        rows = self._units(plan.softmax_spec, plan.layernorm_spec, lanes)
        cycles = self._cycles(golden, plan.softmax_spec, plan.layernorm_spec, lanes)
        sizes = [row for row in rows if row.target == "xcup"]
        mhz = min((row.number("MHz") or 0.0 for row in rows if row.target == "ecp5"), default=None)
        return Measured(
            sqnr_db=sqnr_db,
            top1=top1,
            lut=_sum(sizes, "LUT"),
            ff=_sum(sizes, "FF"),
            dsp=_sum(sizes, "DSP"),
            bram=_sum(sizes, "BRAM"),
            cycles=cycles,
            weight_bits=sum(each.codes.size * each.bits for each in plan.weights.values()),
            specs={"softmax": asdict(plan.softmax_spec), "layernorm": asdict(plan.layernorm_spec)},
            units={row.unit: dict(row.figures) for row in sizes},
            mhz=mhz,
            microseconds=None if not mhz else cycles / mhz,
        )

    def _accuracy(self, calibrated: CalibratedModel, golden: VitModel) -> tuple[float, float | None]:
        batches = [self.numbers[start:][:_BATCH] for start in range(0, len(self.numbers), _BATCH)]
        found = np.concatenate(
            [calibrated.values(golden.output, golden(self.data.images(batch))) for batch in batches]
        )
        noise, energy = float(((found - self.exact) ** 2).sum()), float((self.exact**2).sum())
        ratio = 10 * math.log10(energy / noise) if noise else EXACT_DB
        labels = self.data.labels
        return ratio, None if labels is None else float((found.argmax(axis=1) == labels).mean())

    def _units(self, softmax: Any, layernorm: Any, lanes: int) -> list[Row]:
        targets = ("xcup", "ecp5") if self.frequency else ("xcup",)
        tasks = [
            Task(unit, lanes, target, spec=spec)
            for target in targets
            for unit, spec in (("layernorm", layernorm), ("softmax", softmax))
        ]
        rows = measure_all(tasks, self.jobs)
        for row in rows:
            if "LUT" not in row.figures:
                raise UserError(f"Unit {row.unit} cannot be mapped: {row.figures.get('note')}.")
        return rows

    def _cycles(self, golden: VitModel, softmax: Any, layernorm: Any, lanes: int) -> int:
        """Of both units for an image: rows of every layer back to back, layers one after the other."""
        if not self.rows:
            names = [node.name for node in golden.nodes if node.op in ("softmax", "layernorm")]
            traced = golden.trace(self.data.images([0]), names)
            for node in golden.nodes:
                if node.name in traced:
                    shape = np.shape(traced[node.name])
                    rows = int(np.prod(shape[:-1]))
                    self.rows.setdefault(node.op, []).append((rows, int(shape[-1])))
        pipelines = {
            "softmax": softmax_pipeline(softmax, lanes),
            "layernorm": layernorm_pipeline(layernorm, lanes),
        }
        return sum(
            rows * pipelines[op].beats(length) + pipelines[op].latency(length)
            for op, layers in self.rows.items()
            for rows, length in layers
        )


def _sum(rows: Sequence[Row], name: str) -> float:
    return sum(row.number(name) or 0.0 for row in rows)


def _has_classes(folder: Path) -> bool:
    """Whether a folder has a folder in it: one a class."""
    return folder.is_dir() and any(each.is_dir() for each in folder.iterdir())

# SPDX-License-Identifier: Apache-2.0
"""A small bundle's program, and what a run of it would leave, right or wrong as asked."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from golden.vit import VitModel
from qvit_hw.compile import run as compile_bundle
from qvit_hw.compiler.costs import costs
from qvit_hw.compiler.program import Program
from qvit_hw.divergence import first_difference
from qvit_hw.models.labelled import Labelled
from qvit_hw.run import Verdict
from qvit_hw.run_record import write_record
from sim.session import Bus

CLASSES = ("ant", "bee", "cat", "dog", "eel")


def make_program(folder: Path, bundle: Path) -> Path:
    """Compile a bundle of ``report_samples``."""
    assert compile_bundle(bundle=bundle, out=folder, fit=True) == 0
    return folder


def make_run(folder: Path, program: Path, *, flip: int | None = None, late: float = 0.0) -> Path:
    """Three images; of number ``flip`` the first output is off by one. late: share of cycles too many."""
    compiled, model = Program.load(program), VitModel.from_bundle(program / "bundle")
    pixels = np.random.default_rng(7).integers(0, 256, (3, *model.input_size), np.uint8)
    predicted = costs(compiled, model).cycles
    counters = dict.fromkeys(("array_busy", "layernorm_busy", "softmax_busy", "stream_wait", "unit_wait"), 40)
    counters["cycles"] = round(predicted * (1 + late))
    verdicts = []
    for number, golden in enumerate(model(pixels)):
        rtl = golden.copy()
        rtl[0] += number == flip
        found = first_difference(compiled.output[0], golden[None], rtl[None])
        wrong = (compiled.output[0],) if found else ()
        texts = golden.tolist(), rtl.tolist()
        verdicts.append(Verdict(f"image-{number}", *texts, None, counters, 0.25, 9, wrong, found))
    write_record(
        folder,
        compiled,
        Labelled("made up", tuple(v.name for v in verdicts), np.arange(3), pixels.__getitem__, CLASSES),
        pixels,
        [{**asdict(verdict), "equal": verdict.equal} for verdict in verdicts],
        [[0.5, -1.0, 2.25, 0.0, 0.125]] * 3,
        simulator="verilator",
        memory=asdict(Bus()),
        check="all",
        cycles_predicted=predicted,
    )
    return folder


def edit(folder: Path, change) -> None:
    """Apply ``change`` to the parsed run.json."""
    path = folder / "run.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))

# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind for the report: ``run.json``, and pixels of the images that are to be shown.

The report has no torch; so what the float model says of the images is in here, too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from qvit_hw.bundle import load_bundle
from qvit_hw.compiler.program import Program
from qvit_hw.errors import UserError
from qvit_hw.models.labelled import Labelled
from qvit_hw.outputs import made_folder, told, write_files
from qvit_hw.report_page.runs import PICTURES, RUN, SCHEMA, VERSION

__all__ = ["SHOWN", "float_outputs", "write_record"]

SHOWN = 9
"""Images whose pixels are kept: those that differ come first."""
Pixels = npt.NDArray[np.uint8]


def write_record(
    folder: Path,
    program: Program,
    images: Labelled,
    pixels: Pixels,
    verdicts: Sequence[Mapping[str, Any]],
    floats: Sequence[list[float]] | None,
    **facts: Any,
) -> None:
    """Write the files of a run into ``folder``; UserError where that cannot be.

    verdicts: one for each image, with at least "equal".  floats: outputs of the float model, if it is known.
    facts: more that is to be told.
    """
    labels = images.labels
    entries = [
        {
            **verdict,
            "label": None if labels is None else int(labels[number]),
            "float": None if floats is None else floats[number],
        }
        for number, verdict in enumerate(verdicts)
    ]
    document = {
        "schema": SCHEMA,
        "version": VERSION,
        **program.notes,
        "program": hashlib.sha256(program.words.tobytes()).hexdigest(),
        "fingerprint": f"{program.spec.fingerprint:016x}",
        "source": images.source,
        "classes": None if images.classes is None else list(images.classes),
        **facts,
        "images": entries,
        "passed": all(verdict["equal"] for verdict in verdicts),
    }
    first = sorted(range(len(verdicts)), key=lambda number: verdicts[number]["equal"])[:SHOWN]
    pictures = {str(number): np.ascontiguousarray(pixels[number]) for number in first}
    with made_folder(folder), told(folder):
        text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        write_files({folder / RUN: text.encode("utf-8"), folder / PICTURES: save(pictures)})


def float_outputs(bundle: Path, pixels: Pixels) -> list[list[float]] | None:
    """Outputs of the float model that a bundle was made of; None where its weights are not to be had."""
    from qvit_hw.measuring import Subject, one_thread  # torch

    try:
        subject = Subject.load(load_bundle(bundle), checkpoint=None, pretrained=False)
    except UserError:
        return None
    with one_thread():
        return [subject.float_output(image[None]).tolist() for image in pixels]

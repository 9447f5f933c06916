# SPDX-License-Identifier: Apache-2.0
"""Search presets, widths, tables and lanes for accuracy against area, cycles and memory.

    python -m qvit_hw.explore [--bundle B] [--trials 40] [--storage URL] [--seed 1] --out build/tradeoff

Every point is calibrated, run by the golden model on images that it has not seen, and its softmax and
LayerNorm are mapped by Yosys. The study lies in a storage that processes and machines share: the same command
again, or beside, goes on with it. An interrupt leaves the study and the page of what there is.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console

from qvit_hw.costing.measuring import COUNTING
from qvit_hw.costing.targets import TARGETS, check_tools, tool_versions
from qvit_hw.costing.units import unit_rtlil
from qvit_hw.errors import UserError, check_packages
from qvit_hw.exploring.space import Origin, narrowed
from qvit_hw.outputs import check_folder, made_folder, told, write_files
from qvit_hw.progress import bars

__all__ = ["JOURNAL", "JSON", "PAGE", "run"]

PAGE, JSON, JOURNAL = "tradeoff.html", "tradeoff.json", "study.journal"
SCHEMA, VERSION = "qvit-hw/tradeoff", 1


def run(
    *,
    out: Path,
    bundle: Path | None = None,
    trials: int = 40,
    storage: str | None = None,
    seed: int = 1,
    lanes: list[int] | None = None,
    fix: list[str] | None = None,
    data: str | None = None,
    limit: int | None = None,
    images: Path | None = None,
    checkpoint: Path | None = None,
    pretrained: bool = False,
    jobs: int = 2,
    frequency: bool = False,
) -> int:
    """Try points and write the page of all that the study has; return the exit status, 0.

    bundle: whose model is explored (its own widths are not used); digits without.  data: images that judge,
    as of ``evaluate``.  images: those that are calibrated on.  lanes: only these.  fix: "NAME=VALUE" of
    what is held.  frequency: place and route on ECP5, which is slow.
    UserError or MissingTool, before any work, for what cannot be.
    """
    for name, value, least in (("Trials", trials, 0), ("Jobs", jobs, 1), ("Seed", seed, 0)):
        if value < least:
            raise UserError(f"{name} must be at least {least}, not {value!r}.")
    space = narrowed(lanes or (), fix or ())
    check_tools(TARGETS["ecp5" if frequency else "xcup"])
    check_packages("explore", "optuna", "plotly")
    out = Path(out)
    check_folder(out)
    origin = replace(_origin(bundle), images=images, checkpoint=checkpoint, pretrained=pretrained)
    data = data or ("digits" if origin.model == "digits" else "bundled")

    # Optuna and plotly: imported only where they are known to be there.
    from qvit_hw.exploring.page import document, tradeoff_page
    from qvit_hw.exploring.study import open_study, points, search
    from qvit_hw.exploring.trial import Lab

    console = Console(stderr=True)
    with console.status(f"{origin.model}: loading"):
        lab = Lab(origin, data, limit, jobs=jobs, frequency=frequency)
        judged = f"{data}, {len(lab.data)} images"
        setup = _setup(lab.origin, judged, lab.loaded.source, frequency) | {"space": space}
    with made_folder(out), told(out):
        study = open_study(storage or str(out / JOURNAL), setup, frequency)
        try:
            with bars(console) as progress:
                bar = progress.add_task("searching", total=trials)
                search(
                    study,
                    lab.try_choice,
                    trials,
                    seed,
                    frequency,
                    told=lambda trial: progress.update(bar, advance=1, description=_words(trial.values)),
                    space=space,
                )
        finally:
            found = document(points(study), setup, origin, frequency)
            content = {"schema": SCHEMA, "version": VERSION, **found}
            text = json.dumps(content, indent=1, allow_nan=False) + "\n"
            page = tradeoff_page(found)
            write_files({out / JSON: text.encode(), out / PAGE: page.encode()})
    best = [point for point in found["points"] if point["front"]]
    Console().print(
        f"{len(found['points'])} points, {len(best)} of them on the front: {out / PAGE}",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def _origin(bundle: Path | None) -> Origin:
    if bundle is None:
        return Origin()
    from qvit_hw.bundle import load_bundle

    loaded = load_bundle(bundle)
    _, height, width = loaded.network.input_size
    name = str(loaded.manifest["model"]["name"])
    if name == "digits":
        return Origin()
    return Origin(model=name, image_size=height if height == width else None)


def _setup(origin: Origin, data: str, source: str, frequency: bool) -> dict[str, Any]:
    """All that points of one study have in common."""
    hardware = "".join(unit_rtlil(name, 1) for name in ("softmax", "layernorm"))
    return {
        "model": origin.model,
        "weights": source,
        "images": "bundled" if origin.images is None else str(origin.images),
        "calibration": origin.calibration,
        "data": data,
        "frequency": frequency,
        "counting": COUNTING,
        "hardware": hashlib.sha256(hardware.encode()).hexdigest()[:16],
        "tools": tool_versions(TARGETS["ecp5" if frequency else "xcup"]) | _versions(),
    }


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("qvit-hw", "numpy", "torch", "timm")}


def _words(values: Any) -> str:
    """The first two objectives of a trial."""
    return "could not be built" if values is None else f"{values[0]:.1f} dB, {values[1]:,.0f} LUT"


if __name__ == "__main__":
    from qvit_hw.cli import main

    main("explore")

# SPDX-License-Identifier: Apache-2.0
"""What a network costs on an accelerator, without simulating it.

    python -m qvit_hw.estimate --model deit_tiny_patch16_224 --config 16x16 [--clock 200]

compiles the network and asks the cycle model (:mod:`golden.accelerator_cycles`): cycles and use of the
array layer by layer, the unit that limits each, traffic, images a second. A model by name has whatever
weights there are: no cycle depends on them.
"""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from golden.accelerator import MEMORIES, AcceleratorSpec
from golden.vit import VitModel
from qvit_hw.bundle import load_bundle
from qvit_hw.compile import configuration
from qvit_hw.compiler.costs import Costs, LayerCost, costs
from qvit_hw.compiler.layout import fitted
from qvit_hw.compiler.schedule import compile_network
from qvit_hw.compiler.stages import recognise
from qvit_hw.errors import UserError

__all__ = ["run", "table", "to_json"]

CALIBRATION = 2
"""Images that a model by name is calibrated on: as few as give every tensor a range."""


def run(
    *,
    model: str | None,
    bundle: Path | None,
    config: str,
    preset: str = "default",
    clock: float = 200.0,
    bandwidth: float | None = None,
    out: Path | None = None,
) -> int:
    """Print the costs of a model (or a bundle) on a configuration; return the exit status, 0.

    clock: MHz.  bandwidth: bytes that the bus brings in a cycle, at most (and by default) a word.  out: a
    JSON file for the same figures. UserError for what cannot be compiled.
    """
    if (model is None) == (bundle is None):
        raise UserError("Model must be given by --model or by --bundle: one of them, not both.")
    if not clock > 0:
        raise UserError(f"Clock must be above 0 MHz, not {clock!r}.")
    spec = configuration(config)
    if bandwidth is not None and not 0 < bandwidth <= spec.size:
        raise UserError(f"Bandwidth must be above 0 and at most {spec.size}, not {bandwidth!r}.")
    name, network = _network(model, bundle, preset)
    fitting = fitted(recognise(network), spec)
    program = compile_network(network, fitting)
    words = Fraction(bandwidth or spec.size).limit_denominator(1 << 16) / spec.size
    found = costs(program, network, words)
    console = Console()
    console.print(table(name, found, clock))
    if grown := _grown(spec, fitting):
        console.print(f"Memories enlarged beyond {config}: {grown}.", highlight=False)
    if out is not None:
        out.write_text(json.dumps(to_json(name, found, clock), indent=1) + "\n", encoding="utf-8")
    return 0


def _network(model: str | None, bundle: Path | None, preset: str) -> tuple[str, VitModel]:
    if bundle is not None:
        return str(bundle), load_bundle(bundle).network
    from qvit_hw.calibrate import pick_images  # torch and timm: only where a model is built
    from qvit_hw.calibration import calibrate_network
    from qvit_hw.integers import export
    from qvit_hw.models import load_model
    from qvit_hw.presets import find_preset

    assert model is not None
    loaded = load_model(model)
    console = Console(stderr=True)
    with console.status(f"{model}: reducing to integers"):
        import torch

        images, _ = pick_images(loaded, None, CALIBRATION, 1)
        twin, _ = calibrate_network(loaded.network, torch.tensor(images), find_preset(preset))
        nodes = export(loaded.network, twin.plan)
    return model, VitModel(nodes, loaded.input_size)


def _grown(before: AcceleratorSpec, after: AcceleratorSpec) -> str:
    names = [name for name in (*MEMORIES, "max_tokens") if getattr(before, name) < getattr(after, name)]
    return ", ".join(f"{name} {getattr(before, name)} to {getattr(after, name)}" for name in names)


def table(name: str, found: Costs, clock: float) -> Table:
    """The costs as a table, a row a layer; ``clock`` in MHz."""
    size = found.size
    frames = 1e6 * clock / found.cycles
    shown = Table(
        title=f"{name} on {size} x {size}",
        caption=f"{found.cycles:,} cycles an image: {frames:.1f} a second at {clock:g} MHz\n"
        f"{found.macs / 1e9:.3f} G MAC, {100 * found.utilisation:.1f} % of the array's\n"
        f"{found.bytes / 1e6:.2f} MB from memory an image, {found.bytes * frames / 1e6:.0f} MB/s",
    )
    for title in ("layer", "cycles", "share", "MAC use", "limit", "kB read"):
        left = title in ("layer", "limit")
        shown.add_column(title, justify="left" if left else "right", no_wrap=True)
    for layer in found.layers:
        shown.add_row(*_row(layer, found))
    return shown


def _row(layer: LayerCost, found: Costs) -> list[str]:
    return [
        layer.name,
        f"{layer.cycles:,}",
        f"{100 * layer.cycles / found.cycles:.1f} %",
        f"{100 * layer.utilisation(found.size**2):.1f} %" if layer.macs else "",
        layer.limit,
        f"{layer.bytes / 1e3:.1f}",
    ]


def to_json(name: str, found: Costs, clock: float) -> dict[str, Any]:
    """The same figures for machines."""
    return {
        "schema": "qvit-hw/estimate",
        "version": 1,
        "model": name,
        "size": found.size,
        "clock_mhz": clock,
        "cycles": found.cycles,
        "images_per_second": 1e6 * clock / found.cycles,
        "macs": found.macs,
        "utilisation": found.utilisation,
        "bytes": found.bytes,
        "layers": [
            {
                "name": layer.name,
                "cycles": layer.cycles,
                "macs": layer.macs,
                "bytes": layer.bytes,
                "macs_per_byte": layer.intensity if layer.bytes else None,
                "utilisation": layer.utilisation(found.size**2),
                "limit": layer.limit,
                "busy": layer.busy,
            }
            for layer in found.layers
        ],
    }


if __name__ == "__main__":
    from .cli import main

    main("estimate")

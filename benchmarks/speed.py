# SPDX-License-Identifier: Apache-2.0
"""Whole networks, float against integers, in one run: ``python benchmarks/speed.py [MODEL ...]``.

timm's float model (fused attention), the calibrated model (float arithmetic on the integer grids) and the
golden model, each in a process of its own, for one image and for a batch. Then the golden model's time by
operator. Weights are random: time does not depend on them.

OPENBLAS_CORETYPE is taken out of the environment: it would tell NumPy's BLAS to use the instructions of
another processor than this one. All models use as many threads as OMP_NUM_THREADS says, else all cores.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from time import perf_counter

os.environ.pop("OPENBLAS_CORETYPE", None)
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from rich.console import Console
from rich.table import Table

from golden.vit import IMAGE, VitModel
from qvit_hw.calibrate import run as calibrate
from qvit_hw.models import load_model
from qvit_hw.models.images import load_images
from qvit_hw.timing import measure

MODELS = ("deit_tiny_patch16_224", "vit_small_patch16_224")
BATCH = 8
KINDS = ("float", "calibrated", "golden")


def by_operator(model: VitModel, image: np.ndarray, rounds: int = 5) -> Counter[str]:
    """Milliseconds of each operator for one image, the fastest round of each node."""
    best: dict[str, float] = {}
    for _ in range(rounds):
        tensors = {IMAGE: image}
        for node in model.nodes:
            inputs = [tensors[name] for name in node.inputs]
            start = perf_counter()
            tensors[node.name] = model.step(node.name, *inputs)
            best[node.name] = min(best.get(node.name, 1e9), 1e3 * (perf_counter() - start))
    total: Counter[str] = Counter()
    for node in model.nodes:
        total[node.op] += best[node.name]
    return total


def main() -> None:
    """Print a table of times and one of operators."""
    console = Console()
    times = Table("model", "kind", "one image", f"batch of {BATCH}", "peak memory")
    operators = Table("model", "operator", "ms an image", "share")
    for name in sys.argv[1:] or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            bundle = Path(folder) / "bundle"
            calibrate(out=bundle, model=name, calibration=4, vector_images=1)
            loaded = load_model(name)
            images, _ = load_images(None, loaded, BATCH, split="test")
            request = {
                "bundle": str(bundle),
                "name": name,
                "image_size": loaded.input_size[1],
                "checkpoint": None,
                "pretrained": False,
            }
            for kind in KINDS:
                found = measure(kind, images, request)
                times.add_row(
                    name,
                    kind,
                    f"{1e3 * found['one']:.1f} ms",
                    f"{1e3 * found['batch']:.1f} ms an image",
                    f"{found['peak'] / 2**20:.0f} MiB",
                )
            model = VitModel.from_bundle(bundle)
            spent = by_operator(model, images[:1])
            for operator, each in spent.most_common():
                share = f"{100 * each / spent.total():.0f} %"
                operators.add_row(name, operator, f"{each:.2f}", share)
    console.print(times)
    console.print(operators)


if __name__ == "__main__":
    main()

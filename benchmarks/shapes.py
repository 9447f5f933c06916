# SPDX-License-Identifier: Apache-2.0
"""Build, calibrate and run the usual shapes with random weights: ``python benchmarks/shapes.py [NAME ...]``.

Each model is calibrated on a few images and computed in integers; then every tensor is compared with the
calibrated model, and every intermediate value with its proven bound. A table tells the agreement of the worst
tensor, how full the fullest registers are, seconds and memory.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time

NAMES = (
    "deit_tiny_patch16_224",
    "deit_small_patch16_224",
    "deit_base_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "vit_base_patch16_224",
    "vit_large_patch16_224",
    "vit_small_patch14_reg4_dinov2:224",
    "swin_tiny_patch4_window7_224",
    "swin_small_patch4_window7_224",
    "swin_base_patch4_window7_224",
)
CALIBRATION, TESTED = 4, 1


def measure(name: str) -> str:
    """Return a row of the table for one model, ``name`` or ``name:size``."""
    import torch

    from golden.audit import audit
    from golden.vit import VitModel
    from qvit_hw.calibration import calibrate_network
    from qvit_hw.integers import export
    from qvit_hw.models import load_model
    from qvit_hw.models.images import load_images
    from qvit_hw.presets import find_preset

    start = time.perf_counter()
    model, _, size = name.partition(":")
    loaded = load_model(model, image_size=int(size) if size else None)
    network = loaded.network
    images, _ = load_images(None, loaded, CALIBRATION, split="train")
    twin, _ = calibrate_network(network, torch.tensor(images), find_preset("default"))
    golden = VitModel(export(network, twin.plan), network.input_size)
    fresh, _ = load_images(None, loaded, TESTED, split="test")
    begun = time.perf_counter()
    golden(fresh)
    ended = time.perf_counter()
    theirs, ours = golden.trace(fresh), twin.record(torch.tensor(fresh))
    worst = min(float((theirs[node.name] == ours[node.name]).mean()) for node in network)
    uses = audit(golden, fresh)
    full = {use.quantity: 0.0 for use in uses}
    for use in uses:
        reach = max(abs(use.bound.low), abs(use.bound.high))
        most = max(abs(use.seen.low), abs(use.seen.high))
        full[use.quantity] = max(full[use.quantity], most / max(reach, 1))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    fullest = ", ".join(f"{q} {100 * full[q]:.0f} %" for q in ("acc", "total"))
    return (
        f"{name:36} {len(network.nodes):5} {len(uses):6} {100 * worst:8.3f} %  {fullest:24} "
        f"{ended - begun:6.2f} s {time.perf_counter() - start:6.0f} s {peak:5.1f} GiB"
    )


def main() -> None:
    """Print the table; each model in a process of its own, so that memory is its own."""
    if len(sys.argv) == 3 and sys.argv[1] == "--one":
        print(measure(sys.argv[2]), flush=True)
        return
    print(f"{'model':36} nodes bounds    equal  fullest registers", flush=True)
    for name in sys.argv[1:] or NAMES:
        subprocess.run([sys.executable, __file__, "--one", name], check=True)


if __name__ == "__main__":
    main()

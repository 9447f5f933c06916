# SPDX-License-Identifier: Apache-2.0
"""Time and memory of one model, measured in a process of its own.

    python -m qvit_hw.timing < request.json > answer.json

Alone in a process a model is measured with nothing but its own libraries: the golden model's is Python and
NumPy, without torch. All threads that torch and the BLAS take by themselves are theirs.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["measure"]

REPEATS, SECONDS = 25, 3.0
"""Each of the two times is the best of so many runs, or of those that fit into so many seconds."""

Pixels = npt.NDArray[np.uint8]


def measure(model: str, images: Pixels, request: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of :class:`qvit_hw.evaluation.Speed` for a model of MODELS.

    images: uint8 [B, C, H, W], the batch; the first one is the single image.  request: "bundle" (path), and
    of the float model "name", "image_size", "checkpoint" (path or None) and "pretrained".

    RuntimeError with what the process said if it failed.
    """
    with tempfile.TemporaryDirectory(prefix="qvit-") as folder:
        path = Path(folder) / "images.npy"
        np.save(path, images)
        asked = json.dumps({**request, "model": model, "images": str(path)})
        done = subprocess.run(
            [sys.executable, "-m", "qvit_hw.timing"],
            input=asked,
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parents[1],
        )
    if done.returncode:
        raise RuntimeError(f"Timing of the {model} model failed: {done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    """What the process of its own does."""
    images = np.load(request["images"], allow_pickle=False)
    run, idle = _LOAD[request["model"]](request)
    one, batch = _seconds(lambda: run(images[:1])), _seconds(lambda: run(images))
    return {
        "model": request["model"],
        "one": one,
        "batch": batch / len(images),
        "batch_size": len(images),
        "idle": idle,
        "peak": _peak(),
        "threads": _threads(),
    }


Loaded = tuple[Callable[[Pixels], Any], int]
"""What runs the model, and the memory before there was one."""


def _golden(request: dict[str, Any]) -> Loaded:
    from golden.vit import VitModel

    idle = _peak()
    return VitModel.from_bundle(Path(request["bundle"])), idle


def _float(request: dict[str, Any]) -> Loaded:
    import torch

    from qvit_hw.models import load_model
    from qvit_hw.models.images import normalise

    idle = _peak()
    loaded = load_model(request["name"], image_size=request["image_size"], **_weights(request))
    modules: Iterable[Any] = loaded.model.modules()
    for module in modules:
        if hasattr(module, "fused_attn"):
            module.fused_attn = True  # as timm has it, where nobody wants to see the scores

    @torch.no_grad()
    def run(images: Pixels) -> Any:
        return loaded.model(normalise(images, loaded))

    return run, idle


def _calibrated(request: dict[str, Any]) -> Loaded:
    from qvit_hw.bundle import load_bundle
    from qvit_hw.measuring import Subject

    idle = _peak()
    subject = Subject.load(load_bundle(Path(request["bundle"])), **_weights(request))
    return lambda images: subject.calibrated_outputs(images), idle


def _weights(request: dict[str, Any]) -> dict[str, Any]:
    path = request["checkpoint"]
    return {
        "checkpoint": None if path is None else Path(path),
        "pretrained": request["pretrained"],
    }


_LOAD = {"float": _float, "calibrated": _calibrated, "golden": _golden}


def _threads() -> int:
    """Threads that the libraries take: as told, else one for each processor."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdigit() and int(told):
        return int(told)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _seconds(run: Callable[[], Any]) -> float:
    """Time of the fastest run, after one that does not count: whatever else a machine does only adds."""
    run()
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < REPEATS and (not times or time.perf_counter() - began < SECONDS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def _peak() -> int:
    """Most bytes that this process has held.

    Linux also carries over what the process had before exec, so its own account of the new image is read.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


if __name__ == "__main__":
    print(json.dumps(_answer(json.load(sys.stdin))))

# SPDX-License-Identifier: Apache-2.0
"""Inputs that are valid, of every kind that a reader takes, and their hashes put right after an edit."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fuzz_trial
import numpy as np
import torch
from accelerator_samples import make_program, make_run
from fuzz_trial import Files
from PIL import Image
from report_samples import LAYERNORM, SOFTMAX, make_bundle, make_results
from safetensors.numpy import save as save_tensors

from golden.accelerator import PRESETS
from golden.tensorfile import read_tensors
from qvit_hw import calibrate
from qvit_hw.compiler.program import Program
from qvit_hw.costing import baseline, cache
from qvit_hw.costing.measuring import Row
from qvit_hw.generate import build_unit


class Bait:
    """A pickle of it makes a folder when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def shared() -> Path:
    """The folder with a valid bundle and its program, made once: runs are read against it."""
    folder = fuzz_trial.SCRATCH / "shared"
    if not (folder / "program" / "program.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        make_program(folder / "program", make_bundle(folder / "bundle"))
    return folder


def values(folder: Path) -> None:
    value = {"a": [1, -2.5, None, True], "b": {"c": "d", "e": {"f": [[], {}]}}, "name": "x"}
    (folder / "sample.json").write_text(json.dumps(value))


def _arrays() -> dict[str, np.ndarray]:
    return {
        "blocks.0/weight": np.arange(12, dtype=np.int8).reshape(3, 4),
        "scale": np.linspace(0, 1, 3),
        "mask": np.array([[True, False]]),
        "none": np.zeros((0, 5), np.int32),
    }


def tensors(folder: Path) -> None:
    (folder / "sample.safetensors").write_bytes(save_tensors(_arrays()))


def bundle(folder: Path) -> None:
    shutil.copytree(shared() / "bundle", folder, dirs_exist_ok=True)


def program(folder: Path) -> None:
    shutil.copytree(shared() / "program", folder, dirs_exist_ok=True)


def results(folder: Path, flip: str | None = None) -> None:
    make_results(folder / "results", shared() / "bundle", flip=flip)


def run(folder: Path) -> None:
    make_run(folder / "made", shared() / "program")
    for path in (folder / "made").iterdir():
        path.rename(folder / path.name)
    (folder / "made").rmdir()


def units(folder: Path) -> None:
    built = build_unit("layernorm", LAYERNORM, 1), build_unit("softmax", SOFTMAX, 1)
    for unit in built:
        (folder / unit.entry["file"]).write_text(unit.verilog)
    manifest = {"schema": "qvit-hw/rtl", "version": 1, "units": [unit.entry for unit in built]}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {f"module.{name}": torch.randn(3, 4, generator=generator) for name in ("a.weight", "b.bias")}


def zipped(folder: Path) -> None:
    torch.save({"model": _state(), "epoch": 3}, folder / "weights.pt")


def legacy(folder: Path) -> None:
    torch.save(_state(), folder / "weights.pth", _use_new_zipfile_serialization=False)


def pickled(folder: Path) -> None:
    """A bait: the file itself would run code, and so would what edits leave of it."""
    (folder / "weights.pth").write_bytes(pickle.dumps({"model": Bait(fuzz_trial.canary())}))


def baited(folder: Path) -> None:
    torch.save({"model": Bait(fuzz_trial.canary()), **_state()}, folder / "weights.pt")


def float_tensors(folder: Path) -> None:
    arrays = {name: value.numpy() for name, value in _state().items()}
    (folder / "weights.safetensors").write_bytes(save_tensors(arrays))


def pictures(folder: Path) -> None:
    rng = np.random.default_rng(3)
    colours = rng.integers(0, 256, (9, 11, 3), np.uint8)
    for suffix, mode in (("png", "RGB"), ("jpg", "RGB"), ("bmp", "P"), ("tif", "RGB"), ("webp", "RGB")):
        Image.fromarray(colours).convert(mode).save(folder / f"a.{suffix}")
    Image.fromarray(colours).convert("LA").save(folder / "b.png", optimize=True)
    Image.fromarray(colours[..., 0].astype(np.uint16)).save(folder / "c.png")


def config(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(PRESETS["16x16"].to_json()))


def recorded(folder: Path) -> None:
    figures = {"LUT": 1000, "FF": 500, "DSP": 0, "BRAM": 2.5}
    rows = [Row(unit, 2, "xcup", "default", figures) for unit in ("softmax", "layernorm")]
    (folder / "baseline.json").write_text(baseline.text(rows, {"pyosys": "0.60"}))


def cached(folder: Path) -> None:
    with redirected(folder):
        cache.store("0" * 64, {"LUT": 5, "parts": {"array": {"LUT": 3}}})


@contextmanager
def redirected(folder: Path) -> Iterator[None]:
    """The cache is in this folder."""
    before = os.environ.get("QVIT_CACHE")
    os.environ["QVIT_CACHE"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("QVIT_CACHE")
        if before is not None:
            os.environ["QVIT_CACHE"] = before


def pages(folder: Path) -> None:
    (folder / "demo").mkdir()
    page = "<title>9 · qvit-hw</title><h1>9 <small>mutants</small></h1>"
    (folder / "demo" / "mutation.html").write_text(page)
    told = {"schema": "qvit-hw/mutation", "passed": True, "units": [1, 2]}
    (folder / "demo" / "mutation.json").write_text(json.dumps(told))


def bundle_within(folder: Path) -> None:
    (folder / "bundle").mkdir()
    bundle(folder / "bundle")


def calibrated(folder: Path) -> None:
    if not (shared() / "calibrated" / "manifest.json").is_file():
        calibrate.run(model="digits", out=shared() / "calibrated", calibration=2, vector_images=1)
    shutil.copytree(shared() / "calibrated", folder / "bundle")


# ------------------------------------------------------------------------------------------ healing

UNLESS_TAKEN_AWAY = suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""Around healing: an edit may have taken away what there is to heal."""


def heal_bundle(files: Files, folder: str = "") -> None:
    """Put the hashes of a bundle right, and what its manifest says of tensors that can be read."""
    with UNLESS_TAKEN_AWAY:
        manifest = json.loads(files[f"{folder}manifest.json"])
        told, tensors = manifest["files"], manifest["tensors"]
        for name in told:
            content = files.get(folder + name)
            if content is None:
                continue
            told[name] = hashlib.sha256(content).hexdigest()
            for tensor, array in read_tensors(content).items():
                entry = tensors.get(tensor)
                if isinstance(entry, dict) and "dtype" in entry:
                    entry |= {
                        "dtype": str(array.dtype),
                        "shape": list(array.shape),
                        "sha256": hashlib.sha256(array.tobytes()).hexdigest(),
                    }
        files[f"{folder}manifest.json"] = json.dumps(manifest).encode()


def heal_program(files: Files) -> None:
    """Put the hashes of a program's files right."""
    with UNLESS_TAKEN_AWAY:
        index = json.loads(files["program.json"])
        for name in index["files"]:
            if name in files:
                index["files"][name] = hashlib.sha256(files[name]).hexdigest()
        files["program.json"] = json.dumps(index).encode()


def heal_run(files: Files) -> None:
    """Let a run be of the program, whatever was edited."""
    with UNLESS_TAKEN_AWAY:
        run = json.loads(files["run.json"])
        ours = Program.load(shared() / "program")
        run["program"] = hashlib.sha256(ours.words.tobytes()).hexdigest()
        run["fingerprint"] = f"{ours.spec.fingerprint:016x}"
        files["run.json"] = json.dumps(run).encode()


def heal_units(files: Files) -> None:
    """Put the hash of an edited Verilog file right."""
    with UNLESS_TAKEN_AWAY:
        manifest = json.loads(files["manifest.json"])
        for entry in manifest["units"]:
            if entry["file"] in files:
                entry["sha256"] = hashlib.sha256(files[entry["file"]]).hexdigest()
        files["manifest.json"] = json.dumps(manifest).encode()


def heal_within(files: Files) -> None:
    heal_bundle(files, "bundle/")

# SPDX-License-Identifier: Apache-2.0
"""Read what a run on the accelerator left behind, and refuse it unless it is whole and of this program."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from golden.tensorfile import read_json

from ..compiler.program import Program
from ..errors import UserError
from .results import Reader

__all__ = ["PICTURES", "RUN", "SCHEMA", "VERSION", "ImageRun", "RunRecord", "load_run"]

SCHEMA, VERSION = "qvit-hw/run", 1
RUN, PICTURES = "run.json", "images.safetensors"
COUNTERS = ("cycles", "array_busy", "layernorm_busy", "softmax_busy", "stream_wait", "unit_wait")
_NONE = type(None)


@dataclass(frozen=True)
class ImageRun:
    """An image: outputs of three models, cycles, and what was wrong with it, if anything.

    label: its class.  difference: where golden and Verilog part first, in words.  wrong: the tensors that
    differ, of so many that were compared.
    """

    name: str
    label: int | None
    exact: tuple[float, ...] | None
    golden: tuple[int, ...]
    rtl: tuple[int, ...] | None
    fault: str | None
    counters: Mapping[str, int]
    seconds: float
    tensors: int
    wrong: tuple[str, ...]
    difference: str | None
    told_equal: bool

    @property
    def equal(self) -> bool:
        """Whether nothing was wrong; the outputs are compared once more, whatever the run claims."""
        sound = (
            self.told_equal and self.fault is None and not self.wrong and self.difference is None
        )
        return sound and self.rtl == self.golden


@dataclass(frozen=True)
class RunRecord:
    """All of a run; pictures: pixels of some images by their number, uint8 [C, H, W]."""

    simulator: str
    source: str
    cycles_predicted: int
    regular: bool
    """Whether memory answered as the cycle model has it: without gaps, always after the same time."""
    classes: tuple[str, ...] | None
    images: tuple[ImageRun, ...]
    passed: bool
    pictures: Mapping[int, np.ndarray]


def load_run(folder: Path, program: Program) -> RunRecord:
    """Read a run of ``program``; raise UserError in one sentence for anything amiss."""
    path = folder / RUN
    if not folder.is_dir():
        raise UserError(f"Run folder {str(folder)!r} does not exist.")
    try:
        data = read_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{str(folder)!r} holds no {RUN}: is it run's --out?") from None
    except (OSError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"Run {str(path)!r} is damaged: {reason}.") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise UserError(f"{str(path)!r} must be of schema {SCHEMA!r}.")
    if data.get("version") != VERSION:
        raise UserError(f"{str(path)!r} must be of version {VERSION}, not {data.get('version')!r}.")
    _check_program(path, data, program)
    reader = Reader(path)
    if reader.get(data, "check", (str,), "the run") == "none":
        raise UserError(f"Run {str(path)!r} compared nothing: run with --check logits or all.")
    images = reader.get(data, "images", (list,), "the run")
    if not images:
        raise UserError(f"Run {str(path)!r} holds no image: nothing was compared.")
    classes = reader.get(data, "classes", (list, _NONE), "the run")
    memory = reader.get(data, "memory", (dict,), "the run")
    return RunRecord(
        simulator=reader.get(data, "simulator", (str,), "the run"),
        source=reader.get(data, "source", (str,), "the run"),
        cycles_predicted=reader.get(data, "cycles_predicted", (int,), "the run"),
        regular=not memory.get("gaps") and not memory.get("seed"),
        classes=None if classes is None else tuple(map(str, classes)),
        images=tuple(
            _image(reader, image, number, program.output[1]) for number, image in enumerate(images)
        ),
        passed=reader.get(data, "passed", (bool,), "the run"),
        pictures=_pictures(folder / PICTURES, program, len(images)),
    )


def _check_program(path: Path, data: Mapping[str, Any], program: Program) -> None:
    ours = {
        "program": hashlib.sha256(program.words.tobytes()).hexdigest(),
        "fingerprint": f"{program.spec.fingerprint:016x}",
    }
    for key, value in ours.items():
        if data.get(key) != value:
            what = "hash" if key == "program" else key
            raise UserError(f"Run {str(path)!r} is of another program: its {what} differs.")


def _image(reader: Reader, data: Any, number: int, length: int) -> ImageRun:
    where = f"run {number}"  # so that no number may be negative

    def get(key: str, *kinds: type) -> Any:
        return reader.get(data, key, kinds, where)

    def numbers(key: str, *kinds: type, needed: bool = False) -> tuple[Any, ...] | None:
        values = get(key, list) if needed else get(key, list, _NONE)
        if values is None:
            return None
        sound = all(isinstance(x, kinds) and not isinstance(x, bool) for x in values)
        if len(values) != length or not sound:
            reader.fail(f"{key!r} of {where} must be {length} numbers")
        return tuple(values)

    if not isinstance(data, dict):
        reader.fail(f"{where} must be an object")
    counters = get("counters", dict)
    if counters:
        counters = {key: reader.get(counters, key, (int,), where) for key in COUNTERS}
    golden = numbers("golden", int, needed=True)
    assert golden is not None
    return ImageRun(
        name=get("name", str),
        label=get("label", int, _NONE),
        exact=numbers("float", int, float),
        golden=golden,
        rtl=numbers("rtl", int),
        fault=get("fault", str, _NONE),
        counters=counters,
        seconds=get("seconds", int, float),
        tensors=get("tensors", int),
        wrong=tuple(map(str, get("wrong", list))),
        difference=_difference(reader, get("divergence", dict, _NONE), where),
        told_equal=get("equal", bool),
    )


def _difference(reader: Reader, data: Mapping[str, Any] | None, where: str) -> str | None:
    if data is None:
        return None
    where = f"the divergence of {where}"
    tensor = reader.get(data, "tensor", (str,), where)
    row, column, golden = (
        reader.get(data, key, (int,), where) for key in ("row", "column", "golden")
    )
    rtl = reader.get(data, "rtl", (int, _NONE), where)
    got = "nothing" if rtl is None else rtl
    return f"{tensor}: row {row}, column {column}: golden {golden}, Verilog {got}"


def _pictures(path: Path, program: Program, count: int) -> dict[int, np.ndarray]:
    image = program.image
    shape = (image.channels, image.height, image.width)
    try:
        found = {int(name): pixels for name, pixels in load_file(path).items()}
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"Images {str(path)!r} are missing or damaged.") from error
    for number, pixels in found.items():
        if not 0 <= number < count or pixels.shape != shape or pixels.dtype != np.uint8:
            raise UserError(f"Images {str(path)!r} are not those of the run.")
    return dict(sorted(found.items()))

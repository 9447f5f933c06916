# SPDX-License-Identifier: Apache-2.0
"""What the accelerator's units compute in a run: read from the bench's dump, and compared with golden."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from golden.accelerator import AcceleratorSpec
from sim.runner import RunFailed

__all__ = ["Wanted", "Words", "difference", "dumped"]

Matrix = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
WANTED_FILE = "words.npz"
FILES = {"sums": "sums", "words": "drain", "layernorm": "layernorm", "softmax": "softmax"}
"""Name of a dump's file by field of :class:`Words`."""


@dataclass(frozen=True, eq=False)
class Words:
    """What the units computed in a run, in the order in which they wrote it, int64 [n, L] each.

    sums, words: of the drain, before and behind the requantiser.
    """

    sums: Matrix
    words: Matrix
    layernorm: Matrix
    softmax: Matrix


@dataclass(frozen=True, eq=False)
class Wanted:
    """What the units must compute; ``meant``: which elements mean something, by field of ``words``."""

    words: Words
    meant: Mapping[str, Flags]

    @staticmethod
    def write(folder: Path, spec: AcceleratorSpec, runs: Mapping[int, Wanted]) -> None:
        """Write what :func:`difference` compares with, by number of the run."""
        kept: dict[str, npt.NDArray[np.generic]] = {}
        for name, form in _formats(spec).items():
            kept[name] = np.array(form)
            for index, run in runs.items():
                kept[f"{name}.{index}"] = getattr(run.words, name)
                kept[f"{name}.{index}.meant"] = run.meant[name]
        np.savez(folder / WANTED_FILE, allow_pickle=False, **kept)


def difference(folder: Path, index: int) -> str | None:
    """The first word of a run's dump that is not what it must be, in words; None if there is none.

    None, too, if nothing was written about the run.
    """
    if not (folder / WANTED_FILE).is_file():
        return None
    with np.load(folder / WANTED_FILE, allow_pickle=False) as kept:
        if f"sums.{index}" not in kept:
            return None
        for name, file in FILES.items():
            wanted, meant = kept[f"{name}.{index}"], kept[f"{name}.{index}.meant"]
            found = _read(folder, file, index, *kept[name].tolist())
            if found.shape != wanted.shape:
                return f"{file}: words must be {len(wanted)}, not {len(found)}"
            places = np.argwhere(meant & (found != wanted))
            if len(places):
                row, lane = places[0].tolist()
                return f"{file}: word {row}, lane {lane}: golden {wanted[row, lane]}, RTL {found[row, lane]}"
    return None


def dumped(folder: Path, index: int, spec: AcceleratorSpec) -> Words:
    """The words of run ``index`` of :func:`sim.accelerator.simulate` with ``dump``."""
    forms = _formats(spec)
    return Words(**{name: _read(folder, file, index, *forms[name]) for name, file in FILES.items()})


def _formats(spec: AcceleratorSpec) -> dict[str, tuple[int, int, int]]:
    """Lanes, bits of an element, and whether it has a sign, by field of :class:`Words`."""
    return {
        "sums": (spec.size, 32, 1),
        "words": (spec.size, 32, 1),
        "layernorm": (spec.size, spec.layernorm.out_bits, 1),
        "softmax": (spec.size, spec.softmax.code_bits, 0),
    }


def _read(folder: Path, file: str, index: int, size: int, bits: int, signed: int) -> Matrix:
    try:
        lines = (folder / f"{file}.{index}").read_bytes().split()
    except OSError as error:
        raise RunFailed(f"The simulator left no words of {file} in run {index}") from error
    return _matrix(lines, size, bits, signed=bool(signed))


def _matrix(lines: list[bytes], size: int, bits: int, *, signed: bool) -> Matrix:
    """Words in hexadecimal digits, the first lane's last, as int64 [lines, size]."""
    width = -(-size * bits // 8)
    try:
        content = bytes.fromhex(b"".join(line.zfill(2 * width) for line in lines).decode("ascii"))
    except ValueError as error:
        raise RunFailed(f"Words of {size} x {bits} bits must be known, not 'x'") from error
    raw = np.frombuffer(content, np.uint8).reshape(-1, width)[:, ::-1]
    if bits in (8, 32):
        kind = f"<{'i' if signed else 'u'}{bits // 8}"
        return np.ascontiguousarray(raw).view(kind).astype(np.int64)
    places = np.unpackbits(raw, axis=1, bitorder="little")[:, : size * bits]
    places = places.reshape(-1, size, bits).astype(np.int64)
    weights = 1 << np.arange(bits)
    if signed:
        weights[-1] = -weights[-1]
    return np.asarray(places @ weights)

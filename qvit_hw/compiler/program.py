# SPDX-License-Identifier: Apache-2.0
"""A compiled program: the stream, what each instruction is for, and how to talk to it.

program = Program.load("DIR")
outputs = Machine(program.spec).run(program.words, program.image_words(image))
logits = program.result(outputs)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from golden.accelerator import AcceleratorSpec
from golden.fixedpoint import Ints, integer
from golden.patch_embed import PatchEmbedSpec, patches
from golden.program import INSTRUCTION_BYTES, Instruction, Op
from golden.tensorfile import read_json
from qvit_hw.errors import UserError

__all__ = ["INDEX", "SCHEMA", "STREAM", "VERSION", "Image", "Part", "Program", "Step"]

SCHEMA = "qvit-hw/program"
VERSION = 1
INDEX = "program.json"
STREAM = "program.bin"


@dataclass(frozen=True)
class Part:
    """Where an instruction's results belong in a tensor of golden, which is seen as a matrix.

    tensor: its name.  sums: whether it is made of the sums (of the words otherwise).
    row, rows, column, columns: the part of the matrix; tokens are its rows, lanes its columns.
    """

    tensor: str
    sums: bool
    row: int
    rows: int
    column: int
    columns: int


@dataclass(frozen=True)
class Step:
    """An instruction, the place and length of it with its payload, in words, and what it is for."""

    instruction: Instruction
    word: int
    words: int
    note: str
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Image:
    """How an image becomes words: channels, height, width in pixels, and the edge of a patch."""

    channels: int
    height: int
    width: int
    patch: int

    def words(self, image: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
        """Words [blocks * patches, L] of uint8 pixels [C, H, W]: [block][patch], zeros behind the last.

        TypeError for anything but uint8, ValueError for another size.
        """
        shape = (self.channels, self.height, self.width)
        if np.shape(image) != shape:
            raise ValueError(f"Image must be {shape}, not shape {np.shape(image)!r}")
        rows = patches(image, PatchEmbedSpec(patch=self.patch, channels=self.channels))
        rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % size)))
        return np.ascontiguousarray(rows.reshape(len(rows), -1, size).swapaxes(0, 1)).reshape(
            -1, size
        )


@dataclass(frozen=True, eq=False)
class Program:
    """A program for an accelerator of ``spec``.

    words: the stream, uint8 [words, L].  steps: its instructions, in order.  used: words of each memory that
    it uses.  output: name and length of the result.  notes: what it was made of.
    """

    spec: AcceleratorSpec
    words: npt.NDArray[np.uint8]
    steps: tuple[Step, ...]
    image: Image
    used: Mapping[str, int]
    output: tuple[str, int]
    notes: Mapping[str, Any]

    def image_words(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The words that the hardware reads of an image, uint8 [C, H, W]; errors as :meth:`Image.words`."""
        return self.image.words(image, self.spec.size)

    def result(self, outputs: Ints) -> npt.NDArray[np.int64]:
        """The network's output [classes] out of the output words [outputs, L]."""
        return np.asarray(outputs, np.int64).reshape(-1)[: self.output[1]]

    def to_json(self) -> dict[str, Any]:
        """Everything but the stream, for ``program.json``; the hash of the stream is in it."""
        return {
            "schema": SCHEMA,
            "version": VERSION,
            **self.notes,
            "spec": self.spec.to_json(),
            "fingerprint": f"{self.spec.fingerprint:016x}",
            "image": {**asdict(self.image), "words": self.steps[0].instruction["image_words"]},
            "output": {"tensor": self.output[0], "length": self.output[1]},
            "words": len(self.words),
            "memory": {
                name: {"used": words, "words": getattr(self.spec, name)}
                for name, words in self.used.items()
            },
            "instructions": [
                {
                    "op": step.instruction.op.name,
                    "word": step.word,
                    "words": step.words,
                    "note": step.note,
                    "parts": [asdict(part) for part in step.parts],
                }
                for step in self.steps
            ],
        }

    @classmethod
    def load(cls, path: Path | str) -> Program:
        """Read a folder that compile wrote; UserError, in one sentence, where it is not sound."""
        path = Path(path)
        try:
            index = read_json((path / INDEX).read_bytes())
            if index["schema"] != SCHEMA:
                raise ValueError(f"schema must be {SCHEMA!r}, not {index['schema']!r}")
            if index["version"] != VERSION:
                raise ValueError(f"version must be {VERSION}, not {index['version']!r}")
            _check_files(path, index["files"])
            return cls._of(index, np.fromfile(path / STREAM, np.uint8))
        except OSError as error:
            name = Path(error.filename or path).name
            raise UserError(
                f"Program {str(path)!r} cannot be read: {name}: {error.strerror}."
            ) from None
        except KeyError as error:
            raise UserError(f"Program {str(path)!r} is not sound: {INDEX} lacks {error}.") from None
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f"Program {str(path)!r} is not sound: {error}.") from None

    @classmethod
    def _of(cls, index: Mapping[str, Any], content: npt.NDArray[np.uint8]) -> Program:
        spec = AcceleratorSpec.from_json(index["spec"])
        words = content.reshape(_count(index["words"], "Words"), spec.size)
        steps = tuple(
            Step(
                Instruction.from_bytes(words[entry["word"] :][: INSTRUCTION_BYTES // spec.size].tobytes()),
                _count(entry["word"], "Place of an instruction"),
                _count(entry["words"], "Length of an instruction", 1),
                str(entry["note"]),
                tuple(_part(part) for part in entry["parts"]),
            )
            for entry in index["instructions"]
        )
        _check_steps(steps, len(words))
        image = Image(
            *(_count(index["image"][key], f"Image {key}", 1) for key in Image.__dataclass_fields__)
        )
        assert PatchEmbedSpec(patch=image.patch, channels=image.channels)  # or ValueError
        if image.height % image.patch or image.width % image.patch:
            raise ValueError(f"Image must be whole patches of {image.patch} pixels, not {image!r}")
        if not set(index["memory"]) <= set(AcceleratorSpec.__dataclass_fields__):
            raise ValueError(f"Memories must be those of the accelerator, not {sorted(index['memory'])!r}")
        used = {name: _count(entry["used"], f"Use of {name}") for name, entry in index["memory"].items()}
        output = (str(index["output"]["tensor"]), _count(index["output"]["length"], "Outputs", 1))
        notes = {key: index[key] for key in ("model", "preset", "bundle")}
        return cls(spec, words, steps, image, used, output, notes)


def _count(value: Any, what: str, low: int = 0) -> int:
    return integer(value, what, low, (1 << 32) - 1)


def _part(entry: Mapping[str, Any]) -> Part:
    part = Part(**entry)
    for name in ("row", "rows", "column", "columns"):
        _count(getattr(part, name), f"{name} of a part")
    if not isinstance(part.tensor, str) or not isinstance(part.sums, bool):
        raise TypeError(f"Part must name a tensor and say whether of sums, not {part!r}")
    return part


def _check_steps(steps: tuple[Step, ...], words: int) -> None:
    """Raise ValueError unless instructions from HEAD to END follow each other and are all of the stream."""
    ends = [step.instruction.op for step in steps[:1] + steps[-1:]]
    if ends != [Op.HEAD, Op.END]:
        raise ValueError(f"Instructions must be from HEAD to END, not {[op.name for op in ends]!r}")
    place = 0
    for step in steps:
        if step.word != place:
            raise ValueError(f"Instructions must follow each other, not begin at {step.word} after {place}")
        place += step.words
    if place != words:
        raise ValueError(f"Instructions must be {words} words together, not {place}")


def _check_files(path: Path, files: Mapping[str, str]) -> None:
    for name, digest in files.items():
        if hashlib.sha256(path.joinpath(name).read_bytes()).hexdigest() != digest:
            raise ValueError(f"{name} must be the file that was written, not another")

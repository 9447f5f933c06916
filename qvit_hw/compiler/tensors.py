# SPDX-License-Identifier: Apache-2.0
"""From the words of a run to golden's tensors, and what golden says they should be.

    events: list[Event] = []
    Machine(program.spec, events.append).run(program.words, program.image_words(image))
    assert differences(regrouped(program, events), references(program, model, image)) == []

Tensors are matrices here: rows are tokens (head by head for scores and codes), columns channels. They have
the network's names; ``SUMS`` behind one says: the accumulators of a layer whose codes never leave the drain.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from golden.fixedpoint import Ints
from golden.linear import accumulate
from golden.machine import Drained, Event, Rows
from golden.program import Op
from golden.vit import VitModel
from qvit_hw.compiler.program import Part, Program

__all__ = [
    "SUMS",
    "Recorded",
    "Run",
    "differences",
    "recorded",
    "references",
    "regrouped",
    "replayed",
]

SUMS = " (sums)"
Matrix = npt.NDArray[np.int64]


class Run(Protocol):
    """All words of a run, as the hardware writes them: unit by unit, each [n, L].

    What a simulation leaves (``sim.accelerator.Words``) is one.
    """

    @property
    def sums(self) -> Matrix:
        """The drain's sums with their bias."""
        ...

    @property
    def words(self) -> Matrix:
        """What the drain's sinks got."""
        ...

    @property
    def layernorm(self) -> Matrix:
        """LayerNorm's output."""
        ...

    @property
    def softmax(self) -> Matrix:
        """Softmax's output."""
        ...


@dataclass(frozen=True, eq=False)
class Recorded:
    """A :class:`Run` of the machine."""

    sums: Matrix
    words: Matrix
    layernorm: Matrix
    softmax: Matrix


def recorded(program: Program, events: Iterable[Event]) -> Recorded:
    """What the hardware would write, of what the machine has seen."""
    kept: dict[str, list[Matrix]] = {name: [] for name in Recorded.__dataclass_fields__}
    for event in events:
        if isinstance(event, Drained):
            kept["sums"].append(event.sums)
            kept["words"].append(event.words)
        else:
            op = program.steps[event.instruction].instruction.op
            kept[op.name.lower()].append(event.words)
    none = np.zeros((0, program.spec.size), np.int64)
    return Recorded(**{name: np.concatenate([none, *parts]) for name, parts in kept.items()})


def replayed(program: Program, run: Run) -> list[Event]:
    """The events of a run; ValueError where it has other than the program's number of words."""
    events: list[Event] = []
    place = dict.fromkeys(Recorded.__dataclass_fields__, 0)

    def take(name: str, count: int) -> Matrix:
        first = place[name]
        place[name] = first + count
        return np.asarray(getattr(run, name)[first : first + count])

    for number, step in enumerate(program.steps):
        instruction = step.instruction
        if instruction.op is Op.MULTIPLY:
            for block in range(instruction["blocks"]):
                both = (take(name, instruction["tokens"]) for name in ("sums", "words"))
                events.append(Drained(number, block, *both))
        elif instruction.op in (Op.LAYERNORM, Op.SOFTMAX):
            count = instruction["tokens"] * instruction["depth"]
            events.append(Rows(number, take(instruction.op.name.lower(), count)))
    for name, count in place.items():
        if len(getattr(run, name)) != count:
            raise ValueError(f"Words of {name} must be {count}, not {len(getattr(run, name))!r}")
    return events


def _hidden(program: Program) -> set[str]:
    """Layers in front of a table: only their sums can be seen, not their codes."""
    return {
        step.parts[0].tensor
        for step in program.steps
        if step.instruction.op is Op.MULTIPLY and step.instruction["gelu"]
    }


def regrouped(program: Program, events: Iterable[Event]) -> dict[str, Matrix]:
    """Matrices by name, in the order of the program, of everything that was written."""
    hidden = _hidden(program)

    def title(part: Part) -> str:
        return part.tensor + SUMS if part.tensor in hidden else part.tensor

    shapes: dict[str, tuple[int, int]] = {}
    for part in (part for step in program.steps for part in step.parts):
        rows, columns = shapes.get(title(part), (0, 0))
        end = (part.row + part.rows, part.column + part.columns)
        shapes[title(part)] = (max(rows, end[0]), max(columns, end[1]))
    found = {name: np.zeros(shape, np.int64) for name, shape in shapes.items()}
    for event in events:
        first = event.block * program.spec.size if isinstance(event, Drained) else 0
        for part in program.steps[event.instruction].parts:
            words = event.sums if isinstance(event, Drained) and part.sums else event.words
            values = words.reshape(part.rows, -1)[:, : part.columns - first]
            place = found[title(part)][part.row :, part.column + first :]
            place[: part.rows, : values.shape[1]] = values
    return found


def references(
    program: Program, model: VitModel, image: npt.NDArray[np.uint8]
) -> dict[str, Matrix]:
    """Golden's matrices for an image, uint8 [C, H, W], by the names of :func:`regrouped`."""
    hidden = _hidden(program)
    names = list(dict.fromkeys(part.tensor for step in program.steps for part in step.parts))
    needed = {name for name in names if name not in hidden}
    needed |= {model[name].inputs[0] for name in hidden}
    trace = model.trace(image[None], needed)
    wanted: dict[str, Matrix] = {}
    for name in names:
        node = model[name]
        x: Ints = trace[node.inputs[0] if name in hidden else name]
        tensor = accumulate(x, node.spec, node.params) if name in hidden else x
        matrix = tensor[0].reshape(-1, tensor.shape[-1]).astype(np.int64)
        if node.op == "embed":
            matrix = matrix[len(node.layout["prefix"]) :]  # the prefix is loaded, not computed
        wanted[name + SUMS if name in hidden else name] = matrix
    return wanted


def differences(found: Mapping[str, Matrix], wanted: Mapping[str, Matrix]) -> list[str]:
    """Names of tensors that differ or are missing, in the network's order."""
    return [name for name, x in wanted.items() if not np.array_equal(found.get(name, []), x)]

# SPDX-License-Identifier: Apache-2.0
"""Where the hardware's words and golden's tensors part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from golden.machine import Drained, Event, Machine
from golden.program import Sink
from golden.vit import VitModel
from qvit_hw.compiler.program import Program
from qvit_hw.compiler.tensors import Recorded, references, regrouped, replayed
from sim.words import Words

__all__ = ["Divergence", "check_words", "first_difference"]


@dataclass(frozen=True)
class Divergence:
    """The first element of the first tensor that differs; ``rtl`` is None if it never came."""

    tensor: str
    row: int
    column: int
    golden: int
    rtl: int | None

    def __str__(self) -> str:
        got = "nothing" if self.rtl is None else self.rtl
        place = f"row {self.row}, column {self.column}"
        return f"{self.tensor}: {place}: golden {self.golden}, RTL {got}"


def check_words(
    program: Program, model: VitModel, image: npt.NDArray[np.uint8], words: Words
) -> tuple[int, tuple[str, ...], Divergence | None]:
    """(tensors compared, names of those that differ, the first element that does) of an image's words."""
    wanted = references(program, model, image)
    try:
        events = replayed(program, Recorded(**vars(words)))
    except ValueError:
        divergence = _missing(program, image, words)
        return len(wanted), (divergence.tensor,), divergence
    found = regrouped(program, events)
    differences = {name: first_difference(name, x, found[name]) for name, x in wanted.items()}
    wrong = tuple(name for name, difference in differences.items() if difference)
    return len(wanted), wrong, differences[wrong[0]] if wrong else None


def first_difference(
    name: str, golden: npt.NDArray[np.int64], rtl: npt.NDArray[np.int64]
) -> Divergence | None:
    """The first element of two matrices that differs."""
    places = np.argwhere(golden != rtl)
    if not len(places):
        return None
    row, column = places[0].tolist()
    return Divergence(name, row, column, int(golden[row, column]), int(rtl[row, column]))


def _missing(program: Program, image: npt.NDArray[np.uint8], words: Words) -> Divergence:
    """Where the words part that are not as many as they should be: by the machine, word by word."""
    events: list[Event] = []
    Machine(program.spec, events.append).run(program.words, program.image_words(image))
    place = dict.fromkeys(Recorded.__dataclass_fields__, 0)
    for event in events:
        step = program.steps[event.instruction]
        if isinstance(event, Drained):
            parts = {"sums": event.sums, "words": event.words}
        else:
            parts = {step.instruction.op.name.lower(): event.words}
        for name, golden in parts.items():
            first = place[name]
            place[name] = first + len(golden)
            rtl = getattr(words, name)[first : first + len(golden)]
            where = f"instruction {event.instruction} ({step.note}), {name}"
            meant = _meant(program, event, name)[: len(rtl)]
            difference = first_difference(where, np.where(meant, golden[: len(rtl)], rtl), rtl)
            if difference is not None:
                return difference
            if len(rtl) < len(golden):
                return Divergence(where, len(rtl), 0, int(golden[len(rtl), 0]), None)
    return Divergence("a word more than the program has", 0, 0, 0, None)


def _meant(program: Program, event: Event, name: str) -> npt.NDArray[np.bool_]:
    """Which elements of an event's words mean something, [n, L]."""
    instruction = program.steps[event.instruction].instruction
    meant = np.ones(event.words.shape, np.bool_)
    if name == "words" and instruction["sink"] == Sink.OUTPUTS:
        meant[:] = False
    elif name == "layernorm":
        depth = instruction["depth"]
        meant[depth - 1 :: depth, instruction["last_lanes"] :] = False
    return meant

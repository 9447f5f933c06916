# SPDX-License-Identifier: Apache-2.0
"""Writes instructions into a stream, and remembers what each is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from golden.accelerator import AcceleratorSpec
from golden.fixedpoint import Ints
from golden.program import (
    Instruction,
    Op,
    Sink,
    Source,
    Tile,
    Unit,
    Wait,
    instruction_words,
    record_words,
)
from qvit_hw.compiler.layout import Region, share
from qvit_hw.compiler.payload import Drain, Words, payload
from qvit_hw.compiler.program import Part, Step

__all__ = ["NOTHING", "Writer"]

NOTHING = Wait(0)


class Writer:
    """A program on its way, for an accelerator of ``spec``: its ``steps`` and their ``words``."""

    def __init__(self, spec: AcceleratorSpec) -> None:
        self.spec, self.size = spec, spec.size
        self.steps: list[Step] = []
        self.words: list[Words] = []
        self.length = 0

    def stream(self) -> Words:
        """All words so far."""
        return np.concatenate(self.words)

    def put(
        self,
        op: Op,
        note: str,
        operands: Mapping[str, int],
        wait: Wait = NOTHING,
        content: Words | None = None,
        parts: Sequence[Part] = (),
    ) -> None:
        """An instruction and its payload."""
        instruction = Instruction(op, wait, {name: int(x) for name, x in operands.items()})
        words = [instruction_words(instruction, self.size), *([] if content is None else [content])]
        count = sum(len(part) for part in words)
        self.steps.append(Step(instruction, self.length, count, note, tuple(parts)))
        self.words += words
        self.length += count

    def beats(self, count: int, rows: int) -> dict[str, int]:
        """Operands of rows of ``count`` elements."""
        last = (count - 1) % self.size + 1
        return {"tokens": rows, "depth": share(count, self.size), "last_lanes": last}

    def product(
        self,
        note: str,
        wait: Wait,
        source: Region,
        weights: npt.NDArray[np.int8],
        drain: Drain,
        sink: Sink,
        out: Region,
        parts: Sequence[Part],
        tokens: int,
        gelu: int = 0,
    ) -> None:
        """A product of features and weights of the stream."""
        self.put(
            Op.MULTIPLY,
            note,
            {
                "source": Source.FEATURES,
                "tile": Tile.STREAM,
                "sink": sink,
                "tokens": tokens,
                "depth": weights.shape[1],
                "blocks": weights.shape[0],
                "source_base": source.base,
                "sink_base": out.base,
                "stride": source.stride,
                "sink_stride": out.stride,
                "gelu": gelu,
                **drain.operands,
            },
            wait,
            payload(drain, self.size, weights),
            parts,
        )

    def write(self, unit: Unit, note: str, addresses: Ints, values: Ints) -> None:
        """Parameters of a unit. None of these has to wait: what used the unit has been waited for."""
        content = record_words(addresses, values, self.size)
        self.put(Op.WRITE, note, {"unit": unit, "count": len(addresses)}, content=content)

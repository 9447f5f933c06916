# SPDX-License-Identifier: Apache-2.0
"""The unit of codes and v as its surroundings see it: :mod:`golden.attention` by heads, words and cycles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from golden.attention import AttendSpec
from golden.cycles import RowTiming
from golden.fixedpoint import integer
from golden.requant import RequantParams
from golden.words import writes

__all__ = ["WORD", "AttendPipeline", "attend_pipeline", "attend_words"]

WORD = {"multiplier": 0, "shift": 1, "zero_point": 2, "commit": 3}
"""Word addresses of the unit's parameters (:mod:`golden.words`): a head's channels share them."""


def attend_words(params: RequantParams, spec: AttendSpec, head: int) -> list[tuple[int, int]]:
    """Writes of the parameter port for one head, (word address, unsigned 32-bit value), in order.

    >>> import numpy as np
    >>> one = RequantParams(multiplier=np.array([40000]), shift=np.array([20]), zero_point=-1)
    >>> attend_words(one, AttendSpec(), 5)
    [(0, 40000), (1, 20), (2, 4294967295), (3, 0)]
    """
    params.check(spec.requant)
    own = head if params.multiplier.size > 1 else 0
    scalars = {
        WORD["multiplier"]: int(params.multiplier[own]),
        WORD["shift"]: int(params.shift[own]),
        WORD["zero_point"]: params.zero_point,
    }
    return writes(scalars, {}, WORD["commit"])


@dataclass(frozen=True)
class AttendPipeline:
    """A code a cycle; the row's one beat is on the output ``drain`` cycles after its last code.

    lanes: channels of v, side by side; no cycle depends on them.  Output always accepted, input always there.
    """

    lanes: int
    drain: int

    def latency(self, length: int) -> int:
        """Cycles from a row's first code accepted to its beat delivered."""
        return length - 1 + self.drain

    def schedule(self, lengths: Sequence[int], start: int = 0) -> list[RowTiming]:
        """Timing of rows of these lengths, one after the other, the first code at cycle ``start``."""
        rows = []
        for length in lengths:
            last = start + length - 1
            rows.append(RowTiming(start, last, last + self.drain, last + self.drain))
            start = last + 1
        return rows


def attend_pipeline(spec: AttendSpec, lanes: int) -> AttendPipeline:
    """Cycle model: 12 registers to base 2, 15 to base sqrt 2, and the output queue.

    1 v leaves its memory, 2 it rests while the code's shift is looked up, 3 and 4 the shift, by 4s and 1s,
    5 the accumulators; to base sqrt 2, 6 and 7 the odd one times SQRT2, 8 their sum; then 7 of the
    requantiser's (:func:`golden.requant.requant_pipeline` from its third on).
    """
    stages = 5 + (3 if spec.per_octave == 2 else 0) + 7
    return AttendPipeline(lanes=integer(lanes, "Lanes", 1, 32), drain=stages + 1)

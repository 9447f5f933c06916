# SPDX-License-Identifier: Apache-2.0
"""What was found of a point, and which of it the search is for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["OBJECTIVES", "Measured", "objectives"]

OBJECTIVES = {"sqnr_db": "maximize", "lut": "minimize", "cycles": "minimize", "weight_bits": "minimize"}
"""What is searched for, by the names of :class:`Measured`."""


def objectives(frequency: bool) -> dict[str, str]:
    """OBJECTIVES; with the frequency measured, time takes the place of cycles."""
    names = {"cycles": "microseconds"} if frequency else {}
    return {names.get(name, name): direction for name, direction in OBJECTIVES.items()}


@dataclass(frozen=True)
class Measured:
    """What was found of a choice.

    top1: share of images that are right; None without labels.  specs: of the units, by operator, as they were
    built.  units: figures of both.  mhz, microseconds: of the slower unit on ECP5, where that was measured.
    """

    sqnr_db: float
    top1: float | None
    lut: float
    ff: float
    dsp: float
    bram: float
    cycles: int
    weight_bits: int
    specs: dict[str, dict[str, Any]]
    units: dict[str, dict[str, Any]]
    mhz: float | None = None
    microseconds: float | None = None

    def values(self, frequency: bool) -> list[float]:
        """The objectives, in their order."""
        return [float(getattr(self, name)) for name in objectives(frequency)]

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

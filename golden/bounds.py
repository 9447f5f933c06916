# SPDX-License-Identifier: Apache-2.0
"""Interval arithmetic: the one place that decides how wide an accumulator is.

Each spec builds the intervals of its intermediate values with it (``spec.bounds``); the golden
model checks against them, the RTL takes its widths from them, and the tests construct the inputs
that reach them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from golden.fixedpoint import Ints

__all__ = ["Interval"]


@dataclass(frozen=True)
class Interval:
    """All integers from ``low`` to ``high``, both included."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"Interval must have low <= high, not {self.low!r} > {self.high!r}")

    @classmethod
    def of_bits(cls, bits: int, *, signed: bool) -> Interval:
        """All values of a two's-complement (or unsigned) number of ``bits`` bits."""
        return cls(-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else cls(0, (1 << bits) - 1)

    @property
    def signed(self) -> bool:
        """Whether a hardware register for it needs a sign bit."""
        return self.low < 0

    @property
    def bits(self) -> int:
        """Smallest register width that holds every value, sign bit included; at least 1."""
        magnitude = max(self.high, -self.low - 1)
        return max(1, magnitude.bit_length() + self.signed)

    def __add__(self, other: Interval) -> Interval:
        return Interval(self.low + other.low, self.high + other.high)

    def __sub__(self, other: Interval) -> Interval:
        return Interval(self.low - other.high, self.high - other.low)

    def __mul__(self, other: Interval) -> Interval:
        corners = [a * b for a in (self.low, self.high) for b in (other.low, other.high)]
        return Interval(min(corners), max(corners))

    def __lshift__(self, n: int) -> Interval:
        return Interval(self.low << n, self.high << n)

    def __or__(self, other: Interval) -> Interval:
        """Smallest interval that holds both."""
        return Interval(min(self.low, other.low), max(self.high, other.high))

    def square(self) -> Interval:
        """Interval of x * x; tighter than ``self * self`` where the sign is not known."""
        high = max(self.low * self.low, self.high * self.high)
        low = 0 if self.low <= 0 <= self.high else min(self.low * self.low, self.high * self.high)
        return Interval(low, high)

    def sum_of(self, count: int) -> Interval:
        """Interval of a sum of 1 to ``count`` such values."""
        return Interval(min(self.low, self.low * count), max(self.high, self.high * count))

    def holds(self, x: Ints | int) -> bool:
        """Whether every element of ``x`` lies inside."""
        array = np.asarray(x)
        if array.dtype.kind in "iu":
            whole = _of_type(array.dtype)
            if self.low <= whole.low and whole.high <= self.high:
                return True  # no value of this type lies outside
        return not array.size or (int(array.min()) >= self.low and int(array.max()) <= self.high)

    def require(self, x: Ints, name: str) -> None:
        """Raise ValueError with the first element of ``x`` that lies outside, if there is one."""
        if not self.holds(x):
            array = np.asarray(x)
            worst = int(array[(array < self.low) | (array > self.high)][0])
            raise ValueError(f"{name} must be from {self.low} to {self.high}, not {worst!r}")


@cache
def _of_type(kind: np.dtype[Any]) -> Interval:
    """All values of a type of integers."""
    return Interval(int(np.iinfo(kind).min), int(np.iinfo(kind).max))

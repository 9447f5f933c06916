# SPDX-License-Identifier: Apache-2.0
"""How the operators hold their numbers, so that exact is also fast.

Nothing here computes. Codes travel in the narrowest type that an interval proves wide enough, as they do
in hardware; parameters are checked, widened and reordered once, not at each call; rows are worked on in
blocks that stay in a processor's cache, in memory that each thread keeps for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from functools import cache
from math import prod
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from golden.bounds import Interval
from golden.fixedpoint import Ints

__all__ = [
    "BLOCK",
    "Params",
    "blocks",
    "constant",
    "fitting",
    "narrowest",
    "rows_for",
    "scratch",
    "tiled",
    "whole",
]

T = TypeVar("T")

BLOCK = 1 << 18
"""Elements of a block: two megabytes of 64-bit integers."""
LENGTH = 1 << 13
"""Elements of NumPy's own buffer: an operand that is broadcast but as long as that is read in place."""


class Params:
    """Base of the operators' parameters: dataclasses whose arrays nobody changes any more.

    Arrays are copied, and the copies are read-only: what :meth:`once` has derived from them stays true.
    """

    def __post_init__(self) -> None:
        for name, value in list(vars(self).items()):
            if isinstance(value, np.ndarray) and (value.flags.writeable or value.base is not None):
                own = np.array(value)
                own.flags.writeable = False
                object.__setattr__(self, name, own)

    def once(self, spec: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` returns for these parameters and ``spec``; it is called the first time only.

        Two threads may both be the first; they make the same thing.
        """
        made: dict[Hashable, Any] = vars(self).setdefault("_made", {})
        if spec not in made:
            made[spec] = make()
        return cast(T, made[spec])


def whole(value: Any, name: str) -> Ints:
    """Return ``value`` as an array of integers of whatever width; TypeError for any other kind."""
    array = np.asarray(value)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be an array of integers, not {array.dtype}")
    return array


def fitting(value: Any, name: str, bits: int) -> Ints:
    """Return ``value`` as an array of integers of ``bits`` bits with sign.

    TypeError for any other kind, ValueError for a value that needs more bits.
    """
    array = whole(value, name)
    if not Interval.of_bits(bits, signed=True).holds(array):
        span = f"{int(array.min())} to {int(array.max())}"
        raise ValueError(f"{name} must fit in {bits} bits with sign, not {span}")
    return array


@cache
def narrowest(interval: Interval) -> np.dtype[np.signedinteger[Any]]:
    """The narrowest signed type that holds every value of ``interval``.

    >>> narrowest(Interval(-128, 127)), narrowest(Interval(0, 128))
    (dtype('int8'), dtype('int16'))
    """
    for kind in (np.int8, np.int16, np.int32, np.int64):
        if np.iinfo(kind).min <= interval.low and interval.high <= np.iinfo(kind).max:
            return np.dtype(kind)
    raise ValueError(f"Interval must fit in 64 bits with sign, not {interval!r}")


@cache
def constant(table: tuple[Any, ...], kind: np.dtype[Any]) -> npt.NDArray[Any]:
    """A table of an operator as a read-only array."""
    array = np.array(table, dtype=kind)
    array.flags.writeable = False
    return array


def tiled(column: Ints) -> npt.NDArray[np.int64]:
    """A column of parameters [C], repeated to a length at which NumPy no longer copies it for each row."""
    return np.tile(column.astype(np.int64), -(-LENGTH // len(column)))


def blocks(rows: int, width: int) -> Iterator[slice]:
    """Slices that cover ``rows`` rows of ``width`` elements, each about BLOCK elements.

    >>> [(part.start, part.stop) for part in blocks(5, BLOCK // 2)]
    [(0, 2), (2, 4), (4, 5)]
    """
    step = max(1, BLOCK // max(1, width))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def rows_for(column: Ints, shape: tuple[int, ...], name: str) -> tuple[Ints, Ints]:
    """Scratch twice: int64 of ``shape`` [n, C], and as long rows to which a ``tiled`` column suits."""
    times = len(column) // shape[-1]
    long = scratch(name, (-(-shape[0] // times), len(column)), np.int64)
    return long.reshape(-1, shape[-1])[: shape[0]], long


class _Kept(threading.local):
    """The memory of one thread, by what it is for."""

    def __init__(self) -> None:
        self.memory: dict[str, npt.NDArray[np.uint8]] = {}


_kept = _Kept()


def scratch(name: str, shape: tuple[int, ...], kind: npt.DTypeLike) -> npt.NDArray[Any]:
    """An array for values in between, with anything in it: the thread's memory called ``name``.

    It is the caller's until the same name is asked for again in the same thread, so it is never returned to
    a user. Memory fresh from the operating system would cost more than the arithmetic on it.
    """
    kind = np.dtype(kind)
    size = prod(shape) * kind.itemsize
    memory = _kept.memory.get(name)
    if memory is None or memory.size < size:
        memory = _kept.memory[name] = np.empty(size, np.uint8)
    return memory[:size].view(kind).reshape(shape)

# SPDX-License-Identifier: Apache-2.0
"""Two's-complement helpers that every golden operator is written with.

The whole project knows one rounding: *half up*, an adder and an arithmetic shift. Nothing in this
package accepts a float, so that no result can depend on the float hardware of the machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["POWERS", "Ints", "bit_length", "integer", "integers", "rounding_shift", "saturate"]

Ints = npt.NDArray[np.integer[Any]]

POWERS = np.int64(1) << np.arange(63, dtype=np.int64)
"""Powers of two."""


def integers(value: Any, name: str) -> npt.NDArray[np.int64]:
    """Return ``value`` as an int64 array of the same shape.

    Raises TypeError for anything but integers (a float that happens to be whole included) and
    ValueError for unsigned values above the int64 range.
    """
    array = np.asarray(value)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name} must be an array of integers, not {array.dtype}")
    if array.dtype == np.uint64 and array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise ValueError(f"{name} must fit in 64 bits with sign, not {int(array.max())!r}")
    return array.astype(np.int64, copy=False)


def integer(value: Any, name: str, low: int, high: int) -> int:
    """Return ``value`` as an int in [low, high]; TypeError for the kind, ValueError for the value."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high}, not {value!r}")
    return int(value)


def rounding_shift(x: Ints, n: Ints | int) -> npt.NDArray[np.int64]:
    """``rs(x, n) = (x + 2**(n-1)) >> n`` for n > 0 (round half up), ``rs(x, 0) = x``.

    ``x`` and ``n`` broadcast; n is from 0 to 62 and x + 2**(n-1) must fit in int64.

    >>> rounding_shift(np.array([-3, -2, -1, 1, 2, 3]), 1).tolist()
    [-1, -1, 0, 1, 1, 2]
    """
    x, n = integers(x, "Value"), integers(n, "Shift")
    if n.size and (n.min() < 0 or n.max() > 62):
        raise ValueError(f"Shift must be from 0 to 62, not {int(n.min())!r} to {int(n.max())!r}")
    half = (np.int64(1) << n) >> 1
    return np.asarray((x + half) >> n)


def saturate(x: Ints, bits: int, *, signed: bool = True) -> npt.NDArray[np.int64]:
    """Clip ``x`` to ``bits`` bits: [-2**(bits-1), 2**(bits-1)) if signed, else [0, 2**bits)."""
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    return np.clip(integers(x, "Value"), low, high)


def bit_length(x: Ints) -> npt.NDArray[np.int64]:
    """Position of the leading one plus one, for x >= 0 (0 for 0): ``int.bit_length`` of an array.

    >>> bit_length(np.array([0, 1, 2, 3, 4, 2**62])).tolist()
    [0, 1, 2, 2, 3, 63]
    """
    values = integers(x, "Value")
    if values.size and values.min() < 0:
        raise ValueError(f"Value must be at least 0, not {int(values.min())!r}")
    return np.searchsorted(POWERS, values, side="right").astype(np.int64, copy=False)

# SPDX-License-Identifier: Apache-2.0
"""Exact integer matrix products through the machine's floating-point BLAS.

This is the one place in ``golden`` where a float dtype is used, and no rounding ever happens in it.
A binary float with a significand of p bits holds every integer up to 2**p in magnitude, and the sum,
the product and the fused multiply-add of two floats are exact whenever the exact result is such an
integer. A matrix product adds products a*b in an order (and with a grouping) that is up to the library.
Every partial sum is a sum over *some* of the products; if count * max|a*b| <= 2**p, each of them is an
integer of at most p bits, so each step is exact and the order cannot matter:

    float32   where every partial sum is proven at most 2**24:  int8 x int8 up to K = 1024
    float32   over a split K, the parts added as integers, where a part is at least MIN_PART products
    float64   where every partial sum is proven at most 2**53
    int64     otherwise (no BLAS, slow); ValueError where 64 bits could overflow

It holds for every BLAS that computes sums of products, with or without FMA, threads and SIMD. It would
not hold for one that subtracts operands first (Strassen) or rounds them (TF32); none that NumPy is
built with does so.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from golden.arrays import scratch, whole
from golden.bounds import Interval
from golden.fixedpoint import Ints, integer

__all__ = ["FLOAT32", "FLOAT64", "MIN_PART", "RightFactor", "exact_matmul", "plan"]

FLOAT32, FLOAT64 = 1 << 24, 1 << 53
"""Largest magnitude up to which each format holds every integer."""
INT64 = (1 << 63) - 1
KINDS = {"float32": np.float32, "float64": np.float64, "int64": np.int64}
"""Types by the names that :func:`plan` uses."""
MIN_PART = 128
"""Shortest part of a split K: below it, adding the parts costs more than float64 does."""


def _reach(bound: Interval) -> int:
    return max(abs(bound.low), abs(bound.high))


def plan(count: int, product: int, partial: int | None = None) -> tuple[str, int]:
    """(kind, parts) for sums of ``count`` products of magnitude at most ``product``.

    ``partial``: a bound of the magnitude of every partial sum, where one tighter than
    count * product is known. ValueError where 64 bits could overflow.

    >>> plan(1024, 128 * 128), plan(1025, 128 * 128), plan(197, 128 << 14), plan(1, 1 << 54)
    (('float32', 1), ('float32', 2), ('float64', 1), ('int64', 1))
    """
    largest = count * product if partial is None else min(partial, count * product)
    if largest <= FLOAT32:
        return "float32", 1
    fits = FLOAT32 // product
    if fits >= MIN_PART:
        return "float32", -(-count // fits)
    if largest <= FLOAT64:
        return "float64", 1
    if largest <= INT64:
        return "int64", 1
    raise ValueError(f"Sums of products must fit in 64 bits with sign, not reach {largest!r}")


def _operand(value: Ints, name: str, bound: Interval) -> Ints:
    array = whole(value, name)
    if array.ndim < 2:
        raise ValueError(f"{name} must have at least 2 axes, not {array.ndim!r}")
    if not bound.holds(array):
        span = f"{int(array.min())} to {int(array.max())}"
        raise ValueError(f"{name} must be from {bound.low} to {bound.high}, not {span}")
    return array


class RightFactor:
    """A right factor [..., K, N], checked and cast once for any number of left factors.

    b_bound, a_bound: of its own and of the left factors' values; they (not the values at hand) choose the
    path, so that a layer always takes the same one, and the type of the sums.  partial: see :func:`plan`;
    the caller answers for it.  TypeError for floats, ValueError for a value out of its bound.
    """

    def __init__(
        self, b: Ints, b_bound: Interval, a_bound: Interval, *, partial: int | None = None
    ) -> None:
        right = _operand(b, "Right factor", b_bound)
        if partial is not None:
            partial = integer(partial, "Partial sums", 0, INT64)
        self.bound, self.count = a_bound, right.shape[-2]
        product = _reach(a_bound * b_bound)
        kind, parts = plan(self.count, product, partial)
        largest = self.count * product if partial is None else min(partial, self.count * product)
        self.sums = np.dtype(np.int32 if largest < 1 << 31 else np.int64)
        """Type of the sums: int32 where it is proven to hold them, else int64."""
        self._kind = np.dtype(KINDS[kind])
        self._right = self._cast(right)
        self._cuts = [self.count * part // parts for part in range(parts + 1)]

    def _cast(self, right: Ints) -> npt.NDArray[Any]:
        return np.ascontiguousarray(right, dtype=self._kind)

    def after(self, a: Ints, out: Ints | None = None) -> Ints:
        """``a @ self`` of integers [..., M, K], exactly; leading axes broadcast.

        ``out``: an array of integers to write to, wide enough for the sums.
        """
        given = _operand(a, "Left factor", self.bound)
        if given.shape[-1] != self.count:
            raise ValueError(f"Right factor must have {given.shape[-1]} rows, not {self.count!r}")
        lead = np.broadcast_shapes(given.shape[:-2], self._right.shape[:-2])
        shape = (*lead, given.shape[-2], self._right.shape[-1])
        left = scratch("matmul.left", given.shape, self._kind)
        np.copyto(left, given)
        total = np.empty(shape, self.sums) if out is None else out
        product = scratch("matmul.product", shape, self._kind)
        for first, last in pairwise(self._cuts):
            np.matmul(left[..., first:last], self._right[..., first:last, :], out=product)
            if first:
                # Whole numbers again before they are added: the sum of the parts may exceed 2**24.
                total += product.astype(self.sums)
            else:
                np.copyto(total, product, casting="unsafe")
        return total


class _Passing(RightFactor):
    """A right factor for one product."""

    def _cast(self, right: Ints) -> npt.NDArray[Any]:
        # Rows or columns, whatever lies together stays together: BLAS takes both.
        if right.strides[-2] < right.strides[-1]:
            return _Passing._cast(self, right.swapaxes(-1, -2)).swapaxes(-1, -2)
        kept = scratch("matmul.right", right.shape, self._kind)
        np.copyto(kept, right)
        return kept


def exact_matmul(
    a: Ints,
    b: Ints,
    a_bound: Interval,
    b_bound: Interval,
    *,
    partial: int | None = None,
    out: Ints | None = None,
) -> Ints:
    """``a @ b`` of integer arrays [..., M, K] and [..., K, N], exactly; leading axes broadcast.

    Returns int32 or int64, by the bounds; for all else see :class:`RightFactor`. ValueError also for lengths
    that do not match.

    >>> byte = Interval.of_bits(8, signed=True)
    >>> exact_matmul(np.array([[100, -128]]), np.array([[100], [-128]]), byte, byte).tolist()
    [[26384]]
    """
    return _Passing(b, b_bound, a_bound, partial=partial).after(a, out)

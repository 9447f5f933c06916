# SPDX-License-Identifier: Apache-2.0
"""Exact integer matrix products through the machine's floating-point BLAS.

This is the one place in ``golden`` where a float dtype is used, and no rounding ever happens in it.
A binary float with a significand of p bits holds every integer up to 2**p in magnitude, and the sum,
the product and the fused multiply-add of two floats are exact whenever the exact result is such an
integer. A matrix product adds products a*b in an order (and with a grouping) that is up to the library.
Every partial sum is a sum over *some* of the products; if count * max|a*b| <= 2**p, each of them is an
integer of at most p bits, so each step is exact and the order cannot matter:

    float32   where every partial sum is proven at most 2**24:  int8 x int8 up to K = 1024
    float32   over a split K, the parts added as int64, where a part is at least MIN_PART products
    float64   where every partial sum is proven at most 2**53
    int64     otherwise (no BLAS, slow); ValueError where 64 bits could overflow

It holds for every BLAS that computes sums of products, with or without FMA, threads and SIMD. It would
not hold for one that subtracts operands first (Strassen) or rounds them (TF32); none that NumPy is
built with does so.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from golden.bounds import Interval
from golden.fixedpoint import Ints, integer

__all__ = ["FLOAT32", "FLOAT64", "MIN_PART", "exact_matmul", "plan"]

FLOAT32, FLOAT64 = 1 << 24, 1 << 53
"""Largest magnitude up to which each format holds every integer."""
INT64 = (1 << 63) - 1
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
    array = np.asarray(value)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name} must be an array of integers, not {array.dtype}")
    if array.ndim < 2:
        raise ValueError(f"{name} must have at least 2 axes, not {array.ndim!r}")
    if not bound.holds(array):
        span = f"{int(array.min())} to {int(array.max())}"
        raise ValueError(f"{name} must be from {bound.low} to {bound.high}, not {span}")
    return array


def exact_matmul(
    a: Ints, b: Ints, a_bound: Interval, b_bound: Interval, *, partial: int | None = None
) -> npt.NDArray[np.int64]:
    """``a @ b`` of integer arrays [..., M, K] and [..., K, N], exactly; leading axes broadcast.

    The bounds (not the values at hand) choose the path, so that a layer always takes the same one; the
    values are checked against them. ``partial``: see :func:`plan`; the caller answers for it.
    TypeError for floats, ValueError for a value out of its bound or lengths that do not match.

    >>> byte = Interval.of_bits(8, signed=True)
    >>> exact_matmul(np.array([[100, -128]]), np.array([[100], [-128]]), byte, byte).tolist()
    [[26384]]
    """
    left, right = _operand(a, "Left factor", a_bound), _operand(b, "Right factor", b_bound)
    count = left.shape[-1]
    if right.shape[-2] != count:
        raise ValueError(f"Right factor must have {count} rows, not {right.shape[-2]!r}")
    if partial is not None:
        partial = integer(partial, "Partial sums", 0, INT64)
    kind, parts = plan(count, _reach(a_bound * b_bound), partial)
    if kind == "int64":
        return np.asarray(np.matmul(left.astype(np.int64), right.astype(np.int64)))
    dtype = np.float32 if kind == "float32" else np.float64
    left, right = left.astype(dtype), right.astype(dtype)
    if parts == 1:
        return np.asarray(np.matmul(left, right).astype(np.int64))
    cuts = [count * part // parts for part in range(parts + 1)]
    total = np.matmul(left[..., : cuts[1]], right[..., : cuts[1], :]).astype(np.int64)
    for first, last in pairwise(cuts[1:]):
        # Whole numbers again before they are added: the sum of the parts may exceed 2**24.
        total += np.matmul(left[..., first:last], right[..., first:last, :]).astype(np.int64)
    return np.asarray(total)

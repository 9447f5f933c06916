# SPDX-License-Identifier: Apache-2.0
"""Exact matrix products: against Python's big integers, at the edge of every regime."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from golden.bounds import Interval
from golden.matmul import FLOAT32, FLOAT64, MIN_PART, exact_matmul, plan

BYTE = Interval.of_bits(8, signed=True)


def exact(a: np.ndarray, b: np.ndarray) -> list[list[int]]:
    """The product in unbounded integers."""
    rows, columns = a.tolist(), list(zip(*b.tolist(), strict=True))
    return [[sum(x * y for x, y in zip(r, c, strict=True)) for c in columns] for r in rows]


def spread(bound: Interval, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Values of which half are the ends of the bound."""
    rng = np.random.default_rng(seed)
    values = rng.integers(bound.low, bound.high, shape, endpoint=True)
    ends = np.where(rng.random(shape) < 0.5, bound.low, bound.high)
    return np.where(rng.random(shape) < 0.5, ends, values)


EDGES = [
    # K, largest |a|, largest |b|, kind, parts
    (1024, 128, 128, "float32", 1),
    (1025, 128, 128, "float32", 2),
    (3072, 128, 128, "float32", 3),
    (518, 255, 127, "float32", 1),
    (519, 255, 127, "float32", 2),
    (64, 1 << 9, 1 << 9, "float32", 1),
    (65, 1 << 9, 1 << 9, "float64", 1),
    (MIN_PART, 1 << 8, 1 << 9, "float32", 1),
    (MIN_PART + 1, 1 << 8, 1 << 9, "float32", 2),
    (MIN_PART + 1, 1 << 9, 1 << 9, "float64", 1),
    (8, 1 << 25, 1 << 25, "float64", 1),
    (9, 1 << 25, 1 << 25, "int64", 1),
    (2, 1 << 30, (1 << 31) - 1, "int64", 1),
]


@pytest.mark.parametrize(("count", "left", "right", "kind", "parts"), EDGES)
def test_products_at_the_edge_of_each_regime(count, left, right, kind, parts) -> None:  # type: ignore[no-untyped-def]
    a_bound, b_bound = Interval(-left, left), Interval(-right, right)
    assert plan(count, left * right) == (kind, parts)
    a, b = spread(a_bound, (3, count)), spread(b_bound, (count, 2), 1)
    a[0], b[:, 0] = left, right  # reaches the bound of every partial sum
    b[:, 1] = [(-1) ** k * right for k in range(count)]
    b[-1, 1] = 1  # an odd sum beside large ones
    got = exact_matmul(a, b, a_bound, b_bound)
    assert got.dtype == (np.int32 if count * left * right < 1 << 31 else np.int64)
    assert got.tolist() == exact(a, b)
    assert int(got[0, 0]) == count * left * right


def test_one_beyond_the_edge_a_float_would_round() -> None:
    """The regimes are not timid: the next format would be wrong."""
    a = np.full((1, 1025), 128)
    b = np.full((1025, 1), 128)
    b[0], a[0, 0] = 1, 1
    want = 1024 * 128 * 128 + 1
    assert int((a.astype(np.float32) @ b.astype(np.float32))[0, 0]) != want
    assert int(exact_matmul(a, b, Interval(-128, 128), Interval(-128, 128))[0, 0]) == want
    wide = Interval(0, 1 << 27)
    a, b = np.array([[1 << 27, 1]]), np.array([[1 << 26], [1]])
    assert plan(2, wide.high**2)[0] == "int64" and FLOAT64 < (1 << 53) + 1
    assert exact_matmul(a, b, wide, wide).tolist() == [[(1 << 53) + 1]]


@given(st.data())
def test_random_products(data: st.DataObject) -> None:
    widths = st.integers(1, 26)
    bounds = [
        Interval.of_bits(data.draw(widths) + signed, signed=signed)
        for signed in (data.draw(st.booleans()), data.draw(st.booleans()))
    ]
    count, seed = data.draw(st.sampled_from((1, 2, 63, 300))), data.draw(st.integers(0, 1 << 32))
    a, b = spread(bounds[0], (2, count), seed), spread(bounds[1], (count, 3), seed + 1)
    assert exact_matmul(a, b, *bounds).tolist() == exact(a, b)


def test_a_tighter_bound_of_partial_sums_is_used() -> None:
    assert plan(197, 128 << 14) == ("float64", 1)
    assert plan(197, 128 << 14, FLOAT32) == ("float32", 1)
    assert plan(197, 128 << 14, FLOAT32 + 1) == ("float64", 1)
    a, b = np.array([[1 << 14, 1, 1]]), np.array([[128], [-3], [2]])
    got = exact_matmul(a, b, Interval(0, 1 << 14), Interval(-128, 128), partial=FLOAT32)
    assert got.tolist() == [[(1 << 21) - 1]]


def test_leading_axes_broadcast() -> None:
    a, b = spread(BYTE, (2, 3, 4, 5)).astype(np.int8), spread(BYTE, (3, 5, 6)).astype(np.int8)
    got = exact_matmul(a, b, BYTE, BYTE)
    assert got.shape == (2, 3, 4, 6)
    for i, j in product(range(2), range(3)):
        assert got[i, j].tolist() == exact(a[i, j], b[j])
    transposed = exact_matmul(b.swapaxes(-1, -2), a[0].swapaxes(-1, -2), BYTE, BYTE)
    assert (transposed == got[0].swapaxes(-1, -2)).all()


def test_errors() -> None:
    good = np.zeros((2, 3), np.int8)
    with pytest.raises(TypeError, match=r"^Left factor must be an array of integers, not float32$"):
        exact_matmul(good.astype(np.float32), good.T, BYTE, BYTE)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^Right factor must be from -128 to 127, not 0 to 200$"):
        exact_matmul(good, np.array([[0], [0], [200]]), BYTE, BYTE)
    with pytest.raises(ValueError, match=r"^Right factor must have 3 rows, not 2$"):
        exact_matmul(good, good, BYTE, BYTE)
    with pytest.raises(ValueError, match=r"^Left factor must have at least 2 axes, not 1$"):
        exact_matmul(good[0], good.T, BYTE, BYTE)
    with pytest.raises(
        ValueError, match=r"^Sums of products must fit in 64 bits with sign, not reach "
    ):
        plan(2, 1 << 62)
    with pytest.raises(ValueError, match=r"^Partial sums must be from 0 to \d+, not -1$"):
        exact_matmul(good, good.T, BYTE, BYTE, partial=-1)

# SPDX-License-Identifier: Apache-2.0
"""The cycle model of the array against a simulation of its assumptions, tile by tile and cycle by cycle."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from golden.matrix_cycles import (
    LOOP,
    MatrixArray,
    Product,
    attend_products,
    back_to_back,
    linear_product,
    patch_embed_product,
    score_products,
)


def simulated(
    x: np.ndarray, weight: np.ndarray, array: MatrixArray, *, hidden: bool = True
) -> tuple[np.ndarray, int]:
    """x [N, K] @ weight [K, O] on the array, and the cycles: one event a cycle and no formula.

    ``hidden``: whether weights are loaded while a tile works.
    """
    tokens, inputs = x.shape
    outputs, cycle = weight.shape[1], 0
    memory = np.zeros((tokens, array.columns), np.int64)
    result = np.zeros((tokens, outputs), np.int64)
    read = np.full(tokens, -LOOP)  # the cycle in which a token's word was last read
    loaded = array.rows  # the cycle in which the next tile is complete
    last_sum = 0
    for column in range(0, outputs, array.columns):
        for row in range(0, inputs, array.rows):
            cycle = max(cycle, loaded)
            loaded = cycle + array.rows
            tile = weight[row : row + array.rows, column : column + array.columns]
            for token in range(tokens):
                cycle = max(cycle, read[token] + LOOP)
                read[token] = cycle
                if row == 0:
                    memory[token] = 0
                memory[token, : tile.shape[1]] += x[token, row : row + array.rows] @ tile
                if row + array.rows >= inputs:
                    result[token, column : column + tile.shape[1]] = memory[token, : tile.shape[1]]
                    last_sum = cycle + array.latency
                cycle += 1
            if not hidden:
                loaded = cycle + array.rows
    return result, last_sum + 1


def numbers(tokens: int, inputs: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(tokens)
    return rng.integers(-128, 128, (tokens, inputs)), rng.integers(-127, 128, (inputs, outputs))


@given(
    st.integers(1, 12),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(1, 9),
    st.integers(1, 9),
)
def test_the_simulation_takes_as_long_and_computes_the_product(
    tokens: int, inputs: int, outputs: int, rows: int, columns: int
) -> None:
    array = MatrixArray(rows=rows, columns=columns)
    x, weight = numbers(tokens, inputs, outputs)
    got, cycles = simulated(x, weight, array)
    assert (got == x @ weight).all()
    product = Product(tokens=tokens, inputs=inputs, outputs=outputs)
    # A last pass ends with its last token, not with the cycles that the next tile would still need.
    idle = max(tokens, rows, LOOP) - tokens
    assert cycles == product.cycles(array) - idle


def test_a_simulation_without_hidden_loading_takes_longer() -> None:
    array = MatrixArray(rows=4, columns=4)
    got, cycles = simulated(*numbers(10, 16, 16), array, hidden=False)
    assert cycles > Product(tokens=10, inputs=16, outputs=16).cycles(array)
    assert got.shape == (10, 16)


def deit_tiny() -> list[Product]:
    """Every matrix product of an image."""
    block = [
        linear_product(197, 192, 576),
        score_products(197, 64, 3),
        attend_products(197, 64, 3),
        linear_product(197, 192, 192),
        linear_product(197, 192, 768),
        linear_product(197, 768, 192),
    ]
    return [patch_embed_product(196, 16, 3, 192), *block * 12, linear_product(1, 192, 1000)]


def test_deit_tiny_takes_a_million_cycles_on_a_thousand_multipliers() -> None:
    products, array = deit_tiny(), MatrixArray(rows=32, columns=32)
    macs = sum(product.macs for product in products)
    assert macs == 1_253_683_200
    cycles = back_to_back(products, array)
    # 197 tokens are rounded up in q.k and codes.v alone, and the one token of the head waits for its tiles.
    assert cycles == 1_254_233
    assert Fraction(macs, 1024 * cycles) > Fraction(97, 100)


def test_linear_layers_lose_nothing_but_the_fill() -> None:
    array = MatrixArray()
    product = linear_product(197, 192, 768)
    assert product.cycles(array) == 16 + 12 * 48 * 197 + 8
    assert product.utilisation(array) == Fraction(12 * 48 * 197, 12 * 48 * 197 + 24)
    assert score_products(197, 64, 3).utilisation(array) < Fraction(197, 208)


def test_a_lone_token_waits_for_weights() -> None:
    """A tile is no sooner there than after R cycles; small arrays wait for their sums instead."""
    assert linear_product(1, 64, 64).passes(MatrixArray()) == 4 * 4 * 16
    assert linear_product(1, 2, 2).passes(MatrixArray(rows=1, columns=1)) == 4 * LOOP


def test_products_back_to_back_load_and_fill_once() -> None:
    products, array = deit_tiny(), MatrixArray()
    apart = sum(product.cycles(array) for product in products)
    saved = (len(products) - 1) * (array.rows + array.latency)
    assert back_to_back(products, array) == apart - saved
    assert back_to_back(products[:1], array) == products[0].cycles(array)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"^Rows must be from 1 to 512, not 0$"):
        MatrixArray(rows=0)
    with pytest.raises(ValueError, match=r"^Columns must be from 1 to 512, not 513$"):
        MatrixArray(columns=513)
    with pytest.raises(ValueError, match=r"^Tokens must be from 1 to 1048576, not 0$"):
        Product(tokens=0, inputs=1, outputs=1)
    with pytest.raises(TypeError, match=r"^Count must be an integer, not 1\.5$"):
        Product(tokens=1, inputs=1, outputs=1, count=1.5)  # type: ignore[arg-type]

# SPDX-License-Identifier: Apache-2.0
"""Cycle model of the matrix products: an array of R x C multipliers that holds weights while tokens pass.

    tiles  = ceil(K / R) * ceil(O / C)                   of a product of N tokens, K inputs, O outputs
    pass   = max(N, R, LOOP)                             cycles for which a tile is held
    cycles = R + tiles * pass + latency                  of one product alone
    latency = 1 + 2 + levels(R) + 1                      operand, multiplier, adder tree, accumulator

A *tile* is R inputs by C outputs. While it is held, a token a cycle passes: R of its codes go to all C
columns, each column forms one dot product of length R in a tree of adders, and adds it to the token's partial
sum of that output. Nothing is rounded up but K and O; N may be prime.

What is assumed, and what hardware must therefore do:

1. **Weights are held twice.** The next tile is loaded while the present one works, a row of C weights a
   cycle: R cycles, hidden behind the N of the tokens unless N < R. Only a product's first tile shows.
2. **Partial sums have a memory** of N words of C accumulators, read and written once a cycle at different
   addresses (a simple dual-port memory). A word comes again after the cycles of a pass; LOOP = 3 is what
   reading, adding and writing take, so passes are no shorter.
3. **The sums never wait.** Inputs vary fastest: all ceil(K / R) tiles of C outputs, then those of the next C.
   At the last of them the sums do not return to the memory but go on, C a cycle, to the requantiser (a stream
   unit, whose own latency is its own model's). Tiles of the next C outputs begin in the next cycle, with 0 in
   place of the memory's word; the bias is the requantiser's to add, or the first tile's 0.
4. **Tokens are read ceil(O / C) times**, R codes a cycle, from a memory that holds them all.
5. **Partial tiles cost whole ones.** Unused rows and columns hold 0.
6. Products follow each other without a gap, the next one's first tile loaded meanwhile: in a row of products
   the R and the latency show once (:func:`back_to_back`).

q.k and codes.v are such products for each head: k^T (or v) is the tile, the queries (the rows of codes) pass.
Where A.V runs on shift lanes beside the array, an array of that shape tells its cycles, and how far it is
hidden behind the products of the next head.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from golden.fixedpoint import integer

__all__ = [
    "LOOP",
    "MatrixArray",
    "Product",
    "attend_products",
    "back_to_back",
    "linear_product",
    "patch_embed_product",
    "score_products",
]

LOOP = 3
"""Cycles from reading a partial sum to reading what was added to it."""


@dataclass(frozen=True, kw_only=True)
class MatrixArray:
    """rows R, of a dot product, and columns C: each 1 to 512."""

    rows: int = 16
    columns: int = 16

    def __post_init__(self) -> None:
        integer(self.rows, "Rows", 1, 512)
        integer(self.columns, "Columns", 1, 512)

    @property
    def multipliers(self) -> int:
        """R * C: multiplications a cycle."""
        return self.rows * self.columns

    @property
    def latency(self) -> int:
        """Cycles from a token's codes at the array to its sums behind the accumulator."""
        return 1 + 2 + (self.rows - 1).bit_length() + 1


@dataclass(frozen=True, kw_only=True)
class Product:
    """``count`` matrix products of N tokens by [K inputs, O outputs], each with weights of its own."""

    tokens: int
    inputs: int
    outputs: int
    count: int = 1

    def __post_init__(self) -> None:
        for name, value in (
            ("Tokens", self.tokens),
            ("Inputs", self.inputs),
            ("Outputs", self.outputs),
            ("Count", self.count),
        ):
            integer(value, name, 1, 1 << 20)

    @property
    def macs(self) -> int:
        """Multiplications and additions."""
        return self.tokens * self.inputs * self.outputs * self.count

    def tiles(self, array: MatrixArray) -> int:
        """Tiles of all products."""
        return -(-self.inputs // array.rows) * -(-self.outputs // array.columns) * self.count

    def passes(self, array: MatrixArray) -> int:
        """Cycles for which the tiles are held."""
        return self.tiles(array) * max(self.tokens, array.rows, LOOP)

    def cycles(self, array: MatrixArray) -> int:
        """Cycles from the first weight loaded to the last sum, with nothing before or behind."""
        return array.rows + self.passes(array) + array.latency

    def utilisation(self, array: MatrixArray) -> Fraction:
        """Share of the array's multiplications that are of use, over :meth:`cycles`."""
        return Fraction(self.macs, array.multipliers * self.cycles(array))


def back_to_back(products: Iterable[Product], array: MatrixArray) -> int:
    """Cycles of products that follow each other without a gap.

    >>> square = Product(tokens=197, inputs=192, outputs=192)
    >>> back_to_back([square, square], MatrixArray()), 2 * square.cycles(MatrixArray())
    (56760, 56784)
    """
    return array.rows + sum(product.passes(array) for product in products) + array.latency


def linear_product(tokens: int, in_features: int, out_features: int) -> Product:
    """A linear layer."""
    return Product(tokens=tokens, inputs=in_features, outputs=out_features)


def patch_embed_product(patches: int, patch: int, channels: int, out_features: int) -> Product:
    """The patch embedding: patches are its tokens, their pixels its inputs."""
    return Product(tokens=patches, inputs=channels * patch * patch, outputs=out_features)


def score_products(tokens: int, head_dim: int, heads: int, windows: int = 1) -> Product:
    """q.k of all heads (and windows of ``tokens`` each): queries pass, keys are held."""
    return Product(tokens=tokens, inputs=head_dim, outputs=tokens, count=heads * windows)


def attend_products(tokens: int, head_dim: int, heads: int, windows: int = 1) -> Product:
    """codes.v of all heads (and windows of ``tokens`` each): rows of codes pass, v is held."""
    return Product(tokens=tokens, inputs=tokens, outputs=head_dim, count=heads * windows)

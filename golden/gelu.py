# SPDX-License-Identifier: Apache-2.0
"""GELU, or any function of one code: a table per layer.

    y = TABLE[x]            x signed codes of in_bits, y signed codes of out_bits

The table is made at calibration, from the exact function and both grids (scale and zero point of input
and output), rounded half up: what the hardware looks up is exact to the rounding of its output codes. A
table of 2**in_bits entries starts at the lowest code. Which function it holds is not known here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from golden.arrays import Params, fitting, narrowest
from golden.bounds import Interval
from golden.cycles import RowPipeline, stream_pipeline
from golden.fixedpoint import Ints, integer, integers
from golden.words import column, writes

__all__ = [
    "SPEC_GRID",
    "TABLE",
    "WORD",
    "GeluParams",
    "GeluSpec",
    "corner_rows",
    "gelu",
    "gelu_pipeline",
]

WORD = {"commit": 0}
"""Word addresses of the unit's parameter port (:mod:`golden.words`)."""
TABLE = {"table": 1 << 12}
"""The table's word address for code 0; a code is as many words further as its bits say without a sign."""


@dataclass(frozen=True, kw_only=True)
class GeluSpec:
    """What is fixed when the unit is built: in_bits 4 to 10 and out_bits 3 to 16, both signed."""

    in_bits: int = 8
    out_bits: int = 8

    def __post_init__(self) -> None:
        integer(self.in_bits, "Input width", 4, 10)
        integer(self.out_bits, "Output width", 3, 16)

    @property
    def entries(self) -> int:
        """Entries of the table: 2**in_bits."""
        return 1 << self.in_bits

    @cached_property
    def bounds(self) -> dict[str, Interval]:
        """Interval of every value."""
        return {
            "input": Interval.of_bits(self.in_bits, signed=True),
            "code": Interval.of_bits(self.out_bits, signed=True),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class GeluParams(Params):
    """What changes per layer: ``table``, [2**in_bits] output codes, the lowest input code first."""

    table: npt.NDArray[np.int64]

    def check(self, spec: GeluSpec) -> None:
        """Raise TypeError or ValueError unless the parameters suit ``spec``."""
        values, legal = integers(self.table, "Table"), spec.bounds["code"]
        if values.shape != (spec.entries,):
            raise ValueError(f"Table must have shape {(spec.entries,)!r}, not {values.shape!r}")
        legal.require(values, "Table")

    def words(self, spec: GeluSpec) -> list[tuple[int, int]]:
        """Writes of the parameter port, (word address, unsigned 32-bit value), in order."""
        return writes({}, {TABLE["table"]: _table(spec, self)}, WORD["commit"])

    @classmethod
    def from_words(cls, words: Mapping[int, int], spec: GeluSpec) -> GeluParams:
        """The parameters that :meth:`words` wrote, by address; nothing is checked."""
        by_bits = column(words, TABLE["table"], spec.entries)
        return cls(table=np.roll(by_bits, -spec.bounds["input"].low))


def _table(spec: GeluSpec, params: GeluParams) -> Ints:
    """The table in the order of the codes' own bits: code 0 first, code -1 last."""
    params.check(spec)
    rolled = np.roll(params.table, spec.bounds["input"].low)
    return rolled.astype(narrowest(spec.bounds["code"]))


def gelu(codes: Ints, spec: GeluSpec, params: GeluParams) -> Ints:
    """Output codes of input codes of any shape: the same shape, in the narrowest type.

    TypeError for floats, ValueError for a code out of range.

    >>> relu = GeluParams(table=np.maximum(np.arange(-8, 8), 0))
    >>> gelu(np.array([-8, -1, 0, 7]), GeluSpec(in_bits=4), relu).tolist()
    [0, 0, 0, 7]
    """
    table = params.once(spec, lambda: _table(spec, params))
    x = fitting(codes, "Codes", spec.in_bits)
    # A code's bits read without a sign are its place in the table.
    place = x.view(np.uint8) if x.dtype == np.int8 and spec.in_bits == 8 else x & (spec.entries - 1)
    return table.take(place, mode="wrap")


def gelu_pipeline(spec: GeluSpec, lanes: int) -> RowPipeline:
    """Cycle model: 2 registers, whatever the widths.

    1 the memory that holds the table (the code is its address; each lane has its own, or shares one with
    its neighbour by the second port), 2 a register behind it: block RAMs answer late in the cycle.
    """
    return stream_pipeline(lanes, 2)


SPEC_GRID: tuple[GeluSpec, ...] = (
    GeluSpec(),
    GeluSpec(in_bits=10),
    GeluSpec(in_bits=4, out_bits=4),
    GeluSpec(in_bits=6, out_bits=16),
)
"""Specs that every check of the operator runs on."""


def corner_rows(
    spec: GeluSpec, seed: int = 0
) -> Iterator[tuple[str, npt.NDArray[np.int64], GeluParams]]:
    """Yield (name, codes [n], params): every code in both directions and in random order.

    The tables: random, one that alternates, a step at 0, and the identity as far as codes reach.
    """
    rng = np.random.default_rng(seed)
    code, every = spec.bounds["code"], np.arange(-spec.entries // 2, spec.entries // 2)
    tables = {
        "random": rng.integers(code.low, code.high, spec.entries, endpoint=True),
        "alternating": np.where(every % 2, code.low, code.high),
        "step": np.where(every < 0, code.low, code.high),
        "identity": np.clip(every, code.low, code.high),
    }
    for name, table in tables.items():
        params = GeluParams(table=table)
        yield f"{name}, ascending", every, params
        yield f"{name}, descending", every[::-1], params
        yield f"{name}, random order", rng.permutation(every), params

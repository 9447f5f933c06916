# SPDX-License-Identifier: Apache-2.0
"""Words of a unit's parameter port: scalars from address 0 on, then tables of up to 4096 entries.

The writes of a set of parameters fill the bank that no row uses; the last of them, ``commit``, makes it
current for the rows that follow. A bank keeps what it held: each set is written whole.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from golden.fixedpoint import Ints

__all__ = ["TABLE_WORDS", "column", "signed_word", "writes"]

TABLE_WORDS = 1 << 12
"""Words of a table's address range: the longest row of a unit with parameters per channel."""


def writes(
    scalars: Mapping[int, int], tables: Mapping[int, Ints], commit: int
) -> list[tuple[int, int]]:
    """(word address, unsigned 32-bit value), in order; ``tables`` by the address of entry 0.

    >>> writes({0: -1}, {4096: np.array([7, 8])}, 1)
    [(0, 4294967295), (4096, 7), (4097, 8), (1, 0)]
    """
    for entries in tables.values():
        if len(entries) > TABLE_WORDS:
            raise ValueError(f"A table must have at most {TABLE_WORDS} entries, not {len(entries)!r}")
    pairs = [
        *scalars.items(),
        *((base + at, int(value)) for base, entries in tables.items() for at, value in enumerate(entries)),
        (commit, 0),
    ]
    return [(address, value & 0xFFFFFFFF) for address, value in pairs]


def signed_word(value: int) -> int:
    """The signed number that a word holds."""
    return value - (1 << 32) if value >> 31 else value


def column(words: Mapping[int, int], base: int, count: int) -> npt.NDArray[np.int64]:
    """The first entries of a table, signed; what was never written is 0."""
    return np.array([signed_word(words.get(base + at, 0)) for at in range(count)], dtype=np.int64)

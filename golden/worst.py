# SPDX-License-Identifier: Apache-2.0
"""The worst rows that were ever found: those on which integers are furthest from real numbers.

``worst_rows.json`` beside this module holds, for every spec of the grids, the rows that a search
(``python -m qvit_hw.worst``) ended with, and how wrong each is, in millionths:

    code        most distance of a code from the real number that it rounds, in codes: 500000 is ideal
    sum high    most of the sum of 2**-code over a row (2**(-code/2) for base sqrt 2)
    sum low     least of it

A row is written as runs of equal elements; whole numbers and names are all there is. The rows are part of
what the Verilog is tested with; for a spec of no grid they are cut to what it admits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from golden.bounds import Interval
from golden.layernorm import LayerNormParams, LayerNormSpec
from golden.softmax import ALIGN_STEPS, SoftmaxParams, SoftmaxSpec
from golden.tensorfile import read_json

__all__ = ["AIMS", "SCHEMA", "VECTORS", "WorstRow", "pack_row", "worst_layernorm", "worst_softmax"]

SCHEMA, VERSION = "qvit-hw/worst-rows", 1
VECTORS = Path(__file__).with_name("worst_rows.json")
AIMS = ("code", "sum high", "sum low")
COLUMNS = ("shift", "gain", "offset")


@dataclass(frozen=True, eq=False)
class WorstRow:
    """A row, its parameters, what it is worst in, and how bad that is, in millionths.

    own: it was found for this very spec; of others only the row is of use.
    """

    aim: str
    elements: npt.NDArray[np.int64]
    params: Any
    millionths: int
    own: bool = True


def pack_row(op: str, spec: Any, row: WorstRow) -> dict[str, Any]:
    """The entry of the file for a row; its elements in order, those that are equal as one run.

    No result depends on the order of elements (with their parameters), so that none is lost.
    """
    params, columns = row.params, [row.elements]
    if op == "layernorm":
        columns += [getattr(params, name) for name in COLUMNS]
        fixed = {"zero_point": params.zero_point, "eps": params.eps, "point": params.point}
    else:
        fixed = {"frac": params.frac}
    runs, counts = np.unique(np.stack(columns, axis=1), axis=0, return_counts=True)
    return {
        "op": op,
        "aim": row.aim,
        "spec": asdict(spec),
        **{name: int(value) for name, value in fixed.items()},
        "runs": [[*map(int, run), int(count)] for run, count in zip(runs, counts, strict=True)],
        "millionths": row.millionths,
    }


@cache
def _entries(op: str) -> tuple[Mapping[str, Any], ...]:
    content = read_json(VECTORS.read_bytes())
    if content["schema"] != SCHEMA or content["version"] != VERSION:
        raise ValueError(f"Worst rows must be of schema {SCHEMA!r}, version {VERSION}")
    return tuple(entry for entry in content["rows"] if entry["op"] == op)


def _columns(entry: Mapping[str, Any]) -> list[npt.NDArray[np.int64]]:
    """The columns of an entry's runs, element by element."""
    runs = np.array(entry["runs"], dtype=np.int64)
    return [np.repeat(column, runs[:, -1]) for column in runs[:, :-1].T]


def worst_softmax(spec: SoftmaxSpec) -> list[WorstRow]:
    """The rows for a spec: its own, those of other specs as far as they suit it."""
    rows, told = [], asdict(spec)
    lowest = max(0, spec.frac_bits - ALIGN_STEPS + 1)
    for entry in _entries("softmax"):
        (scores,) = _columns(entry)
        # From the highest down: so the maximum stays, whatever is cut.
        scores = _within(spec.bounds["score"], np.sort(scores)[::-1][: spec.max_tokens])
        params = SoftmaxParams(frac=min(max(entry["frac"], lowest), spec.frac_bits))
        rows.append(WorstRow(entry["aim"], scores, params, entry["millionths"], entry["spec"] == told))
    return rows


def worst_layernorm(spec: LayerNormSpec) -> list[WorstRow]:
    """The rows for a spec: its own, those of other specs as far as they suit it."""
    rows, told = [], asdict(spec)
    codes = Interval.of_bits(spec.in_bits, signed=True)
    legal = {"shift": Interval(0, spec.max_shift), "gain": spec.gain_range, "offset": spec.bounds["offset"]}
    for entry in _entries("layernorm"):
        own = entry["spec"] == told
        q, *columns = (column[: spec.max_channels] for column in _columns(entry))
        point = min(entry["point"], spec.max_point)
        params = LayerNormParams(
            zero_point=min(max(entry["zero_point"], codes.low), codes.high),
            eps=min(max(entry["eps"], spec.min_eps(point)), (1 << spec.eps_bits) - 1),
            point=point,
            **{name: _within(legal[name], column) for name, column in zip(COLUMNS, columns, strict=True)},
        )
        rows.append(WorstRow(entry["aim"], _within(codes, q), params, entry["millionths"], own))
    return rows


def _within(legal: Interval, values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.clip(values, legal.low, legal.high)

# SPDX-License-Identifier: Apache-2.0
"""Functional coverage: which numeric corners, stalls, lengths and changes of parameters rows have met.

The bins of an operator follow from its spec alone; what a spec makes impossible has no bin. Rows are
sampled from the cases that a simulation has run, their intermediate values taken from golden's trace.
Coverpoints and their crossing are counted by cocotb-coverage.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
from cocotb_coverage.coverage import CoverCross, CoverPoint, coverage_db

from sim.corners import BINS, FEATURES
from sim.job import NO_STALL, Case
from sim.operators import Operator, Row
from sim.scenarios import length_classes

__all__ = ["Point", "Sample", "count", "measure", "rows_of"]

_ALONE = Lock()
"""The library keeps the points of the whole process in one table."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """A row of a case: what it holds, how long the one sent was, and what went on around it."""

    row: Row
    sent: int
    stalled_in: bool
    stalled_out: bool
    changed: bool


@dataclass(frozen=True)
class Point:
    """A coverpoint or crossing: hits of each of its bins."""

    name: str
    bins: dict[str, int]

    @property
    def missed(self) -> list[str]:
        """Bins that no row has hit."""
        return [name for name, hits in self.bins.items() if not hits]


def rows_of(case: Case, op: Operator) -> Iterator[Sample]:
    """The rows of a case with the parameters that they were computed with."""
    words: dict[int, int] = {}
    changes = dict(case.params)
    known: dict[int, Any] = {}
    for index, sent in enumerate(case.lengths.tolist()):
        if index in changes:
            words |= dict(changes[index])
            known = {}
        place = case.row(index)
        count = place.stop - place.start
        if count not in known:
            known[count] = op.params_of(words, count)
        start = int(case.lengths[:index].sum())
        elements = case.elements[start : start + count]
        mask = None if case.mask is None else case.mask[start : start + count]
        stalls = case.stall_in != NO_STALL, case.stall_out != NO_STALL or case.ready_late
        yield Sample(Row(elements, known[count], mask), sent, *stalls, index > 0 and index in changes)


def count(
    top: str,
    groups: Mapping[str, Sequence[str]],
    crossed: Mapping[str, Sequence[Any]],
    samples: Iterable[Mapping[str, Any]],
) -> list[Point]:
    """Hits of every bin of coverpoints, and of the crossing of ``crossed``.

    groups: bins of which a sample hits any number (a set).  crossed: values, of which it has one.  A sample
    that says nothing about a coverpoint hits none of its bins.
    """
    with _ALONE:
        return _counted(top, groups, crossed, samples)


def _counted(
    top: str,
    groups: Mapping[str, Sequence[str]],
    crossed: Mapping[str, Sequence[Any]],
    samples: Iterable[Mapping[str, Any]],
) -> list[Point]:
    """:func:`count`, while nobody else counts."""
    coverage_db.clear()

    def sample(features: Mapping[str, Any]) -> None:
        """What the coverpoints watch."""

    points = [
        CoverPoint(
            f"{top}.{name}",
            xf=lambda features, name=name: features.get(name, set()),
            bins=list(bins),
            rel=lambda seen, wanted: wanted in seen,
            inj=False,
        )
        for name, bins in groups.items()
    ]
    points += [
        CoverPoint(f"{top}.{name}", xf=lambda features, name=name: features.get(name), bins=list(values))
        for name, values in crossed.items()
    ]
    names = [f"{top}.{name}" for name in (*groups, *crossed)]
    watched: Any = sample
    if crossed:  # what is innermost sees what the points have hit
        names.append(f"{top}.{' x '.join(crossed)}")
        watched = CoverCross(names[-1], items=[f"{top}.{name}" for name in crossed])(watched)
    for point in points:
        watched = point(watched)
    for features in samples:
        watched(features)
    return [_point(name.partition(".")[2], name) for name in names]


def measure(op_name: str, op: Operator, lanes: int, cases: Sequence[Case]) -> list[Point]:
    """Hits of every bin of an operator, sampled from all rows of these cases."""
    classes = length_classes(lanes, op.longest)
    crossed: dict[str, list[Any]] = {
        "stall in": [False, True],
        "stall out": [False, True],
        "length": list(classes),
        "params change": [False, True],
    }

    def features(each: Sample) -> dict[str, Any]:
        length = next((n for n, (low, high) in classes.items() if low <= each.sent <= high), "cut")
        return FEATURES[op_name](op.spec, each.row, op.trace(each.row)) | {
            "length": length,
            "stall in": each.stalled_in,
            "stall out": each.stalled_out,
            "params change": each.changed,
        }

    samples = (features(each) for case in cases for each in rows_of(case, op))
    return count(op_name, BINS[op_name](op.spec), crossed, samples)


def _point(name: str, full: str) -> Point:
    """A coverpoint's bins as text."""
    hits = coverage_db[full].detailed_coverage
    return Point(name, {_text(each): int(count) for each, count in hits.items()})


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(_text(each) for each in value)
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)

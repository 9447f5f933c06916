# SPDX-License-Identifier: Apache-2.0
"""The numeric corners of codes and v: the bins that a spec makes possible, and those that a row hits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from golden.attention import SQRT2, SQRT2_BITS, AttendSpec, attend_trace
from golden.requant import MULTIPLIER, SHIFT
from sim.corners import Bins, Hits, ends, rounded
from sim.coverage import Point, count
from sim.head_cases import length_classes, root_ties
from sim.heads import PORTS, Case, Head

__all__ = ["measure_heads"]

BOTH = ["lowest", "highest"]
INPUTS = PORTS[:3]


def _bins(spec: AttendSpec) -> Bins:
    """Bins by coverpoint."""
    sums = ("even", "odd", "acc") if spec.per_octave == 2 else ("acc",)
    found = {
        "code": [str(code) for code in range(spec.softmax.last_code + 1)],
        "v": BOTH,
        "row": ["all last", "all 0", "codes of either parity", "as long as v", "shorter than v"],
        **(dict.fromkeys(sums, BOTH) if spec.codes == "any" else {}),
        "saturation": ["high", "low", "inside"],
        "tie": ["positive", "negative"],
        "multiplier": BOTH,
        "shift": BOTH,
        "zero point": BOTH,
        "set": ["words without a meaning", "ended beside the row before"],
    }
    return found | ({"tie of the root": ["positive", "negative"]} if root_ties(spec) else {})


def _hits(spec: AttendSpec, row: Any, head: Head) -> Hits:
    """Bins that a row hits."""
    params, bounds, v = head.params, spec.bounds, head.v[: len(row)]
    trace = attend_trace(row[None, None], v[None], spec, params)
    product = trace.acc * int(params.multiplier[0])
    saturation, tie = rounded(product, int(params.shift[0]), bounds["code"], params.zero_point)
    _, root = rounded(trace.odd * SQRT2, SQRT2_BITS, bounds["acc"])
    kinds = {
        "all last": bool((row == spec.softmax.last_code).all()),
        "all 0": bool((row == 0).all()),
        "codes of either parity": len(set((row % 2).tolist())) == 2,
        "as long as v": len(row) == len(head.v),
        "shorter than v": len(row) < len(head.v),
    }
    return {
        "code": {str(code) for code in set(row.tolist())},
        "v": ends(v, bounds["value"]),
        "row": {name for name, holds in kinds.items() if holds},
        **{name: ends(getattr(trace, name), bounds[name]) for name in ("even", "odd", "acc")},
        "saturation": saturation,
        "tie": tie,
        "tie of the root": root,
        "multiplier": ends(params.multiplier, MULTIPLIER),
        "shift": ends(params.shift, SHIFT),
        "zero point": ends(params.zero_point, bounds["code"]),
    }


def measure_heads(
    name: str, spec: AttendSpec, cases: Sequence[Case], refused: Sequence[Mapping[str, int]]
) -> list[Point]:
    """Hits of every bin, sampled from all rows of these cases.

    refused: of each case, by port, how often a word had to wait.
    """
    groups: Bins = _bins(spec)
    classes = length_classes(spec)
    groups["waits"] = list(PORTS)
    crossed: dict[str, list[Any]] = {
        "stall in": [False, True],
        "stall out": [False, True],
        "length": list(classes),
        "new head": [False, True],
    }

    def samples() -> Iterator[dict[str, Any]]:
        for case, waited in zip(cases, refused, strict=True):
            waits = {port for port, words in waited.items() if words}
            told = {"words without a meaning": case.strays, "ended beside the row before": case.late}
            yield {"waits": waits, "set": {name for name, holds in told.items() if holds}}
            for head in case.heads:
                for index, row in enumerate(head.rows):
                    yield {
                        **_hits(spec, row, head),
                        "stall in": any(port in case.stalls for port in INPUTS),
                        "stall out": "o" in case.stalls or case.held > 0,
                        "length": next(n for n, (a, b) in classes.items() if a <= len(row) <= b),
                        "new head": index == 0,
                    }

    return count(name, groups, crossed, samples())

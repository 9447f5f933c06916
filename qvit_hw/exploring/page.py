# SPDX-License-Identifier: Apache-2.0
"""The page of the trade-off: a plot to point at, filters, and for every point the commands that build it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from plotly.offline import get_plotlyjs

from qvit_hw.exploring.measured import objectives
from qvit_hw.exploring.space import SPACE, Origin, commands
from qvit_hw.exploring.study import Point, front
from qvit_hw.report_page.frame import render

__all__ = ["document", "tradeoff_page"]

_AXES = {
    "lut": "LUT",
    "cycles": "cycles an image",
    "microseconds": "µs an image",
    "kilobytes": "weights, kB",
    "dsp": "DSP",
    "sqnr_db": "SQNR, dB",
    "percent": "top-1, %",
}
_FILTERS = ("affine", "base", "lanes", "preset")


def document(
    found: Sequence[Point], setup: Mapping[str, Any], origin: Origin, frequency: bool
) -> dict[str, Any]:
    """Everything the page tells, for machines."""
    wanted = objectives(frequency)
    best = front(found, list(wanted.values()))
    return {
        "setup": dict(setup),
        "objectives": dict(wanted),
        "points": [
            {
                "number": point.number,
                "front": point.number in best,
                "choice": dict(point.choice),
                **point.measured,
                "percent": None if point.measured["top1"] is None else 100 * point.measured["top1"],
                "kilobytes": point.measured["weight_bits"] / 8000,
                "commands": commands(point.choice, origin),
            }
            for point in found
        ],
    }


def tradeoff_page(found: Mapping[str, Any]) -> str:
    """Return the page of a :func:`document`."""
    points = found["points"]
    best = [point for point in points if point["front"]]
    axes = {name: told for name, told in _AXES.items() if any(p[name] is not None for p in points)}
    choices = {
        name: [value for value in SPACE[name] if any(p["choice"][name] == value for p in points)]
        for name in _FILTERS
    }
    return render(
        "tradeoff.html.j2",
        kind="accuracy against hardware",
        number=str(len(best)),
        of=f"of {len(points)} points are worth building",
        css=("tradeoff.css",),
        js=("tradeoff.js",),
        setup=found["setup"],
        points=points,
        axes=axes,
        boxes={name: values for name, values in choices.items() if values},
        names=list(SPACE),
        most={name: _tens(max((p[name] for p in points), default=0)) for name in ("lut", "cycles")},
        least=min((p["sqnr_db"] for p in points), default=0.0),
        top=max((p["sqnr_db"] for p in points), default=0.0),
        data=_script({"points": points, "axes": axes}),
        plotly=get_plotlyjs() if points else "",
    )


def _tens(value: float) -> int:
    """The next multiple of ten: a slider stops nowhere else."""
    return 10 * math.ceil(value / 10)


def _script(content: Mapping[str, Any]) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(content, allow_nan=False).replace("<", "\\u003c")

# SPDX-License-Identifier: Apache-2.0
"""Charts along the depth of a network, as SVG that follows the page's colours.

Points carry ``data-t``, what the page says of them under the pointer; a series has the colour ``s0``, ``s1``,
... of the style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Band", "Point", "depth_chart", "disagreement_chart"]

WIDTH, LEFT, RIGHT, BOTTOM = 1150.0, 46.0, 8.0, 30.0
DECADES = 6
"""Disagreement is drawn from one to one in a million; none at all is drawn below that."""


@dataclass(frozen=True)
class Point:
    """place: number of the tensor.  value: None is not drawn.  series: number of its colour.  line: points
    of the same are joined.
    """

    place: int
    value: float | None
    series: int
    text: str
    line: str = ""


@dataclass(frozen=True)
class Band:
    """A part of the network: its tensors from ``first`` up to ``last``."""

    label: str
    first: int
    last: int


class _Frame:
    """Where places and values are drawn."""

    def __init__(self, count: int, height: float, low: float, high: float) -> None:
        self.step = (WIDTH - LEFT - RIGHT) / max(count, 1)
        self.height, self.low, self.high = height, low, high
        self.floor = height - BOTTOM

    def x(self, place: float) -> float:
        return LEFT + (place + 0.5) * self.step

    def y(self, value: float) -> float:
        return self.floor - (value - self.low) / (self.high - self.low) * (self.floor - 8)

    def bands(self, bands: Sequence[Band]) -> Iterator[str]:
        free = 0.0
        for number, band in enumerate(bands):
            left, right = self.x(band.first - 0.5), self.x(band.last + 0.5)
            if number % 2:
                yield (
                    f'<rect class="band" x="{left:.1f}" y="0" width="{right - left:.1f}" '
                    f'height="{self.floor:.1f}"/>'
                )
            middle, room = (left + right) / 2, 4.0 * len(band.label) + 4
            if middle - room >= free:
                free = middle + room
                yield (
                    f'<text class="part" x="{middle:.1f}" y="{self.floor + 17:.1f}">'
                    f"{escape(band.label)}</text>"
                )

    def tick(self, value: float, label: str, kind: str = "rule") -> str:
        y = self.y(value)
        return (
            f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{LEFT - 7}" y="{y + 4:.1f}">{escape(label)}</text>'
        )

    def circle(self, point: Point, value: float, kind: str = "pt", radius: float = 3.2) -> str:
        return (
            f'<circle class="{kind} s{point.series}" cx="{self.x(point.place):.1f}" '
            f'cy="{self.y(value):.1f}" r="{radius}" data-t="{escape(point.text)}"/>'
        )

    def svg(self, label: str, parts: Sequence[str]) -> str:
        return (
            f'<svg class="chart" viewBox="0 0 {WIDTH:.0f} {self.height:.0f}" role="img" '
            f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
        )


def depth_chart(points: Sequence[Point], bands: Sequence[Band], unit: str = "dB") -> str:
    """Values along the depth; a line is broken where a value is None."""
    known = [point.value for point in points if point.value is not None]
    low = 10 * math.floor(min(known, default=0.0) / 10)
    high = max(10 * math.ceil(max(known, default=10.0) / 10), low + 10)
    frame = _Frame(1 + max((point.place for point in points), default=0), 320, low, high)
    step = 10 if high - low <= 80 else 20
    parts = [*frame.bands(bands)]
    parts += [
        frame.tick(value, f"{value} {unit}" if value == high else str(value).replace("-", "−"))
        for value in range(low, high + 1, step)
    ]
    for series in sorted({point.series for point in points}):
        own = [point for point in points if point.series == series]
        parts.append(f'<g class="series s{series}">')
        for line in dict.fromkeys(point.line for point in own):
            parts += _runs(frame, [point for point in own if point.line == line])
        parts += [frame.circle(point, point.value) for point in own if point.value is not None]
        parts.append("</g>")
    return frame.svg(f"{unit} of every tensor along the depth of the network", parts)


def _runs(frame: _Frame, points: Sequence[Point]) -> Iterator[str]:
    run: list[str] = []
    for point in [*points, Point(0, None, 0, "")]:
        if point.value is not None:
            run.append(f"{frame.x(point.place):.1f},{frame.y(point.value):.1f}")
            continue
        if len(run) > 1:
            yield f'<polyline class="ln" points="{" ".join(run)}"/>'
        run = []


def disagreement_chart(
    end_to_end: Sequence[Point], operators: Sequence[Point], bands: Sequence[Band], bar: float
) -> str:
    """Shares of differing codes on a logarithmic scale: dots, and rings for the operators alone."""
    frame = _Frame(len(end_to_end), 240, -DECADES - 1, 0)
    parts = [*frame.bands(bands)]
    labels = {0: "100 %", -1: "10 %", -2: "1 %", -3: "0.1 %", -4: "0.01 %", -6: "1 ppm"}
    parts += [frame.tick(value, label) for value, label in labels.items()]
    parts += [frame.tick(-DECADES - 1, "none"), frame.tick(math.log10(bar), "", "limit")]
    for kind, points, radius in (("ring", operators, 5.0), ("pt", end_to_end, 3.2)):
        some = [point for point in points if point.value]
        parts += [frame.circle(point, _decade(point.value), kind, radius) for point in some]
    nothing = [point for point in end_to_end if not point.value]
    parts += [frame.circle(point, _decade(0), radius=1.6) for point in nothing]
    return frame.svg("Share of differing codes of every tensor", parts)


def _decade(share: float | None) -> float:
    """Logarithm of a share, within the chart; nothing at all is on its floor."""
    return max(-float(DECADES), math.log10(share)) if share else -DECADES - 1.0

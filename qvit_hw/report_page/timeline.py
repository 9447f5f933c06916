# SPDX-License-Identifier: Apache-2.0
"""When the units of the accelerator work, as an SVG that follows the page's colours.

A lane for each unit, cycles to the right, the network's layers along the top. Bars carry ``data-t``, what the
page says of them under the pointer. The names of the lanes are a picture of their own, so that they stay
where they are when the lanes are scrolled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["LANES", "Bar", "Stretch", "lane_names", "unit_timeline"]

LANES = {"array": "array", "layernorm": "LayerNorm", "softmax": "softmax", "stream": "stream"}
"""Units from the top down, and what a person calls them."""
WIDTH, NAMES = 1100, 84
LAYER_WIDTH = 44
"""Pixels for each layer, at least: long programs are wide, and scrolled."""
TOP, LANE, GAP, BOTTOM = 40, 28, 8, 26
HEIGHT = TOP + len(LANES) * (LANE + GAP) + BOTTOM
THINNEST, SEAM = 1.2, 0.7
"""Pixels: no bar may vanish; what one is narrower than it lasts, so that neighbours can be told apart."""
CHARACTER = 6.2
TICKS = 10


@dataclass(frozen=True)
class Bar:
    """A unit works from cycle ``begin`` to ``end``; what for."""

    unit: str
    begin: int
    end: int
    text: str


@dataclass(frozen=True)
class Stretch:
    """A layer from cycle ``begin`` to ``end``, and the part of the network that it belongs to."""

    label: str
    part: str
    begin: int
    end: int


def lane_names() -> str:
    """The names, as high as :func:`unit_timeline`."""
    texts = "".join(
        f'<text x="{NAMES - 10}" y="{_top(unit) + LANE / 2 + 4:g}">{name}</text>'
        for unit, name in LANES.items()
    )
    layers = "".join(
        f'<text x="{NAMES - 10}" y="{y}">{name}</text>' for name, y in (("part", 15), ("layer", 33))
    )
    return f'<svg class="lanes" width="{NAMES}" height="{HEIGHT}" aria-hidden="true">{layers}{texts}</svg>'


def unit_timeline(bars: Sequence[Bar], layers: Sequence[Stretch], cycles: int) -> str:
    """All bars of a run of so many cycles."""
    width = max(WIDTH, LAYER_WIDTH * len(layers))
    scale = width / max(cycles, 1)
    drawn = "".join(
        (*_parts(layers, scale), *_layers(layers, scale), *_ticks(cycles, scale), *_bars(bars, scale))
    )
    return (
        f'<svg class="lanes" width="{width}" height="{HEIGHT}" viewBox="0 0 {width} {HEIGHT}" role="img" '
        f'aria-label="When each unit works, in cycles">{drawn}</svg>'
    )


def _top(unit: str) -> int:
    return TOP + list(LANES).index(unit) * (LANE + GAP) + GAP // 2


def _parts(layers: Sequence[Stretch], scale: float) -> Iterator[str]:
    """Every other part is shaded; its name stands above if there is room."""
    parts: list[Stretch] = []
    for layer in layers:
        if parts and parts[-1].part == layer.part:
            parts[-1] = Stretch("", layer.part, parts[-1].begin, layer.end)
        else:
            parts.append(Stretch("", layer.part, layer.begin, layer.end))
    for number, part in enumerate(parts):
        left, wide = part.begin * scale, (part.end - part.begin) * scale
        if number % 2:
            yield (
                f'<rect class="band" x="{left:.1f}" y="0" width="{wide:.1f}" height="{HEIGHT - BOTTOM}"/>'
            )
        yield from _label(part.part, left, wide, 15, "part")


def _layers(layers: Sequence[Stretch], scale: float) -> Iterator[str]:
    for layer in layers:
        left, wide = layer.begin * scale, (layer.end - layer.begin) * scale
        if left:
            yield f'<line x1="{left:.1f}" x2="{left:.1f}" y1="22" y2="{HEIGHT - BOTTOM}"/>'
        yield from _label(layer.label, left, wide, 33, "layer")


def _label(text: str, left: float, wide: float, y: int, kind: str) -> Iterator[str]:
    if len(text) * CHARACTER <= wide:
        yield f'<text class="{kind}" x="{left + wide / 2:.1f}" y="{y}">{escape(text)}</text>'


def _ticks(cycles: int, scale: float) -> Iterator[str]:
    step = next(
        base * 10**power
        for power in range(20)
        for base in (1, 2, 5)
        if base * 10**power * TICKS >= cycles
    )
    for value in range(0, cycles + 1, step):
        x = value * scale
        text = f"{value:,}"
        side = "" if value else ' class="first"'
        if cycles * scale - x > CHARACTER * len(text) / 2:
            yield f'<text{side} x="{x:.1f}" y="{HEIGHT - 8}">{text}</text>'


def _bars(bars: Sequence[Bar], scale: float) -> Iterator[str]:
    for unit in LANES:
        yield f'<g class="{unit}">'
        for bar in bars:
            if bar.unit == unit:
                wide = max((bar.end - bar.begin) * scale - SEAM, THINNEST)
                yield (
                    f'<rect x="{bar.begin * scale:.1f}" y="{_top(unit)}" width="{wide:.1f}" '
                    f'height="{LANE}" data-t="{escape(bar.text)}"/>'
                )
        yield "</g>"

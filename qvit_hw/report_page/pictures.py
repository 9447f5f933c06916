# SPDX-License-Identifier: Apache-2.0
"""Pictures of the report: histograms as SVG that follows the page's colours, maps as palette PNGs.

Nothing here decides anything: a picture shows what the numbers beside it say.
"""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = [
    "HISTOGRAM_REACH",
    "PTF_COLOURS",
    "attention_map",
    "error_histogram",
    "png",
    "ptf_strip",
    "ramp_css",
    "thumbnail",
]

HISTOGRAM_REACH = 1.2
"""Codes to either side of zero that a histogram shows; what lies beyond is in its last bins."""
_BINS = 48
_RAMP = np.array(
    [
        (13, 12, 38),
        (43, 20, 86),
        (86, 28, 109),
        (134, 38, 104),
        (181, 54, 84),
        (221, 81, 58),
        (245, 125, 21),
        (251, 180, 60),
        (252, 240, 164),
    ],
    dtype=float,
)
"""Anchors of the attention maps, dark to bright with even steps of lightness."""
_WRONG = (0, 229, 255)
"""An element that differs: a colour that the ramp does not have."""
_ABSENT = (128, 128, 128)
_LEVELS = 240
_THUMBNAIL = 112
PTF_COLOURS = (
    (226, 232, 240),
    (125, 185, 222),
    (47, 124, 180),
    (16, 58, 110),
    (120, 60, 150),
    (170, 50, 120),
    (205, 60, 70),
    (240, 150, 40),
)
"""One colour for each PTF shift, 0 to 7."""


def png(indices: npt.NDArray[np.uint8], palette: npt.NDArray[np.uint8]) -> str:
    """A palette image as a data URI: uint8 ``indices`` [height, width], ``palette`` [n, 3]."""
    height, width = indices.shape
    rows = np.zeros((height, width + 1), dtype=np.uint8)  # column 0 is the filter type: none
    rows[:, 1:] = indices

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    data = b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"PLTE", palette.astype(np.uint8).tobytes()),
            chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)),
            chunk(b"IEND", b""),
        )
    )
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")


def _ramp(levels: int) -> npt.NDArray[np.uint8]:
    position = np.linspace(0, len(_RAMP) - 1, levels)
    anchors = np.arange(len(_RAMP))
    return np.stack([np.interp(position, anchors, _RAMP[:, i]) for i in range(3)], 1).astype(
        np.uint8
    )


def ramp_css() -> str:
    """The attention ramp as a CSS gradient, bright first."""
    return ", ".join(f"rgb({r:.0f} {g:.0f} {b:.0f})" for r, g, b in _RAMP[::-1])


def attention_map(
    codes: npt.NDArray[np.floating | np.integer],
    low: int,
    high: int,
    *,
    present: npt.NDArray[np.bool_] | None = None,
    wrong: npt.NDArray[np.bool_] | None = None,
) -> str:
    """Log2 codes [height, width] as a PNG: code ``low`` is bright, ``high`` is dark.

    Elements that are not ``present`` are grey, ``wrong`` ones have a colour of their own.
    """
    clipped = np.clip(np.nan_to_num(codes.astype(float), posinf=high), low, high)
    level = np.rint((high - clipped) / max(high - low, 1) * (_LEVELS - 1)).astype(np.uint8)
    if present is not None:
        level[~present] = _LEVELS + 1
    if wrong is not None:
        level[wrong] = _LEVELS
    palette = np.vstack([_ramp(_LEVELS), np.array([_WRONG, _ABSENT], dtype=np.uint8)])
    return png(level, palette)


def ptf_strip(shifts: npt.NDArray[np.integer]) -> str:
    """Shifts of one layer, a pixel a channel, as a PNG one pixel high."""
    palette = np.array(PTF_COLOURS, dtype=np.uint8)
    return png(np.clip(shifts, 0, len(palette) - 1).astype(np.uint8)[None, :], palette)


def thumbnail(pixels: npt.NDArray[np.uint8]) -> str:
    """An image [1 or 3, H, W] as a data URI: a large one is made smaller, a small one stays sharp."""
    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    small = max(picture.size) <= _THUMBNAIL
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    file, kind = io.BytesIO(), "png" if small else "jpeg"
    picture.save(file, kind, **({} if small else {"quality": 85}))
    return f"data:image/{kind};base64," + base64.b64encode(file.getvalue()).decode("ascii")


def error_histogram(
    difference: npt.NDArray[np.floating], *, width: int = 200, height: int = 84
) -> str:
    """``difference`` (golden minus float, in codes) as an SVG with a logarithmic height.

    Inside half a code the golden code is the float's rounded code; bars outside are coloured apart.
    """
    edges = np.linspace(-HISTOGRAM_REACH, HISTOGRAM_REACH, _BINS + 1)
    inner = np.clip(difference, edges[0], edges[-1])
    counts, _ = np.histogram(inner, edges)
    floor = 14
    drawn = _log_heights(counts, height - floor - 4)
    step = width / _BINS
    bars: list[str] = []
    for index, bar in enumerate(drawn):
        if bar <= 0:
            continue
        centre = (edges[index] + edges[index + 1]) / 2
        kind = "in" if abs(centre) < 0.5 else "out"
        bars.append(
            f'<rect class="{kind}" x="{index * step:.2f}" y="{height - floor - bar:.1f}" '
            f'width="{step * 0.86:.2f}" height="{bar:.1f}"/>'
        )
    left, right = (width * (HISTOGRAM_REACH + x) / (2 * HISTOGRAM_REACH) for x in (-0.5, 0.5))
    marks = "".join(
        f'<text x="{width * (HISTOGRAM_REACH + x) / (2 * HISTOGRAM_REACH):.1f}" y="{height - 2}">'
        f"{text}</text>"
        for x, text in ((-1, "−1"), (-0.5, "−½"), (0, "0"), (0.5, "½"), (1, "1"))
    )
    return (
        f'<svg class="histogram" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="Histogram of golden minus float in codes">'
        f'<rect class="band" x="{left:.1f}" y="0" width="{right - left:.1f}" height="{height - floor}"/>'
        f"{''.join(bars)}"
        f'<line class="axis" x1="0" x2="{width}" y1="{height - floor}" y2="{height - floor}"/>'
        f"{marks}</svg>"
    )


def _log_heights(counts: Sequence[int] | npt.NDArray[np.integer], full: int) -> list[float]:
    """Bar heights: the tallest is ``full``, one in 100,000 of it just shows."""
    array = np.asarray(counts, dtype=float)
    top = array.max() if array.size else 0.0
    if top <= 0:
        return [0.0] * len(array)
    decades = 5.0
    with np.errstate(divide="ignore"):
        share = np.log10(array / top)
    return [float(max(0.0, (decades + value) / decades * full)) for value in share]

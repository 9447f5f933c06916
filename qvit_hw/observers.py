# SPDX-License-Identifier: Apache-2.0
"""Observers: what range of values a tensor takes, and which part of it deserves codes.

All follow one protocol: ``update`` with tensor after tensor, then ``range()`` gives ``(low, high)``.
With ``axis=None`` both are 0-d arrays for the whole tensor; with an axis they have one entry per
index along it (a channel, a head). Nothing is kept but extremes and, where an observer needs the
distribution, a histogram whose bins double in width whenever the range outgrows them: the result
depends neither on how many images there are in memory nor on the machine.

The three that clip search on the histogram. ``OMSE`` and ``KL`` try the shrink factors 1.00, 0.99, ...
0.11 of (low, high), as FQ-ViT (arXiv 2111.13824) does.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from qvit_hw.errors import UserError

__all__ = [
    "OBSERVERS",
    "EmaObserver",
    "Histogram",
    "KlObserver",
    "MinMaxObserver",
    "Observer",
    "OmseObserver",
    "PercentileObserver",
    "make_observer",
]

Floats = npt.NDArray[np.float64]
SHRINK = np.arange(100, 10, -1) / 100


class Observer(Protocol):
    """What calibration asks of an observer."""

    def update(self, values: Any) -> None:
        """Take in another tensor; raise UserError if it is not finite."""

    def range(self) -> tuple[Floats, Floats]:
        """Return (low, high); raise UserError for a constant tensor."""


class MinMaxObserver:
    """The smallest and the largest value ever seen."""

    def __init__(self, name: str, axis: int | None = None) -> None:
        self.name, self.axis = name, axis
        self._low: Floats | None = None
        self._high: Floats | None = None

    def update(self, values: Any) -> None:
        """Take in another tensor; raise UserError if it is not finite."""
        self._take(self._groups(values))

    def range(self) -> tuple[Floats, Floats]:
        """Return (low, high); raise UserError for a constant tensor."""
        low, high = self.extremes()
        if float(low.min()) == float(high.max()):
            value = float(low.min())
            raise UserError(
                f"Activations of {self.name!r} must vary over the calibration images, "
                f"not be {value:g} everywhere."
            )
        return self._search(low, high)

    def extremes(self) -> tuple[Floats, Floats]:
        """Return the (low, high) seen, before any clipping; raise UserError if nothing was seen."""
        if self._low is None or self._high is None:
            raise UserError(f"Activations of {self.name!r} must be observed on at least one image.")
        return self._low, self._high

    def _groups(self, values: Any) -> npt.NDArray[Any]:
        """Return the values as [groups, n], finite."""
        array = np.asarray(values)
        if not array.size:
            raise ValueError(f"Tensor of {self.name!r} must not be empty")
        if not np.isfinite([array.min(), array.max()]).all():  # a NaN makes both NaN
            kind = "NaN" if np.isnan(array).any() else "infinite"
            raise UserError(f"Activations of {self.name!r} must be finite, not {kind}.")
        if self.axis is None:
            return array.reshape(1, -1)
        return np.moveaxis(array, self.axis, 0).reshape(array.shape[self.axis], -1)

    def _shape(self, per_group: npt.NDArray[Any]) -> Floats:
        shaped = per_group if self.axis is not None else per_group.reshape(())
        return shaped.astype(np.float64)

    def _take(self, groups: npt.NDArray[Any]) -> None:
        low, high = self._shape(groups.min(axis=1)), self._shape(groups.max(axis=1))
        self._low = low if self._low is None else np.minimum(self._low, low)
        self._high = high if self._high is None else np.maximum(self._high, high)

    def _search(self, low: Floats, high: Floats) -> tuple[Floats, Floats]:
        """Return the part of (low, high) that gets codes."""
        return low, high


class EmaObserver(MinMaxObserver):
    """Exponential moving average of each update's extremes: ``v += momentum * (new - v)``."""

    def __init__(self, name: str, axis: int | None = None, momentum: float = 0.1) -> None:
        super().__init__(name, axis)
        self.momentum = momentum

    def _take(self, groups: npt.NDArray[Any]) -> None:
        low, high = self._shape(groups.min(axis=1)), self._shape(groups.max(axis=1))
        self._low = low if self._low is None else self._low + self.momentum * (low - self._low)
        self._high = (
            high if self._high is None else self._high + self.momentum * (high - self._high)
        )


class Histogram:
    """Counts of values in ``2 * half`` bins around zero whose width is a power of two.

    A value outside doubles the width: neighbouring bins merge, and no count is ever moved to a bin
    that does not contain it.
    """

    def __init__(self, half: int = 4096) -> None:
        if half < 2 or half % 2:
            raise ValueError(f"Half must be an even number of bins, not {half!r}")
        self.half = half
        self.width = 0.0
        self.counts = np.zeros(2 * half)

    def update(self, values: npt.NDArray[Any]) -> None:
        """Count these values."""
        reach = float(np.abs(values).max())
        if reach and not self.width:
            self.width = 2.0 ** math.ceil(math.log2(reach / self.half))
        while reach > self.half * self.width:
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros(2 * self.half)
            self.counts[self.half // 2 : self.half // 2 + self.half] = merged
            self.width *= 2
        index = np.floor(values / (self.width or 1.0)).astype(np.int64) + self.half
        index = np.minimum(index, 2 * self.half - 1)  # the top edge belongs to the last bin
        self.counts += np.bincount(index.reshape(-1), minlength=2 * self.half)

    @property
    def edges(self) -> Floats:
        """The ``2 * half + 1`` bin edges."""
        return np.arange(-self.half, self.half + 1, dtype=np.float64) * self.width

    def quantile(self, share: float) -> float:
        """Value below which ``share`` of all values lie, linear inside a bin."""
        below = np.concatenate([[0.0], np.cumsum(self.counts)])
        return float(np.interp(share * below[-1], below, self.edges))


class _HistogramObserver(MinMaxObserver):
    """Extremes and a histogram per group."""

    def __init__(self, name: str, axis: int | None = None, bits: int = 8) -> None:
        super().__init__(name, axis)
        self.levels = (1 << bits) - 1
        self.histograms: list[Histogram] = []

    def _take(self, groups: npt.NDArray[Any]) -> None:
        super()._take(groups)
        if not self.histograms:
            self.histograms = [Histogram() for _ in groups]
        for histogram, group in zip(self.histograms, groups, strict=True):
            histogram.update(group)

    def _search(self, low: Floats, high: Floats) -> tuple[Floats, Floats]:
        pairs = []
        for histogram, a, b in zip(self.histograms, low.reshape(-1), high.reshape(-1), strict=True):
            pairs.append(self._clip(histogram, float(a), float(b)) if a < b else (a, b))
        array = np.array(pairs, dtype=np.float64)
        return self._shape(array[:, 0]), self._shape(array[:, 1])

    def _clip(self, histogram: Histogram, low: float, high: float) -> tuple[float, float]:
        """Return the kept part of one group's range: by least cost over the shrink factors."""
        costs = [self._cost(histogram, low * factor, high * factor) for factor in SHRINK]
        best = float(SHRINK[int(np.argmin(costs))])
        return low * best, high * best

    def _cost(self, histogram: Histogram, low: float, high: float) -> float:
        raise NotImplementedError


class PercentileObserver(_HistogramObserver):
    """The central part of the distribution: from the (1 - share) to the share quantile."""

    def __init__(self, name: str, axis: int | None = None, share: float = 0.99999) -> None:
        super().__init__(name, axis)
        if not 0.5 < share <= 1:
            raise ValueError(f"Share must be above 0.5 and at most 1, not {share!r}")
        self.share = share

    def _clip(self, histogram: Histogram, low: float, high: float) -> tuple[float, float]:
        a, b = histogram.quantile(1 - self.share), histogram.quantile(self.share)
        a, b = max(a, low), min(b, high)
        return (a, b) if a < b else (low, high)


class OmseObserver(_HistogramObserver):
    """The shrunk range with the least squared quantisation error."""

    def _cost(self, histogram: Histogram, low: float, high: float) -> float:
        centres = (histogram.edges[:-1] + histogram.edges[1:]) / 2
        low, high = min(low, 0.0), max(high, 0.0)
        scale = (high - low) / self.levels
        zero = np.floor(-low / scale + 0.5)
        code = np.clip(np.floor(centres / scale + zero + 0.5), 0, self.levels)
        return float((histogram.counts * (centres - (code - zero) * scale) ** 2).sum())


class KlObserver(_HistogramObserver):
    """The shrunk range whose quantised distribution loses the least information.

    Kullback-Leibler divergence of the clipped histogram (outliers counted in its end bins) from the
    same histogram after merging into as many levels as there are codes.
    """

    def _cost(self, histogram: Histogram, low: float, high: float) -> float:
        centres = (histogram.edges[:-1] + histogram.edges[1:]) / 2
        inside = np.flatnonzero((centres >= low) & (centres <= high))
        if inside.size < 2:
            return np.inf
        first, last = int(inside[0]), int(inside[-1])
        kept = histogram.counts[first : last + 1]
        reference = kept.copy()
        reference[0] += histogram.counts[:first].sum()
        reference[-1] += histogram.counts[last + 1 :].sum()
        level = np.arange(kept.size) * (self.levels + 1) // kept.size
        used = reference > 0  # a level's count is spread evenly over the bins that hold anything
        totals = np.bincount(level, weights=kept)
        members = np.bincount(level, weights=used.astype(np.float64))
        spread = np.where(used, totals[level] / np.maximum(members[level], 1), 0.0)
        p, q = reference / reference.sum(), spread / max(float(spread.sum()), 1.0)
        floor = 1e-12  # a bin that only outliers fill
        return float((p[used] * np.log(p[used] / np.maximum(q[used], floor))).sum())


OBSERVERS: dict[str, type[MinMaxObserver]] = {
    "minmax": MinMaxObserver,
    "ema": EmaObserver,
    "percentile": PercentileObserver,
    "omse": OmseObserver,
    "kl": KlObserver,
}
"""Observers by the name that ``--observer`` takes."""


def make_observer(kind: str, name: str, axis: int | None = None) -> Observer:
    """Return an observer of this kind for the tensor ``name``; UserError for an unknown kind."""
    if kind not in OBSERVERS:
        raise UserError(f"Observer must be one of {', '.join(OBSERVERS)}, not {kind!r}.")
    return OBSERVERS[kind](name, axis)

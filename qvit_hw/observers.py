# SPDX-License-Identifier: Apache-2.0
"""Observers: what range of values a tensor takes, and which part of it deserves codes.

All follow one protocol: ``update`` with tensor after tensor, then ``range()`` gives ``(low, high)``.
With ``axis=None`` both are 0-d arrays for the whole tensor; with an axis they have one entry per
index along it (a channel, a head). Nothing is kept but extremes and, where an observer needs the
distribution, a histogram whose bins double in width whenever the range outgrows them: the result
depends neither on how many images there are in memory nor on the machine.

Those that clip search on the histogram. ``percentile`` takes quantiles; ``omse`` has the least squared
error; ``kl``, ``symkl`` and ``js`` compare the distributions before and after quantisation. They try the
shrink factors 1.00, 0.99, ... 0.11 of (low, high) together, as FQ-ViT (arXiv 2111.13824) does, and then of
either end alone: the short side of a skewed tensor (behind GELU) is not cut because the long one is.
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
    "JsObserver",
    "KlObserver",
    "MinMaxObserver",
    "Observer",
    "OmseObserver",
    "PercentileObserver",
    "SymmetricKlObserver",
    "jensen_shannon",
    "kullback_leibler",
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
    """The smallest and the largest value ever seen.

    ``bits``: width of the codes to come, which the observers that search weigh clipping against.
    """

    def __init__(self, name: str, axis: int | None = None, bits: int = 8) -> None:
        self.name, self.axis = name, axis
        self.levels = (1 << bits) - 1
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

    def __init__(
        self, name: str, axis: int | None = None, bits: int = 8, momentum: float = 0.1
    ) -> None:
        super().__init__(name, axis, bits)
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
        super().__init__(name, axis, bits)
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
        both = [(low * float(factor), high * float(factor)) for factor in SHRINK]
        best = self._least(histogram, both)
        best = self._least(histogram, [best, *((best[0], end) for _, end in both)])
        return self._least(histogram, [best, *((end, best[1]) for end, _ in both)])

    def _least(
        self, histogram: Histogram, ranges: list[tuple[float, float]]
    ) -> tuple[float, float]:
        """Return the first of the ranges with the least cost."""
        costs = [self._cost(histogram, *ends) for ends in ranges if ends[0] < ends[1]]
        return [ends for ends in ranges if ends[0] < ends[1]][int(np.argmin(costs))]

    def _cost(self, histogram: Histogram, low: float, high: float) -> float:
        raise NotImplementedError


class PercentileObserver(_HistogramObserver):
    """The central part of the distribution: from the (1 - share) to the share quantile."""

    def __init__(
        self, name: str, axis: int | None = None, bits: int = 8, share: float = 0.99999
    ) -> None:
        super().__init__(name, axis, bits)
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


def kullback_leibler(p: Floats, q: Floats) -> float:
    """Information, in nats, that q loses of p: two distributions over the same bins, each with sum 1.

    A bin of q that is empty while p's is not counts as 1e-12.
    """
    used = p > 0
    return float((p[used] * np.log(p[used] / np.maximum(q[used], 1e-12))).sum())


def jensen_shannon(p: Floats, q: Floats) -> float:
    """Mean divergence of p and of q from their average: symmetric, from 0 to log 2."""
    middle = (p + q) / 2
    return (kullback_leibler(p, middle) + kullback_leibler(q, middle)) / 2


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
        if not kept.any():
            return np.inf
        reference = kept.copy()
        reference[0] += histogram.counts[:first].sum()
        reference[-1] += histogram.counts[last + 1 :].sum()
        level = np.arange(kept.size) * (self.levels + 1) // kept.size
        used = reference > 0  # a level's count is spread evenly over the bins that hold anything
        totals = np.bincount(level, weights=kept)
        members = np.bincount(level, weights=used.astype(np.float64))
        spread = np.where(used, totals[level] / np.maximum(members[level], 1), 0.0)
        return self._divergence(reference / reference.sum(), spread / spread.sum())

    def _divergence(self, p: Floats, q: Floats) -> float:
        return kullback_leibler(p, q)


class SymmetricKlObserver(KlObserver):
    """As ``kl``, by the divergence in both directions: outliers cost less, empty levels more."""

    def _divergence(self, p: Floats, q: Floats) -> float:
        return kullback_leibler(p, q) + kullback_leibler(q, p)


class JsObserver(KlObserver):
    """As ``kl``, by the Jensen-Shannon divergence, which is bounded: outliers cost the least."""

    def _divergence(self, p: Floats, q: Floats) -> float:
        return jensen_shannon(p, q)


OBSERVERS: dict[str, type[MinMaxObserver]] = {
    "minmax": MinMaxObserver,
    "ema": EmaObserver,
    "percentile": PercentileObserver,
    "omse": OmseObserver,
    "kl": KlObserver,
    "symkl": SymmetricKlObserver,
    "js": JsObserver,
}
"""Observers by the name that ``--observer`` takes."""


def make_observer(kind: str, name: str, axis: int | None = None, bits: int = 8) -> Observer:
    """Return an observer of this kind for the tensor ``name``; UserError for an unknown kind.

    ``bits``: width of the tensor's codes.
    """
    if kind not in OBSERVERS:
        raise UserError(f"Observer must be one of {', '.join(OBSERVERS)}, not {kind!r}.")
    return OBSERVERS[kind](name, axis, bits)

# SPDX-License-Identifier: Apache-2.0
"""Weights as integers: symmetric, a scale per output channel, 3 to 8 bits, without the most negative code.

Three methods, by the names that presets use:

- ``minmax``: the scale reaches the largest weight; codes are the nearest.
- ``omse``: the scale clips as far as the squared error of the layer's output becomes least, with inputs taken
  as uncorrelated (their second moments weigh the columns).
- ``gptq``: the scale of ``omse``; codes are chosen column by column, and the columns that are still to come
  take over the error made so far, as far as the inputs' covariance lets them (GPTQ, arXiv 2210.17323).

What the inputs are like is gathered in :class:`Moments`. Their mean plays no part: the output's mean error,
``(W - W') @ mean``, goes into the layer's bias (:func:`mean_error`) and is gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qvit_hw.quantize import round_half_up, symmetric_scale

__all__ = ["METHODS", "Moments", "mean_error", "quantise_weights", "round_weights", "weight_scale"]

Floats = npt.NDArray[np.float64]
Ints64 = npt.NDArray[np.int64]

METHODS = ("minmax", "omse", "gptq")
SHRINK = np.arange(100, 34, -2) / 100
"""Shrink factors of a channel's largest weight that ``omse`` tries."""
DAMPING = 0.01
"""Share of the mean variance that is added to every input's: directions that were hardly seen."""
BLOCK = 128
"""Columns that take over the errors of all columns before them at once; no result depends on it."""


@dataclass(eq=False)
class Moments:
    """Mean and covariance of a layer's inputs, gathered batch by batch.

    count: rows so far.  total: their sum [in].  products: the sum of their outer products [in, in].
    """

    count: int
    total: Floats
    products: Floats

    @classmethod
    def empty(cls, features: int) -> Moments:
        """Nothing seen yet."""
        return cls(0, np.zeros(features), np.zeros((features, features)))

    def update(self, values: Any) -> None:
        """Take in values [..., in]."""
        rows = np.asarray(values, np.float64)
        rows = rows.reshape(-1, rows.shape[-1])
        self.count += len(rows)
        self.total += rows.sum(axis=0)
        self.products += rows.T @ rows

    @property
    def mean(self) -> Floats:
        """Mean of each input, [in]."""
        return self.total / max(self.count, 1)

    @property
    def covariance(self) -> Floats:
        """Covariance of the inputs, [in, in]."""
        centred = self.products / max(self.count, 1) - np.outer(self.mean, self.mean)
        return np.asarray((centred + centred.T) / 2)

    def affine(self, scale: Any, rest: Any = 0.0) -> Moments:
        """Moments of ``(x - rest) / scale``, per input; of 0 where the scale is 0."""
        features = len(self.total)
        scale, rest = (np.broadcast_to(np.asarray(x, np.float64), features) for x in (scale, rest))
        inverse = np.divide(1.0, scale, out=np.zeros(features), where=scale != 0)
        moved = np.outer(self.total, rest)
        products = self.products - moved - moved.T + self.count * np.outer(rest, rest)
        total = (self.total - self.count * rest) * inverse
        return Moments(self.count, total, products * np.outer(inverse, inverse))


def mean_error(weight: Any, codes: Any, scale: Any, inputs: Moments) -> Floats:
    """Mean of ``x @ W.T - x @ (codes * scale).T``, [out]: what the bias has to add."""
    return np.asarray(
        (np.asarray(weight, np.float64) - np.asarray(codes) * np.reshape(scale, (-1, 1)))
        @ inputs.mean
    )


def weight_scale(
    weight: Any,
    bits: int,
    method: str = "minmax",
    per_tensor: bool = False,
    inputs: Moments | None = None,
) -> Floats:
    """Return the scale of each output channel of a weight [out, in]; float64 [out].

    ``per_tensor``: one for all of them.  ``inputs`` weigh the columns for ``omse`` and ``gptq``.
    ValueError for bits beyond 3 to 8, or an unknown method.
    """
    weight = np.asarray(weight, np.float64)
    if not 3 <= bits <= 8:
        raise ValueError(f"Weight width must be 3 to 8, not {bits!r}")
    if method not in METHODS:
        raise ValueError(f"Method must be one of {', '.join(METHODS)}, not {method!r}")
    scale = symmetric_scale(weight.min(axis=1), weight.max(axis=1), bits)
    if per_tensor:
        scale = np.full_like(scale, scale.max())
    if method == "minmax":
        return scale
    importance = np.ones(weight.shape[1]) if inputs is None else np.diag(inputs.covariance)
    errors = []
    for factor in SHRINK:
        value = round_weights(weight, scale * factor, bits) * (scale * factor)[:, None]
        errors.append((weight - value) ** 2 @ importance)
    if per_tensor:
        return scale * SHRINK[int(np.sum(errors, axis=1).argmin())]
    return np.asarray(scale * SHRINK[np.argmin(errors, axis=0)])


def round_weights(weight: Any, scale: Any, bits: int, inputs: Moments | None = None) -> Ints64:
    """Return the codes [out, in] of a weight for given scales [out].

    The nearest codes; with ``inputs``, those whose errors make up for each other.
    """
    weight, scale = np.asarray(weight, np.float64), np.asarray(scale, np.float64)
    limit = (1 << (bits - 1)) - 1
    if inputs is not None:
        return _compensated(weight, scale, limit, inputs.covariance)
    return round_half_up(weight / scale[:, None]).clip(-limit, limit).astype(np.int64)


def _compensated(weight: Floats, scale: Floats, limit: int, covariance: Floats) -> Ints64:
    """Codes by GPTQ, inputs of the largest variance first, in the form of LDLQ (arXiv 2307.13304).

    With the covariance as ``U D U.T``, U upper triangular with a unit diagonal, a column does best to aim at
    its weight plus the errors of the columns before it, times U: one triangular factor, no inverse.
    """
    variance = np.diag(covariance)
    order = np.argsort(-variance, kind="stable")
    damping = DAMPING * float(variance.mean()) or 1.0
    damped = covariance[np.ix_(order, order)] + damping * np.eye(len(order))
    factor = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    share = factor / np.diag(factor)
    columns = weight.T[order]
    errors, codes = np.empty_like(columns), np.empty(columns.shape, np.int64)
    for start in range(0, len(order), BLOCK):
        end = min(start + BLOCK, len(order))
        wanted = columns[start:end] + share[:start, start:end].T @ errors[:start]
        for j in range(start, end):
            aim = wanted[j - start] + share[start:j, j] @ errors[start:j]
            codes[j] = round_half_up(aim / scale).clip(-limit, limit)
            errors[j] = columns[j] - codes[j] * scale
    whole = np.empty(weight.shape, np.int64)
    whole[:, order] = codes.T
    return whole


def quantise_weights(
    weight: Any,
    bits: int,
    method: str = "minmax",
    per_tensor: bool = False,
    inputs: Moments | None = None,
) -> tuple[Ints64, Floats]:
    """Return (codes [out, in], scale [out]) of a weight [out, in] by one of the METHODS.

    ValueError as :func:`weight_scale`, and for ``gptq`` without ``inputs``.
    """
    scale = weight_scale(weight, bits, method, per_tensor, inputs)
    if method == "gptq" and inputs is None:
        raise ValueError("Inputs must be moments for gptq, not None")
    return round_weights(weight, scale, bits, inputs if method == "gptq" else None), scale

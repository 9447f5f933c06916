# SPDX-License-Identifier: Apache-2.0
"""Tensors by heads, [..., heads, rows, columns], as q.k and codes.v take them: checks and shapes."""

from __future__ import annotations

import numpy as np

from golden.arrays import whole
from golden.bounds import Interval
from golden.fixedpoint import Ints
from golden.requant import RequantParams, RequantSpec, Rescaler

__all__ = ["by_heads", "by_images", "check_heads", "per_head"]


def by_heads(value: Ints, name: str, legal: Interval) -> Ints:
    """Return ``value`` as an array; TypeError or ValueError unless it is by heads and within ``legal``."""
    array = whole(value, name)
    if array.ndim < 3:
        raise ValueError(
            f"{name} must be [..., heads, tokens, channels], not shape {array.shape!r}"
        )
    if not legal.holds(array):
        span = f"{int(array.min())} to {int(array.max())}"
        raise ValueError(f"{name} must be from {legal.low} to {legal.high}, not {span}")
    return array


def by_images(x: Ints, lead: tuple[int, ...]) -> Ints:
    """[..., heads, rows, columns] as [images, heads, rows, columns], broadcast to leading axes ``lead``."""
    rows, columns = x.shape[-2:]
    return np.broadcast_to(x, (*lead, rows, columns)).reshape(-1, lead[-1], rows, columns)


def check_heads(params: RequantParams, heads: int) -> None:
    """Raise ValueError unless the requantiser has one channel, or one for each head."""
    channels = np.shape(params.multiplier)[0]
    if channels not in (1, heads):
        raise ValueError(f"Channels must be {channels}, not {heads!r}")


def per_head(params: RequantParams, spec: RequantSpec, after: Ints | int) -> Rescaler:
    """A requantiser of [..., heads, rows, columns], one channel of parameters per head."""
    m, n = (x.reshape(-1, 1, 1) for x in (params.multiplier, params.shift))
    return Rescaler(m, n, after, acc=spec.bounds["acc"], bits=spec.out_bits)

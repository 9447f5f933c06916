# SPDX-License-Identifier: Apache-2.0
"""Patch embedding: from raw uint8 pixels to accumulators, a linear layer over patches.

    acc_o = bias_o + sum_k W_ok * pixel_k            golden.linear, unsigned 8-bit input

The image enters as it was decoded. A data set's mean and standard deviation are per colour channel and
constant, so the exporter folds ``1 / (255 * std)`` into the weights and ``-mean / std`` into the bias.

timm's order (its ``PatchEmbed``, a convolution whose stride is its kernel): patches row by row over
the image; within a patch colour, row, column, as a convolution's weights [out, C, P, P] lie in memory.
What the accumulators become (position embedding, residual codes) is :mod:`golden.residual`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from golden.bounds import Interval
from golden.fixedpoint import Ints, integer
from golden.linear import LinearParams, LinearSpec, accumulate

__all__ = ["SPEC_GRID", "PatchEmbedSpec", "corner_rows", "patch_embed", "patches"]


@dataclass(frozen=True, kw_only=True)
class PatchEmbedSpec:
    """What is fixed when a patch embedding is built.

    patch: edge of a square patch, 1 to 64.  channels: colours, 1 to 16.
    weight_bits: 3 to 8.  acc_bits: width of the accumulator, 8 to 40.
    """

    patch: int = 16
    channels: int = 3
    weight_bits: int = 8
    acc_bits: int = 32

    def __post_init__(self) -> None:
        integer(self.patch, "Patch size", 1, 64)
        integer(self.channels, "Colour channels", 1, 16)
        assert self.linear.bounds  # refuses what the linear layer refuses

    @cached_property
    def linear(self) -> LinearSpec:
        """Spec of the linear layer over the pixels of a patch."""
        return LinearSpec(
            in_features=self.channels * self.patch * self.patch,
            in_bits=8,
            in_signed=False,
            weight_bits=self.weight_bits,
            acc_bits=self.acc_bits,
            out_bits=None,
        )

    @property
    def bounds(self) -> dict[str, Interval]:
        """Interval of every intermediate value, as of the linear layer; "input" is a pixel."""
        return self.linear.bounds


def patches(images: Ints, spec: PatchEmbedSpec) -> npt.NDArray[np.uint8]:
    """Patches [..., N, C*P*P] of images [..., C, H, W], N = H/P * W/P, a copy in timm's order.

    >>> image = np.arange(16, dtype=np.uint8).reshape(1, 4, 4)
    >>> patches(image, PatchEmbedSpec(patch=2, channels=1)).tolist()
    [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    """
    pixels, size = np.asarray(images), spec.patch
    if pixels.dtype != np.uint8:
        raise TypeError(f"Images must be an array of uint8 pixels, not {pixels.dtype}")
    if pixels.ndim < 3 or pixels.shape[-3] != spec.channels:
        raise ValueError(
            f"Images must be [..., {spec.channels}, height, width], not shape {pixels.shape!r}"
        )
    *lead, channels, height, width = pixels.shape
    if not height or not width or height % size or width % size:
        raise ValueError(
            f"Image size must be a multiple of {size} pixels, not {height!r} x {width!r}"
        )
    rows, columns = height // size, width // size
    cut = pixels.astype(np.uint8, copy=False).reshape(*lead, channels, rows, size, columns, size)
    first = len(lead)
    order = [*range(first), first + 1, first + 3, first, first + 2, first + 4]
    return cut.transpose(order).reshape(*lead, rows * columns, channels * size * size)


def patch_embed(images: Ints, spec: PatchEmbedSpec, params: LinearParams) -> Ints:
    """Accumulators [..., N, out] of uint8 images [..., C, H, W], in the narrowest type.

    ``params.weight``: [out, C*P*P], a convolution's weights flattened; no requantiser. TypeError for
    anything but uint8, ValueError for a size that is no multiple of the patch.
    """
    full = spec.linear.in_features
    if params.in_features != full:
        raise ValueError(f"Weights must have {full} pixels, not {params.in_features!r}")
    return accumulate(patches(images, spec), spec.linear, params)


SPEC_GRID: tuple[PatchEmbedSpec, ...] = (
    PatchEmbedSpec(),
    PatchEmbedSpec(patch=14),
    PatchEmbedSpec(patch=4),
    PatchEmbedSpec(patch=4, channels=1, weight_bits=4, acc_bits=24),
)
"""Specs that every check of the operator runs on."""


def corner_rows(
    spec: PatchEmbedSpec, seed: int = 0
) -> Iterator[tuple[str, npt.NDArray[np.uint8], LinearParams]]:
    """Yield (name, image [C, H, W], params): black, white, one bright pixel, oblong and single patches.

    Output channels 0 and 1 have all weights at one end; their biases are the smallest and the largest,
    so that a white image reaches both ends of the accumulator.
    """
    rng = np.random.default_rng(seed)
    size, count, outputs = spec.patch, spec.linear.in_features, 5
    limit, room = spec.bounds["weight"].high, spec.bounds["bias"]
    weight = rng.integers(-limit, limit, (outputs, count), endpoint=True)
    weight[:2] = [[-limit], [limit]]
    bias = np.array([room.low, room.high, 0, 1, -1])
    params = LinearParams(weight=weight, bias=bias)
    for rows, columns in ((1, 1), (2, 3), (3, 1)):
        shape = (spec.channels, rows * size, columns * size)
        name = f"{rows} x {columns} patches"
        yield f"black, {name}", np.zeros(shape, np.uint8), params
        yield f"white, {name}", np.full(shape, 255, np.uint8), params
        yield f"random, {name}", rng.integers(0, 256, shape, dtype=np.uint8), params
        bright = np.zeros(shape, np.uint8)
        bright[-1, -1, size - 1] = 255
        yield f"one bright pixel, {name}", bright, params

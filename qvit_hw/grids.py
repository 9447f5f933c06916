# SPDX-License-Identifier: Apache-2.0
"""What the codes of a tensor mean: the quantisers of the calibrated model.

Every tensor but softmax's codes is affine over its last axis, whatever the reason for its scales: one scale
(features, scores), one per head (q, k, v), a power of two times one scale (PTF streams), the scales that
a LayerNorm leaves to the next layer's weights, or the scales of a layer's accumulators.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from golden.softmax import SoftmaxSpec

__all__ = ["AffineGrid", "Grid", "LogGrid", "round_half_up"]

Floats = npt.NDArray[np.float64]


def round_half_up(x: Tensor) -> Tensor:
    """``floor(x + 1/2)``, the project's one rounding."""
    return torch.floor(x + 0.5)


@dataclass(frozen=True, kw_only=True, eq=False)
class AffineGrid:
    """``x = (code - zero_point) * scale + rest``, codes signed with ``bits`` bits.

    scale, rest: float64, of shape () or [C]. A scale of 0 belongs to a channel that is constant.
    """

    scale: Floats
    zero_point: int = 0
    bits: int = 8
    rest: Floats = field(default_factory=lambda: np.zeros(()))

    @cached_property
    def _tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        scale = torch.tensor(np.asarray(self.scale, np.float64))
        inverse = torch.where(scale != 0, 1 / scale, torch.zeros_like(scale))
        return scale, inverse, torch.tensor(np.asarray(self.rest, np.float64))

    @property
    def folds(self) -> bool:
        """Whether channels differ: their scales belong into the weights of the next layer."""
        return np.ndim(self.scale) > 0

    @property
    def unit(self) -> float:
        """The one scale, or 1 where the channels' scales are folded."""
        return 1.0 if self.folds else float(self.scale)

    def codes(self, x: Tensor) -> Tensor:
        """Codes of x [..., C], as float64 whole numbers."""
        _, inverse, rest = self._tensors
        return self.limit((x.double() - rest) * inverse + self.zero_point)

    def limit(self, x: Tensor) -> Tensor:
        """Round and saturate numbers in units of the code."""
        half = 1 << (self.bits - 1)
        return round_half_up(x).clamp_(-half, half - 1)

    def values(self, codes: Tensor) -> Tensor:
        """What codes [..., C] mean, float64."""
        scale, _, rest = self._tensors
        return (codes - self.zero_point) * scale + rest


@dataclass(frozen=True, kw_only=True, eq=False)
class LogGrid:
    """``p = gain * 2**-code`` (or ``2**(-code/2)``); the last code is 0.

    ``gain`` makes up for what rounding to powers of two does to A.V on average; hardware has it in the
    requantiser behind A.V.
    """

    spec: SoftmaxSpec
    gain: float = 1.0

    @property
    def per_octave(self) -> int:
        """Codes per octave."""
        return 2 if self.spec.base == "sqrt2" else 1

    def codes(self, p: Tensor) -> Tensor:
        """Codes of probabilities, as float64 whole numbers."""
        level = -torch.log2(p.double()) * self.per_octave  # inf for 0
        return round_half_up(level).clamp_(0, self.spec.last_code)

    def values(self, codes: Tensor) -> Tensor:
        """What codes mean, float64."""
        value = self.gain * torch.exp2(-codes.double() / self.per_octave)
        return torch.where(codes == self.spec.last_code, torch.zeros_like(value), value)


Grid = AffineGrid | LogGrid

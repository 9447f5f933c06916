# SPDX-License-Identifier: Apache-2.0
"""From calibrated grids to the parameters of :mod:`golden.fqvit`: floats become the rationals they are."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from golden import fqvit
from golden.fqvit import FqLayerNormParams, FqSoftmaxParams, FqSoftmaxSpec
from qvit_hw.errors import UserError
from qvit_hw.quantize import Grid, PtfGrid

__all__ = ["layernorm_params", "softmax_params"]


def layernorm_params(gamma: Any, beta: Any, stream: PtfGrid, out: Grid) -> FqLayerNormParams:
    """Parameters of a LayerNorm with weights gamma and beta [C], from one grid to the other.

    UserError for weights that are not finite or that the output's scale cannot hold.
    """
    exact = []
    for weight in (gamma, beta):
        column = np.asarray(weight, np.float64)
        if not np.isfinite(column).all():
            raise UserError("Weights of a LayerNorm must be finite numbers.")
        exact.append([Fraction(each) for each in column.tolist()])
    try:
        return fqvit.layernorm_params(
            exact[0],
            exact[1],
            Fraction(out.scale),
            zero_point=stream.zero_point,
            shift=stream.shift,
            out_zero_point=out.zero_point,
        )
    except ValueError as error:
        raise UserError(f"FQ-ViT's LayerNorm does not suit this layer: {error}.") from error


def softmax_params(scores: Grid, spec: FqSoftmaxSpec | None = None) -> FqSoftmaxParams:
    """Parameters of log-int-softmax for natural scores on this grid; its zero point cancels.

    UserError where its polynomial has no integers at the grid's scale, or none that ``spec`` can hold.
    """
    scale = Fraction(scores.scale)
    try:
        params = fqvit.softmax_params(scale)
        params.check(spec or FqSoftmaxSpec())
    except ValueError as error:
        fault = str(error).replace(repr(scale), f"{scores.scale:.4g}")
        raise UserError(f"FQ-ViT's softmax does not suit this layer: {fault}.") from error
    return params

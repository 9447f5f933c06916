# SPDX-License-Identifier: Apache-2.0
"""Float64 references of the operators on the same integers, and how far the golden codes are from them.

A reference is given in units of the output code, unrounded: rounding it half up gives the ideal code.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from golden.layernorm import layernorm
from golden.softmax import SoftmaxParams, SoftmaxSpec, softmax
from qvit_hw.calibrated import CalibratedModel
from qvit_hw.quantize import LayerNormPlan, round_half_up

__all__ = [
    "code_values",
    "float_layernorm",
    "float_softmax",
    "layernorm_metrics",
    "layernorm_vectors",
    "softmax_metrics",
    "softmax_vectors",
    "sqnr",
]

Floats = npt.NDArray[np.float64]
Ints64 = npt.NDArray[np.int64]
Metrics = dict[str, float | int]


def float_layernorm(codes: Any, plan: LayerNormPlan) -> Floats:
    """LayerNorm of input codes [..., C] in output code units."""
    x = (np.asarray(codes, np.int64) - plan.input.zero_point) << plan.input.shift
    values = x * plan.input.scale
    centred = values - values.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    return np.asarray(centred / np.sqrt(variance + plan.eps) * plan.gain + plan.offset)


def float_softmax(scores: Any, spec: SoftmaxSpec, params: SoftmaxParams) -> Floats:
    """``-log2(softmax)`` of integer scores in code units: twice as much for base sqrt 2."""
    octaves = np.asarray(scores, np.float64) / 2**params.frac
    distance = octaves.max(axis=-1, keepdims=True) - octaves
    total = np.log2(np.exp2(-distance).sum(axis=-1, keepdims=True))
    return np.asarray((distance + total) * (2 if spec.base == "sqrt2" else 1))


def code_values(codes: Any, spec: SoftmaxSpec) -> Floats:
    """What softmax codes mean: ``2**-code`` or ``2**(-code/2)``, and 0 for the last one."""
    codes = np.asarray(codes, np.float64)
    value = np.exp2(-codes / (2 if spec.base == "sqrt2" else 1))
    return np.where(codes == spec.last_code, 0.0, value)


def sqnr(reference: Any, actual: Any) -> float | None:
    """Signal to quantisation noise in dB; None where there is no noise or no signal."""
    reference = np.asarray(reference, np.float64)
    signal = float((reference**2).sum())
    noise = float(((np.asarray(actual, np.float64) - reference) ** 2).sum())
    return 10 * math.log10(signal / noise) if signal and noise else None


def layernorm_vectors(
    codes: Any, calibrated: CalibratedModel, name: str
) -> tuple[Ints64, Ints64, Floats]:
    """Return (input, golden, float reference) as rows of a layer's channels."""
    plan = calibrated.plan.norms[name]
    rows = np.asarray(codes, np.int64).reshape(-1, plan.params.channels)
    golden = layernorm(rows, calibrated.plan.layernorm_spec, plan.params).astype(np.int64)
    return rows, golden, float_layernorm(rows, plan)


def layernorm_metrics(golden: Any, reference: Any, plan: LayerNormPlan) -> Metrics:
    """Compare golden codes with the reference (saturated as the codes are)."""
    half = 1 << (plan.bits - 1)
    limited = np.clip(reference, -half, half - 1)
    difference = np.abs(golden - np.clip(round_half_up(reference), -half, half - 1))
    signal = (limited - plan.zero_point) * plan.scale
    return _metrics(
        equal=float((difference == 0).mean()),
        max_difference=int(difference.max()),
        sqnr_db=sqnr(signal, (np.asarray(golden) - plan.zero_point) * plan.scale),
    )


def softmax_vectors(
    scores: Any, calibrated: CalibratedModel, name: str
) -> tuple[Ints64, Ints64, Floats]:
    """Return (input, golden, float reference) as rows in the order image, (window,) head, query."""
    spec, params = calibrated.plan.softmax_spec, calibrated.plan.softmax[name]
    rows = np.asarray(scores, np.int64).reshape(-1, np.shape(scores)[-1])
    return rows, softmax(rows, spec, params).astype(np.int64), float_softmax(rows, spec, params)


def softmax_metrics(
    scores: Any, golden: Any, reference: Any, values: Any, spec: SoftmaxSpec
) -> Metrics:
    """Compare golden codes with exact log quantisation of the reference, and A.V with float attention.

    ``values``: the float model's v, [groups, n, d], one for each n rows of codes in their order.
    """
    ideal = np.minimum(round_half_up(reference), spec.last_code)
    difference = np.abs(golden - ideal)
    v = np.asarray(values, np.float64)
    shape = (len(v), -1, v.shape[1])
    per_code = 2 if spec.base == "sqrt2" else 1
    exact = np.exp2(-np.asarray(reference) / per_code).reshape(shape) @ v
    return _metrics(
        equal=float((difference == 0).mean()),
        max_difference=int(difference.max()),
        av_sqnr=sqnr(exact, code_values(golden, spec).reshape(shape) @ v),
        av_sqnr_ideal=sqnr(exact, code_values(ideal, spec).reshape(shape) @ v),
        saturated=float((np.abs(scores) >= spec.bounds["score"].high).mean()),
    )


def _metrics(**values: float | int | None) -> Metrics:
    """Rounded to what the last digits of another CPU's float64 cannot change; None is left out."""
    return {
        name: value if isinstance(value, int) else float(f"{value:.6g}")
        for name, value in values.items()
        if value is not None
    }

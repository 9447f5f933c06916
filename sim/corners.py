# SPDX-License-Identifier: Apache-2.0
"""The numeric corners of each operator: the bins that its spec makes possible, and those that a row hits.

For each operator, ``BINS`` gives the bins by coverpoint, and ``FEATURES`` the bins that a row hits, from its
elements, its parameters and golden's intermediate values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from golden.bounds import Interval
from golden.fixedpoint import Ints
from golden.requant import MULTIPLIER, SHIFT
from golden.softmax import ALIGN_STEPS
from sim.operators import Row

__all__ = ["BINS", "FEATURES", "Bins", "Hits", "ends", "rounded"]

Bins = dict[str, list[str]]
Hits = dict[str, set[str]]


def ends(value: Ints | int, interval: Interval, name: str = "") -> set[str]:
    """Which ends of its interval a value, or one of several, takes."""
    values = np.asarray(value)
    found = {f"{name}lowest"} if (values == interval.low).any() else set()
    return found | ({f"{name}highest"} if (values == interval.high).any() else set())


def rounded(value: Ints, shift: Ints | int, code: Interval, zero: int = 0) -> tuple[set[str], set[str]]:
    """Saturation and ties of ``sat(rs(value, shift) + zero)``."""
    shifts = np.asarray(shift)
    half = np.where(shifts > 0, np.int64(1) << np.maximum(shifts - 1, 0), 0)
    result = ((value + half) >> shifts) + zero
    rest = value & ((np.int64(1) << shifts) - 1)
    tie = (shifts > 0) & (rest == half)
    saturated = {"high"} if (result > code.high).any() else set()
    saturated |= {"low"} if (result < code.low).any() else set()
    inside = (result >= code.low) & (result <= code.high)
    saturated |= {"inside"} if inside.any() else set()
    ties = {"positive"} if (tie & (value > 0)).any() else set()
    return saturated, ties | ({"negative"} if (tie & (value < 0)).any() else set())


# ------------------------------------------------------------------------------------------ softmax


def _softmax_bins(spec: Any) -> Bins:
    alone = ["all equal", "one hot", "all minimum", "all maximum", "ties for the maximum"]
    alone += ["maximum first", "maximum last", "one element"]
    masks = ["none masked", "all masked", "all but one masked", "maximum masked", "minimum masked"]
    powers = range(1, spec.max_tokens.bit_length())
    sides = ("just below", "at", "just above")
    return {
        "row": alone,
        "mask": masks,
        "total": [f"2**{power}{less}" for power in powers for less in ("", " less an element")],
        "threshold": [f"{side} code {code}" for code in range(1, spec.last_code + 1) for side in sides],
        "code": [str(code) for code in range(spec.last_code + 1)],
        "frac": [str(f) for f in range(max(0, spec.frac_bits - ALIGN_STEPS + 1), spec.frac_bits + 1)],
    }


def _softmax_hits(spec: Any, row: Row, trace: Any) -> Hits:
    x, count, score = row.elements, row.elements.size, spec.bounds["score"]
    mask = np.zeros(count, bool) if row.mask is None else row.mask
    kept = x[~mask]
    found: Hits = {"row": set(), "mask": set(), "total": set(), "threshold": set()}
    if not mask.any():
        found["mask"].add("none masked")
        top = int((x == x.max()).sum())
        kinds = {
            "all equal": count > 1 and top == count,
            "one hot": count > 1 and top == 1 and bool((np.sort(x)[:-1] == score.low).all())
            and x.max() == score.high,
            "all minimum": count > 1 and bool((x == score.low).all()),
            "all maximum": count > 1 and bool((x == score.high).all()),
            "ties for the maximum": 1 < top < count,
            "maximum first": count > 1 and top == 1 and x[0] == x.max(),
            "maximum last": count > 1 and top == 1 and x[-1] == x.max(),
            "one element": count == 1,
        }
        found["row"] = {name for name, holds in kinds.items() if holds}
    else:
        kinds = {
            "all masked": kept.size == 0,
            "all but one masked": kept.size == 1 and count > 2,
            "maximum masked": kept.size > 0 and x.max() > kept.max(),
            "minimum masked": kept.size > 0 and x.min() < kept.min(),
        }
        found["mask"] = {name for name, holds in kinds.items() if holds}
    one, total = 1 << (spec.exp_bits - 1), int(trace.total.reshape(-1)[0])
    for less, sum_ in (("", total), (" less an element", total + one)):
        if sum_ % one == 0 and (sum_ // one).bit_count() == 1:
            found["total"].add(f"2**{(sum_ // one).bit_length() - 1}{less}")
    shift = spec.frac_bits - (spec.base == "sqrt2")
    place = trace.log_total + trace.distance + (1 << (shift - 1))
    for name, offset in (("just below", 1), ("at", 0), ("just above", -1)):
        moved = (place + offset).reshape(-1)
        on = moved[(moved & ((1 << shift) - 1)) == 0] >> shift
        found["threshold"] |= {f"{name} code {code}" for code in set(on.tolist())}
    found["code"] = {str(code) for code in set(trace.code.reshape(-1).tolist())}
    found["frac"] = {str(row.params.frac)}
    return found


# ---------------------------------------------------------------------------------------- LayerNorm


def _layernorm_bins(spec: Any) -> Bins:
    dyadic = spec.affine == "dyadic"
    signs = ["zero", "positive", "negative"] if dyadic else ["zero", "positive"]
    return {
        "row": ["constant", "largest variance", "negative sum", "positive sum", "sum of zero"],
        "zero point": ["lowest", "highest"],
        "gain": [*signs, "lowest", "highest"] if dyadic else [*signs, "highest"],
        "saturation": ["high", "low", "inside"],
        "tie": ["positive", "negative"],
        "shift": [str(shift) for shift in range(spec.max_shift + 1)],
        "point": ["lowest", "highest"],
        "segment": [str(index) for index in range(len(spec.rsqrt))],
    }


def _layernorm_hits(spec: Any, row: Row, trace: Any) -> Hits:
    params, bounds = row.params, spec.bounds
    total = int(trace.total.reshape(-1)[0])
    variance = int(trace.variance.reshape(-1)[0])
    kinds = {
        "constant": row.elements.size > 1 and bool((trace.centered == 0).all()),
        # The top octave of what the spec admits: the sum's and the sum of squares' registers are full.
        "largest variance": 2 * variance > bounds["variance"].high,
        "negative sum": total < 0,
        "positive sum": total > 0,
        "sum of zero": total == 0,
    }
    code = bounds["code"]
    saturation, tie = rounded(trace.scaled, spec.output_shift, code)
    gain = np.asarray(params.gain)
    signs = {"zero": gain == 0, "positive": gain > 0, "negative": gain < 0}
    half = 1 << (spec.in_bits - 1)
    return {
        "row": {name for name, holds in kinds.items() if holds},
        "zero point": ends(params.zero_point, Interval(-half, half - 1)),
        "gain": {n for n, holds in signs.items() if holds.any()} | ends(gain, spec.gain_range),
        "saturation": saturation,
        "tie": tie,
        "shift": {str(shift) for shift in set(np.asarray(params.shift).tolist())},
        "point": ends(params.point, Interval(0, spec.max_point)),
        "segment": {str(_segment(variance, spec))},
    }


def _segment(variance: int, spec: Any) -> int:
    """Entry of the reciprocal square root's table that a variance reads."""
    zeros, bits = spec.variance_bits - variance.bit_length(), len(spec.rsqrt).bit_length() - 2
    behind = variance.bit_length() - 1
    fraction = variance - (1 << behind)
    segment = fraction >> (behind - bits) if behind >= bits else fraction << (bits - behind)
    return ((1 - (zeros & 1)) << bits) | segment


# ----------------------------------------------------------------------- GELU, requant and residual


def _gelu_bins(spec: Any) -> Bins:
    code = spec.bounds["input"]
    return {
        "address": [str(value) for value in range(code.low, code.high + 1)],
        "entry": ["lowest", "highest"],
    }


def _gelu_hits(spec: Any, row: Row, trace: Any) -> Hits:
    return {
        "address": {str(value) for value in set(row.elements.tolist())},
        "entry": ends(trace, spec.bounds["code"]),
    }


def _requant_bins(spec: Any) -> Bins:
    return {
        "saturation": ["high", "low", "inside"],
        "tie": ["positive", "negative"],
        "accumulator": ["lowest", "highest"],
        "multiplier": ["lowest", "highest"],
        "shift": ["lowest", "highest"],
        "zero point": ["lowest", "highest"],
    }


def _requant_hits(spec: Any, row: Row, trace: Any) -> Hits:
    params, bounds = row.params, spec.bounds
    product = row.elements * np.asarray(params.multiplier).astype(np.int64)
    saturation, tie = rounded(product, np.asarray(params.shift), bounds["code"], params.zero_point)
    return {
        "saturation": saturation,
        "tie": tie,
        "accumulator": ends(row.elements, bounds["acc"]),
        "multiplier": ends(params.multiplier, MULTIPLIER),
        "shift": ends(params.shift, SHIFT),
        "zero point": ends(params.zero_point, bounds["code"]),
    }


def _residual_bins(spec: Any) -> Bins:
    shifts = [str(shift) for shift in range(spec.max_shift + 1)]
    both = ["lowest", "highest"]
    return {
        "saturation": ["high", "low", "inside"],
        "tie": ["positive", "negative"],
        "accumulator": both,
        "code in": both,
        "gain": both,
        "multiplier": both,
        "shift": both,
        "shift in": shifts,
        "shift out": shifts,
        "zero point in": both,
        "zero point": both,
    }


def _residual_hits(spec: Any, row: Row, trace: Any) -> Hits:
    params, bounds = row.params, spec.bounds
    half, codes = 1 << (spec.acc_bits - 1), Interval.of_bits(spec.in_bits, signed=True)
    acc = ((row.elements + half) & (2 * half - 1)) - half
    shift = params.shift + np.asarray(params.out_shift)
    saturation, tie = rounded(trace.total, shift, bounds["code"], params.zero_point)
    return {
        "saturation": saturation,
        "tie": tie,
        "accumulator": ends(acc, bounds["acc"]),
        "code in": ends(row.elements >> spec.acc_bits, codes),
        "gain": ends(params.gain, bounds["gain"]),
        "multiplier": ends(params.multiplier, bounds["multiplier"]),
        "shift": ends(params.shift, bounds["shift"]),
        "shift in": {str(x) for x in set(np.asarray(params.in_shift).tolist())},
        "shift out": {str(x) for x in set(np.asarray(params.out_shift).tolist())},
        "zero point in": ends(params.in_zero_point, codes),
        "zero point": ends(params.zero_point, bounds["code"]),
    }


BINS: dict[str, Callable[[Any], Bins]] = {
    "softmax": _softmax_bins,
    "layernorm": _layernorm_bins,
    "gelu": _gelu_bins,
    "requant": _requant_bins,
    "residual": _residual_bins,
}
FEATURES: dict[str, Callable[[Any, Row, Any], Hits]] = {
    "softmax": _softmax_hits,
    "layernorm": _layernorm_hits,
    "gelu": _gelu_hits,
    "requant": _requant_hits,
    "residual": _residual_hits,
}

# SPDX-License-Identifier: Apache-2.0
"""FQ-ViT's integer LayerNorm and log-int-softmax as exact arithmetic: a mode for parity, never hardware.

FQ-ViT is a float32 program on integers; here stands the rational result that it approximates, with its
own roundings where it rounds: *half to even* (rhe) where it rounds to nearest, down where it floors.

Requantiser (every activation quantiser; the tie is broken on the code, zero point included):

    y = sat(rhe(acc * M / 2**N + z))

LayerNorm of PTF codes (C channels; g = gamma / s_y and b = beta / s_y in units of the output code):

    X_c = (q_c - z) << (a_c - min a)                       the program's unit is the finest *used* scale
    S   = sum X,  V = C * sum X^2 - S^2,  r = sqrt(V)      std / scale = r / C; no eps
    A_c = C * |g_c| / r
    N_c = clip(7 - floor(log2 A_c), 0, 31)                 31 where A_c = 0
    M_c = min(floor(A_c * 2**N_c), 255)                    8 bits: up to 1 / 128 of a gain is lost
    B_c = rhe((b_c - g_c * S / r) * 2**N_c)                with the exact gain: the mean does not quite cancel
    y_c = sat(rhe((sign(g_c) * M_c * X_c + B_c) / 2**N_c) + z_y)

r is irrational: it is taken to 31 significant bits, rounded down (exact where V is a square), 7 bits
more than float32 has. g and b have 32 fraction bits. Where V = 0 the program divides by zero (its result
is infinite or not a number); here such a row counts as gamma = 0, which gives beta.

Log-int-softmax of scores on a uniform grid of scale s (its zero point cancels), n = 30:

    x_0 = ceil(0.6931 / s),  b = floor(2.7073 / s),  c = floor(2.7921 / s^2)
    d_i = min(max t - t_i, n * x_0);  p = d_i div x_0;  r = -(d_i mod x_0)
    e_i = max(r * (r + b) + c, 0) << (n - p)               i-exp, the polynomial of I-BERT
    Q_i = rhe(sum e / e_i);  f = floor(log2 Q_i);  f += 2 * Q_i >= 3 * 2**f
    code_i = min(f, 2**code_bits)                          17 levels: 0 to 15 mean 2**-code, 16 means 0

Where the program's float32 may leave these results: sums beyond 2**24 (V of a row whose mean is large loses
its low bits and may turn negative); A, log2 A and B next to a boundary of their rounding; B beyond 2**24; in
the softmax (q * s) / s, which need not be q and is not rounded again, 1 / s, which is rounded before it is
multiplied and floored, and the sum of the e_i, of up to 61 bits. As integers of 32 bits the e_i would
overflow. Masked elements are left out here; the program lowers their scores by 100.

Sources: FQ-ViT (arXiv 2111.13824, appendix A.1 and section 3.3; megvii-research/FQ-ViT, models/ptq/layers.py:
get_MN and QIntLayerNorm in mode "int", QIntSoftmax.int_softmax and .log_round; quantizer/uniform.py),
I-BERT (arXiv 2101.01321, section 3.5) for i-exp.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import isqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from golden.bounds import Interval
from golden.fixedpoint import Ints, bit_length, integer, integers, saturate
from golden.requant import RequantParams, RequantSpec

__all__ = [
    "FRACTION",
    "FqLayerNormParams",
    "FqLayerNormSpec",
    "FqSoftmaxParams",
    "FqSoftmaxSpec",
    "fq_layernorm",
    "fq_requantise",
    "fq_softmax",
    "half_even",
    "layernorm_params",
    "softmax_params",
]

FRACTION = 32
"""Fraction bits of gains and offsets: one more than the largest N, so that B is rounded once."""
MULTIPLIER_BITS = 8
LARGEST_SHIFT = 31
ROOT_BITS = 31
GAIN, OFFSET = Interval(-(1 << 44), 1 << 44), Interval(-(1 << 60), 1 << 60)
"""Legal gains and offsets; with rows of 4096 channels every intermediate value then fits 64 bits."""
LIMB = 20

LN2 = Fraction(6931, 10000)
LINEAR = Fraction(96963238, 35815147)
CONSTANT = Fraction(100000000, 35815147)
"""x^2 + LINEAR * x + CONSTANT is proportional to I-BERT's 0.35815147 * x^2 + 0.96963238 * x + 1."""


def half_even(
    x: Ints, n: Ints | int, add: Ints | int = 0, more: Any = False
) -> npt.NDArray[np.int64]:
    """``rhe(x / 2**n + add)`` for n from 0 to 62: the nearest integer, of two the even one.

    ``more``: booleans, True where the exact value lies above x by less than one (n > 0).

    >>> half_even(np.array([-3, -1, 1, 3, 5]), 1).tolist()
    [-2, 0, 0, 2, 2]
    """
    x, n = integers(x, "Value"), integers(n, "Shift")
    if n.size and (n.min() < 0 or n.max() > 62):
        raise ValueError(f"Shift must be from 0 to 62, not {int(n.min())!r} to {int(n.max())!r}")
    whole = (x >> n) + add
    rest, half = x - ((x >> n) << n), (np.int64(1) << n) >> 1
    up = (rest > half) | ((rest == half) & (more | (whole & 1 == 1)))
    return np.asarray(whole + (up & (n > 0)))


def fq_requantise(acc: Ints, spec: RequantSpec, params: RequantParams) -> npt.NDArray[np.int64]:
    """Codes of accumulators [..., C]: :func:`golden.requant.requantise` with the other rounding.

    One channel of parameters serves every channel. TypeError for floats, ValueError out of range.
    """
    params.check(spec)
    a = integers(acc, "Accumulators")
    spec.bounds["acc"].require(a, "Accumulator")
    channels = np.shape(params.multiplier)[0]
    if channels not in (1, a.shape[-1]):
        raise ValueError(f"Channels must be {channels}, not {a.shape[-1]!r}")
    product = a * integers(params.multiplier, "Multiplier")
    return saturate(half_even(product, params.shift, params.zero_point), spec.out_bits)


# --------------------------------------------------------------------------------------- LayerNorm


@dataclass(frozen=True, kw_only=True)
class FqLayerNormSpec:
    """max_channels: longest row, 1 to 4096.  in_bits, out_bits: signed codes, 4 to 8.  max_shift: 0 to 3.

    FQ-ViT's codes are unsigned: subtract 128 from them and from their zero point. Ties do not change.
    """

    max_channels: int = 3072
    in_bits: int = 8
    out_bits: int = 8
    max_shift: int = 3

    def __post_init__(self) -> None:
        integer(self.max_channels, "Maximum row length", 1, 4096)
        integer(self.in_bits, "Input width", 4, 8)
        integer(self.out_bits, "Output width", 4, 8)
        integer(self.max_shift, "Largest PTF shift", 0, 3)

    @cached_property
    def bounds(self) -> dict[str, Interval]:
        """Interval of parameters, input and output."""
        return {
            "input": Interval.of_bits(self.in_bits, signed=True),
            "shift": Interval(0, self.max_shift),
            "gain": GAIN,
            "offset": OFFSET,
            "code": Interval.of_bits(self.out_bits, signed=True),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class FqLayerNormParams:
    """What changes per layer; the arrays have one entry per channel.

    zero_point: z.  shift: a, [C].  gain, offset: g and b in units of 2**-FRACTION, [C].  out_zero_point: z_y.
    """

    zero_point: int
    shift: npt.NDArray[np.int64]
    gain: npt.NDArray[np.int64]
    offset: npt.NDArray[np.int64]
    out_zero_point: int

    @property
    def channels(self) -> int:
        """C, the row length these parameters are for."""
        return int(np.shape(self.shift)[0])

    def check(self, spec: FqLayerNormSpec) -> None:
        """Raise TypeError or ValueError unless the parameters suit ``spec``."""
        source, code = spec.bounds["input"], spec.bounds["code"]
        integer(self.zero_point, "Zero point", source.low, source.high)
        integer(self.out_zero_point, "Output zero point", code.low, code.high)
        length = np.shape(self.shift)
        if len(length) != 1 or not 1 <= length[0] <= spec.max_channels:
            raise ValueError(f"Shifts must be 1 to {spec.max_channels} channels, not {length!r}")
        for key, name, array in (
            ("shift", "PTF shift", self.shift),
            ("gain", "Gain", self.gain),
            ("offset", "Offset", self.offset),
        ):
            values = integers(array, name)
            if values.shape != length:
                raise ValueError(f"{name} must have shape {length!r}, not {values.shape!r}")
            spec.bounds[key].require(values, name)


def layernorm_params(
    gamma: Sequence[Fraction],
    beta: Sequence[Fraction],
    out_scale: Fraction,
    *,
    zero_point: int,
    shift: npt.NDArray[np.int64],
    out_zero_point: int,
) -> FqLayerNormParams:
    """Parameters of a LayerNorm with these weights, PTF input grid (its scale cancels) and output grid.

    ValueError where the output scale is not positive or a weight is beyond 4096 output codes (gamma) or
    2**28 (beta).
    """
    if out_scale <= 0:
        raise ValueError(f"Output scale must be positive, not {out_scale!r}")
    unit = Fraction(out_scale.denominator << FRACTION, out_scale.numerator)

    def whole(values: Sequence[Fraction], name: str, legal: Interval) -> npt.NDArray[np.int64]:
        codes = [integer(round(each * unit), name, legal.low, legal.high) for each in values]
        return np.array(codes, dtype=np.int64)

    return FqLayerNormParams(
        zero_point=zero_point,
        shift=shift,
        gain=whole(gamma, "Gain", GAIN),
        offset=whole(beta, "Offset", OFFSET),
        out_zero_point=out_zero_point,
    )


def fq_layernorm(
    codes: Ints, spec: FqLayerNormSpec, params: FqLayerNormParams
) -> npt.NDArray[np.int64]:
    """FQ-ViT's LayerNorm over the last axis, from PTF codes [..., C] to int64 codes [..., C].

    TypeError for floats, ValueError for a value or length out of range.
    """
    params.check(spec)
    q = integers(codes, "Codes")
    if q.shape[-1:] != (params.channels,):
        raise ValueError(f"Row length must be {params.channels}, not shape {q.shape!r}")
    spec.bounds["input"].require(q, "Code")
    count, shift = params.channels, integers(params.shift, "PTF shift")
    x = (q - params.zero_point) << (shift - shift.min())
    total = x.sum(axis=-1, keepdims=True)
    variance = count * (x * x).sum(axis=-1, keepdims=True) - total * total
    root, above = _root(variance)
    gain = np.where(variance > 0, integers(params.gain, "Gain"), 0)
    multiplier, n = _multiplier(count * np.abs(gain), root, above)
    # g * S / r with 32 fraction bits: quotient and whether there is a remainder.
    mean, inexact = _quotient(gain, total, root, above)
    below = integers(params.offset, "Offset") - mean - inexact
    offset = half_even(below, FRACTION - n, more=inexact)
    scaled = np.sign(gain) * multiplier * x + offset
    return saturate(half_even(scaled, n) + params.out_zero_point, spec.out_bits)


def _root(variance: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(R, k) with sqrt(V) = R / 2**k, R of ROOT_BITS bits, rounded down; something legal for V = 0."""
    positive = np.maximum(variance, 1)
    k = (2 * ROOT_BITS - bit_length(positive)) >> 1
    roots = [isqrt(value) for value in (positive << (2 * k)).ravel().tolist()]
    return np.array(roots, dtype=np.int64).reshape(k.shape), k


def _multiplier(
    gain: npt.NDArray[np.int64], root: npt.NDArray[np.int64], k: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(M, N) of A = (gain / 2**FRACTION) / (root / 2**k)."""

    def times(power: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.where(power < 0, gain >> np.maximum(-power, 0), gain << np.maximum(power, 0))

    length = bit_length(gain)
    # Both as numbers of ROOT_BITS bits: which one is larger decides floor(log2 A).
    octave = length - ROOT_BITS - FRACTION + k - (times(ROOT_BITS - length) < root)
    n = np.clip(MULTIPLIER_BITS - 1 - octave, 0, LARGEST_SHIFT)
    m = times(n + k - FRACTION) // root
    return np.minimum(m, (1 << MULTIPLIER_BITS) - 1), n


def _quotient(
    gain: npt.NDArray[np.int64],
    total: npt.NDArray[np.int64],
    root: npt.NDArray[np.int64],
    k: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """``gain * total * 2**k / root``, floored, and whether it was not whole: long division by limbs."""
    quotient, rest = np.divmod((gain >> LIMB) * total, root)
    for shift, low in ((LIMB, (gain & ((1 << LIMB) - 1)) * total), (k, 0)):
        digit, rest = np.divmod((rest << shift) + low, root)
        quotient = (quotient << shift) + digit
    return quotient, rest != 0


# ----------------------------------------------------------------------------------------- softmax


@dataclass(frozen=True, kw_only=True)
class FqSoftmaxSpec:
    """max_tokens: longest row, 1 to 4096.  score_bits: signed scores, 8 to 16.  code_bits: 3 to 6.

    octaves: n, the octaves that an exponential may be below the largest one, 16 to 30. FQ-ViT has 30; its
    authors recommend 20 where integers have 32 bits.
    """

    max_tokens: int = 1024
    score_bits: int = 8
    code_bits: int = 4
    octaves: int = 30

    def __post_init__(self) -> None:
        integer(self.max_tokens, "Maximum row length", 1, 4096)
        integer(self.score_bits, "Score width", 8, 16)
        integer(self.code_bits, "Code width", 3, 6)
        integer(self.octaves, "Octaves", 16, 30)

    @property
    def last_code(self) -> int:
        """The code that means exactly zero, one more than ``code_bits`` can hold: 16 for 4 bits."""
        return 1 << self.code_bits

    @cached_property
    def bounds(self) -> dict[str, Interval]:
        """Interval of parameters, input and output; a row's sum stays below 2**61."""
        largest = (1 << 61) // (self.max_tokens << self.octaves)
        return {
            "score": Interval.of_bits(self.score_bits, signed=True),
            "constant": Interval(1, largest),
            "code": Interval(0, self.last_code),
        }


@dataclass(frozen=True, kw_only=True)
class FqSoftmaxParams:
    """What changes per layer: the integers of i-exp at the scores' scale.

    octave: x_0, at least 1.  linear: b, at least x_0.  constant: c, at least 1.
    """

    octave: int
    linear: int
    constant: int

    def check(self, spec: FqSoftmaxSpec) -> None:
        """Raise TypeError or ValueError unless the parameters suit ``spec``."""
        constant = spec.bounds["constant"]
        integer(self.octave, "Octave", 1, 1 << 20)
        # From x_0 on, r + b is positive and no exponential exceeds that of the maximum.
        integer(self.linear, "Linear coefficient", self.octave, 1 << 22)
        integer(self.constant, "Constant", constant.low, constant.high)


def softmax_params(scale: Fraction) -> FqSoftmaxParams:
    """Parameters for scores on a grid of this scale; ValueError where i-exp has no such integers.

    >>> softmax_params(Fraction(1, 10))
    FqSoftmaxParams(octave=7, linear=27, constant=279)
    """
    if not Fraction(1, 1 << 16) <= scale <= Fraction(167, 100):
        raise ValueError(f"Scale of scores must be from 2**-16 to 1.67, not {scale!r}")
    return FqSoftmaxParams(
        octave=-(-LN2 // scale), linear=LINEAR // scale, constant=CONSTANT // (scale * scale)
    )


def fq_softmax(
    scores: Ints, spec: FqSoftmaxSpec, params: FqSoftmaxParams, mask: Any = None
) -> npt.NDArray[np.uint8]:
    """Codes 0 to ``spec.last_code`` of the softmax over the last axis, uint8 of the same shape.

    ``scores`` [..., N] and ``mask`` as in :func:`golden.softmax.softmax`. TypeError for floats, ValueError
    for a value or length out of range.

    >>> fq_softmax(np.array([0, 0, -7, -127]), FqSoftmaxSpec(), softmax_params(Fraction(1, 10))).tolist()
    [2, 2, 2, 16]
    """
    params.check(spec)
    t = integers(scores, "Scores")
    if not 1 <= t.shape[-1] <= spec.max_tokens:
        raise ValueError(f"Row length must be from 1 to {spec.max_tokens}, not {t.shape[-1]!r}")
    spec.bounds["score"].require(t, "Score")
    masked = np.zeros(t.shape, dtype=bool) if mask is None else np.broadcast_to(mask, t.shape)
    if masked.dtype != np.bool_:
        raise TypeError(f"Mask must be an array of booleans, not {masked.dtype}")

    maximum = np.where(masked, spec.bounds["score"].low, t).max(axis=-1, keepdims=True)
    distance = np.clip(maximum - t, 0, spec.octaves * params.octave)
    octave, rest = np.divmod(distance, params.octave)
    polynomial = params.constant - rest * (params.linear - rest)
    exponential = np.maximum(polynomial, 0) << (spec.octaves - octave)
    exponential[masked] = 0
    total = exponential.sum(axis=-1, keepdims=True)
    live = np.maximum(exponential, 1)
    quotient, rest = np.divmod(total, live)
    quotient += (2 * rest > live) | ((2 * rest == live) & (quotient & 1 == 1))
    log = bit_length(quotient) - 1
    log += 2 * quotient >= np.int64(3) << np.maximum(log, 0)
    code = np.where(exponential == 0, spec.last_code, np.minimum(log, spec.last_code))
    return code.astype(np.uint8)

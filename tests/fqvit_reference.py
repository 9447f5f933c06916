# SPDX-License-Identifier: Apache-2.0
"""FQ-ViT's LayerNorm and log-int-softmax from its paper and code, in exact rationals, and as a float program.

The exact part knows Python integers alone: a rational is a numerator and a positive denominator, arrays hold
objects, nothing can overflow or round unseen. It shares no code with golden.fqvit. ``Variant`` says how an
implementation may be wrong; the tests see every one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import isqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

Objects = Any  # numpy arrays of Python integers, dtype object


@dataclass(frozen=True)
class Variant:
    """``tie``: "even", or "up" for half up.  ``levels``: 17 or 16.  ``floored``: M is rounded down."""

    tie: str = "even"
    levels: int = 17
    floored: bool = True


EXACT = Variant()


def nearest(numerator: int, denominator: int, tie: str) -> int:
    """Nearest integer to a rational."""
    whole, rest = divmod(numerator, denominator)
    up = whole % 2 == 1 if tie == "even" else True
    return whole + (2 * rest > denominator or (2 * rest == denominator and up))


def binary_logarithm(numerator: int, denominator: int) -> int:
    """``floor(log2(numerator / denominator))``, of positive integers."""
    guess = numerator.bit_length() - denominator.bit_length()
    left, right = (
        (numerator, denominator << guess) if guess > 0 else (numerator << -guess, denominator)
    )
    return guess if left >= right else guess - 1


def square_root(value: int) -> tuple[int, int]:
    """(R, k): R / 2**k is the square root of a positive integer, cut behind 31 significant bits."""
    digits = -(-value.bit_length() // 2)  # of the root, before the point
    return isqrt(value << 2 * (31 - digits)), 31 - digits


@dataclass(frozen=True)
class Weights:
    """gamma / s_y and beta / s_y as numerators over 2**32, PTF shifts and zero points of one LayerNorm."""

    zero_point: int
    shift: list[int]
    gain: list[int]
    offset: list[int]
    out_zero_point: int


def layernorm_rows(codes: Any, weights: Weights, variant: Variant = EXACT) -> tuple[Objects, int]:
    """(codes of rows [rows, C], exact ties among the last roundings)."""
    finest = min(weights.shift)
    factors = np.array([2 ** (a - finest) for a in weights.shift], dtype=object)
    x = (np.asarray(codes).astype(object) - weights.zero_point) * factors
    count = x.shape[1]
    rows = []
    ties = 0
    for row, s, squares in zip(x.tolist(), x.sum(axis=1), (x * x).sum(axis=1), strict=True):
        variance = count * squares - s * s
        root, k = square_root(variance) if variance else (1, 0)
        scale = 2**k
        out = []
        for value, gain, offset in zip(row, weights.gain, weights.offset, strict=True):
            gain = gain if variance else 0
            m, n = multiplier(count * abs(gain) * scale, root << 32, variant)
            b = nearest((offset * root - gain * s * scale) << n, root << 32, variant.tie)
            top = (m * value if gain > 0 else -m * value) + b
            ties += n > 0 and top % (1 << n) == 1 << (n - 1)
            y = nearest(top, 1 << n, variant.tie) + weights.out_zero_point
            out.append(min(max(y, -128), 127))
        rows.append(out)
    return np.array(rows), ties


def multiplier(numerator: int, denominator: int, variant: Variant = EXACT) -> tuple[int, int]:
    """get_MN: 8 bits and a shift for a rational of at least zero."""
    if not numerator:
        return 0, 31
    n = min(max(7 - binary_logarithm(numerator, denominator), 0), 31)
    scaled = numerator << n
    m = scaled // denominator if variant.floored else nearest(scaled, denominator, "even")
    return min(m, 255), n


def softmax_integers(scale: Fraction) -> tuple[int, int, int]:
    """The integers of i-exp, from the constants as the program spells them."""
    a, b, c = Fraction("0.35815147"), Fraction("0.96963238"), Fraction(1)
    octave = -Fraction("0.6931") / scale
    return -(octave.numerator // octave.denominator), int(b / a / scale), int(c / a / scale**2)


def exponential(distance: int, integers: tuple[int, int, int], n: int = 30) -> int:
    """i-exp of a score that is ``distance`` codes below the maximum."""
    octave, linear, constant = integers
    x = max(-distance, -n * octave)
    q = x // -octave
    r = x + octave * q
    return max((r * (r + linear) + constant) * 2 ** (n - q), 0)


def softmax_code(total: int, e: int, variant: Variant = EXACT) -> int:
    """The code of an element: log_round of the rounded reciprocal; 16 levels have no zero of their own."""
    top = variant.levels - 1
    if not e:
        return top
    quotient = nearest(total, e, variant.tie)
    whole = quotient.bit_length() - 1
    # With 2**(whole - 1) as a rational: for a quotient of 1 it is one half.
    whole += Fraction(quotient - 2**whole) >= Fraction(2**whole, 2)
    return min(whole, top)


def softmax_rows(
    scores: Any, integers: tuple[int, int, int], variant: Variant = EXACT
) -> tuple[Objects, int]:
    """(codes of rows [rows, N], exact ties among the quotients)."""
    table: dict[int, int] = {}
    rows, ties = [], 0
    for row in np.asarray(scores).tolist():
        top = max(row)
        for score in row:
            if top - score not in table:
                table[top - score] = exponential(top - score, integers)
        line = [table[top - score] for score in row]
        total = sum(line)
        known = {e: softmax_code(total, e, variant) for e in set(line)}
        ties += sum(bool(e) and 2 * total % e == 0 and 2 * total // e % 2 == 1 for e in line)
        rows.append([known[e] for e in line])
    return np.array(rows), ties


# ------------------------------------------------------------------------------- the float program


def float_layernorm(
    codes: Any, zero_point: int, scales: Tensor, gamma: Tensor, beta: Tensor, out_scale: Tensor
) -> Tensor:
    """The published steps in float32, from dequantised codes [rows, C]: output integers, unclipped."""
    x = (torch.tensor(codes, dtype=torch.float32) - zero_point) * scales
    finest = scales.min()
    x = torch.round(x / scales) * torch.round(scales / finest)
    count = x.shape[-1]
    mean = x.mean(-1, keepdim=True) * finest
    spread = count * x.square().sum(-1, keepdim=True) - x.sum(-1, keepdim=True).square()
    std = finest / count * torch.sqrt(spread)
    slope = finest / std * gamma / out_scale
    n = torch.clamp(7 - torch.floor(torch.log2(slope.abs())), 0, 31)
    m = torch.clamp(torch.floor(slope.abs() * 2**n), 0, 255)
    b = torch.round((beta - mean / std * gamma) / out_scale * 2**n)
    return torch.round((torch.sign(slope) * m * x + b) / 2**n)


def float_softmax(codes: Any, zero_point: int, scale: Tensor, whole: bool = False) -> Tensor:
    """The published steps in float32, from dequantised scores [rows, N]: codes 0 to 16.

    ``whole``: as if scores were rounded once they are divided by their scale, which the program does not do.
    """
    x = (torch.tensor(codes, dtype=torch.float32) - zero_point) * scale / scale
    x = torch.round(x) if whole else x
    x = x - x.amax(-1, keepdim=True)
    octave = torch.floor(-0.6931 / scale)
    x = torch.maximum(x, 30 * octave)
    q = torch.floor(x / octave)
    r = x - octave * q
    z = r * (r + torch.floor(0.96963238 / 0.35815147 / scale))
    z = z + torch.floor(1.0 / 0.35815147 / scale**2)
    e = torch.floor(z * 2 ** (30 - q)).clamp(min=0)
    quotient = torch.round(e.sum(-1, keepdim=True) / e)
    log = torch.floor(torch.log2(quotient))
    log = log + (quotient - 2**log >= 2 ** (log - 1))
    return log.clamp(max=16)

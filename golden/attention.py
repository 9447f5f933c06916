# SPDX-License-Identifier: Apache-2.0
"""The product of attention's codes with v, by shifts; beside it q.k, which is :mod:`golden.scores`.

With v symmetric, codes c of golden.softmax, top = T the deepest octave that counts:

    acc_j = sum_i v_ij << (T - c_i)                      base 2: a code means 2**-c
    even  = sum_i v_ij << (T - c_i / 2)                  base sqrt 2, even codes
    odd   = sum_i v_ij << (T - (c_i + 1) / 2)            base sqrt 2, odd codes
    acc_j = even + rs(odd * SQRT2, 15)                   2**(-c/2) = sqrt 2 * 2**-((c+1)/2)
    y_j   = sat(rs(acc_j * M_h, N_h) + z)                M_h / 2**N_h = s_v * 2**-T * gain / s_y

SQRT2 has 16 bits and multiplies once per output. The last code means exactly zero and is skipped, as are
codes deeper than T = 22 octaves, which only codes of 5 and more bits to base 2 and of 6 bits to base
sqrt 2 have: weights below 2**-22. Codes of 4 bits to base 2 (T = 14) and of 5 bits to base sqrt 2
(T = 15) lose nothing.

How wide is acc? For arbitrary codes N * max|v| << T. Codes of one row of golden.softmax weigh less:

**The weights of a row sum to less than g * (1 + delta) + lambda** with g = 2**(1/2) (base 2) or 2**(1/4)
(base sqrt 2), delta = 2**-(log_index_bits + 1), lambda = (N - 1) * 2**-(W - 1): 1.479 for the
default spec, below 1.5. Proof, in golden.softmax's notation, F fraction bits, s = the code shift:

1. A code that is not the last has ``code << s >= L + d_i - 2**(s-1) + 1`` (floor of a sum with one half),
   and the table floors: ``L + 1 > 2**F * log2(S'')``, S'' being the middle of the segment of the table
   that holds S' = S / 2**(W-1), so S' < S'' * (1 + delta). Hence weight_i < g * 2**(-d_i / 2**F) / S''.
2. An e_i is short of its exact value by less than 1 (half a unit of the table, shifted, plus a floored
   shift: at most 1 - 2**-(k+1)), the maximum's by 0. So sum 2**(-d_i / 2**F) < S' + lambda.
3. If S'' >= g, the sum of the weights is below g * (S' + lambda) / S'' < g * (1 + delta) + lambda.
4. If S'' < g, the maximum's code is 0 and its weight 1, not g / S''; the others sum to less than
   g * (S' - 1 + lambda) / S'' < g * (1 + delta) - g * (1 - lambda) / S''. With lambda <= 1 that grows with
   S'' up to g * (1 + delta) - (1 - lambda): with the maximum, again g * (1 + delta) + lambda.
   With lambda > 1 (12-bit exponentials, thousands of tokens) it is largest at S'' = 1, and the bound is
   1 + g * (delta + lambda) instead; the larger of the two always holds.
5. Masked elements and rows that are masked throughout have last codes only: weight 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from math import prod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from golden.arrays import blocks, narrowest, scratch
from golden.bounds import Interval
from golden.fixedpoint import Ints, integer, rounding_shift
from golden.heads import by_heads, by_images, check_heads, per_head
from golden.matmul import exact_matmul
from golden.requant import RequantParams, RequantSpec
from golden.scores import SCORE_GRID, ScoreParams, ScoreSpec, attention_scores, score_rows
from golden.softmax import SoftmaxSpec

__all__ = [
    "ATTEND_GRID",
    "SCORE_GRID",
    "SQRT2",
    "SQRT2_BITS",
    "AttendSpec",
    "AttendTrace",
    "ScoreParams",
    "ScoreSpec",
    "attend",
    "attend_rows",
    "attend_trace",
    "attention_scores",
    "score_rows",
]

SQRT2_BITS = 15
"""Fraction bits of SQRT2."""
SQRT2 = 46341
"""round(2**15 * sqrt(2)), 16 bits unsigned; too large by 1.1e-6 of itself."""
MAX_TOP = 22
"""Largest T: 8-bit v then stay within 32-bit accumulators for rows of softmax codes."""


@dataclass(frozen=True, kw_only=True)
class AttendSpec:
    """What is fixed when the unit of codes and v is built.

    softmax: spec of the unit that the codes come from.  value_bits: width of v, 4 to 8, signed.
    out_bits: width of an output code, 3 to 16.  codes: "softmax" for accumulators as wide as rows of
    that softmax need (other rows are refused), "any" for accumulators that no codes can overflow.
    """

    softmax: SoftmaxSpec = field(default_factory=SoftmaxSpec)
    value_bits: int = 8
    out_bits: int = 8
    codes: Literal["softmax", "any"] = "softmax"

    def __post_init__(self) -> None:
        if not isinstance(self.softmax, SoftmaxSpec):
            raise TypeError(f"Softmax must be a SoftmaxSpec, not {self.softmax!r}")
        integer(self.value_bits, "Value width", 4, 8)
        integer(self.out_bits, "Output width", 3, 16)
        if self.codes not in ("softmax", "any"):
            raise ValueError(f"Codes must be 'softmax' or 'any', not {self.codes!r}")
        if self.bounds["acc"].bits > 40:
            raise ValueError(
                f"Accumulator width must be at most 40, not {self.bounds['acc'].bits!r}: "
                "use narrower codes, shorter rows or codes of softmax"
            )

    @property
    def per_octave(self) -> int:
        """Codes per octave: 1 for base 2, 2 for base sqrt 2."""
        return 2 if self.softmax.base == "sqrt2" else 1

    @property
    def top(self) -> int:
        """T: v is shifted left by T for code 0."""
        return min((self.softmax.last_code - 1) // self.per_octave, MAX_TOP)

    @property
    def shifts(self) -> tuple[int | None, ...]:
        """The left shift of v for each code; None where the code is skipped."""
        deep = [-(-code // self.per_octave) for code in range(self.softmax.last_code)]
        return (*(self.top - octave if octave <= self.top else None for octave in deep), None)

    @cached_property
    def row_weight(self) -> Fraction:
        """No weights of a row sum to more: the module's bound, or N for any codes."""
        unit, count = self.softmax, self.softmax.max_tokens
        if self.codes == "any":
            return Fraction(count)
        # Just above 2**(1/2) and 2**(1/4).
        g = Fraction(46341, 1 << 15) if self.per_octave == 1 else Fraction(38968, 1 << 15)
        delta = Fraction(1, 2 << unit.log_index_bits)
        lost = Fraction(count - 1, 1 << (unit.exp_bits - 1))
        return min(max(g * (1 + delta) + lost, 1 + g * (delta + lost)), Fraction(count))

    @cached_property
    def bounds(self) -> dict[str, Interval]:
        """Interval of every intermediate value, by the names of :class:`AttendTrace`.

        "weight": one 2**(T - code) as an integer.  "weights": their sum over a row, even codes or odd.
        """
        value = Interval.of_bits(self.value_bits, signed=True)
        row, one = self.row_weight, 1 << self.top
        slack = Fraction(
            SQRT2 * SQRT2, 2 << (2 * SQRT2_BITS)
        )  # (SQRT2 / sqrt 2)**2, above its root
        even = int(row * one)
        odd = int(row * one * Fraction(1 << SQRT2_BITS, SQRT2) * slack)
        odd = min(odd, self.softmax.max_tokens << (self.top - 1)) if self.per_octave == 2 else 0
        total = even if self.per_octave == 1 or self.codes == "any" else int(row * one * slack) + 1
        return {
            "value": value,
            "weight": Interval(0, one),
            "even_weights": Interval(0, even),
            "odd_weights": Interval(0, odd),
            "even": value * Interval(0, even),
            "odd": value * Interval(0, odd),
            "product": value * Interval(0, odd) * Interval(0, SQRT2),
            "acc": value * Interval(0, total),
            "code": Interval.of_bits(self.out_bits, signed=True),
        }

    @property
    def requant(self) -> RequantSpec:
        """Spec of the requantiser."""
        return RequantSpec(acc_bits=max(8, self.bounds["acc"].bits), out_bits=self.out_bits)


@dataclass(frozen=True)
class AttendTrace:
    """Every intermediate value, int64 [..., heads, N, d]; ``odd`` is 0 throughout for base 2."""

    even: Ints
    odd: Ints
    acc: Ints
    code: Ints


class _Unit:
    """Checked parameters, the tables of weights, and the sums of [images, heads, N, d]."""

    def __init__(self, spec: AttendSpec, params: RequantParams) -> None:
        params.check(spec.requant)
        self.spec, self.bounds = spec, spec.bounds
        self.rescale = per_head(params, spec.requant, params.zero_point)
        # Any codes at all: the check of a row's weights must not overflow itself.
        self.weights = narrowest(self.bounds["weight"].sum_of(spec.softmax.max_tokens))
        self.tables = [
            np.array(
                [
                    1 << shift if shift is not None and code % spec.per_octave == parity else 0
                    for code, shift in enumerate(spec.shifts)
                ],
                dtype=np.int32,
            )
            for parity in range(spec.per_octave)
        ]

    def total(self, codes: Ints, v: Ints, parity: int) -> Ints:
        """``sum_i v_i << shift(c_i)`` over the codes of one parity (base 2: over all)."""
        name = ("even", "odd")[parity]
        legal = self.bounds[f"{name}_weights"]
        # The codes are known to be within the table: "wrap" is the quickest way not to check again.
        weight = scratch("attend.weight", codes.shape, np.int32)
        self.tables[parity].take(codes, mode="wrap", out=weight)
        rows = weight.sum(axis=-1, dtype=self.weights)
        if not legal.holds(rows):
            raise ValueError(
                f"Codes must be a softmax's, with weights of at most {legal.high} in a row, "
                f"not {int(rows.max())!r}"
            )
        # Every partial sum is at most the row's weights times the largest |v|.
        value = self.bounds["value"]
        largest = legal.high * -value.low
        kind = narrowest(self.bounds[name] | Interval.of_bits(32, signed=True))
        out = scratch(f"attend.{name}", (*codes.shape[:-1], v.shape[-1]), kind)
        return exact_matmul(weight, v, self.bounds["weight"], value, partial=largest, out=out)

    def acc(self, codes: Ints, v: Ints) -> tuple[Ints, Ints | None, Ints]:
        """(even, odd, acc), in scratch memory; no odd for base 2."""
        even = self.total(codes, v, 0)
        if self.spec.per_octave == 1:
            return even, None, even  # within its bound, as the row's weights are
        odd = self.total(codes, v, 1)
        acc = even + rounding_shift(odd.astype(np.int64) * SQRT2, SQRT2_BITS)
        if not self.bounds["acc"].holds(acc):
            span = f"{int(acc.min())} to {int(acc.max())}"
            raise ValueError(f"Codes must be a softmax's, not lead to accumulators from {span}")
        return even, odd, acc


def _attend(
    codes: Ints, v: Ints, spec: AttendSpec, params: RequantParams
) -> tuple[_Unit, Ints, Ints, tuple[int, ...]]:
    """The unit, codes and v as [images, heads, ...], and the shape of the result."""
    unit = params.once(spec, lambda: _Unit(spec, params))
    c = by_heads(codes, "Codes", Interval(0, spec.softmax.last_code))
    values = by_heads(v, "Values", spec.bounds["value"])
    if not 1 <= c.shape[-1] <= spec.softmax.max_tokens:
        raise ValueError(
            f"Row length must be from 1 to {spec.softmax.max_tokens}, not {c.shape[-1]!r}"
        )
    if values.shape[-2] != c.shape[-1]:
        raise ValueError(f"Values must have {c.shape[-1]} tokens, not {values.shape[-2]!r}")
    lead = np.broadcast_shapes(c.shape[:-2], values.shape[:-2])
    check_heads(params, lead[-1])
    shape = (*lead, c.shape[-2], values.shape[-1])
    return unit, by_images(c, lead), by_images(values, lead), shape


def attend_trace(codes: Ints, v: Ints, spec: AttendSpec, params: RequantParams) -> AttendTrace:
    """:func:`attend` with every intermediate value."""
    unit, c, values, shape = _attend(codes, v, spec, params)
    even, odd, acc = unit.acc(c, values)
    parts = (even, np.zeros_like(even) if odd is None else odd, acc, unit.rescale(acc))
    return AttendTrace(*(part.astype(np.int64).reshape(shape) for part in parts))


def attend(codes: Ints, v: Ints, spec: AttendSpec, params: RequantParams) -> Ints:
    """Output codes [..., heads, N, d] of log2 codes [..., heads, N, M] and v [..., heads, M, d].

    In the narrowest type. ``params``: one channel per head (or one for all). TypeError for floats,
    ValueError for a value or length out of range and, unless ``spec.codes`` is "any", for rows that no
    softmax gives.
    """
    unit, c, values, shape = _attend(codes, v, spec, params)
    out = np.empty((len(c), *shape[-3:]), unit.rescale.kind)
    for part in blocks(len(c), prod(c.shape[1:])):
        unit.rescale(unit.acc(c[part], values[part])[2], out[part])
    return out.reshape(shape)


ATTEND_GRID: tuple[AttendSpec, ...] = (
    AttendSpec(),
    AttendSpec(softmax=SoftmaxSpec(base="sqrt2", code_bits=5)),
    AttendSpec(codes="any", softmax=SoftmaxSpec(max_tokens=577)),
    AttendSpec(codes="any", softmax=SoftmaxSpec(base="sqrt2", code_bits=5, max_tokens=257)),
    AttendSpec(
        softmax=SoftmaxSpec(
            code_bits=3, score_bits=8, frac_bits=3, max_tokens=64, log_index_bits=6
        ),
        value_bits=4,
        out_bits=4,
    ),
    AttendSpec(softmax=SoftmaxSpec(code_bits=6, exp_bits=18, log_index_bits=10), out_bits=10),
    AttendSpec(softmax=SoftmaxSpec(base="sqrt2", code_bits=6, exp_bits=12, max_tokens=600)),
    AttendSpec(softmax=SoftmaxSpec(base="sqrt2", code_bits=3, exp_bits=16, max_tokens=50)),
)
"""Specs that every check of codes and v runs on."""


def attend_rows(
    spec: AttendSpec, seed: int = 0
) -> Iterator[tuple[str, npt.NDArray[np.int64], npt.NDArray[np.int64], RequantParams]]:
    """Yield (name, codes [2, n, N], v [2, N, 3], params).

    v has a column at each end and a random one. Rows: each code alone, one code 0 and the rest last,
    all last, the flattest row of the softmax; for any codes also all 0 and all 1, which reach the bounds.
    """
    rng = np.random.default_rng(seed)
    last, full, value = spec.softmax.last_code, spec.softmax.max_tokens, spec.bounds["value"]

    def values(count: int) -> npt.NDArray[np.int64]:
        drawn = rng.integers(value.low, value.high, (2, count, 3), endpoint=True)
        drawn[..., 0], drawn[..., 1] = value.low, value.high
        return drawn

    def row(name: str, codes: Any) -> Any:
        array = np.asarray(codes, dtype=np.int64)
        both = np.stack([array, array[..., ::-1]])
        # Factors that bring the largest accumulator near the largest code, saturating in one head.
        shift = 16 + max(0, spec.bounds["acc"].bits - spec.out_bits)
        params = RequantParams(
            multiplier=rng.integers(1 << 15, 1 << 16, 2),
            shift=np.array([shift, shift - 3]),
            zero_point=-1 if "random" in name else 0,
        )
        return name, both, values(array.shape[-1]), params

    yield row("each code alone", np.arange(last + 1)[:, None])
    yield row("all last", np.full((1, full), last))
    one_hot = np.full((1, full), last)
    one_hot[0, full // 3] = 0
    yield row("one hot", one_hot)
    for count in sorted({1, 2, 3, min(full, 49), full}):
        octaves = (count - 1).bit_length()
        flat = min(octaves * spec.per_octave, last)
        yield row(f"uniform x {count}", np.full((1, count), flat))
        far = np.full((1, count), last - 1)
        far[0, 0] = 0
        if spec.codes == "any" or count << max(spec.shifts[last - 1] or 0, 0) <= 1 << spec.top >> 3:
            yield row(f"0 and {last - 1} x {count}", far)
    deep = rng.integers(min((full - 1).bit_length() * spec.per_octave, last), last + 1, (4, full))
    yield row("random deep", deep)
    if spec.codes == "any":
        yield row("all 0", np.zeros((1, full)))
        yield row("all 1", np.ones((1, full)))
        yield row("random", rng.integers(0, last, (4, full), endpoint=True))

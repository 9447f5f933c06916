# SPDX-License-Identifier: Apache-2.0
"""The two products of attention: q.k to base-2 scores, log2 codes with v by shifts.

    acc_ij   = sum_k q_ik * k_jk                         q, k symmetric codes, a scale per head
    score_ij = sat(rs(acc_ij * M_h, N_h) + bias_hij)     one (M, N) per head

M_h / 2**N_h is ``s_q * s_k * log2(e) / sqrt(d) * 2**f``: what comes out is what golden.softmax wants. The
bias, where a network has one (Swin's relative positions), is in the same units, times ``log2(e) * 2**f``,
and joins before the saturation: what it pulls back into range is kept. Then, with v symmetric, codes c of
that softmax, top = T the deepest octave that counts:

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
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from golden.bounds import Interval
from golden.fixedpoint import Ints, integer, integers, rounding_shift, saturate
from golden.matmul import exact_matmul
from golden.requant import MULTIPLIER, RequantParams, RequantSpec, requantise, rescale
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


# --------------------------------------------------------------------------------------- q.k


@dataclass(frozen=True, kw_only=True)
class ScoreSpec:
    """What is fixed when the unit of q.k is built.

    head_dim: longest q and k, 1 to 512.  bits: width of q and k, 4 to 8, signed.
    score_bits: width of a score, signed, 8 to 16.
    """

    head_dim: int = 64
    bits: int = 8
    score_bits: int = 12

    def __post_init__(self) -> None:
        integer(self.head_dim, "Head dimension", 1, 512)
        integer(self.bits, "Input width", 4, 8)
        integer(self.score_bits, "Score width", 8, 16)

    @cached_property
    def bounds(self) -> dict[str, Interval]:
        """Interval of every intermediate value."""
        code = Interval.of_bits(self.bits, signed=True)
        acc = (code * code).sum_of(self.head_dim)
        score = Interval.of_bits(self.score_bits, signed=True)
        return {
            "input": code,
            "product": code * code,
            "acc": acc,
            "scaled": acc * MULTIPLIER,  # N may be 0
            "bias": score,
            "biased": acc * MULTIPLIER + score,
            "score": score,
        }

    @property
    def requant(self) -> RequantSpec:
        """Spec of the requantiser."""
        return RequantSpec(acc_bits=max(8, self.bounds["acc"].bits), out_bits=self.score_bits)


def _heads(value: Ints, name: str, legal: Interval) -> Ints:
    array = np.asarray(value)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name} must be an array of integers, not {array.dtype}")
    if array.ndim < 3:
        raise ValueError(
            f"{name} must be [..., heads, tokens, channels], not shape {array.shape!r}"
        )
    if not legal.holds(array):
        span = f"{int(array.min())} to {int(array.max())}"
        raise ValueError(f"{name} must be from {legal.low} to {legal.high}, not {span}")
    return array


@dataclass(frozen=True, eq=False)
class ScoreParams:
    """What changes per layer.

    requant: one channel per head (or one for all), zero point 0.  bias: [heads, N, M] in units of a score and
    within its range, or None.
    """

    requant: RequantParams
    bias: Ints | None = None

    def check(self, spec: ScoreSpec) -> None:
        """Raise TypeError or ValueError unless the parameters suit ``spec``."""
        self.requant.check(spec.requant)
        if self.requant.zero_point:
            raise ValueError(f"Zero point of scores must be 0, not {self.requant.zero_point!r}")
        if self.bias is None:
            return
        bias, heads = integers(self.bias, "Bias"), np.shape(self.requant.multiplier)[0]
        if bias.ndim != 3 or heads not in (1, bias.shape[0]):
            wanted = "heads" if heads == 1 else heads
            raise ValueError(f"Bias must be [{wanted}, rows, columns], not shape {bias.shape!r}")
        spec.bounds["bias"].require(bias, "Bias")


def _heads_last(value: Ints) -> Ints:
    """[..., heads, rows, columns] to [..., rows, columns, heads]: a requantiser's channels are heads."""
    return np.moveaxis(value, -3, -1)


def attention_scores(
    q: Ints, k: Ints, spec: ScoreSpec, params: ScoreParams
) -> npt.NDArray[np.int64]:
    """Scores [..., heads, N, M] of q [..., heads, N, d] and k [..., heads, M, d].

    The bias serves all leading axes (images, windows). TypeError for floats, ValueError for a value or
    length out of range.
    """
    params.check(spec)
    legal = spec.bounds["input"]
    queries, keys = _heads(q, "Queries", legal), _heads(k, "Keys", legal)
    if not 1 <= queries.shape[-1] <= spec.head_dim:
        raise ValueError(
            f"Head dimension must be from 1 to {spec.head_dim}, not {queries.shape[-1]!r}"
        )
    if keys.shape[-1] != queries.shape[-1]:
        raise ValueError(f"Keys must have {queries.shape[-1]} channels, not {keys.shape[-1]!r}")
    acc = exact_matmul(queries, keys.swapaxes(-1, -2), legal, legal)
    scaled = np.moveaxis(rescale(_heads_last(acc), spec.requant, params.requant), -1, -3)
    if params.bias is not None:
        if params.bias.shape != scaled.shape[-3:]:
            raise ValueError(
                f"Bias must have shape {scaled.shape[-3:]!r}, not {params.bias.shape!r}"
            )
        scaled = scaled + integers(params.bias, "Bias")
    return saturate(scaled, spec.score_bits)


# --------------------------------------------------------------------------------------- codes.v


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

    even: npt.NDArray[np.int64]
    odd: npt.NDArray[np.int64]
    acc: npt.NDArray[np.int64]
    code: npt.NDArray[np.int64]


def attend_trace(codes: Ints, v: Ints, spec: AttendSpec, params: RequantParams) -> AttendTrace:
    """:func:`attend` with every intermediate value."""
    params.check(spec.requant)
    bounds, last = spec.bounds, spec.softmax.last_code
    c = _heads(codes, "Codes", Interval(0, last))
    values = _heads(v, "Values", bounds["value"])
    if not 1 <= c.shape[-1] <= spec.softmax.max_tokens:
        raise ValueError(
            f"Row length must be from 1 to {spec.softmax.max_tokens}, not {c.shape[-1]!r}"
        )
    if values.shape[-2] != c.shape[-1]:
        raise ValueError(f"Values must have {c.shape[-1]} tokens, not {values.shape[-2]!r}")

    def total(parity: int, name: str) -> npt.NDArray[np.int64]:
        table = np.array(
            [
                1 << shift if shift is not None and code % spec.per_octave == parity else 0
                for code, shift in enumerate(spec.shifts)
            ],
            dtype=np.int32,
        )
        weight, legal = table[c], bounds[name]
        rows = weight.sum(axis=-1, dtype=np.int64)
        if not legal.holds(rows):
            raise ValueError(
                f"Codes must be a softmax's, with weights of at most {legal.high} in a row, "
                f"not {int(rows.max())!r}"
            )
        # Every partial sum is at most the row's weights times the largest |v|.
        largest = legal.high * -bounds["value"].low
        return exact_matmul(weight, values, bounds["weight"], bounds["value"], partial=largest)

    even = total(0, "even_weights")
    if spec.per_octave == 1:
        odd, acc = np.zeros_like(even), even
    else:
        odd = total(1, "odd_weights")
        acc = even + rounding_shift(odd * SQRT2, SQRT2_BITS)
    if not bounds["acc"].holds(acc):
        span = f"{int(acc.min())} to {int(acc.max())}"
        raise ValueError(f"Codes must be a softmax's, not lead to accumulators from {span}")
    code = np.moveaxis(requantise(_heads_last(acc), spec.requant, params), -1, -3)
    return AttendTrace(even, odd, acc, code)


def attend(codes: Ints, v: Ints, spec: AttendSpec, params: RequantParams) -> npt.NDArray[np.int64]:
    """Output codes [..., heads, N, d] of log2 codes [..., heads, N, M] and v [..., heads, M, d].

    ``params``: one channel per head (or one for all). TypeError for floats, ValueError for a value or
    length out of range and, unless ``spec.codes`` is "any", for rows that no softmax gives.
    """
    return attend_trace(codes, v, spec, params).code


# --------------------------------------------------------------------------------------- checks

SCORE_GRID: tuple[ScoreSpec, ...] = (
    ScoreSpec(),
    ScoreSpec(head_dim=32, score_bits=16),
    ScoreSpec(head_dim=512, bits=6, score_bits=10),
    ScoreSpec(head_dim=8, bits=4, score_bits=8),
)
"""Specs that every check of q.k runs on."""

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


def _params(rng: np.random.Generator, heads: int, acc: Interval, bits: int) -> RequantParams:
    """Factors that bring the largest accumulator near the largest code, saturating in one head."""
    shift = 16 + max(0, acc.bits - bits)
    return RequantParams(
        multiplier=rng.integers(1 << 15, 1 << 16, heads),
        shift=np.full(heads, shift) - np.arange(heads) % 2 * min(3, shift),
        zero_point=0,
    )


def score_rows(
    spec: ScoreSpec, seed: int = 0
) -> Iterator[tuple[str, npt.NDArray[np.int64], npt.NDArray[np.int64], ScoreParams]]:
    """Yield (name, q [2, n, d], k [2, m, d], params): both ends of the accumulator, one channel, ties.

    Biases reach each end of the score from inside, pass it by one, and pull a product that is far beyond
    it back into range.
    """
    rng = np.random.default_rng(seed)
    code, full, score = spec.bounds["input"], spec.head_dim, spec.bounds["score"]
    low, high = code.low, code.high

    def draw(*shape: int) -> npt.NDArray[np.int64]:
        return rng.integers(low, high, shape, endpoint=True)

    params = ScoreParams(_params(rng, 2, spec.bounds["acc"], spec.score_bits))
    ends = np.stack([np.full((2, full), value) for value in (low, high)], axis=1)
    yield "both ends", ends, ends, params
    for name, value in (("lowest bias", score.low), ("highest bias", score.high)):
        unscaled = RequantParams(multiplier=np.array([65535]), shift=np.array([0]), zero_point=0)
        bias = np.full((2, 2, 2), value)
        yield f"both ends, {name}", ends, ends, ScoreParams(unscaled, bias)
    yield "zero", np.zeros((2, 1, full), np.int64), draw(2, 3, full), params
    for d in sorted({1, full // 2 or 1, full}):
        q, k = draw(2, 3, d), draw(2, 5, d)
        yield f"random, {d} channels", q, k, params
        bias = rng.integers(score.low, score.high, (2, 3, 5), endpoint=True)
        yield f"random, {d} channels, bias", q, k, ScoreParams(params.requant, bias)
    # A factor of 2**-1: a tie at every odd accumulator.
    halves = RequantParams(multiplier=np.array([1 << 15]), shift=np.array([16]), zero_point=0)
    one, every = np.ones((2, 1, 1), np.int64), np.arange(low, high + 1)
    keys = every.reshape(1, -1, 1).repeat(2, axis=0)
    yield "ties", one, keys, ScoreParams(halves)
    rounded = (every + 1) >> 1
    for end in (score.low, score.high):
        for off in (-1, 0, 1):
            # Within the bias's own range: half of the scores, those of the same sign, arrive there.
            bias = np.clip(end + off - rounded, score.low, score.high).reshape(1, 1, -1)
            yield f"{end} {off:+d}", one, keys, ScoreParams(halves, bias.repeat(2, axis=0))
    # Without a bias every score but 0 saturates here (N = 0, M at least 2**15).
    plain = RequantParams(multiplier=np.array([1 << 15]), shift=np.array([0]), zero_point=0)
    small = np.array([-1, 0, 1]).reshape(1, 3, 1).repeat(2, axis=0)
    for end in (score.low, score.high):
        yield f"far beyond, bias {end}", one, small, ScoreParams(plain, np.full((2, 1, 3), end))


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
        acc, zero = spec.bounds["acc"], -1 if "random" in name else 0
        params = _params(rng, 2, acc, spec.out_bits)
        params = RequantParams(multiplier=params.multiplier, shift=params.shift, zero_point=zero)
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

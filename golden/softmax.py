# SPDX-License-Identifier: Apache-2.0
"""Softmax to log2 codes: adders, shifts and two tiny tables.

A row of scores ``t`` is base-2 fixed point with f fraction bits (the requantiser after Q.K^T has
absorbed ``scale * log2(e) / sqrt(d)``). With F = ``spec.frac_bits`` >= f and W = ``spec.exp_bits``:

    m      = max t                                over the elements that are not masked
    d_i    = min((m - t_i) << (F - f), D)         D = 2**(octave_bits + F) - 1, masked: d_i = D
    e_i    = EXP2[d_i mod 2**F] >> (d_i div 2**F) W bits, 1.0 is 2**(W-1)
    S      = sum e_i
    L      = floor(2**F * (log2(S) - (W-1)))      leading one and table, at least 0
    code_i = (L + d_i + 2**(F-1)) >> F            base 2
    code_i = (L + d_i + 2**(F-2)) >> (F-1)        base sqrt 2
    code_i = min(code_i, 2**code_bits - 1)        the last code means exactly zero

A code means ``2**-code`` (or ``2**(-code/2)``). ``-log2(softmax_i) = d_i / 2**F + log2(S)`` where
``d_i`` is whole, so flooring ``2**F * log2(S)`` *before* the sum loses nothing: the codes are those of
an exact logarithm of the same S. What remains is the rounding of the ``e_i`` and the finite table.
D lies beyond every exponential that is not zero and every code but the last: the cut is exact.

The result depends on neither the order of arrival nor on how many elements arrive at once.
Sources: log2 codes from FQ-ViT (arXiv 2111.13824, section 3.3), base sqrt 2 from RepQ-ViT
(arXiv 2212.08254, section 3.3), base-2 exponentials from Softermax (arXiv 2103.09301).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from golden.arrays import blocks, constant, fitting, narrowest, scratch
from golden.bounds import Interval
from golden.cycles import RowPipeline, tree_levels
from golden.fixedpoint import Ints, integer
from golden.tables import exp2_table, log2_table, read_log2

__all__ = [
    "SPEC_GRID",
    "SoftmaxParams",
    "SoftmaxSpec",
    "SoftmaxTrace",
    "corner_rows",
    "softmax",
    "softmax_pipeline",
    "softmax_trace",
]

ALIGN_STEPS = 4
"""A layer's fraction bits f are F, F-1, F-2 or F-3: a four-way multiplexer in hardware."""


@dataclass(frozen=True, kw_only=True)
class SoftmaxSpec:
    """What is fixed when a softmax unit is built.

    max_tokens: longest row, 1 to 4096.  score_bits: width of a score, signed, 8 to 16.
    frac_bits: F, fraction bits of the tables, 2 to 6.  code_bits: width of a code, 3 to 6.
    base: "2" or "sqrt2".  exp_bits: W, width of an exponential, 12 to 18.
    log_index_bits: bits behind the leading one that index the logarithm's table, F to 10.
    """

    max_tokens: int = 1024
    score_bits: int = 12
    frac_bits: int = 4
    code_bits: int = 4
    base: Literal["2", "sqrt2"] = "2"
    exp_bits: int = 15
    log_index_bits: int = 8

    def __post_init__(self) -> None:
        integer(self.max_tokens, "Maximum row length", 1, 4096)
        integer(self.score_bits, "Score width", 8, 16)
        integer(self.frac_bits, "Fraction width", 2, 6)
        integer(self.code_bits, "Code width", 3, 6)
        if self.base not in ("2", "sqrt2"):
            raise ValueError(f"Code base must be '2' or 'sqrt2', not {self.base!r}")
        integer(self.exp_bits, "Exponential width", 12, 18)
        integer(self.log_index_bits, "Logarithm index width", self.frac_bits, 10)

    @property
    def last_code(self) -> int:
        """The code that means exactly zero."""
        return (1 << self.code_bits) - 1

    @property
    def code_shift(self) -> int:
        """Fraction bits that rounding to a code removes: F, or F - 1 for base sqrt 2."""
        return self.frac_bits - (self.base == "sqrt2")

    @property
    def octave_bits(self) -> int:
        """Whole bits of a distance: enough to flush an exponential and to reach the last code."""
        code_octaves = self.code_bits - (self.base == "sqrt2")
        return max(self.exp_bits.bit_length(), code_octaves)

    @property
    def distance_bits(self) -> int:
        """Width of a distance d."""
        return self.octave_bits + self.frac_bits

    @property
    def exp2(self) -> tuple[int, ...]:
        """The table EXP2, 2**F entries of W bits."""
        return exp2_table(self.frac_bits, self.exp_bits)

    @property
    def log2(self) -> tuple[int, ...]:
        """The table of fraction bits behind a leading one."""
        return log2_table(self.frac_bits, self.log_index_bits)

    @cached_property
    def bounds(self) -> dict[str, Interval]:
        """Interval of every intermediate value, by the names of :class:`SoftmaxTrace`."""
        score = Interval.of_bits(self.score_bits, signed=True)
        total = Interval(0, 1 << (self.exp_bits - 1)).sum_of(self.max_tokens)
        log_high = int(_log2(np.array([total.high]), self)[0])
        return {
            "score": score,
            "maximum": score,
            "distance": Interval.of_bits(self.distance_bits, signed=False),
            "exponential": Interval(0, 1 << (self.exp_bits - 1)),
            "total": total,
            "log_total": Interval(0, log_high),
            "code": Interval(0, self.last_code),
        }


@dataclass(frozen=True, kw_only=True)
class SoftmaxParams:
    """What changes per layer: ``frac``, the scores' fraction bits f, from F - 3 (at least 0) to F."""

    frac: int

    def check(self, spec: SoftmaxSpec) -> None:
        """Raise TypeError or ValueError unless the parameters suit ``spec``."""
        low = max(0, spec.frac_bits - ALIGN_STEPS + 1)
        integer(self.frac, "Score fraction bits", low, spec.frac_bits)

    def words(self, spec: SoftmaxSpec) -> list[tuple[int, int]]:
        """Writes of the parameter port, (word address, unsigned 32-bit value), in order."""
        self.check(spec)
        return [(0, self.frac)]


@dataclass(frozen=True)
class SoftmaxTrace:
    """Every intermediate value of a softmax; int64, row values keep a last axis of 1."""

    maximum: npt.NDArray[np.int64]
    distance: npt.NDArray[np.int64]
    exponential: npt.NDArray[np.int64]
    total: npt.NDArray[np.int64]
    log_total: npt.NDArray[np.int64]
    code: npt.NDArray[np.uint8]


def _operands(
    scores: Ints, spec: SoftmaxSpec, params: SoftmaxParams, mask: Any
) -> tuple[Ints, npt.NDArray[np.bool_] | None]:
    """The scores, and the mask in their shape (None where nothing is masked), after their checks."""
    params.check(spec)
    t = fitting(scores, "Scores", spec.score_bits)
    if not 1 <= t.shape[-1] <= spec.max_tokens:
        raise ValueError(f"Row length must be from 1 to {spec.max_tokens}, not {t.shape[-1]!r}")
    if mask is None:
        return t, None
    masked = np.broadcast_to(mask, t.shape)
    if masked.dtype != np.bool_:
        raise TypeError(f"Mask must be an array of booleans, not {masked.dtype}")
    return t, masked


def softmax_trace(
    scores: Ints, spec: SoftmaxSpec, params: SoftmaxParams, mask: Any = None
) -> SoftmaxTrace:
    """:func:`softmax` with every intermediate value."""
    given, hidden = _operands(scores, spec, params, mask)
    t = given.astype(np.int64)
    masked = np.zeros(t.shape, dtype=bool) if hidden is None else hidden

    f = spec.frac_bits
    maximum = np.where(masked, spec.bounds["score"].low, t).max(axis=-1, keepdims=True)
    distance = np.minimum((maximum - t) << (f - params.frac), spec.bounds["distance"].high)
    distance = np.where(masked, spec.bounds["distance"].high, distance)
    table = np.array(spec.exp2, dtype=np.int64)
    exponential = table[distance & ((1 << f) - 1)] >> (distance >> f)
    total = exponential.sum(axis=-1, keepdims=True)
    log_total = _log2(total, spec)
    half = 1 << (spec.code_shift - 1)
    code = np.minimum((log_total + distance + half) >> spec.code_shift, spec.last_code)
    return SoftmaxTrace(maximum, distance, exponential, total, log_total, code.astype(np.uint8))


def _log2(total: Ints, spec: SoftmaxSpec) -> npt.NDArray[np.int64]:
    """L of the module's formula; 0 where total is below 1.0.

    Only a row whose elements are all masked has a total below 1.0 (its maximum contributes 1.0).
    """
    table = constant(spec.log2, np.dtype(np.int64))
    log = read_log2(total, table, spec.frac_bits) - ((spec.exp_bits - 1) << spec.frac_bits)
    return np.maximum(log, 0)


@cache
def _exponentials(exp2: tuple[int, ...], distances: int) -> npt.NDArray[np.int32]:
    """EXP2[d mod 2**F] >> (d div 2**F) for every distance d below ``distances``."""
    d = np.arange(distances)
    table = np.array(exp2, dtype=np.int32)[d % len(exp2)] >> (d // len(exp2)).astype(np.int32)
    table.flags.writeable = False
    return table


@cache
def _distance_type(spec: SoftmaxSpec, align: int) -> np.dtype[np.signedinteger[Any]]:
    """Wide enough for any distance before it is cut, and for what a code is shifted down from."""
    score, distance = spec.bounds["score"], spec.bounds["distance"]
    return narrowest((score - score) << align | distance + spec.bounds["log_total"] + distance)


def softmax(
    scores: Ints, spec: SoftmaxSpec, params: SoftmaxParams, mask: Any = None
) -> npt.NDArray[np.uint8]:
    """Log2 codes of the softmax over the last axis.

    ``scores``: integers of any shape [..., N], 1 <= N <= ``spec.max_tokens``, each within
    ``spec.score_bits`` bits, ``params.frac`` of them fraction. ``mask``: booleans that broadcast to
    it, True takes an element out of the row (its code is the last one). Returns uint8 codes of the
    same shape. TypeError for floats, ValueError for a value or length out of range.

    >>> spec = SoftmaxSpec()
    >>> softmax(np.array([0, 0, -16, -32]), spec, SoftmaxParams(frac=4)).tolist()
    [1, 1, 2, 3]
    """
    t, masked = _operands(scores, spec, params, mask)
    count = t.shape[-1]
    rows, hidden = t.reshape(-1, count), None if masked is None else masked.reshape(-1, count)
    codes = np.empty(rows.shape, np.uint8)
    for part in blocks(len(rows), count):
        masked_part = None if hidden is None else hidden[part]
        _codes(rows[part], spec, params, masked_part, codes[part])
    return codes.reshape(t.shape)


def _codes(
    t: Ints,
    spec: SoftmaxSpec,
    params: SoftmaxParams,
    masked: npt.NDArray[np.bool_] | None,
    out: npt.NDArray[np.uint8],
) -> None:
    """Codes of rows [n, N]: :func:`softmax_trace` in place, with one table for all exponentials."""
    score, distance = spec.bounds["score"], spec.bounds["distance"]
    align = spec.frac_bits - params.frac
    d = scratch("softmax.distance", t.shape, _distance_type(spec, align))
    np.copyto(d, t, casting="unsafe")
    if masked is None:
        maximum = d.max(axis=-1, keepdims=True)
    else:
        maximum = d.max(axis=-1, keepdims=True, where=~masked, initial=score.low)
    np.subtract(maximum, d, out=d)
    if align:
        d <<= align
    np.clip(d, 0, distance.high, out=d)
    if masked is not None:
        np.copyto(d, distance.high, where=masked)
    exponential = scratch("softmax.exponential", t.shape, np.int32)
    _exponentials(spec.exp2, distance.high + 1).take(d, mode="wrap", out=exponential)
    total = exponential.sum(axis=-1, keepdims=True, dtype=np.int32)
    log_total = _log2(total, spec) + (1 << (spec.code_shift - 1))
    d += log_total.astype(d.dtype)
    d >>= spec.code_shift
    np.clip(d, 0, spec.last_code, out=d)
    np.copyto(out, d, casting="unsafe")


def softmax_pipeline(spec: SoftmaxSpec, lanes: int) -> RowPipeline:
    """Cycle model of the unit in ``rtl/softmax.py``: two waits, for the maximum and for the sum."""
    levels = tree_levels(lanes)
    return RowPipeline(
        lanes=lanes,
        waits=(3 + levels, 11 + levels),
        drain=4,
        max_beats=-(-spec.max_tokens // lanes),
    )


SPEC_GRID: tuple[SoftmaxSpec, ...] = (
    SoftmaxSpec(),
    SoftmaxSpec(base="sqrt2", code_bits=5),
    SoftmaxSpec(score_bits=8, frac_bits=3, code_bits=3, max_tokens=64, log_index_bits=6),
    SoftmaxSpec(score_bits=16, frac_bits=6, code_bits=6, exp_bits=18, log_index_bits=10),
    SoftmaxSpec(base="sqrt2", frac_bits=2, code_bits=6, exp_bits=12, max_tokens=600),
    SoftmaxSpec(base="sqrt2", code_bits=3, exp_bits=16, max_tokens=577),
)
"""Specs that every check of the operator runs on."""


def corner_rows(
    spec: SoftmaxSpec, seed: int = 0
) -> Iterator[tuple[str, Ints, npt.NDArray[np.bool_], SoftmaxParams]]:
    """Yield (name, scores [N], mask [N], params): the rows on which peers' units were wrong.

    Uniform, one-hot, sorted, all-minimum and all-maximum rows; totals at and just below a power of
    two; distances on both sides of every code threshold; lone and masked elements.
    """
    rng = np.random.default_rng(seed)
    low, high = spec.bounds["score"].low, spec.bounds["score"].high
    finest = SoftmaxParams(frac=spec.frac_bits)
    coarsest = SoftmaxParams(frac=max(0, spec.frac_bits - ALIGN_STEPS + 1))

    def row(name: str, scores: Any, params: SoftmaxParams = finest, mask: Any = False) -> Any:
        array = np.clip(np.atleast_1d(np.asarray(scores, dtype=np.int64)), low, high)
        array = array[: spec.max_tokens]
        hidden = np.asarray(mask, dtype=bool)
        hidden = np.full(array.shape, hidden) if hidden.ndim == 0 else hidden[: array.size]
        return name, array, hidden, params

    for n in sorted({1, 2, 255, 256, 257, 512, spec.max_tokens - 1, spec.max_tokens}):
        if 1 <= n <= spec.max_tokens:
            yield row(f"uniform {n}", np.full(n, -7))
    n = min(197, spec.max_tokens)
    one_hot = np.full(n, low)
    one_hot[n // 2] = high
    yield row("one hot", one_hot)
    yield row("one hot, coarsest", one_hot, coarsest)
    yield row("all minimum", np.full(n, low))
    yield row("all maximum", np.full(n, high))
    yield row("alternating extremes", np.where(np.arange(n) % 2, low, high))
    climb = np.linspace(low, high, n).astype(np.int64)
    yield row("ascending", climb)
    yield row("descending", climb[::-1])
    yield row("one element", [high])
    yield row("one element, minimum", [low])
    step = 1 << spec.frac_bits
    for octave in range(min(spec.last_code + 2, (high - low) // step)):
        # A lone maximum keeps S near 1.0, so these distances sit on both sides of a threshold.
        around = high - (octave * step + step // 2 + np.arange(-2, 3))
        yield row(f"threshold {octave}", [high, *around])
        yield row(f"threshold {octave} alone", [high, high - octave * step - step // 2])
    for power in range(1, spec.max_tokens.bit_length()):
        count = 1 << power
        for short in (0, 1):
            # count elements at the maximum sum to a power of two exactly; one less stays below.
            yield row(f"total 2**{power} less {short}", np.full(count - short, 5))
        yield row(f"total 2**{power} and a bit", [*np.full(count - 1, 5), 4])
    yield row("ties for the maximum", [high, high, 0, high, low, high])
    spread = rng.integers(low, high, n, endpoint=True)
    yield row("all masked", spread, mask=True)
    yield row("all but one masked", spread, mask=np.arange(n) != n // 3)
    hide_maximum = np.zeros(n, dtype=bool)
    hide_maximum[int(spread.argmax())] = True
    yield row("maximum masked", spread, mask=hide_maximum)
    yield row("masked minimum row", np.full(n, low), mask=np.arange(n) % 2 == 0)
    for frac in range(coarsest.frac, spec.frac_bits + 1):
        near = np.clip(rng.normal(0, 3 << frac, n).astype(np.int64), low, high)
        yield row(f"bell, frac {frac}", near, SoftmaxParams(frac=frac), rng.random(n) < 0.1)

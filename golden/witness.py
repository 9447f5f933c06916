# SPDX-License-Identifier: Apache-2.0
"""Rows that witness a single wrong bit of a look-up table.

The last bit of an exponential is one part in 2**14 of a sum that is then rounded to a sixteenth of
an octave: random rows hardly ever see it. These rows are solved for it. In each, one table entry
puts an intermediate value right at a rounding boundary, so that an entry that is smaller by 1 (or,
in its twin, larger by 1) changes an output code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from golden.layernorm import INTERP_BITS, LayerNormParams, LayerNormSpec, layernorm_trace
from golden.softmax import SoftmaxParams, SoftmaxSpec

__all__ = ["layernorm_witnesses", "softmax_witnesses"]

SoftmaxRow = tuple[str, npt.NDArray[np.int64], SoftmaxParams]
LayerNormRow = tuple[str, npt.NDArray[np.int64], LayerNormParams]


def softmax_witnesses(spec: SoftmaxSpec, lanes: int) -> Iterator[SoftmaxRow]:
    """Yield (name, scores, params) for every entry of every lane's exponential table, with each of
    its four fine shifts, and for every entry of the logarithm's table; each from below and above.
    """
    for lane in range(lanes):
        for index in range(4 << spec.frac_bits):
            for below in (0, 1):
                name = f"exp2[{index}] of lane {lane}, {'larger' if below else 'smaller'}"
                yield name, *_exponential(spec, lane, index, below)
    for index in range(1 << spec.log_index_bits):
        for above in (0, 1):
            name = f"log2[{index}], {'larger' if above else 'smaller'}"
            yield name, *_logarithm(spec, index, above)


def _exp(spec: SoftmaxSpec, distance: int) -> int:
    return spec.exp2[distance % (1 << spec.frac_bits)] >> (distance >> spec.frac_bits)


def _log(spec: SoftmaxSpec, total: int) -> int:
    """L of a total of at least 1.0."""
    whole = total.bit_length() - spec.exp_bits
    index = (total << spec.log_index_bits) >> (total.bit_length() - 1)
    return (whole << spec.frac_bits) + spec.log2[index - (1 << spec.log_index_bits)]


def _observer(spec: SoftmaxSpec, log: int) -> int:
    """A distance whose code is the last one from this L on and the one before it below this L."""
    return (spec.last_code << spec.code_shift) - (1 << (spec.code_shift - 1)) - log


def _fill(spec: SoftmaxSpec, amount: int) -> list[int]:
    """Distances whose exponentials, powers of two, sum to ``amount``."""
    point = spec.exp_bits - 1
    whole = [0] * (amount >> point)
    bits = [bit for bit in range(point) if amount >> bit & 1]
    return whole + [(point - bit) << spec.frac_bits for bit in bits]


def _scores(spec: SoftmaxSpec, distances: list[int]) -> npt.NDArray[np.int64]:
    return spec.bounds["score"].high - np.array(distances, dtype=np.int64)


def _exponential(
    spec: SoftmaxSpec, lane: int, index: int, below: int
) -> tuple[npt.NDArray[np.int64], SoftmaxParams]:
    """A row whose total lies at (or 1 below) a step of L, with element ``lane`` at ``index``."""
    fixed = _exp(spec, index) + _exp(spec, 0)
    total = fixed + 1
    while True:
        # The next step of L: the first total whose L exceeds that of the total before it.
        grain = 1 << max(total.bit_length() - 1 - spec.log_index_bits, 0)
        total = -(-total // grain) * grain
        if _log(spec, total) > _log(spec, total - 1):
            observer = _observer(spec, _log(spec, total))
            rest = total - below - fixed - _exp(spec, observer)
            if rest >= 0:
                break
        total += 1
    others = [0, observer, *_fill(spec, rest)]
    others += [spec.bounds["distance"].high] * max(0, lane - len(others))
    distances = [*others[:lane], index, *others[lane:]]
    return _scores(spec, distances), SoftmaxParams(frac=spec.frac_bits)


def _logarithm(
    spec: SoftmaxSpec, index: int, above: int
) -> tuple[npt.NDArray[np.int64], SoftmaxParams]:
    """A row whose total falls on ``index``, with an element that an L off by one moves."""
    # Two octaves above 1.0 there is room for the maximum and the observer in any total.
    point = spec.exp_bits + 1
    total = ((1 << spec.log_index_bits) + index) << (point - spec.log_index_bits)
    observer = _observer(spec, _log(spec, total) + above)
    rest = total - _exp(spec, 0) - _exp(spec, observer)
    return _scores(spec, [0, observer, *_fill(spec, rest)]), SoftmaxParams(frac=spec.frac_bits)


def layernorm_witnesses(spec: LayerNormSpec) -> Iterator[LayerNormRow]:
    """Yield (name, codes, params) for every entry of the reciprocal root's table, at the start of its
    segment (the base) and inside it (the slope); each from below and above.

    A lone value c among 17 channels has D = 16 c^2 + E, and E moves it through [1, 4) * 16 c^2, the
    whole table, while the score keeps the last bit of R. The offset puts the score at a tie.
    """
    codes = np.full(17, -1)
    codes[0] = (1 << (spec.in_bits - 1)) - 1
    lone = 1 << (spec.in_bits - 1)  # the zero point is -1
    half = 1 << (spec.table_bits - 1)
    whole = 1 << INTERP_BITS
    for entry in range(2 * half):
        start, width = (half + entry, 1) if entry < half else (2 * entry, 2)
        for fraction in (0, whole // 2, 3 * whole // 4, whole - 1):
            eps = (16 * lone * lone * (start * whole + width * fraction)) // (half * whole)
            eps = max(eps - 16 * lone * lone, spec.min_eps(spec.max_point))
            for step in (0, 1):
                name = f"rsqrt[{entry}] at {fraction}, {'larger' if step else 'smaller'}"
                yield name, codes, _at_a_tie(spec, codes, eps, step)


def _at_a_tie(
    spec: LayerNormSpec, codes: npt.NDArray[np.int64], eps: int, step: int
) -> LayerNormParams:
    """Gain 1; offsets that put channel 0 at a tie of the last rounding, less ``step``."""
    column = np.zeros(codes.size, np.int64)
    plain = LayerNormParams(
        zero_point=-1,
        eps=min(eps, (1 << spec.eps_bits) - 1),
        point=spec.max_point,
        shift=column,
        gain=column + (spec.affine == "dyadic"),
        offset=column,
    )
    score = layernorm_trace(codes, spec, plain).score
    offset = (1 << (spec.output_shift - 1)) - score - step
    return replace(plain, offset=offset)

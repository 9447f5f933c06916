# SPDX-License-Identifier: Apache-2.0
"""Rows on which a LayerNorm unit goes wrong if it does anywhere: :mod:`golden.layernorm`'s corners."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from golden.layernorm import LayerNormParams, LayerNormSpec, layernorm_trace

__all__ = ["corner_rows"]

SHORT = 24
"""Channels of the rows with a small D."""


def corner_rows(
    spec: LayerNormSpec, seed: int = 0
) -> Iterator[tuple[str, npt.NDArray[np.int64], LayerNormParams]]:
    """Yield (name, codes [C], params): extremes, ties and the rows on which peers' units were wrong.

    Constant rows (beta, no NaN), one-hot and two-level rows of the largest variance, rows whose
    sum is negative, gains that are negative or zero, zero points at both ends, shifts all zero and
    all at their largest, lengths of 1 and 2; rows to which a single bit of E or of D gives their scale;
    offsets solved so that the last rounding meets a tie and both of its neighbours, and so that the
    output saturates on either side by one; rows on a tie in all channels, with a D so small that a wrong low
    bit of it moves them off.
    """
    rng = np.random.default_rng(seed)
    low, high = -(1 << (spec.in_bits - 1)), (1 << (spec.in_bits - 1)) - 1
    top = spec.gain_range.high
    full, middle = spec.max_channels, min(10, spec.max_point)

    def params(count: int, **changes: Any) -> LayerNormParams:
        plain: dict[str, Any] = {
            "zero_point": 0,
            "eps": spec.min_eps(changes.get("point", middle)),
            "point": middle,
            "shift": rng.integers(0, spec.max_shift, count, endpoint=True),
            "gain": rng.integers(spec.gain_range.low, top, count, endpoint=True),
            "offset": rng.integers(-(1 << spec.output_shift), 1 << spec.output_shift, count),
        }
        return LayerNormParams(**(plain | changes))

    def spread(count: int) -> npt.NDArray[np.int64]:
        return rng.integers(low, high, count, endpoint=True)

    for count in sorted(n for n in {1, 2, 3, 192, full - 1, full} if 1 <= n <= full):
        for value in sorted({low, 0, high}):
            yield f"constant {value} x {count}", np.full(count, value), params(count)
        one_hot = np.full(count, low)
        one_hot[count // 2] = high
        widest = {"shift": np.full(count, spec.max_shift), "gain": np.full(count, top)}
        yield f"one hot x {count}", one_hot, params(count, zero_point=low, **widest)
        yield (
            f"one hot x {count}, finest",
            one_hot,
            params(count, point=spec.max_point, zero_point=high, **widest),
        )
        two_level = np.where(np.arange(count) % 2, low, high)
        yield f"largest variance x {count}", two_level, params(count, zero_point=low, **widest)
        largest_eps = (1 << spec.eps_bits) - 1
        yield f"largest E x {count}", two_level, params(count, eps=largest_eps)
        yield f"random x {count}", spread(count), params(count, point=spec.max_point)
        yield f"point 0 x {count}", spread(count), params(count, point=0)

    count = min(192, full)
    yield "all minimum, far zero point", np.full(count, low), params(count, zero_point=high)
    yield "negative sum", rng.integers(low, low // 2, count), params(count)
    yield "shifts all 0", spread(count), params(count, shift=np.zeros(count, np.int64))
    yield "nearly constant", np.arange(count) // (count - 1 or 1), params(count, eps=1)
    for gain in sorted({spec.gain_range.low, 0, 1, top}):
        yield f"gain {gain}", spread(count), params(count, gain=np.full(count, gain))
    for zero_point in (low, high):
        yield f"zero point {zero_point}", spread(count), params(count, zero_point=zero_point)

    # Without its one bit, E or D would be 0, and the codes far from what they are.
    for count in range(2, min(3, full) + 1):
        hot, zeros = np.arange(count) // (count - 1), np.zeros(count, np.int64)
        plain = {"gain": np.full(count, top), "offset": zeros}
        for bit in range(spec.eps_bits):
            yield f"E 2**{bit} x {count}", hot, params(count, eps=1 << bit, shift=zeros, **plain)
        for bit in range(spec.in_bits - 1):
            for shift in sorted({0, spec.max_shift}):  # D = (count - 1) * 4**(bit + shift)
                by_two = params(count, shift=zeros + shift, **plain)
                yield f"D from 2**{bit} << {shift} x {count}", hot << bit, by_two

    # Solve the offsets: with B = 0 the trace tells t*G, which the wanted values are offset from.
    codes, base = spread(count), params(count, offset=np.zeros(count, np.int64))
    product = layernorm_trace(codes, spec, base).scaled
    half, legal = 1 << (spec.output_shift - 1), spec.bounds["offset"]
    targets = (-1, 0, 1, (1 << (spec.out_bits - 1)) - 1, -(1 << (spec.out_bits - 1)) - 1)
    for target in targets:
        for step in (-1, 0, 1):
            wanted = (target << spec.output_shift) + half + step
            offset = np.clip(wanted - product, legal.low, legal.high)
            solved = replace(base, offset=offset)
            yield f"tie above {target}, {step:+d}", codes, solved

    count = min(SHORT, full)
    for step in (n for n in (1, 2, 3, 5, 7, 11) if n <= high):
        levels, zeros = np.arange(count) % 2 * step, np.zeros(count, np.int64)
        eps = spec.min_eps(spec.max_point) + int(rng.integers(64))
        plain = {"shift": zeros, "gain": np.full(count, top), "offset": zeros}
        base = params(count, eps=eps, point=spec.max_point, **plain)
        ties = half - layernorm_trace(levels, spec, base).scaled
        yield f"ties at D from {step}", levels, replace(base, offset=np.clip(ties, legal.low, legal.high))

# SPDX-License-Identifier: Apache-2.0
"""Mean over tokens: one adder and one accumulator per channel, and a requantiser.

    acc_c = sum_n (q_nc - z)
    y_c   = sat(rs(acc_c * M_c, N_c) + z')               golden.requant

M_c / 2**N_c is ``s_c / (s'_c * n)`` for n tokens: the division of the mean is in the factor, as are both
grids' PTF shifts, s_c = s << a_c, where the codes are those of the residual stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from golden.arrays import Params, fitting
from golden.bounds import Interval
from golden.cycles import RowPipeline, stream_pipeline
from golden.fixedpoint import Ints, integer
from golden.requant import MULTIPLIER, RequantParams, RequantSpec, requantise

__all__ = [
    "SPEC_GRID",
    "PoolParams",
    "PoolSpec",
    "PoolTrace",
    "corner_rows",
    "pool",
    "pool_pipeline",
    "pool_trace",
]


@dataclass(frozen=True, kw_only=True)
class PoolSpec:
    """What is fixed when the unit is built.

    max_tokens: most tokens, 1 to 4096.  in_bits: width of an input code, 4 to 16, signed.
    out_bits: width of an output code, 3 to 16, signed.
    """

    max_tokens: int = 1024
    in_bits: int = 8
    out_bits: int = 8

    def __post_init__(self) -> None:
        integer(self.max_tokens, "Maximum number of tokens", 1, 4096)
        integer(self.in_bits, "Input width", 4, 16)
        integer(self.out_bits, "Output width", 3, 16)

    @cached_property
    def bounds(self) -> dict[str, Interval]:
        """Interval of every intermediate value."""
        code = Interval.of_bits(self.in_bits, signed=True)
        acc = (code - code).sum_of(self.max_tokens)
        return {
            "input": code,
            "x": code - code,
            "acc": acc,
            "product": acc * MULTIPLIER,
            "code": Interval.of_bits(self.out_bits, signed=True),
        }

    @property
    def requant(self) -> RequantSpec:
        """Spec of the requantiser."""
        return RequantSpec(acc_bits=max(8, self.bounds["acc"].bits), out_bits=self.out_bits)


@dataclass(frozen=True, kw_only=True, eq=False)
class PoolParams(Params):
    """What changes per layer.

    in_zero_point: z.  requant: M, N and z', of one or C channels.
    """

    in_zero_point: int
    requant: RequantParams

    def check(self, spec: PoolSpec) -> None:
        """Raise TypeError or ValueError unless the parameters suit ``spec``."""
        code = spec.bounds["input"]
        integer(self.in_zero_point, "Input zero point", code.low, code.high)
        self.requant.check(spec.requant)


@dataclass(frozen=True)
class PoolTrace:
    """Every intermediate value; [..., C]."""

    acc: Ints
    code: Ints


def pool_trace(codes: Ints, spec: PoolSpec, params: PoolParams) -> PoolTrace:
    """:func:`pool` with every intermediate value."""
    params.check(spec)
    q = fitting(codes, "Codes", spec.in_bits)
    if q.ndim < 2 or not 1 <= q.shape[-2] <= spec.max_tokens:
        raise ValueError(
            f"Codes must be [..., 1 to {spec.max_tokens} tokens, channels], not shape {q.shape!r}"
        )
    acc = q.sum(axis=-2, dtype=np.int64) - q.shape[-2] * params.in_zero_point
    return PoolTrace(acc, requantise(acc, spec.requant, params.requant))


def pool(codes: Ints, spec: PoolSpec, params: PoolParams) -> Ints:
    """Codes [..., C] of the mean over the tokens of codes [..., N, C], in the narrowest type.

    TypeError for floats, ValueError for a value or length out of range.

    >>> third = RequantParams(multiplier=np.array([43691]), shift=np.array([17]), zero_point=0)
    >>> params = PoolParams(in_zero_point=1, requant=third)
    >>> pool(np.array([[1, 4], [2, 5], [3, 6]]), PoolSpec(), params).tolist()
    [1, 4]
    """
    return pool_trace(codes, spec, params).code


def pool_pipeline(spec: PoolSpec, lanes: int) -> RowPipeline:
    """Cycle model of the last token's row, with which the mean comes out: 9 registers, whatever the widths.

    Tokens arrive as rows of C elements; those before the last yield nothing. 1 q - z, while the channel's sum
    and parameters leave their memories, 2 the sum with q - z, beside the multiplier and back to its memory
    (for the first token q - z alone), 3 to 9 as in golden.requant. A channel comes again after as many cycles
    as a row has beats; where these are fewer than 3, the sum under way is taken, not the one in the memory.
    """
    return stream_pipeline(lanes, 9)


SPEC_GRID: tuple[PoolSpec, ...] = (
    PoolSpec(),
    PoolSpec(max_tokens=49, in_bits=16, out_bits=16),
    PoolSpec(max_tokens=4096, in_bits=16, out_bits=8),
    PoolSpec(max_tokens=7, in_bits=4, out_bits=3),
    PoolSpec(max_tokens=1, in_bits=10, out_bits=12),
)
"""Specs that every check of the operator runs on."""


def corner_rows(
    spec: PoolSpec, seed: int = 0
) -> Iterator[tuple[str, npt.NDArray[np.int64], PoolParams]]:
    """Yield (name, codes [n, 4], params): both ends of the accumulator, lengths, ties, saturation by one.

    Sums are solved for and shared out among the tokens, so that the four channels meet a rounding boundary
    and its neighbours, at ordinary codes and at both ends of the output.
    """
    rng = np.random.default_rng(seed)
    full, code, out = spec.max_tokens, spec.bounds["input"], spec.bounds["code"]

    def params(zero: int, multiplier: int, shift: int, channels: int = 4) -> PoolParams:
        requant = RequantParams(
            multiplier=np.full(channels, multiplier),
            shift=np.full(channels, shift),
            zero_point=-1 if shift else 0,
        )
        return PoolParams(in_zero_point=zero, requant=requant)

    mean = 15 + full.bit_length()
    yield "largest sum", np.full((full, 4), code.high), params(code.low, 65535, 0)
    yield "smallest sum", np.full((full, 4), code.low), params(code.high, 65535, 0)
    yield "largest shift", np.full((full, 4), code.high), params(code.low, 65535, 62)
    for count in sorted({1, 2, full // 2 or 1, full} & set(range(1, full + 1))):
        spread = rng.integers(code.low, code.high, (count, 4), endpoint=True)
        yield f"random x {count}", spread, params(3, 43691, mean, channels=1)
        yield (
            f"alternating x {count}",
            np.where(spread > 0, code.high, code.low),
            params(0, 65535, mean),
        )
    for target in (out.low - 1, out.low, -1, 0, 1, out.high, out.high + 1):
        for shift in (15, 16, 17):
            step = 1 << (shift - 15)
            wanted = (target + 1) * step + step // 2 + np.arange(-1, 3)
            shared = wanted // full + (np.arange(full)[:, None] < wanted % full)
            codes = np.clip(shared, code.low, code.high)
            yield f"tie above {target}, N={shift}", codes, params(0, 1 << 15, shift)

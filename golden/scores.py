# SPDX-License-Identifier: Apache-2.0
"""Attention scores: q.k, in the base-2 fixed point that golden.softmax takes.

    acc_ij   = sum_k q_ik * k_jk                         q, k symmetric codes, a scale per head
    score_ij = sat(rs(acc_ij * M_h, N_h) + bias_hij)     one (M, N) per head

M_h / 2**N_h is ``s_q * s_k * log2(e) / sqrt(d) * 2**f``: what comes out is what golden.softmax wants. The
bias, where a network has one (Swin's relative positions), is in the same units, times ``log2(e) * 2**f``,
and joins before the saturation: what it pulls back into range is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import numpy.typing as npt

from golden.arrays import Params, blocks, scratch
from golden.bounds import Interval
from golden.fixedpoint import Ints, integer, integers
from golden.heads import by_heads, by_images, check_heads, per_head
from golden.matmul import exact_matmul
from golden.requant import MULTIPLIER, RequantParams, RequantSpec, Rescaler

__all__ = ["SCORE_GRID", "ScoreParams", "ScoreSpec", "attention_scores", "score_rows"]


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


@dataclass(frozen=True, eq=False)
class ScoreParams(Params):
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


def attention_scores(q: Ints, k: Ints, spec: ScoreSpec, params: ScoreParams) -> Ints:
    """Scores [..., heads, N, M] of q [..., heads, N, d] and k [..., heads, M, d], in the narrowest type.

    The bias serves all leading axes (images, windows). TypeError for floats, ValueError for a value or
    length out of range.
    """
    rescale = params.once(spec, lambda: _score_rescaler(spec, params))
    legal = spec.bounds["input"]
    queries, keys = by_heads(q, "Queries", legal), by_heads(k, "Keys", legal)
    if not 1 <= queries.shape[-1] <= spec.head_dim:
        raise ValueError(
            f"Head dimension must be from 1 to {spec.head_dim}, not {queries.shape[-1]!r}"
        )
    if keys.shape[-1] != queries.shape[-1]:
        raise ValueError(f"Keys must have {queries.shape[-1]} channels, not {keys.shape[-1]!r}")
    lead = np.broadcast_shapes(queries.shape[:-2], keys.shape[:-2])
    shape = (lead[-1], queries.shape[-2], keys.shape[-2])
    check_heads(params.requant, lead[-1])
    if params.bias is not None and np.shape(params.bias) != shape:
        raise ValueError(f"Bias must have shape {shape!r}, not {np.shape(params.bias)!r}")
    queries, keys = by_images(queries, lead), by_images(keys.swapaxes(-1, -2), lead)
    out = np.empty((len(queries), *shape), rescale.kind)
    for part in blocks(len(out), prod(shape)):
        acc = scratch("scores", out[part].shape, np.int32)
        exact_matmul(queries[part], keys[part], legal, legal, out=acc)
        rescale(acc, out[part])
    return out.reshape(*lead[:-1], *shape)


def _score_rescaler(spec: ScoreSpec, params: ScoreParams) -> Rescaler:
    params.check(spec)
    return per_head(params.requant, spec.requant, 0 if params.bias is None else params.bias)


SCORE_GRID: tuple[ScoreSpec, ...] = (
    ScoreSpec(),
    ScoreSpec(head_dim=32, score_bits=16),
    ScoreSpec(head_dim=512, bits=6, score_bits=10),
    ScoreSpec(head_dim=8, bits=4, score_bits=8),
)
"""Specs that every check of q.k runs on."""


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

    params = ScoreParams(
        RequantParams(
            multiplier=rng.integers(1 << 15, 1 << 16, 2),
            shift=16 + max(0, spec.bounds["acc"].bits - spec.score_bits) - np.array([0, 3]),
            zero_point=0,
        )
    )
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

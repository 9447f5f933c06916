# SPDX-License-Identifier: Apache-2.0
"""The rest of an FQ-ViT block in exact arithmetic: what stands between its LayerNorm and its softmax.

FQ-ViT has a quantiser behind every operation: q, k and v share one scale and one zero point z, scores are
quantised uniformly, and proj and fc2 have 8-bit outputs that the residual adds to the stream.

    acc_ij   = sum_k (q_ik - z) * (k_jk - z)
    score_ij = sat(rhe(acc_ij * M / 2**N + z_s))                        M / 2**N = s^2 / sqrt(d) / s_s
    acc_ij   = sum_k (v_kj - z) << (T - c_ik)                           c = 16 of 17 levels: left out; T = 15
    y_ij     = sat(rhe(acc_ij * M / 2**N + z_y))                        M / 2**N = s * 2**-T / s_y
    X_c      = (q_c - z) << a_c                                         the stream, PTF codes
    y_c      = sat(rhe((X_c * M1 + (p_c - z_p) * M2_c) / 2**(N + b_c) + z_y))  p: the branch's codes

Everything else of a block is a linear operator without requantiser and :func:`golden.fqvit.fq_requantise`.
Where the program departs: sums and scales are float32 there, so a ratio of scales has 24 bits (M has 16) and
a sum near a tie may round the other way; its GELU is a float function of unquantised sums.

Source: megvii-research/FQ-ViT, models/vit_quant.py (Attention, Block), arXiv 2111.13824, section 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from golden.attention import ScoreParams, ScoreSpec
from golden.bounds import Interval
from golden.fixedpoint import Ints, integer, integers, saturate
from golden.fqvit import FqSoftmaxSpec, fq_requantise, half_even
from golden.matmul import exact_matmul
from golden.requant import RequantParams, RequantSpec
from golden.residual import ResidualParams, ResidualSpec

__all__ = [
    "FqAttendParams",
    "FqAttendSpec",
    "FqResidualParams",
    "FqScoreParams",
    "FqScoreSpec",
    "fq_attend",
    "fq_residual",
    "fq_scores",
]


def _centred(bits: int) -> Interval:
    """Range of a code less a zero point."""
    return Interval(-((1 << bits) - 1), (1 << bits) - 1)


@dataclass(frozen=True, kw_only=True)
class FqScoreSpec(ScoreSpec):
    """The fields of a :class:`golden.attention.ScoreSpec`; FQ-ViT's scores have 8 bits."""

    score_bits: int = 8

    @property
    def requant(self) -> RequantSpec:
        """Spec of the requantiser."""
        difference = _centred(self.bits)
        acc = (difference * difference).sum_of(self.head_dim)
        return RequantSpec(acc_bits=max(8, acc.bits), out_bits=self.score_bits)


@dataclass(frozen=True, kw_only=True)
class FqAttendSpec:
    """softmax: spec of the codes.  value_bits: width of v, 4 to 8, signed.  out_bits: 3 to 16."""

    softmax: FqSoftmaxSpec = field(default_factory=FqSoftmaxSpec)
    value_bits: int = 8
    out_bits: int = 8

    def __post_init__(self) -> None:
        if not isinstance(self.softmax, FqSoftmaxSpec):
            raise TypeError(f"Softmax must be an FqSoftmaxSpec, not {self.softmax!r}")
        integer(self.softmax.code_bits, "Code width", 3, 4)  # T grows with the number of codes
        integer(self.value_bits, "Value width", 4, 8)
        integer(self.out_bits, "Output width", 3, 16)

    @property
    def top(self) -> int:
        """T: v is shifted left by T for code 0."""
        return self.softmax.last_code - 1

    @cached_property
    def bounds(self) -> dict[str, Interval]:
        """Interval of every intermediate value, for rows of any codes."""
        difference = _centred(self.value_bits)
        return {
            "value": Interval.of_bits(self.value_bits, signed=True),
            "weight": Interval(0, 1 << self.top),
            "acc": (difference << self.top).sum_of(self.softmax.max_tokens),
            "code": Interval.of_bits(self.out_bits, signed=True),
        }

    @property
    def requant(self) -> RequantSpec:
        """Spec of the requantiser."""
        return RequantSpec(acc_bits=max(8, self.bounds["acc"].bits), out_bits=self.out_bits)


@dataclass(frozen=True, eq=False)
class FqScoreParams(ScoreParams):
    """What changes per layer: the requantiser (one channel, or one per head; any zero point) and z.

    There is no bias: FQ-ViT adds Swin's behind a quantiser of its own.
    """

    zero_point: int = 0

    def check(self, spec: ScoreSpec) -> None:
        """Raise TypeError or ValueError unless the parameters suit ``spec``."""
        codes = spec.bounds["input"]
        integer(self.zero_point, "Zero point", codes.low, codes.high)
        self.requant.check(spec.requant)
        if self.bias is not None:
            raise ValueError(f"Bias must be None, not of shape {np.shape(self.bias)!r}")


@dataclass(frozen=True, kw_only=True, eq=False)
class FqAttendParams(RequantParams):
    """What changes per layer: the requantiser (one channel, or one per head) and z of the values."""

    value_zero_point: int = 0

    def check(self, spec: RequantSpec) -> None:
        """Raise TypeError or ValueError unless the parameters suit ``spec``."""
        super().check(spec)
        integer(self.value_zero_point, "Zero point of values", -128, 127)


def _operand(value: Ints, name: str, bits: int, zero_point: int) -> Ints:
    array = integers(value, name)
    if array.ndim < 3:
        raise ValueError(
            f"{name} must be [..., heads, tokens, channels], not shape {array.shape!r}"
        )
    Interval.of_bits(bits, signed=True).require(array, name)
    return array - zero_point


def _requantise(acc: Ints, spec: RequantSpec, params: RequantParams) -> npt.NDArray[np.int64]:
    """[..., heads, rows, columns]: a requantiser's channels are heads."""
    return np.moveaxis(fq_requantise(np.moveaxis(acc, -3, -1), spec, params), -1, -3)


def fq_scores(q: Ints, k: Ints, spec: FqScoreSpec, params: FqScoreParams) -> npt.NDArray[np.int64]:
    """Scores [..., heads, N, M] of q [..., heads, N, d] and k [..., heads, M, d].

    TypeError for floats, ValueError for a value or length out of range.
    """
    params.check(spec)
    queries = _operand(q, "Queries", spec.bits, params.zero_point)
    keys = _operand(k, "Keys", spec.bits, params.zero_point)
    if not 1 <= queries.shape[-1] <= spec.head_dim:
        raise ValueError(
            f"Head dimension must be from 1 to {spec.head_dim}, not {queries.shape[-1]!r}"
        )
    if keys.shape[-1] != queries.shape[-1]:
        raise ValueError(f"Keys must have {queries.shape[-1]} channels, not {keys.shape[-1]!r}")
    legal = _centred(spec.bits)
    acc = exact_matmul(queries, keys.swapaxes(-1, -2), legal, legal)
    return _requantise(acc, spec.requant, params.requant)


def fq_attend(
    codes: Ints, v: Ints, spec: FqAttendSpec, params: FqAttendParams
) -> npt.NDArray[np.int64]:
    """Output codes [..., heads, N, d] of codes [..., heads, N, M] and v [..., heads, M, d].

    TypeError for floats, ValueError for a value or length out of range.
    """
    params.check(spec.requant)
    values = _operand(v, "Values", spec.value_bits, params.value_zero_point)
    c = integers(codes, "Codes")
    Interval(0, spec.softmax.last_code).require(c, "Code")
    if not 1 <= c.shape[-1] <= spec.softmax.max_tokens:
        raise ValueError(
            f"Row length must be from 1 to {spec.softmax.max_tokens}, not {c.shape[-1]!r}"
        )
    if values.shape[-2] != c.shape[-1]:
        raise ValueError(f"Values must have {c.shape[-1]} tokens, not {values.shape[-2]!r}")
    weights = np.array([*(1 << shift for shift in range(spec.top, -1, -1)), 0], dtype=np.int64)
    acc = exact_matmul(weights[c], values, spec.bounds["weight"], _centred(spec.value_bits))
    return _requantise(acc, spec.requant, params)


@dataclass(frozen=True, kw_only=True, eq=False)
class FqResidualParams(ResidualParams):
    """What changes per layer: as in the project's own residual, and z_p of the branch's codes."""

    branch_zero_point: int = 0

    def check(self, spec: ResidualSpec) -> None:
        """Raise TypeError or ValueError unless the parameters suit ``spec``."""
        super().check(spec)
        integer(self.branch_zero_point, "Branch zero point", -128, 127)


def fq_residual(
    codes: Ints, branch: Ints, spec: ResidualSpec, params: FqResidualParams
) -> npt.NDArray[np.int64]:
    """Codes of the stream [..., C] after a branch whose 8-bit codes [..., C] are added; axes broadcast.

    TypeError for floats, ValueError for a value or length out of range.
    """
    params.check(spec)
    q, p = integers(codes, "Codes"), integers(branch, "Branch codes")
    for name, values, bits in (("Codes", q, spec.in_bits), ("Branch codes", p, 8)):
        if values.shape[-1:] != (params.channels,):
            raise ValueError(
                f"Row length of {name.lower()} must be {params.channels}, "
                f"not shape {values.shape!r}"
            )
        Interval.of_bits(bits, signed=True).require(values, name)
    x = (q - params.in_zero_point) << integers(params.in_shift, "Input PTF shift")
    total = x * params.gain + (p - params.branch_zero_point) * integers(params.multiplier, "M2")
    removed = params.shift + integers(params.out_shift, "PTF shift")
    return saturate(half_even(total, removed, params.zero_point), spec.out_bits)

# SPDX-License-Identifier: Apache-2.0
"""The accumulators of the units, as :mod:`qvit_hw.proofs.accumulators` sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from golden.attend_unit import attend_words
from golden.attention import AttendSpec, attend_trace
from golden.bounds import Interval
from golden.layernorm import LayerNormParams, LayerNormSpec, layernorm_trace
from golden.requant import RequantParams
from golden.residual import ResidualParams, ResidualSpec, residual_trace
from golden.softmax import SoftmaxParams, SoftmaxSpec, softmax, softmax_trace
from qvit_hw.proofs.logic import Bits
from rtl.attention import ShiftAttend
from rtl.layernorm import PtfLayerNorm
from rtl.residual import PtfResidual
from rtl.softmax import Log2Softmax

__all__ = ["ACCUMULATORS", "Accumulator", "wider"]


@dataclass(frozen=True, kw_only=True)
class Accumulator:
    """A register that sums a row, or with ``count`` 1 one sum of products.

    make: the unit with so many bits more or less.  register, value: its name in the netlist and golden's.
    each: interval of what an element adds.  count: elements of the longest row.  lanes: elements a beat.
    bits: of the register.  element: bits of an element.  golden: the value of a row, its elements as the
    payload has them.  words, before: parameters and ``v`` that let rows reach the interval's ends.
    marks: what stands above the elements in a beat, a row's last or not.  row: elements that need every bit,
    where only some rows are legal; the solver finds one where it is empty.  of: these rows.
    """

    unit: str
    register: str
    value: str
    scope: str
    make: Callable[[int], Any]
    each: Interval
    count: int
    lanes: int
    bits: int
    element: int
    golden: Callable[[list[int]], int]
    words: Sequence[tuple[int, int]] = ()
    before: Sequence[int] = ()
    marks: Callable[[bool], int]
    row: Sequence[int] = ()
    of: str = ""

    @property
    def interval(self) -> Interval:
        """Golden's, of the longest row."""
        return self.each.sum_of(self.count) if self.count > 1 else self.each

    @property
    def signed(self) -> bool:
        """Whether the register is."""
        return self.interval.signed


def wider(spec: Any, name: str, more: int) -> Any:
    """The spec with so many bits more (or less) in one of its intervals."""
    changed, own = replace(spec), spec.bounds[name]
    bits = Interval.of_bits(own.bits + more, signed=own.signed)
    vars(changed)["bounds"] = {**spec.bounds, name: bits}
    return changed


def _softmax() -> Accumulator:
    spec = SoftmaxSpec(max_tokens=16, score_bits=8, frac_bits=2, code_bits=3, exp_bits=12, log_index_bits=2)

    def golden(row: list[int]) -> int:
        scores = np.array([Bits(8, value).signed_value for value in row])
        return int(softmax_trace(scores, spec, SoftmaxParams(frac=2)).total[0])

    return Accumulator(
        unit="softmax",
        register="probe_total",
        value="total",
        scope="2 lanes, rows of up to 16 elements",
        make=lambda more: Log2Softmax(wider(spec, "total", more), lanes=2),
        each=spec.bounds["exponential"],
        count=spec.max_tokens,
        lanes=2,
        bits=spec.bounds["total"].bits,
        element=8,
        golden=golden,
        words=SoftmaxParams(frac=2).words(spec),
        marks=lambda last: 0b1100 | last << 4,
    )


def _layernorm(register: str, value: str, zero_point: int) -> Accumulator:
    spec = LayerNormSpec(
        max_channels=8, in_bits=4, out_bits=3, max_shift=1, eps_bits=8, affine="shift", table_bits=4
    )
    count = spec.max_channels
    ones, zeros = np.ones(count, np.int64), np.zeros(count, np.int64)
    params = LayerNormParams(zero_point=zero_point, eps=1, point=0, shift=ones, gain=zeros, offset=zeros)

    def golden(row: list[int]) -> int:
        codes = np.array([Bits(4, each).signed_value for each in row])
        trace = layernorm_trace(codes, spec, params)
        return count if value == "count" else int(getattr(trace, value)[0])

    def make(more: int) -> Any:
        if value != "count":
            return PtfLayerNorm(wider(spec, value, more), lanes=2)
        own = count.bit_length() + more
        return type("Counting", (PtfLayerNorm,), {"_count_bits": property(lambda self: own)})(spec, lanes=2)

    names = {"total": "x", "squares": "square"}
    each = spec.bounds[names[value]] if value in names else Interval(0, 1)
    return Accumulator(
        unit="layernorm",
        register=register,
        value=value,
        scope="2 lanes, rows of up to 8 channels, any parameters",
        make=make,
        each=each,
        count=count,
        lanes=2,
        bits=each.sum_of(count).bits,
        element=4,
        golden=golden,
        words=params.words(spec),
        marks=lambda last: 0b11 | last << 2,
    )


def _attention(value: str, base: Literal["2", "sqrt2"] = "sqrt2", scores: Sequence[int] = ()) -> Accumulator:
    """Of rows of any codes, or with ``scores`` (a row that needs every bit) of rows of a softmax's codes."""
    own = SoftmaxSpec(
        max_tokens=8, score_bits=8, frac_bits=2, code_bits=3, exp_bits=12, log_index_bits=2, base=base
    )
    spec = AttendSpec(softmax=own, value_bits=4, out_bits=4, codes="softmax" if scores else "any")
    params = RequantParams(multiplier=np.array([40000]), shift=np.array([16]), zero_point=0)
    v = np.full((own.max_tokens, 1), -8)

    row = softmax(np.array(scores), own, SoftmaxParams(frac=2)).tolist() if scores else []

    def golden(row: list[int]) -> int:
        trace = attend_trace(np.array([[row]]), v[None, : len(row)], spec, params)
        return int(getattr(trace, value).reshape(-1)[0])

    return Accumulator(
        unit="attention",
        register=f"{value}_0",
        value=value,
        scope=f"1 lane, base {base}, rows of up to 8 codes of {'a softmax' if scores else 'any kind'}",
        make=lambda more: ShiftAttend(wider(spec, value, more), lanes=1),
        each=spec.bounds["value"] << (spec.top - (value == "odd")),
        count=own.max_tokens,
        lanes=1,
        bits=spec.bounds[value].bits,
        element=3,
        golden=golden,
        words=attend_words(params, spec, 0),
        before=[8 | (at == own.max_tokens - 1) << 4 for at in range(own.max_tokens)],
        marks=int,
        row=row,
        of=f" of a softmax's codes, base {base}," if scores else "",
    )


def _residual() -> Accumulator:
    spec = ResidualSpec(acc_bits=8, gain_bits=16, max_shift=1)
    bounds = spec.bounds
    params = ResidualParams(
        in_zero_point=127,
        in_shift=np.array([1]),
        gain=bounds["gain"].high,
        multiplier=np.array([bounds["multiplier"].high]),
        shift=20,
        zero_point=0,
        out_shift=np.array([0]),
    )

    def golden(row: list[int]) -> int:
        acc, code = Bits(8, row[0] & 255).signed_value, Bits(8, row[0] >> 8).signed_value
        return int(residual_trace(np.array([code]), np.array([acc]), spec, params).total[0])

    return Accumulator(
        unit="residual",
        register="total_0",
        value="total",
        scope="1 lane, 8-bit codes and accumulators, any parameters",
        make=lambda more: PtfResidual(wider(spec, "total", more), lanes=1),
        each=bounds["total"],
        count=1,
        lanes=1,
        bits=bounds["total"].bits,
        element=16,
        golden=golden,
        words=params.words(spec),
        marks=lambda last: 1 | last << 1,
    )


ACCUMULATORS: dict[str, Callable[[], Accumulator]] = {
    "softmax total": _softmax,
    "layernorm total": partial(_layernorm, "probe_total", "total", 7),
    "layernorm squares": partial(_layernorm, "probe_squares", "squares", 7),
    "layernorm count": partial(_layernorm, "count_1", "count", 7),
    "attention even": partial(_attention, "even"),
    "attention odd": partial(_attention, "odd"),
    "attention even, softmax, base 2": partial(_attention, "even", "2", (0, -16, -22, -8, -12, -20)),
    "attention even, softmax": partial(_attention, "even", "sqrt2", (0, -12)),
    "attention odd, softmax": partial(_attention, "odd", "sqrt2", (0, -4)),
    "residual total": _residual,
}
"""By unit and golden's name."""

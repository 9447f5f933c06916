# SPDX-License-Identifier: Apache-2.0
"""What is known about each operator: its golden function, cycle model, random parameters, corners.

:mod:`sim.scenarios` makes cases of it, whatever the operator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from golden.cycles import RowPipeline
from golden.gelu import GeluParams, GeluSpec, gelu, gelu_pipeline
from golden.gelu import corner_rows as gelu_corners
from golden.layernorm import (
    TABLE,
    WORD,
    LayerNormParams,
    LayerNormSpec,
    layernorm,
    layernorm_pipeline,
    layernorm_trace,
)
from golden.layernorm_corners import corner_rows as layernorm_corners
from golden.requant import (
    MULTIPLIER,
    SHIFT,
    RequantParams,
    RequantSpec,
    requant_pipeline,
    requantise,
)
from golden.requant import corner_rows as requant_corners
from golden.residual import (
    ResidualParams,
    ResidualSpec,
    residual,
    residual_pipeline,
    residual_trace,
)
from golden.residual import corner_rows as residual_corners
from golden.softmax import SoftmaxParams, SoftmaxSpec, softmax, softmax_pipeline, softmax_trace
from golden.softmax import corner_rows as softmax_corners
from golden.witness import layernorm_witnesses, softmax_witnesses
from golden.words import TABLE_WORDS

__all__ = ["Operator", "Row", "operator", "paired"]

LARGEST = "largest E"
"""Corner rows of LayerNorm whose variance, eps included, fills its register begin so."""
CLOSE = 16
"""Scores less than this below the largest have codes that depend on every bit of f."""


@dataclass(frozen=True)
class Row:
    """One row and the parameters it is computed with."""

    elements: npt.NDArray[np.int64]
    params: Any
    mask: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Operator:
    """What a scenario needs to know about an operator.

    trace gives the intermediate values of a row; random_params parameters for rows of up to so many
    elements; params_of the parameters that words have written.
    """

    spec: Any
    longest: int
    low: int
    high: int
    pipeline: Callable[[int], RowPipeline]
    golden: Callable[[Row], npt.NDArray[np.int64]]
    trace: Callable[[Row], Any]
    random_params: Callable[[np.random.Generator, int], Any]
    params_of: Callable[[dict[int, int], int], Any]
    corners: Callable[[], list[tuple[str, Row]]]
    witnesses: Callable[[int], list[Row]]
    masks: bool

    def telling_row(self, rng: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
        """Elements in which each parameter tells: half of them anywhere, half close to the largest."""
        row = rng.integers(self.low, self.high, count, endpoint=True)
        close = row[1::2]
        close[:] = np.maximum(row.max() - rng.integers(0, CLOSE, len(close)), self.low)
        return row


def operator(op: str, spec: dict[str, Any]) -> Operator:
    """Return the operator called ``op`` with the fields of its spec."""
    if op == "softmax":
        return _softmax(SoftmaxSpec(**spec))
    if op == "layernorm":
        return _layernorm(LayerNormSpec(**spec))
    if op == "gelu":
        return _gelu(GeluSpec(**spec))
    if op == "requant":
        return _requant(RequantSpec(**spec))
    if op == "residual":
        return _residual(ResidualSpec(**spec))
    raise ValueError(
        f"Operator must be softmax, layernorm, gelu, requant or residual, not {op!r}"
    )


def _softmax(spec: SoftmaxSpec) -> Operator:
    def params(rng: np.random.Generator, _: int) -> SoftmaxParams:
        low = max(0, spec.frac_bits - 3)
        return SoftmaxParams(frac=int(rng.integers(low, spec.frac_bits, endpoint=True)))

    score = spec.bounds["score"]
    return Operator(
        spec=spec,
        longest=spec.max_tokens,
        low=score.low,
        high=score.high,
        pipeline=lambda lanes: softmax_pipeline(spec, lanes),
        golden=lambda row: softmax(row.elements, spec, row.params, row.mask).astype(np.int64),
        trace=lambda row: softmax_trace(row.elements, spec, row.params, row.mask),
        random_params=params,
        params_of=lambda words, _: SoftmaxParams(frac=words[0]),
        corners=lambda: [
            (n, Row(np.asarray(x, np.int64), p, mask)) for n, x, mask, p in softmax_corners(spec)
        ],
        witnesses=lambda lanes: [Row(x, p) for _, x, p in softmax_witnesses(spec, lanes)],
        masks=True,
    )


def _layernorm(spec: LayerNormSpec) -> Operator:
    def random_params(rng: np.random.Generator, count: int) -> LayerNormParams:
        gain = spec.gain_range
        half = 1 << (spec.output_shift + spec.out_bits - 3)
        return LayerNormParams(
            zero_point=int(rng.integers(-(1 << (spec.in_bits - 1)), 1 << (spec.in_bits - 1))),
            eps=int(rng.integers(1, 2 << int(rng.integers(0, spec.eps_bits)))),
            point=int(rng.integers(spec.max_point // 2, min(13, spec.max_point + 1))),
            shift=rng.integers(0, spec.max_shift, count, endpoint=True),
            gain=rng.integers(gain.low, gain.high, count, endpoint=True),
            offset=rng.integers(-half, half, count),
        )

    def cut(row: Row) -> LayerNormParams:
        """The parameters of the row's channels: the unit counts what arrives."""
        count = row.elements.shape[-1]
        given: LayerNormParams = row.params
        columns = {name: getattr(given, name)[:count] for name in ("shift", "gain", "offset")}
        return replace(given, **columns)

    def differences(lanes: int) -> list[Row]:
        """Rows in which every lane sees every code against both ends' zero points; the largest shift."""
        longest, low = spec.max_channels, -(1 << (spec.in_bits - 1))
        largest = [each for each in layernorm_corners(spec) if each[0].startswith(LARGEST)]
        _, x, given = max(largest, key=lambda each: each[1].size)
        rows = [Row(x, replace(given, point=0, eps=max(given.eps, spec.min_eps(0))))]
        count = longest // lanes * lanes
        if spec.in_bits > 8 or not count:
            return rows
        codes = np.repeat(np.arange(low, -low, dtype=np.int64), lanes)
        codes = np.append(codes, np.zeros(-codes.size % count, np.int64))
        for zero_point in (low, -low - 1):
            params = replace(random_params(np.random.default_rng(0), count), zero_point=zero_point)
            rows += [Row(codes[at : at + count], params) for at in range(0, codes.size, count)]
        return rows

    def params_of(words: dict[int, int], count: int) -> LayerNormParams:
        """The parameters that a row of ``count`` channels sees after these writes."""

        def signed(value: int) -> int:
            return value - (1 << 32) if value >> 31 else value

        columns = {
            name: np.array([signed(words[base | channel]) for channel in range(count)], np.int64)
            for name, base in TABLE.items()
        }
        return LayerNormParams(
            zero_point=signed(words[WORD["zero_point"]]),
            point=words[WORD["point"]],
            eps=words[WORD["eps_low"]] | words[WORD["eps_high"]] << 32,
            **columns,
        )

    return Operator(
        spec=spec,
        longest=spec.max_channels,
        low=-(1 << (spec.in_bits - 1)),
        high=(1 << (spec.in_bits - 1)) - 1,
        pipeline=lambda lanes: layernorm_pipeline(spec, lanes),
        golden=lambda row: layernorm(row.elements, spec, cut(row)).astype(np.int64),
        trace=lambda row: layernorm_trace(row.elements, spec, cut(row)),
        random_params=random_params,
        params_of=params_of,
        corners=lambda: [(n, Row(x, p)) for n, x, p in layernorm_corners(spec)],
        witnesses=lambda lanes: [
            *(Row(x, p) for _, x, p in layernorm_witnesses(spec)),
            *differences(lanes),
        ],
        masks=False,
    )


def _gelu(spec: GeluSpec) -> Operator:
    code, entry = spec.bounds["input"], spec.bounds["code"]

    def params(rng: np.random.Generator, _: int) -> GeluParams:
        return GeluParams(table=rng.integers(entry.low, entry.high, spec.entries, endpoint=True))

    return Operator(
        spec=spec,
        longest=TABLE_WORDS,
        low=code.low,
        high=code.high,
        pipeline=lambda lanes: gelu_pipeline(spec, lanes),
        golden=lambda row: gelu(row.elements, spec, row.params).astype(np.int64),
        trace=lambda row: gelu(row.elements, spec, row.params),
        random_params=params,
        params_of=lambda words, _: GeluParams.from_words(words, spec),
        corners=lambda: [(n, Row(x, p)) for n, x, p in gelu_corners(spec)],
        witnesses=lambda _: [],
        masks=False,
    )


def _requant(spec: RequantSpec) -> Operator:
    acc, code = spec.bounds["acc"], spec.bounds["code"]

    def params(rng: np.random.Generator, count: int) -> RequantParams:
        # Factors from one that saturates most accumulators to one that leaves a few codes.
        middle = MULTIPLIER.bits + acc.bits - code.bits
        return RequantParams(
            multiplier=rng.integers(MULTIPLIER.low, MULTIPLIER.high, count, endpoint=True),
            shift=rng.integers(middle - 3, middle + 4, count),
            zero_point=int(rng.integers(code.low, code.high, endpoint=True)),
        )

    def cut(row: Row) -> RequantParams:
        """The parameters of the row's channels."""
        given: RequantParams = row.params
        count = row.elements.shape[-1]
        return replace(given, multiplier=given.multiplier[:count], shift=given.shift[:count])

    def across(acc: npt.NDArray[np.int64], given: RequantParams) -> Row:
        """Accumulators of one channel as a row of as many channels, alike."""
        multiplier, shift = (np.repeat(x, acc.size) for x in (given.multiplier, given.shift))
        return Row(acc.reshape(-1), replace(given, multiplier=multiplier, shift=shift))

    # The largest shift leaves nothing of an accumulator but the rounding of its sign.
    largest = RequantParams(
        multiplier=np.array([MULTIPLIER.high]), shift=np.array([SHIFT.high]), zero_point=1
    )
    furthest = ("N at its end", across(np.array([acc.low, -1, 0, acc.high]), largest))
    return Operator(
        spec=spec,
        longest=TABLE_WORDS,
        low=acc.low,
        high=acc.high,
        pipeline=lambda lanes: requant_pipeline(spec, lanes),
        golden=lambda row: requantise(row.elements, spec, cut(row)).astype(np.int64),
        trace=lambda row: requantise(row.elements, spec, cut(row)),
        random_params=params,
        params_of=RequantParams.from_words,
        corners=lambda: [*((n, across(x, p)) for n, x, p in requant_corners(spec)), furthest],
        witnesses=lambda _: [],
        masks=False,
    )


def paired(
    codes: npt.NDArray[np.int64], acc: npt.NDArray[np.int64], spec: ResidualSpec
) -> npt.NDArray[np.int64]:
    """The residual unit's elements: signed numbers, the code above the accumulator."""
    return (codes << spec.acc_bits) | (acc & ((1 << spec.acc_bits) - 1))


def _residual(spec: ResidualSpec) -> Operator:
    bounds, half = spec.bounds, 1 << (spec.acc_bits - 1)
    reach = 1 << (spec.in_bits - 1 + spec.acc_bits)

    def params(rng: np.random.Generator, count: int) -> ResidualParams:
        gain, top, code = bounds["gain"].high, bounds["multiplier"].high, bounds["code"]
        # Factors of any size, which leave the branch alone, or those with which both reach as far.
        if rng.random() < 0.5:
            top = min(top, max(bounds["kept"].high >> (spec.acc_bits - 1), 1))
        largest = max(bounds["kept"].high, top << (spec.acc_bits - 1))
        shift = largest.bit_length() - spec.out_bits
        return ResidualParams(
            in_zero_point=int(rng.integers(-(1 << (spec.in_bits - 1)), 1 << (spec.in_bits - 1))),
            in_shift=rng.integers(0, spec.max_shift, count, endpoint=True),
            gain=int(rng.integers(gain // 2, gain, endpoint=True)),
            multiplier=rng.integers(top // 2, top, count, endpoint=True),
            shift=int(np.clip(shift + rng.integers(-3, 2), 0, bounds["shift"].high)),
            zero_point=int(rng.integers(code.low, code.high, endpoint=True)),
            out_shift=rng.integers(0, spec.max_shift, count, endpoint=True),
        )

    def apart(row: Row) -> Any:
        """Codes, accumulators and the parameters of the row's channels."""
        acc = ((row.elements + half) & (2 * half - 1)) - half
        given, count = row.params, row.elements.shape[-1]
        names = ("in_shift", "multiplier", "out_shift")
        cut = replace(given, **{name: getattr(given, name)[:count] for name in names})
        return row.elements >> spec.acc_bits, acc, spec, cut

    return Operator(
        spec=spec,
        longest=TABLE_WORDS,
        low=-reach,
        high=reach - 1,
        pipeline=lambda lanes: residual_pipeline(spec, lanes),
        golden=lambda row: residual(*apart(row)).astype(np.int64),
        trace=lambda row: residual_trace(*apart(row)),
        random_params=params,
        params_of=ResidualParams.from_words,
        corners=lambda: [(n, Row(paired(q, a, spec), p)) for n, q, a, p in residual_corners(spec)],
        witnesses=lambda _: [],
        masks=False,
    )

# SPDX-License-Identifier: Apache-2.0
"""Linear layer: integer weights per output channel, one bias, one requantisation.

    acc_o = bias_o + sum_k W_ok * x_k                 exact, within acc_bits
    y_o   = sat(rs(acc_o * M_o, N_o) + z)             golden.requant; without out_bits y is acc

x are codes, signed (or raw unsigned pixels). Their zero point is not subtracted at run time: with
b_o the layer's own bias in units of the accumulator, ``sum W (x - z) + b = sum W x + (b - z sum W)``, so
the bias holds ``b_o - z * sum_k W_ok`` (:func:`fold_zero_point`). Weights are symmetric, without the most
negative code. The head has no ``out_bits``: its accumulators are the logits. proj, fc2 and the patch
embedding have none either: :mod:`golden.residual` takes their accumulators.

The bias may use whatever room the products leave, so no order of adding can overflow: every partial
sum of bias and products lies within acc_bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from golden.arrays import BLOCK, Params, blocks, narrowest, scratch, whole
from golden.bounds import Interval
from golden.fixedpoint import Ints, integer, integers
from golden.matmul import RightFactor
from golden.requant import RequantParams, RequantSpec, Rescaler

__all__ = [
    "SPEC_GRID",
    "LinearParams",
    "LinearSpec",
    "accumulate",
    "corner_rows",
    "fold_zero_point",
    "linear",
]


ROWS = 256
"""Fewest rows of a matrix product that is cut into blocks: shorter ones do not repay their preparation."""


@dataclass(frozen=True, kw_only=True)
class LinearSpec:
    """What is fixed when a linear unit is built.

    in_features: longest row K, 1 to 16384.  in_bits: width of an input code, 4 to 8, signed unless
    ``in_signed`` is off.  weight_bits: 3 to 8.  acc_bits: width of the accumulator, 8 to 40.
    out_bits: width of an output code, 3 to 16, or None for the accumulator itself.
    """

    in_features: int
    in_bits: int = 8
    in_signed: bool = True
    weight_bits: int = 8
    acc_bits: int = 32
    out_bits: int | None = 8

    def __post_init__(self) -> None:
        integer(self.in_features, "Maximum row length", 1, 16384)
        integer(self.in_bits, "Input width", 4, 8)
        if not isinstance(self.in_signed, bool):
            raise TypeError(f"Input sign must be a boolean, not {self.in_signed!r}")
        integer(self.weight_bits, "Weight width", 3, 8)
        integer(self.acc_bits, "Accumulator width", 8, 40)
        if self.out_bits is not None:
            integer(self.out_bits, "Output width", 3, 16)
        # Room for the folded zero point of any layer: as much again as for the products.
        needed = self._total + self._total
        if needed.bits > self.acc_bits:
            raise ValueError(
                f"Accumulator width must be at least {needed.bits} for rows of {self.in_features}, "
                f"not {self.acc_bits!r}"
            )

    @property
    def requant(self) -> RequantSpec | None:
        """Spec of the requantiser, None where the accumulator is the output."""
        if self.out_bits is None:
            return None
        return RequantSpec(acc_bits=self.acc_bits, out_bits=self.out_bits)

    @property
    def _weight(self) -> Interval:
        limit = (1 << (self.weight_bits - 1)) - 1
        return Interval(-limit, limit)

    @property
    def _total(self) -> Interval:
        code = Interval.of_bits(self.in_bits, signed=self.in_signed)
        return (code * self._weight).sum_of(self.in_features)

    @cached_property
    def bounds(self) -> dict[str, Interval]:
        """Interval of every intermediate value; the bias's is what the products leave of acc."""
        code, total = Interval.of_bits(self.in_bits, signed=self.in_signed), self._total
        acc = Interval.of_bits(self.acc_bits, signed=True)
        return {
            "input": code,
            "weight": self._weight,
            "product": code * self._weight,
            "total": total,
            "bias": Interval(acc.low - total.low, acc.high - total.high),
            "acc": acc,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearParams(Params):
    """What changes per layer.

    weight: [out, in] integers.  bias: [out], with the input's zero point folded in.
    requant: of one or ``out`` channels; None if and only if the spec has no ``out_bits``.
    """

    weight: Ints
    bias: Ints
    requant: RequantParams | None = None

    @property
    def in_features(self) -> int:
        """K, the row length these parameters are for."""
        return int(np.shape(self.weight)[1])

    @property
    def out_features(self) -> int:
        """Number of output channels."""
        return int(np.shape(self.weight)[0])

    def check(self, spec: LinearSpec) -> None:
        """Raise TypeError or ValueError unless the parameters suit ``spec``."""
        shape = np.shape(self.weight)
        if len(shape) != 2 or not shape[0] or not 1 <= shape[1] <= spec.in_features:
            raise ValueError(
                f"Weights must be [out, 1 to {spec.in_features}] channels, not shape {shape!r}"
            )
        if np.shape(self.bias) != shape[:1]:
            raise ValueError(f"Bias must have shape {shape[:1]!r}, not {np.shape(self.bias)!r}")
        for name, array, legal in (
            ("Weight", self.weight, spec.bounds["weight"]),
            ("Bias", self.bias, spec.bounds["bias"]),
        ):
            values = integers(array, name)
            legal.require(values, name)
        if spec.requant is None:
            if self.requant is not None:
                raise ValueError("Requantiser must be None for a spec without an output width")
            return
        if self.requant is None:
            raise ValueError(f"Requantiser must be given for {spec.out_bits} output bits, not None")
        self.requant.check(spec.requant)
        channels = np.shape(self.requant.multiplier)[0]
        if channels not in (1, shape[0]):
            raise ValueError(f"Requantiser must have 1 or {shape[0]} channels, not {channels!r}")

    def reach(self, spec: LinearSpec) -> Interval:
        """All accumulators that any input row can lead to: of *these* weights, so both ends occur."""
        weight, code = integers(self.weight, "Weight"), spec.bounds["input"]
        up = np.maximum(weight, 0).sum(axis=1)
        down = np.minimum(weight, 0).sum(axis=1)
        high = up * code.high + down * code.low + self.bias
        low = up * code.low + down * code.high + self.bias
        return Interval(int(low.min()), int(high.max()))


def fold_zero_point(bias: Ints, weight: Ints, zero_point: int) -> npt.NDArray[np.int64]:
    """The bias [out] that stands for ``bias - zero_point * sum(weight)``, weight [out, in].

    >>> fold_zero_point(np.array([10]), np.array([[1, 2, -5]]), 3).tolist()
    [16]
    """
    sums = integers(weight, "Weight").sum(axis=-1)
    zero = integer(zero_point, "Zero point", -(1 << 15), (1 << 15) - 1)
    return np.asarray(integers(bias, "Bias") - zero * sums)


class _Layer:
    """A layer whose parameters are checked, cast and folded into each other."""

    def __init__(self, spec: LinearSpec, params: LinearParams) -> None:
        params.check(spec)
        weight, out = np.asarray(params.weight), (params.out_features,)
        acc, code = spec.bounds["acc"], spec.bounds["input"]
        # Any partial sum of a row's products is at most the sum of all their magnitudes.
        largest = int(np.abs(weight, dtype=np.int64).sum(axis=1).max()) * max(code.high, -code.low)
        self.factor = RightFactor(weight.T, spec.bounds["weight"], code, partial=largest)
        self.kind = narrowest(acc)
        self.bias = np.asarray(params.bias).astype(self.kind)
        self.rescale = None
        if spec.requant is not None and params.requant is not None:
            given, bits = params.requant, spec.requant.out_bits
            m, n = (np.broadcast_to(x, out) for x in (given.multiplier, given.shift))
            self.rescale = Rescaler(m, n, given.zero_point, acc=acc, bits=bits, before=self.bias)

    def __call__(self, rows: Ints, rescale: Rescaler | None) -> Ints:
        """Accumulators of codes [n, K], or their codes: ``rescale`` adds the bias itself."""
        width = len(self.bias)
        out = np.empty((len(rows), width), self.kind if rescale is None else rescale.kind)
        for part in blocks(len(rows), min(width, BLOCK // ROWS)):
            if rescale is None:
                self.factor.after(rows[part], out[part])
                out[part] += self.bias
            else:
                acc = scratch("linear", out[part].shape, self.factor.sums)
                rescale(self.factor.after(rows[part], acc), out[part])
        return out


def _operands(x: Ints, spec: LinearSpec, params: LinearParams) -> tuple[_Layer, Ints]:
    """The layer, and the codes after their checks."""
    layer = params.once(spec, lambda: _Layer(spec, params))
    codes, legal = whole(x, "Codes"), spec.bounds["input"]
    if codes.shape[-1:] != (params.in_features,):
        raise ValueError(f"Row length must be {params.in_features}, not shape {codes.shape!r}")
    if not legal.holds(codes):
        span = f"{int(codes.min())} to {int(codes.max())}"
        raise ValueError(f"Codes must be from {legal.low} to {legal.high}, not {span}")
    return layer, codes


def accumulate(x: Ints, spec: LinearSpec, params: LinearParams) -> Ints:
    """``bias + x @ weight.T`` of codes [..., K]: [..., out] in the narrowest type of ``spec.acc_bits``.

    TypeError for floats, ValueError for a value or length out of range.
    """
    layer, codes = _operands(x, spec, params)
    rows = codes.reshape(-1, params.in_features)  # one product, however many leading axes
    return layer(rows, None).reshape(*codes.shape[:-1], params.out_features)


def linear(x: Ints, spec: LinearSpec, params: LinearParams) -> Ints:
    """Output codes [..., out] of input codes [..., K]; accumulators where the spec has no out_bits.

    In the narrowest type. TypeError for floats, ValueError for a value or length out of range.
    """
    layer, codes = _operands(x, spec, params)
    rows = codes.reshape(-1, params.in_features)
    return layer(rows, layer.rescale).reshape(*codes.shape[:-1], params.out_features)


SPEC_GRID: tuple[LinearSpec, ...] = (
    LinearSpec(in_features=192),
    LinearSpec(in_features=1536, out_bits=None),
    LinearSpec(in_features=768, in_signed=False, out_bits=None),
    LinearSpec(in_features=4096, out_bits=10),
    LinearSpec(in_features=64, in_bits=4, weight_bits=3, acc_bits=16, out_bits=4),
    LinearSpec(in_features=300, in_bits=6, weight_bits=6, acc_bits=24, out_bits=6),
)
"""Specs that every check of the operator runs on."""


def corner_rows(
    spec: LinearSpec, seed: int = 0
) -> Iterator[tuple[str, npt.NDArray[np.int64], LinearParams]]:
    """Yield (name, codes [K], params): both ends of the accumulator, lengths, ties of the rounding.

    Output channels 0 and 1 have all weights at one end, channel 2 alternates, the rest is random; the
    bias makes channels 0 and 1 reach both ends of acc_bits exactly. A bias solved from the accumulators
    then puts every channel on a rounding tie and on both of its neighbours.
    """
    rng = np.random.default_rng(seed)
    code, limit = spec.bounds["input"], spec.bounds["weight"].high
    room, full, outputs = spec.bounds["bias"], spec.in_features, 6

    def params(count: int, bias: Any, multiplier: int = 1 << 15) -> LinearParams:
        weight = rng.integers(-limit, limit, (outputs, count), endpoint=True)
        weight[:2] = [[limit], [-limit]]
        weight[2] = np.where(np.arange(count) % 2, limit, -limit)
        requant = None
        if spec.out_bits is not None:
            shift = 15 + max(0, spec.bounds["total"].bits - spec.out_bits)
            requant = RequantParams(
                multiplier=np.full(outputs, multiplier),
                shift=np.full(outputs, shift),
                zero_point=-1,
            )
        return LinearParams(weight=weight, bias=np.broadcast_to(bias, (outputs,)), requant=requant)

    none = np.zeros(outputs, dtype=np.int64)
    lowest, highest = none.copy(), none.copy()
    lowest[:2], highest[:2] = room.low, room.high
    for count in sorted({1, 2, full // 2 or 1, full}):
        for value in sorted({code.low, 0, code.high}):
            yield f"constant {value} x {count}", np.full(count, value), params(count, none)
        alternating = np.where(np.arange(count) % 2, code.high, code.low)
        yield f"alternating x {count}", alternating, params(count, none)
    for value in (code.low, code.high):
        yield f"all {value}, lowest bias", np.full(full, value), params(full, lowest)
        yield f"all {value}, highest bias", np.full(full, value), params(full, highest)
    codes = rng.integers(code.low, code.high, full, endpoint=True)
    yield "random, odd multiplier", codes, params(full, none, 54321)
    if spec.out_bits is not None:
        base = params(full, none)
        acc = accumulate(codes, spec, base)
        assert base.requant is not None
        step = 1 << (int(base.requant.shift[0]) - 15)  # accumulator steps per output code
        for target in (-2, 0, 1, (1 << (spec.out_bits - 1)), -(1 << (spec.out_bits - 1))):
            for off in (-1, 0, 1):
                wanted = target * step + step // 2 + off
                bias = np.clip(wanted - acc, room.low, room.high)
                solved = LinearParams(weight=base.weight, bias=bias, requant=base.requant)
                yield f"tie above {target}, {off:+d}", codes, solved

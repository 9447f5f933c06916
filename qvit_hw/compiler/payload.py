# SPDX-License-Identifier: Apache-2.0
"""Parameters and tiles of a product, laid out by the lanes of its channels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from golden.attention import SQRT2, SQRT2_BITS
from golden.fixedpoint import Ints
from golden.gelu import GeluParams
from golden.program import parameter_words
from golden.requant import RequantParams
from golden.residual import ResidualParams
from qvit_hw.compiler.layout import Lanes

__all__ = ["Drain", "gelu_records", "identity", "payload", "tiles"]

Words = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Drain:
    """What a product does with its sums: the lanes' parameters, [lanes] each, and the instruction's own."""

    bias: Ints
    multiplier: Ints
    shift: Ints
    align: Ints
    gain: int = 0
    zero_in: int = 0
    zero_out: int = 0
    clamp: int = 0

    @property
    def operands(self) -> dict[str, int]:
        """Operands of the instruction."""
        names = ("gain", "zero_in", "zero_out", "clamp")
        return {name: int(getattr(self, name)) for name in names}

    @classmethod
    def sums(cls, bias: Ints, lanes: Lanes) -> Drain:
        """Sums as they are, with their bias [channels]."""
        zero = np.zeros(len(lanes), np.int64)
        return cls(_laid(bias, lanes), zero, zero, zero)

    @classmethod
    def codes(cls, bias: Ints, params: RequantParams, bits: int, lanes: Lanes) -> Drain:
        """Codes of channels, as golden.linear and golden.requant make them.

        A lane without a channel becomes the code 0, whatever the zero point: of q and k, every lane counts.
        """
        zero, count = params.zero_point, len(bias)
        factors = [np.broadcast_to(x, count) for x in (params.multiplier, params.shift)]
        return cls(
            _laid(bias, lanes, -zero),
            _laid(factors[0], lanes, 1),
            _laid(factors[1], lanes),
            np.zeros(len(lanes), np.int64),
            zero_out=zero,
            clamp=bits,
        )

    @classmethod
    def head(cls, params: RequantParams, head: int, bits: int, lanes: int) -> Drain:
        """Scores or outputs of a head: the same parameters in every lane."""
        which, zero = min(head, len(params.multiplier) - 1), np.zeros(lanes, np.int64)
        m, n = int(params.multiplier[which]), int(params.shift[which])
        return cls(zero, zero + m, zero + n, zero, zero_out=params.zero_point, clamp=bits)

    @classmethod
    def odd(cls, lanes: int) -> Drain:
        """Sums of odd codes times the square root of 2, to be gone on with (golden.attention)."""
        zero = np.zeros(lanes, np.int64)
        return cls(zero, zero + SQRT2, zero + SQRT2_BITS, zero, clamp=32)

    @classmethod
    def residual(cls, bias: Ints, params: ResidualParams, bits: int, lanes: Lanes) -> Drain:
        """Sums [channels] on top of the stream, as golden.residual adds them."""
        return cls(
            _laid(bias, lanes),
            _laid(params.multiplier, lanes),
            _laid(params.shift + np.asarray(params.out_shift, np.int64), lanes),
            _laid(params.in_shift, lanes),
            gain=params.gain,
            zero_in=params.in_zero_point,
            zero_out=params.zero_point,
            clamp=bits,
        )

    def block(self, block: int, size: int) -> Drain:
        """The same of one column block."""
        lanes = slice(block * size, (block + 1) * size)
        names = ("bias", "multiplier", "shift", "align")
        return replace(self, **{name: getattr(self, name)[lanes] for name in names})


def _laid(values: Ints, lanes: Lanes, blank: int = 0) -> npt.NDArray[np.int64]:
    """Values [channels] by lane; ``blank`` where a lane has no channel."""
    return np.where(lanes >= 0, np.asarray(values, np.int64)[lanes], blank)


def tiles(weight: Ints, outputs: Lanes, inputs: Lanes, size: int) -> npt.NDArray[np.int8]:
    """Tiles [blocks, depth, L columns, L inputs] of weights [out, in]; 0 where a lane has no channel."""
    laid = np.asarray(weight)[outputs][:, inputs].astype(np.int8)
    laid[outputs < 0] = 0
    laid[:, inputs < 0] = 0
    blocks, depth = len(outputs) // size, len(inputs) // size
    return laid.reshape(blocks, size, depth, size).swapaxes(1, 2)


def payload(drain: Drain, size: int, weights: npt.NDArray[np.int8] | None = None) -> Words:
    """Payload of MULTIPLY, uint8 [words, L]: for each column block its parameters, then its tiles if any."""
    columns = (drain.bias, drain.multiplier, drain.shift, drain.align)
    parts = []
    for block in range(len(drain.bias) // size):
        lanes = slice(block * size, (block + 1) * size)
        parts.append(parameter_words(*(column[lanes] for column in columns)))
        if weights is not None:
            parts.append(np.ascontiguousarray(weights[block]).view(np.uint8).reshape(-1, size))
    return np.concatenate(parts)


def identity(channels: int) -> npt.NDArray[np.int64]:
    """Weights that leave codes as they are."""
    return np.eye(channels, dtype=np.int64)


def gelu_records(params: GeluParams, bits: int) -> tuple[Ints, Ints]:
    """(addresses, values) of a table for hardware with a table of 2**bits entries.

    A code's own low bits are its address. Codes that are narrower leave entries without a use, not written.
    """
    count = len(params.table)
    codes = np.arange(-(count // 2), count - count // 2)
    return codes & ((1 << bits) - 1), np.asarray(params.table, np.int64)

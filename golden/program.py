# SPDX-License-Identifier: Apache-2.0
"""The instructions of the accelerator: 32 bytes each, and what follows them in the stream.

``docs/accelerator.md`` says what they do. Here is where each field lies, for the compiler, for
:mod:`golden.machine` and for :mod:`rtl.sequencer` alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag

import numpy as np
import numpy.typing as npt

from golden.fixedpoint import integer

__all__ = [
    "FIELDS",
    "INSTRUCTION_BYTES",
    "OPERANDS",
    "PARAMETER_WORDS",
    "RECORD_BYTES",
    "ROW_MEMORIES",
    "Error",
    "Field",
    "Instruction",
    "Op",
    "Sink",
    "Source",
    "Tile",
    "Unit",
    "Wait",
    "instruction_words",
    "parameter_words",
    "record_words",
]

INSTRUCTION_BYTES = 32
PARAMETER_WORDS = 9
"""Words of the parameters of a column block: byte j of every lane's record is in word j."""
RECORD_BYTES = 8
"""A write to a unit: address, 4 bytes, and value, 4 bytes."""


class Op(IntEnum):
    """What an instruction does."""

    HEAD = 1
    LOAD = 2
    WRITE = 3
    MULTIPLY = 4
    LAYERNORM = 5
    SOFTMAX = 6
    END = 7


class Wait(IntFlag):
    """Units that must be idle before an instruction begins."""

    ARRAY = 1
    LAYERNORM = 2
    SOFTMAX = 4


class Source(IntEnum):
    """Memory whose words pass through the array."""

    FEATURES = 0
    QUERIES = 1
    CODES = 2


class Tile(IntEnum):
    """Where tiles come from."""

    STREAM = 0
    KEYS = 1
    VALUES = 2


class Sink(IntEnum):
    """Where results go."""

    FEATURES = 0
    QUERIES = 1
    KEYS = 2
    VALUES = 3
    SCORES = 4
    STREAM = 5
    OUTPUTS = 6
    SUMS = 7


class Unit(IntEnum):
    """A unit with parameters of its own."""

    LAYERNORM = 0
    SOFTMAX = 1
    GELU = 2


class Error(IntEnum):
    """Why a run ended early."""

    NONE = 0
    HEAD = 1
    CONFIGURATION = 2
    OPERATION = 3
    BUS = 4
    ENDED = 5
    IMAGE = 6


@dataclass(frozen=True)
class Field:
    """Bits of an instruction."""

    low: int
    bits: int
    signed: bool = False


FIELDS: Mapping[str, Field] = {
    "op": Field(0, 8),
    "wait": Field(8, 3),
    "source": Field(16, 2),
    "tile": Field(18, 2),
    "sink": Field(20, 3),  # of LOAD: the memory
    "gelu": Field(24, 1),
    "resume": Field(25, 1),
    "even": Field(26, 1),
    "odd": Field(27, 1),
    "unit": Field(28, 2),
    "clamp": Field(32, 6),
    "last_lanes": Field(40, 6),  # elements of a row's last beat
    "tokens": Field(48, 16),
    "depth": Field(64, 16),  # of MULTIPLY: tiles of a column block; of rows: beats
    "blocks": Field(80, 16),
    "source_base": Field(96, 16),
    "tile_base": Field(112, 16),
    "sink_base": Field(128, 16),
    "stride": Field(144, 16),
    "sink_stride": Field(160, 16),
    "gain": Field(176, 32),
    "zero_in": Field(208, 16, signed=True),
    "zero_out": Field(224, 16, signed=True),
    # The instructions below have nothing in common with a product but op and wait.
    "count": Field(32, 32),  # LOAD: words of the memory; WRITE: records
    "fingerprint": Field(64, 64),  # HEAD
    "image_words": Field(32, 32),  # HEAD
}
"""Where each field lies. ``count``, ``fingerprint`` and ``image_words`` share bits with others."""

_MULTIPLY = (
    *("source", "tile", "sink", "gelu", "resume", "even", "odd", "clamp", "tokens", "depth"),
    *("blocks", "source_base", "tile_base", "sink_base", "stride", "sink_stride", "gain"),
    *("zero_in", "zero_out"),
)
_ROWS = ("last_lanes", "tokens", "depth", "source_base", "sink_base", "stride", "sink_stride")
OPERANDS: Mapping[Op, tuple[str, ...]] = {
    Op.HEAD: ("image_words", "fingerprint"),
    Op.LOAD: ("sink", "count", "sink_base"),
    Op.WRITE: ("unit", "count"),
    Op.MULTIPLY: _MULTIPLY,
    Op.LAYERNORM: _ROWS,
    Op.SOFTMAX: _ROWS,
    Op.END: (),
}
"""The fields that each operation has, beside op and wait."""
ROW_MEMORIES: Mapping[Op, tuple[str, str]] = {
    Op.LAYERNORM: ("stream", "features"),
    Op.SOFTMAX: ("scores", "codes"),
}
"""Where an operation on rows reads, and where it writes."""


@dataclass(frozen=True)
class Instruction:
    """One instruction. ``wait``: flags of Wait; ``operands``: its fields by name (those not given are 0).

    ValueError for a field that the operation does not have or a value that does not fit.
    """

    op: Op
    wait: int = 0
    operands: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.operands.items():
            if name not in OPERANDS[self.op]:
                raise ValueError(f"Operand must be one of {OPERANDS[self.op]}, not {name!r}")
            place = FIELDS[name]
            low = -(1 << (place.bits - 1)) if place.signed else 0
            integer(value, name, low, low + (1 << place.bits) - 1)

    def __getitem__(self, name: str) -> int:
        if name not in OPERANDS[self.op]:
            raise KeyError(name)
        return int(self.operands.get(name, 0))

    def to_bytes(self) -> bytes:
        """The 32 bytes of the instruction."""
        whole = 0
        values: dict[str, int] = {"op": self.op, "wait": self.wait, **self.operands}
        for name, value in values.items():
            place = FIELDS[name]
            whole |= (int(value) & ((1 << place.bits) - 1)) << place.low
        return whole.to_bytes(INSTRUCTION_BYTES, "little")

    @classmethod
    def from_bytes(cls, content: bytes) -> Instruction:
        """Read 32 bytes; ValueError for an unknown operation."""
        whole = int.from_bytes(content[:INSTRUCTION_BYTES], "little")

        def read(name: str) -> int:
            place = FIELDS[name]
            value = whole >> place.low & ((1 << place.bits) - 1)
            return value - (1 << place.bits) if place.signed and value >> (place.bits - 1) else value

        op = Op(read("op"))
        return cls(op, read("wait"), {name: read(name) for name in OPERANDS[op]})


def _words(content: bytes, size: int) -> npt.NDArray[np.uint8]:
    """Bytes as words of the stream, uint8 [words, size]; zeros fill the last one."""
    padded = content + bytes(-len(content) % size)
    return np.frombuffer(padded, np.uint8).reshape(-1, size)


def instruction_words(instruction: Instruction, size: int) -> npt.NDArray[np.uint8]:
    """An instruction as words of the stream, uint8 [n, size]: 8, 4, 2 or 1 of them."""
    return _words(instruction.to_bytes(), size)


def record_words(addresses: npt.ArrayLike, values: npt.ArrayLike, size: int) -> npt.NDArray[np.uint8]:
    """Writes to a unit as words of the stream, uint8 [n, size]; records do not straddle instructions."""
    pairs = np.stack([np.asarray(addresses, np.int64), np.asarray(values, np.int64)], axis=-1)
    return _words((pairs & 0xFFFFFFFF).astype("<u4").tobytes(), size)


def parameter_words(
    bias: npt.ArrayLike, multiplier: npt.ArrayLike, shift: npt.ArrayLike, align: npt.ArrayLike
) -> npt.NDArray[np.uint8]:
    """Parameters of a column block, each [size], as 9 words of the stream, uint8 [9, size].

    bias: 32 bits signed.  multiplier: M2, 24 bits.  shift: n, 0 to 62.  align: PTF shift a, 0 to 7.
    """
    lanes = np.zeros((np.size(bias), 12), np.uint8)
    lanes[:, 0:4] = np.asarray(bias).astype("<i4").reshape(-1, 1).view(np.uint8)
    lanes[:, 4:8] = np.asarray(multiplier).astype("<u4").reshape(-1, 1).view(np.uint8)
    lanes[:, 7] = shift
    lanes[:, 8] = align
    return np.ascontiguousarray(lanes[:, :PARAMETER_WORDS].T)

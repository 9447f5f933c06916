# SPDX-License-Identifier: Apache-2.0
"""What is fixed when an accelerator is built: the edge of its array, its units, the depths of its memories.

``docs/accelerator.md`` describes the machine. :mod:`golden.program` has its instructions,
:mod:`golden.machine` executes them, :mod:`rtl.accelerator` is the hardware.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from golden.attention import AttendSpec
from golden.fixedpoint import integer
from golden.layernorm import LayerNormSpec
from golden.softmax import SoftmaxSpec

__all__ = ["MEMORIES", "PRESETS", "SINKS", "SIZES", "SOURCES", "AcceleratorSpec"]

SIZES = (4, 8, 16, 32)
"""Edges of the array: a word of the stream, one instruction and the units' beats go by them."""
MEMORIES = ("features", "queries", "keys", "values", "stream", "scores", "codes", "outputs")
"""The memories whose depth a spec states, in words of ``size`` elements."""
SOURCES = ("features", "queries", "codes")
"""Those whose words pass through the array."""
SINKS = ("features", "queries", "keys", "values", "scores", "stream", "outputs")
"""Those that the drain writes."""


@dataclass(frozen=True, kw_only=True)
class AcceleratorSpec:
    """An accelerator.

    size: edge L of the array, and elements of every word and beat: 4, 8, 16 or 32.
    max_tokens: words of the accumulators, the most tokens of a product, 16 to 4096.
    features, queries, keys, values, stream, scores, codes, outputs: words of each memory, 16 to 65536.
    stream_bits: width of the residual stream, 8 to 16.  gelu_bits: input width of the table, 8 to 10.
    acc_bits: width of an accumulator.  layernorm, softmax: the row units.
    """

    size: int = 16
    max_tokens: int = 256
    features: int = 12288
    queries: int = 4096
    keys: int = 4096
    values: int = 4096
    stream: int = 4096
    scores: int = 4096
    codes: int = 8192
    outputs: int = 64
    stream_bits: int = 8
    gelu_bits: int = 8
    acc_bits: int = 32
    layernorm: LayerNormSpec = field(default_factory=LayerNormSpec)
    softmax: SoftmaxSpec = field(default_factory=SoftmaxSpec)

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ValueError(f"Size must be one of {SIZES}, not {self.size!r}")
        integer(self.max_tokens, "Maximum number of tokens", 16, 4096)
        for name in MEMORIES:
            integer(getattr(self, name), f"Depth of {name}", 16, 1 << 16)
        integer(self.stream_bits, "Stream width", 8, 16)
        integer(self.gelu_bits, "GELU input width", 8, 10)
        integer(self.acc_bits, "Accumulator width", 24, 32)
        for name, kind in (("layernorm", LayerNormSpec), ("softmax", SoftmaxSpec)):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name} must be a {kind.__name__}, not {getattr(self, name)!r}")
        if self.layernorm.in_bits != self.stream_bits:
            raise ValueError(
                f"LayerNorm's input width must be {self.stream_bits}, the stream's, "
                f"not {self.layernorm.in_bits!r}"
            )
        if self.layernorm.out_bits > 8:
            raise ValueError(f"LayerNorm's output must be 8 bits or less, not {self.layernorm.out_bits!r}")

    @property
    def attend(self) -> AttendSpec:
        """What codes mean to the array."""
        return AttendSpec(softmax=self.softmax)

    @property
    def operand_bits(self) -> int:
        """Width of a code at the array, with sign: 8-bit codes, or one of the powers 2**0 to 2**top."""
        return max(8, self.attend.top + 2)

    def deepest(self, *memories: str) -> int:
        """Words of the deepest of these memories."""
        return max(int(getattr(self, name)) for name in memories)

    def address_bits(self, *memories: str) -> int:
        """Width of an address that reaches every word of these memories."""
        return (self.deepest(*memories) - 1).bit_length()

    @property
    def limits(self) -> Mapping[str, int]:
        """The most that the hardware counts to, by field: of HEAD, LOAD and WRITE, and of products.

        A product has no more tiles than the deepest source has words, and no more blocks than the deepest
        sink. As many records as a unit has parameters are enough for all of them.
        """
        return {
            "image_words": self.features,
            "count": max(self.features, self.stream, len(self.layernorm.addresses), 1 << self.gelu_bits),
            "tokens": self.max_tokens,
            "depth": self.deepest(*SOURCES),
            "blocks": self.deepest(*SINKS),
        }

    @property
    def fingerprint(self) -> int:
        """64 bits that tell this spec from every other one; a program carries them."""
        text = json.dumps(asdict(self), sort_keys=True)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON has it; :meth:`from_json` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> AcceleratorSpec:
        """The spec of a JSON object; TypeError or ValueError for one that is not sound."""
        known = {each.name for each in fields(cls)}
        if not isinstance(content, Mapping) or not set(content) <= known:
            unknown = sorted(set(content) - known) if isinstance(content, Mapping) else content
            raise ValueError(f"Fields of an accelerator must be its own, not {unknown!r}")
        parts = dict(content)
        for name, kind in (("layernorm", LayerNormSpec), ("softmax", SoftmaxSpec)):
            if name in parts:
                if not isinstance(parts[name], Mapping):
                    raise TypeError(f"{name} must be an object, not {parts[name]!r}")
                parts[name] = kind(**parts[name])
        return cls(**parts)


PRESETS: Mapping[str, AcceleratorSpec] = {
    "16x16": AcceleratorSpec(),
    "32x32": AcceleratorSpec(
        size=32,
        features=6144,
        queries=2048,
        keys=2048,
        values=2048,
        stream=2048,
        scores=2048,
        codes=4096,
        outputs=32,
    ),
}
"""By name. Both hold DeiT-Tiny at 224 x 224 in w8a8p4 with room to spare."""

# SPDX-License-Identifier: Apache-2.0
"""Where every tensor lies, and how many words each memory must have.

Element i of word ``base + block * stride + token`` is lane ``block * L + i`` of a token. Which channel a lane
holds is written as an array, -1 where it holds nothing: the channels of a head begin a block of their own, so
that one head can be read without the others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from golden.accelerator import MEMORIES, AcceleratorSpec
from qvit_hw.compiler.stages import Attention, Mlp, Network
from qvit_hw.errors import UserError

__all__ = ["Layout", "Region", "check_fits", "fitted", "lanes_of", "share"]

Lanes = npt.NDArray[np.int64]


def share(count: int, size: int) -> int:
    """Blocks of ``size`` that hold ``count``."""
    return -(-count // size)


def lanes_of(first: int, count: int, size: int) -> Lanes:
    """Lanes of ``count`` channels from ``first`` on, in whole blocks."""
    lanes = np.full(share(count, size) * size, -1, np.int64)
    lanes[:count] = np.arange(first, first + count)
    return lanes


@dataclass(frozen=True, eq=False)
class Region:
    """A tensor in a memory: its first word, words from block to block, and the channel of each lane."""

    base: int
    stride: int
    lanes: Lanes

    def blocks(self, size: int) -> int:
        """Words of a token."""
        return len(self.lanes) // size


class Layout:
    """The places of a network's tensors in memories of words of ``size`` elements.

    Features: a LayerNorm's output lies at 0, where the image has been. It is read (by q, k, v or by fc1)
    while attention's output or the hidden layer is written, which lies behind it; those two never live
    together and share their place. Queries, keys and values hold one head, scores too: what overwrites them
    does so in the array's own order, or waits. Codes hold two: softmax writes one while the array reads one.
    """

    def __init__(self, network: Network, size: int) -> None:
        self.network, self.size = network, size
        tokens = network.tokens
        self.padded = share(tokens, size) * size
        """Tokens in whole blocks: an instruction has one stride for its source and its tiles."""
        embedding = network.patch_embed
        pixels = embedding.params.in_features
        self.image = Region(0, tokens - network.prefix, lanes_of(0, pixels, size))
        self.stream = Region(0, tokens, lanes_of(0, network.channels, size))
        self.normed = Region(0, tokens, lanes_of(0, network.channels, size))
        behind = self.normed.blocks(size) * tokens
        needs = {
            "max_tokens": tokens,
            "features": max(self.image.blocks(size) * self.image.stride, behind),
            "stream": self.stream.blocks(size) * tokens,
            "outputs": share(network.output[1], size),
        }
        self.needs: dict[str, int] = {**dict.fromkeys(MEMORIES, 0), **needs}
        """Words of each memory that are used; "max_tokens" as well."""
        for part in network.parts:
            for name, words in self._needs(part, behind).items():
                self.needs[name] = max(self.needs[name], words)

    def _needs(self, part: Attention | Mlp, behind: int) -> dict[str, int]:
        if isinstance(part, Mlp):
            hidden = self.hidden(part)
            return {"features": behind + hidden.blocks(self.size) * hidden.stride}
        head = share(part.head_dim, self.size) * self.padded
        columns, joined = share(self.network.tokens, self.size), self.attended(part)
        return {
            "features": behind + joined.blocks(self.size) * joined.stride,
            **dict.fromkeys(("queries", "keys", "values"), head),
            "scores": columns * self.network.tokens,
            "codes": 2 * columns * self.padded,
        }

    @property
    def _behind(self) -> int:
        return self.normed.blocks(self.size) * self.network.tokens

    def hidden(self, part: Mlp) -> Region:
        """The hidden layer, in features."""
        lanes = lanes_of(0, part.fc1.params.out_features, self.size)
        return Region(self._behind, self.network.tokens, lanes)

    def attended(self, part: Attention) -> Region:
        """The heads' outputs, in features, each in blocks of its own."""
        heads = [self.head(part, 0, head).lanes for head in range(part.heads)]
        return Region(self._behind, self.network.tokens, np.concatenate(heads))

    def head(self, part: Attention, which: int, head: int) -> Region:
        """One head of q, k or v (``which`` 0, 1, 2) by channels of qkv, in the memory of its name."""
        first = (which * part.heads + head) * part.head_dim
        return Region(0, self.padded, lanes_of(first, part.head_dim, self.size))

    def codes(self, head: int) -> int:
        """First word of a head's codes."""
        return head % 2 * share(self.network.tokens, self.size) * self.padded


# -------------------------------------------------------------------------------------- does it fit

_GRAIN = {"max_tokens": 64, "outputs": 16}
_OTHERS = 512
"""Memories grow by so many words: a block RAM of 36 bits is as deep."""


def check_fits(layout: Layout, spec: AcceleratorSpec) -> None:
    """UserError that names all memories of ``spec`` that are too small."""
    small = [
        f"{name} must have {words} words, not {getattr(spec, name)}"
        for name, words in layout.needs.items()
        if words > getattr(spec, name) and name != "max_tokens"
    ]
    if layout.needs["max_tokens"] > spec.max_tokens:
        small.insert(0, f"max_tokens must be {layout.needs['max_tokens']}, not {spec.max_tokens}")
    if small:
        said = "; ".join(small)
        raise UserError(f"The network does not fit: {said} (--fit enlarges them).")


def fitted(network: Network, spec: AcceleratorSpec) -> AcceleratorSpec:
    """The spec with the numbers of the network, and with memories as large as it needs.

    UserError where no accelerator could be as large.
    """
    units: dict[str, Any] = {
        "layernorm": network.norm.spec,
        "stream_bits": network.norm.spec.in_bits,
    }
    for part in network.parts:
        if isinstance(part, Attention):
            units["softmax"] = part.softmax.spec
        else:
            units["gelu_bits"] = max(8, part.gelu.spec.in_bits, units.get("gelu_bits", 8))
    for name, words in Layout(network, spec.size).needs.items():
        grain = _GRAIN.get(name, _OTHERS)
        units[name] = max(getattr(spec, name), -(-words // grain) * grain)
    try:
        return replace(spec, **units)
    except ValueError as error:
        raise UserError(f"No accelerator can hold the network: {error}.") from None

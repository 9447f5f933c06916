# SPDX-License-Identifier: Apache-2.0
"""The order of the instructions, and who waits for whom. All of it is here, with the reasons.

The array is what takes time; the rest is arranged so that it rarely stands still. Attention goes by heads:

    q, k and scores of head h; softmax of h begins; meanwhile codes.v of h - 1, v of h, q and k of h + 1

so that softmax has four products to hide behind. No wait is missing and none is in vain: golden.flight finds
the missing ones, the tests leave out one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from golden.accelerator import AcceleratorSpec
from golden.program import Op, Sink, Source, Tile, Unit, Wait
from golden.vit import VitModel
from qvit_hw.compiler.layout import Lanes, Layout, Region, check_fits, lanes_of, share
from qvit_hw.compiler.payload import Drain, gelu_records, identity, payload, tiles
from qvit_hw.compiler.program import Image, Part, Program
from qvit_hw.compiler.stages import Attention, Mlp, check_numbers, patch_bias, recognise
from qvit_hw.compiler.writer import NOTHING, Writer

__all__ = ["compile_network"]

ARRAY, LAYERNORM, SOFTMAX = Wait.ARRAY, Wait.LAYERNORM, Wait.SOFTMAX
BOTH = {"even": 1, "odd": 1}


def compile_network(
    model: VitModel, spec: AcceleratorSpec, notes: Mapping[str, Any] | None = None
) -> Program:
    """The program of a network for an accelerator; notes: what it is made of (model, preset, bundle).

    UserError, in one sentence, where the accelerator cannot run the network or is too small for it.
    """
    return _Schedule(model, spec).program(notes or {"model": None, "preset": None, "bundle": None})


class _Schedule(Writer):
    """A network's instructions, one after the other."""

    def __init__(self, model: VitModel, spec: AcceleratorSpec) -> None:
        self.network = recognise(model)
        check_numbers(self.network, spec)
        super().__init__(spec)
        self.layout = Layout(self.network, spec.size)
        check_fits(self.layout, spec)
        self.frac: int | None = None

    def program(self, notes: Mapping[str, Any]) -> Program:
        network, layout = self.network, self.layout
        image = Image(*network.input_size, network.patch_embed.spec.patch)
        words = layout.image.blocks(self.size) * layout.image.stride
        head = {"fingerprint": self.spec.fingerprint, "image_words": words}
        self.put(Op.HEAD, "for this accelerator, and images of this size", head)
        self._embedding()
        for part in network.parts:
            if isinstance(part, Mlp):
                self._mlp(part)
            else:
                self._attention(part)
        self._tail()
        self.put(Op.END, "when all is idle", {})
        return Program(
            self.spec, self.stream(), tuple(self.steps), image, layout.needs, network.output, notes
        )

    # --------------------------------------------------------------------------------- embedding

    def _embedding(self) -> None:
        network, stream, size = self.network, self.layout.stream, self.size
        layout, prefix, tokens = network.embed.layout, network.prefix, network.tokens
        codes = np.concatenate([layout["prefix"], layout["positions"]]).astype(np.int64)
        laid = np.where(stream.lanes >= 0, codes[:, stream.lanes], 0).reshape(tokens, -1, size)
        planes = laid.swapaxes(0, 1).reshape(-1, 1, size)
        if self.spec.stream_bits > 8:
            planes = np.concatenate([planes, planes >> 8], axis=1)
        # Prefix tokens are done with it; the others hold their positions, to which the patches are added.
        self.put(
            Op.LOAD,
            "prefix and positions",
            {"sink": Sink.STREAM, "count": len(planes)},
            content=(planes & 0xFF).astype(np.uint8).reshape(-1, size),
        )
        node, unit = network.patch_embed, network.embed
        drain = Drain.residual(patch_bias(node), unit.params, unit.spec.out_bits, stream.lanes)
        count = tokens - prefix
        self.product(
            f"{node.name}, {unit.name}",
            NOTHING,
            self.layout.image,
            tiles(node.params.weight, stream.lanes, self.layout.image.lanes, size),
            drain,
            Sink.STREAM,
            Region(prefix, tokens, stream.lanes),
            [
                Part(node.name, True, 0, count, 0, network.channels),
                Part(unit.name, False, 0, count, 0, network.channels),
            ],
            count,
        )

    def _norm(self, node: Any, tokens: int, first: int = 0) -> None:
        pairs = np.array(node.params.words(self.spec.layernorm))
        # Before the wait below: they come in while the array finishes.
        self.write(Unit.LAYERNORM, f"parameters of {node.name}", pairs[:, 0], pairs[:, 1])
        stream, channels = self.layout.stream, self.network.channels
        self.put(
            Op.LAYERNORM,
            node.name,
            {
                **self.beats(channels, tokens),
                "source_base": stream.base + first,
                "stride": stream.stride,
                "sink_base": self.layout.normed.base,
                "sink_stride": self.layout.normed.stride,
            },
            ARRAY,  # the stream must be written, and what lies in the features' first words read
            parts=[Part(node.name, False, 0, tokens, 0, channels)],
        )

    def _residual(self, linear: Any, residual: Any, source: Region) -> None:
        """A product onto the stream. It waits for the features it reads, which the array has written."""
        stream, width = self.layout.stream, self.network.channels
        self.product(
            f"{linear.name}, {residual.name}",
            ARRAY,
            source,
            tiles(linear.params.weight, stream.lanes, source.lanes, self.size),
            Drain.residual(
                linear.params.bias, residual.params, residual.spec.out_bits, stream.lanes
            ),
            Sink.STREAM,
            stream,
            [
                Part(node.name, node is linear, 0, self.network.tokens, 0, width)
                for node in (linear, residual)
            ],
            self.network.tokens,
        )

    # ---------------------------------------------------------------------------------- attention

    def _attention(self, part: Attention) -> None:
        self._norm(part.norm, self.network.tokens)
        frac = part.softmax.params.frac
        if frac != self.frac:
            pairs = np.array(part.softmax.params.words(self.spec.softmax))
            self.write(Unit.SOFTMAX, f"f of {part.softmax.name}", pairs[:, 0], pairs[:, 1])
            self.frac = frac
        last = part.heads - 1
        for head in range(part.heads):
            # The first product reads what LayerNorm writes.
            self._head_of_qkv(part, 0, head, NOTHING if head else LAYERNORM)
            self._head_of_qkv(part, 1, head, NOTHING)
            self._scores(part, head)
            self._softmax(part, head)
            if head:
                # No wait: the scores above have waited for its codes (SOFTMAX) and its values (ARRAY).
                self._attend(part, head - 1, NOTHING)
            # Behind the product above, so that one head of values is enough.
            self._head_of_qkv(part, 2, head, NOTHING)
        # The values of the last head, and its codes.
        self._attend(part, last, ARRAY | SOFTMAX)
        self._residual(part.proj, part.residual, self.layout.attended(part))

    def _head_of_qkv(self, part: Attention, which: int, head: int, wait: Wait) -> None:
        """Queries, keys or values of a head. What they overwrite, the array has read by then."""
        node, region = part.qkv, self.layout.head(part, which, head)
        name, width = node.name, part.head_dim
        self.product(
            f"{name}, {('queries', 'keys', 'values')[which]} of head {head}",
            wait,
            self.layout.normed,
            tiles(node.params.weight, region.lanes, self.layout.normed.lanes, self.size),
            Drain.codes(node.params.bias, node.params.requant, node.spec.out_bits, region.lanes),
            (Sink.QUERIES, Sink.KEYS, Sink.VALUES)[which],
            region,
            [Part(name, False, 0, self.network.tokens, int(region.lanes[0]), width)],
            self.network.tokens,
        )

    def _scores(self, part: Attention, head: int) -> None:
        node, tokens = part.scores, self.network.tokens
        lanes = self.layout.padded
        drain = Drain.head(node.params.requant, head, node.spec.score_bits, lanes)
        self.put(
            Op.MULTIPLY,
            f"{node.name} of head {head}",
            {
                "source": Source.QUERIES,
                "tile": Tile.KEYS,
                "sink": Sink.SCORES,
                "tokens": tokens,
                "depth": share(part.head_dim, self.size),
                "blocks": lanes // self.size,
                "stride": self.layout.padded,
                "sink_stride": tokens,
                **drain.operands,
            },
            # Queries and keys must be there; and the scores of the head before be read.
            ARRAY | SOFTMAX if head else ARRAY,
            payload(drain, self.size),
            [Part(node.name, False, head * tokens, tokens, 0, tokens)],
        )

    def _softmax(self, part: Attention, head: int) -> None:
        tokens = self.network.tokens
        self.put(
            Op.SOFTMAX,
            f"{part.softmax.name}, head {head}",
            {
                **self.beats(tokens, tokens),
                "stride": tokens,
                "sink_base": self.layout.codes(head),
                "sink_stride": self.layout.padded,
            },
            ARRAY,  # the scores; and the codes of two heads before have been multiplied
            parts=[Part(part.softmax.name, False, head * tokens, tokens, 0, tokens)],
        )

    def _attend(self, part: Attention, head: int, wait: Wait) -> None:
        """Codes by values. To base sqrt 2 twice for each block: odd codes, then even ones on top of them."""
        node, blocks = part.attend, share(part.head_dim, self.size)
        stride = self.network.tokens
        out = self.layout.attended(part).base + head * blocks * stride
        drain = Drain.head(node.params, head, node.spec.out_bits, blocks * self.size)
        column = head * part.head_dim
        name = f"{node.name} of head {head}"
        if self.spec.attend.per_octave == 1:
            where = (node.name, column, part.head_dim)
            self._codes_by_values(name, wait, drain, where, head, (0, blocks, out), BOTH)
            return
        # The odd codes' sums are put back; the even ones' add to them, so they wait for the array.
        odd = {"odd": 1, "sink": Sink.SUMS}
        for block in range(blocks):
            first, what = block * self.size, f"{name}, block {block}"
            columns = min(self.size, part.head_dim - first)
            self._codes_by_values(
                f"{what}, odd codes", wait, Drain.odd(self.size), None, head, (block, 1, 0), odd
            )
            self._codes_by_values(
                f"{what}, even codes",
                ARRAY,
                drain.block(block, self.size),
                (node.name, column + first, columns),
                head,
                (block, 1, out + block * stride),
                {"even": 1, "resume": 1},
            )
            wait = NOTHING

    def _codes_by_values(
        self,
        note: str,
        wait: Wait,
        drain: Drain,
        where: tuple[str, int, int] | None,
        head: int,
        place: tuple[int, int, int],
        more: Mapping[str, int],
    ) -> None:
        """One product of a head's codes; place: first block of the head, blocks, address of the result."""
        tokens, (block, blocks, out) = self.network.tokens, place
        self.put(
            Op.MULTIPLY,
            note,
            {
                "source": Source.CODES,
                "tile": Tile.VALUES,
                "sink": Sink.FEATURES,
                "tokens": tokens,
                "depth": share(tokens, self.size),
                "blocks": blocks,
                "source_base": self.layout.codes(head),
                "tile_base": block * self.layout.padded,
                "sink_base": out,
                "stride": self.layout.padded,
                "sink_stride": tokens,
                **drain.operands,
                **more,
            },
            wait,
            payload(drain, self.size),
            [] if where is None else [Part(where[0], False, 0, tokens, *where[1:])],
        )

    # ----------------------------------------------------------------------------- MLP and the end

    def _mlp(self, part: Mlp) -> None:
        self._norm(part.norm, self.network.tokens)
        # While LayerNorm works; the product that used the table before has long been waited for.
        table = gelu_records(part.gelu.params, self.spec.gelu_bits)
        self.write(Unit.GELU, f"table of {part.gelu.name}", *table)
        hidden, node, normed = self.layout.hidden(part), part.fc1, self.layout.normed
        width, tokens = node.params.out_features, self.network.tokens
        drain = Drain.codes(node.params.bias, node.params.requant, node.spec.out_bits, hidden.lanes)
        self.product(
            f"{node.name}, {part.gelu.name}",
            LAYERNORM,
            normed,
            tiles(node.params.weight, hidden.lanes, normed.lanes, self.size),
            drain,
            Sink.FEATURES,
            hidden,
            [
                Part(node.name, True, 0, tokens, 0, width),
                Part(part.gelu.name, False, 0, tokens, 0, width),
            ],
            tokens,
            gelu=1,
        )
        self._residual(part.fc2, part.residual, hidden)

    def _tail(self) -> None:
        network, normed = self.network, self.layout.normed
        if network.early:
            self._norm(network.norm, 1, network.token)
        else:
            self._norm(network.norm, network.tokens)
        name, length = network.output
        # Without a head codes come out as they are: a product with the identity.
        weight: Any = identity(length) if network.head is None else network.head.params.weight
        bias = np.zeros(length, np.int64) if network.head is None else network.head.params.bias
        lanes: Lanes = lanes_of(0, length, self.size)
        self.product(
            name,
            LAYERNORM,
            Region(0 if network.early else network.token, normed.stride, normed.lanes),
            tiles(weight, lanes, normed.lanes, self.size),
            Drain.sums(bias, lanes),
            Sink.OUTPUTS,
            Region(0, 1, lanes),
            [Part(name, True, 0, 1, 0, length)],
            1,
        )

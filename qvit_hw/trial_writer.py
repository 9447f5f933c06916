# SPDX-License-Identifier: Apache-2.0
"""Writes a program instruction by instruction: operands at random and at their ends, waits as few as will do.

Bits of an instruction that no field has are at random, too: nobody may look at them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from golden.accelerator import AcceleratorSpec
from golden.flight import Flight
from golden.program import (
    FIELDS,
    INSTRUCTION_BYTES,
    OPERANDS,
    ROW_MEMORIES,
    Instruction,
    Op,
    Sink,
    Source,
    Tile,
    Unit,
    instruction_words,
    parameter_words,
    record_words,
)
from golden.softmax import ALIGN_STEPS
from sim.operators import operator

__all__ = ["Column", "Pixels", "Writer"]

Pixels = npt.NDArray[np.uint8]
ANYTHING = 64
"""Last words of the features: rows whose last beat is not full go there, and nothing reads them."""
Column = tuple[int, int, int, int]
"""Bias, multiplier, shift and align of a lane."""
MEMORIES = (Sink.FEATURES, Sink.QUERIES, Sink.KEYS, Sink.VALUES, Sink.SCORES, Sink.STREAM)


class Writer:
    """Writes instructions with what follows them; each waits for what it must."""

    def __init__(self, spec: AcceleratorSpec, seed: int, image_words: int) -> None:
        self.spec, self.rng, self.size = spec, np.random.default_rng(seed), spec.size
        self._seed = seed
        self.steps: list[Instruction] = []
        self.words: list[Pixels] = []
        self._flight = Flight()
        self.add(Op.HEAD, [], image_words=image_words, fingerprint=spec.fingerprint)

    def add(self, op: Op, payload: Iterable[Pixels], **operands: int) -> None:
        """An instruction; it waits for as little as will do, now and then for more."""
        waits = sorted([0, *self.rng.permutation(7) + 1], key=lambda wait: int(wait).bit_count())
        more = int(self.rng.integers(8)) if self.rng.random() < 0.4 else 0
        if op in (Op.HEAD, Op.END):  # nothing is at work before, or all is waited for: any will do
            more = self._seed % 8
        for wait in waits:
            instruction, flight = Instruction(op, int(wait) | more, operands), deepcopy(self._flight)
            try:
                flight.begin(instruction, self.size)
            except ValueError:
                continue
            self._flight = flight
            break
        else:
            raise AssertionError(f"{op.name} gets in its own way: {operands}")
        self.steps.append(instruction)
        self.words += [self._scribbled(instruction), *payload]

    def _scribbled(self, instruction: Instruction) -> Pixels:
        """The words of an instruction, bits at random wherever it has no field."""
        words = instruction_words(instruction, self.size).copy()
        places = [FIELDS[name] for name in ("op", "wait", *OPERANDS[instruction.op])]
        taken = sum((1 << place.bits) - 1 << place.low for place in places)
        used = np.frombuffer(taken.to_bytes(INSTRUCTION_BYTES, "little"), np.uint8)
        words.reshape(-1)[:INSTRUCTION_BYTES] |= self.rng.integers(0, 256, used.size, dtype=np.uint8) & ~used
        return words

    def pick(self, low: int, high: int) -> int:
        """An integer, one of the ends every third time."""
        if self.rng.random() < 1 / 3:
            return int(self.rng.choice([low, high]))
        return int(self.rng.integers(low, high, endpoint=True))

    def codes(self, *shape: int) -> Pixels:
        """Random bytes, many at an end."""
        bytes_ = self.rng.integers(0, 256, shape, dtype=np.uint8)
        return np.where(self.rng.random(shape) < 0.2, np.uint8(0x80), bytes_)

    def base(self, memory: str, used: int) -> int:
        """Where words begin so that the memory has ``used`` of them, and none of those that hold anything."""
        depth = getattr(self.spec, memory) - (ANYTHING if memory == "features" else 0)
        return self.pick(0, max(0, depth - used))

    # ---------------------------------------------------------------------------------- without the array

    def load(self, sink: Sink, count: int, at: int, codes: Sequence[int] = ()) -> None:
        """Words of a memory; codes: all of theirs, else at random."""
        half = 1 << (self.spec.stream_bits if sink is Sink.STREAM else 8) - 1
        values = self.rng.integers(-half, half, (count, 1, self.size))
        values = np.where(self.rng.random(values.shape) < 0.2, -half, values)
        if codes:
            values = np.array(codes).reshape(values.shape)
        planes = [values & 0xFF] if half == 128 else [values & 0xFF, values >> 8 & 0xFF]
        words = np.concatenate(planes, axis=1).astype(np.uint8)
        self.add(Op.LOAD, [words.reshape(-1, self.size)], sink=sink, count=count, sink_base=at)

    def write(self, unit: Unit, records: Sequence[tuple[int, int]]) -> None:
        """Parameters of a unit."""
        addresses, values = np.array(records, np.int64).reshape(-1, 2).T
        payload = record_words(addresses, values, self.size)
        self.add(Op.WRITE, [payload], unit=unit, count=len(records))

    def table(self) -> None:
        """A GELU table at random."""
        table = self.codes(1 << self.spec.gelu_bits).view(np.int8).tolist()
        self.write(Unit.GELU, list(enumerate(table)))

    def rows(
        self, op: Op, tokens: int, depth: int, last: int, *, changed: bool = True, **strides: int
    ) -> None:
        """Rows of a unit; changed: behind new parameters."""
        norm, count = op is Op.LAYERNORM, (depth - 1) * self.size + last
        if norm and changed:
            spec = self.spec.layernorm
            params = operator("layernorm", asdict(spec)).random_params(self.rng, count)
            if self.rng.random() < 1 / 2:  # no row is nearly constant beside it
                params = replace(params, eps=spec.min_eps(params.point))
            legal = spec.bounds["offset"]  # its ends bring every channel to an end of the codes
            ends = self.rng.choice([legal.low, legal.high], count)
            params = replace(params, offset=np.where(self.rng.random(count) < 0.2, ends, params.offset))
            self.write(Unit.LAYERNORM, params.words(spec))
        elif changed:
            frac = self.spec.softmax.frac_bits
            self.write(Unit.SOFTMAX, [(0, self.pick(max(0, frac - ALIGN_STEPS + 1), frac))])
        source, sink = ROW_MEMORIES[op]
        given = {}
        for end, memory in (("source", source), ("sink", sink)):
            stride = strides.get(end, tokens + self.pick(0, 3))
            used = (depth - 1) * stride + tokens
            given[f"{end}_base"] = self.base(memory, used)
            if memory == "features" and last < self.size:
                given["sink_base"] = self.spec.features - self.pick(used, ANYTHING)
            given["stride" if end == "source" else "sink_stride"] = stride
        self.add(op, [], tokens=tokens, depth=depth, last_lanes=last, **given)

    # ------------------------------------------------------------------------------------------ the array

    def product(
        self,
        source: Source,
        tile: Tile,
        sink: Sink,
        *,
        tokens: int,
        depth: int,
        blocks: int,
        resume: bool = False,
        dense: bool = False,
        plain: bool = False,
        stride: int | None = None,
    ) -> None:
        """A product with parameters at random that the sink can hold.

        dense: no word between its blocks.  plain: the operand as it is.  stride: at random without.
        """
        spec, size = self.spec, self.size
        bits = {Sink.SCORES: spec.softmax.score_bits, Sink.STREAM: spec.stream_bits, Sink.SUMS: 24}
        gelu = not plain and self.rng.random() < 0.3
        clamp = spec.gelu_bits if gelu else bits.get(sink, 8)
        tokens = min(tokens, spec.max_tokens)
        stride = self.pick(tokens, tokens + 3) if stride is None else stride
        given: dict[str, Any] = {"stride": stride, "sink_stride": tokens + (0 if dense else self.pick(0, 3))}
        name = source.name.lower()
        given["source_base"] = self.base(name, (depth - 1) * stride + tokens)
        if tile is Tile.KEYS:
            given["tile_base"] = self.base("keys", (depth - 1) * stride + blocks * size)
        elif tile is Tile.VALUES:
            given["tile_base"] = self.base("values", (blocks - 1) * stride + depth * size)
        written = (blocks - 1) * given["sink_stride"] + tokens
        given["sink_base"] = 0 if sink is Sink.SUMS else self.base(sink.name.lower(), written)
        half = 1 << spec.stream_bits - 1
        given |= {
            "clamp": 32 if sink is Sink.OUTPUTS else clamp if dense else self.pick(2, clamp),
            "gelu": int(gelu),
            # To base 2 every code counts.
            "even": self.pick(0, 1) | (spec.attend.per_octave == 1),
            "odd": self.pick(0, 1) | (spec.attend.per_octave == 1),
            "gain": self.pick(0, (1 << 32) - 1),
            "zero_in": self.pick(-half, half - 1),
            "zero_out": self.pick(-(1 << 15), (1 << 15) - 1) if self.rng.random() < 0.3 else self.pick(-9, 9),
        }
        payload, mild = list[Pixels](), dense or self.rng.random() < 1 / 2
        for _ in range(blocks):
            columns = [self.column(given["clamp"] if mild else 0) for _ in range(size)]
            columns = [(0, 1, 0, 0)] * size if plain else columns
            payload.append(parameter_words(*zip(*columns, strict=True)))
            if tile is Tile.STREAM:
                payload.append(np.eye(size, dtype=np.uint8) if plain else self.codes(depth * size, size))
        shape = {"tokens": tokens, "depth": depth, "blocks": blocks, "resume": int(resume)}
        self.add(Op.MULTIPLY, payload, source=source, tile=tile, sink=sink, **shape, **given)

    def column(self, clamp: int) -> Column:
        """A lane's bias, multiplier and shifts.

        clamp: a width of codes that sums of a few bytes fill by them; 0 for parameters that may do anything.
        """
        align = self.pick(0, 7)
        if clamp:
            return self.pick(-4096, 4096), self.pick(1 << 22, 1 << 23), 38 - clamp + self.pick(0, 2), align
        reach = 1 << (28 if self.rng.random() < 0.2 else 20)
        shift = self.pick(0, 62) if self.rng.random() < 0.3 else self.pick(24, 44)
        return self.pick(-reach, reach), self.pick(0, (1 << 24) - 1), shift, align

    def biased(self, sink: Sink, columns: Sequence[Column], base: int = 0, **given: int) -> None:
        """A product of one token with weights of 0: each column's sum is its bias, whatever that is."""
        payload = list[Pixels]()
        for begin in range(0, len(columns), self.size):
            payload.append(parameter_words(*zip(*columns[begin : begin + self.size], strict=True)))
            payload.append(np.zeros((self.size, self.size), np.uint8))
        shape = {"tokens": 1, "depth": 1, "blocks": len(columns) // self.size, "stride": 1, "sink_stride": 1}
        places = {"source": Source.FEATURES, "tile": Tile.STREAM, "sink": sink, "sink_base": base}
        self.add(Op.MULTIPLY, payload, **shape, **places, even=1, odd=1, **given)

    def any_product(self) -> None:
        """A product of any operand with any tile for any sink."""
        source, tile = Source(self.pick(0, 2)), Tile(self.pick(0, 2))
        sinks = [sink for sink in MEMORIES if sink.name != source.name and sink.name != tile.name]
        sink = Sink(self.rng.choice(sinks))
        tokens, depth, blocks = self.pick(1, 21), self.pick(1, 5), self.pick(1, 3)
        self.product(source, tile, sink, tokens=tokens, depth=depth, blocks=blocks)

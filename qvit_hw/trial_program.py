# SPDX-License-Identifier: Apache-2.0
"""Programs that no network has: every kind of instruction, its operands at random and at their ends.

What the hardware must make of them is what :mod:`golden.machine` makes of them. They wait for as little as
:mod:`golden.flight` allows, so that units work side by side wherever they can.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from golden.accelerator import SINKS, AcceleratorSpec
from golden.flight import Flight
from golden.machine import Drained, Event, Machine
from golden.program import (
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
from golden.requant import RequantSpec
from golden.requant import corner_rows as requant_corners
from golden.residual import ResidualSpec
from golden.residual import corner_rows as residual_corners
from golden.softmax import ALIGN_STEPS
from sim.operators import operator
from sim.words import Wanted, Words

__all__ = ["Scattered", "cornered", "scattered"]

Pixels = npt.NDArray[np.uint8]
PRODUCTS = 40
"""Products of a program."""
ANYTHING = 64
"""Last words of the features: rows whose last beat is not full go there, and nothing reads them."""
_Column = tuple[int, int, int, int]
"""Bias, multiplier, shift and align of a lane."""
MEMORIES = (Sink.FEATURES, Sink.QUERIES, Sink.KEYS, Sink.VALUES, Sink.SCORES, Sink.STREAM)


@dataclass(frozen=True, eq=False)
class Scattered:
    """A program, the image that it wants, its instructions, and what the hardware must make of them.

    outputs: the first words of the memory of outputs, flat.
    """

    words: Pixels
    image: Pixels
    steps: tuple[Instruction, ...]
    outputs: npt.NDArray[np.int64]
    wanted: Wanted


class _Writer:
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
        self.words += [instruction_words(instruction, self.size), *payload]

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

    def column(self, clamp: int) -> _Column:
        """A lane's bias, multiplier and shifts.

        clamp: a width of codes that sums of a few bytes fill by them; 0 for parameters that may do anything.
        """
        align = self.pick(0, 7)
        if clamp:
            return self.pick(-4096, 4096), self.pick(1 << 22, 1 << 23), 38 - clamp + self.pick(0, 2), align
        reach = 1 << (28 if self.rng.random() < 0.2 else 20)
        shift = self.pick(0, 62) if self.rng.random() < 0.3 else self.pick(24, 44)
        return self.pick(-reach, reach), self.pick(0, (1 << 24) - 1), shift, align

    def biased(self, sink: Sink, columns: Sequence[_Column], base: int = 0, **given: int) -> None:
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


def scattered(spec: AcceleratorSpec, seed: int = 1, image_words: int = 6) -> Scattered:
    """A program at random, the same for the same seed."""
    write = _Writer(spec, seed, image_words)
    write.table()
    write.load(Sink.STREAM, spec.stream, 0)
    write.load(Sink.FEATURES, spec.features - image_words, image_words)
    _filled(write)
    for turn in range(PRODUCTS):
        write.any_product()
        if turn % 4 == 1:
            write.rows(Op.SOFTMAX, write.pick(1, 9), write.pick(1, 4), write.pick(1, spec.size))
        if turn % 4 == 3:
            write.rows(Op.LAYERNORM, write.pick(1, 9), write.pick(1, 4), write.pick(1, spec.size))
    # Twice the same unit at once, sums that are put back, and a table that changes in between.
    for op in (Op.SOFTMAX, Op.LAYERNORM):
        for changed in (True, False, False):
            write.rows(op, 3, 2, 1, changed=changed)
    _far(write)
    write.table()
    for count in (0, 1, 0):
        write.load(Sink.STREAM, count, 5)
        write.load(Sink.FEATURES, count, 6)
        write.write(Unit.GELU, [(count, 7)] * count)
        write.write(Unit.GELU, [(count, 8)] * count)
    for tokens in (1, spec.size, spec.max_tokens):
        last = Sink.OUTPUTS if tokens <= spec.outputs else Sink.QUERIES
        for sink in (Sink.SUMS, last):
            resume = sink is not Sink.SUMS
            write.product(Source.FEATURES, Tile.STREAM, sink, tokens=tokens, depth=2, blocks=1, resume=resume)
    return _ended(write, image_words)


def cornered(spec: AcceleratorSpec, image_words: int = 6) -> Scattered:
    """The corner rows of :mod:`golden.requant` and :mod:`golden.residual`, a column each of theirs."""
    write = _Writer(spec, 0, image_words)
    _filled(write)
    for _, acc, params in requant_corners(RequantSpec()):
        multiplier, shift = int(params.multiplier[0]), int(params.shift[0])
        columns = [(value, multiplier, shift, 0) for value in acc.ravel().tolist()]
        columns += [(0, 0, 0, 0)] * (-len(columns) % spec.size)
        write.biased(Sink.QUERIES, columns, clamp=8, zero_out=params.zero_point, gain=(1 << 32) - 1)
    for sign in (1, -1):  # whichever bit alone is beyond a code, in each lane
        for lane in range(spec.size):
            places = [*range(lane), *range(54)]
            columns = [(sign << max(0, bit - 23), 1 << min(bit, 23), 0, 0) for bit in places]
            columns += [(sign, 1, 0, 0)] * (-len(columns) % spec.size)
            write.biased(Sink.QUERIES, columns, clamp=8)
        write.biased(Sink.SUMS, [(sign << 30, 1 << 23, 0, 0)] * spec.size, clamp=32)
    bits = spec.stream_bits
    shape = ResidualSpec(in_bits=bits, out_bits=bits, max_shift=7, gain_bits=32, multiplier_bits=24)
    for _, codes, acc, values in residual_corners(shape):
        lanes = acc, values.multiplier, values.shift + values.out_shift, values.in_shift
        columns = list(zip(*(each.tolist() for each in lanes), strict=True))
        write.load(Sink.STREAM, len(columns) // spec.size, 0, codes.tolist())
        points = {"zero_in": values.in_zero_point, "zero_out": values.zero_point}
        write.biased(Sink.STREAM, columns, clamp=bits, gain=values.gain, **points)
    for width in range(1, 25):
        _cancelling(write, width)
    return _ended(write, image_words)


def _cancelling(write: _Writer, width: int) -> None:
    """Large products of the stream and of the branch whose sum is small, so that each bit of either counts.

    width: of the branch's multiplier M, half of which is more than what is left of the sum.
    """
    size, bits = write.size, write.spec.stream_bits
    codes, columns = list[int](), list[_Column]()
    gain = write.pick(1, (1 << min(32, 18 + width)) - 1)
    for _ in range(2 * size):
        code, align = write.pick(-(1 << bits - 2), (1 << bits - 2) - 1), write.pick(0, 7)
        multiplier = int(write.rng.integers(1 << width - 1, 1 << width))
        kept = (code << align) * gain
        bias = -kept // multiplier
        if not -(1 << 31) <= bias < 1 << 31:
            code, bias = 0, write.pick(-100, 100)
        codes.append(code)
        columns.append((bias, multiplier, max(0, width - bits), align))
    write.load(Sink.STREAM, 2, 0, codes)
    write.biased(Sink.STREAM, columns, clamp=bits, gain=gain)


def _ended(write: _Writer, image_words: int) -> Scattered:
    """A program, and what the hardware must make of it."""
    write.add(Op.END, [])
    image = write.codes(image_words, write.size)
    words, events = np.concatenate(write.words), list[Event]()
    outputs = Machine(write.spec, events.append).run(words, image)
    wanted = _wanted(write.steps, write.spec, events)
    return Scattered(words, image, tuple(write.steps), outputs.reshape(-1), wanted)


def _filled(write: _Writer) -> None:
    """All memories, so that nothing is left of the run before."""
    spec, most = write.spec, write.spec.max_tokens
    for sink in (Sink.QUERIES, Sink.KEYS, Sink.VALUES, Sink.SCORES, Sink.OUTPUTS):
        depth = getattr(spec, sink.name.lower())
        tokens = min(depth, most)
        shape = {"tokens": tokens, "depth": 1, "blocks": depth // tokens}
        # Scores that are plain bytes lead to every code.
        write.product(Source.FEATURES, Tile.STREAM, sink, **shape, dense=True, plain=sink is Sink.SCORES)
    beats = min(most, spec.softmax.max_tokens) // spec.size
    tokens = spec.codes // beats
    write.rows(Op.SOFTMAX, tokens, beats, spec.size, source=tokens, sink=tokens)


def _far(write: _Writer) -> None:
    """As many tokens, words of a row and tiles as the memories have room for, and strides as long."""
    spec = write.spec
    for op, (source, sink) in ROW_MEMORIES.items():
        unit = spec.softmax.max_tokens if op is Op.SOFTMAX else spec.layernorm.max_channels
        ends = {"source": source, "sink": sink}
        room = {end: getattr(spec, name) for end, name in ends.items()}
        for thirds in (1, 2, 3):  # among them each bit is high
            write.rows(op, min(room.values()) * thirds // 3, 1, spec.size, source=1, sink=1)
        write.rows(op, 1, 2, spec.size, **{end: words - 1 for end, words in room.items()})
        for thirds in (2, 3):
            write.rows(op, 1, unit // spec.size * thirds // 3, spec.size, source=1, sink=1)
    deepest = max((sink for sink in SINKS if sink != "features"), key=lambda sink: int(getattr(spec, sink)))
    most = (spec.max_tokens, spec.limits["depth"], getattr(spec, deepest))
    for only, thirds in product(range(len(most)), (1, 2, 3)):
        t, d, b = (n * thirds // 3 if at == only else 1 for at, n in enumerate(most))
        places = Source.FEATURES, Tile.STREAM, Sink[deepest.upper()]
        write.product(*places, tokens=t, depth=d, blocks=b, stride=0, dense=True)


def _wanted(steps: Sequence[Instruction], spec: AcceleratorSpec, events: Iterable[Event]) -> Wanted:
    """What the units write; of LayerNorm's rows nobody knows what is behind the last channel."""
    none = np.zeros((0, spec.size), np.int64)
    kept: dict[str, list[npt.NDArray[np.int64]]] = {
        name: [none] for name in ("sums", "words", "layernorm", "softmax")
    }
    meant = [none.astype(np.bool_)]
    for event in events:
        if isinstance(event, Drained):
            kept["sums"].append(event.sums)
            kept["words"].append(event.words)
            continue
        step = steps[event.instruction]
        kept[step.op.name.lower()].append(event.words)
        if step.op is Op.LAYERNORM:
            count = (step["depth"] - 1) * spec.size + step["last_lanes"]
            row = np.arange(step["depth"] * spec.size) < count
            meant.append(np.tile(row, step["tokens"]).reshape(-1, spec.size))
    words = {name: np.concatenate(parts) for name, parts in kept.items()}
    flags = {name: np.ones(part.shape, np.bool_) for name, part in words.items()}
    return Wanted(Words(**words), flags | {"layernorm": np.concatenate(meant)})

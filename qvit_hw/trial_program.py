# SPDX-License-Identifier: Apache-2.0
"""Programs that no network has: every kind of instruction, its operands at random and at their ends.

What the hardware must make of them is what :mod:`golden.machine` makes of them. They wait for as little as
:mod:`golden.flight` allows, so that units work side by side wherever they can.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from golden.accelerator import SINKS, AcceleratorSpec
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
)
from golden.requant import RequantSpec
from golden.requant import corner_rows as requant_corners
from golden.residual import ResidualSpec
from golden.residual import corner_rows as residual_corners
from qvit_hw.trial_writer import Column, Pixels, Writer
from sim.words import Wanted, Words

__all__ = ["Scattered", "cornered", "scattered", "unknown_behind"]

PRODUCTS = 40
"""Products of a program."""
UNKNOWN = 99
"""No instruction's code."""


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


def scattered(spec: AcceleratorSpec, seed: int = 1, image_words: int = 6) -> Scattered:
    """A program at random, the same for the same seed."""
    write = Writer(spec, seed, image_words)
    _filled(write, image_words)
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
    for tokens in range(spec.max_tokens - 3, spec.max_tokens):  # for some a wrong count comes right
        write.product(Source.FEATURES, Tile.STREAM, Sink.SUMS, tokens=tokens, depth=1, blocks=1)
    return _ended(write, image_words)


def cornered(spec: AcceleratorSpec, image_words: int = 6) -> Scattered:
    """The corner rows of :mod:`golden.requant` and :mod:`golden.residual`, a column each of theirs."""
    write = Writer(spec, 0, image_words)
    _filled(write, image_words)
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
        for clamp in range(2, 33):
            write.biased(Sink.SUMS, [(sign << 30, 1 << 23, 0, 0)] * spec.size, clamp=clamp)
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


def unknown_behind(spec: AcceleratorSpec, op: Op, tokens: int, image_words: int) -> Pixels:
    """A program that begins ``op`` and, while the units are at it, has an instruction that nobody knows."""
    write = Writer(spec, tokens, image_words)
    if op is Op.MULTIPLY:
        write.product(Source.FEATURES, Tile.STREAM, Sink.QUERIES, tokens=tokens, depth=1, blocks=1)
    else:
        write.rows(op, tokens, 2, spec.size)
    unknown = instruction_words(Instruction(Op.END), spec.size).copy()
    unknown.reshape(-1)[0] = UNKNOWN
    return np.concatenate([*write.words, unknown])


def _cancelling(write: Writer, width: int) -> None:
    """Large products of the stream and of the branch whose sum is small, so that each bit of either counts.

    width: of the branch's multiplier M, half of which is more than what is left of the sum.
    """
    size, bits = write.size, write.spec.stream_bits
    codes, columns = list[int](), list[Column]()
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


def _ended(write: Writer, image_words: int) -> Scattered:
    """A program, and what the hardware must make of it."""
    write.add(Op.END, [])
    image = write.codes(image_words, write.size)
    words, events = np.concatenate(write.words), list[Event]()
    outputs = Machine(write.spec, events.append).run(words, image)
    wanted = _wanted(write.steps, write.spec, events)
    return Scattered(words, image, tuple(write.steps), outputs.reshape(-1), wanted)


def _filled(write: Writer, image_words: int) -> None:
    """All memories and the table, so that nothing is left of the run before."""
    spec, most = write.spec, write.spec.max_tokens
    write.table()
    write.load(Sink.STREAM, spec.stream, 0)
    write.load(Sink.FEATURES, spec.features - image_words, image_words)
    for sink in (Sink.QUERIES, Sink.KEYS, Sink.VALUES, Sink.SCORES, Sink.OUTPUTS):
        depth = getattr(spec, sink.name.lower())
        tokens = min(depth, most)
        shape = {"tokens": tokens, "depth": 1, "blocks": depth // tokens}
        # Scores that are plain bytes lead to every code.
        write.product(Source.FEATURES, Tile.STREAM, sink, **shape, dense=True, plain=sink is Sink.SCORES)
    beats = min(most, spec.softmax.max_tokens) // spec.size
    tokens = spec.codes // beats
    # By so many bits of fraction a byte's range is some 16 halvings: every code comes.
    write.write(Unit.SOFTMAX, [(0, spec.softmax.frac_bits)])
    write.rows(Op.SOFTMAX, tokens, beats, spec.size, changed=False, source=tokens, sink=tokens)
    tokens = min(spec.codes, most)  # the array sees every word of codes
    shape = {"tokens": tokens, "depth": spec.codes // tokens, "blocks": 1, "stride": tokens}
    write.product(Source.CODES, Tile.STREAM, Sink.QUERIES, dense=True, **shape)


def _far(write: Writer) -> None:
    """As many tokens, words of a row and tiles as the memories have room for, and strides as long."""
    spec = write.spec
    for op, (source, sink) in ROW_MEMORIES.items():
        unit = spec.softmax.max_tokens if op is Op.SOFTMAX else spec.layernorm.max_channels
        ends = {"source": source, "sink": sink}
        room = {end: getattr(spec, name) for end, name in ends.items()}
        for thirds in (1, 2, 3):  # among them each bit is high
            write.rows(op, min(room.values()) * thirds // 3, 1, spec.size, source=1, sink=1)
        write.rows(op, 1, 2, spec.size, **{end: words - 1 for end, words in room.items()})
        for beats in range(1, unit // spec.size + 1):
            write.rows(op, 1, beats, spec.size, source=1, sink=1)
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

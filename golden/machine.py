# SPDX-License-Identifier: Apache-2.0
"""The accelerator in NumPy: executes a program as ``docs/accelerator.md`` says, instruction by instruction.

    outputs = Machine(spec).run(program, image)         # int64 [outputs, L]

It computes what the hardware computes, not when. Since hardware goes on to the next instruction before this
one has finished, a program may lack a ``wait`` and still look right here; so what is in flight is kept
(:mod:`golden.flight`) and a program that depends on luck is refused, like one that does not fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from golden.accelerator import AcceleratorSpec
from golden.bounds import Interval
from golden.fixedpoint import Ints, integer, integers, rounding_shift, saturate
from golden.flight import Flight
from golden.layernorm import WORD, LayerNormParams, layernorm
from golden.matmul import exact_matmul
from golden.program import (
    INSTRUCTION_BYTES,
    PARAMETER_WORDS,
    RECORD_BYTES,
    ROW_MEMORIES,
    Error,
    Instruction,
    Op,
    Sink,
    Source,
    Tile,
    Unit,
)
from golden.softmax import SoftmaxParams, softmax

__all__ = ["Drained", "Event", "Machine", "ProgramError", "Rows", "element"]

BYTE = Interval.of_bits(8, signed=True)
SUM = Interval.of_bits(32, signed=True)


class ProgramError(Exception):
    """The hardware would end the run with this error code, ``error``."""

    def __init__(self, error: Error) -> None:
        super().__init__(f"The run ended with error {error.name}")
        self.error = error


@dataclass(frozen=True, eq=False)
class Drained:
    """A column block that has left the drain.

    instruction: its number in the program, HEAD is 0.  block: of the instruction.
    sums: with the bias, [tokens, L].  words: what the sink got, [tokens, L].
    """

    instruction: int
    block: int
    sums: npt.NDArray[np.int64]
    words: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Rows:
    """What LAYERNORM or SOFTMAX has written: words [tokens * depth, L] in the order of writing.

    Elements beyond a row's last channel are the last code of softmax; of LayerNorm, anything (here 0).
    """

    instruction: int
    words: npt.NDArray[np.int64]


Event = Drained | Rows


def element(spec: AcceleratorSpec, memory: str) -> Interval:
    """What an element of a memory may be."""
    if memory == "codes":
        return Interval.of_bits(spec.softmax.code_bits, signed=False)
    bits = {
        "stream": spec.stream_bits,
        "scores": spec.softmax.score_bits,
        "outputs": 32,
        "sums": 32,
    }
    return Interval.of_bits(bits.get(memory, 8), signed=True)


class Machine:
    """An accelerator: memories of zeros at first, which, like the units' parameters, outlive a run."""

    def __init__(self, spec: AcceleratorSpec, watch: Callable[[Event], None] | None = None) -> None:
        """``watch`` is called with every column block and every instruction of rows, in program order."""
        self.spec, self.size = spec, spec.size
        depths = {sink.name.lower(): 0 for sink in Sink} | {"codes": 0}
        depths = {name: getattr(spec, name, spec.max_tokens) for name in depths}
        self.memory = {
            name: np.zeros((depth, self.size), np.int64) for name, depth in depths.items()
        }
        """Words by memory, [depth, L]; "sums" is the accumulators."""
        self.watch = watch or (lambda event: None)
        # LayerNorm's parameters have two banks: writes go to the one that is not in use.
        self._banks: tuple[dict[int, int], dict[int, int]] = ({}, {})
        self._bank = 0
        self._frac = 0
        self._table = np.zeros(1 << spec.gelu_bits, np.int64)
        self._number = 0
        self._flight = Flight()

    def run(
        self, program: npt.NDArray[np.uint8], image: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.int64]:
        """Outputs [outputs, L] of a program [words, L] and an image [words, L], both uint8.

        ProgramError where the hardware ends with an error. ValueError, with the number of the instruction,
        for a program that is not sound: an address beyond its memory, a value that the memory cannot hold,
        a wait that is missing.
        """
        for name, words in (("Program", program), ("Image", image)):
            if words.dtype != np.uint8 or words.ndim != 2 or words.shape[1] != self.size:
                raise ValueError(
                    f"{name} must be uint8 [words, {self.size}], not {words.dtype} {words.shape!r}"
                )
        reader = _Reader(np.ascontiguousarray(program).reshape(-1), self.size)
        self._number, self._flight = 0, Flight()
        while True:
            instruction = reader.instruction()
            if not self._number:
                self._head(instruction, image)
            if instruction is None:
                raise ProgramError(Error.OPERATION)
            try:
                if instruction.op is Op.END:
                    return self.memory["outputs"].copy()
                self._flight.begin(instruction, self.size)
                self._execute(instruction, reader)
            except ValueError as error:
                raise ValueError(
                    f"Instruction {self._number}, {instruction.op.name}: {error}"
                ) from None
            self._number += 1

    def _execute(self, instruction: Instruction, reader: _Reader) -> None:
        if instruction.op in (Op.LOAD, Op.WRITE):
            integer(instruction["count"], "Count", 0, self.spec.limits["count"])
        match instruction.op:
            case Op.LOAD:
                self._load(instruction, reader)
            case Op.WRITE:
                records = reader.take(instruction["count"] * RECORD_BYTES)
                self._write(Unit(instruction["unit"]), records.view("<u4").reshape(-1, 2))
            case Op.MULTIPLY:
                self._multiply(instruction, reader)
            case Op.LAYERNORM | Op.SOFTMAX:
                self._rows(instruction)

    def _at(self, memory: str, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The same addresses, after their check."""
        depth = len(self.memory[memory])
        if places.size and int(places.max()) >= depth:
            raise ValueError(
                f"Address in {memory} must be below {depth}, not {int(places.max())!r}"
            )
        return places

    def _store(self, memory: str, places: npt.NDArray[np.int64], words: Ints) -> None:
        element(self.spec, memory).require(words, f"Element of {memory}")
        self.memory[memory][self._at(memory, places)] = words

    # ------------------------------------------------------------------------- without the array

    def _head(self, head: Instruction | None, image: npt.NDArray[np.uint8]) -> None:
        if len(image) > self.spec.limits["image_words"]:
            raise ProgramError(Error.IMAGE)
        if head is None or head.op is not Op.HEAD:
            raise ProgramError(Error.HEAD)
        if head["fingerprint"] != self.spec.fingerprint:
            raise ProgramError(Error.CONFIGURATION)
        if head["image_words"] != len(image):
            raise ProgramError(Error.IMAGE)
        self._store("features", np.arange(len(image)), (image ^ 0x80).view(np.int8))

    def _load(self, load: Instruction, reader: _Reader) -> None:
        sink, count = Sink(load["sink"]), load["count"]
        if sink not in (Sink.FEATURES, Sink.STREAM):
            raise ValueError(f"Sink must be FEATURES or STREAM, not {sink.name}")
        deep = sink is Sink.STREAM and self.spec.stream_bits > 8
        planes = reader.take(count * self.size * (1 + deep)).reshape(count, 1 + deep, self.size)
        words = planes[:, -1].view(np.int8).astype(np.int64)
        if deep:
            words = words << 8 | planes[:, 0]
        self._store(sink.name.lower(), load["sink_base"] + np.arange(count), words)

    def _write(self, unit: Unit, records: npt.NDArray[np.uint32]) -> None:
        if unit is Unit.LAYERNORM:
            known = self.spec.layernorm.addresses
            for address, value in records.tolist():
                if address not in known:
                    raise ValueError(f"Address must be a parameter's, not {address!r}")
                if address == WORD["commit"]:
                    self._bank ^= 1
                else:
                    self._banks[1 - self._bank][address] = value
        elif unit is Unit.SOFTMAX:
            if records[:, 0].any():
                raise ValueError(f"Address must be 0, not {int(records[:, 0].max())!r}")
            self._frac = int(records[-1, 1]) if len(records) else self._frac
        else:
            values = np.ascontiguousarray(records[:, 1]).view(np.int32)
            BYTE.require(values, "Output code")
            Interval(0, len(self._table) - 1).require(records[:, 0], "Address")
            self._table[records[:, 0]] = values

    def _rows(self, rows: Instruction) -> None:
        tokens, depth, last = rows["tokens"], rows["depth"], rows["last_lanes"]
        if not tokens or not depth or not 1 <= last <= self.size:
            raise ValueError(
                f"Rows must have tokens, beats and 1 to {self.size} last lanes, "
                f"not {(tokens, depth, last)!r}"
            )
        norm = rows.op is Op.LAYERNORM
        source, sink = ROW_MEMORIES[rows.op]
        grid = np.arange(tokens)[:, None], np.arange(depth)
        read = self._at(source, rows["source_base"] + grid[1] * rows["stride"] + grid[0])
        write = rows["sink_base"] + grid[1] * rows["sink_stride"] + grid[0]
        count = (depth - 1) * self.size + last
        given = self.memory[source][read].reshape(tokens, -1)[:, :count]
        out = np.zeros((tokens, depth * self.size), np.int64)
        if norm:
            unit = self.spec.layernorm
            params = LayerNormParams.from_words(self._banks[self._bank], count)
            out[:, :count] = layernorm(given, unit, params)
        else:
            out[:, count:] = self.spec.softmax.last_code
            out[:, :count] = softmax(given, self.spec.softmax, SoftmaxParams(frac=self._frac))
        words = out.reshape(tokens, depth, self.size)
        self._store(sink, write, words)
        self.watch(Rows(self._number, words.reshape(-1, self.size)))

    # ---------------------------------------------------------------------------------- the array

    def _operand(self, multiply: Instruction) -> tuple[Ints, Interval]:
        """Operand [tokens, depth * L] as it enters the array, and its range."""
        memory = Source(multiply["source"]).name.lower()
        tokens, depth = multiply["tokens"], multiply["depth"]
        places = multiply["source_base"] + np.arange(depth) * multiply["stride"]
        places = self._at(memory, places + np.arange(tokens)[:, None])
        x = self.memory[memory][places].reshape(tokens, -1)
        if memory != "codes":
            return x, BYTE
        parities = (multiply["even"], multiply["odd"])
        shifts = self.spec.attend.shifts
        weights = [
            1 << shift if shift is not None and parities[code % 2] else 0
            for code, shift in enumerate(shifts)
        ]
        return np.array(weights)[x], Interval(0, 1 << self.spec.attend.top)

    def _tiles(self, multiply: Instruction, payload: npt.NDArray[np.uint8]) -> Ints:
        """Tiles [blocks, depth, L columns, L inputs]; ``payload``: [blocks, words, L]."""
        blocks, depth, size = multiply["blocks"], multiply["depth"], self.size
        tile, base, stride = Tile(multiply["tile"]), multiply["tile_base"], multiply["stride"]
        if tile is Tile.STREAM:
            weights = payload[:, PARAMETER_WORDS:].view(np.int8)
            return weights.reshape(blocks, depth, size, size)
        block, k = np.arange(blocks)[:, None, None], np.arange(depth)[:, None]
        lane = np.arange(size)
        if tile is Tile.KEYS:
            return self.memory["keys"][self._at("keys", base + k * stride + block * size + lane)]
        rows = self._at("values", base + block * stride + k * size + lane)
        return self.memory["values"][rows].swapaxes(-1, -2)

    def _multiply(self, multiply: Instruction, reader: _Reader) -> None:
        blocks, depth, tokens = (multiply[name] for name in ("blocks", "depth", "tokens"))
        for name in ("blocks", "depth", "tokens"):
            integer(multiply[name], name.capitalize(), 1, self.spec.limits[name])
        if multiply["resume"] and blocks != 1:
            raise ValueError(f"Blocks must be 1 with resume, not {blocks!r}")
        words = PARAMETER_WORDS + (depth * self.size if multiply["tile"] == Tile.STREAM else 0)
        payload = reader.take(blocks * words * self.size).reshape(blocks, words, self.size)
        x, reach = self._operand(multiply)
        tiles = self._tiles(multiply, payload)
        # [K, columns] of all blocks: the passes of the hardware in one product.
        right = tiles.transpose(1, 3, 0, 2).reshape(depth * self.size, blocks * self.size)
        sums = exact_matmul(x, right, reach, BYTE).astype(np.int64)
        sums = sums.reshape(tokens, blocks, self.size)
        if multiply["resume"]:
            sums += self.memory["sums"][:tokens, None]
        legal = Interval.of_bits(self.spec.acc_bits, signed=True)
        legal.require(sums, "Sum")
        self.memory["sums"][:tokens] = sums[:, -1]
        for block in range(blocks):
            self._drain(multiply, block, sums[:, block], payload[block], legal)

    def _drain(
        self,
        multiply: Instruction,
        block: int,
        sums: npt.NDArray[np.int64],
        payload: npt.NDArray[np.uint8],
        legal: Interval,
    ) -> None:
        sink = Sink(multiply["sink"])
        memory, tokens = sink.name.lower(), len(sums)
        places = multiply["sink_base"] + block * multiply["sink_stride"] + np.arange(tokens)
        if sink is Sink.SUMS:
            places = np.arange(tokens)
        bias, multiplier, shift, align = _parameters(payload)
        acc = sums + bias
        legal.require(acc, "Sum with its bias")
        if sink is Sink.OUTPUTS:
            words = acc
        else:
            wide = acc * multiplier
            if sink is Sink.STREAM:
                element(self.spec, "stream").require(np.array(multiply["zero_in"]), "Zero point")
                stream = self.memory["stream"][self._at("stream", places)]
                wide += ((stream - multiply["zero_in"]) << align) * multiply["gain"]
            if not 2 <= multiply["clamp"] <= 32:
                raise ValueError(f"Clamp must be from 2 to 32, not {multiply['clamp']!r}")
            words = saturate(rounding_shift(wide, shift) + multiply["zero_out"], multiply["clamp"])
            if multiply["gelu"]:
                words = self._table[words & (len(self._table) - 1)]
        self._store(memory, places, words)
        self.watch(Drained(self._number, block, acc, words))


def _parameters(payload: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.int64]]:
    """bias, M2, n and a of every lane, of the first words of a block."""
    lanes = np.zeros((payload.shape[1], 12), np.uint8)
    lanes[:, :PARAMETER_WORDS] = payload[:PARAMETER_WORDS].T
    bias, multiplier = lanes[:, 0:4].copy().view("<i4"), lanes[:, 4:8].copy().view("<u4")
    shift, align = lanes[:, 7], lanes[:, 8]
    Interval(0, 62).require(shift, "Shift n")
    Interval(0, 7).require(align, "Shift a")
    columns: tuple[Any, ...] = (bias[:, 0], multiplier[:, 0] & 0xFFFFFF, shift, align)
    return [integers(column, "Parameter") for column in columns]


class _Reader:
    """The stream, word after word."""

    def __init__(self, content: npt.NDArray[np.uint8], size: int) -> None:
        self._content, self._size, self._place = content, size, 0

    def take(self, count: int) -> npt.NDArray[np.uint8]:
        """The next bytes; whole words are passed over. ProgramError where the program has no more."""
        end = self._place + -(-count // self._size) * self._size
        if end > len(self._content):
            raise ProgramError(Error.ENDED)
        found = self._content[self._place : self._place + count]
        self._place = end
        return found

    def instruction(self) -> Instruction | None:
        """The next instruction; None for an unknown operation."""
        content = self.take(INSTRUCTION_BYTES).tobytes()
        if content[0] not in set(Op):
            return None
        return Instruction.from_bytes(content)

# SPDX-License-Identifier: Apache-2.0
"""What is in flight: which words the accelerator's units may still read or write.

The sequencer hands an instruction over and goes on; only a ``wait`` says that a unit has finished. Two
accesses to a word conflict where their order is left to chance:

    read after write    always: even the array fetches a token before the pass ahead has been drained
    write after read    unless both are the array's, whose passes and drains keep their order
    write after write   likewise

So it is for the parameters of a unit that works with them, and for the sums that a drain puts back.

A memory has one port to read and one to write: two units must not use the same one at once, whatever their
words.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from golden.program import Instruction, Op, Sink, Source, Tile, Unit, Wait

__all__ = ["Flight", "accesses"]

Places = npt.NDArray[np.int64]

SPAN = 1 << 17
"""Beyond every address: 16 bits, and 16 bits times a stride are refused by the memory itself."""


@dataclass
class _Unit:
    """What one unit may still touch: words by memory, and whether it uses the table or the sums."""

    reads: dict[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    writes: dict[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    table: bool = False
    sums: bool = False


UNITS = {Op.MULTIPLY: Wait.ARRAY, Op.LAYERNORM: Wait.LAYERNORM, Op.SOFTMAX: Wait.SOFTMAX}
"""The unit that an instruction goes on in after the sequencer has left it."""


def accesses(instruction: Instruction, size: int) -> tuple[dict[str, Places], dict[str, Places]]:
    """Addresses (read, written) by memory, of an instruction for words of ``size`` elements."""
    get = instruction.__getitem__
    if instruction.op is Op.LOAD:
        places = get("sink_base") + np.arange(get("count"))
        return {}, {Sink(get("sink")).name.lower(): places}
    if instruction.op not in UNITS:
        return {}, {}
    token, k = np.arange(get("tokens")), np.arange(get("depth"))[:, None]
    source = get("source_base") + k * get("stride") + token
    if instruction.op is not Op.MULTIPLY:
        norm = instruction.op is Op.LAYERNORM
        written = get("sink_base") + k * get("sink_stride") + token
        return (
            {"stream" if norm else "scores": source},
            {"features" if norm else "codes": written},
        )
    block = np.arange(get("blocks"))[:, None]
    written = get("sink_base") + block * get("sink_stride") + token
    sink, tile = Sink(get("sink")), Tile(get("tile"))
    read = {Source(get("source")).name.lower(): source}
    lane, blocks = np.arange(size), block[:, None]
    if tile is Tile.KEYS:
        read["keys"] = get("tile_base") + k * get("stride") + blocks * size + lane
    if tile is Tile.VALUES:
        read["values"] = get("tile_base") + blocks * get("stride") + k * size + lane
    if sink is Sink.STREAM:
        read["stream"] = written
    return read, {} if sink is Sink.SUMS else {sink.name.lower(): written}


def _marked(places: Places) -> npt.NDArray[np.bool_]:
    marks = np.zeros(SPAN, np.bool_)
    marks[places[places < SPAN]] = True
    return marks


class Flight:
    """Follows a program; :meth:`begin` refuses an instruction that does not wait for what it depends on."""

    def __init__(self) -> None:
        self._units: dict[Wait, _Unit] = {}

    def begin(self, instruction: Instruction, size: int) -> None:
        """Take the next instruction; ValueError where it lacks a wait or gets in its own way."""
        own = UNITS.get(instruction.op)
        for unit in Wait:
            # A row unit takes its next instruction when it has finished this one.
            if unit & instruction.wait or (unit is own and unit is not Wait.ARRAY):
                self._units.pop(unit, None)
        read, written = accesses(instruction, size)
        reads, writes = ({name: _marked(x) for name, x in part.items()} for part in (read, written))
        if instruction.op is Op.MULTIPLY:
            self._check_itself(instruction, reads, writes)
        for unit, flight in self._units.items():
            ordered = unit is own  # only the array: a row unit is idle by now
            kinds = [("read", reads, flight.writes)]
            if not ordered:
                kinds += [("write", writes, flight.writes), ("write", writes, flight.reads)]
            for verb, mine, theirs in kinds:
                for memory in mine.keys() & theirs.keys():
                    both = mine[memory] & theirs[memory]
                    if both.any():
                        raise ValueError(
                            f"It must wait for {unit.name} before it {verb}s {memory}, "
                            f"not {verb} word {int(both.argmax())} at once"
                        )
            if not ordered:
                for verb, mine, theirs in (("read", reads, flight.reads), ("write", writes, flight.writes)):
                    for memory in mine.keys() & theirs.keys():
                        raise ValueError(
                            f"It must wait for {unit.name} before it {verb}s {memory}, "
                            f"not {verb} through the port that {unit.name} uses"
                        )
            self._check_parameters(instruction, unit, flight)
        if own is not None:
            self._add(own, instruction, reads, writes)

    def _check_itself(
        self,
        multiply: Instruction,
        reads: dict[str, npt.NDArray[np.bool_]],
        writes: dict[str, npt.NDArray[np.bool_]],
    ) -> None:
        """A product must not overwrite what it still has to read, nor its own results."""
        for memory in reads.keys() & writes.keys() - {"stream"}:
            both = reads[memory] & writes[memory]
            if both.any():
                raise ValueError(
                    f"It must not write the words of {memory} that it reads, such as {int(both.argmax())}"
                )
        apart = multiply["sink_stride"] >= multiply["tokens"] or multiply["sink"] == Sink.SUMS
        if multiply["blocks"] > 1 and not apart:
            raise ValueError(
                f"Sink stride must be at least {multiply['tokens']}, the tokens, "
                f"not {multiply['sink_stride']!r}"
            )

    def _check_parameters(self, instruction: Instruction, unit: Wait, flight: _Unit) -> None:
        """Parameters of a unit at work, and sums that a drain is about to put back."""
        if instruction.op is Op.WRITE:
            users = {
                Unit.LAYERNORM: unit is Wait.LAYERNORM,
                Unit.SOFTMAX: unit is Wait.SOFTMAX,
                Unit.GELU: flight.table,
            }
            if users[Unit(instruction["unit"])]:
                raise ValueError(
                    f"It must wait for {unit.name} before it changes the parameters of that unit"
                )
        if instruction.op is Op.MULTIPLY and flight.sums:
            raise ValueError("It must wait for ARRAY before it works on the sums that are put back")

    def _add(
        self,
        own: Wait,
        instruction: Instruction,
        reads: dict[str, npt.NDArray[np.bool_]],
        writes: dict[str, npt.NDArray[np.bool_]],
    ) -> None:
        unit = self._units.setdefault(own, _Unit())
        for mine, all_of_it in ((reads, unit.reads), (writes, unit.writes)):
            for memory, marks in mine.items():
                all_of_it[memory] = all_of_it[memory] | marks if memory in all_of_it else marks
        if instruction.op is Op.MULTIPLY:
            unit.table |= bool(instruction["gelu"])
            unit.sums |= instruction["sink"] == Sink.SUMS

# SPDX-License-Identifier: Apache-2.0
"""What a session asks of the accelerator, by unit: instructions, shapes, numbers, errors, the bus, the order.

Runs are executed once more by :mod:`golden.machine`, whose words the testbench compares with the hardware's;
those that end early count for their error, their bus and their order alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from golden.accelerator import MEMORIES, AcceleratorSpec
from golden.bounds import Interval
from golden.fixedpoint import rounding_shift
from golden.machine import Drained, Event, Machine, Rows
from golden.program import (
    FIELDS,
    INSTRUCTION_BYTES,
    PARAMETER_WORDS,
    RECORD_BYTES,
    Error,
    Instruction,
    Op,
    Sink,
    Source,
    Tile,
    Unit,
    Wait,
)
from sim.coverage import Point, count
from sim.session import BASE, Bus, Run, Session

__all__ = ["bins_of", "measure_session"]

Bytes = npt.NDArray[np.uint8]
Features = dict[str, Any]
WAITS = ["none", *(unit.name for unit in Wait), "several"]
BOTH = ["lowest", "highest"]
BURST = 16
"""Words of a burst (:class:`rtl.dma.BurstReader`)."""


@dataclass(frozen=True, eq=False)
class _Done:
    """A run to its end: instructions with what follows them, and what golden's machine has seen."""

    steps: list[tuple[Instruction, Bytes]]
    events: list[Event]


def _decoded(words: Bytes, spec: AcceleratorSpec) -> Iterator[tuple[Instruction, Bytes]]:
    """Instructions and the words that follow each."""
    size, at, ended = spec.size, 0, False
    while not ended:
        head = words[at : at + INSTRUCTION_BYTES // size]
        step, at = Instruction.from_bytes(head.tobytes()), at + len(head)
        deep = step.op is Op.LOAD and step["sink"] == Sink.STREAM and spec.stream_bits > 8
        match step.op:
            case Op.LOAD:
                more = step["count"] << deep
            case Op.WRITE:
                more = -(-step["count"] * RECORD_BYTES // size)
            case Op.MULTIPLY:
                tiles = step["depth"] * size if step["tile"] == Tile.STREAM else 0
                more = step["blocks"] * (PARAMETER_WORDS + tiles)
            case _:
                more = 0
        yield step, words[at : at + more]
        at, ended = at + more, step.op is Op.END


class _Contents:
    """The session's memory; runs that are alike are executed once."""

    def __init__(self, path: Path, spec: AcceleratorSpec) -> None:
        self._words = np.fromfile(path, np.uint8).reshape(-1, spec.size)
        self._spec = spec
        self._known: dict[tuple[int, ...], _Done] = {}

    def region(self, address: int, count_: int) -> Bytes:
        """Words of a region."""
        first = (address - BASE) // self._spec.size
        return self._words[first : first + count_]

    def done(self, run: Run) -> _Done:
        """What a run does that ends well."""
        key = (run.program_address, run.program_words, run.image_address, run.image_words)
        if key not in self._known:
            words, events = self.region(run.program_address, run.program_words), list[Event]()
            Machine(self._spec, events.append).run(words, self.region(run.image_address, run.image_words))
            self._known[key] = _Done(list(_decoded(words, self._spec)), events)
        return self._known[key]


def bins_of(spec: AcceleratorSpec) -> dict[str, tuple[dict[str, list[str]], dict[str, list[Any]]]]:
    """Coverpoints of each unit, and those that are crossed."""
    root, last = spec.attend.per_octave == 2, spec.softmax.last_code
    lengths = ["none", "less than a burst", "a burst", "more"]
    shapes = {"blocks": ["one", "more"], "depth": ["one", "two", "more"]}
    runs = ["a whole run", "a run with an error", "a run that was abandoned"]
    some = ["one", "up to the edge", "the edge", "more", "more, a multiple", "all there is room for"]
    return {
        "dma": (
            {"image": lengths, "program": lengths, "answers": ["OKAY", "an error"]},
            {"latency": ["1", "up to 16", "more"], "gaps": ["none", "some", "many"]},
        ),
        "control": (
            {
                "ends": [error.name for error in Error] + ["abandoned"],
                "program": ["the one before", "another one"],
                "image": ["the one before", "another one"],
            },
            {},
        ),
        "sequencer": (
            {
                "LOAD": ["nothing", "one", "more"],
                "LOAD into": ["FEATURES", "STREAM"],
                "WRITE": ["nothing", "one", "more"],
                "WRITE to": [unit.name for unit in Unit],
                **shapes,
                "again": [op.name for op in (Op.LOAD, Op.WRITE, Op.MULTIPLY, Op.LAYERNORM, Op.SOFTMAX)],
                "field": [f"{n} {end}" for n in ("zero_in", "zero_out") for end in ("negative", "positive")],
            },
            {"instruction": [op.name for op in Op], "waits for": WAITS},
        ),
        "array": (
            {
                "tokens": some,
                "depth": ["one", "two", "more"],
                "resume": ["no", "yes"],
                "parity": ["even", "odd", "both", "neither"] if root else ["both"],
                "sums": ["negative", "zero", "positive", "more than 20 bits", "more than 24 bits"],
            },
            {"operands": [each.name for each in Source], "tiles": [each.name for each in Tile]},
        ),
        "drain": (
            {
                "saturation": ["high", "low", "inside"],
                "GELU's address": BOTH,
                "GELU's code": BOTH,
                "clamp": ["2 bits", "the sink's"],
                "gain": BOTH,
                "zero_in": BOTH,
                "zero_out": BOTH,
                "shift": ["0", "up to 31", "more"],
                "align": [str(shift) for shift in range(8)],
                "multiplier": BOTH,
            },
            {"sink": [sink.name for sink in Sink], "through GELU": [False, True]},
        ),
        "rows": (
            {
                "softmax code": ["0", str(last - 1), str(last)],
                "LayerNorm code": BOTH,
                "rows": ["one", "more"],
                "behind": ["itself", "another instruction"],
                "units at once": ["LAYERNORM beside the array", "SOFTMAX beside the array"],
            },
            {
                "unit": ["LAYERNORM", "SOFTMAX"],
                "beats": ["one", "two", "more"],
                "last lanes": ["one", "some", "all"],
            },
        ),
        "core": (
            {
                "memory written": [*MEMORIES],
                "memory read": [*MEMORIES],
                "codes": [str(code) for code in range(last + 1)],
            },
            {"run": ["whole", "with an error", "abandoned"], "behind": runs},
        ),
    }


def measure_session(spec: AcceleratorSpec, session: Session, memory: Path) -> dict[str, list[Point]]:
    """Hits of every bin of every unit; memory: the file with its bytes."""
    contents, samples = _Contents(memory, spec), dict[str, list[Features]]()
    for unit in bins_of(spec):
        samples[unit] = []
    before: Run | None = None
    for run in session.runs:
        for unit, features in _of_run(run, before, session.bus):
            samples[unit].append(features)
        before = run
        if run.expected is not None and not run.error:
            for unit, features in _of_program(contents.done(run), spec):
                samples[unit].append(features)
    return {
        unit: count(unit, groups, crossed, samples[unit])
        for unit, (groups, crossed) in bins_of(spec).items()
    }


def _many(number: int) -> str:
    return {0: "nothing", 1: "one"}.get(number, "more")


def _few(number: int) -> str:
    return {1: "one", 2: "two"}.get(number, "more")


def _kind(run: Run) -> str:
    return "abandoned" if run.abandon else "with an error" if run.error else "whole"


def _of_run(run: Run, before: Run | None, usual: Bus) -> Iterator[tuple[str, Features]]:
    """What a run is, whatever it computes."""
    bus = run.bus or usual
    lengths = ("none", "less than a burst", "a burst", "more")

    def length(words: int) -> set[str]:
        return {lengths[0 if not words else 1 if words < BURST else 2 if words == BURST else 3]}

    yield "dma", {
        "image": length(run.image_words),
        "program": length(run.program_words),
        "answers": {"an error" if run.error == Error.BUS else "OKAY"},
        "latency": "1" if bus.latency == 1 else "up to 16" if bus.latency <= 16 else "more",
        "gaps": "none" if not bus.gaps else "some" if bus.gaps < 100 else "many",
    }
    behind = {"whole": "a whole run", "with an error": "a run with an error"}
    if before is not None:
        yield "core", {"run": _kind(run), "behind": behind.get(_kind(before), "a run that was abandoned")}
    found: Features = {"ends": {"abandoned" if run.abandon else Error(run.error).name}}
    if before is not None:
        for part in ("program", "image"):
            same = getattr(run, f"{part}_address") == getattr(before, f"{part}_address")
            found[part] = {"the one before" if same else "another one"}
    yield "control", found


def _of_program(done: _Done, spec: AcceleratorSpec) -> Iterator[tuple[str, Features]]:
    """What a run's instructions are and compute."""
    at_work: set[Op] = set()
    for (ahead, _), (step, payload) in pairwise([(Instruction(Op.HEAD), np.zeros(0, np.uint8)), *done.steps]):
        yield "sequencer", _of_instruction(step, ahead)
        at_work -= {op for op, unit in WORKING.items() if step.wait & unit}
        if step.op is Op.MULTIPLY:
            yield "array", _of_product(step, spec)
            yield "drain", _of_parameters(step, payload, spec)
            yield "core", {
                "memory read": {Source(step["source"]).name.lower(), Tile(step["tile"]).name.lower()}
                | ({"stream"} if step["sink"] == Sink.STREAM else set()),
                "memory written": {Sink(step["sink"]).name.lower()},
            }
        elif step.op in (Op.LAYERNORM, Op.SOFTMAX):
            lanes = {1: "one", spec.size: "all"}.get(step["last_lanes"], "some")
            yield "rows", {
                "rows": {"one" if step["tokens"] == 1 else "more"},
                "behind": {"itself" if ahead.op is step.op else "another instruction"},
                "units at once": {f"{step.op.name} beside the array"} if Op.MULTIPLY in at_work else set(),
                "unit": step.op.name,
                "beats": _few(step["depth"]),
                "last lanes": lanes,
            }
            norm = step.op is Op.LAYERNORM
            yield "core", {"memory read": {"stream" if norm else "scores"}}
            yield "core", {"memory written": {"features" if norm else "codes"}}
        elif step.op is Op.END:
            yield "core", {"memory read": {"outputs"}}  # by the host
        at_work |= {step.op} & set(WORKING)
    for event in done.events:
        step, payload = done.steps[event.instruction]
        if isinstance(event, Rows):
            yield from _of_rows(event, step, spec)
        else:
            yield "array", {"sums": _sizes(event.sums)}
            yield "drain", _of_words(event, step, payload, spec)


WORKING = {Op.MULTIPLY: Wait.ARRAY, Op.LAYERNORM: Wait.LAYERNORM, Op.SOFTMAX: Wait.SOFTMAX}
"""The unit that goes on with an instruction."""


def _of_instruction(step: Instruction, ahead: Instruction) -> Features:
    named = [unit.name for unit in Wait if step.wait & unit]
    found: Features = {
        "instruction": step.op.name,
        "waits for": "none" if not named else named[0] if len(named) == 1 else "several",
        "again": {step.op.name} if step.op is ahead.op else set(),
    }
    if step.op is Op.LOAD:
        found |= {"LOAD": {_many(step["count"])}, "LOAD into": {Sink(step["sink"]).name}}
    elif step.op is Op.WRITE:
        found |= {"WRITE": {_many(step["count"])}, "WRITE to": {Unit(step["unit"]).name}}
    elif step.op is Op.MULTIPLY:
        found |= {"blocks": {"one" if step["blocks"] == 1 else "more"}, "depth": {_few(step["depth"])}}
        signs = {name: "negative" if step[name] < 0 else "positive" for name in ("zero_in", "zero_out")}
        found["field"] = {f"{name} {sign}" for name, sign in signs.items()}
    return found


def _of_product(step: Instruction, spec: AcceleratorSpec) -> Features:
    tokens, size = step["tokens"], spec.size
    kinds = {
        "one": tokens == 1,
        "up to the edge": 1 < tokens < size,
        "the edge": tokens == size,
        "more": tokens > size and tokens % size != 0,
        "more, a multiple": tokens > size and tokens % size == 0,
        "all there is room for": tokens == spec.max_tokens,
    }
    parity = {(1, 0): "even", (0, 1): "odd", (1, 1): "both", (0, 0): "neither"}
    return {
        "tokens": {name for name, holds in kinds.items() if holds},
        "depth": {_few(step["depth"])},
        "resume": {"yes" if step["resume"] else "no"},
        "parity": {parity[step["even"], step["odd"]]} if step["source"] == Source.CODES else set(),
        "operands": Source(step["source"]).name,
        "tiles": Tile(step["tile"]).name,
    }


def _ends(value: int, low: int, high: int) -> set[str]:
    return {name for name, end in (("lowest", low), ("highest", high)) if value == end}


def _lanes(payload: Bytes) -> dict[str, npt.NDArray[np.int64]]:
    """Parameters of a column block's lanes, of its first words: :func:`golden.program.parameter_words`."""
    records = np.zeros((payload.shape[1], 12), np.uint8)
    records[:, :PARAMETER_WORDS] = payload[:PARAMETER_WORDS].T
    multiplier = np.ascontiguousarray(records[:, 4:8]).view("<u4")[:, 0] & 0xFFFFFF
    columns = {"multiplier": multiplier, "shift": records[:, 7], "align": records[:, 8]}
    return {name: column.astype(np.int64) for name, column in columns.items()}


def _of_parameters(step: Instruction, payload: Bytes, spec: AcceleratorSpec) -> Features:
    """What a product tells the drain."""
    sink, lanes = Sink(step["sink"]), _lanes(payload)
    half = 1 << spec.stream_bits - 1
    bits = {Sink.SCORES: spec.softmax.score_bits, Sink.STREAM: spec.stream_bits}.get(sink, 8)
    shifts = {"0" if n == 0 else "up to 31" if n < 32 else "more" for n in lanes["shift"].tolist()}
    found: Features = {
        "clamp": {name for name, b in (("2 bits", 2), ("the sink's", bits)) if step["clamp"] == b},
        "zero_out": _ends(step["zero_out"], -(1 << 15), (1 << 15) - 1),
        "shift": shifts,
        "multiplier": {end for m in lanes["multiplier"].tolist() for end in _ends(m, 0, 0xFFFFFF)},
        "sink": sink.name,
        "through GELU": bool(step["gelu"]),
    }
    if sink is Sink.STREAM:
        highest = (1 << FIELDS["gain"].bits) - 1
        found |= {"gain": _ends(step["gain"], 0, highest), "align": set(map(str, lanes["align"].tolist()))}
        found |= {"zero_in": _ends(step["zero_in"], -half, half - 1)}
    return found


def _of_words(event: Drained, step: Instruction, payload: Bytes, spec: AcceleratorSpec) -> Features:
    """What has left the drain; the stream's own part is not known here."""
    if step["sink"] in (Sink.STREAM, Sink.OUTPUTS):
        return {}
    size = spec.size
    each = PARAMETER_WORDS + (step["depth"] * size if step["tile"] == Tile.STREAM else 0)
    lanes = _lanes(payload[event.block * each :])
    y = rounding_shift(event.sums * lanes["multiplier"], lanes["shift"]) + step["zero_out"]
    code = Interval.of_bits(step["clamp"], signed=True)
    kinds = {"high": y > code.high, "low": y < code.low, "inside": (y >= code.low) & (y <= code.high)}
    found: Features = {"saturation": {name for name, where in kinds.items() if where.any()}}
    if step["gelu"]:
        clamped, table = np.clip(y, code.low, code.high), Interval.of_bits(spec.gelu_bits, signed=True)
        addresses, codes = set(clamped.ravel().tolist()), set(event.words.ravel().tolist())
        found["GELU's address"] = {end for a in addresses for end in _ends(a, table.low, table.high)}
        found["GELU's code"] = {end for c in codes for end in _ends(c, -128, 127)}
    return found


def _sizes(sums: npt.NDArray[np.int64]) -> set[str]:
    kinds: Mapping[str, Any] = {
        "negative": sums < 0,
        "zero": sums == 0,
        "positive": sums > 0,
        "more than 20 bits": abs(sums) >> 20 != 0,
        "more than 24 bits": abs(sums) >> 24 != 0,
    }
    return {name for name, where in kinds.items() if where.any()}


def _of_rows(event: Rows, step: Instruction, spec: AcceleratorSpec) -> Iterator[tuple[str, Features]]:
    codes: Sequence[int] = sorted(set(event.words.ravel().tolist()))
    if step.op is Op.SOFTMAX:
        yield "rows", {"softmax code": set(map(str, codes))}
        yield "core", {"codes": set(map(str, codes))}
    else:
        low, high = -(1 << spec.layernorm.out_bits - 1), (1 << spec.layernorm.out_bits - 1) - 1
        yield "rows", {"LayerNorm code": {end for code in codes for end in _ends(code, low, high)}}

# SPDX-License-Identifier: Apache-2.0
"""Heads for the unit of codes and v: rows of codes, v, a requantiser; what they must come to, and when.

A unit gets words at three ports. ``Case.feeds`` has them in order, and gates: a word is offered only once
another port has taken so many. A head's v and parameters fill the idle banks while the head before runs;
what ends them waits for that head's last row to have begun.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from golden.attend_unit import WORD, attend_pipeline, attend_words
from golden.attention import AttendSpec, attend
from golden.cycles import holding
from golden.fixedpoint import Ints
from golden.requant import MULTIPLIER, SHIFT, RequantParams
from sim.job import NO_STALL, Pattern

__all__ = ["PORTS", "Case", "Feed", "Head", "HeadJob", "Told", "timeline"]

PORTS = ("i", "v", "params", "o")
DATA_AT = 14
"""Bits of the parameter port's address, which is below its data."""
ALL_ONES = (1 << 32) - 1
JOB_FILE = "job.json"


@dataclass(frozen=True)
class Head:
    """Rows of codes (of any lengths), v [tokens, lanes], the requantiser's only channel."""

    rows: Sequence[Ints]
    v: Ints
    params: RequantParams

    def golden(self, spec: AttendSpec) -> list[list[int]]:
        """The codes of each row."""
        heads = ((row, self.v[: len(row)]) for row in self.rows)
        return [attend(c[None, None], v[None], spec, self.params).ravel().tolist() for c, v in heads]


@dataclass(frozen=True)
class Feed:
    """Words of an input port in order; gates: (index, other port, words that it must have taken)."""

    words: list[int]
    gates: list[tuple[int, str, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Case:
    """Heads to send, one as soon as it can follow the other.

    stalls: of ports by name.  late: what ends a set may come beside the first code of the row that it
    waits for (only where the output never waits).  strays: words that mean nothing come before each set is
    ended, and bits that mean nothing are inverted.  reset_after: cycles after which all is forgotten by a
    reset and begun anew.  held: cycles in which the output takes nothing at first; the unit then holds as
    many rows as it has places.
    """

    name: str
    heads: Sequence[Head]
    stalls: Mapping[str, Pattern] = field(default_factory=dict)
    late: bool = False
    strays: bool = False
    reset_after: int = 0
    held: int = 0

    @property
    def timed(self) -> bool:
        """Whether nothing stalls: every cycle is known."""
        return not self.held and not any(pattern.pauses for pattern in self.stalls.values())

    def words(self, head: Head, spec: AttendSpec) -> list[tuple[int, int]]:
        """Writes of the parameter port for a head."""
        *writes, commit = attend_words(head.params, spec, 0)
        if not self.strays:
            return [*writes, commit]
        bits = {"multiplier": MULTIPLIER.bits, "shift": SHIFT.bits, "zero_point": spec.out_bits}
        above = {WORD[name]: ALL_ONES << count & ALL_ONES for name, count in bits.items()}
        others = [word | 1 << bit for word in WORD.values() for bit in range(2, DATA_AT)]
        full = [(word, value ^ above[word]) for word, value in writes]
        return [*full, *((address, 0x5A5A_A5A5) for address in others), (commit[0], ALL_ONES)]

    def feeds(self, spec: AttendSpec) -> dict[str, Feed]:
        """What each input port gets."""
        code_bits, value_bits = spec.softmax.code_bits, spec.value_bits
        codes, values, words = Feed([]), Feed([]), Feed([])
        begun = 0  # codes up to the first one of the last row so far
        for head in self.heads:
            tokens = len(head.v)
            values.gates.append((len(values.words) + tokens - 1, "i", begun))
            for token in head.v.tolist():
                parts = (x % (1 << value_bits) << value_bits * lane for lane, x in enumerate(token))
                values.words.append(sum(parts))
            values.words[-1] |= 1 << value_bits * head.v.shape[1]
            for address, value in self.words(head, spec):
                words.words.append(address | value << DATA_AT)
            words.gates.append((len(words.words) - 1, "i", begun))
            for port, feed in (("v", values), ("params", words)):
                codes.gates.append((len(codes.words), port, len(feed.words)))
            for row in head.rows:
                begun = len(codes.words) + 1
                codes.words.extend(row.tolist())
                codes.words[-1] |= 1 << code_bits
        return {"i": codes, "v": values, "params": words}


def timeline(case: Case, spec: AttendSpec, lanes: int) -> dict[str, list[int]]:
    """Cycle of each transfer at each port where nothing stalls, the first being 0.

    Rows are golden's (:func:`golden.attend_unit.attend_pipeline`). A bank takes words again once the last
    code that used it is in, or when they come no more too early for its parameters.
    """
    pipeline = attend_pipeline(spec, lanes)
    found: dict[str, list[int]] = {port: [] for port in PORTS}
    begun, early = -1, 0 if case.late else 1
    ended: list[int] = []  # each head's last code
    for head in case.heads:
        after = holding(pipeline.drain - 1)
        sets = {"v": (len(head.v), 0), "params": (len(case.words(head, spec)), after)}
        for port, (count, held) in sets.items():
            times = found[port]
            free = ended[-2] + held + 1 if len(ended) > 1 else 0
            for index in range(count):
                now = max(times[-1] + 1 if times else 0, free)
                times.append(max(now, begun + early) if index == count - 1 else now)
        ready = 1 + max(times[-1] for times in (found["v"], found["params"], found["i"] or [0]))
        timing = pipeline.schedule([len(row) for row in head.rows], ready)
        for row in timing:
            found["i"] += range(row.first_in, row.last_in + 1)
            found["o"].append(row.first_out)
        begun = timing[-1].first_in
        ended.append(timing[-1].last_in)
    return found


@dataclass(frozen=True)
class Told:
    """A case as the testbench is told it: words, stalls, the codes of each row, the cycles if they are known.

    filled: codes that the unit must have taken once the output has taken no row for ``held`` cycles.
    """

    name: str
    feeds: dict[str, Feed]
    stalls: dict[str, Pattern]
    expected: list[list[int]]
    cycles: dict[str, list[int]] | None
    late: bool
    reset_after: int
    held: int
    filled: int


@dataclass(frozen=True)
class HeadJob:
    """The cases of one simulator process, all for a unit of these lanes and widths."""

    lanes: int
    out_bits: int
    cases: list[Told]
    seed: int = 1

    @classmethod
    def of(cls, cases: Sequence[Case], spec: AttendSpec, lanes: int, seed: int = 1) -> HeadJob:
        """What golden expects of cases."""
        places = 1 << attend_pipeline(spec, lanes).drain.bit_length()
        told = [
            Told(
                case.name,
                case.feeds(spec),
                {port: case.stalls.get(port, NO_STALL) for port in PORTS},
                [codes for head in case.heads for codes in head.golden(spec)],
                timeline(case, spec, lanes) if case.timed else None,
                case.late,
                case.reset_after,
                case.held,
                sum([len(row) for head in case.heads for row in head.rows][:places]),
            )
            for case in cases
        ]
        return cls(lanes, spec.out_bits, told, seed)

    def write(self, folder: Path) -> None:
        """Write ``job.json``."""
        (folder / JOB_FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> HeadJob:
        """Read what :meth:`write` wrote."""
        told = json.loads((folder / JOB_FILE).read_text(encoding="utf-8"))
        return cls(**{**told, "cases": [_case(entry) for entry in told["cases"]]})


def _case(entry: dict[str, Any]) -> Told:
    feeds = {port: Feed(**feed) for port, feed in entry["feeds"].items()}
    stalls = {port: Pattern(**pattern) for port, pattern in entry["stalls"].items()}
    return Told(**{**entry, "feeds": feeds, "stalls": stalls})

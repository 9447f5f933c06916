# SPDX-License-Identifier: Apache-2.0
"""AXI4-Stream source, sink and stability checker for cocotb, lean enough for whole layers.

Beats are packed into integers before a run and unpacked after it, with NumPy; the loops between do
nothing but move one integer a cycle. A cycle number is simulated time over the clock's period: the
number of the rising edge at which a beat is transferred.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from cocotb.triggers import RisingEdge
from cocotb.utils import get_sim_time

from sim.job import Pattern

__all__ = [
    "PERIOD",
    "Beats",
    "KnownChecker",
    "Sink",
    "Source",
    "StabilityChecker",
    "cycle_now",
    "pack",
    "stalls",
    "unpack",
]

PERIOD = 2
"""Steps of simulated time in a clock cycle."""
PATTERN_CYCLES = 1 << 16


def cycle_now() -> int:
    """Number of the current clock cycle."""
    return int(get_sim_time("step")) // PERIOD


def stalls(pattern: Pattern, rng: np.random.Generator) -> Iterator[bool]:
    """Endless sequence: True in a cycle in which the side pauses."""
    if pattern.turns:
        chosen = set(pattern.turns)
        told = [turn in chosen for turn in range(max(chosen) + 1)]
        return itertools.chain(told, itertools.repeat(False))
    if pattern.share <= 0:
        return itertools.repeat(False)
    # Alternating runs of pause and go, each geometric, with the wanted mean and share.
    go = max(pattern.burst * (1 - pattern.share) / pattern.share, 1.0)
    pause = max(go * pattern.share / (1 - pattern.share), 1.0)
    runs = int(PATTERN_CYCLES / (pause + go)) + 2
    lengths = np.empty(2 * runs, dtype=np.int64)
    lengths[0::2] = rng.geometric(1 / pause, runs)
    lengths[1::2] = rng.geometric(1 / go, runs)
    return itertools.cycle(np.repeat(np.arange(2 * runs) % 2 == 0, lengths).tolist())


@dataclass(frozen=True)
class Beats:
    """Beats of many rows; ``starts`` has the number of the first beat of each row."""

    data: list[int]
    keep: list[int]
    last: list[int]
    user: list[int]
    starts: list[int]


def _positions(lengths: npt.NDArray[np.int64], lanes: int) -> tuple[Any, Any, int]:
    """Place of each element among all lanes of all beats, first beat of each row, beats."""
    beats = -(-lengths // lanes)
    starts = np.cumsum(beats) - beats
    ends = np.cumsum(lengths)
    column = np.arange(int(lengths.sum())) - np.repeat(ends - lengths, lengths)
    return np.repeat(starts * lanes, lengths) + column, starts, int(beats.sum())


def _integers(raw: bytes, size: int) -> list[int]:
    return [int.from_bytes(raw[at : at + size], "little") for at in range(0, len(raw), size)]


def pack(
    elements: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    lanes: int,
    slot: int,
    mask: npt.NDArray[np.bool_] | None = None,
) -> Beats:
    """Return the beats of rows whose elements stand one after the other in ``elements``."""
    places, starts, beats = _positions(lengths, lanes)
    slots = np.zeros(beats * lanes, dtype="<i8")
    slots[places] = elements
    low_bytes = slots.view(np.uint8).reshape(-1, 8)[:, :slot]
    kept = np.zeros(beats * lanes, dtype=bool)
    kept[places] = True
    hidden = np.zeros(beats * lanes, dtype=bool)
    if mask is not None:
        hidden[places] = mask
    keep_bits = np.repeat(kept.reshape(beats, lanes), slot, axis=1)
    last = np.zeros(beats, dtype=np.int64)
    last[[*(starts[1:] - 1), beats - 1]] = 1
    return Beats(
        data=_integers(low_bytes.tobytes(), lanes * slot),
        keep=_bits(keep_bits),
        last=last.tolist(),
        user=_bits(hidden.reshape(beats, lanes)),
        starts=starts.tolist(),
    )


def _bits(flags: npt.NDArray[np.bool_]) -> list[int]:
    packed = np.packbits(flags, axis=1, bitorder="little")
    return _integers(packed.tobytes(), packed.shape[1])


def unpack(
    data: list[int],
    keep: list[int],
    last: list[int],
    lengths: npt.NDArray[np.int64],
    lanes: int,
    slot: int,
    signed: bool,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Elements of the rows as ``lengths`` says they lie in the beats, and whether the beats agree.

    Fewer beats than ``lengths`` asks for give fewer elements.
    """
    places, _, beats = _positions(lengths, lanes)
    kind = np.dtype(f"<{'i' if signed else 'u'}{slot}")
    raw = b"".join(word.to_bytes(lanes * slot, "little") for word in data)
    slots = np.frombuffer(raw, dtype=kind)
    places = places[places < slots.size]
    ideal = pack(np.zeros(int(lengths.sum()), np.int64), lengths, lanes, slot)
    count = min(len(data), beats)
    right = (np.array(keep[:count], dtype=object) == ideal.keep[:count]) & (
        np.array(last[:count]) == np.array(ideal.last[:count])
    )
    return slots[places].astype(np.int64), right.astype(bool)[places // lanes]


@dataclass
class Source:
    """Drives an input stream; ``dut`` has the ports ``<prefix>_tdata`` and so on."""

    dut: Any
    clock: Any
    prefix: str = "s_axis"
    has_user: bool = False
    first: list[int] = field(default_factory=list)
    final: list[int] = field(default_factory=list)
    refused: int = 0

    def idle(self) -> None:
        """Offer nothing."""
        for name in ("tvalid", "tdata", "tkeep", "tlast", *(("tuser",) if self.has_user else ())):
            getattr(self.dut, f"{self.prefix}_{name}").value = 0

    async def send(
        self,
        beats: Beats,
        pauses: Iterator[bool],
        gates: dict[int, Callable[[], Awaitable[None]]] | None = None,
    ) -> None:
        """Send all beats; a beat in ``gates`` is offered only once its gate has returned.

        ``first`` and ``final`` get the cycles of each row's first and last beat; ``refused`` counts
        the cycles in which a beat was offered and not taken.
        """
        port = {
            name: getattr(self.dut, f"{self.prefix}_{name}")
            for name in ("tvalid", "tready", "tdata", "tkeep", "tlast")
        }
        valid, ready, data = port["tvalid"], port["tready"], port["tdata"]
        keep, last = port["tkeep"], port["tlast"]
        user = getattr(self.dut, f"{self.prefix}_tuser") if self.has_user else None
        edge, gates = RisingEdge(self.clock), gates or {}
        offered = False
        keep_now = last_now = user_now = -1
        opening = True
        for index, word in enumerate(beats.data):
            if index in gates:
                if offered:
                    valid.value, offered = 0, False
                await gates[index]()
            while next(pauses):
                if offered:
                    valid.value, offered = 0, False
                await edge
            data.value = word
            if beats.keep[index] != keep_now:
                keep.value = keep_now = beats.keep[index]
            if beats.last[index] != last_now:
                last.value = last_now = beats.last[index]
            if user is not None and beats.user[index] != user_now:
                user.value = user_now = beats.user[index]
            if not offered:
                valid.value, offered = 1, True
            await edge
            while ready.value != 1:
                self.refused += 1
                await edge
            if opening:
                self.first.append(cycle_now())
            opening = last_now == 1
            if opening:
                self.final.append(cycle_now())
        self.idle()


@dataclass
class Sink:
    """Takes an output stream."""

    dut: Any
    clock: Any
    prefix: str = "m_axis"
    data: list[int] = field(default_factory=list)
    keep: list[int] = field(default_factory=list)
    last: list[int] = field(default_factory=list)
    cycles: list[int] = field(default_factory=list)
    held_back: int = 0

    async def receive(
        self, count: int, pauses: Iterator[bool], limit: int, *, late: bool = False
    ) -> None:
        """Take ``count`` beats; AssertionError if none comes in ``limit`` cycles.

        ``late``: each beat is accepted only in the cycle after it was first seen.
        """
        port = {
            name: getattr(self.dut, f"{self.prefix}_{name}")
            for name in ("tvalid", "tready", "tdata", "tkeep", "tlast")
        }
        valid, ready, data = port["tvalid"], port["tready"], port["tdata"]
        keep, last = port["tkeep"], port["tlast"]
        edge = RisingEdge(self.clock)
        accepting, silent, seen = None, 0, False
        while len(self.data) < count:
            willing = not next(pauses) and (seen or not late)
            if willing is not accepting:
                ready.value, accepting = int(willing), willing
            await edge
            seen = bool(valid.value) and not accepting
            if int(valid.value):
                if accepting:
                    self.data.append(int(data.value))
                    self.keep.append(int(keep.value))
                    self.last.append(int(last.value))
                    self.cycles.append(cycle_now())
                    silent = 0
                    continue
                self.held_back += 1
            silent += 1
            if silent > limit:
                got = f"{len(self.data)} of {count} beats came"
                raise AssertionError(f"no beat on the output in {limit} cycles; {got}")

    async def expect_silence(self, cycles: int) -> None:
        """Stay ready for so many cycles; AssertionError if a beat comes."""
        getattr(self.dut, f"{self.prefix}_tready").value = 1
        valid, edge = getattr(self.dut, f"{self.prefix}_tvalid"), RisingEdge(self.clock)
        for _ in range(cycles):
            await edge
            if int(valid.value):
                raise AssertionError(f"a beat that no row asked for, in cycle {cycle_now()}")


@dataclass
class StabilityChecker:
    """Watches a stream: a beat that is offered and not taken must stay as it is until it is."""

    dut: Any
    clock: Any
    prefix: str
    has_user: bool = False
    stalled: int = 0

    async def watch(self) -> None:
        """Run for ever; AssertionError when the rule is broken."""
        names = ("tdata", "tkeep", "tlast", *(("tuser",) if self.has_user else ()))
        payload = [getattr(self.dut, f"{self.prefix}_{name}") for name in names]
        valid = getattr(self.dut, f"{self.prefix}_tvalid")
        ready = getattr(self.dut, f"{self.prefix}_tready")
        edge = RisingEdge(self.clock)
        held: list[Any] | None = None
        while True:
            await edge
            offered = valid.value == 1
            if held is not None:
                self.stalled += 1
                if not offered:
                    raise AssertionError(f"{self.prefix}_tvalid fell before tready rose")
                now = [signal.value for signal in payload]
                if now != held:
                    raise AssertionError(f"{self.prefix} changed before tready rose")
            held = [signal.value for signal in payload] if offered and ready.value != 1 else None


@dataclass
class KnownChecker:
    """Watches the ports that a unit drives: none may be X, handshakes at any time, payloads while valid.

    For a simulator in which what was never written is X.
    """

    dut: Any
    clock: Any

    HANDSHAKES = (
        *("s_axis_tready", "m_axis_tvalid", "s_axil_awready", "s_axil_wready", "s_axil_bvalid"),
        *("s_axil_arready", "s_axil_rvalid"),
    )
    PAYLOADS = (
        ("m_axis_tvalid", ("m_axis_tdata", "m_axis_tkeep", "m_axis_tlast")),
        ("s_axil_bvalid", ("s_axil_bresp",)),
        ("s_axil_rvalid", ("s_axil_rdata", "s_axil_rresp")),
    )

    async def watch(self) -> None:
        """Run for ever; AssertionError when a port is unknown that must not be."""
        dut, edge = self.dut, RisingEdge(self.clock)
        always = [(name, getattr(dut, name)) for name in self.HANDSHAKES]
        offered = [
            (getattr(dut, valid), [(name, getattr(dut, name)) for name in names])
            for valid, names in self.PAYLOADS
        ]
        while True:
            await edge
            watched = [*always, *(pair for valid, pairs in offered if valid.value == 1 for pair in pairs)]
            for name, signal in watched:
                if not signal.value.is_resolvable:
                    raise AssertionError(f"{name} is {signal.value} in cycle {cycle_now()}")

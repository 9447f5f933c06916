# SPDX-License-Identifier: Apache-2.0
"""cocotb tests of an AXI top's registers and of what it repairs; the rows come from the job."""

from __future__ import annotations

from typing import Any

import cocotb
import numpy as np

from golden.words import TABLE_WORDS
from sim.axil import DECERR, OKAY, SLVERR
from sim.bench import Bench, load_job
from sim.stream import Beats, pack, stalls, unpack

JOB = load_job()
IDENTITY = 0x51564954
ADDRESS_BITS = 16
NOWHERE = 0x3EFC
"""An address that is no register's."""
PAUSE = 60
"""Cycles, more than any unit has registers."""
TOO_LONG, BAD_KEEP, OUTSIDE = 1, 2, 4
NAMES = {"2": 0, "sqrt2": 1, "dyadic": 0, "shift": 1}


async def started(dut: Any) -> Bench:
    """A bench after reset, parameters written."""
    bench = Bench(dut, JOB.unit)
    await bench.start()
    await bench.set_params(JOB.cases[0].params[0][1])
    return bench


async def status(bench: Bench) -> int:
    """Read the status register and clear what it shows."""
    address = JOB.unit.registers["status"]
    value, response = await bench.axil.read(address)
    assert response == OKAY
    assert await bench.axil.write(address, value) == OKAY
    assert await bench.axil.read(address) == (0, OKAY)
    return value


def first_row() -> Beats:
    """The job's first row."""
    unit, case = JOB.unit, JOB.cases[0]
    length = case.lengths[:1]
    return pack(case.elements[: length[0]], length, unit.lanes, unit.in_slot)


async def carry(bench: Bench, beats: Beats, seed: int = 1, gates: Any = None) -> None:
    """Send a row and receive it, into a sink that is empty before."""
    case, sink, rng = JOB.cases[0], bench.sink, np.random.default_rng(seed)
    for seen in (sink.data, sink.keep, sink.last):
        seen.clear()
    sending = cocotb.start_soon(bench.source.send(beats, stalls(case.stall_in, rng), gates))
    await sink.receive(len(beats.data), stalls(case.stall_out, rng), 10_000)
    await sending


async def send(bench: Bench, **changes: Any) -> list[int]:
    """Send the job's first row with some of its beats changed; return the output's keeps."""
    beats = first_row()
    for name, change in changes.items():
        at, value = change
        getattr(beats, name)[at] = value
    await carry(bench, beats)
    return list(bench.sink.keep)


@cocotb.test()
async def readable(dut: Any) -> None:
    """Identity, lanes and every field of the spec."""
    bench, registers = await started(dut), JOB.unit.registers
    wanted = {"id": IDENTITY, "version": 1, "lanes": JOB.unit.lanes, "status": 0, "rows": 0}
    wanted["operator"] = 1 + ("softmax", "layernorm", "gelu", "requant", "residual").index(JOB.unit.op)
    for name, value in JOB.unit.spec.items():
        wanted[f"spec_{name}"] = NAMES[value] if isinstance(value, str) else value
    for name, value in wanted.items():
        assert await bench.axil.read(registers[name]) == (value, OKAY), name


@cocotb.test()
async def refused(dut: Any) -> None:
    """Accesses that are wrong are answered with an error and do nothing."""
    bench, registers = await started(dut), JOB.unit.registers
    axil = bench.axil
    parameter = {"softmax": "frac", "gelu": "table"}.get(JOB.unit.op, "zero_point")
    assert await axil.read(registers[parameter]) == (0, SLVERR)
    assert await axil.read(NOWHERE) == (0, DECERR)
    assert await axil.write(NOWHERE, 1) == DECERR
    assert await axil.write(registers["id"], 1) == SLVERR
    for strobe in (0x0, 0x1, 0x7, 0xB, 0xD, 0xE):
        assert await axil.write(registers[parameter], 0, strobe) == SLVERR
        assert await axil.write(registers["status"], 7, strobe) == SLVERR
    if JOB.unit.op in ("layernorm", "gelu"):
        spec = JOB.unit.spec
        first, entries = (
            (registers["table"], 1 << spec["in_bits"])
            if JOB.unit.op == "gelu"
            else (registers["shift"], spec["max_channels"])
        )
        assert await axil.write(first + 4 * entries, 0) == DECERR
    assert await axil.read(registers["id"]) == (IDENTITY, OKAY)


@cocotb.test()
async def decoded(dut: Any) -> None:
    """Registers and tables begin and end where the map says; no address with one wrong bit is theirs."""
    bench, spans = await started(dut), JOB.unit.spans
    edges = {at for base, words, _ in spans for at in (base, base + 4 * words - 4, base + 4 * words)}
    near = {at ^ (1 << bit) for at in edges for bit in range(2, ADDRESS_BITS)} | edges
    for turn, address in enumerate(sorted(at for at in near if at < 1 << ADDRESS_BITS)):
        access = [kind for base, words, kind in spans if base <= address < base + 4 * words]
        read = {"RO": OKAY, "RW1C": OKAY, "WO": SLVERR}[access[0]] if access else DECERR
        assert (await bench.axil.read(address))[1] == read, f"read of {address:#x}"
        # Without its strobes a write does nothing.
        write = SLVERR if access else DECERR
        value = 0xFFFFFFFF * (turn & 1)
        assert await bench.axil.write(address, value, 0) == write, f"write of {address:#x}"


@cocotb.test()
async def channel_order(dut: Any) -> None:
    """Address before data, data before address, many at once: each write gets its answer."""
    bench = await started(dut)
    address = JOB.unit.registers["status"]
    for lag in (-5, -1, 0, 1, 5):
        assert await bench.axil.write_all([(address, 0)] * 6, lag=lag) == [OKAY] * 6


@cocotb.test()
async def late_response(dut: Any) -> None:
    """The response waits for its ready, and the next write for the response."""
    bench = await started(dut)
    edge = bench.edge
    for address, response in ((JOB.unit.registers["status"], OKAY), (NOWHERE, DECERR)):
        dut.s_axil_awaddr.value = address
        dut.s_axil_wstrb.value = 0xF
        dut.s_axil_awvalid.value = dut.s_axil_wvalid.value = 1
        dut.s_axil_bready.value = 0
        for cycle in range(12):
            await edge
            assert int(dut.s_axil_bvalid.value) == (cycle >= 2)
            assert cycle < 2 or int(dut.s_axil_bresp.value) == response
        assert int(dut.s_axil_awready.value) == 0
        dut.s_axil_awvalid.value = dut.s_axil_wvalid.value = 0
        dut.s_axil_bready.value = 1
        answers = []
        for _ in range(8):
            await edge
            if dut.s_axil_bvalid.value == 1:
                answers.append(int(dut.s_axil_bresp.value))
        assert answers == [response] * 2


@cocotb.test()
async def late_read(dut: Any) -> None:
    """What was read stays until it is taken, and then goes."""
    bench = await started(dut)
    for address, answer in ((JOB.unit.registers["id"], (IDENTITY, OKAY)), (NOWHERE, (0, DECERR))):
        dut.s_axil_araddr.value = address
        dut.s_axil_arvalid.value, dut.s_axil_rready.value = 1, 0
        seen = []
        for _ in range(12):
            await bench.edge
            if dut.s_axil_arready.value == 1:
                dut.s_axil_arvalid.value = 0
            if dut.s_axil_rvalid.value == 1:
                seen.append((int(dut.s_axil_rdata.value), int(dut.s_axil_rresp.value)))
        assert len(seen) >= 8
        assert set(seen) == {answer}
        dut.s_axil_rready.value = 1
        await bench.edge
        dut.s_axil_rready.value = 0
        await bench.edge
        assert dut.s_axil_rvalid.value == 0


@cocotb.test()
async def untouched(dut: Any) -> None:
    """Parameters that are refused, for want of a strobe, are those of no row, in either bank."""
    bench, unit, case = await started(dut), JOB.unit, JOB.cases[0]
    words = [(word, value) for word, value in case.params[0][1] if word % TABLE_WORDS < unit.lanes * 32]
    await bench.set_params(words)
    banks = "commit" in unit.registers
    wrong = [(4 * word, ~value & 0xFFFFFFFF) for word, value in (words[:-1] if banks else words)]
    assert set(await bench.axil.write_all(wrong, strobe=0x7)) == {SLVERR}
    length, sink = case.lengths[:1], bench.sink
    for bank in range(1 + banks):
        await carry(bench, first_row(), seed=bank)
        codes, _ = unpack(
            sink.data, sink.keep, sink.last, length, unit.lanes, unit.out_slot, unit.out_signed
        )
        assert codes.tolist() == case.expected[: length[0]].tolist(), f"bank {bank}"
        if banks:
            await bench.set_params(words[-1:])


@cocotb.test()
async def kept(dut: Any) -> None:
    """A row that pauses keeps its parameters: those after the next ones wait until it has ended."""
    bench, unit, case = await started(dut), JOB.unit, JOB.cases[0]
    word, commit = case.params[0][1][0], case.params[0][1][-1]
    if "commit" not in unit.registers:  # a row takes what there is with it
        return
    beats = first_row()
    writing: list[Any] = []

    async def pause() -> None:
        """In the midst of the row: longer than any pipeline, the next parameters, one word more."""
        for _ in range(PAUSE):
            await bench.edge
        await bench.set_params([word, commit])
        writing.append(cocotb.start_soon(bench.set_params([word])))
        for _ in range(PAUSE):
            await bench.edge
        assert not writing[-1].done(), "a word was written into parameters in use"

    for bank in range(2):
        await carry(bench, beats, seed=bank, gates={len(beats.data) - 1: pause})
        await writing[-1]


@cocotb.test()
async def repaired(dut: Any) -> None:
    """A bad keep and an element outside its width are noted; the row still comes out whole."""
    bench, unit = await started(dut), JOB.unit
    size = unit.lanes * unit.in_slot
    full = (1 << size) - 1
    out_full = (1 << unit.lanes * unit.out_slot) - 1
    clean = await send(bench)
    assert await status(bench) == 0
    # Before the last beat every lane counts, whatever keep says.
    assert await send(bench, keep=(0, full >> 1)) == clean
    assert await status(bench) == BAD_KEEP
    # A hole ends the prefix; lane 0 always counts.
    assert (await send(bench, keep=(-1, 0)))[-1] == (1 << unit.out_slot) - 1
    assert await status(bench) == BAD_KEEP
    if unit.lanes > 2:
        hole = full & ~(1 << unit.in_slot)
        assert (await send(bench, keep=(-1, hole)))[-1] == (1 << unit.out_slot) - 1
        assert await status(bench) == BAD_KEEP
    assert out_full in clean
    bits = unit.spec[{"softmax": "score_bits", "requant": "acc_bits"}.get(unit.op, "in_bits")]
    bits += unit.spec["acc_bits"] if unit.op == "residual" else 0
    if unit.in_slot * 8 > bits:
        for lane in range(unit.lanes):
            await send(bench, data=(0, 1 << (unit.in_slot * 8 * (lane + 1) - 2)))
            assert await status(bench) == OUTSIDE, f"lane {lane}"
    rows, _ = await bench.axil.read(unit.registers["rows"])
    assert rows >= 3

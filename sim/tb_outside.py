# SPDX-License-Identifier: Apache-2.0
"""An AXI implementation that is not ours (cocotbext-axi) drives a unit: one cocotb test.

It works under cocotb 2.1 with deprecation warnings; nothing else is built on it, but for
``tb_accelerator_outside``.
"""

from __future__ import annotations

import itertools
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotbext.axi import (
    AxiLiteBus,
    AxiLiteMaster,
    AxiStreamBus,
    AxiStreamFrame,
    AxiStreamSink,
    AxiStreamSource,
)

from sim.bench import load_job
from sim.stream import PERIOD

JOB = load_job()


@cocotb.test()
@cocotb.parametrize(pauses=["none", "source", "sink", "both"])
async def outside(dut: Any, pauses: str) -> None:
    """Send the job's rows as frames, write the parameters, read registers, compare the bytes."""
    unit, case = JOB.unit, JOB.cases[0]
    dut.aresetn.value = 0
    if unit.has_mask:
        dut.s_axis_tuser.value = 0
    reset = {"reset": dut.aresetn, "reset_active_level": False}
    source = AxiStreamSource(AxiStreamBus.from_prefix(dut, "s_axis"), dut.aclk, **reset)
    sink = AxiStreamSink(AxiStreamBus.from_prefix(dut, "m_axis"), dut.aclk, **reset)
    master = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axil"), dut.aclk, **reset)
    if pauses in ("source", "both"):
        source.set_pause_generator(itertools.cycle([1, 1, 0]))
    if pauses in ("sink", "both"):
        sink.set_pause_generator(itertools.cycle([1, 0, 1, 1, 0]))
    Clock(dut.aclk, PERIOD, unit="step").start()
    for _ in range(4):
        await dut.aclk.rising_edge
    dut.aresetn.value = 1
    for _ in range(4):
        await dut.aclk.rising_edge

    for word, value in case.params[0][1]:
        await master.write_dword(4 * word, value)
    assert await master.read_dword(unit.registers["lanes"]) == unit.lanes
    kind = np.dtype("<i2" if unit.in_slot == 2 else "i1")
    ends = np.cumsum(case.lengths)
    for end, length in zip(ends, case.lengths, strict=True):
        row = case.elements[end - length : end].astype(kind)
        await source.send(AxiStreamFrame(row.tobytes()))
    kind = np.dtype(f"<{'i' if unit.out_signed else 'u'}{unit.out_slot}")
    for number, (end, length) in enumerate(zip(ends, case.lengths, strict=True)):
        frame = await sink.recv()
        codes = np.frombuffer(bytes(frame.tdata), kind).astype(np.int64)
        assert codes.tolist() == case.expected[end - length : end].tolist(), f"row {number}"
    assert source.empty()
    assert sink.empty()
    assert await master.read_dword(unit.registers["rows"]) == len(case.lengths)
    assert await master.read_dword(unit.registers["status"]) == 0

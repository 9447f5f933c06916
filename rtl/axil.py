# SPDX-License-Identifier: Apache-2.0
"""AXI4-Lite as every top here has it: the ports of a slave, and a write channel that holds one write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from amaranth import Module, Signal
from amaranth.lib.wiring import In, Out

__all__ = ["DECERR", "OKAY", "SLVERR", "Write", "axil_ports", "write_channel"]

OKAY, SLVERR, DECERR = 0, 2, 3


def axil_ports(address_bits: int) -> dict[str, Any]:
    """The members of a component that has an AXI4-Lite slave, ``address_bits`` of a byte address."""
    return {
        "s_axil_awaddr": In(address_bits),
        "s_axil_awvalid": In(1),
        "s_axil_awready": Out(1),
        "s_axil_wdata": In(32),
        "s_axil_wstrb": In(4),
        "s_axil_wvalid": In(1),
        "s_axil_wready": Out(1),
        "s_axil_bresp": Out(2),
        "s_axil_bvalid": Out(1),
        "s_axil_bready": In(1),
        "s_axil_araddr": In(address_bits),
        "s_axil_arvalid": In(1),
        "s_axil_arready": Out(1),
        "s_axil_rdata": Out(32),
        "s_axil_rresp": Out(2),
        "s_axil_rvalid": Out(1),
        "s_axil_rready": In(1),
    }


@dataclass(frozen=True)
class Write:
    """The write that the channel holds.

    there: address and data have both come, and the response to the write before has been taken.
    word, value, full: word address, data, whether all strobes are set.  done: to be driven high,
    while ``there``, in the cycle that ends it; ``response`` is to be assigned in the same cycle.
    """

    there: Signal
    word: Signal
    value: Signal
    full: Signal
    done: Signal
    response: Signal


def write_channel(m: Module, ports: Any) -> Write:
    """A write every other cycle at most, on the ports of :func:`axil_ports`."""
    aw_held, w_held, b_valid = Signal(), Signal(), Signal()
    word, value, full = Signal(len(ports.s_axil_awaddr) - 2), Signal(32), Signal()
    there, done, response = Signal(), Signal(), Signal(2)
    m.d.comb += [
        ports.s_axil_awready.eq(~aw_held),
        ports.s_axil_wready.eq(~w_held),
        ports.s_axil_bvalid.eq(b_valid),
        ports.s_axil_bresp.eq(response),
        there.eq(aw_held & w_held & (~b_valid | ports.s_axil_bready)),
    ]
    with m.If(ports.s_axil_awvalid & ~aw_held):
        m.d.sync += [aw_held.eq(1), word.eq(ports.s_axil_awaddr[2:])]
    with m.If(ports.s_axil_wvalid & ~w_held):
        m.d.sync += [w_held.eq(1), value.eq(ports.s_axil_wdata)]
        m.d.sync += full.eq(ports.s_axil_wstrb.all())
    with m.If(ports.s_axil_bready):
        m.d.sync += b_valid.eq(0)
    with m.If(done):
        m.d.sync += [aw_held.eq(0), w_held.eq(0), b_valid.eq(1)]
    return Write(there, word, value, full, done, response)

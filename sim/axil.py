# SPDX-License-Identifier: Apache-2.0
"""A small AXI4-Lite master for cocotb: pipelined writes, single reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cocotb.triggers import RisingEdge

__all__ = ["DECERR", "OKAY", "SLVERR", "AxiLite"]

OKAY, SLVERR, DECERR = 0, 2, 3


@dataclass
class AxiLite:
    """Drives the ports ``<prefix>_aw...``, ``_w...``, ``_b...``, ``_ar...`` and ``_r...``."""

    dut: Any
    clock: Any
    prefix: str = "s_axil"
    limit: int = 20_000
    """Cycles that an answer may take."""

    def _port(self, name: str) -> Any:
        return getattr(self.dut, f"{self.prefix}_{name}")

    def idle(self) -> None:
        """Ask for nothing."""
        for name in ("awvalid", "wvalid", "bready", "arvalid", "rready"):
            self._port(name).value = 0
        for name in ("awaddr", "wdata", "wstrb", "araddr"):
            self._port(name).value = 0

    async def write_all(
        self, writes: list[tuple[int, int]], strobe: int = 0xF, lag: int = 0
    ) -> list[int]:
        """Write (byte address, value) pairs in order; return the responses.

        lag: cycles that the data channel starts behind the address channel (ahead, if negative).
        """
        edge = RisingEdge(self.clock)
        aw_valid, aw_ready = self._port("awvalid"), self._port("awready")
        w_valid, w_ready = self._port("wvalid"), self._port("wready")
        b_valid, b_ready, b_resp = self._port("bvalid"), self._port("bready"), self._port("bresp")
        address, value = self._port("awaddr"), self._port("wdata")
        self._port("wstrb").value = strobe
        b_ready.value = 1
        responses: list[int] = []
        count, a, w, waited = len(writes), 0, 0, 0
        a_open = w_open = False
        cycle = 0
        while len(responses) < count:
            if a < count and not a_open and cycle >= -lag:
                address.value, aw_valid.value, a_open = writes[a][0], 1, True
            if w < count and not w_open and cycle >= lag:
                value.value, w_valid.value, w_open = writes[w][1], 1, True
            await edge
            cycle += 1
            if a_open and aw_ready.value == 1:
                a, a_open = a + 1, a + 1 < count
                if a_open:
                    address.value = writes[a][0]
                else:
                    aw_valid.value = 0
            if w_open and w_ready.value == 1:
                w, w_open = w + 1, w + 1 < count
                if w_open:
                    value.value = writes[w][1]
                else:
                    w_valid.value = 0
            waited += 1
            if b_valid.value == 1:
                responses.append(int(b_resp.value))
                waited = 0
            if waited > self.limit:
                raise AssertionError(f"no write response in {self.limit} cycles")
        b_ready.value = 0
        return responses

    async def write(self, address: int, value: int, strobe: int = 0xF) -> int:
        """Write one word; return the response."""
        return (await self.write_all([(address, value)], strobe))[0]

    async def read(self, address: int) -> tuple[int, int]:
        """Read one word; return it and the response."""
        edge = RisingEdge(self.clock)
        ar_valid, ar_ready = self._port("arvalid"), self._port("arready")
        r_valid, r_ready = self._port("rvalid"), self._port("rready")
        self._port("araddr").value = address
        ar_valid.value = r_ready.value = 1
        asked = False
        for _ in range(self.limit):
            await edge
            if not asked and ar_ready.value == 1:
                asked, ar_valid.value = True, 0
                continue
            if asked and r_valid.value == 1:
                answer = int(self._port("rdata").value), int(self._port("rresp").value)
                r_ready.value = 0
                return answer
        raise AssertionError(f"no read response in {self.limit} cycles")

# SPDX-License-Identifier: Apache-2.0
"""What the peers' open units cost: figures as data, each with where it comes from.

"measured": their published Verilog through the same tools as ours (Yosys for UltraScale+; nextpnr for ECP5,
speed grade 6). "paper": as they state it, by a vendor's tools, which may map 10 to 30 % better.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PEERS", "Peer", "peers_of"]


@dataclass(frozen=True)
class Peer:
    """An open unit of somebody else.

    op: the unit of ours that does the same.  rate: elements a cycle.  bits: in and out.  LUT, FF, DSP, BRAM
    (36 kb): on UltraScale+.  mhz, lut4: on ECP5.  source: "measured" or "paper", and of what.
    """

    name: str
    op: str
    rate: float
    bits: str
    lut: int
    source: str
    ff: int | None = None
    dsp: int | None = None
    bram: float | None = None
    mhz: float | None = None
    lut4: int | None = None

    @property
    def density(self) -> float:
        """Elements a cycle and LUT."""
        return self.rate / self.lut

    @property
    def throughput(self) -> float | None:
        """Million elements a second and LUT4 of ECP5; None where that is not known."""
        return None if self.mhz is None or self.lut4 is None else self.rate * self.mhz / self.lut4


PEERS = (
    Peer("HG-PIPE", "softmax", 2 / 3, "10 in, 3 out", 331, "measured: 3 passes, 2 lanes, rows of 196",
         ff=351, dsp=2, bram=1.0, mhz=71.0, lut4=825),
    Peer("HG-PIPE, no DSP, no BRAM", "softmax", 2 / 3, "10 in, 3 out", 847, "measured: 3 passes, 2 lanes",
         dsp=0, bram=0.0),
    Peer("ITA", "softmax", 16.0, "8 in, 8 out", 8671, "measured: 16 lanes, 1,728 latches; rows of 256",
         dsp=0, mhz=29.3, lut4=9768),
    Peer("HG-PIPE", "layernorm", 2 / 3, "13 in, 3 out", 672, "measured: 3 passes, 2 lanes, rows of 192",
         dsp=8, mhz=103.7, lut4=1598),
    Peer("HG-PIPE, no DSP", "layernorm", 2 / 3, "13 in, 3 out", 4105, "measured: 3 passes, 2 lanes", dsp=0),
    Peer("heo-ji, 8 rows", "layernorm", 4.0, "16 in (8.8 fixed point)", 5689,
         "paper: data sent twice, about 147 MHz on ZU28DR", dsp=56),
    Peer("heo-ji, 32 rows", "layernorm", 16.0, "16 in (8.8 fixed point)", 23980,
         "paper: data sent twice, on Z7020", dsp=220),
)


def peers_of(unit: str) -> tuple[Peer, ...]:
    """Those that do what a unit of ours does, which may be one of its kinds."""
    return tuple(peer for peer in PEERS if peer.op == unit.partition("-")[0])

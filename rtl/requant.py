# SPDX-License-Identifier: Apache-2.0
"""Requantiser: the RTL of :mod:`golden.requant`, one multiplication per element.

    y = sat(rs(acc * M, N) + z)

The rounding takes no decoder for its half: the shift keeps one bit below the point, which is added to what
is above it, and that is right for an N of 0 and for one beyond the product, too.
"""

from __future__ import annotations

from amaranth.hdl import Module, Signal, Value, signed, unsigned

from golden.requant import MULTIPLIER, SHIFT, TABLE, WORD, RequantSpec, requant_pipeline
from golden.words import TABLE_WORDS
from rtl.arith import carried, halves, product, saturated, settled
from rtl.stream import Banks, Parameter, StreamUnit

__all__ = ["Requantiser", "requantised"]


class Requantiser(StreamUnit):
    """Streaming requantiser; the formula is :mod:`golden.requant`'s, bit for bit.

    spec: widths.  lanes: elements per beat, 1 to 32; no result depends on it.  port_bits: width of the wider
    port of the target's multipliers (:class:`rtl.layernorm.PtfLayerNorm`).

    Latency ``pipeline``, whatever the row: 9 registers and the output queue. ``i`` has lanes signed
    accumulators (``acc``), the channel being the place in the row; the rest is as in
    :class:`~rtl.stream.StreamUnit`.
    """

    def __init__(self, spec: RequantSpec, *, lanes: int, port_bits: int = 27) -> None:
        self._port_bits = port_bits
        super().__init__(
            spec,
            lanes=lanes,
            pipeline=requant_pipeline(spec, lanes),
            parameters=[
                Parameter("zero_point", WORD["zero_point"], signed(spec.out_bits), "z, signed"),
                Parameter("commit", WORD["commit"], unsigned(0), "ends a set"),
                Parameter(
                    "multiplier",
                    TABLE["multiplier"],
                    unsigned(MULTIPLIER.bits),
                    f"M of a channel, {MULTIPLIER.low} to {MULTIPLIER.high}",
                    TABLE_WORDS,
                ),
                Parameter(
                    "shift",
                    TABLE["shift"],
                    unsigned(SHIFT.bits),
                    f"N of a channel, 0 to {SHIFT.high}",
                    TABLE_WORDS,
                ),
            ],
            field="acc",
            element=signed(spec.acc_bits),
            code_bits=spec.out_bits,
        )

    def _codes(self, m: Module, banks: Banks) -> list[Value]:
        multipliers, shifts = banks.per_channel("multiplier"), banks.per_channel("shift")  # 2
        zero_point = banks.scalar("zero_point", 8)
        codes = []
        for lane in range(self.lanes):
            acc = carried(m, self.i.payload.acc[lane], 2, f"acc_{lane}")  # 2
            factors = {"multiplier": multipliers[lane], "shift": shifts[lane], "zero_point": zero_point}
            codes.append(requantised(m, acc, self.spec, lane, self._port_bits, **factors))  # 9
        return codes


def requantised(
    m: Module,
    acc: Value,
    spec: RequantSpec,
    lane: int,
    port_bits: int,
    *,
    multiplier: Value,
    shift: Value,
    zero_point: Value,
) -> Value:
    """A lane's code, 7 cycles after acc, multiplier and shift; zero_point comes a cycle before it."""
    bits, wide = spec.out_bits, spec.bounds["product"].bits
    scaled = product(m, multiplier, acc, f"product_{lane}", port_bits=port_bits)  # 2
    shift = carried(m, shift, 2, f"shift_now_{lane}")  # 2
    moved = halves(m, scaled[:wide].as_signed(), shift, f"moved_{lane}")  # 5
    near = Signal(signed(bits + 2), name=f"near_{lane}", reset_less=True)
    m.d.sync += near.eq(saturated(moved, bits + 2))  # 6
    code = Signal(signed(bits), name=f"code_{lane}", reset_less=True)
    m.d.sync += code.eq(settled(near, zero_point, bits))  # 7
    return code

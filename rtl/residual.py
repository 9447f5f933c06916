# SPDX-License-Identifier: Apache-2.0
"""The residual stream: the RTL of :mod:`golden.residual`, two multiplications per element, one rounding.

    y = sat(rs(((q - z) << a) * M1 + acc * M2, N + b) + z')

Codes and accumulators arrive together, as elements of one stream: whoever has both knows how to pair them.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Shape, Signal, Value, signed, unsigned
from amaranth.lib import data

from golden.residual import TABLE, WORD, ResidualSpec, residual_pipeline
from golden.words import TABLE_WORDS
from rtl.arith import carried, halves, product, settled
from rtl.stream import Banks, Parameter, StreamUnit

__all__ = ["PtfResidual"]


class PtfResidual(StreamUnit):
    """Streaming residual unit; the formula is :mod:`golden.residual`'s, bit for bit.

    spec: widths.  lanes: elements per beat, 1 to 32; no result depends on it.  port_bits: width of the wider
    port of the target's multipliers (:class:`rtl.layernorm.PtfLayerNorm`).

    Latency ``pipeline``, whatever the row: 10 registers and the output queue. ``i`` has lanes of ``pair``: a
    signed accumulator (``acc``, the low bits) and the stream's signed code (``code``) of a channel, which is
    the place in the row; the rest is as in :class:`~rtl.stream.StreamUnit`.
    """

    def __init__(self, spec: ResidualSpec, *, lanes: int, port_bits: int = 27) -> None:
        self._port_bits, bounds = port_bits, spec.bounds
        align = unsigned(max(spec.max_shift.bit_length(), 1))

        def scalar(name: str, shape: Shape, text: str) -> Parameter:
            return Parameter(name, WORD[name], shape, text)

        def table(name: str, shape: Shape, text: str) -> Parameter:
            return Parameter(name, TABLE[name], shape, text, TABLE_WORDS)

        shift, multiplier = unsigned(bounds["shift"].bits), unsigned(spec.multiplier_bits)
        super().__init__(
            spec,
            lanes=lanes,
            pipeline=residual_pipeline(spec, lanes),
            parameters=[
                scalar("in_zero_point", signed(spec.in_bits), "z, of the stream before, signed"),
                scalar("zero_point", signed(spec.out_bits), "z', of the stream after, signed"),
                scalar("gain", unsigned(spec.gain_bits), "M1"),
                scalar("shift", shift, f"N, 0 to {bounds['shift'].high}"),
                scalar("commit", unsigned(0), "ends a set"),
                table("in_shift", align, f"PTF shift a of a channel, 0 to {spec.max_shift}"),
                table("multiplier", multiplier, "M2 of a channel"),
                table("out_shift", align, f"PTF shift b of a channel, 0 to {spec.max_shift}"),
            ],
            field="pair",
            element=data.StructLayout({"acc": signed(spec.acc_bits), "code": signed(spec.in_bits)}),
            code_bits=spec.out_bits,
        )

    def _codes(self, m: Module, banks: Banks) -> list[Value]:
        bounds, port = self.spec.bounds, {"port_bits": self._port_bits}
        columns = {name: banks.per_channel(name) for name in TABLE}  # 2
        in_zero_point, zero_point = banks.scalar("in_zero_point", 1), banks.scalar("zero_point", 9)
        gain, point = banks.scalar("gain", 3), banks.scalar("shift", 2)
        codes = []
        for lane in range(self.lanes):

            def register(name: str, shape: Any, value: Value, lane: int = lane) -> Signal:
                result = Signal(shape, name=f"{name}_{lane}", reset_less=True)
                m.d.sync += result.eq(value)
                return result

            pair = self.i.payload.pair[lane]
            code = carried(m, pair.code, 1, f"code_{lane}")  # 1
            centered = register("centered", signed(self.spec.in_bits + 1), code - in_zero_point)  # 2
            x = register("x", signed(bounds["x"].bits), centered << columns["in_shift"][lane])  # 3
            acc = carried(m, pair.acc, 3, f"acc_{lane}")  # 3
            multiplier = carried(m, columns["multiplier"][lane], 1, f"multiplier_now_{lane}")  # 3
            kept = product(m, x, gain, f"kept_{lane}", **port)  # 5
            branch = product(m, multiplier, acc, f"branch_{lane}", **port)  # 5
            total = register("total", signed(bounds["total"].bits), kept + branch)  # 6
            amount = register("amount", unsigned(6), point + columns["out_shift"][lane])  # 3
            moved = halves(m, total, carried(m, amount, 3, f"amount_now_{lane}"), f"moved_{lane}")  # 9
            bits = self.spec.out_bits
            codes.append(register("result", signed(bits), settled(moved, zero_point, bits)))  # 10
        return codes

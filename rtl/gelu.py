# SPDX-License-Identifier: Apache-2.0
"""GELU, or any function of one code: the RTL of :mod:`golden.gelu`, a table per lane."""

from __future__ import annotations

from amaranth.hdl import Module, Value, signed, unsigned

from golden.gelu import TABLE, WORD, GeluSpec, gelu_pipeline
from rtl.stream import Banks, Parameter, StreamUnit

__all__ = ["GeluTable"]


class GeluTable(StreamUnit):
    """Streaming table; the formula is :mod:`golden.gelu`'s, bit for bit.

    spec: widths.  lanes: elements per beat, 1 to 32; no result depends on it.

    Latency ``pipeline``, whatever the row: 2 registers and the output queue. ``i`` has lanes signed codes
    (``code``); the rest is as in :class:`~rtl.stream.StreamUnit`. A table takes a write per code; the codes'
    bits are its addresses, so that the lowest input code is in its middle.
    """

    def __init__(self, spec: GeluSpec, *, lanes: int) -> None:
        super().__init__(
            spec,
            lanes=lanes,
            pipeline=gelu_pipeline(spec, lanes),
            parameters=[
                Parameter("commit", WORD["commit"], unsigned(0), "ends a set"),
                Parameter(
                    "table",
                    TABLE["table"],
                    signed(spec.out_bits),
                    f"output code of each input code modulo {spec.entries}, signed",
                    spec.entries,
                ),
            ],
            field="code",
            element=signed(spec.in_bits),
            code_bits=spec.out_bits,
        )

    def _codes(self, m: Module, banks: Banks) -> list[Value]:
        return banks.per_code("table", [self.i.payload.code[lane] for lane in range(self.lanes)])

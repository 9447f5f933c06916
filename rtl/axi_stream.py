# SPDX-License-Identifier: Apache-2.0
"""AXI tops of the units that read each row once; their register maps are the units' own parameters."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Value

from golden.gelu import GeluSpec
from golden.requant import RequantSpec
from golden.residual import ResidualSpec
from golden.words import TABLE_WORDS
from rtl.axi import AxiRowUnit, Register
from rtl.gelu import GeluTable
from rtl.requant import Requantiser
from rtl.residual import PtfResidual
from rtl.stream import StreamUnit

__all__ = ["AxiGelu", "AxiRequant", "AxiResidual", "AxiStreamUnit"]


class AxiStreamUnit(AxiRowUnit):
    """AXI top of a :class:`rtl.stream.StreamUnit`: rows of up to 4096 elements."""

    def __init__(self, core: StreamUnit, *, field: str, in_bits: int, out_bits: int) -> None:
        super().__init__(
            core,
            field=field,
            longest=TABLE_WORDS,
            in_bits=in_bits,
            out_bits=out_bits,
            out_signed=True,
        )

    @property
    def param_registers(self) -> list[Register]:
        """A register or a table for each parameter."""
        return [
            Register(p.name, 4 * p.word, "WO", p.shape.width, p.text, p.entries or 1)
            for p in self.core.parameters
        ]

    def _is_parameter(self, word: Value) -> Value:
        bits = TABLE_WORDS.bit_length() - 1
        place, table = word[:bits], word[bits:]
        mine: list[Any] = [
            (table == p.word >> bits) & (place < p.entries) if p.entries else word == p.word
            for p in self.core.parameters
        ]
        return Cat(mine).any()


class AxiGelu(AxiStreamUnit):
    """AXI top of :class:`rtl.gelu.GeluTable`."""

    operator = "gelu"
    operator_id = 3
    title = "table of a function of one code"

    def __init__(self, spec: GeluSpec, *, lanes: int) -> None:
        core = GeluTable(spec, lanes=lanes)
        super().__init__(core, field="code", in_bits=spec.in_bits, out_bits=spec.out_bits)


class AxiRequant(AxiStreamUnit):
    """AXI top of :class:`rtl.requant.Requantiser`, which explains ``port_bits``."""

    operator = "requant"
    operator_id = 4
    title = "accumulators to codes"

    def __init__(self, spec: RequantSpec, *, lanes: int, port_bits: int = 27) -> None:
        core = Requantiser(spec, lanes=lanes, port_bits=port_bits)
        super().__init__(core, field="acc", in_bits=spec.acc_bits, out_bits=spec.out_bits)


class AxiResidual(AxiStreamUnit):
    """AXI top of :class:`rtl.residual.PtfResidual`, which explains ``port_bits``.

    An element is a signed number: the code above the accumulator's ``acc_bits``, ``code << acc_bits | acc``.
    """

    operator = "residual"
    operator_id = 5
    title = "residual stream of power-of-two-factor codes"

    def __init__(self, spec: ResidualSpec, *, lanes: int, port_bits: int = 27) -> None:
        core = PtfResidual(spec, lanes=lanes, port_bits=port_bits)
        super().__init__(
            core, field="pair", in_bits=spec.in_bits + spec.acc_bits, out_bits=spec.out_bits
        )

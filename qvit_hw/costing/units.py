# SPDX-License-Identifier: Apache-2.0
"""The units whose cost is measured, as RTLIL: each between registers, as it would sit in a design.

Ports are registered, so that no path ends at a pin. A device of few pins gets the inputs as one chain of
those registers and one output, the parity of all: the unit in between is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from amaranth.back import rtlil
from amaranth.hdl import Elaboratable, Module, Signal

from golden.accelerator import PRESETS
from golden.attention import AttendSpec
from golden.gelu import GeluSpec
from golden.layernorm import LayerNormSpec
from golden.requant import RequantSpec
from golden.residual import ResidualSpec
from golden.softmax import SoftmaxSpec
from qvit_hw.errors import UserError
from rtl.accelerator import Accelerator
from rtl.attention import ShiftAttend
from rtl.gelu import GeluTable
from rtl.layernorm import PtfLayerNorm
from rtl.requant import Requantiser
from rtl.residual import PtfResidual
from rtl.softmax import Log2Softmax

__all__ = ["ACCELERATOR", "DEFAULT_UNITS", "UNITS", "Unit", "find_unit", "unit_rtlil"]

ACCELERATOR = "accelerator"
PORT_BITS = 27
"""Wider port of a multiplier unless the target says otherwise."""


@dataclass(frozen=True)
class Unit:
    """A unit that can be measured.

    spec: that it is built with unless told otherwise.  build: spec, lanes and port bits to the component.
    told: what it is, in words, with the widths that its size depends on.
    """

    name: str
    spec: Any
    build: Callable[[Any, int, int], Any]
    told: str


def _softmax(spec: Any, lanes: int, port: int) -> Any:
    return Log2Softmax(spec, lanes=lanes)


def _layernorm(spec: Any, lanes: int, port: int) -> Any:
    return PtfLayerNorm(spec, lanes=lanes, port_bits=port)


def _gelu(spec: Any, lanes: int, port: int) -> Any:
    return GeluTable(spec, lanes=lanes)


def _requant(spec: Any, lanes: int, port: int) -> Any:
    return Requantiser(spec, lanes=lanes, port_bits=port)


def _residual(spec: Any, lanes: int, port: int) -> Any:
    return PtfResidual(spec, lanes=lanes, port_bits=port)


def _attend(spec: Any, lanes: int, port: int) -> Any:
    return ShiftAttend(spec, lanes=lanes, port_bits=port)


def _accelerator(spec: Any, lanes: int, port: int) -> Any:
    name = f"{lanes}x{lanes}"
    if name not in PRESETS:
        sizes = ", ".join(each.partition("x")[0] for each in PRESETS)
        raise UserError(f"Lanes of the accelerator must be one of {sizes}, not {lanes!r}.")
    return Accelerator(PRESETS[name], port_bits=port)


UNITS: Mapping[str, Unit] = {
    unit.name: unit
    for unit in (
        Unit("softmax", SoftmaxSpec(), _softmax, "12-bit scores, 4-bit codes, rows to 1,024"),
        Unit("layernorm", LayerNormSpec(), _layernorm, "8-bit codes, rows to 3,072, a multiplier a lane"),
        Unit("layernorm-shift", LayerNormSpec(affine="shift"), _layernorm,
             "8-bit codes, rows to 3,072, a shift a lane"),
        Unit("gelu", GeluSpec(), _gelu, "8-bit codes in and out"),
        Unit("requant", RequantSpec(), _requant, "32-bit accumulators to 8-bit codes"),
        Unit("residual", ResidualSpec(), _residual, "32-bit accumulators and 8-bit codes of the stream"),
        Unit("attention", AttendSpec(), _attend, "4-bit codes to base 2 times 8-bit values"),
        Unit("attention-sqrt2", AttendSpec(softmax=SoftmaxSpec(base="sqrt2", code_bits=5)), _attend,
             "5-bit codes to base sqrt 2 times 8-bit values"),
        Unit(ACCELERATOR, None, _accelerator, "the whole design: an array of lanes x lanes, all units"),
    )
}
DEFAULT_UNITS = tuple(name for name in UNITS if name != ACCELERATOR)
"""Measured unless told otherwise; the accelerator only by name, because it takes minutes."""


def find_unit(name: str) -> Unit:
    """Return the unit of this name; UserError for an unknown one."""
    if name not in UNITS:
        raise UserError(f"Unit must be one of {', '.join(UNITS)}, not {name!r}.")
    return UNITS[name]


@cache
def unit_rtlil(
    name: str, lanes: int, port_bits: int = PORT_BITS, spec: Any = None, chained: bool = False
) -> str:
    """RTLIL of a unit, its top module called ``top``; the same arguments give the same text.

    spec: another one than the unit's own.  chained: for a device of few pins, see the module's docstring.
    """
    unit = find_unit(name)
    made = unit.build(unit.spec if spec is None else spec, lanes, port_bits)
    if name == ACCELERATOR:  # has registers at its ports, and its modules are told apart
        return str(rtlil.convert(made, name="top", emit_src=False))
    top = _Chained(made) if chained else _Registered(made)
    return str(rtlil.convert(top, name="top", ports=top.ports, emit_src=False))


class _Surrounded(Elaboratable):  # type: ignore[misc]
    """A unit and the signals of its streams, by direction."""

    def __init__(self, unit: Any) -> None:
        self.unit = unit
        self.inward: list[Any] = []
        self.outward: list[Any] = []
        for name in ("i", "v", "params", "o"):
            if (stream := getattr(unit, name, None)) is None:
                continue
            payload = stream.payload.as_value()
            ours, theirs = (self.outward, self.inward) if name == "o" else (self.inward, self.outward)
            ours += [payload, stream.valid]
            theirs.append(stream.ready)
        self.names = {
            id(value): f"{side}_{place}"
            for side, values in (("in", self.inward), ("out", self.outward))
            for place, value in enumerate(values)
        }
        self.ports: list[Any] = []


class _Registered(_Surrounded):
    """A register between every bit of a port and its pin."""

    def __init__(self, unit: Any) -> None:
        super().__init__(unit)
        self.pins = [Signal(len(each), name=self.names[id(each)]) for each in (*self.inward, *self.outward)]
        self.ports = self.pins

    def elaborate(self, platform: Any) -> Module:
        """See the class."""
        m = Module()
        m.submodules.unit = self.unit
        for value, pin in zip(self.inward, self.pins, strict=False):
            m.d.sync += value.eq(pin)
        for value, pin in zip(self.outward, self.pins[len(self.inward) :], strict=True):
            m.d.sync += pin.eq(value)
        return m


class _Chained(_Surrounded):
    """The registers of the inputs in a chain, and the parity of all outputs, which are registered."""

    def __init__(self, unit: Any) -> None:
        super().__init__(unit)
        self.first, self.parity = Signal(name="first"), Signal(name="parity")
        self.ports = [self.first, self.parity]

    def elaborate(self, platform: Any) -> Module:
        """See the class."""
        m = Module()
        m.submodules.unit = self.unit
        before: Any = self.first
        for place, value in enumerate(self.inward):
            chain = Signal(len(value), name=f"chain_{place}")
            m.d.comb += value.eq(chain)
            for bit in range(len(value)):
                m.d.sync += chain[bit].eq(before)
                before = chain[bit]
        groups: list[Any] = [value[bit] for value in self.outward for bit in range(len(value))]
        while len(groups) > 1:  # a register behind every four bits: no long path of ours
            heads = []
            for start in range(0, len(groups), 4):
                head = Signal(name=f"parity_{len(groups)}_{start}")
                parity: Any = groups[start]
                for bit in groups[start + 1 : start + 4]:
                    parity = parity ^ bit
                m.d.sync += head.eq(parity)
                heads.append(head)
            groups = heads
        m.d.comb += self.parity.eq(groups[0])
        return m

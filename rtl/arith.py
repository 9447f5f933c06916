# SPDX-License-Identifier: Apache-2.0
"""Pipelined arithmetic shared by the row units; every helper states its latency in cycles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value

from rtl.row import delayed

__all__ = [
    "carried",
    "floor_shift",
    "halves",
    "look_up",
    "normalise",
    "product",
    "saturated",
    "settled",
    "shift_right",
    "square",
]

CHUNK = 17
"""Unsigned bits of one multiplier port: 18 with sign, on Xilinx and on Lattice devices."""


def look_up(table: Sequence[int], index: Value, width: int) -> Value:
    """``table[index]`` as constants of ``width`` bits; combinational."""
    return Array(Const(entry, width) for entry in table)[index]


def _pieces(value: Value, port_bits: int) -> list[tuple[int, Value]]:
    """``value`` whole if it fits a signed port, else in pieces of 17 bits; each with its position."""
    if len(value) + (not value.shape().signed) <= port_bits:
        return [(0, value)]
    pieces = []
    for start in range(0, len(value), CHUNK):
        piece = value[start : start + CHUNK]
        top = start + CHUNK >= len(value)
        pieces.append((start, piece.as_signed() if top and value.shape().signed else piece))
    return pieces


def product(m: Module, a: Value, b: Value, name: str, *, port_bits: int = CHUNK + 1) -> Value:
    """``a * b`` in 2 cycles: products that fit one multiplier each, then their sum.

    A multiplier has a port of 18 bits and one of ``port_bits``, sign included; of the two ways to assign
    them the one with fewer products is taken. Where one product is enough the second cycle is a plain
    register, which a DSP slice takes in.
    """
    ports = ((CHUNK + 1, port_bits), (port_bits, CHUNK + 1))
    ways = [(_pieces(a, for_a), _pieces(b, for_b)) for for_a, for_b in ports]
    lefts, rights = min(ways, key=lambda way: len(way[0]) * len(way[1]))
    parts = []
    for low, left in lefts:
        for high, right in rights:
            value = left * right
            part = Signal(value.shape(), name=f"{name}_part_{low}_{high}")
            m.d.sync += part.eq(value)
            parts.append(part << low + high)
    value = sum(parts[1:], start=parts[0])
    result = Signal(value.shape(), name=name)
    m.d.sync += result.eq(value)
    return result


def square(m: Module, magnitude: Value, name: str) -> Value:
    """``magnitude**2`` in 2 cycles, without a multiplier for up to 8 bits.

    With x = 16 h + l: x^2 = (256 h^2 + l^2) + 32 h l, where the bracket is a concatenation.
    """
    result = Signal(2 * len(magnitude), name=name)
    if len(magnitude) > 8:
        raw = Signal(2 * len(magnitude), name=f"{name}_raw")
        m.d.sync += [raw.eq(magnitude * magnitude), result.eq(raw)]
        return result
    low, high = magnitude[:4], magnitude[4:]
    own = Signal(16, name=f"{name}_own")
    cross = Signal(8, name=f"{name}_cross")
    squares = [digit * digit for digit in range(16)]
    products = [(index >> 4) * (index & 15) for index in range(256)]
    m.d.sync += [
        own.eq(Cat(look_up(squares, low, 8), look_up(squares, high, 8))),
        cross.eq(look_up(products, Cat(low, high), 8) if len(high) else 0),
        result.eq(own + (cross << 5)),
    ]
    return result


def normalise(m: Module, value: Value, keep: int, name: str) -> tuple[Value, Value]:
    """The ``keep`` bits from the leading one of ``value`` on, and its leading zeros, in 3 cycles.

    ``value`` must not be 0; zeros fill in behind its last bit.
    """
    width = len(value)
    steps = ((16, -(-width // 16)), (4, 4), (1, 4))  # (bits, choices) of each cycle's shift
    zeros = Const(0, 1)
    for stage, (bits, choices) in enumerate(steps):
        # Bits still needed: those kept, and what the later stages may still shift out.
        ahead = sum(later * (count - 1) for later, count in steps[stage + 1 :])
        width = keep + ahead
        shifted = Signal(width, name=f"{name}_{stage}")
        count = Signal(range(choices * bits), name=f"{name}_count_{stage}")
        total = len(value)
        for choice in reversed(range(choices)):
            begin = max(total - choice * bits - width, 0)
            window = value[begin : total - choice * bits]
            aligned = window << (width - len(window))
            top = value[max(total - (choice + 1) * bits, 0) : total - choice * bits]
            taken = top.any() if choice < choices - 1 else Const(1, 1)
            with m.If(taken):
                m.d.sync += [shifted.eq(aligned), count.eq(choice * bits)]
        before = delayed(m, zeros, 1, f"{name}_before_{stage}") if stage else zeros
        zeros = before + count
        value = shifted
    return value, zeros


def shift_right(m: Module, value: Value, amount: Value, keep: int, name: str) -> Value:
    """The low ``keep`` bits of ``value >> amount`` (arithmetic), signed, in 3 cycles.

    Coarse first: 16s, 4s, 1s, each a multiplexer of up to four inputs.
    """
    for stage, (low, bits) in enumerate(((4, len(amount) - 4), (2, 2), (0, 2))):
        digit = amount[low : low + bits]
        # What the later stages may still shift in from above the bits kept.
        need = min(keep + (1 << low) - 1, len(value))
        shifted = Signal(need, name=f"{name}_{stage}")
        choices = [(value.as_signed() >> (choice << low))[:need] for choice in range(1 << bits)]
        m.d.sync += shifted.eq(Array(choices)[digit] if bits else choices[0])
        amount = delayed(m, amount, 1, f"{name}_amount_{stage}") if stage < 2 else amount
        value = shifted
    return value.as_signed()


def carried(m: Module, value: Any, cycles: int, name: str) -> Any:
    """:func:`~rtl.row.delayed` through registers without a reset: for what counts only beside a valid bit."""
    for cycle in range(1, cycles + 1):
        register = Signal.like(value, name=f"{name}_{cycle}", reset_less=True)
        m.d.sync += register.eq(value)
        value = register
    return value


def floor_shift(m: Module, value: Value, amount: Value, name: str) -> Value:
    """All of ``value >> amount`` (arithmetic, amount of 6 bits), in 3 cycles.

    As :func:`shift_right`, but each stage is one shift, which simulators do in one step.
    """
    value = value.as_signed()
    for stage, low in enumerate((4, 2, 0)):
        shifted = Signal(value.shape(), name=f"{name}_{stage}", reset_less=True)
        m.d.sync += shifted.eq(value >> Cat(Const(0, low), amount[low : low + 2]))
        amount = carried(m, amount[:low], 1, f"{name}_amount_{stage}") if low else amount
        value = shifted
    return value


def halves(m: Module, value: Value, amount: Value, name: str) -> Value:
    """``floor(2 * value / 2**amount)`` in 3 cycles: bit 0 is what rounding half up adds to the rest.

    That is ``rs(value, amount)`` for any amount, 0 included, without a decoder for its half.
    """
    return floor_shift(m, Cat(Const(0, 1), value), amount, name)


def saturated(value: Value, bits: int) -> Value:
    """Signed ``value`` clipped to ``bits`` bits; combinational."""
    if len(value) <= bits:
        return value
    over = value[bits - 1 : -1] != value[-1].replicate(len(value) - bits)
    limit = Cat((~value[-1]).replicate(bits - 1), value[-1])
    return Mux(over, limit, value[:bits]).as_signed()


def settled(value: Value, after: Value, bits: int) -> Value:
    """``sat(rs + after)`` of :func:`halves`, where ``after`` has ``bits`` bits; combinational.

    Clipped to twice the codes first, which no sum with ``after`` tells from the value itself: the adder
    is as narrow as a code.
    """
    near = saturated(value, bits + 2)
    return saturated((near >> 1) + near[0] + after, bits)

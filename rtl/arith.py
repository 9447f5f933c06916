# SPDX-License-Identifier: Apache-2.0
"""Pipelined arithmetic shared by the row units; every helper states its latency in cycles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, unsigned
from amaranth.lib.memory import Memory

from rtl.row import delayed

__all__ = [
    "carried",
    "floor_shift",
    "halves",
    "look_up",
    "normalise",
    "one_of_four",
    "product",
    "saturated",
    "settled",
    "shift_right",
    "squares",
]

CHUNK = 17
"""Unsigned bits of one multiplier port: 18 with sign, on Xilinx and on Lattice devices."""


def look_up(table: Sequence[int], index: Value, width: int) -> Value:
    """``table[index]`` as constants of ``width`` bits; combinational."""
    return Array(Const(entry, width) for entry in table)[index]


def one_of_four(choices: Sequence[Value], digit: Value) -> Value:
    """``choices[digit]`` of up to four; combinational, one LUT of six inputs a bit.

    The outer ones are paired, and the inner ones: in a shifter, pairs of neighbours would be the same
    for several bits, and synthesis would share their multiplexers at the cost of a LUT more every other bit.
    """
    a, b, c, d = (*choices, *[choices[-1]] * 3)[:4]
    digit = Cat(digit, Const(0, 2))
    return Mux(digit[0] ^ digit[1], Mux(digit[0], b, c), Mux(digit[0], d, a))


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
            part = Signal(value.shape(), name=f"{name}_part_{low}_{high}", reset_less=True)
            m.d.sync += part.eq(value)
            parts.append(part << low + high)
    value = sum(parts[1:], start=parts[0])
    result = Signal(value.shape(), name=name, reset_less=True)
    m.d.sync += result.eq(value)
    return result


def squares(m: Module, values: Sequence[Value], name: str) -> list[Signal]:
    """The square of each signed value, in 3 cycles: up to 9 bits from a table, wider ones multiplied.

    The table is a block RAM; it has two ports, so two values share one. It may be far away: there is a
    register on either side of it.
    """
    results = []
    for lane, value in enumerate(carried(m, each, 1, f"{name}_of_{n}") for n, each in enumerate(values)):
        width, half = len(value), 1 << (len(value) - 1)
        if width > 9:
            found = Signal(2 * width - 1, name=f"{name}_raw_{lane}", reset_less=True)
            m.d.sync += found.eq(value * value)
        else:
            if lane % 2 == 0:
                entries = [(x - 2 * half if x >= half else x) ** 2 for x in range(2 * half)]
                attrs = {"rom_style": "block", "ram_style": "block"}
                shape = unsigned(2 * width - 1)
                memory = Memory(shape=shape, depth=2 * half, init=entries, attrs=attrs)
                m.submodules[f"{name}_table_{lane // 2}"] = memory
            reader = memory.read_port()
            m.d.comb += reader.addr.eq(value)
            found = reader.data
        result = Signal(2 * width - 1, name=f"{name}_{lane}", reset_less=True)
        m.d.sync += result.eq(found)
        results.append(result)
    return results


def normalise(m: Module, value: Value, keep: int, name: str) -> tuple[Value, Value]:
    """The ``keep`` bits from the leading one of ``value`` on, and its leading zeros, in 3 cycles.

    ``value`` must not be 0; zeros fill in behind its last bit. By 16s, 4s and 1s: the count of each cycle
    is a digit of the zeros, and shifts as a number, which is one LUT of six inputs a bit.
    """
    steps = ((16, -(-len(value) // 16)), (4, 4), (1, 4))  # (bits, choices) of each cycle's shift
    digits: list[Value] = []
    for stage, (bits, choices) in enumerate(steps):
        # Bits still needed: those kept, and what the later stages may still shift out.
        width = keep + sum(later * (count - 1) for later, count in steps[stage + 1 :])
        total = len(value)
        count: Value = Const(choices - 1, 2)
        for choice in reversed(range(choices - 1)):
            ones = value[max(total - (choice + 1) * bits, 0) : total - choice * bits]
            count = Mux(ones.any(), choice, count)
        digit = Signal(2, name=f"{name}_count_{stage}")
        m.d.comb += digit.eq(count)
        padded = Cat(Const(0, max(width - total, 0)), value)
        moved = [(padded << choice * bits)[: len(padded)][-width:] for choice in range(choices)]
        shifted = Signal(width, name=f"{name}_{stage}", reset_less=True)
        m.d.sync += shifted.eq(one_of_four(moved, digit))
        digits = [delayed(m, before, 1, f"{name}_before_{stage}") for before in [*digits, digit]]
        value = shifted
    return value, Cat(*reversed(digits))


def shift_right(m: Module, value: Value, amount: Value, keep: int, name: str) -> Value:
    """The low ``keep`` bits of ``value >> amount`` (arithmetic), signed, in 3 cycles.

    Coarse first: 16s, 4s, 1s, each a multiplexer of up to four inputs.
    """
    for stage, low in enumerate((4, 2, 0)):
        digit = amount[low : low + 2]
        # What the later stages may still shift in from above the bits kept.
        need = min(keep + (1 << low) - 1, len(value))
        shifted = Signal(need, name=f"{name}_{stage}", reset_less=True)
        moved = [(value.as_signed() >> (choice << low))[:need] for choice in range(4)]
        m.d.sync += shifted.eq(one_of_four(moved, digit))
        amount = carried(m, amount[:low], 1, f"{name}_amount_{stage}") if low else amount
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

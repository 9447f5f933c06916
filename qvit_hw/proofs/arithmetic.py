# amaranth: UnusedElaboratable=no
# SPDX-License-Identifier: Apache-2.0
"""Arithmetic: lanes of the units and the blocks that they share compute what golden computes, for all inputs.

Registers are part of what is proven: each input enters in one cycle, whatever comes before and after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
from amaranth.hdl import Module, Shape, Value, signed, unsigned

import golden.attention
import golden.gelu
import golden.requant
import golden.residual
import rtl.arith
import rtl.attention
import rtl.requant
from golden.bounds import Interval
from golden.fixedpoint import rounding_shift, saturate
from golden.requant import MULTIPLIER, SHIFT, RequantSpec, requantise_trace
from golden.residual import ResidualSpec, residual_trace
from qvit_hw.proofs.case import Case, Claim, bench, decide
from qvit_hw.proofs.circuit import Circuit
from qvit_hw.proofs.property import Counterexample, Property
from qvit_hw.proofs.symbolic import Row
from rtl.gelu import GeluTable
from rtl.residual import PtfResidual

__all__ = ["claim", "packed", "params", "properties"]

ALL = "all inputs"
PORTS = (27, 18)
"""Wider ports of the targets' multipliers."""


def properties() -> list[Property]:
    """Every claim of this module."""
    return [*_shared(), *_requant(), *_residual(), *_gelu(), *_attention()]


def claim(unit: str, name: str, text: str, ask: Callable[..., Sequence[Claim]], *given: Any) -> Property:
    """A property that the solver decides: ``ask(*given, case)`` makes its claims."""
    check = partial(_decided, partial(ask, *given), f"{unit}, {name}")
    return Property(unit, name, "arithmetic", text, ALL, check)


def _decided(ask: Callable[[Case], Sequence[Claim]], what: str) -> Counterexample | None:
    return decide(ask, what)


# ------------------------------------------------------------------------------------------- shared


def _shared() -> Iterator[Property]:
    widths = {(s.bounds["product"].bits, s.out_bits) for s in golden.requant.SPEC_GRID}
    widths |= {(s.bounds["total"].bits, s.out_bits) for s in golden.residual.SPEC_GRID}
    for width, bits in sorted(widths):
        yield claim(
            "arith",
            f"rounding shift and saturation, {width} to {bits} bits",
            "halves and settled are sat(rs(x, n) + z)",
            rounding,
            width,
            bits,
        )
    for width, bits in ((9, 8), (12, 4), (30, 16)):
        yield claim(
            "arith",
            f"saturation, {width} to {bits} bits",
            "saturated is golden's saturate",
            saturation,
            width,
            bits,
        )
    for a, b in ((signed(12), signed(21)), (signed(32), unsigned(24)), (unsigned(14), signed(40))):
        for port in PORTS:
            yield claim(
                "arith",
                f"product, {_told(a)} by {_told(b)}, port of {port} bits",
                "the pieces of a product add up to it",
                product,
                a,
                b,
                port,
            )
    for width in (5, 9, 17):
        yield claim(
            "arith",
            f"squares, {width} bits",
            "the squares of two values, which share a table or have multipliers, are x * x",
            squares,
            width,
        )
    for value, amount, keep in ((41, 6, 21), (20, 4, 20), (60, 6, 23)):
        yield claim(
            "arith",
            f"shift right, {value} bits, {keep} kept",
            "the shift in stages keeps the low bits of x >> n",
            shifting,
            value,
            amount,
            keep,
        )


def _told(shape: Shape) -> str:
    return f"{'s' if shape.signed else 'u'}{shape.width}"


def rounding(width: int, bits: int, case: Case) -> list[Claim]:
    """:func:`rtl.arith.halves` and :func:`rtl.arith.settled`."""

    def build(m: Module, x: Value, n: Value, z: Value) -> Mapping[str, Value]:
        return {"code": rtl.arith.settled(rtl.arith.halves(m, x, n, "moved"), z, bits)}

    shapes = {"x": signed(width), "n": unsigned(6), "z": signed(bits)}
    x, z = (case.input(name, Interval.of_bits(n, signed=True)) for name, n in (("x", width), ("z", bits)))
    n = case.input("n", SHIFT)
    inputs = {"x": [(0, x)], "n": [(0, n)], "z": [(3, z)]}
    found = case.run(bench(shapes, build), inputs, {"code": (3, True)})
    moved = case.golden(rounding_shift)(x, n)
    return [Claim("code", found["code"], case.golden(saturate)(moved + z, bits))]


def saturation(width: int, bits: int, case: Case) -> list[Claim]:
    """:func:`rtl.arith.saturated`."""
    circuit = bench({"x": signed(width)}, lambda m, x: {"y": rtl.arith.saturated(x, bits)})
    x = case.input("x", Interval.of_bits(width, signed=True))
    found = case.run(circuit, {"x": [(0, x)]}, {"y": (0, True)})
    return [Claim("y", found["y"], case.golden(saturate)(x, bits))]


def product(a: Shape, b: Shape, port_bits: int, case: Case) -> list[Claim]:
    """:func:`rtl.arith.product`."""

    def build(m: Module, x: Value, y: Value) -> Mapping[str, Value]:
        return {"product": rtl.arith.product(m, x, y, "p", port_bits=port_bits)}

    x = case.input("x", Interval.of_bits(a.width, signed=a.signed))
    y = case.input("y", Interval.of_bits(b.width, signed=b.signed))
    circuit = bench({"x": a, "y": b}, build)
    found = case.run(circuit, {"x": [(0, x)], "y": [(0, y)]}, {"product": (2, a.signed or b.signed)})
    return [Claim("product", found["product"], x * y)]


def squares(width: int, case: Case) -> list[Claim]:
    """:func:`rtl.arith.squares`; what is squared are differences of codes, never the lowest value."""

    def build(m: Module, x: Value, y: Value) -> Mapping[str, Value]:
        found = rtl.arith.squares(m, [x, y], "square")
        return {"x_squared": found[0], "y_squared": found[1]}

    circuit = bench({"x": signed(width), "y": signed(width)}, build)
    case.multiply()  # a table, or one multiplier on either side
    half = 1 << (width - 1)
    legal = Interval(1 - half, half - 1)
    given = {name: case.input(name, legal) for name in "xy"}
    outputs = {f"{name}_squared": (3, False) for name in given}
    found = case.run(circuit, {name: [(0, x)] for name, x in given.items()}, outputs)
    table = [(n - half) ** 2 for n in range(2 * half)] if width <= 9 else []
    claims = []
    for name, x in given.items():
        wanted = case.symbols.read(table, x + half) if table else x * x
        claims.append(Claim(f"{name} * {name}", found[f"{name}_squared"], wanted))
    return claims


def shifting(width: int, amount: int, keep: int, case: Case) -> list[Claim]:
    """:func:`rtl.arith.shift_right`, of values whose result fits."""

    def build(m: Module, x: Value, n: Value) -> Mapping[str, Value]:
        return {"y": rtl.arith.shift_right(m, x, n, keep, "moved")}

    x = case.input("x", Interval.of_bits(width, signed=True))
    n = case.input("n", Interval(0, min((1 << amount) - 1, width - 1)))
    circuit = bench({"x": signed(width), "n": unsigned(amount)}, build)
    found = case.run(circuit, {"x": [(0, x)], "n": [(0, n)]}, {"y": (3, True)})
    low = case.symbols.of(case.symbols.wide(x >> n, keep), signed=True)
    return [Claim("y", found["y"], low)]


# --------------------------------------------------------------------------------- the units' lanes


def _requant() -> Iterator[Property]:
    for spec in golden.requant.SPEC_GRID:
        for port in PORTS:
            yield claim(
                "requant",
                f"lane, {spec.acc_bits} to {spec.out_bits} bits, port of {port} bits",
                "a lane is sat(rs(acc * M, N) + z)",
                requant_lane,
                spec,
                port,
            )


def requant_lane(spec: RequantSpec, port_bits: int, case: Case) -> list[Claim]:
    """:func:`rtl.requant.requantised`."""

    def build(m: Module, acc: Value, m_: Value, n: Value, z: Value) -> Mapping[str, Value]:
        factors = {"multiplier": m_, "shift": n, "zero_point": z}
        return {"code": rtl.requant.requantised(m, acc, spec, 0, port_bits, **factors)}

    shapes = {
        "acc": signed(spec.acc_bits),
        "m_": unsigned(MULTIPLIER.bits),
        "n": unsigned(SHIFT.bits),
        "z": signed(spec.out_bits),
    }
    legal = {"acc": spec.bounds["acc"], "m_": MULTIPLIER, "n": SHIFT, "z": spec.bounds["code"]}
    given = {name: case.input(name, interval) for name, interval in legal.items()}
    when = {"acc": 0, "m_": 0, "n": 0, "z": 6}
    inputs = {name: [(when[name], symbol)] for name, symbol in given.items()}
    found = case.run(bench(shapes, build), inputs, {"code": (7, True)})
    given_params = params(multiplier=given["m_"], shift=given["n"], zero_point=given["z"])
    trace = case.golden(requantise_trace)(given["acc"], spec, given_params)
    return [Claim("code", found["code"], trace.code)]


def params(**fields: Any) -> Any:
    """Parameters of golden that are symbols: whatever the specs admit is legal already."""
    return SimpleNamespace(check=lambda _: None, **fields)


def _residual() -> Iterator[Property]:
    for spec in golden.residual.SPEC_GRID:
        for port in PORTS:
            yield claim(
                "residual",
                f"lane, {spec.in_bits} and {spec.acc_bits} to {spec.out_bits} bits, "
                f"shifts to {spec.max_shift}, port of {port} bits",
                "a lane is sat(rs(((q - z) << a) * M1 + acc * M2, N + b) + z')",
                residual_lane,
                spec,
                port,
            )


def residual_lane(spec: ResidualSpec, port_bits: int, case: Case) -> list[Claim]:
    """:meth:`rtl.residual.PtfResidual._codes` of one lane."""
    unit = PtfResidual(spec, lanes=1, port_bits=port_bits)
    shapes = {parameter.name: parameter.shape for parameter in unit.parameters}
    cycles: dict[str, int] = {"acc": 0, "code": 0}

    class Inputs:
        """Parameters as inputs, each in the cycle in which the lane takes it."""

        def __init__(self, signals: Mapping[str, Value]) -> None:
            self.signals = signals

        def per_channel(self, name: str) -> list[Value]:
            cycles[name] = 2
            return [self.signals[name]]

        def scalar(self, name: str, stage: int) -> Value:
            cycles[name] = stage
            return self.signals[name]

    def build(m: Module, **signals: Value) -> Mapping[str, Value]:
        pair = unit.i.payload.pair[0]
        m.d.comb += [pair.acc.eq(signals["acc"]), pair.code.eq(signals["code"])]
        return {"y": unit._codes(m, Inputs(signals))[0]}  # type: ignore[arg-type]

    del shapes["commit"]
    wide = {"acc": signed(spec.acc_bits), "code": signed(spec.in_bits), **shapes}
    circuit = bench(wide, build)
    bounds, code = spec.bounds, Interval.of_bits(spec.in_bits, signed=True)
    legal = {
        "acc": bounds["acc"],
        "code": code,
        "in_zero_point": code,
        "zero_point": bounds["code"],
        "gain": bounds["gain"],
        "shift": bounds["shift"],
        "multiplier": bounds["multiplier"],
        "in_shift": Interval(0, spec.max_shift),
        "out_shift": Interval(0, spec.max_shift),
    }
    given = {name: case.input(name, interval) for name, interval in legal.items()}
    inputs = {name: [(cycles[name], symbol)] for name, symbol in given.items()}
    found = case.run(circuit, inputs, {"y": (10, True)})
    names = ("in_zero_point", "in_shift", "gain", "multiplier", "shift", "out_shift", "zero_point")
    given_params = params(channels=1, **{name: given[name] for name in names})
    trace = case.golden(residual_trace)(Row.of([given["code"]]), Row.of([given["acc"]]), spec, given_params)
    return [Claim("code", found["y"], trace.code[0])]


def _gelu() -> Iterator[Property]:
    for spec in (golden.gelu.GeluSpec(), golden.gelu.GeluSpec(in_bits=10)):
        yield claim(
            "gelu",
            f"address path, {spec.in_bits} bits",
            "a code reads what was last written to its entry, of any two entries",
            gelu_address,
            spec,
        )


def gelu_address(spec: golden.gelu.GeluSpec, case: Case) -> list[Claim]:
    """The whole unit: two words written, committed, and a code that reads one of them."""
    unit = GeluTable(spec, lanes=1)
    first, second = (case.input(f"entry_{n}", Interval(0, spec.entries - 1)) for n in "ab")
    values = [case.input(f"value_{n}", spec.bounds["code"]) for n in "ab"]
    code, symbols = case.input("code", spec.bounds["input"]), case.symbols
    place = code & (spec.entries - 1)
    hits = [symbols.compare("eq", place, entry) for entry in (first, second)]
    case.assumed.append(case.logic.some(hits))
    base, commit = golden.gelu.TABLE["table"], golden.gelu.WORD["commit"]

    def word(address: Any, value: Any) -> Any:
        data = symbols.of(symbols.wide(symbols.number(value), 32), signed=False)
        return symbols.number(address) + (data << 14)

    writes = [word(first + base, values[0]), word(second + base, values[1]), word(commit, 0)]
    one, idle = symbols.number(1), symbols.number(0)
    beat = packed(case, [(code, spec.in_bits), (1, 1), (1, 1)])
    inputs = {
        "params__valid": [*((n, one) for n in range(3)), (3, idle), (4, idle)],
        "params__payload": list(enumerate(writes)),
        "i__valid": [*((n, idle) for n in range(4)), (4, one)],
        "i__payload": [(4, beat)],
    }
    out = 4 + unit.pipeline.drain
    circuit = Circuit.of(unit)
    found = case.run(circuit, inputs, {"o__valid": (out, False), "o__payload": (out, False)}, reset=True)
    wanted = symbols.choose(hits[1], values[1], values[0])
    got = symbols.of(symbols.wide(found["o__payload"], spec.out_bits), signed=True)
    return [Claim("valid", found["o__valid"], one), Claim("code", got, wanted)]


def packed(case: Case, fields: Sequence[tuple[Any, int]]) -> Any:
    """Fields as the payload of a stream has them, the first in the lowest bits."""
    bits = None
    for value, width in fields:
        part = case.symbols.wide(case.symbols.number(value), width)
        bits = part if bits is None else case.logic.concat(part, bits)
    assert bits is not None
    return case.symbols.of(bits, signed=False)


def _attention() -> Iterator[Property]:
    for spec in golden.attention.ATTEND_GRID[:2]:
        yield claim(
            "attention",
            f"term, base {spec.softmax.base}, codes of {spec.softmax.code_bits} bits",
            "a code and a v make golden's accumulator of a row of one",
            attention_term,
            spec,
        )


def attention_term(spec: golden.attention.AttendSpec, case: Case) -> list[Claim]:
    """:meth:`rtl.attention.ShiftAttend._accumulators` on the first code of a row, exhaustive in golden."""
    unit = rtl.attention.ShiftAttend(replace(spec, codes="any"), lanes=1)
    codes, value = unit.spec.softmax.last_code + 1, spec.bounds["value"]

    def build(m: Module, code: Value, v: Value, opening: Value, taken: Value) -> Mapping[str, Value]:
        m.d.comb += unit.i.payload.code.eq(code)
        accs, when = unit._accumulators(m, [v], taken, opening)
        assert when == cycle
        return {"acc": accs[0]}

    cycle = 5 if spec.per_octave == 1 else 8
    shapes = {
        "code": unsigned(spec.softmax.code_bits),
        "v": signed(spec.value_bits),
        "opening": unsigned(1),
        "taken": unsigned(1),
    }
    code, v = case.input("code", Interval(0, codes - 1)), case.input("v", value)
    one = case.symbols.number(1)
    inputs = {"code": [(0, code)], "v": [(2, v)], "opening": [(0, one)], "taken": [(0, one)]}
    found = case.run(bench(shapes, build), inputs, {"acc": (cycle, True)})
    table = _attended(unit.spec)
    place = (code << spec.value_bits) + (v - value.low)
    return [Claim("acc", found["acc"], case.symbols.read(table, place))]


def _attended(spec: golden.attention.AttendSpec) -> list[int]:
    """Golden's accumulators of rows of one code, by code and v."""
    value = spec.bounds["value"]
    v = np.arange(value.low, value.high + 1)
    params = golden.requant.RequantParams(
        multiplier=np.array([MULTIPLIER.low]), shift=np.array([0]), zero_point=0
    )
    found = []
    for code in range(spec.softmax.last_code + 1):
        rows = np.full((v.size, 1, 1, 1), code, np.uint8)
        trace = golden.attention.attend_trace(rows, v[:, None, None, None], spec, params)
        found += trace.acc.reshape(-1).tolist()
    return found

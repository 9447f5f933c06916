# amaranth: UnusedElaboratable=no
# SPDX-License-Identifier: Apache-2.0
"""The accelerator's array and drain: a multiplier's two products, powers of two, and the lane behind them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from amaranth.hdl import Module, Value, signed, unsigned

from golden.accelerator import AcceleratorSpec
from golden.bounds import Interval
from golden.gelu import GeluSpec, gelu
from golden.layernorm import LayerNormSpec
from golden.program import Sink
from golden.residual import ResidualSpec, residual_trace
from golden.softmax import SoftmaxSpec
from qvit_hw.proofs.arithmetic import PORTS, claim, packed, params
from qvit_hw.proofs.case import Case, Claim, bench
from qvit_hw.proofs.circuit import Circuit
from qvit_hw.proofs.property import Property
from qvit_hw.proofs.symbolic import Row
from rtl.drain import Y_BITS, Drain, block_layout
from rtl.matrix import MatrixEngine

__all__ = ["properties"]

OPERAND_BITS = {27: 11, 18: 17}
"""Bits of an operand without its sign, by the wider port of a multiplier."""
LATENCY = 15
"""Cycles from sums to a result of the drain."""
SPECS = {
    "base 2": AcceleratorSpec(size=4),
    "base sqrt2, 5 bits": AcceleratorSpec(size=4, softmax=SoftmaxSpec(base="sqrt2", code_bits=5)),
}
WIDE = AcceleratorSpec(size=4, stream_bits=16, gelu_bits=10, layernorm=LayerNormSpec(in_bits=16))
"""With the widest stream, and the table of most codes."""
Inputs = dict[str, list[tuple[int | None, Any]]]


def properties() -> list[Property]:
    """Every claim of this module."""
    return [*_array(), *_drain()]


def _array() -> Iterator[Property]:
    for name, spec in SPECS.items():
        for port in PORTS:
            yield claim(
                "matrix",
                f"operand, {name}, port of {port} bits",
                "a code or power of two is the operand, moved left by what is done behind the multiplier",
                operand,
                spec,
                port,
            )
            yield claim(
                "matrix",
                f"products, {name}, port of {port} bits",
                "a multiplier's products of an operand with the weights of two columns are exact",
                products,
                spec,
                port,
            )


def operand(spec: AcceleratorSpec, port_bits: int, case: Case) -> list[Claim]:
    """:meth:`rtl.matrix.MatrixEngine._operands` of a word from the source memory."""
    places: list[int] = []

    def build(m: Module, word: Value) -> Mapping[str, Value]:
        engine = MatrixEngine(spec, port_bits=port_bits)
        m.d.comb += engine.read.word[0].eq(word)
        kept, shifts = engine._operands(m)[0]
        places.extend(place for place, _ in shifts)
        return {"operand": kept, **{f"far_{place}": flag for place, flag in shifts}}

    symbols, top = case.symbols, spec.attend.top
    byte = Interval.of_bits(8, signed=True)
    word = case.input("word", Interval(byte.low, 1 << top))
    powers = [symbols.compare("eq", word, 1 << place) for place in range(top + 1)]
    case.assumed.append(case.logic.some([symbols.compare("slte", word, byte.high), *powers]))
    circuit = bench({"word": signed(spec.operand_bits)}, build)
    outputs = {"operand": (2, True), **{f"far_{place}": (3, False) for place in places}}
    found = case.run(circuit, {"word": [(0, word)]}, outputs)
    moved: Any = found["operand"]
    for place in places:
        far = case.logic.slice(found[f"far_{place}"].bits, 0, 0)
        moved = symbols.choose(far, found["operand"] << place, moved)
    return [Claim("word", moved, word)]


def products(spec: AcceleratorSpec, port_bits: int, case: Case) -> list[Claim]:
    """:meth:`rtl.matrix.MatrixEngine._products`: weights become the working tile, then an operand comes."""
    step = OPERAND_BITS[port_bits]
    far_places = list(range(step, spec.operand_bits - 1, step))

    def build(m: Module, x: Value, w0: Value, w1: Value, copy: Value, **far: Value) -> Mapping[str, Value]:
        engine = MatrixEngine(spec, port_bits=port_bits)
        shifts = [(place, far[f"far_{place}"]) for place in far_places]
        found = engine._products(m, [(x, shifts)], [[w0], [w1]], copy)
        return {"p0": found[0][0], "p1": found[1][0]}

    shapes = {"x": signed(step + 1), "w0": signed(8), "w1": signed(8), "copy": unsigned(1)}
    shapes |= {f"far_{place}": unsigned(1) for place in far_places}
    symbols, one, idle = case.symbols, case.symbols.number(1), case.symbols.number(0)
    w0, w1 = (case.input(name, Interval.of_bits(8, signed=True)) for name in ("w0", "w1"))
    largest = min(step - 1, spec.attend.top)
    x = case.input("x", Interval(-128, 1 << largest))
    # A flag goes with a power of two that was moved down; the last place that has one counts.
    flags = {f"far_{place}": case.input(f"far_{place}", Interval(0, 1)) for place in far_places}
    code = case.logic.every(
        [symbols.compare("slte", x, 127), *(symbols.compare("eq", flag, 0) for flag in flags.values())]
    )
    powers = []
    for place in range(largest + 1):
        high = [flags[f"far_{far}"] for far in far_places if far + place > spec.attend.top]
        kept = [symbols.compare("eq", flag, 0) for flag in high]
        powers.append(case.logic.every([symbols.compare("eq", x, 1 << place), *kept]))
    case.assumed.append(case.logic.some([code, *powers]))
    inputs = {
        "x": [(1, x)],
        "w0": [(0, w0)],
        "w1": [(0, w1)],
        "copy": [(0, one), (1, idle)],
        **{name: [(2, flag)] for name, flag in flags.items()},
    }
    if port_bits == PORTS[0]:
        case.distributed([(w0, 0), (w1, 18)], x)
    found = case.run(bench(shapes, build), inputs, {"p0": (2, True), "p1": (2, True)})
    claims = []
    for name, weight in (("p0", w0), ("p1", w1)):
        wanted = weight * x
        for place in range(largest + 1):  # the solver knows nothing of products: x is a power of two
            known = symbols.compare("eq", wanted, weight << place)
            case.assumed.append(case.logic.some([symbols.compare("neq", x, 1 << place), known]))
        for place, flag in zip(far_places, flags.values(), strict=True):
            wanted = symbols.choose(case.logic.slice(flag.bits, 0, 0), (weight * x) << place, wanted)
        claims.append(Claim(name, found[name], wanted))
    return claims


def _drain() -> Iterator[Property]:
    narrow = SPECS["base 2"]
    for spec, clamp, sink, told in (
        (narrow, 8, Sink.STREAM, "stream"),
        (narrow, 8, Sink.FEATURES, "features"),
        (narrow, 16, Sink.FEATURES, "features"),
        (WIDE, 16, Sink.STREAM, "stream of 16 bits"),
    ):
        for port in PORTS:
            yield claim(
                "drain",
                f"lane to {told}, {clamp} bits, port of {port} bits",
                "a lane is golden's residual of its sum with bias, and of the stream where it goes there",
                drain_lane,
                spec,
                clamp,
                sink,
                port,
            )
    for spec in (narrow, WIDE):
        yield claim(
            "drain",
            f"GELU of codes of {spec.gelu_bits} bits",
            "behind any two writes of the table a lane is its entry of golden's code, whatever else it has",
            drain_gelu,
            spec,
        )


def drain_lane(spec: AcceleratorSpec, clamp: int, sink: Sink, port_bits: int, case: Case) -> list[Claim]:
    """Lane 0 of :class:`rtl.drain.Drain`, from any state with its parameters in their registers."""
    y, code = _drained(spec, clamp, sink, port_bits, case, {})
    return [Claim("y", y, code)]


def drain_gelu(spec: AcceleratorSpec, case: Case) -> list[Claim]:
    """The same where its code reads what was written to the table in the two cycles before."""
    table = GeluSpec(in_bits=spec.gelu_bits)
    entries = [case.input(f"entry_{n}", Interval(0, table.entries - 1)) for n in "ab"]
    values = [case.input(f"value_{n}", table.bounds["code"]) for n in "ab"]
    symbols, one, idle = case.symbols, case.symbols.number(1), case.symbols.number(0)
    words = [packed(case, [(a, 14), (v, 32)]) for a, v in zip(entries, values, strict=True)]
    writes: Inputs = {
        "table__valid": [(0, one), (1, one), (None, idle)],
        "table__payload": list(enumerate(words)),
    }
    y, code = _drained(spec, spec.gelu_bits, Sink.FEATURES, PORTS[0], case, writes)

    def take(place: Any, mode: str) -> Any:
        hits = [symbols.compare("eq", place, entry) for entry in entries]
        case.assumed.append(case.logic.some(hits))
        return symbols.choose(hits[1], values[1], values[0])

    own = SimpleNamespace(once=lambda *_: SimpleNamespace(take=take))
    return [Claim("y", y, case.golden(gelu)(code, table, own))]


def _drained(
    spec: AcceleratorSpec, clamp: int, sink: Sink, port_bits: int, case: Case, writes: Inputs
) -> tuple[Any, Any]:
    """Lane 0's result, and golden's code; with writes of the table in the cycles before, its GELU."""
    unit, start, bits = Drain(spec, port_bits=port_bits), len(writes), spec.stream_bits
    like = ResidualSpec(
        in_bits=bits, out_bits=clamp, acc_bits=32, gain_bits=32, multiplier_bits=24, max_shift=7
    )
    stream = Interval.of_bits(bits, signed=True)
    legal = {
        "acc": like.bounds["acc"],
        "bias": Interval.of_bits(32, signed=True),
        "stream": stream,
        "zero_in": stream,
        "align": Interval(0, 7),
        "gain": like.bounds["gain"],
        "multiplier": like.bounds["multiplier"],
        "shift": Interval(0, 61),
        "zero_out": like.bounds["code"],
    }
    given = {name: case.input(name, interval) for name, interval in legal.items()}
    symbols = case.symbols
    total = symbols.of(symbols.wide(given["acc"] - given["bias"], 32), signed=True)
    fields: dict[str, Any] = {
        "sink": int(sink),
        "gain": given["gain"],
        "clamp": clamp,
        "zero_in": given["zero_in"],
        "zero_out": given["zero_out"],
        "gelu": int(bool(writes)),
    }
    layout = [(name, field.width) for name, field in block_layout(spec)]
    working = packed(case, [(fields.get(name, 0), width) for name, width in layout])
    registers = {
        f"{name}_0": (start, given[name]) for name in ("bias", "multiplier", "shift", "align")
    } | {"working": (start, working)}
    idle = symbols.number(0)
    inputs: Inputs = {
        **writes,
        "sums__first": [(None, idle)],
        "sums__valid": [(None, symbols.number(1))],
        "sums__acc": [(start, packed(case, [(total, 32), (0, 96)]))],
        "stream__word": [(start + 2, packed(case, [(given["stream"], bits), (0, 3 * bits)]))],
    }
    circuit = Circuit.of(unit)
    seen = case.run_all(circuit, inputs, start + LATENCY + 1, registers=registers, reset=False)[-1]
    y = symbols.of(case.logic.slice(seen["result__y"], Y_BITS - 1, 0), signed=True)
    adds = sink == Sink.STREAM
    own = params(
        channels=1,
        in_zero_point=given["zero_in"] if adds else 0,
        in_shift=given["align"],
        gain=given["gain"] if adds else 0,
        multiplier=given["multiplier"],
        shift=given["shift"],
        out_shift=symbols.number(0),
        zero_point=given["zero_out"],
    )
    trace = case.golden(residual_trace)(Row.of([given["stream"]]), Row.of([given["acc"]]), like, own)
    return y, trace.code[0]

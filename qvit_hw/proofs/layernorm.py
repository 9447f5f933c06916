# amaranth: UnusedElaboratable=no
# SPDX-License-Identifier: Apache-2.0
"""LayerNorm: from the sums of a row to its factors, and from an element to its code.

The unit is cut at named registers: what one of them holds is a symbol of golden's. What comes before the sums
is proven by :mod:`qvit_hw.proofs.accumulators`.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import golden.layernorm
from golden.bounds import Interval
from golden.fixedpoint import rounding_shift, saturate
from golden.layernorm import RSQRT_BITS, LayerNormSpec
from qvit_hw.proofs.arithmetic import PORTS, claim, packed
from qvit_hw.proofs.case import Case, Claim
from qvit_hw.proofs.circuit import Circuit
from qvit_hw.proofs.property import Property
from rtl.layernorm import PtfLayerNorm

__all__ = ["properties"]

VARIANCE, RSQRT, FACTORS, LANE = 4, 6, 3, 11
"""Cycles: from sums to D, D to R and its shift, these to the row's factors, an element to its code."""


def properties() -> list[Property]:
    """Every claim of this module."""
    found: list[Property] = []
    for spec in golden.layernorm.SPEC_GRID:
        called = (
            f"codes {spec.in_bits} to {spec.out_bits}, {spec.max_channels} channels, "
            f"{spec.affine}, {1 << spec.table_bits} segments"
        )
        found += _lanes(spec, called)
        if replace(spec, affine="dyadic") in golden.layernorm.SPEC_GRID and spec.affine == "shift":
            continue  # the statistics are those of the other one
        found.append(
            claim(
                "layernorm",
                f"reciprocal root, {called}",
                "leading one, table and chord are golden's R and shift for every variance and point",
                root,
                spec,
            )
        )
        found += _statistics(spec, called)
    return found


def _lanes(spec: LayerNormSpec, called: str) -> Iterator[Property]:
    for port in PORTS:
        yield claim(
            "layernorm",
            f"lane, {called}, port of {port} bits",
            "(X * CR - SR) >> n, gain, offset, rounding and saturation are golden's code",
            lane,
            spec,
            port,
        )


def _statistics(spec: LayerNormSpec, called: str) -> Iterator[Property]:
    for port in PORTS:
        yield claim(
            "layernorm",
            f"variance, {called}, port of {port} bits",
            "D = C * Q - S * S + E, of all sums that give one in golden's interval",
            variance,
            spec,
            port,
        )
        yield claim(
            "layernorm",
            f"factors, {called}, port of {port} bits",
            "CR = C * R and SR = S * R, less 2**(n-1) where SR rounds",
            factors,
            spec,
            port,
        )


def _circuit(spec: LayerNormSpec, port_bits: int, *watch: str) -> Circuit:
    return Circuit.of(PtfLayerNorm(spec, lanes=1, port_bits=port_bits), watch=watch)


def _both(name: str, symbol: Any) -> dict[str, tuple[int | None, Any]]:
    """A parameter in both banks, in every cycle."""
    return {f"{name}_{bank}": (None, symbol) for bank in range(2)}


def variance(spec: LayerNormSpec, port_bits: int, case: Case) -> list[Claim]:
    """From S, Q and C to D."""
    bounds = spec.bounds
    count = case.input("C", Interval(1, spec.max_channels))
    total, squares = case.input("S", bounds["total"]), case.input("Q", bounds["squares"])
    eps = case.input("E", Interval(1, (1 << spec.eps_bits) - 1))
    wanted = count * squares - total * total + eps
    case.assumed += [
        case.symbols.compare("sgte", wanted, bounds["variance"].low),
        case.symbols.compare("slte", wanted, bounds["variance"].high),
    ]
    circuit = _circuit(spec, port_bits, "probe_variance")
    registers = {
        "probe_squares": (0, squares),
        "count": (0, count),
        **_both("eps", eps),
    }
    # One register with two names, of which Yosys keeps either.
    kept = "probe_total" if "probe_total" in circuit.states.values() else "total_3"
    registers[kept] = (0, total)
    found = case.run(
        circuit,
        {},
        {"probe_variance": (VARIANCE, False)},
        registers=registers,
    )
    return [Claim("D", found["probe_variance"], wanted)]


def root(spec: LayerNormSpec, case: Case) -> list[Claim]:
    """From D to R and the shift behind it."""
    d = case.input("D", spec.bounds["variance"])
    point = case.input("point", Interval(0, spec.max_point))
    registers = {"probe_variance": (0, d), **_both("point", point)}
    outputs = {"probe_rsqrt": (RSQRT, False), "probe_rsqrt_shift": (RSQRT, False)}
    case.multiply()  # the chord: a slope of a few bits times its place in the segment
    found = case.run(_circuit(spec, PORTS[0], *outputs), {}, outputs, registers=registers)
    rsqrt, k = case.golden(golden.layernorm._rsqrt)(d, spec)
    shift = spec.variance_bits // 2 + RSQRT_BITS - 1 - k - point
    return [
        Claim("R", found["probe_rsqrt"], rsqrt),
        Claim("shift", found["probe_rsqrt_shift"], shift),
    ]


def factors(spec: LayerNormSpec, port_bits: int, case: Case) -> list[Claim]:
    """From R and its shift to the row's descriptor."""
    count = case.input("C", Interval(1, spec.max_channels))
    total, rsqrt = case.input("S", spec.bounds["total"]), case.input("R", spec.bounds["rsqrt"])
    most = spec.variance_bits // 2 + RSQRT_BITS - 1
    shift = case.input("n", Interval(1, most))
    registers = {
        "probe_rsqrt": (0, rsqrt),
        "probe_rsqrt_shift": (0, shift),
        "count_10": (0, count),
        "total_late_10": (0, total),
    }
    circuit = _circuit(spec, port_bits, "rows.row_in")
    found = case.run(circuit, {}, {"rows.row_in": (FACTORS, False)}, registers=registers)
    widths = _row(spec)
    got, low = {}, 0
    for name in ("factor", "origin", "shift"):
        bits = case.logic.slice(found["rows.row_in"].bits, low + widths[name] - 1, low)
        got[name] = case.symbols.of(bits, signed=name == "origin")
        low += widths[name]
    half = _half(case, spec, shift)
    return [
        Claim("CR", got["factor"], count * rsqrt),
        Claim("SR", got["origin"], total * rsqrt - half),
        Claim("n", got["shift"], shift),
    ]


def _row(spec: LayerNormSpec) -> dict[str, int]:
    """Widths of a row's descriptor, as the unit has them."""
    bounds, most = spec.bounds, spec.variance_bits // 2 + RSQRT_BITS - 1
    scaled = bounds["centered"] * bounds["rsqrt"] + Interval(-(1 << most), 0)
    return {
        "factor": spec.max_channels.bit_length() + RSQRT_BITS,
        "origin": (scaled | bounds["total"] * bounds["rsqrt"]).bits + 1,
        "shift": most.bit_length(),
        "bank": 1,
    }


def _half(case: Case, spec: LayerNormSpec, shift: Any) -> Any:
    """The half of the z-score's rounding, which SR has in it unless the last adder rounds."""
    one = case.symbols.number(1 if spec.affine == "dyadic" else 0)
    return (one << shift) >> 1


def lane(spec: LayerNormSpec, port_bits: int, case: Case) -> list[Claim]:
    """From X and the row's descriptor to the code."""
    bounds = spec.bounds
    x, total = case.input("X", bounds["x"]), case.input("S", bounds["total"])
    count, rsqrt = case.input("C", Interval(1, spec.max_channels)), case.input("R", bounds["rsqrt"])
    most = spec.variance_bits // 2 + RSQRT_BITS - 1
    shift = case.input("n", Interval(1, most))
    gain, offset = case.input("gain", spec.gain_range), case.input("offset", bounds["offset"])
    symbols = case.symbols
    half = _half(case, spec, shift)
    factor, origin = count * rsqrt, total * rsqrt - half
    centered = count * x - total
    product = centered * rsqrt
    case.identity(product, x * factor - total * rsqrt)
    legal = [symbols.compare("sgte", centered, bounds["centered"].low)]
    legal.append(symbols.compare("slte", centered, bounds["centered"].high))
    score = case.golden(rounding_shift)(product, shift)
    legal += [
        symbols.compare("sgte", score, bounds["score"].low),
        symbols.compare("slte", score, bounds["score"].high),
    ]
    case.assumed += legal
    score = symbols.exactly(score.bits, bounds["score"].low, bounds["score"].high)
    scaled = (score * gain if spec.affine == "dyadic" else score << gain) + offset
    code = case.golden(saturate)(case.golden(rounding_shift)(scaled, spec.output_shift), spec.out_bits)

    widths = _row(spec)
    fields = {"factor": factor, "origin": origin, "shift": shift, "bank": 0}
    row = packed(case, [(fields[name], width) for name, width in widths.items()])
    moved = offset + (1 << (spec.output_shift - 1))  # the rounding half is added in when it is written
    circuit = _circuit(spec, port_bits, "output.payload")
    offsets = fnmatch.filter(circuit.states.values(), "offset_entry_0*_2")  # of both banks, if there are two
    registers = {
        "row_1": (0, row),
        "beat_1": (0, packed(case, [(x, bounds["x"].bits), (1, 1)])),
        "gain_0_1": (None, gain),
        **dict.fromkeys(offsets, (None, moved)),
    }
    found = case.run(
        circuit,
        {},
        {"output.payload": (LANE, False)},
        registers=registers,
    )
    got = symbols.of(symbols.wide(found["output.payload"], spec.out_bits), signed=True)
    return [Claim("code", got, code)]

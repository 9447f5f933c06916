# amaranth: UnusedElaboratable=no
# SPDX-License-Identifier: Apache-2.0
"""Softmax: whole rows through the whole unit, and each of its functions for everything that may enter it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from amaranth.hdl import Module, Value, unsigned

import golden.softmax
from golden.bounds import Interval
from golden.softmax import SoftmaxSpec, softmax_trace
from qvit_hw.proofs.arithmetic import claim, packed, params
from qvit_hw.proofs.case import Case, Claim, bench
from qvit_hw.proofs.circuit import Circuit
from qvit_hw.proofs.property import Property
from qvit_hw.proofs.symbolic import Row
from rtl.softmax import Log2Softmax

__all__ = ["properties"]


def properties() -> list[Property]:
    """Every claim of this module."""
    return [*_exponentials(), *_logarithms(), *_rows()]


def _called(spec: SoftmaxSpec) -> str:
    return f"base {spec.base}, scores {spec.score_bits}, F {spec.frac_bits}, codes {spec.code_bits}"


def _unlike(what: Callable[[SoftmaxSpec], Any]) -> list[SoftmaxSpec]:
    """One spec of the grid for each value of ``what``."""
    return list({what(spec): spec for spec in golden.softmax.SPEC_GRID}.values())


def _exponentials() -> Iterator[Property]:
    for spec in _unlike(lambda spec: (spec.exp_bits, spec.frac_bits, spec.octave_bits)):
        yield claim(
            "softmax",
            f"exponential: W {spec.exp_bits}, F {spec.frac_bits}, {spec.octave_bits} octave bits",
            "table and shift are EXP2[d mod 2**F] >> (d div 2**F) for every distance d",
            exponential,
            spec,
        )


def exponential(spec: SoftmaxSpec, case: Case) -> list[Claim]:
    """:meth:`rtl.softmax.Log2Softmax._exponential`, against golden's table of all distances."""

    def build(m: Module, distance: Value) -> Mapping[str, Value]:
        return {"e": Log2Softmax(spec, lanes=1)._exponential(m, distance, "e")}

    legal = spec.bounds["distance"]
    d = case.input("distance", legal)
    circuit = bench({"distance": unsigned(spec.distance_bits)}, build)
    found = case.run(circuit, {"distance": [(0, d)]}, {"e": (2, False)})
    table = golden.softmax._exponentials(spec.exp2, legal.high + 1).tolist()
    return [Claim("exponential", found["e"], case.symbols.read(table, d))]


def _logarithms() -> Iterator[Property]:
    for spec in _unlike(lambda spec: (spec.bounds["total"], spec.log_index_bits, spec.frac_bits)):
        yield claim(
            "softmax",
            f"logarithm: totals to {spec.bounds['total'].high}, {spec.log_index_bits} index bits, "
            f"F {spec.frac_bits}",
            "leading one and table are golden's log2 of every total that a row can have",
            logarithm,
            spec,
        )


def logarithm(spec: SoftmaxSpec, case: Case) -> list[Claim]:
    """From the register of the sum to that of its logarithm, in the whole unit, from any state."""
    unit = Log2Softmax(spec, lanes=1)
    circuit = Circuit.of(unit, watch=["probe_log_total"])
    total = case.input("total", spec.bounds["total"])
    # A row's maximum adds 1.0: less is the sum of a row that is masked throughout, which is 0.
    least = case.symbols.compare("sgte", total, 1 << (spec.exp_bits - 1))
    case.assumed.append(case.logic.some([case.symbols.compare("eq", total, 0), least]))
    found = case.run(
        circuit, {}, {"probe_log_total": (LOG_CYCLES, False)}, registers={"probe_total": (0, total)}
    )
    wanted = case.golden(golden.softmax._log2)(total, spec)
    return [Claim("log_total", found["probe_log_total"], wanted)]


LOG_CYCLES = 3
"""From the sum to its logarithm."""


def _rows() -> Iterator[Property]:
    for spec in golden.softmax.SPEC_GRID:
        narrow = replace(spec, max_tokens=4)
        for lanes, masked in ((1, (0,)), (1, (0, 0)), (2, (0, 0)), (2, (0, 1)), (3, (0, 0, 0)), (2, (1, 1))):
            if lanes == 3 and spec.score_bits > 12:
                continue
            shown = "".join("-x"[hidden] for hidden in masked)
            yield claim(
                "softmax",
                f"row {shown}, {lanes} lane{'s' * (lanes > 1)}, {_called(spec)}",
                "the codes of a whole row are golden's, for all scores and fraction bits (x: masked)",
                row,
                narrow,
                lanes,
                masked,
            )


def row(spec: SoftmaxSpec, lanes: int, masked: tuple[int, ...], case: Case) -> list[Claim]:
    """A parameter write and one row, from reset to its last beat."""
    unit, symbols = Log2Softmax(spec, lanes=lanes), case.symbols
    coarsest = max(0, spec.frac_bits - golden.softmax.ALIGN_STEPS + 1)
    frac = case.input("frac", Interval(coarsest, spec.frac_bits))
    scores = [case.input(f"score_{n}", spec.bounds["score"]) for n in range(len(masked))]
    one, idle = symbols.number(1), symbols.number(0)
    beats = [range(start, min(start + lanes, len(masked))) for start in range(0, len(masked), lanes)]
    payloads = []
    for places in beats:
        at = [*places, *[None] * (lanes - len(places))]
        payloads.append(
            packed(
                case,
                [
                    *((0 if n is None else scores[n], spec.score_bits) for n in at),
                    *((0 if n is None else masked[n], 1) for n in at),
                    *((int(n is not None), 1) for n in at),
                    (int(places is beats[-1]), 1),
                ],
            )
        )
    start = 2
    last = start + len(beats) - 1
    end = start + unit.pipeline.schedule([len(masked)])[0].last_out
    inputs: dict[str, list[tuple[int | None, Any]]] = {
        "params__valid": [(0, one), (None, idle)],
        "params__payload": [(0, symbols.number(frac) << 14)],
        "i__valid": [(n, one if start <= n <= last else idle) for n in range(end + 1)],
        "i__payload": [(start + n, payload) for n, payload in enumerate(payloads)],
        "o__ready": [(None, one)],
    }
    cycles = range(end - len(beats) + 1, end + 1)
    circuit = Circuit.of(unit)
    seen = case.run_all(circuit, inputs, end + 1)
    given = params(frac=frac)
    codes = case.golden(softmax_trace)(Row.of(scores), spec, given, np.array(masked, bool)).code
    claims = []
    for cycle, places in zip(cycles, beats, strict=True):
        claims.append(Claim("valid", symbols.of(seen[cycle]["o__valid"], signed=False), one))
        for lane, place in enumerate(places):
            bits = case.logic.slice(
                seen[cycle]["o__payload"], (lane + 1) * spec.code_bits - 1, lane * spec.code_bits
            )
            claims.append(Claim(f"code_{place}", symbols.of(bits, signed=False), codes[place]))
    return claims


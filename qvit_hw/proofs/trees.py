# SPDX-License-Identifier: Apache-2.0
"""Trees of adders: what the lanes of a beat sum to, at every width that a unit has them.

Registers are part of it: the lanes enter in one cycle, whatever comes before and after them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from amaranth.hdl import Cat, Module, Shape, Value, signed, unsigned

import golden.layernorm
import golden.softmax
from golden.bounds import Interval
from golden.cycles import tree_levels
from qvit_hw.proofs.arithmetic import claim
from qvit_hw.proofs.case import Case, Claim, bench
from qvit_hw.proofs.property import Property
from qvit_hw.proofs.symbolic import Symbol
from rtl.row import popcount, tree

__all__ = ["counted", "properties", "summed"]

LANES = (2, 3, 8, 32)
"""An odd one, too: a lane without a partner waits."""
TOLD = ", ".join(map(str, LANES))


def properties() -> list[Property]:
    """Every claim of this module."""
    ones = claim("arith", f"ones of {TOLD} lanes", "popcount is the number of lanes that are kept", counted)
    return [*_sums(), ones]


def _sums() -> Iterator[Property]:
    bounds = [spec.bounds for spec in golden.layernorm.SPEC_GRID]
    shapes = {(each["x"].bits, True) for each in bounds} | {(each["square"].bits, False) for each in bounds}
    shapes |= {(spec.bounds["exponential"].bits, False) for spec in golden.softmax.SPEC_GRID}
    for width, sign in sorted(shapes):
        yield claim(
            "arith",
            f"adder trees of {TOLD} lanes, {'s' if sign else 'u'}{width}",
            "the tree is golden's sum of the lanes, so many cycles later as golden says; no sum wraps",
            summed,
            signed(width) if sign else unsigned(width),
        )


def summed(shape: Shape, case: Case) -> list[Claim]:
    """:func:`rtl.row.tree` of additions, for each number of lanes."""
    legal = Interval.of_bits(shape.width, signed=shape.signed)
    values = [case.input(f"lane_{lane}", legal) for lane in range(max(LANES))]

    def build(m: Module, **lanes: Value) -> Mapping[str, Value]:
        return {"total": tree(m, list(lanes.values()), lambda a, b: a + b, "sum")}

    claims = []
    for lanes in LANES:
        names = [f"lane_{lane}" for lane in range(lanes)]
        inputs = {name: [(0, value)] for name, value in zip(names, values, strict=False)}
        circuit = bench(dict.fromkeys(names, shape), build)
        outputs = {"total": (tree_levels(lanes), shape.signed)}
        found = case.run(circuit, inputs, outputs)["total"]
        claims.append(Claim(f"sum of {lanes}", found, whole(values[:lanes])))
    return claims


def whole(values: Sequence[Symbol]) -> Symbol:
    """Their sum. Whole numbers never wrap: in pairs it is what it is in any order, and quicker to compare."""
    if len(values) == 1:
        return values[0]
    pairs = [values[at : at + 2] for at in range(0, len(values), 2)]
    return whole([sum(pair[1:], start=pair[0]) for pair in pairs])


def counted(case: Case) -> list[Claim]:
    """:func:`rtl.row.popcount` of keeps, any and not only prefixes."""
    ones = [case.input(f"keep_{lane}", Interval(0, 1)) for lane in range(max(LANES))]
    claims = []
    for lanes in LANES:
        names = [f"keep_{lane}" for lane in range(lanes)]

        def build(m: Module, **keeps: Value) -> Mapping[str, Any]:
            return {"ones": popcount(Value.cast(Cat(keeps.values())))}

        circuit = bench(dict.fromkeys(names, unsigned(1)), build)
        inputs = {name: [(0, one)] for name, one in zip(names, ones, strict=False)}
        found = case.run(circuit, inputs, {"ones": (0, False)})["ones"]
        claims.append(Claim(f"ones of {lanes}", found, whole(ones[:lanes])))
    return claims

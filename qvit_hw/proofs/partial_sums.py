# SPDX-License-Identifier: Apache-2.0
"""The array's partial sums: wide enough for as many passes as the interval of their products allows.

A pass adds a dot product of ``size`` products to each partial sum. How many passes a network makes is up to
the compiler, which refuses one whose sums could leave ``acc_bits`` bits; it relies on what is proven here.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from golden.accelerator import AcceleratorSpec
from golden.bounds import Interval
from golden.softmax import SoftmaxSpec
from qvit_hw.proofs.circuit import Circuit
from qvit_hw.proofs.logic import Bits, Logic
from qvit_hw.proofs.property import Counterexample, Property
from rtl.matrix import MatrixEngine, pass_layout

__all__ = ["SPEC", "holds", "properties", "replayed", "tight"]

SPEC = AcceleratorSpec(size=4, max_tokens=16, acc_bits=24, softmax=SoftmaxSpec(code_bits=3))
"""The smallest array; its softmax codes mean powers up to 2**6, which are 8-bit operands as codes are."""
CODE = Interval.of_bits(8, signed=True)
PASS = (CODE * CODE).sum_of(SPEC.size)
"""What a pass adds."""
PASSES = (1 << (SPEC.acc_bits - 1)) // PASS.high - 1
"""Passes whose sums ``acc_bits`` bits hold, whatever codes and weights."""
READ = "reader__data"
"""The register behind the memory of partial sums."""
FLUSH = 14
WORK = 40


def _engine(acc_bits: int) -> Any:
    spec = replace(SPEC)
    vars(spec)["acc_bits"] = acc_bits
    # A product a multiplier: the weights of two in one port would have to be shown to be such, first.
    return MatrixEngine(spec, port_bits=18)


def holds() -> Counterexample | None:
    """A sum in the interval of n passes is, with a pass more, in that of n + 1."""
    wide = SPEC.acc_bits + 4
    circuit, logic = Circuit.of(_engine(wide), watch=["total"]), Logic()
    state = circuit.anything(logic)
    reader = next(number for number, name in circuit.states.items() if name == READ)

    def given(name: str, width: int) -> Bits:
        return logic.const(0, width) if name in ("rst", "clk") else logic.free(width, name)

    read, totals = [], []
    for _ in range(FLUSH):
        word = state[reader]
        assert isinstance(word, Bits)
        read.append(word)
        outputs, state = circuit.step(logic, state, given)
        totals.append(outputs["total"])
    n = logic.extend(logic.free(16, "passes"), WORK - 16, signed=False)
    for column in range(SPEC.size):
        # A word is read, rests beside the dot product (or makes way for 0), and is summed.
        before, after = (
            logic.extend(
                logic.slice(word, wide * (column + 1) - 1, wide * column), WORK - wide, signed=True
            )
            for word in (read[-3], totals[-1])
        )
        more = logic.apply("add", n, logic.const(1, WORK))
        assumed = [logic.apply("ult", n, logic.const(PASSES, WORK)), *_within(logic, before, n)]
        inside = logic.every(_within(logic, after, more))
        found = logic.solve([*assumed, logic.invert(inside)], [n, before, after], seconds=600)
        if found is not None:
            passes, old, new = (Bits(WORK, value).signed_value for value in found)
            return Counterexample(
                f"acc of column {column}: {old} after {passes} passes, {new} after one more; a pass adds "
                f"{PASS.low} to {PASS.high}"
            )
    return None


def _within(logic: Logic, value: Bits, passes: Bits) -> list[Bits]:
    low, high = (logic.apply("mul", logic.const(end, WORK), passes) for end in (PASS.low, PASS.high))
    return [logic.apply("slte", low, value), logic.apply("slte", value, high)]


def tight() -> Counterexample | None:
    """Extreme codes and weights, pass after pass: right as built, wrong with a bit less."""
    golden = PASSES * PASS.high
    right, wrong = (replayed(SPEC.acc_bits - less) for less in (0, 1))
    if right != golden:
        return Counterexample(f"acc: {right} after {PASSES} passes of -128 by -128, golden {golden}")
    if wrong == golden:
        less = SPEC.acc_bits - 1
        return Counterexample(f"acc: {golden} after {PASSES} passes is right with {less} bits, too")
    return None


def replayed(acc_bits: int) -> int:
    """Column 0's sum after the last of ``PASSES`` passes of -128 by -128; those before it are put there."""
    circuit, logic, size = Circuit.of(_engine(acc_bits)), Logic(), SPEC.size
    state = circuit.initial(logic)
    codes = sum(128 << (8 * lane) for lane in range(size))
    before = (PASSES - 1) * PASS.high & ((1 << acc_bits) - 1)
    sums = sum(before << (acc_bits * column) for column in range(size))
    steps: list[dict[str, int]] = [{"put__valid": 1, "put__acc": sums}]
    for at in range(size):
        last = at == size - 1
        steps.append({"load__valid": 1, "load__payload": codes | last << 8 * size + 1})
    one = pass_layout(SPEC).const({"tokens": 1, "last": 1}).as_bits()
    steps += [{"go__valid": 1, "go__payload": one}, *[{}] * 2 * FLUSH]
    for inputs in steps:
        known = {**inputs, "read__word": codes}

        def given(name: str, width: int, known: dict[str, int] = known) -> Bits:
            return logic.const(known.get(name, 0), width)

        outputs, state = circuit.step(logic, state, given)
        if outputs["sums__valid"].value:
            return logic.slice(outputs["sums__acc"], acc_bits - 1, 0).signed_value
    raise AssertionError("the pass gives sums")


def properties() -> list[Property]:
    """All of them."""
    scope = f"{SPEC.size} x {SPEC.size} multipliers, {SPEC.acc_bits} bits"
    return [
        Property(
            "matrix",
            "acc does not overflow",
            "accumulator",
            f"{SPEC.acc_bits} bits hold the sums of {PASSES} passes of any codes and weights.",
            f"{scope}; induction over passes, all inputs, in a netlist with 4 bits more",
            partial(holds),
        ),
        Property(
            "matrix",
            "acc is tight",
            "accumulator",
            f"With {SPEC.acc_bits - 1} bits the sum of {PASSES} passes of -128 times -128 is wrong.",
            f"{scope}; the last pass on the netlist, and on one of one bit less",
            partial(tight),
        ),
    ]

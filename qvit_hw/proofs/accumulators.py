# SPDX-License-Identifier: Apache-2.0
"""Accumulators never overflow, and none has a bit too many.

**Holds**, by induction over elements, for all time: a netlist whose register is ``MARGIN`` bits wider than
``spec.bounds`` says starts anywhere; once its pipelines hold nothing of that, a register that lies in
golden's interval of n elements lies, a cycle later, in the interval of n + lanes. The wider register cannot
wrap unseen, and in the interval of the longest row it never needs more than the bits of the narrower one.

**Tight**: the solver looks for a row whose sum needs the last bit. The row runs through golden, and through a
netlist whose register lacks that bit, where the sum must come out wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from golden.attend_unit import attend_words
from golden.attention import AttendSpec, attend_trace
from golden.bounds import Interval
from golden.layernorm import LayerNormParams, LayerNormSpec, layernorm_trace
from golden.requant import RequantParams
from golden.residual import ResidualParams, ResidualSpec, residual_trace
from golden.softmax import SoftmaxParams, SoftmaxSpec, softmax_trace
from qvit_hw.proofs import partial_sums
from qvit_hw.proofs.circuit import Circuit, State
from qvit_hw.proofs.logic import Bits, Logic
from qvit_hw.proofs.property import Counterexample, Property
from rtl.attention import ShiftAttend
from rtl.layernorm import PtfLayerNorm
from rtl.residual import PtfResidual
from rtl.softmax import Log2Softmax

__all__ = ["ACCUMULATORS", "Accumulator", "Witness", "holds", "properties", "tight", "witness"]

MARGIN = 4
"""Bits by which a register is wider where it must show that it does not need them."""
FLUSH = 18
"""Cycles after which no accumulator's summand comes from a register that held anything."""
WORK = 56
"""Bits of the sums that intervals are compared in."""


@dataclass(frozen=True, kw_only=True)
class Accumulator:
    """A register that sums a row, or with ``count`` 1 one sum of products.

    make: the unit with so many bits more or less.  register, value: its name in the netlist and golden's.
    each: interval of what an element adds.  count: elements of the longest row.  lanes: elements a beat.
    bits: of the register.  element: bits of an element.  golden: the value of a row, its elements as the
    payload has them.  words, before: parameters and ``v`` that let rows reach the interval's ends.
    marks: what stands above the elements in a beat, a row's last or not.
    """

    unit: str
    register: str
    value: str
    scope: str
    make: Callable[[int], Any]
    each: Interval
    count: int
    lanes: int
    bits: int
    element: int
    golden: Callable[[list[int]], int]
    words: Sequence[tuple[int, int]] = ()
    before: Sequence[int] = ()
    marks: Callable[[bool], int]

    @property
    def interval(self) -> Interval:
        """Golden's, of the longest row."""
        return self.each.sum_of(self.count) if self.count > 1 else self.each

    @property
    def signed(self) -> bool:
        """Whether the register is."""
        return self.interval.signed


@dataclass(frozen=True)
class Witness:
    """A row whose sum needs every bit: golden's sum, and that of a register with one bit less."""

    row: list[int]
    golden: int
    wrapped: int


# --------------------------------------------------------------------------------------- induction


def holds(name: str) -> Counterexample | None:
    """The register stays in golden's interval: at reset, and with every cycle from then on."""
    sums = ACCUMULATORS[name]()
    circuit, logic = Circuit.of(sums.make(MARGIN), watch=[sums.register]), Logic()
    first, _ = circuit.step(logic, circuit.initial(logic), partial(_free, logic))
    if first[sums.register].width != sums.bits + MARGIN:
        width = first[sums.register].width - MARGIN
        return Counterexample(f"{sums.value}: golden's interval has {sums.bits} bits, the register {width}")
    if sums.count > 1 and first[sums.register].value != 0:
        return Counterexample(f"{sums.value}: the register does not start at 0")
    state = circuit.anything(logic)
    values: list[Bits] = []
    for _ in range(FLUSH + 2):
        outputs, state = circuit.step(logic, state, partial(_free, logic))
        value = outputs[sums.register]
        values.append(logic.extend(value, WORK - value.width, signed=sums.signed))
    before, after = values[-2:]
    n, assumed = logic.const(1, WORK), list[Bits]()
    if sums.count > 1:
        n = logic.extend(logic.free(16, "n"), WORK - 16, signed=False)
        assumed = [
            logic.apply("ulte", n, logic.const(sums.count - sums.lanes, WORK)),
            *_within(logic, before, sums.each, n),
        ]
        n = logic.apply("add", n, logic.const(sums.lanes, WORK))
    inside = logic.every(_within(logic, after, sums.each, n))
    found = logic.solve([*assumed, logic.invert(inside)], [n, before, after], seconds=600)
    if found is None:
        return None
    count, old, new = (Bits(WORK, value).signed_value for value in found)
    low, high = min(sums.each.low, 0) * count, max(sums.each.high, 0) * count
    return Counterexample(
        f"{sums.value}: after {count - sums.lanes} elements {old}, after {sums.lanes} more {new}; golden's "
        f"interval of {count} is {low} to {high}",
        {"elements": count, "before": old, "after": new},
    )


def _free(logic: Logic, name: str, width: int) -> Bits:
    return logic.const(0, width) if name in ("rst", "clk") else logic.free(width, name)


def _within(logic: Logic, value: Bits, each: Interval, count: Bits) -> list[Bits]:
    """Conditions that ``value`` lies in the interval of ``count`` such elements."""
    low, high = (logic.const(end, WORK) for end in (min(each.low, 0), max(each.high, 0)))
    return [
        logic.apply("slte", logic.apply("mul", low, count), value),
        logic.apply("slte", value, logic.apply("mul", high, count)),
    ]


# --------------------------------------------------------------------------------------- tightness


def tight(name: str) -> Counterexample | None:
    """None if there is a row that a register of one bit less gets wrong."""
    sums = ACCUMULATORS[name]()
    found = witness(name)
    if found is None:
        return Counterexample(
            f"{sums.value}: no row of {sums.count} elements needs bit {sums.bits - 1}, counted from 0"
        )
    if found.wrapped == found.golden:
        return Counterexample(
            f"{sums.value}: {found.golden} of row {found.row} is right with {sums.bits - 1} bits, too",
            {"row": found.row, sums.value: found.golden},
        )
    return None


def witness(name: str) -> Witness | None:
    """A row whose sum does not fit into one bit less, and what a register of so many bits makes of it."""
    sums = ACCUMULATORS[name]()
    logic = Logic()
    elements = [logic.free(sums.element, f"element_{at}") for at in range(sums.count)]
    values = _sums(sums, logic, 0, elements)
    less = Interval.of_bits(sums.bits - 1, signed=sums.signed)
    beyond = []
    for value in values:
        wide = logic.extend(value, WORK - value.width, signed=sums.signed)
        low, high = logic.const(less.low, WORK), logic.const(less.high, WORK)
        beyond += [logic.apply("slt", wide, low), logic.apply("sgt", wide, high)]
    row = logic.solve([logic.some(beyond)], elements, seconds=600)
    if row is None:
        return None
    golden = sums.golden(row)
    numbers = [logic.const(value, sums.element) for value in row]
    seen = [_number(sums, value) for value in _sums(sums, logic, 0, numbers)]
    at = seen.index(golden)
    wrapped = _number(sums, _sums(sums, logic, -1, numbers)[at])
    return Witness(row, golden, wrapped)


def _number(sums: Accumulator, value: Bits) -> int:
    assert value.value is not None, "the row is all numbers"
    return value.signed_value if sums.signed else value.value


def _sums(sums: Accumulator, logic: Logic, more: int, elements: Sequence[Bits]) -> list[Bits]:
    """The register, cycle by cycle, while a row of such elements goes through a unit fresh from reset."""
    circuit = Circuit.of(sums.make(more), watch=[sums.register])
    state = circuit.initial(logic)

    def step(state: State, **inputs: Bits) -> tuple[Mapping[str, Bits], State]:
        return circuit.step(logic, state, lambda name, width: inputs.get(name) or logic.const(0, width))

    one = logic.const(1, 1)
    for address, data in sums.words:
        word = logic.const(address | data << 14, 46)
        _, state = step(state, params__valid=one, params__payload=word)
    for payload in sums.before:
        width = circuit.inputs["v__payload"]
        _, state = step(state, v__valid=one, v__payload=logic.const(payload, width))
    for _ in range(2):
        _, state = step(state)
    width, values = circuit.inputs["i__payload"], []
    for at in range(0, len(elements), sums.lanes):
        beat = elements[at]
        for element in elements[at + 1 : at + sums.lanes]:
            beat = logic.concat(element, beat)
        marks = sums.marks(at + sums.lanes >= len(elements))
        beat = logic.concat(logic.const(marks, width - beat.width), beat)
        outputs, state = step(state, i__valid=one, i__payload=beat)
        values.append(outputs[sums.register])
    for _ in range(2 * FLUSH + len(elements)):
        outputs, state = step(state)
        values.append(outputs[sums.register])
    return values


# ------------------------------------------------------------------------------------- the registers


def _wider(spec: Any, name: str, more: int) -> Any:
    """The spec with so many bits more (or less) in one of its intervals."""
    changed, own = replace(spec), spec.bounds[name]
    bits = Interval.of_bits(own.bits + more, signed=own.signed)
    vars(changed)["bounds"] = {**spec.bounds, name: bits}
    return changed


def _softmax() -> Accumulator:
    spec = SoftmaxSpec(max_tokens=16, score_bits=8, frac_bits=2, code_bits=3, exp_bits=12, log_index_bits=2)

    def golden(row: list[int]) -> int:
        scores = np.array([Bits(8, value).signed_value for value in row])
        return int(softmax_trace(scores, spec, SoftmaxParams(frac=2)).total[0])

    return Accumulator(
        unit="softmax",
        register="probe_total",
        value="total",
        scope="2 lanes, rows of up to 16 elements",
        make=lambda more: Log2Softmax(_wider(spec, "total", more), lanes=2),
        each=spec.bounds["exponential"],
        count=spec.max_tokens,
        lanes=2,
        bits=spec.bounds["total"].bits,
        element=8,
        golden=golden,
        words=SoftmaxParams(frac=2).words(spec),
        marks=lambda last: 0b1100 | last << 4,
    )


def _layernorm(register: str, value: str, zero_point: int) -> Accumulator:
    spec = LayerNormSpec(
        max_channels=8, in_bits=4, out_bits=3, max_shift=1, eps_bits=8, affine="shift", table_bits=4
    )
    count = spec.max_channels
    ones, zeros = np.ones(count, np.int64), np.zeros(count, np.int64)
    params = LayerNormParams(zero_point=zero_point, eps=1, point=0, shift=ones, gain=zeros, offset=zeros)

    def golden(row: list[int]) -> int:
        codes = np.array([Bits(4, each).signed_value for each in row])
        trace = layernorm_trace(codes, spec, params)
        return count if value == "count" else int(getattr(trace, value)[0])

    def make(more: int) -> Any:
        if value != "count":
            return PtfLayerNorm(_wider(spec, value, more), lanes=2)
        own = count.bit_length() + more
        return type("Counting", (PtfLayerNorm,), {"_count_bits": property(lambda self: own)})(spec, lanes=2)

    names = {"total": "x", "squares": "square"}
    each = spec.bounds[names[value]] if value in names else Interval(0, 1)
    return Accumulator(
        unit="layernorm",
        register=register,
        value=value,
        scope="2 lanes, rows of up to 8 channels, any parameters",
        make=make,
        each=each,
        count=count,
        lanes=2,
        bits=each.sum_of(count).bits,
        element=4,
        golden=golden,
        words=params.words(spec),
        marks=lambda last: 0b11 | last << 2,
    )


def _attention(value: str) -> Accumulator:
    softmax = SoftmaxSpec(
        max_tokens=8, score_bits=8, frac_bits=2, code_bits=3, exp_bits=12, log_index_bits=2, base="sqrt2"
    )
    spec = AttendSpec(softmax=softmax, value_bits=4, out_bits=4, codes="any")
    params = RequantParams(multiplier=np.array([40000]), shift=np.array([16]), zero_point=0)
    v = np.full((softmax.max_tokens, 1), -8)

    def golden(row: list[int]) -> int:
        return int(getattr(attend_trace(np.array([[row]]), v[None], spec, params), value).reshape(-1)[0])

    return Accumulator(
        unit="attention",
        register=f"{value}_0",
        value=value,
        scope="1 lane, rows of up to 8 codes of any kind",
        make=lambda more: ShiftAttend(_wider(spec, value, more), lanes=1),
        each=spec.bounds["value"] << (spec.top - (value == "odd")),
        count=softmax.max_tokens,
        lanes=1,
        bits=spec.bounds[value].bits,
        element=3,
        golden=golden,
        words=attend_words(params, spec, 0),
        before=[8 | (at == softmax.max_tokens - 1) << 4 for at in range(softmax.max_tokens)],
        marks=int,
    )


def _residual() -> Accumulator:
    spec = ResidualSpec(acc_bits=8, gain_bits=16, max_shift=1)
    bounds = spec.bounds
    params = ResidualParams(
        in_zero_point=127,
        in_shift=np.array([1]),
        gain=bounds["gain"].high,
        multiplier=np.array([bounds["multiplier"].high]),
        shift=20,
        zero_point=0,
        out_shift=np.array([0]),
    )

    def golden(row: list[int]) -> int:
        acc, code = Bits(8, row[0] & 255).signed_value, Bits(8, row[0] >> 8).signed_value
        return int(residual_trace(np.array([code]), np.array([acc]), spec, params).total[0])

    return Accumulator(
        unit="residual",
        register="total_0",
        value="total",
        scope="1 lane, 8-bit codes and accumulators, any parameters",
        make=lambda more: PtfResidual(_wider(spec, "total", more), lanes=1),
        each=bounds["total"],
        count=1,
        lanes=1,
        bits=bounds["total"].bits,
        element=16,
        golden=golden,
        words=params.words(spec),
        marks=lambda last: 1 | last << 1,
    )


ACCUMULATORS: dict[str, Callable[[], Accumulator]] = {
    "softmax total": _softmax,
    "layernorm total": partial(_layernorm, "probe_total", "total", 7),
    "layernorm squares": partial(_layernorm, "probe_squares", "squares", 7),
    "layernorm count": partial(_layernorm, "count_1", "count", 7),
    "attention even": partial(_attention, "even"),
    "attention odd": partial(_attention, "odd"),
    "residual total": _residual,
}
"""By unit and golden's name."""


def properties() -> list[Property]:
    """All of them."""
    listed = partial_sums.properties()
    for name, make in ACCUMULATORS.items():
        sums = make()
        row = f"a row of {sums.count}" if sums.count > 1 else "any element"
        listed += [
            Property(
                sums.unit,
                f"{sums.value} does not overflow",
                "accumulator",
                f"The {sums.bits} bits of {sums.value} hold the sum of {row}: {sums.interval.low} to "
                f"{sums.interval.high}.",
                f"{sums.scope}; induction over beats, all inputs",
                partial(holds, name),
            ),
            Property(
                sums.unit,
                f"{sums.value} is tight",
                "accumulator",
                f"With {sums.bits - 1} bits a row exists whose {sums.value} is wrong.",
                f"{sums.scope}; a row that the solver finds, on golden and on a netlist of one bit less",
                partial(tight, name),
            ),
        ]
    return listed

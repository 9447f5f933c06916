# amaranth: UnusedElaboratable=no
# SPDX-License-Identifier: Apache-2.0
"""AXI4-Stream and back: lanes and bytes, signs, keeps, and what of a bad row is repaired and noted.

A top's core is empty here, and its streams are ports. Where in ``tdata`` each bit of an element is, and what
``tkeep`` of so many elements is, is asked of the testbench's :func:`sim.stream.pack`. By induction: any state
in which a row has fewer beats than the longest, any inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce

import numpy as np
from amaranth.hdl import Module

from golden.gelu import GeluSpec
from golden.layernorm import LayerNormSpec
from golden.requant import RequantSpec
from golden.residual import ResidualSpec
from golden.softmax import SoftmaxSpec
from qvit_hw.proofs.circuit import Circuit
from qvit_hw.proofs.induction import Registers, implies
from qvit_hw.proofs.logic import Bits, Logic
from qvit_hw.proofs.property import Counterexample, Property
from qvit_hw.proofs.subjects import fields_of
from rtl.axi import AxiLayerNorm, AxiRowUnit, AxiSoftmax, slot_bytes
from rtl.axi_stream import AxiGelu, AxiRequant, AxiResidual
from sim.stream import pack

__all__ = ["TOPS", "beats_in", "beats_out", "keeps", "places", "properties"]

TOPS: dict[str, Callable[[], AxiRowUnit]] = {
    "softmax, 4 lanes": lambda: AxiSoftmax(SoftmaxSpec(max_tokens=198), lanes=4),
    "softmax, 3 lanes": lambda: AxiSoftmax(SoftmaxSpec(max_tokens=6, score_bits=8), lanes=3),
    "layernorm, 4 lanes": lambda: AxiLayerNorm(LayerNormSpec(max_channels=771), lanes=4),
    "layernorm, 2 lanes": lambda: AxiLayerNorm(LayerNormSpec(in_bits=10, max_channels=400), lanes=2),
    "gelu, 8 lanes": lambda: AxiGelu(GeluSpec(in_bits=10), lanes=8),
    "requant, 3 lanes": lambda: AxiRequant(RequantSpec(), lanes=3),
    "residual, 4 lanes": lambda: AxiResidual(ResidualSpec(), lanes=4),
    "residual, 1 lane": lambda: AxiResidual(ResidualSpec(in_bits=16, acc_bits=36), lanes=1),
}
"""Slots of one to seven bytes; longest rows that fill their last beat, and that do not."""
WORK = 72
"""Bits of what is compared."""


def places(lanes: int, slot: int) -> list[list[int]]:
    """Where in ``tdata`` each bit of a slot is, by lane; ``slot``: bytes."""
    found = []
    for lane in range(lanes):
        row = [np.where(np.arange(lanes) == lane, 1 << bit, 0) for bit in range(8 * slot)]
        words = [pack(elements, np.array([lanes]), lanes, slot).data[0] for elements in row]
        found.append([word.bit_length() - 1 for word in words])
    return found


def keeps(lanes: int, slot: int) -> list[int]:
    """``tkeep`` of 1, 2, ... elements."""
    rows = [(np.zeros(count, np.int64), np.array([count])) for count in range(1, lanes + 1)]
    return [pack(elements, length, lanes, slot).keep[0] for elements, length in rows]


class Adapter:
    """A top around no core: any state, any inputs, and the state a cycle later."""

    def __init__(self, name: str) -> None:
        top = TOPS[name]()
        self.name, self.top, self.lanes, core = name, top, top.lanes, top.core
        vars(core)["elaborate"] = lambda platform: Module()
        streams = [core.i, core.o, core.params]
        inner = [value for each in streams for value in (each.valid, each.ready, each.payload.as_value())]
        ports = [getattr(top, port) for port in top.signature.members]
        circuit = Circuit.of(top, [*ports, *inner])
        self.logic = Logic()
        self.inputs = {port: self.logic.free(width, port) for port, width in circuit.inputs.items()}
        self.inputs["aresetn"] = self.number(1, 1)
        self.start = Registers(circuit, self.logic, circuit.initial(self.logic))
        self.before = Registers(circuit, self.logic, circuit.anything(self.logic))
        self.outputs, self.after = self.before.step(self.inputs)
        self.fields = fields_of(core.i.payload.shape())
        self.element = next(iter(self.fields))
        out = fields_of(core.o.payload.shape())
        self.fields |= {f"out_{field}": place for field, place in out.items()}

    def number(self, value: int, width: int = WORK) -> Bits:
        """A constant."""
        return self.logic.const(value, width)

    def wide(self, bits: Bits, *, signed: bool = False) -> Bits:
        """As wide as what is compared."""
        return self.logic.extend(bits, WORK - bits.width, signed=signed)

    def gathered(self, data: Bits, where: Sequence[int]) -> Bits:
        """The bits of these places, the lowest first."""
        bits = [self.logic.slice(data, place, place) for place in where]
        return reduce(lambda low, bit: self.logic.concat(bit, low), bits)

    def field(self, payload: Bits, name: str, lane: int | None = None) -> Bits:
        """A field of a payload of the core, or a lane's element of it."""
        low, width, count = self.fields[name]
        if lane is None:
            return self.logic.slice(payload, low + width * count - 1, low)
        return self.logic.slice(payload, low + width * (lane + 1) - 1, low + width * lane)

    def bit(self, state: Registers, register: str) -> Bits:
        """A register of one bit."""
        return self.logic.slice(state.number(register), 0, 0)

    def same(self, x: Bits, y: Bits) -> Bits:
        """Whether two are equal."""
        return self.logic.apply("eq", x, y)

    def chosen(self, count: Bits, choices: Sequence[Bits]) -> Bits:
        """The choice of a count from 1 on."""
        found = choices[0]
        for at, choice in enumerate(choices, start=1):
            found = self.logic.choose(self.same(count, self.number(at)), choice, found)
        return found

    def refuted(
        self, assumed: Sequence[Bits], claims: Mapping[str, Bits], shown: Mapping[str, Bits]
    ) -> Counterexample | None:
        """The first claim that is wrong, with the values of what is shown."""
        for text, claim in claims.items():
            found = self.logic.solve([*assumed, self.logic.invert(claim)], list(shown.values()), seconds=120)
            if found is not None:
                values = dict(zip(shown, found, strict=True))
                told = ", ".join(f"{name} {value:#x}" for name, value in values.items())
                return Counterexample(f"AXI top of {self.name}: {text}; {told}", values)
        return None


def beats_in(name: str) -> Counterexample | None:
    """What the core gets of a beat, what is noted of it, and how many beats of its row there were."""
    own = Adapter(name)
    top, lanes, logic, number = own.top, own.lanes, own.logic, own.number
    slot, beats = slot_bytes(top.in_bits), -(-top.longest // lanes)
    data, keep, last = (own.inputs[f"s_axis_{port}"] for port in ("tdata", "tkeep", "tlast"))
    valid, ready = own.inputs["s_axis_tvalid"], own.inputs["i__ready"]
    beat, beat_after = own.wide(own.before.number("beat")), own.wide(own.after.number("beat"))
    swallow, swallow_after = (own.bit(state, "swallow") for state in (own.before, own.after))
    if [own.start.number(register).value for register in ("beat", "swallow")] != [0, 0]:
        return Counterexample(f"AXI top of {name}: reset is not the beginning of a row")

    # The longest legal keep within what came, lane 0 always; before tlast all lanes.
    masks = [logic.const(mask, keep.width) for mask in keeps(lanes, slot)]
    came, kept = logic.apply("or", keep, masks[0]), number(1)
    for count, mask in enumerate(masks, start=1):
        kept = logic.choose(own.same(logic.apply("and", came, mask), mask), number(count), kept)
    kept = logic.choose(last, kept, number(lanes))
    exact = [own.same(keep, mask) for mask in masks]
    legal = logic.choose(last, logic.some(exact), exact[-1])
    at_end = own.same(beat, number(beats - 1))
    most = logic.choose(at_end, number(top.longest - (beats - 1) * lanes), number(lanes))
    too_many = logic.apply("ugt", kept, most)
    kept = logic.choose(too_many, most, kept)
    ends = logic.apply("or", at_end, last)
    moves = logic.every([valid, ready, logic.invert(swallow)])

    # What the core is offered, and what of it does not fit an element.
    payload, offered = own.outputs["i__payload"], own.outputs["i__valid"]
    right, outside = [], []
    for lane, where in enumerate(places(lanes, slot)):
        value = own.gathered(data, where)
        element = own.field(payload, own.element, lane)
        right.append(own.same(element, logic.slice(value, top.in_bits - 1, 0)))
        fits = own.same(own.wide(element, signed=True), own.wide(value, signed=True))
        there = logic.apply("ult", number(lane), kept)
        outside.append(logic.apply("and", there, logic.invert(fits)))
    prefixes = [logic.const((1 << count) - 1, lanes) for count in range(1, lanes + 1)]
    ones = own.chosen(kept, prefixes)
    if top.has_mask:
        right.append(own.same(own.field(payload, "mask"), own.inputs["s_axis_tuser"]))
    too_long = logic.apply("and", at_end, logic.apply("or", logic.invert(last), too_many))
    noted = [logic.apply("and", moves, what) for what in (too_long, logic.invert(legal), logic.some(outside))]
    status, status_after = own.before.number("status"), own.after.number("status")
    bits = [(logic.slice(status, at, at), logic.slice(status_after, at, at)) for at in range(len(noted))]
    swallows = logic.apply("and", swallow, valid)
    opens = logic.choose(ends, number(0), logic.apply("add", beat, number(1)))
    claims = {
        "the core is offered another beat": own.same(
            offered, logic.apply("and", valid, logic.invert(swallow))
        ),
        "a beat is taken that is not, or the other way": own.same(
            own.outputs["s_axis_tready"], logic.apply("or", ready, swallow)
        ),
        "an element is not its slot's low bits": logic.every(right),
        "keep is not the longest legal prefix": own.same(own.field(payload, "keep"), ones),
        "last is wrong": own.same(own.field(payload, "last"), ends),
        "a beat of the row is lost": own.same(beat_after, logic.choose(moves, opens, beat)),
        "a row is longer than the longest": logic.apply("ult", beat_after, number(beats)),
        "what is beyond a row is not swallowed": own.same(
            swallow_after,
            logic.choose(
                moves,
                logic.apply("and", ends, logic.invert(last)),
                logic.choose(swallows, logic.invert(last), swallow),
            ),
        ),
        "something is not noted": logic.every(
            [implies(logic, what, after) for what, (_, after) in zip(noted, bits, strict=True)]
        ),
        "something is noted that was not so": logic.every(
            [
                implies(logic, after, logic.apply("or", what, before))
                for what, (before, after) in zip(noted, bits, strict=True)
            ]
        ),
    }
    shown = {"beat": beat, "tdata": data, "tkeep": keep, "tlast": last, "tvalid": valid, "ready": ready}
    return own.refuted([logic.apply("ult", beat, number(beats))], claims, shown)


def beats_out(name: str) -> Counterexample | None:
    """What leaves of a beat of the core, and how many rows were delivered."""
    own = Adapter(name)
    top, lanes, logic = own.top, own.lanes, own.logic
    slot = slot_bytes(top.out_bits)
    payload, valid, ready = (own.inputs[each] for each in ("o__payload", "o__valid", "m_axis_tready"))
    keep, last = own.field(payload, "out_keep"), own.field(payload, "out_last")
    codes, bytes_kept = [], []
    for lane, where in enumerate(places(lanes, slot)):
        code = own.wide(own.field(payload, "out_code", lane), signed=top.out_signed)
        slots = own.wide(own.gathered(own.outputs["m_axis_tdata"], where), signed=top.out_signed)
        codes.append(own.same(code, slots))
    for count, mask in enumerate(keeps(lanes, slot), start=1):
        prefix = own.same(keep, logic.const((1 << count) - 1, lanes))
        out = own.outputs["m_axis_tkeep"]
        bytes_kept.append(implies(logic, prefix, own.same(out, logic.const(mask, out.width))))
    delivered = logic.every([valid, ready, last])
    rows = own.before.register("rows")
    claims = {
        "a code is not its slot's number": logic.every(codes),
        "keep is not that of whole slots": logic.every(bytes_kept),
        "last is wrong": own.same(own.outputs["m_axis_tlast"], last),
        "valid is wrong": own.same(own.outputs["m_axis_tvalid"], valid),
        "ready is wrong": own.same(own.outputs["o__ready"], ready),
        "rows delivered are counted wrong": own.same(
            own.after.register("rows"),
            logic.apply("add", rows, logic.extend(delivered, rows.width - 1, signed=False)),
        ),
    }
    return own.refuted([], claims, {"code": own.field(payload, "out_code"), "keep": keep, "last": last})


def properties() -> list[Property]:
    """All of them."""
    scope = "induction: all beats and stalls, any state of a row"
    given = (
        "An element is its slot's low bits, keep the longest legal prefix of tkeep; what is beyond the "
        "longest row is swallowed; that, a bad tkeep and an element outside its width are noted."
    )
    got = "A code fills its slot, with copies of its sign or zeros; keep is of whole slots; rows are counted."
    ways = (("in", given, beats_in), ("out", got, beats_out))
    return [
        Property("axi", f"beats {way}, {name}", "stream", claim, scope, partial(check, name))
        for name in TOPS
        for way, claim, check in ways
    ]

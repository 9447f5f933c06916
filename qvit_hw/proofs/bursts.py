# SPDX-License-Identifier: Apache-2.0
"""The reader of bursts: no word without a place, and no pause longer than its readers are told.

By :mod:`qvit_hw.proofs.induction`. The accelerator takes a longer pause for the end of the program.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from golden.accelerator import SIZES
from golden.accelerator_cycles import FIFO_WORDS
from qvit_hw.proofs.circuit import Circuit
from qvit_hw.proofs.induction import WIDE, Registers, implies
from qvit_hw.proofs.logic import Bits, Logic
from qvit_hw.proofs.property import Counterexample, Property
from rtl.control import ALIGNMENT
from rtl.dma import PAUSE, BurstReader

__all__ = ["bursts", "properties"]

BURST = 16
INPUTS = ("start", "stop", "o__ready", "m_axi_arready", "m_axi_rvalid")


def bursts(size: int, depth: int) -> Counterexample | None:
    """Words of ``size`` bytes, a FIFO of ``depth`` words, as the accelerator has them."""
    reader = BurstReader(size=size, depth=depth, burst=BURST, align=1 << ALIGNMENT)
    circuit, logic = Circuit.of(reader), Logic()
    zero, most = logic.const(0, WIDE), logic.const(depth, WIDE)
    words = {name: logic.free(32, name) for name in ("image_words", "program_words")}

    def no(condition: Bits) -> Bits:
        return logic.invert(condition)

    def total(*counts: Bits) -> Bits:
        result = zero
        for count in counts:
            result = logic.apply("add", result, count)
        return result

    def some(count: Bits) -> Bits:
        return logic.apply("neq", count, logic.const(0, count.width))

    def waiting(state: Registers) -> Bits:
        """Words of a request that the memory has not taken yet."""
        seen = state.step({})[0]
        words = total(logic.extend(seen["m_axi_arlen"], WIDE - 8, signed=False), logic.const(1, WIDE))
        return logic.choose(seen["m_axi_arvalid"], words, zero)

    def sound(state: Registers) -> list[Bits]:
        promised, under_way = state.number("promised"), state.number("under_way")
        inner, shown = state.number("queue.inner_level"), state.number("queue.r_rdy")
        swallow, more = state.register("swallow"), [state.register(name) for name in ("left", "program_next")]
        owed = total(inner, shown, under_way)
        idle = [no(some(each)) for each in (promised, inner, shown, *more)]
        return [
            implies(logic, no(swallow), logic.apply("eq", promised, owed)),
            implies(logic, swallow, logic.every(idle)),
            logic.apply("ulte", promised, most),
            logic.apply("ulte", under_way, most),
            logic.apply("ulte", waiting(state), under_way),
            # The first word is shown a cycle after it came.
            logic.some([some(shown), logic.apply("ulte", inner, logic.const(1, WIDE))]),
        ]

    def given() -> dict[str, Bits]:
        return {name: logic.free(1, name) for name in INPUTS} | words

    def legal(state: Registers, inputs: Mapping[str, Bits], outputs: Mapping[str, Bits]) -> Bits:
        over = logic.every([no(outputs["busy"]), no(outputs["o__valid"]), no(some(state.register("left")))])
        begins = logic.every([over, no(state.register("program_next")), no(inputs["stop"])])
        asked = logic.apply("ult", waiting(state), state.number("under_way"))
        answered = implies(logic, inputs["m_axi_rvalid"], asked)
        return logic.every([implies(logic, inputs["start"], begins), answered])

    start = Registers(circuit, logic, circuit.initial(logic))
    if logic.every(sound(start)).value != 1:
        return Counterexample("bursts: words are promised after reset")
    before, inputs = Registers(circuit, logic, circuit.anything(logic)), given()
    outputs, after = before.step(inputs)
    assumed = [*sound(before), legal(before, inputs, outputs)]
    arrives = logic.every([inputs["m_axi_rvalid"], outputs["m_axi_rready"], no(before.register("swallow"))])
    full = logic.apply("eq", before.number("queue.inner_level"), logic.const(depth - 1, WIDE))
    claims = {
        "words are lost count of": logic.every(sound(after)),
        "a word comes for which there is no place": no(logic.every([arrives, full])),
    }
    told = {
        "promised": before.register("promised"),
        "under way": before.register("under_way"),
        "stored": before.register("queue.inner_level"),
        "shown": before.register("queue.r_rdy"),
        **{name.replace("o__", ""): inputs[name] for name in INPUTS},
    }
    for text, claim in claims.items():
        found = logic.solve([*assumed, no(claim)], [*told.values()])
        if found is not None:
            values = ", ".join(f"{name} {value}" for name, value in zip(told, found, strict=True))
            return Counterexample(f"bursts: {text}, with {values}")
    return _paused(logic, before, sound(before), words, before.register("left"))


def _paused(
    logic: Logic, state: Registers, sound: list[Bits], words: Mapping[str, Bits], left: Bits
) -> Counterexample | None:
    """Whether nothing is under way and nothing offered for longer than PAUSE, while there is more."""
    follows = [state.register("program_next"), logic.apply("neq", words["program_words"], logic.const(0, 32))]
    more = logic.some([logic.apply("neq", left, logic.const(0, left.width)), logic.every(follows)])
    conditions, ready = [*sound, more], list[Bits]()
    for _ in range(PAUSE + 1):
        ready.append(logic.free(1, "m_axi_arready"))
        inputs = {"m_axi_arready": ready[-1], **words}
        outputs, state = state.step(inputs)
        conditions += [logic.invert(outputs["busy"]), logic.invert(outputs["o__valid"])]
    found = logic.solve(conditions, [left, *ready])
    if found is None:
        return None
    return Counterexample(
        f"bursts: a pause of more than {PAUSE} cycles with {found[0]} words of a region left, "
        f"arready {''.join(map(str, found[1:]))}"
    )


def properties() -> list[Property]:
    """All of them."""
    claim = (
        "Every word that comes has a place, and of a run that has more words there is one under way or "
        f"offered within {PAUSE} cycles."
    )
    scope = "induction: all time, any memory, start and stop as promised"
    return [
        Property("bursts", f"{size} bytes a word", "stream", claim, scope, partial(bursts, size, FIFO_WORDS))
        for size in SIZES
    ]

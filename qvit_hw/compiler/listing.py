# SPDX-License-Identifier: Apache-2.0
"""A program as text: a line an instruction, for a person."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from golden.accelerator_cycles import timeline
from golden.program import ROW_MEMORIES, Instruction, Op, Sink, Source, Tile, Unit, Wait
from qvit_hw.compiler.program import Program, Step

__all__ = ["listing"]

_TILES = {Tile.STREAM: "weights", Tile.KEYS: "keys", Tile.VALUES: "values"}


def listing(program: Program) -> str:
    """The whole program, with the memories in front and the sums at the end.

    begin, cycles: of the unit that an instruction works in, by the cycle model, with a memory that always
    answers.
    """
    return "".join(f"{line}\n" for line in _lines(program))


def _lines(program: Program) -> Iterator[str]:
    spec, size = program.spec, program.spec.size
    image, words = program.image, program.steps[0].instruction["image_words"]
    yield f"# {program.notes['model'] or 'network'} for {size} x {size}, {spec.fingerprint:016x}"
    yield (
        f"# image {image.channels} x {image.height} x {image.width}, patches of {image.patch}: "
        f"{words} words; output {program.output[0]}, {program.output[1]} numbers"
    )
    for name, used in program.used.items():
        depth = getattr(spec, name)
        yield f"# {name:<10} {used:>6} of {depth:>6} words {100 * used / depth:5.1f} %"
    yield ""
    wide = max(len(step.note) for step in program.steps)
    yield (
        f"{'no':>5} {'word':>8} {'words':>6} {'begin':>9} {'cycles':>8}  "
        f"{'op':<9} {'wait':<15} {'what':<{wide}}  how"
    )
    times = timeline((step.instruction for step in program.steps), spec, words)
    spans = {span.instruction: span for span in times.spans}
    for number, step in enumerate(program.steps):
        span = spans.get(number)
        when = (span.begin, span.end - span.begin) if span else ("", "")
        yield _line(number, step, when, wide)
    yield ""
    share = Fraction(100 * times.macs, times.cycles * size * size)
    yield f"# {len(program.steps)} instructions, {len(program.words)} words, {times.cycles} cycles"
    yield f"# {times.macs} multiplications, {float(share):.1f} % of what the array could do"


def _line(number: int, step: Step, when: tuple[int | str, int | str], wide: int) -> str:
    instruction = step.instruction
    waits = " ".join(unit.name or "" for unit in Wait if unit & instruction.wait)
    return (
        f"{number:>5} {step.word:>8} {step.words:>6} {when[0]:>9} {when[1]:>8}  "
        f"{instruction.op.name:<9} {waits.lower():<15} {step.note:<{wide}}  {_how(instruction)}"
    ).rstrip()


def _how(instruction: Instruction) -> str:
    get = instruction.__getitem__
    match instruction.op:
        case Op.LOAD:
            return f"{get('count')} words to {Sink(get('sink')).name.lower()}[{get('sink_base')}]"
        case Op.WRITE:
            return f"{get('count')} records to {Unit(get('unit')).name}"
        case Op.MULTIPLY:
            return _product(instruction)
        case Op.LAYERNORM | Op.SOFTMAX:
            source, sink = ROW_MEMORIES[instruction.op]
            return (
                f"{get('tokens')} rows of {get('depth')} beats, {source}[{get('source_base')}] "
                f"to {sink}[{get('sink_base')}]"
            )
    return ""


def _product(instruction: Instruction) -> str:
    get = instruction.__getitem__
    sink, tile = Sink(get("sink")), Tile(get("tile"))
    right = _TILES[tile] + ("" if tile is Tile.STREAM else f"[{get('tile_base')}]")
    out = sink.name.lower() + ("" if sink is Sink.SUMS else f"[{get('sink_base')}]")
    more = [name for name in ("gelu", "resume") if get(name)]
    if get("source") == Source.CODES and not (get("even") and get("odd")):
        more.append("even" if get("even") else "odd")
    return (
        f"{get('tokens')} tokens x {get('depth')} x {get('blocks')} blocks, "
        f"{Source(get('source')).name.lower()}[{get('source_base')}] x {right} to {out}"
        + "".join(f", {name}" for name in more)
    )

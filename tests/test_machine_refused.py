# SPDX-License-Identifier: Apache-2.0
"""What the machine refuses: programs that are cut off or not sound, and every missing wait."""

import numpy as np
import pytest
from accelerated import ONE, block_words, filled, program, run, small_spec

from golden.accelerator import AcceleratorSpec
from golden.layernorm import LayerNormParams, LayerNormSpec
from golden.machine import Drained, Machine, ProgramError
from golden.program import Error, Op, Sink, Source, Tile, Unit, Wait, record_words


@pytest.mark.parametrize(
    ("error", "change"),
    [
        (Error.HEAD, lambda words: np.concatenate([words[8:], words[:8]])),
        (Error.HEAD, lambda words: words * 0),
        (Error.CONFIGURATION, lambda words: np.concatenate([words[:2], words[2:3] ^ 1, words[3:]])),
        (Error.OPERATION, lambda words: np.concatenate([words[:8], words[8:] * 0 + 99])),
        (Error.ENDED, lambda words: words[:8]),
        (Error.ENDED, lambda words: words[:-1]),
        (Error.ENDED, lambda words: words[:0]),
    ],
)
def test_a_run_that_ends_early(error, change):
    spec = small_spec()
    words = program(spec)
    image = np.zeros((0, 4), np.uint8)
    Machine(spec).run(words, image)
    with pytest.raises(ProgramError) as caught:
        Machine(spec).run(change(words), image)
    assert caught.value.error is error


def test_another_image_and_another_spec():
    spec = small_spec()
    with pytest.raises(ProgramError, match="IMAGE") as caught:
        Machine(spec).run(program(spec, image_words=2), np.zeros((1, 4), np.uint8))
    assert caught.value.error is Error.IMAGE
    with pytest.raises(ProgramError, match="IMAGE"):
        Machine(spec).run(program(spec, image_words=129), np.zeros((129, 4), np.uint8))
    with pytest.raises(ProgramError, match="CONFIGURATION"):
        Machine(AcceleratorSpec(size=4)).run(program(spec), np.zeros((0, 4), np.uint8))


def test_a_payload_that_is_cut_off():
    spec = small_spec()
    words = program(spec, (Op.MULTIPLY, 0, {**ONE, "sink": Sink.KEYS}, None), end=False)
    with pytest.raises(ProgramError, match="ENDED"):
        Machine(spec).run(words, np.zeros((0, 4), np.uint8))


PLAIN = block_words(4, [0] * 4, [1] * 4, [0] * 4, [0] * 4, np.full((1, 4, 4), 127))


@pytest.mark.parametrize(
    ("sentence", "op", "operands", "payload"),
    [
        ("Address in features must be below 128", Op.MULTIPLY, {"source_base": 128}, PLAIN),
        ("Address in queries must be below 128", Op.MULTIPLY, {"sink_base": 128}, PLAIN),
        ("Element of queries must be from -128 to 127", Op.MULTIPLY, {"clamp": 9}, PLAIN),
        ("Clamp must be from 2 to 32, not 1", Op.MULTIPLY, {"clamp": 1}, PLAIN),
        (
            "Blocks must be 1 with resume, not 2",
            Op.MULTIPLY,
            {"resume": 1, "blocks": 2, "sink_stride": 1},
            None,
        ),
        ("Tokens must be from 1 to 16, not 17", Op.MULTIPLY, {"tokens": 17}, None),
        ("Depth must be from 1 to 128, not 0", Op.MULTIPLY, {"depth": 0}, None),
        ("Depth must be from 1 to 128, not 129", Op.MULTIPLY, {"depth": 129}, None),
        ("Blocks must be from 1 to 128, not 129", Op.MULTIPLY, {"blocks": 129, "sink_stride": 1}, None),
        ("Zero point must be from -128", Op.MULTIPLY, {"sink": Sink.STREAM, "zero_in": 128}, PLAIN),
        ("Shift n must be from 0 to 62, not 63", Op.MULTIPLY, {}, 63),
        ("not write the words of features", Op.MULTIPLY, {"sink": Sink.FEATURES}, PLAIN),
        ("Sink stride must be at least 1", Op.MULTIPLY, {"blocks": 2}, None),
        ("3 is not a valid Source", Op.MULTIPLY, {"source": 3}, PLAIN),
        ("3 is not a valid Tile", Op.MULTIPLY, {"tile": 3}, PLAIN),
        ("Sink must be FEATURES or STREAM, not KEYS", Op.LOAD, {"sink": Sink.KEYS}, None),
        ("3 is not a valid Unit", Op.WRITE, {"unit": 3}, None),
        ("Address must be a parameter's, not 5", Op.WRITE, {"unit": Unit.LAYERNORM, "count": 1}, (5, 0)),
        ("Address must be 0, not 1", Op.WRITE, {"unit": Unit.SOFTMAX, "count": 1}, (1, 1)),
        ("Output code must be from -128", Op.WRITE, {"unit": Unit.GELU, "count": 1}, (1, 128)),
        ("Address must be from 0 to 255", Op.WRITE, {"unit": Unit.GELU, "count": 1}, (256, 1)),
        ("1 to 4 last lanes", Op.SOFTMAX, {"tokens": 1, "depth": 1, "last_lanes": 5}, None),
        ("E must be from 1", Op.LAYERNORM, {"tokens": 1, "depth": 1, "last_lanes": 4}, None),
    ],
)
def test_a_program_that_is_not_sound(sentence, op, operands, payload):
    if op is Op.MULTIPLY:
        operands = {**ONE, "sink": Sink.QUERIES, **operands}
    if isinstance(payload, int):
        payload = block_words(4, [0] * 4, [1] * 4, [payload] * 4, [0] * 4, np.zeros((1, 4, 4)))
    elif isinstance(payload, tuple):
        payload = record_words([payload[0]], [payload[1]], 4)
    machine, _ = filled(small_spec())
    with pytest.raises(ValueError, match=f"^Instruction 1, {op.name}: .*{sentence}"):
        run(machine, (op, 0, operands, payload))


def test_sums_beyond_the_accumulator():
    machine, _ = filled(small_spec(acc_bits=24))
    payload = block_words(4, [1 << 23] * 4, [1] * 4, [0] * 4, [0] * 4, np.zeros((1, 4, 4)))
    with pytest.raises(ValueError, match="Sum with its bias must be from -8388608"):
        run(machine, (Op.MULTIPLY, 0, {**ONE, "sink": Sink.QUERIES}, payload))


def test_words_of_another_shape():
    machine = Machine(small_spec())
    good, image = program(machine.spec), np.zeros((0, 4), np.uint8)
    with pytest.raises(ValueError, match=r"Program must be uint8 \[words, 4\], not int64"):
        machine.run(good.astype(np.int64), image)
    with pytest.raises(ValueError, match=r"Image must be uint8 \[words, 4\], not uint8 \(0, 8\)"):
        machine.run(good, np.zeros((0, 8), np.uint8))


# ------------------------------------------------------------------------------------------ waits


def product(sink, wait=0, **more):
    return Op.MULTIPLY, wait, {**ONE, "sink": sink, **more}, PLAIN


NORM = {"tokens": 1, "depth": 1, "last_lanes": 4}
CODES = {"source": Source.CODES, "sink_base": 99, "even": 1, "odd": 1}


def waits(sentence, unit, *parts):
    """The last instruction is refused without waiting for a unit, and taken with it."""
    *before, (op, wait, operands, payload) = parts
    params = LayerNormParams(
        zero_point=0, eps=1, point=5, **dict.fromkeys(("shift", "gain", "offset"), np.zeros(4, int))
    )
    pairs = np.array(params.words(LayerNormSpec()))
    content = record_words(pairs[:, 0], pairs[:, 1], 4)
    first = (Op.WRITE, 0, {"unit": Unit.LAYERNORM, "count": len(pairs)}, content)
    for missing in (True, False):
        machine, _ = filled(small_spec())
        last = (op, wait if missing else wait | unit, operands, payload)
        if missing:
            number = len(parts) + 1
            with pytest.raises(ValueError, match=f"^Instruction {number}, {op.name}: .*{sentence}"):
                run(machine, first, *before, last)
        else:
            run(machine, first, *before, last)


def test_what_depends_on_the_array_waits_for_it():
    array = Wait.ARRAY
    sums = "It must wait for ARRAY before it"
    waits(f"{sums} reads stream", array, product(Sink.STREAM), (Op.LAYERNORM, 0, NORM, None))
    waits(f"{sums} reads scores", array, product(Sink.SCORES), (Op.SOFTMAX, 0, NORM, None))
    waits(f"{sums} writes features", array, product(Sink.KEYS), (Op.LAYERNORM, 0, NORM, None))
    waits(f"{sums} writes codes", array, product(Sink.KEYS, **CODES), (Op.SOFTMAX, 0, NORM, None))
    waits(
        f"{sums} reads features",
        array,
        product(Sink.FEATURES, sink_base=9),
        product(Sink.KEYS, source_base=9),
    )
    waits(f"{sums} reads stream", array, product(Sink.STREAM), product(Sink.STREAM))
    scores = (Op.MULTIPLY, 0, {**ONE, "sink": Sink.SCORES, "tile": Tile.KEYS}, PLAIN[:9])
    waits(f"{sums} reads keys", array, product(Sink.KEYS, sink_base=3), scores)
    values = (Op.MULTIPLY, 0, {**ONE, "sink": Sink.SCORES, "tile": Tile.VALUES}, PLAIN[:9])
    waits(f"{sums} reads values", array, product(Sink.VALUES, sink_base=3), values)
    load = (Op.LOAD, 0, {"sink": Sink.STREAM, "count": 1}, PLAIN[:1])
    waits(f"{sums} writes stream", array, product(Sink.STREAM), load)
    table = (Op.WRITE, 0, {"unit": Unit.GELU, "count": 1}, record_words([0], [0], 4))
    waits(f"{sums} changes the parameters", array, product(Sink.QUERIES, gelu=1), table)
    resumed = product(Sink.QUERIES, resume=1)
    waits(f"{sums} works on the sums", array, product(Sink.SUMS, clamp=32), resumed)


def test_what_depends_on_a_row_unit_waits_for_it():
    norm, soft = (Op.LAYERNORM, 0, NORM, None), (Op.SOFTMAX, 0, NORM, None)
    waits("wait for LAYERNORM before it reads features", Wait.LAYERNORM, norm, product(Sink.KEYS))
    waits(
        "wait for LAYERNORM before it writes stream",
        Wait.LAYERNORM,
        norm,
        product(Sink.STREAM, source_base=9),
    )
    waits("wait for SOFTMAX before it reads codes", Wait.SOFTMAX, soft, product(Sink.KEYS, **CODES))
    waits("wait for SOFTMAX before it writes scores", Wait.SOFTMAX, soft, product(Sink.SCORES))
    for unit, rows, wait in (
        (Unit.LAYERNORM, norm, Wait.LAYERNORM),
        (Unit.SOFTMAX, soft, Wait.SOFTMAX),
    ):
        write = (Op.WRITE, 0, {"unit": unit, "count": 1}, record_words([0], [1], 4))
        waits("changes the parameters", wait, rows, write)


def test_two_units_do_not_use_one_port_of_a_memory():
    """Whatever the words: of two at once the hardware does one."""
    norm, apart = (Op.LAYERNORM, 0, NORM, None), (Op.LAYERNORM, 0, NORM | {"sink_base": 30}, None)
    array = "It must wait for ARRAY before it"
    waits(f"{array} writes features", Wait.ARRAY, product(Sink.FEATURES, sink_base=9), apart)
    features = product(Sink.FEATURES, source_base=9, sink_base=30)
    waits("must wait for LAYERNORM before it writes features", Wait.LAYERNORM, norm, features)
    stream = product(Sink.STREAM, sink_base=9)
    reads = (Op.LAYERNORM, 0, NORM | {"source_base": 30, "sink_base": 30}, None)
    waits(f"{array} reads stream", Wait.ARRAY, stream, reads)
    load = (Op.LOAD, 0, {"sink": Sink.STREAM, "count": 1}, PLAIN[:1])
    waits(f"{array} writes stream", Wait.ARRAY, stream, load)


def test_what_keeps_its_order_by_itself_need_not_wait():
    machine, events = filled(small_spec())
    again = product(Sink.KEYS)
    read_then_written = (product(Sink.KEYS, source_base=9), product(Sink.FEATURES, sink_base=9))
    soft = (Op.SOFTMAX, 0, NORM, None)
    other = (Op.WRITE, 0, {"unit": Unit.GELU, "count": 1}, record_words([0], [0], 4))
    run(machine, again, again, *read_then_written, other, soft, soft, product(Sink.QUERIES))
    assert sum(isinstance(event, Drained) for event in events) == 5

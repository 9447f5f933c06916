# SPDX-License-Identifier: Apache-2.0
"""The machine against the page: every operation by loops of integers, every error, every missing wait."""

import numpy as np
import pytest
from accelerated import block_words, program, small_spec

from golden.accelerator import AcceleratorSpec
from golden.layernorm import LayerNormParams, LayerNormSpec, layernorm
from golden.machine import Drained, Machine, ProgramError, Rows
from golden.program import Error, Op, Sink, Source, Tile, Unit, Wait, record_words
from golden.softmax import SoftmaxParams, softmax
from qvit_hw.small_networks import SQRT2

WIDE = LayerNormSpec(in_bits=16)
MEMORIES = ("features", "queries", "keys", "values", "stream", "scores", "codes")
ONE = {"tokens": 1, "depth": 1, "blocks": 1, "clamp": 8}


def rounded(x, n):
    return (x + ((1 << n) >> 1)) >> n


def element_range(spec, memory):
    if memory == "codes":
        return 0, spec.softmax.last_code
    bits = {"stream": spec.stream_bits, "scores": spec.softmax.score_bits}.get(memory, 8)
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def filled(spec, seed=0):
    """A machine whose memories hold random elements, and the list of what it tells."""
    events = []
    machine, rng = Machine(spec, events.append), np.random.default_rng(seed)
    for memory in MEMORIES:
        low, high = element_range(spec, memory)
        machine.memory[memory][:] = rng.integers(low, high + 1, machine.memory[memory].shape)
    machine._frac = spec.softmax.frac_bits
    machine._table[:] = rng.integers(-128, 128, len(machine._table))
    return machine, events


def run(machine, *parts):
    spec = machine.spec
    return machine.run(program(spec, *parts), np.zeros((0, spec.size), np.uint8))


def weight_of(spec, code, even, odd):
    """What a code counts: 2**(top - octave), in so many words of the page."""
    per = 2 if spec.softmax.base == "sqrt2" else 1
    octave = -(-code // per)
    if (
        code == spec.softmax.last_code
        or octave > spec.attend.top
        or not (odd if code % 2 else even)
    ):
        return 0
    return 1 << (spec.attend.top - octave)


def literal(machine, operands, parameters, weights, sums):
    """[(acc, word) by block and token] as the page's loops have it; ``sums``: by token, changed."""
    spec, size, memory = (
        machine.spec,
        machine.size,
        {k: v.copy() for k, v in machine.memory.items()},
    )
    o = {**dict.fromkeys(("source_base", "tile_base", "sink_base", "stride", "sink_stride"), 0)}
    o |= {**dict.fromkeys(("resume", "gelu", "even", "odd", "gain", "zero_in", "zero_out"), 0)}
    o |= operands
    sink = Sink(o["sink"]).name.lower()
    source = Source(o["source"]).name.lower()
    out = []
    for block in range(o["blocks"]):
        for k in range(o["depth"]):
            for t in range(o["tokens"]):
                x = memory[source][o["source_base"] + k * o["stride"] + t].tolist()
                if source == "codes":
                    x = [weight_of(spec, code, o["even"], o["odd"]) for code in x]
                for c in range(size):
                    if o["tile"] == Tile.STREAM:
                        column = weights[block][k][c]
                    elif o["tile"] == Tile.KEYS:
                        column = memory["keys"][o["tile_base"] + k * o["stride"] + block * size + c]
                    else:
                        base = o["tile_base"] + block * o["stride"] + k * size
                        column = [memory["values"][base + r][c] for r in range(size)]
                    old = 0 if k == 0 and not o["resume"] else sums[t][c]
                    sums[t][c] = old + sum(int(a) * int(b) for a, b in zip(x, column, strict=True))
        for t in range(o["tokens"]):
            address = o["sink_base"] + block * o["sink_stride"] + t
            accs, words = [], []
            for c in range(size):
                bias, m, n, a = (int(parameters[block][i][c]) for i in range(4))
                acc = sums[t][c] + bias
                x = (
                    (int(memory["stream"][address][c]) - o["zero_in"] << a)
                    if sink == "stream"
                    else 0
                )
                y = rounded(x * o["gain"] + acc * m, n) + o["zero_out"]
                half = 1 << (o["clamp"] - 1)
                y = max(-half, min(half - 1, y))
                if o["gelu"]:
                    y = int(machine._table[y % len(machine._table)])
                words.append(acc if sink == "outputs" else y)
                accs.append(acc)
            if sink == "sums":
                sums[t] = list(words)
            else:
                memory[sink][address] = words
            out.append((accs, words))
    return out, memory


CASES = {
    "ties": {"sink": Sink.QUERIES, "tied": True},
    "features to keys": {"sink": Sink.KEYS},
    "features to values": {"sink": Sink.VALUES, "zero_out": -7},
    "gelu": {"sink": Sink.FEATURES, "gelu": 1, "sink_base": 100},
    "wide gelu": {"sink": Sink.FEATURES, "gelu": 1, "sink_base": 100, "clamp": 10, "gelu_bits": 10},
    "stream": {"sink": Sink.STREAM, "gain": 3 << 20, "zero_in": -9, "zero_out": 5, "wide": True},
    "narrow stream": {"sink": Sink.STREAM, "gain": (1 << 32) - 1, "zero_in": 3, "n": 38},
    "outputs": {"sink": Sink.OUTPUTS},
    "keys": {"sink": Sink.SCORES, "source": Source.QUERIES, "tile": Tile.KEYS, "clamp": 12},
    "values": {"sink": Sink.FEATURES, "source": Source.CODES, "tile": Tile.VALUES},
    "odd": {"sink": Sink.FEATURES, "source": Source.CODES, "tile": Tile.VALUES, "even": 0, "n": 32},
    "sqrt 2, even": {"source": Source.CODES, "tile": Tile.VALUES, "odd": 0, "softmax": SQRT2},
    "sqrt 2, odd": {"source": Source.CODES, "tile": Tile.VALUES, "even": 0, "softmax": SQRT2},
    "resume": {"sink": Sink.SCORES, "resume": 1, "blocks": 1, "clamp": 12},
    "sums": {"sink": Sink.SUMS, "clamp": 32},
}
SPECS = ("gelu_bits", "softmax")


@pytest.mark.parametrize("size", [4, 8])
@pytest.mark.parametrize("name", CASES)
def test_a_product_is_what_the_page_says(name, size):
    case = dict(CASES[name])
    tied, wide, deep = (case.pop(key, None) for key in ("tied", "wide", "n"))
    more = {key: case.pop(key) for key in SPECS if key in case}
    if wide:
        more |= {"stream_bits": 16, "layernorm": WIDE}
    spec = small_spec(size, **more)
    machine, events = filled(spec)
    rng = np.random.default_rng(1)
    operands = {"source": Source.FEATURES, "tile": Tile.STREAM, "sink": Sink.FEATURES, "tokens": 5}
    operands |= {"depth": 3, "blocks": 2, "source_base": 2, "tile_base": 1, "stride": 3 * size}
    operands |= {"sink_base": 1, "sink_stride": 6, "clamp": 16 if wide else 8, "even": 1, "odd": 1}
    operands |= case
    if operands["sink"] == Sink.FEATURES and operands["source"] == Source.CODES:
        operands["sink_base"] = 100
    if operands["sink"] == Sink.SUMS:
        operands["sink_base"] = 0
    blocks, shape = operands["blocks"], (operands["blocks"], size)
    bias = rng.integers(-3000, 3000, shape)
    multiplier = rng.integers(1 << 15, 1 << 16, shape)
    shift = rng.integers(21, 25, shape)
    if operands["source"] == Source.CODES or deep:
        shift[:] = deep or 36
    if tied:
        multiplier[:], shift[:] = 1, 1
    align = rng.integers(0, 8, shape)
    parameters = [[bias[b], multiplier[b], shift[b], align[b]] for b in range(blocks)]
    weights = rng.integers(-128, 128, (blocks, operands["depth"], size, size))
    streamed = operands["tile"] == Tile.STREAM
    payload = np.concatenate(
        [block_words(size, *parameters[b], weights[b] if streamed else None) for b in range(blocks)]
    )
    start = rng.integers(-1000, 1000, (spec.max_tokens, size))
    machine.memory["sums"][:] = start
    sums = start.tolist()
    wanted, memory = literal(machine, operands, parameters, weights, sums)
    run(machine, (Op.MULTIPLY, 0, operands, payload))
    found = [
        (acc, word)
        for event in events
        for acc, word in zip(event.sums.tolist(), event.words.tolist(), strict=True)
    ]
    assert found == wanted
    assert [(event.instruction, event.block) for event in events] == [(1, b) for b in range(blocks)]
    for each in (*MEMORIES, "outputs"):
        assert np.array_equal(machine.memory[each], memory[each]), each
    assert machine.memory["sums"].tolist() == sums
    if tied:
        assert any(acc % 2 for accs, _ in wanted for acc in accs)
    else:
        assert len({word for _, words in wanted for word in words}) > 4


def test_every_flipped_bit_of_a_payload_is_seen():
    spec = small_spec(stream_bits=16, layernorm=WIDE)
    weight = np.arange(1, 17).reshape(1, 4, 4)
    payload = block_words(4, [0] * 4, [1] * 4, [0] * 4, [0] * 4, weight)
    operands = {**ONE, "sink": Sink.STREAM, "gain": 1, "clamp": 16}

    def words(content):
        machine, events = filled(spec)
        machine.memory["features"][0], machine.memory["stream"][0] = 3, 77
        run(machine, (Op.MULTIPLY, 0, operands, content))
        return [events[0].sums.tolist(), events[0].words.tolist()]

    same = words(payload)
    for place in range(payload.size):
        broken = payload.copy()
        broken.reshape(-1)[place] ^= 1
        assert words(broken) != same, place
    assert words(payload) == same


# ------------------------------------------------------------------------------------ rows, loads


def test_layernorm_has_two_banks_of_parameters():
    spec = small_spec(stream_bits=16, layernorm=WIDE)
    machine, events = filled(spec)
    rng = np.random.default_rng(3)

    def params(count):
        return LayerNormParams(
            zero_point=-3,
            eps=(3 << 32) + 900,
            point=12,
            shift=rng.integers(0, 4, count),
            gain=rng.integers(-(1 << 15), 1 << 15, count),
            offset=rng.integers(-(1 << 30), 1 << 30, count),
        )

    first, second = params(10), params(10)

    def write(given, wait=0, commit=True):
        pairs = np.array(given.words(WIDE))[: None if commit else -1]
        content = record_words(pairs[:, 0], pairs[:, 1], 4)
        return Op.WRITE, wait, {"unit": Unit.LAYERNORM, "count": len(pairs)}, content

    rows = {"tokens": 5, "depth": 3, "last_lanes": 2, "source_base": 4, "stride": 6}
    rows |= {"sink_base": 8, "sink_stride": 7}
    go = (Op.LAYERNORM, 0, rows, None)
    stream = machine.memory["stream"].copy()
    wait = Wait.LAYERNORM
    run(machine, write(first), go, write(second, wait, commit=False), go, write(second, wait), go)
    places = 4 + np.arange(3) * 6 + np.arange(5)[:, None]
    given = stream[places].reshape(5, -1)[:, :10]
    for event, used in zip(events, (first, first, second), strict=True):
        assert isinstance(event, Rows)
        assert np.array_equal(event.words.reshape(5, 12)[:, :10], layernorm(given, WIDE, used))
    written = machine.memory["features"][8 + np.arange(3) * 7 + np.arange(5)[:, None]]
    assert np.array_equal(written.reshape(-1, 4), events[-1].words)


def test_the_parameters_come_back_from_their_words():
    spec = LayerNormSpec(max_channels=8)
    given = LayerNormParams(
        zero_point=-128,
        eps=(1 << 40) - 1,
        point=14,
        shift=np.array([0, 3]),
        gain=np.array([-32768, 32767]),
        offset=np.array([-(1 << 31), (1 << 31) - 1]),
    )
    found = LayerNormParams.from_words(dict(given.words(spec)), 2)
    assert (found.zero_point, found.eps, found.point) == (-128, (1 << 40) - 1, 14)
    for name in ("shift", "gain", "offset"):
        assert np.array_equal(getattr(found, name), getattr(given, name))
    assert LayerNormParams.from_words({}, 3).shift.tolist() == [0, 0, 0]


@pytest.mark.parametrize("frac", [1, 4])
def test_softmax_writes_last_codes_behind_a_row(frac):
    spec = small_spec()
    machine, events = filled(spec)
    rows = {"tokens": 3, "depth": 2, "last_lanes": 3, "stride": 3, "sink_base": 5, "sink_stride": 4}
    scores = machine.memory["scores"].copy()
    write = (Op.WRITE, 0, {"unit": Unit.SOFTMAX, "count": 1}, record_words([0], [frac], 4))
    run(machine, write, (Op.SOFTMAX, 0, rows, None))
    given = scores[np.arange(2) * 3 + np.arange(3)[:, None]].reshape(3, -1)[:, :7]
    words = events[0].words.reshape(3, 8)
    assert np.array_equal(words[:, :7], softmax(given, spec.softmax, SoftmaxParams(frac=frac)))
    assert (words[:, 7] == 15).all()


@pytest.mark.parametrize("bits", [8, 16])
def test_a_load_is_one_word_or_two(bits):
    spec = small_spec(stream_bits=bits, layernorm=LayerNormSpec(in_bits=bits))
    words = np.arange(-8, 8).reshape(4, 4) * (1 if bits == 8 else 4000)
    planes = words[:, None] if bits == 8 else np.stack([words, words >> 8], axis=1)
    content = (planes & 255).astype(np.uint8).reshape(-1, 4)
    machine = Machine(spec)
    run(machine, (Op.LOAD, 0, {"sink": Sink.STREAM, "count": 4, "sink_base": 7}, content))
    assert np.array_equal(machine.memory["stream"][7:11], words)
    run(machine, (Op.LOAD, 0, {"sink": Sink.FEATURES, "count": 4}, (words & 127).astype(np.uint8)))
    assert np.array_equal(machine.memory["features"][:4], words & 127)


def test_the_image_s_pixels_are_less_128():
    spec, image = small_spec(), np.array([[0, 127, 128, 255]], np.uint8)
    machine = Machine(spec)
    machine.run(program(spec, image_words=1), image)
    assert machine.memory["features"][0].tolist() == [-128, -1, 0, 127]


# ----------------------------------------------------------------------------------------- errors


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
        ("1 to 16 tokens", Op.MULTIPLY, {"tokens": 17}, None),
        ("must have blocks, depth", Op.MULTIPLY, {"depth": 0}, None),
        ("Shift n must be from 0 to 62, not 63", Op.MULTIPLY, {}, 63),
        ("not write the words of features", Op.MULTIPLY, {"sink": Sink.FEATURES}, PLAIN),
        ("Sink stride must be at least 1", Op.MULTIPLY, {"blocks": 2}, None),
        ("3 is not a valid Source", Op.MULTIPLY, {"source": 3}, PLAIN),
        ("3 is not a valid Tile", Op.MULTIPLY, {"tile": 3}, PLAIN),
        ("Sink must be FEATURES or STREAM, not KEYS", Op.LOAD, {"sink": Sink.KEYS}, None),
        ("3 is not a valid Unit", Op.WRITE, {"unit": 3}, None),
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

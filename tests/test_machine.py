# SPDX-License-Identifier: Apache-2.0
"""The machine against the page: every operation by loops of integers."""

import numpy as np
import pytest
from accelerated import MEMORIES, ONE, block_words, filled, program, run, small_spec

from golden.layernorm import LayerNormParams, LayerNormSpec, layernorm
from golden.machine import Machine, Rows
from golden.program import Op, Sink, Source, Tile, Unit, Wait, record_words
from golden.softmax import SoftmaxParams, softmax
from qvit_hw.small_networks import SQRT2

WIDE = LayerNormSpec(in_bits=16)


def rounded(x, n):
    return (x + ((1 << n) >> 1)) >> n


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

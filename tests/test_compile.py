# SPDX-License-Identifier: Apache-2.0
"""The compiler: every tensor of a compiled network is golden's, no wait is in vain, what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from accelerated import compiled, executed
from networks import images, tiny_swin

from golden.accelerator import PRESETS, AcceleratorSpec
from golden.layernorm import LayerNormSpec
from golden.machine import Machine
from golden.node import Node
from golden.program import Wait, instruction_words
from golden.softmax import SoftmaxSpec
from golden.vit import VitModel
from qvit_hw.compiler.layout import Layout, fitted
from qvit_hw.compiler.schedule import compile_network
from qvit_hw.compiler.stages import recognise
from qvit_hw.compiler.tensors import SUMS, differences, recorded, references, regrouped, replayed
from qvit_hw.errors import UserError
from qvit_hw.small_networks import BASE2, tiny_network

NETWORKS = {
    "plain": {},
    "wide": {"wide": True},
    "head of one channel": {"heads": (12, 1)},
    "no prefix": {"prefix": 0, "heads": (2,)},
    "codes": {"head": False, "heads": (4,), "wide": True},
    "early": {"early": True, "heads": (3,)},
    "five by seven": {"width": 35, "heads": (5, 7), "wide": True, "pixels": (1, 16, 20)},
    "no blocks": {"heads": ()},
}


@pytest.mark.parametrize("size", [4, 8, 16, 32])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_tensor_is_golden_s(name, size):
    model = tiny_network(**NETWORKS[name])
    program = compiled(model, size)
    for image in images(model):
        events, result = executed(program, image)
        wanted = references(program, model, image)
        assert differences(regrouped(program, events), wanted) == []
        assert np.array_equal(result, model(image[None])[0])
    assert program.output == (model.output, len(result))
    hidden = {
        node.name for node in model.nodes if node.op == "linear" and node.name.endswith("fc1")
    }
    seen = {node.name for node in model.nodes if node.op != "select" or node.name == model.output}
    assert set(wanted) == {name + SUMS if name in hidden else name for name in seen}


def test_a_machine_keeps_nothing_from_one_network_to_the_next():
    size, models = 8, [tiny_network(), tiny_network(seed=1, heads=(4,), prefix=1)]
    spec = fitted(recognise(models[0]), AcceleratorSpec(size=size))
    machine = Machine(spec)
    for model in (*models, models[0]):
        program = compile_network(model, spec)
        for image in images(model):
            result = program.result(machine.run(program.words, program.image_words(image)))
            assert np.array_equal(result, model(image[None])[0])


def test_a_wrong_weight_and_a_wrong_place_are_seen():
    model = tiny_network()
    program, image = compiled(model, 4), images(model)[2]
    wanted = references(program, model, image)
    step = next(step for step in program.steps if step.note.startswith("blocks.1.mlp.fc1"))
    words = program.words.copy()
    words[step.word + 8 + 9, 0] ^= 1  # the first weight
    events, _ = executed(replace(program, words=words), image)
    found = differences(regrouped(program, events), wanted)
    assert found[0] == "blocks.1.mlp.fc1" + SUMS
    assert "blocks.1.norm2" not in found
    events, _ = executed(program, image)
    parts = tuple(replace(part, column=part.column + 1) for part in program.steps[6].parts)
    steps = (*program.steps[:6], replace(program.steps[6], parts=parts), *program.steps[7:])
    assert differences(regrouped(replace(program, steps=steps), events), wanted) == [
        "blocks.0.attn.qkv"
    ]
    assert differences({}, wanted) == list(wanted)


def test_the_words_of_a_run_lead_to_the_same_tensors():
    model = tiny_network(wide=True)
    program, image = compiled(model, 8), images(model)[2]
    events, _ = executed(program, image)
    run = recorded(program, events)
    again = regrouped(program, replayed(program, run))
    assert differences(again, references(program, model, image)) == []
    for name in ("sums", "words", "layernorm", "softmax"):
        for part in (getattr(run, name)[:-1], getattr(run, name).repeat(2, axis=0)):
            with pytest.raises(ValueError, match=f"^Words of {name} must be "):
                replayed(program, replace(run, **{name: part}))


# ------------------------------------------------------------------------------------------ waits


@pytest.mark.parametrize("size", [4, 16])
@pytest.mark.parametrize("wide", [False, True])
def test_no_wait_is_in_vain(size, wide):
    model = tiny_network(wide=wide, heads=(3, 1))
    program, image = compiled(model, size), images(model)[2]
    waits = 0
    for number, step in enumerate(program.steps):
        for unit in Wait:
            if not unit & step.instruction.wait:
                continue
            waits += 1
            less = replace(step.instruction, wait=step.instruction.wait & ~unit)
            words = program.words.copy()
            changed = instruction_words(less, size)
            words[step.word : step.word + len(changed)] = changed
            with pytest.raises(
                ValueError, match=f"^Instruction {number}, .* must wait for {unit.name}"
            ):
                executed(replace(program, words=words), image)
    assert waits > 20


# ------------------------------------------------------------------------------- what is refused


def changed(model, name, **fields):
    """The model with another spec, params or layout in one node."""
    nodes = [replace(node, **fields) if node.name == name else node for node in model.nodes]
    return VitModel(nodes, model.input_size)


def refuse(sentence, model, spec=None):
    spec = spec or PRESETS["16x16"]
    with pytest.raises(UserError, match=f"^{sentence}$"):
        compile_network(model, spec)


SMALL = AcceleratorSpec(size=8, softmax=BASE2, layernorm=LayerNormSpec(max_channels=64))


def test_networks_that_have_no_place():
    node = "Node '{}' cannot run on the accelerator: "
    refuse(node.format("start") + "here it takes embed, not start.", tiny_swin(), SMALL)
    model = tiny_network()
    nodes = [*model.nodes[:-2], replace(model["pool"], layout={"tokens": (0, 1)})]
    refuse(
        node.format("pool") + "it selects 2 tokens, not one.",
        VitModel(nodes, model.input_size),
        SMALL,
    )
    end = Node(name="again", op="select", inputs=("norm",), layout={"tokens": (0,)})
    more = VitModel([*tiny_network(head=False).nodes, end], model.input_size)
    refuse(node.format("again") + "here it takes linear, not select.", more, SMALL)
    refuse(
        "Network must go on with layernorm, not end with 'blocks.1.residual2'.",
        VitModel(model.nodes[:-3], model.input_size),
        SMALL,
    )
    windows = {"heads": 2, "windows": np.arange(8).reshape(1, 8)}
    scores = model["blocks.0.attn.scores"]
    bias = replace(scores.params, bias=np.zeros((2, 8, 8), np.int64))
    refuse(
        node.format(scores.name) + "it has a bias of relative positions.",
        changed(model, scores.name, params=bias),
        SMALL,
    )
    short = VitModel(
        [
            replace(node, layout={**windows}) if node.name == scores.name else node
            for node in model.nodes[:5]
        ],
        model.input_size,
    )
    refuse(node.format(scores.name) + "it has windows.", short, SMALL)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"layernorm": LayerNormSpec()},
            "'blocks.0.norm1' .*: its max_channels is 64, the .* 3072",
        ),
        (
            {"softmax": replace(BASE2, max_tokens=65)},
            "'blocks.0.attn' .*: its max_tokens is 64, .* 65",
        ),
        (
            {"acc_bits": 24},
            "'blocks.0.attn.qkv' .*: its accumulator must be 24 bits or less, not 32",
        ),
    ],
)
def test_an_accelerator_of_other_units(change, sentence):
    refuse(f"Node {sentence}.*", tiny_network(), replace(SMALL, **change))


def test_codes_wider_than_the_table_and_the_stream():
    model = tiny_network(wide=True)
    spec = fitted(recognise(model), SMALL)
    compile_network(model, spec)
    refuse(
        "Node 'blocks.0.mlp.fc1' .*: its code must be 8 bits or less, not 10 "
        r"\(--fit takes it from the bundle\)\.",
        model,
        replace(spec, gelu_bits=8),
    )
    narrow = replace(spec, stream_bits=8, layernorm=replace(spec.layernorm, in_bits=8))
    refuse("Node 'blocks.0.norm1' .*: its in_bits is 16, the configuration's 8 .*", model, narrow)


def test_all_memories_that_are_too_small_are_named():
    small = replace(SMALL, features=16, keys=16, max_tokens=16)
    model = tiny_network(pixels=(3, 16, 20))
    with pytest.raises(UserError) as caught:
        compile_network(model, small)
    needs = Layout(recognise(model), 8).needs
    assert str(caught.value) == (
        f"The network does not fit: max_tokens must be 22, not 16; features must have {needs['features']} "
        f"words, not 16; keys must have {needs['keys']} words, not 16 (--fit enlarges them)."
    )
    assert needs["keys"] == 24  # 22 tokens in whole blocks of 8
    exact = replace(small, **{name: max(16, words) for name, words in needs.items()})
    compile_network(model, exact)
    for name, words in needs.items():
        if words > 16:
            with pytest.raises(UserError, match=f"fit: {name} must [a-z ]*{words}"):
                compile_network(model, replace(exact, **{name: words - 1}))


def test_a_vit_s_14_needs_more_than_a_preset_and_fits_with_fit():
    """DINOv2's shape: 257 tokens of 384 channels, no head."""
    pixels, specs = (3, 224, 224), {"softmax": SoftmaxSpec(), "head": False}
    model = tiny_network(width=384, heads=(6,), prefix=1, pixels=pixels, patch=14, **specs)
    # Builder's hidden layer is twice as wide as the stream: 24 + 48 blocks of 257 words.
    said = "max_tokens must be 257, not 256; features must have 18504 words, not 12288; "
    said += "stream must have 6168 words, not 4096; scores must have 4369 words, not 4096; "
    said += "codes must have 9248 words, not 8192"
    refuse(rf"The network does not fit: {said} \(--fit enlarges them\)\.", model)
    spec = fitted(recognise(model), PRESETS["16x16"])
    assert (spec.max_tokens, spec.features, spec.stream) == (320, 18944, 6656)
    program = compile_network(model, spec)
    image = images(model)[2]
    events, result = executed(program, image)
    wanted = references(program, model, image)
    assert differences(regrouped(program, events), wanted) == []
    assert np.array_equal(result, wanted["pool"][0])


def test_what_is_used_is_what_is_needed():
    """The machine refuses an address beyond a memory; so the exact depths hold every access."""
    model = tiny_network(wide=True)
    spec = fitted(recognise(model), SMALL)
    needs = {name: max(16, words) for name, words in Layout(recognise(model), 8).needs.items()}
    program, image = compile_network(model, replace(spec, **needs)), images(model)[2]
    _, result = executed(program, image)
    assert np.array_equal(result, model(image[None])[0])

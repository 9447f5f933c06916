# SPDX-License-Identifier: Apache-2.0
"""A trained network on the accelerator's Verilog: every tensor, every logit, and the cycles.

The whole test set takes a minute; here it is a part of it, and `make demo` runs the rest.
"""

from fractions import Fraction

import numpy as np
import pytest
import torch

from golden import accelerator_cycles
from golden.accelerator import AcceleratorSpec
from golden.accelerator_cycles import timeline
from golden.vit import VitModel
from qvit_hw.accelerator import Accelerator
from qvit_hw.calibration import calibrate_network
from qvit_hw.compiler.costs import costs, layer_of, macs_of
from qvit_hw.compiler.layout import fitted
from qvit_hw.compiler.schedule import compile_network
from qvit_hw.compiler.stages import recognise
from qvit_hw.divergence import check_words
from qvit_hw.integers import export
from qvit_hw.models import load_model
from qvit_hw.models.digits import digits_images
from qvit_hw.presets import find_preset
from sim.session import Bus

SIZE, IMAGES, WATCHED = 4, 12, 2
SMALL = dict.fromkeys(("features", "queries", "keys", "values", "stream", "scores", "codes"), 2048)


@pytest.fixture(scope="module")
def model():
    """The digits model in integers."""
    loaded = load_model("digits")
    known = torch.tensor(digits_images("train")[0][:16])
    twin, _ = calibrate_network(loaded.network, known, find_preset("default"))
    return VitModel(export(loaded.network, twin.plan), loaded.input_size)


@pytest.fixture(scope="module")
def program(model):
    spec = AcceleratorSpec(size=SIZE, max_tokens=32, outputs=16, **SMALL)
    return compile_network(model, fitted(recognise(model), spec))


@pytest.fixture(scope="module")
def images():
    return digits_images("test")[0][:IMAGES]


@pytest.fixture(scope="module")
def executions(program, images):
    accelerator = Accelerator(program)
    watched = accelerator.run(images[:WATCHED], watch=True)
    return watched + accelerator.run(images[WATCHED:])


def test_every_logit_of_every_image(model, images, executions):
    found = [execution.outputs for execution in executions]
    assert [execution.fault for execution in executions] == [None] * IMAGES
    np.testing.assert_array_equal(np.stack(found), model(images))


def test_every_word_of_some_images(model, program, images, executions):
    for image, execution in zip(images[:WATCHED], executions, strict=False):
        count, wrong, divergence = check_words(program, model, image, execution.words)
        assert (wrong, divergence) == ((), None)
        assert count == len({part.tensor for step in program.steps for part in step.parts})


def close(program, counted):
    """Whether the cycle model is within 16 cycles of those counted; the bus at the start is not modelled."""
    steps = [step.instruction for step in program.steps]
    predicted = timeline(steps, program.spec, steps[0]["image_words"], latency=Bus().latency).cycles
    return abs(predicted - counted) <= 16


def test_cycles_are_the_models_and_do_not_depend_on_the_image(program, executions, monkeypatch):
    counted = {execution.outcome.counters["cycles"] for execution in executions}
    assert len(counted) == 1
    (cycles,) = counted
    assert close(program, cycles)
    for name, wrong in (("DRAIN_LATENCY", 16), ("MOVER", 14), ("PARAMETER_WORDS", 8)):
        with monkeypatch.context() as patch:
            patch.setattr(accelerator_cycles, name, wrong)
            assert not close(program, cycles), name


def test_counters_are_the_models(program, executions):
    counters = executions[0].outcome.counters
    steps = [step.instruction for step in program.steps]
    run = timeline(steps, program.spec, steps[0]["image_words"])
    for unit in ("layernorm", "softmax"):
        assert counters[f"{unit}_busy"] == run.busy(unit)
    passes = sum(s["tokens"] * s["depth"] * s["blocks"] for s in steps if s.op.name == "MULTIPLY")
    assert counters["array_busy"] == passes


def test_costs_add_up(model, program):
    found = costs(program, model)
    assert sum(layer.cycles for layer in found.layers) == found.cycles
    assert found.macs == sum(macs_of(model, node.name) for node in model.nodes)
    assert found.bytes == (len(program.words) + program.steps[0].instruction["image_words"]) * SIZE
    names = {layer.name for layer in found.layers}
    assert {"patch_embed", "blocks.0.attn", "blocks.3.mlp", "head"} <= names
    assert layer_of("blocks.0.attn.scores") == "blocks.0.attn"


def test_less_bandwidth_costs_cycles_and_only_the_words_are_waited_for(program):
    steps = [step.instruction for step in program.steps]
    words = steps[0]["image_words"]
    cycles = [
        timeline(steps, program.spec, words, bandwidth=Fraction(1, n)).cycles for n in (1, 2, 4, 16)
    ]
    assert cycles == sorted(cycles) and cycles[0] < cycles[1]
    every = len(program.words) + words
    assert 16 * every <= cycles[-1] <= 16 * every + cycles[0]
    for bandwidth in (0, 2, Fraction(-1, 2)):
        with pytest.raises(ValueError, match=r"^Bandwidth must be above 0 and at most 1, not"):
            timeline(steps, program.spec, words, bandwidth=bandwidth)

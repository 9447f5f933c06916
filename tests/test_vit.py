# SPDX-License-Identifier: Apache-2.0
"""The whole network in integers: against plain loops, without a float, and refused where parts do not fit."""

import json
import re
import shutil
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from float_watch import fingerprint
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import images, tiny_swin, tiny_vit
from slow_vit import slow_trace

from golden import vit
from golden.linear import LinearSpec
from golden.node import OPERATIONS
from golden.vit import FUNCTIONS, Node, VitModel

ROOT = Path(__file__).resolve().parent.parent
MAKE = {"vit": tiny_vit, "swin": tiny_swin}


@pytest.fixture(params=MAKE)
def model(request):
    return MAKE[request.param]()


def differing(model, pixels):
    """Names of the tensors in which the model and plain loops disagree."""
    tensors = model.trace(pixels)
    assert list(tensors) == [node.name for node in model.nodes]
    slow = [slow_trace(model, image) for image in pixels]
    return [name for name, x in tensors.items() if x.tolist() != [each[name] for each in slow]]


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
@settings(max_examples=10)
@given(seed=st.integers(0, 1 << 32))
def test_every_tensor_is_that_of_plain_loops(make, seed):
    made = make(seed)
    assert differing(made, images(made, 3, seed)) == []


@pytest.mark.parametrize(
    "name", ["layers.0.blocks.1.attn.scores", "layers.0.blocks.1.attn.attend", "pool"]
)
def test_a_difference_of_one_is_seen(name, monkeypatch):
    model = tiny_swin()
    right = FUNCTIONS[model[name].op]

    def wrong(node, *inputs):
        out = right(node, *inputs).copy()
        if node.name == name:
            out[1, ..., -1] ^= 1
        return out

    monkeypatch.setattr(vit, "FUNCTIONS", {**FUNCTIONS, model[name].op: wrong})
    assert differing(model, images(model))[0] == name


def test_the_networks_use_every_operator():
    used = {node.op for make in MAKE.values() for node in make().nodes}
    assert set(OPERATIONS) == set(FUNCTIONS)
    # tests/test_fqvit_block.py has a network of FQ-ViT's.
    assert used == {op for op in OPERATIONS if not op.startswith("fqvit_")}


def test_tensors_are_what_was_announced(model):
    tensors = model.trace(images(model, 20))
    for name, tensor in tensors.items():
        flow = model.flows[name]
        assert tensor.shape == (20, *flow.shape)
        assert flow.range.holds(tensor)
        assert np.unique(tensor).size > 4, "a network on which little can go wrong"


def test_the_output_is_that_of_the_trace(model):
    pixels = images(model)
    logits = model(pixels)
    assert logits.dtype == np.int64
    assert logits.shape == (3, 5)
    assert np.array_equal(logits, model.trace(pixels)["head"])
    assert model.output == "head"
    swapped = np.asfortranarray(pixels)
    assert np.array_equal(model(swapped), logits)


@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_no_result_depends_on_the_batch(model, at_once, monkeypatch):
    pixels = images(model, 11)
    expected = model.trace(pixels)
    monkeypatch.setattr(vit, "IMAGES_AT_ONCE", at_once)
    found = model.trace(pixels)
    assert list(found) == list(expected)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert np.array_equal(model(pixels[4:5]), expected["head"][4:5])


def watched(monkeypatch, look):
    """Let ``look`` see each node and its output."""

    def seeing(function):
        def run(node, *inputs):
            out = function(node, *inputs)
            look(node, out)
            return out

        return run

    every = {op: seeing(function) for op, function in FUNCTIONS.items()}
    monkeypatch.setattr(vit, "FUNCTIONS", every)


def test_only_what_is_wanted_is_computed_and_kept(monkeypatch):
    model, ran = tiny_vit(), []
    watched(monkeypatch, lambda node, _: ran.append(node.name))
    found = model.trace(images(model), ["blocks.0.attn", "embed"])
    assert list(found) == ["embed", "blocks.0.attn"]
    assert ran == [node.name for node in model.nodes[: ran.index("blocks.0.attn") + 1]]
    ran.clear()
    assert model.trace(images(model), []) == {}
    assert ran == []


def test_a_tensor_is_dropped_behind_its_last_consumer(monkeypatch):
    model, alive, most = tiny_vit(), {}, {}

    def look(node, out):
        owner = out if out.base is None else out.base
        alive[node.name] = weakref.ref(owner)
        most[node.name] = {name for name, there in alive.items() if there() is not None}

    watched(monkeypatch, look)
    model(images(model))
    attention = {f"blocks.0.{name}" for name in ("attn", "attn.qkv", "attn.attend")}
    assert most["blocks.0.attn.attend"] == {"start", *attention}
    assert most["head"] == {"pool", "head"} | (most["head"] & {"norm"})
    alive.clear()
    model.trace(images(model), ["embed", "head"])
    assert "embed" in most["head"]


def test_heads_are_views():
    qkv = np.arange(2 * 6 * 24).reshape(2, 6, 24)
    for which in range(3):
        heads = vit._split(vit._third(qkv, which), 2, None)
        assert heads.shape == (2, 2, 6, 4)
        assert np.shares_memory(heads, qkv)
        assert np.array_equal(vit._join(heads, None), qkv[..., 8 * which : 8 * which + 8])
        windows = np.array([[5, 0, 3], [1, 4, 2]])
        heads = vit._split(vit._third(qkv, which), 2, windows)
        assert heads.shape == (2, 2, 2, 3, 4)
        assert np.array_equal(heads[1, 0, 1, 2], qkv[1, 3, 8 * which + 4 : 8 * which + 8])
        assert np.array_equal(vit._join(heads, windows), qkv[..., 8 * which : 8 * which + 8])


def test_one_node_for_given_inputs(model):
    tensors = {"image": images(model), **model.trace(images(model))}
    for node in model.nodes:
        out = model.step(node.name, *(tensors[name] for name in node.inputs))
        assert np.array_equal(out, tensors[node.name])
    with pytest.raises(KeyError):
        model.step("absent")


# ------------------------------------------------------------------------------------------ no float


def watch_floats(root):
    command = [sys.executable, str(ROOT / "tests" / "float_watch.py"), str(root)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_no_value_on_the_way_is_a_float():
    done = watch_floats(ROOT)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["sha256"] == fingerprint()
    computing = {type(node.spec).__module__ for make in MAKE.values() for node in make().nodes}
    computing -= {"builtins"}
    assert len(computing) == 9
    for module in computing | {"golden.vit", "golden.node", "golden.fixedpoint", "golden.requant"}:
        assert result["values"][module] > 100, module
    assert "golden.matmul" not in result["values"]


DETOURS = {
    # In the middle of an expression, between integers, without a float in the source.
    "gelu": "np.rint(np.multiply(_exact(*args), np.true_divide(1, 1))).astype(np.int64)",
    "residual": "(_exact(*args) + np.zeros(1, np.uint64)).astype(np.int64)",
    "pool": "_exact(args[0].mean(keepdims=True).astype(np.int64) * 0 + args[0], *args[1:])",
}


@pytest.mark.parametrize("module", DETOURS)
def test_a_float_in_the_middle_of_an_expression_is_found(tmp_path, module):
    """The result stays right: only the way there has a float."""
    shutil.copytree(ROOT / "golden", tmp_path / "golden")
    path = tmp_path / "golden" / f"{module}.py"
    detour = f"_exact = {module}\n\n\ndef {module}(*args):\n    return {DETOURS[module]}\n"
    path.write_text(f"{path.read_text()}\n\n{detour}")
    done = watch_floats(tmp_path)
    assert done.returncode == 1
    assert re.search(rf"AssertionError: float in golden\.{module}, line \d+: ", done.stderr)


# ------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            np.zeros((1, 3, 8, 12)),
            TypeError,
            "Images must be an array of uint8 pixels, not float64",
        ),
        (
            np.zeros((3, 8, 12), np.uint8),
            ValueError,
            r"Images must be \[B, \*\(3, 8, 12\)\], not shape \(3, 8, 12\)",
        ),
        (
            np.zeros((0, 3, 8, 12), np.uint8),
            ValueError,
            r"Images must be \[B, \*\(3, 8, 12\)\], not shape \(0, 3, 8, 12\)",
        ),
    ],
)
def test_images(given, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        tiny_vit()(given)


def test_unknown_tensor():
    message = r"^Tensors must be the network's, not \['image', 'neck'\]$"
    with pytest.raises(ValueError, match=message):
        tiny_vit().trace(images(tiny_vit()), ["head", "neck", "image"])


def test_what_is_no_network():
    model = tiny_vit()
    with pytest.raises(ValueError, match=r"^Nodes must be at least one, not none$"):
        VitModel([], (3, 8, 12))
    with pytest.raises(
        ValueError, match=r"^Input size must be channels, height, width, not \(8, 12\)$"
    ):
        VitModel(model.nodes, (8, 12))
    with pytest.raises(TypeError, match=r"^Input size must be an integer, not 8\.0$"):
        VitModel(model.nodes, (3, 8.0, 12))
    with pytest.raises(ValueError, match=r"^Names of nodes must be unique, not 'head' twice$"):
        VitModel([*model.nodes, model["head"]], model.input_size)
    with pytest.raises(ValueError, match=r"^Names of nodes must be unique, not 'image' twice$"):
        VitModel([replace(model["patch_embed"], name="image")], model.input_size)


def test_a_tensor_may_be_used_twice_and_an_unused_one_is_not_computed(monkeypatch):
    model, ran = tiny_vit(), []
    spec = LinearSpec(in_features=24, out_bits=None)
    spare = Node(
        name="spare", op="linear", inputs=("pool",), spec=spec, params=model["head"].params
    )
    longer = VitModel([*model.nodes[:-1], spare, model["head"]], model.input_size)
    watched(monkeypatch, lambda node, _: ran.append(node.name))
    assert np.array_equal(longer(images(model)), model(images(model)))
    assert "spare" not in ran
    found = longer.trace(images(model), ["spare", "head"])
    assert np.array_equal(found["spare"], found["head"])

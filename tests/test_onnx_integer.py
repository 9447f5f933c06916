# SPDX-License-Identifier: Apache-2.0
"""The integer graph against golden, bit for bit: networks, and every operator on its corner cases."""

import re
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from networks import images, tiny_swin, tiny_vit
from onnx_runs import changed, reference, session, types

from golden import attention, gelu, layernorm, linear, patch_embed, pool, residual, softmax
from golden.bounds import Interval
from golden.layernorm_corners import corner_rows as layernorm_corners
from golden.node import IMAGE, Flow, Node
from qvit_hw.errors import UserError
from qvit_hw.export import integer_onnx
from qvit_hw.onnx_integer import integer_graph, integer_outputs

NETWORKS = {"vit": tiny_vit, "swin": tiny_swin}


def names_of(model):
    return [node.name for node in model.nodes]


@pytest.mark.parametrize("optimised", [True, False])
@pytest.mark.parametrize("which", NETWORKS)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_tensor_equals_golden(which, seed, optimised):
    model = NETWORKS[which](seed)
    names, pixels = names_of(model), images(model, 5, seed)
    want = model.trace(pixels)
    got = session(integer_onnx(model, outputs=names), optimised)({IMAGE: pixels})
    for name, tensor in zip(names, got, strict=True):
        assert tensor.dtype.kind in "iu"
        np.testing.assert_array_equal(tensor, want[name], name)
        assert len(np.unique(tensor)) > 1


@pytest.mark.parametrize("which", NETWORKS)
def test_another_implementation_agrees(which):
    model = NETWORKS[which]()
    pixels = images(model, 2)
    (got,) = reference(integer_onnx(model))({IMAGE: pixels})
    np.testing.assert_array_equal(got, model(pixels))


def test_any_number_of_images():
    model = tiny_vit()
    run, pixels = session(integer_onnx(model)), images(model, 7)
    whole = run({IMAGE: pixels})[0]
    for part in (slice(0, 1), slice(2, 7)):
        np.testing.assert_array_equal(run({IMAGE: pixels[part]})[0], whole[part])


@pytest.mark.parametrize("which", NETWORKS)
def test_there_is_no_float_in_the_graph(which):
    kinds = types(integer_onnx(NETWORKS[which]()))
    assert {kind.kind for kind in kinds.values()} == {"i", "u", "b"}
    # Unsigned by unsigned: what every x86 processor multiplies without saturation.
    graph = onnx.load_from_string(integer_onnx(NETWORKS[which]())).graph
    products = [node for node in graph.node if node.op_type == "MatMulInteger"]
    assert len(products) > 10
    assert {kinds[name] for node in products for name in node.input} == {np.dtype(np.uint8)}


@pytest.mark.parametrize("part", ["weight", "table", "bias"])
def test_a_changed_integer_is_seen(part):
    model = tiny_vit()
    names, pixels = names_of(model), images(model)
    graph = integer_graph(model)
    wanted = {"weight": ("blocks.1.mlp.fc1", "MatMulInteger"), "bias": ("head", "Add")}
    name, op = wanted.get(part, ("blocks.0.mlp.act", "Gather"))
    node = next(n for n in graph.nodes if n.op == op and n.output.startswith(name))
    constant = next(each for each in node.inputs if each in graph.constants)

    def flip(array):
        array.flat[:: 1 if part == "table" else array.size] ^= 1
        return array

    got = session(changed(integer_onnx(model, outputs=names), constant, flip))({IMAGE: pixels})
    want = model.trace(pixels)
    wrong = [n for n, tensor in zip(names, got, strict=True) if (tensor != want[n]).any()]
    assert wrong
    assert wrong[0] == name


def test_fq_vit_s_operators_are_refused():
    model = SimpleNamespace(
        nodes=(Node(name="norm", op="fqvit_layernorm", inputs=(IMAGE,)),), flows={}
    )
    sentence = "Node 'norm' has no form in ONNX: 'fqvit_layernorm' has none."
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
        integer_graph(model)


# ------------------------------------------------------------------------------- every operator


def alone(node, flows, code):
    """A graph of one node, and what runs it: arrays by name to the node's tensor."""
    shape = flows.pop("shape")
    flows = flows | {node.name: Flow(shape, code)}
    model = SimpleNamespace(nodes=(node,), flows=flows, input_size=flows[node.inputs[0]].shape)
    kinds = {name: integer_outputs(model, [name])[0] for name in node.inputs}
    content = integer_graph(model).model(
        node.op, list(kinds.values()), integer_outputs(model, [node.name]), {}
    )
    run = session(content)

    def step(**arrays):
        feeds = {name: array[None].astype(kinds[name].dtype) for name, array in arrays.items()}
        return run(feeds)[0][0]

    return step


def held(name, got, want):
    np.testing.assert_array_equal(got, np.asarray(want).reshape(got.shape), name)


def signed(bits):
    return Interval.of_bits(bits, signed=True)


@pytest.mark.parametrize("spec", linear.SPEC_GRID)
def test_linear(spec):
    for name, codes, params in linear.corner_rows(spec):
        node = Node(name="y", op="linear", inputs=("x",), spec=spec, params=params)
        code = spec.requant.bounds["code"] if spec.requant else spec.bounds["acc"]
        flows = {"x": Flow(codes.shape, spec.bounds["input"]), "shape": (params.out_features,)}
        held(name, alone(node, flows, code)(x=codes), linear.linear(codes, spec, params))


@pytest.mark.parametrize("spec", patch_embed.SPEC_GRID)
def test_patch_embed(spec):
    for name, image, params in patch_embed.corner_rows(spec):
        want = patch_embed.patch_embed(image, spec, params)
        node = Node(name="y", op="patch_embed", inputs=(IMAGE,), spec=spec, params=params)
        flows = {IMAGE: Flow(image.shape, spec.bounds["input"]), "shape": want.shape}
        held(name, alone(node, flows, spec.bounds["acc"])(image=image), want)


@pytest.mark.parametrize("spec", residual.SPEC_GRID)
def test_residual(spec):
    for name, codes, acc, params in residual.corner_rows(spec):
        node = Node(name="y", op="residual", inputs=("x", "acc"), spec=spec, params=params)
        flows = {
            "x": Flow(codes.shape, signed(spec.in_bits)),
            "acc": Flow(acc.shape, spec.bounds["acc"]),
            "shape": codes.shape,
        }
        want = residual.residual(codes, acc, spec, params)
        held(name, alone(node, flows, spec.bounds["code"])(x=codes, acc=acc), want)


@pytest.mark.parametrize("spec", layernorm.SPEC_GRID)
def test_layernorm(spec):
    for name, codes, params in layernorm_corners(spec):
        node = Node(name="y", op="layernorm", inputs=("x",), spec=spec, params=params)
        flows = {"x": Flow(codes.shape, signed(spec.in_bits)), "shape": codes.shape}
        want = layernorm.layernorm(codes, spec, params)
        held(name, alone(node, flows, spec.bounds["code"])(x=codes), want)


@pytest.mark.parametrize("spec", softmax.SPEC_GRID)
def test_softmax(spec):
    for name, scores, mask, params in softmax.corner_rows(spec):
        # [windows, heads, rows, N]
        layout = {"mask": mask[None, None]} if mask.any() else {}
        node = Node(name="y", op="softmax", inputs=("x",), spec=spec, params=params, layout=layout)
        rows = scores[None, None, None]
        flows = {"x": Flow(rows.shape, spec.bounds["score"]), "shape": rows.shape}
        want = softmax.softmax(scores, spec, params, mask)
        held(name, alone(node, flows, spec.bounds["code"])(x=rows), want)


@pytest.mark.parametrize("spec", gelu.SPEC_GRID)
def test_gelu(spec):
    for name, codes, params in gelu.corner_rows(spec):
        node = Node(name="y", op="gelu", inputs=("x",), spec=spec, params=params)
        flows = {"x": Flow(codes.shape, spec.bounds["input"]), "shape": codes.shape}
        want = gelu.gelu(codes, spec, params)
        held(name, alone(node, flows, spec.bounds["code"])(x=codes), want)


@pytest.mark.parametrize("spec", pool.SPEC_GRID)
def test_pool(spec):
    for name, codes, params in pool.corner_rows(spec):
        node = Node(
            name="y", op="pool", inputs=("x",), spec=spec, params=params, layout={"first": 0}
        )
        flows = {"x": Flow(codes.shape, spec.bounds["input"]), "shape": codes.shape[1:]}
        held(
            name,
            alone(node, flows, spec.bounds["code"])(x=codes),
            pool.pool(codes, spec, params),
        )


def merged(*parts):
    """q, k and v [heads, n, d], shorter ones filled up, as one tensor [n, 3 * heads * d]."""
    count = max(part.shape[1] for part in parts)
    grown = [np.pad(part, ((0, 0), (0, count - part.shape[1]), (0, 0))) for part in parts]
    return np.concatenate([p.swapaxes(0, 1).reshape(count, -1) for p in grown], axis=1)


@pytest.mark.parametrize("spec", attention.SCORE_GRID)
def test_scores(spec):
    for name, q, k, params in attention.score_rows(spec):
        qkv = merged(q, k, np.zeros_like(q))
        (rows, columns), count = (q.shape[1], k.shape[1]), len(qkv)
        grown = params
        if params.bias is not None:
            margin = ((0, 0), (0, count - rows), (0, count - columns))
            grown = attention.ScoreParams(params.requant, np.pad(params.bias, margin))
        node = Node(
            name="y", op="scores", inputs=("x",), spec=spec, params=grown, layout={"heads": 2}
        )
        flows = {"x": Flow(qkv.shape, spec.bounds["input"]), "shape": (2, count, count)}
        got = alone(node, flows, spec.bounds["score"])(x=qkv)[:, :rows, :columns]
        held(name, got, attention.attention_scores(q, k, spec, params))


@pytest.mark.parametrize("spec", attention.ATTEND_GRID)
def test_attend(spec):
    for name, codes, v, params in attention.attend_rows(spec):
        qkv = merged(v, v, v)
        want = attention.attend(codes, v, spec, params)
        node = Node(
            name="y", op="attend", inputs=("c", "x"), spec=spec, params=params, layout={"heads": 2}
        )
        flows = {
            "c": Flow(codes.shape, spec.softmax.bounds["code"]),
            "x": Flow(qkv.shape, spec.bounds["value"]),
            "shape": (codes.shape[1], 6),
        }
        got = alone(node, flows, spec.bounds["code"])(c=codes, x=qkv)
        held(name, got, want.swapaxes(0, 1))

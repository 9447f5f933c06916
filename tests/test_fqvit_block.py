# SPDX-License-Identifier: Apache-2.0
"""A whole FQ-ViT in exact arithmetic: every node against rationals, from sums to half-even codes."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from fqvit_reference import Weights, layernorm_rows, softmax_rows

from golden import vit
from golden.fqvit import FqLayerNormParams, FqLayerNormSpec, FqSoftmaxSpec, softmax_params
from golden.fqvit_block import (
    FqAttendParams,
    FqAttendSpec,
    FqResidualParams,
    FqScoreParams,
    FqScoreSpec,
    fq_attend,
    fq_residual,
    fq_scores,
)
from golden.gelu import GeluParams, GeluSpec
from golden.linear import LinearParams, LinearSpec
from golden.node import IMAGE, OPERATIONS, Node
from golden.patch_embed import PatchEmbedSpec
from golden.requant import RequantParams, RequantSpec, factor
from golden.residual import ResidualSpec
from golden.softmax import SoftmaxSpec
from golden.vit import FUNCTIONS, VitModel

WIDTH, HEADS, TOKENS, HIDDEN, CLASSES = 16, 2, 5, 24, 7
SUMS = RequantSpec(acc_bits=32)


def code(value: Fraction, zero_point: int) -> int:
    """A quantiser: nearest of value plus zero point, ties to even, 8 bits."""
    return min(max(round(value + zero_point), -128), 127)


def requant(rng: np.random.Generator, channels: int, largest: float, **more: int) -> dict[str, Any]:
    """Factors that bring sums of this size to codes of about 40; powers of two among them, for ties."""
    pairs = [
        factor(Fraction(40 * int(part), 100 * int(largest)))
        for part in rng.integers(70, 130, channels)
    ]
    pairs[0] = (1 << 15, 15 + (int(largest) // 40).bit_length())
    multiplier, shift = (np.array(column) for column in zip(*pairs, strict=True))
    return {"multiplier": multiplier, "shift": shift, **more}


def ratio(params: RequantParams, channel: int) -> Fraction:
    channel %= len(params.multiplier)
    return Fraction(int(params.multiplier[channel]), 1 << int(params.shift[channel]))


# ------------------------------------------------------------------------------------ single steps


def slow_scores(q: Any, k: Any, params: FqScoreParams) -> list[Any]:
    z, out = params.zero_point, []
    for head, (rows, columns) in enumerate(zip(q.tolist(), k.tolist(), strict=True)):
        scale = ratio(params.requant, head)
        dot = [
            [sum((a - z) * (b - z) for a, b in zip(x, y, strict=True)) for y in columns]
            for x in rows
        ]
        out.append([[code(d * scale, params.requant.zero_point) for d in row] for row in dot])
    return out


def slow_attend(codes: Any, v: Any, params: FqAttendParams) -> list[Any]:
    z, out = params.value_zero_point, []
    for head, (rows, values) in enumerate(zip(codes.tolist(), v.tolist(), strict=True)):
        scale = ratio(params, head) * 2**15
        weights = [[Fraction(c < 16, 2**c) for c in row] for row in rows]
        out.append(
            [
                [
                    code(
                        scale * sum(w * (x - z) for w, x in zip(row, column, strict=True)),
                        params.zero_point,
                    )
                    for column in zip(*values, strict=True)
                ]
                for row in weights
            ]
        )
    return out


def slow_residual(codes: Any, branch: Any, params: FqResidualParams) -> list[Any]:
    rows = []
    for row, other in zip(codes.tolist(), branch.tolist(), strict=True):
        out = []
        for c, (x, p) in enumerate(zip(row, other, strict=True)):
            kept = (x - params.in_zero_point) * 2 ** int(params.in_shift[c]) * params.gain
            added = (p - params.branch_zero_point) * int(params.multiplier[c])
            unit = 1 << (params.shift + int(params.out_shift[c]))
            out.append(code(Fraction(kept + added, unit), params.zero_point))
        rows.append(out)
    return rows


@pytest.mark.parametrize("zero_point", [-128, -3, 0, 127])
def test_scores_are_half_even_and_asymmetric(zero_point: int) -> None:
    rng = np.random.default_rng(5)
    q, k = rng.integers(-128, 128, (2, 2, 6, 8))
    q[:, 0], k[:, 0], q[:, 1], k[:, 1] = -128, -128, 127, 127
    given = requant(rng, 2, 40000, zero_point=-7)
    params = FqScoreParams(RequantParams(**given), zero_point=zero_point)
    spec = FqScoreSpec(head_dim=8)
    assert fq_scores(q, k, spec, params).tolist() == slow_scores(q, k, params)


def test_scores_at_a_tie() -> None:
    half = RequantParams(multiplier=np.array([1 << 15]), shift=np.array([16]), zero_point=1)
    params = FqScoreParams(half, zero_point=0)
    q, k = np.arange(-5, 6)[None, :, None], np.ones((1, 1, 1), np.int64)
    got = fq_scores(q, k, FqScoreSpec(head_dim=1), params)[0, :, 0].tolist()
    assert got == [round(Fraction(a, 2) + 1) for a in range(-5, 6)]
    assert got != [(a + 1) // 2 + 1 for a in range(-5, 6)]  # half up


@pytest.mark.parametrize("zero_point", [-128, 4, 127])
def test_attend_knows_seventeen_levels(zero_point: int) -> None:
    rng = np.random.default_rng(6)
    codes, v = rng.integers(0, 17, (2, 5, 9)), rng.integers(-128, 128, (2, 9, 4))
    codes[0, 0], codes[1, 0], v[0, :, 0] = 0, 16, 127
    given = requant(rng, 2, 3 * 128 << 15, zero_point=9, value_zero_point=zero_point)
    params = FqAttendParams(**given)
    got = fq_attend(codes, v, FqAttendSpec(), params)
    assert got.tolist() == slow_attend(codes, v, params)
    assert (got[1, 0] == 9).all()  # nothing but zeros
    assert FqAttendSpec().top == 15
    # Were 16 another power of two, the smallest codes would count.
    one = FqAttendParams(multiplier=np.array([1 << 15]), shift=np.array([15]), zero_point=0)
    weights = [
        fq_attend(np.full((1, 1, 1), c), np.ones((1, 1, 1), int), FqAttendSpec(), one)
        for c in (15, 16)
    ]
    assert [int(w[0, 0, 0]) for w in weights] == [1, 0]


def test_residual_adds_codes_and_rounds_half_even() -> None:
    rng = np.random.default_rng(7)
    codes, branch = rng.integers(-128, 128, (2, 40, WIDTH))
    params = residual_params(rng)
    got = fq_residual(codes, branch, ResidualSpec(), params)
    assert got.tolist() == slow_residual(codes, branch, params)
    tied = FqResidualParams(
        in_zero_point=0,
        in_shift=np.array([0]),
        gain=1,
        multiplier=np.array([1]),
        shift=1,
        zero_point=0,
        out_shift=np.array([0]),
        branch_zero_point=2,
    )
    x = np.arange(-6, 7)[:, None]
    got = fq_residual(x, np.array([3]), ResidualSpec(), tied)[:, 0].tolist()
    assert got == [round(Fraction(v + 1, 2)) for v in range(-6, 7)]


def residual_params(rng: np.random.Generator) -> FqResidualParams:
    columns = rng.integers(0, 3, (2, WIDTH))
    return FqResidualParams(
        in_zero_point=4,
        in_shift=columns[0],
        gain=3 << 8,
        multiplier=rng.integers(1 << 10, 1 << 11, WIDTH) & ~0x1FF,
        shift=10,
        zero_point=-3,
        out_shift=columns[1],
        branch_zero_point=6,
    )


# ------------------------------------------------------------------------------------ whole network


def network(seed: int = 0) -> VitModel:
    """Two blocks on FQ-ViT's datapath: a quantiser behind every operation, 8-bit branches."""
    rng = np.random.default_rng(seed)
    nodes: list[Node] = []

    def add(name: str, op: str, inputs: Any, spec: Any, params: Any, **layout: Any) -> str:
        given = (inputs,) if isinstance(inputs, str) else inputs
        nodes.append(Node(name=name, op=op, inputs=given, spec=spec, params=params, layout=layout))
        return name

    def quantiser(x: str, channels: int, largest: float, zero_point: int) -> str:
        params = RequantParams(**requant(rng, channels, largest, zero_point=zero_point))
        return add(f"{x}.codes", "fqvit_requant", x, SUMS, params)

    def linear(name: str, x: str, width: int, out: int) -> str:
        weight = rng.integers(-127, 128, (out, width))
        params = LinearParams(weight=weight, bias=rng.integers(-3000, 3000, out))
        sums = add(name, "linear", x, LinearSpec(in_features=width, out_bits=None), params)
        return quantiser(sums, out, 73 * 40 * width**0.5, 6)

    def norm(name: str, x: str) -> str:
        params = FqLayerNormParams(
            zero_point=-3,
            shift=rng.integers(0, 3, WIDTH),
            gain=rng.integers(-(60 << 32), 60 << 32, WIDTH),
            offset=rng.integers(-(20 << 32), 20 << 32, WIDTH),
            out_zero_point=11,
        )
        return add(name, "fqvit_layernorm", x, FqLayerNormSpec(), params)

    pixels = PatchEmbedSpec(patch=4, channels=3)
    weight = rng.integers(-127, 128, (WIDTH, pixels.linear.in_features))
    params = LinearParams(weight=weight, bias=-128 * weight.sum(axis=1))
    x = quantiser(add("patch_embed", "patch_embed", IMAGE, pixels, params), WIDTH, 37000, 6)
    unit = ResidualSpec()
    positions, prefix = (
        rng.integers(-100, 100, (TOKENS - 1, WIDTH)),
        rng.integers(-100, 100, (1, WIDTH)),
    )
    x = add(
        "embed", "fqvit_embed", x, unit, residual_params(rng), positions=positions, prefix=prefix
    )
    depth, softmax = WIDTH // HEADS, FqSoftmaxSpec(max_tokens=TOKENS)
    attention = FqAttendSpec(softmax=softmax)
    for block in ("blocks.0", "blocks.1"):
        qkv = linear(f"{block}.qkv", norm(f"{block}.norm1", x), WIDTH, 3 * WIDTH)
        given = requant(rng, HEADS, 1600 * depth**0.5, zero_point=-20)
        scores = add(
            f"{block}.scores",
            "fqvit_scores",
            qkv,
            FqScoreSpec(head_dim=depth),
            FqScoreParams(RequantParams(**given), zero_point=6),
            heads=HEADS,
        )
        scale = softmax_params(Fraction(1, 4))
        codes = add(f"{block}.attn", "fqvit_softmax", scores, softmax, scale)
        given = requant(rng, HEADS, 40 << 15, zero_point=6, value_zero_point=6)
        y = add(
            f"{block}.attend",
            "fqvit_attend",
            (codes, qkv),
            attention,
            FqAttendParams(**given),
            heads=HEADS,
        )
        y = linear(f"{block}.proj", y, WIDTH, WIDTH)
        x = add(f"{block}.residual1", "fqvit_residual", (x, y), unit, residual_params(rng))
        y = linear(f"{block}.fc1", norm(f"{block}.norm2", x), WIDTH, HIDDEN)
        table = GeluParams(table=np.maximum(np.arange(-128, 128) - 6, 0) - 100)
        y = linear(f"{block}.fc2", add(f"{block}.act", "gelu", y, GeluSpec(), table), HIDDEN, WIDTH)
        x = add(f"{block}.residual2", "fqvit_residual", (x, y), unit, residual_params(rng))
    x = add("pool", "select", norm("norm", x), None, None, tokens=(0,))
    linear("head", x, WIDTH, CLASSES)
    return VitModel(nodes, (3, 8, 8))


def split(x: np.ndarray, part: int, parts: int) -> np.ndarray:
    width = x.shape[-1] // parts
    return x[..., part * width : (part + 1) * width].reshape(len(x), HEADS, -1).swapaxes(0, 1)


def slow(node: Node, *inputs: np.ndarray) -> list[Any]:
    """One image through one node."""
    p: Any = node.params
    if node.op == "fqvit_layernorm":
        weights = Weights(
            p.zero_point, p.shift.tolist(), p.gain.tolist(), p.offset.tolist(), p.out_zero_point
        )
        return list(layernorm_rows(inputs[0], weights)[0].tolist())
    if node.op == "fqvit_softmax":
        return [
            softmax_rows(rows, (p.octave, p.linear, p.constant))[0].tolist() for rows in inputs[0]
        ]
    if node.op == "fqvit_scores":
        return slow_scores(split(inputs[0], 0, 3), split(inputs[0], 1, 3), p)
    if node.op == "fqvit_attend":
        heads = np.array(slow_attend(inputs[0], split(inputs[1], 2, 3), p))
        return list(heads.swapaxes(0, 1).reshape(TOKENS, -1).tolist())
    if node.op == "fqvit_residual":
        return slow_residual(*inputs, p)
    if node.op == "fqvit_embed":
        return [
            *node.layout["prefix"].tolist(),
            *slow_residual(node.layout["positions"], inputs[0], p),
        ]
    assert node.op == "fqvit_requant"
    rows = np.atleast_2d(inputs[0]).tolist()
    out = [[code(a * ratio(p, c), p.zero_point) for c, a in enumerate(row)] for row in rows]
    return out[0] if inputs[0].ndim == 1 else out


def differing(model: VitModel, images: np.ndarray) -> list[str]:
    tensors = {IMAGE: images, **model.trace(images)}
    return [
        node.name
        for node in model.nodes
        if node.op.startswith("fqvit_")
        for b in range(len(images))
        if tensors[node.name][b].tolist() != slow(node, *(tensors[name][b] for name in node.inputs))
    ]


IMAGES = np.random.default_rng(3).integers(0, 256, (3, 3, 8, 8), dtype=np.uint8)


def test_a_network_of_fqvit_is_exact_at_every_node() -> None:
    for seed in range(3):
        model = network(seed)
        assert differing(model, IMAGES) == []
        tensors = model.trace(IMAGES)
        for name, tensor in tensors.items():
            assert tensor.shape == (3, *model.flows[name].shape)
            assert model.flows[name].range.holds(tensor), name
        assert len(np.unique(tensors["head.codes"])) > 5
        assert tensors["blocks.0.attn"].max() == 16


def test_the_network_has_every_operator_of_fqvit() -> None:
    used = {node.op for node in network().nodes if node.op.startswith("fqvit_")}
    assert used == {op for op in OPERATIONS if op.startswith("fqvit_")}


@pytest.mark.parametrize("op", sorted(op for op in OPERATIONS if op.startswith("fqvit_")))
def test_a_difference_of_one_is_seen(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = FUNCTIONS[op]

    def wrong(node: Node, *inputs: Any) -> Any:
        out = right(node, *inputs).copy()
        out[1, ..., -1] += np.where(out[1, ..., -1] > 0, -1, 1).astype(out.dtype)
        return out

    monkeypatch.setattr(vit, "FUNCTIONS", {**FUNCTIONS, op: wrong})
    model = network()
    assert set(differing(model, IMAGES)) == {node.name for node in model.nodes if node.op == op}


# ------------------------------------------------------------------------------------------ errors


def test_steps_refuse_what_does_not_suit_them() -> None:
    rng = np.random.default_rng(0)
    given = requant(rng, 1, 1000, zero_point=0)
    plain = RequantParams(**given)
    scores, values = FqScoreParams(plain, zero_point=0), FqAttendParams(**given)
    q, spec = np.zeros((1, 2, 4), int), FqScoreSpec(head_dim=4)
    for wrong, message in (
        ((q[0], q, spec, scores), r"Queries must be \[..., heads, tokens, channels\], not shape"),
        ((q, q[..., :3], spec, scores), "Keys must have 4 channels, not 3"),
        ((q, q + 128, spec, scores), "Keys must be from -128 to 127, not 128"),
        ((q, q, FqScoreSpec(head_dim=3), scores), "Head dimension must be from 1 to 3, not 4"),
        ((q, q, spec, FqScoreParams(plain, zero_point=128)), "Zero point must be from -128 to 127"),
        (
            (q, q, spec, FqScoreParams(plain, np.zeros((1, 2, 2), int))),
            "Bias must be None, not of shape",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            fq_scores(*wrong)
    codes, unit = np.zeros((1, 2, 2), int), FqAttendSpec(softmax=FqSoftmaxSpec(max_tokens=2))
    far = FqAttendParams(**given, value_zero_point=-129)
    for wrong, message in (
        ((codes + 17, q, unit, values), "Code must be from 0 to 16, not 17"),
        ((codes[..., :1], q, unit, values), "Values must have 1 tokens, not 2"),
        ((np.zeros((1, 2, 3), int), q, unit, values), "Row length must be from 1 to 2, not 3"),
        ((codes, q, unit, far), "Zero point of values must be from -128 to 127, not -129"),
    ):
        with pytest.raises(ValueError, match=message):
            fq_attend(*wrong)
    with pytest.raises(TypeError, match="Softmax must be an FqSoftmaxSpec, not SoftmaxSpec"):
        FqAttendSpec(softmax=SoftmaxSpec())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Code width must be from 3 to 4, not 5"):
        FqAttendSpec(softmax=FqSoftmaxSpec(code_bits=5))
    x, params = np.zeros((1, WIDTH), int), residual_params(rng)
    with pytest.raises(
        ValueError, match=r"Row length of branch codes must be 16, not shape \(1, 3\)"
    ):
        fq_residual(x, x[:, :3], ResidualSpec(), params)
    with pytest.raises(ValueError, match="Branch codes must be from -128 to 127, not 300"):
        fq_residual(x, x + 300, ResidualSpec(), params)


def test_softmax_and_attend_of_different_levels_do_not_meet() -> None:
    model = network()
    nodes = list(model.nodes)
    index = next(i for i, node in enumerate(nodes) if node.op == "fqvit_attend")
    old = nodes[index]
    spec = FqAttendSpec(softmax=FqSoftmaxSpec(max_tokens=TOKENS, code_bits=3))
    nodes[index] = Node(
        name=old.name, op=old.op, inputs=old.inputs, spec=spec, params=old.params, layout=old.layout
    )
    with pytest.raises(ValueError, match=r"'blocks.0.attend': Softmax of the codes must be Fq"):
        VitModel(nodes, model.input_size)

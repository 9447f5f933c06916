# SPDX-License-Identifier: Apache-2.0
"""The preset "fqvit": a whole golden network against FQ-ViT's float program, written a second time."""

from typing import Any

import numpy as np
import pytest
import torch
from family_samples import MEAN, STD, tiny_swin, tiny_vit
from fqvit_program import Program, Variant
from test_calibrated import images
from timm.models.deit import VisionTransformerDistilled

from golden.fixedpoint import Ints
from golden.fqvit import FqSoftmaxSpec
from golden.node import IMAGE, OPERATIONS
from golden.vit import VitModel
from qvit_hw.errors import UserError
from qvit_hw.families import lower
from qvit_hw.fqvit_grids import LevelGrid
from qvit_hw.fqvit_observation import observe_fqvit
from qvit_hw.fqvit_plan import calibrate_fqvit, weight_scales
from qvit_hw.models import load_model
from qvit_hw.models.images import load_images
from qvit_hw.models.labelled import load_labelled
from qvit_hw.network import Network, Node
from qvit_hw.presets import find_preset
from qvit_hw.quantize import affine_grid
from qvit_hw.references import sqnr

LEAST = 0.99
"""Share of an operator's codes that are the program's. Its factors have 24 bits, golden's have 16: a sum
that is next to a tie may be rounded the other way, most of them where codes have 10 bits.
"""


class Subject:
    """A calibrated network, its golden model, and what becomes of images that it has not seen."""

    def __init__(
        self,
        network: Network,
        seen: torch.Tensor | None = None,
        fresh: torch.Tensor | None = None,
        mean: Any = MEAN,
    ) -> None:
        self.network, self.mean = network, mean
        self.seen = images(network) if seen is None else seen
        self.fresh = images(network, 3, seed=2) if fresh is None else fresh
        self.made = calibrate_fqvit(network, self.seen, mean=mean)
        self.trace = VitModel(self.made.nodes, network.input_size).trace(self.fresh.numpy())
        self.float: dict[str, Any] = {}
        self.output = network.run(self.fresh, self._keep).double().numpy()

    def _keep(self, node: Node, out: torch.Tensor) -> torch.Tensor:
        self.float[node.name] = out.double().numpy()
        return out

    @property
    def codes(self) -> dict[str, Ints]:
        """Integers by the names of the network's tensors."""
        found = {name: self.trace[place] for name, place in self.made.places.items()}
        return {IMAGE: self.fresh.numpy(), **found}

    def values(self, name: str) -> Any:
        """What the golden model computes for a tensor of the network, in float."""
        place = self.made.places[name]
        return self.made.values(place, self.trace[place])

    def program(self, seen: torch.Tensor | None = None, **variant: Any) -> Program:
        given = self.seen if seen is None else seen
        return Program(self.network, given, Variant(**variant), self.mean)

    def agreement(self, program: Program) -> dict[str, float]:
        """Share of the codes of every operator that are the program's on the golden model's inputs."""
        codes, found = self.codes, {}
        for node in self.network:
            theirs, ours = program.step(node.name, codes), codes[node.name]
            if theirs.dtype.kind == "f":  # logits
                exact = np.isclose(theirs, self.values(node.name), atol=1e-4 * np.abs(theirs).max())
                found[node.name] = float(exact.all())
            else:
                assert theirs.shape == ours.shape, node.name
                near = np.abs(theirs - ours.astype(np.int64)).max() <= 1
                found[node.name] = float((theirs == ours).mean()) if near else 0.0
        return found


def tiny(**options: Any) -> Network:
    return lower(tiny_vit(**options), MEAN, STD)


@pytest.fixture(scope="module")
def plain() -> Subject:
    return Subject(tiny())


# -------------------------------------------------------------------------------------- the program

VARIANTS: dict[str, Any] = {
    "plain": {},
    "features": {"num_classes": 0},
    "every token": {"num_classes": 0, "global_pool": ""},
    "no bias": {"qkv_bias": False},
    "no positions": {"pos_embed": "none"},
    "registers": {"reg_tokens": 2},
    "LayerScale": {"init_values": 0.5},
    "distilled": {"kind": VisionTransformerDistilled},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_operator_is_the_program_s(name: str) -> None:
    subject = Subject(tiny(**VARIANTS[name]))
    program = subject.program()
    found = subject.agreement(program)
    assert set(found) == {node.name for node in subject.network}
    assert min(found.values()) >= LEAST, found
    assert np.mean(list(found.values())) >= 0.999
    # From the pixels on a difference of one grows, but the two stay closer to each other than to float.
    output = subject.network.output.name
    theirs, ours = program.output(subject.fresh), subject.values(output)
    quality = sqnr(subject.output, ours)
    assert quality is not None
    assert quality > 8
    assert sqnr(theirs, ours) > quality + 5
    codes = program.codes(subject.fresh.numpy())
    for first in ("patch_embed", "embed", "blocks.0.norm1", "blocks.0.attn.qkv"):
        assert (codes[first] == subject.codes[first]).mean() >= 0.98, first


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        ({"ptf": False}, "blocks.0.residual1"),
        ({"ptf": False}, "blocks.1.norm1"),
        ({"reach": 127.0}, "blocks.0.attn.qkv"),
        ({"levels": 16}, "blocks.0.attn"),
        ({"gelu_bits": 7}, "blocks.1.mlp.act"),
    ],
)
def test_another_program_is_seen(plain: Subject, variant: dict[str, Any], name: str) -> None:
    right, wrong = (plain.agreement(plain.program(**each))[name] for each in ({}, variant))
    assert wrong < right - 0.003


def test_other_images_are_seen(plain: Subject) -> None:
    found = plain.agreement(plain.program(images(plain.network, seed=9)))
    quantised = {node.name for node in plain.network} - {"blocks.0.attn", "blocks.1.attn", "pool"}
    assert all(found[name] < LEAST for name in quantised - {"head"})


def test_digits() -> None:
    model = load_model("digits")
    data = load_labelled("digits", model)
    pixels = torch.tensor(data.images(range(len(data))))
    seen = torch.tensor(load_images(None, model, 64, split="train")[0])
    subject = Subject(model.network, seen, pixels, model.mean)
    found = subject.agreement(subject.program())
    assert min(found.values()) >= 0.998, found
    # Theirs has a float before GELU; both guess the same.
    theirs = subject.program(gelu_bits=None).output(pixels).numpy()
    ours, labels = subject.values("head"), data.labels
    assert labels is not None
    assert (ours.argmax(1) == theirs.argmax(1)).mean() > 0.99
    right = [(each.argmax(1) == labels).mean() for each in (subject.output, theirs, ours)]
    print("digits, float, program, golden:", right)
    assert right[2] > 0.97
    assert right[0] - right[2] < 0.02
    assert (ours.argmax(1) == np.roll(labels, 1)).mean() < 0.5


# ----------------------------------------------------------------------------------- grids and nodes


def test_values_of_every_tensor_are_near_float(plain: Subject) -> None:
    for node in plain.network:
        assert plain.values(node.name).shape == plain.float[node.name].shape
        assert sqnr(plain.float[node.name], plain.values(node.name)) > 7, node.name
    assert set(plain.made.grids) == set(plain.trace)
    for name in ("patch_embed", "blocks.0.attn.qkv", "blocks.0.mlp.fc1"):  # accumulators, too
        exact = plain.float[name]
        codes, sums = plain.values(name), plain.made.values(name, plain.trace[name])
        assert sqnr(exact, sums) > sqnr(exact, codes)
        assert plain.made.places[name] == f"{name}.codes"
    # In other units they would not be: scores are base-2 exponents.
    natural = plain.values("blocks.0.attn.scores") / 1.4427
    assert sqnr(plain.float["blocks.0.attn.scores"], natural) < 12


def test_every_node_is_fqvit_s(plain: Subject) -> None:
    ops = [node.op for node in plain.made.nodes]
    assert {op for op in ops if op.startswith("fqvit_")} == {
        op for op in OPERATIONS if op.startswith("fqvit_")
    }
    assert {op for op in ops if not op.startswith("fqvit_")} == {
        "patch_embed",
        "linear",
        "gelu",
        "select",
    }
    assert len(ops) == len(plain.network.nodes) + 1 + 4 * 2
    assert all(np.shape(plain.trace[n.name])[-1] <= 72 for n in plain.made.nodes)


def test_weights_are_those_of_127_and_a_half(plain: Subject) -> None:
    nodes = {node.name: node for node in plain.made.nodes}
    float_weight = plain.network["blocks.0.mlp.fc1"].weight.double().numpy()
    codes = nodes["blocks.0.mlp.fc1"].params.weight
    scale = np.abs(float_weight).max(axis=1, keepdims=True) / 127.5
    assert np.array_equal(codes, np.clip(np.rint(float_weight / scale), -127, 127))
    head = plain.made.grids["head"]
    assert len(np.unique(head.scale)) == 1  # logits can be compared
    assert len(np.unique(plain.made.grids["blocks.0.mlp.fc1"].scale)) > 20


def test_rounding_the_first_weights_does_not_move_the_mean_picture(plain: Subject) -> None:
    black = Subject(plain.network, mean=None)
    exact = plain.float["patch_embed"]
    sums = [each.made.values("patch_embed", each.trace["patch_embed"]) for each in (plain, black)]
    assert sqnr(exact, sums[0]) > sqnr(exact, sums[1]) + 1
    weights = [
        next(n for n in each.made.nodes if n.op == "patch_embed").params for each in (plain, black)
    ]
    assert np.array_equal(weights[0].weight, weights[1].weight)
    assert not np.array_equal(weights[0].bias, weights[1].bias)


def test_rows_of_weights_that_are_next_to_nothing() -> None:
    weight = np.array([[1.0, -0.5], [0.0, 0.0], [1e-30, 0.0], [1e-6, 0.0]])
    scale = weight_scales(weight, np.array([0.1, 3.0, 0.0, 1e6]), 8)
    assert scale[0] == 1 / 127.5
    assert scale[1] == 3 / 2**30
    assert scale[2] == scale[0] / 2**24
    assert scale[3] == 1e6 / 2**30
    assert np.array_equal(weight_scales(np.zeros((2, 3)), np.zeros(2), 8), [1.0, 1.0])
    model = tiny_vit()
    with torch.no_grad():
        model.blocks[0].mlp.fc2.weight[3] = 0
        model.blocks[0].mlp.fc2.weight[4] *= 1e-9
        model.blocks[1].attn.qkv.weight[5] = 1e-20
    subject = Subject(lower(model, MEAN, STD))
    assert min(subject.agreement(subject.program()).values()) >= LEAST
    assert sqnr(subject.output, subject.values("head")) > 8


def test_last_level_is_zero() -> None:
    grid = LevelGrid(spec=FqSoftmaxSpec())
    assert grid.values(torch.tensor([0, 1, 15, 16])).tolist() == [1.0, 0.5, 2.0**-15, 0.0]


# ------------------------------------------------------------------------------------- observations


def test_what_is_observed(plain: Subject) -> None:
    preset, network = find_preset("fqvit"), plain.network
    told: list[int] = []
    seen = observe_fqvit(network, plain.seen, preset, batch=4, progress=told.append)
    assert sum(told) == 2 * len(plain.seen)
    found: dict[str, torch.Tensor] = {}
    network.run(plain.seen, lambda node, out: found.setdefault(node.name, out))

    def ends(tensor: torch.Tensor) -> Any:
        return pytest.approx((float(tensor.min()), float(tensor.max())), rel=1e-5)

    assert seen.ranges["blocks.0.attn.qkv"] == ends(found["blocks.0.attn.qkv"])  # one for all three
    assert seen.ranges["blocks.0.attn.scores"] == ends(found["blocks.0.attn.scores"] * np.log(2))
    assert seen.ranges["blocks.1.mlp.fc2"] == ends(found["blocks.1.mlp.fc2"])
    assert seen.ranges["patch_embed"] == ends(found["patch_embed"])
    assert seen.ranges["norm"] == ends(found["norm"][:, 0])  # the class token is all that is used
    assert seen.ranges["norm"] != ends(found["norm"])
    assert not {"head", "pool", "blocks.0.attn"} & set(seen.ranges)
    assert set(seen.streams) == {"embed"} | {
        f"blocks.{block}.residual{which}" for block in (0, 1) for which in (1, 2)
    }


def test_streams_have_their_own_observer(plain: Subject) -> None:
    preset = find_preset("fqvit")
    wide, narrow = (
        observe_fqvit(plain.network, plain.seen, preset, kind) for kind in ("minmax", "omse")
    )
    assert wide.ranges["embed"] == narrow.ranges["embed"]
    assert wide.streams["embed"].scale == narrow.streams["embed"].scale
    clipped = [
        n for n in wide.ranges if n not in wide.streams and wide.ranges[n] != narrow.ranges[n]
    ]
    assert len(clipped) > 5
    assert affine_grid(*wide.ranges["embed"]).scale / 8 == wide.streams["embed"].scale


# -------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("network", "what"),
    [
        (lambda: lower(tiny_swin(), MEAN, STD), r"attention by windows \('.*attn\.scores'\)"),
        (lambda: tiny(global_pool="avg"), r"an average of tokens \('pool'\)"),
        (lambda: tiny(pre_norm=True), r"a LayerNorm before its blocks \('start'\)"),
        (
            lambda: tiny(fc_norm=True),
            r"tokens without a LayerNorm \('pool'\)",
        ),
    ],
)
def test_other_networks_are_refused(network: Any, what: str) -> None:
    made = network()
    sentence = (
        "^Preset 'fqvit' is for ViT, DeiT and DINOv2 with a class token, not for a network with "
        rf"{what}\.$"
    )
    with pytest.raises(UserError, match=sentence):
        calibrate_fqvit(made, images(made))


@pytest.mark.parametrize(
    ("factor", "fault"),
    [
        (12, r"Scale of scores must be from 2\*\*-16 to 1\.67, not \d+\.\d+"),
        (1 / 45, r"Constant must be from 1 to 126322567, not \d+"),
    ],
)
def test_scores_that_its_softmax_cannot_have(factor: float, fault: str) -> None:
    model = tiny_vit()
    with torch.no_grad():
        model.blocks[1].attn.qkv.weight.mul_(factor)
        model.blocks[1].attn.qkv.bias.mul_(factor)
    network = lower(model, MEAN, STD)
    sentence = rf"^At 'blocks\.1\.attn': FQ-ViT's softmax does not suit this layer: {fault}\.$"
    with pytest.raises(UserError, match=sentence):
        calibrate_fqvit(network, images(network))


def test_constant_activations_are_named() -> None:
    model = tiny_vit()
    with torch.no_grad():
        model.blocks[1].attn.proj.weight.zero_()
        model.blocks[1].attn.proj.bias.zero_()
    network = lower(model, MEAN, STD)
    with pytest.raises(UserError, match=r"^Activations of 'blocks\.1\.attn\.proj' must vary over"):
        calibrate_fqvit(network, images(network))

# SPDX-License-Identifier: Apache-2.0
"""Relevance: every rule against its formula, conservation, and what it foretells of errors."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from family_samples import MEAN, STD, pixels, tiny_swin, tiny_vit

from qvit_hw import relevance
from qvit_hw.allocation import SCORES
from qvit_hw.budget import cost_model
from qvit_hw.calibration import prepare
from qvit_hw.families import lower
from qvit_hw.models import load_model
from qvit_hw.models.images import load_images
from qvit_hw.network import Embed, LayerNorm, Linear, Network, PatchEmbed
from qvit_hw.presets import find_preset
from qvit_hw.relevance import (
    RULES,
    propagate,
    relevance_errors,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def without_constants(network):
    """The network with nothing that adds a number of its own."""
    zero = {Linear: ["bias"], PatchEmbed: ["bias"], LayerNorm: ["beta"]}
    zero[Embed] = ["positions", "prefix"]
    nodes = []
    for node in network:
        fields = zero.get(type(node), [])
        nodes.append(replace(node, **{f: torch.zeros_like(getattr(node, f)) for f in fields}))
    return Network(tuple(nodes), network.input_size)


def total(found, name):
    """Sum of a tensor's relevance, image by image."""
    return found.of(name).double().flatten(1).sum(dim=1)


def softmax_constant(network, found, before, after):
    """What the constant terms of the softmaxes between two nodes keep."""
    names = [node.name for node in network]
    part = network.nodes[names.index(before) + 1 : names.index(after)]
    kept = [
        total(found, node.name) - total(found, node.inputs[0])
        for node in part
        if node.op == "softmax"
    ]
    return sum(kept, torch.zeros(len(found.of(after))).double())


def imbalance(network, found):
    """The most that any branch of the network loses or makes, all relevance being 1."""
    worst = 0.0
    for node in network.of("residual"):
        before = node.inputs[0]
        kept = softmax_constant(network, found, before, node.name)
        worst = max(
            worst, float((total(found, before) + kept - total(found, node.name)).abs().max())
        )
    return worst


@pytest.mark.parametrize("kind", [tiny_vit, tiny_swin])
def test_relevance_is_conserved(kind):
    network = without_constants(lower(kind(global_pool="avg"), MEAN, STD))
    if kind is tiny_swin:  # the bias of the scores is a constant, too
        nodes = [replace(n, bias=None) if n.op == "scores" else n for n in network]
        network = Network(tuple(nodes), network.input_size)
    found = propagate(network, pixels(network, 2))
    last = network.of("residual")[-1].name
    assert torch.allclose(total(found, network.output.name), torch.ones(2).double(), atol=1e-5)
    assert torch.allclose(total(found, last), torch.ones(2).double(), atol=5e-3)
    assert imbalance(network, found) < 5e-3


def test_plain_gradients_do_not_conserve_relevance():
    """A LayerNorm's output does not change with the size of its input: nothing comes through."""
    network = without_constants(lower(tiny_vit(global_pool="avg", fc_norm=False), MEAN, STD))
    rules = {kind: rule for kind, rule in RULES.items() if kind is not LayerNorm}
    found = propagate(network, pixels(network, 2), rules)
    assert imbalance(network, found) > 0.02
    assert total(found, network.of("residual")[-1].name).abs().max() < 0.01


def test_constants_keep_their_share():
    network = lower(tiny_vit(), MEAN, STD)
    found = propagate(network, pixels(network, 2))
    names = [node.name for node in network]
    for node in network.of("residual"):
        before = node.inputs[0]
        part = network.nodes[names.index(before) + 1 : names.index(node.name)]
        kept = softmax_constant(network, found, before, node.name)
        for each in part:
            if isinstance(each, Linear | LayerNorm):
                constant = each.bias if isinstance(each, Linear) else each.beta
                kept = kept + (found.slopes[each.name] * constant).double().flatten(1).sum(dim=1)
        assert torch.allclose(total(found, before) + kept, total(found, node.name), atol=5e-3)
        assert kept.abs().max() > 0.01


def test_linear_layers_follow_the_epsilon_rule(monkeypatch):
    monkeypatch.setattr(relevance, "EPSILON", 0.3)  # large enough to see
    network = lower(tiny_vit(num_classes=0), MEAN, STD)
    found = propagate(network, pixels(network, 2))
    node = network["blocks.1.mlp.fc2"]
    x, slopes = found.values[node.inputs[0]].double(), found.slopes[node.name].double()
    z = x @ node.weight.double().T + node.bias.double()
    epsilon = 0.3 * z.square().mean(dim=(1, 2), keepdim=True).sqrt()
    share = (z * slopes) / (z + epsilon * z.sign())
    want = x * (share @ node.weight.double())
    torch.testing.assert_close(found.of(node.inputs[0]).double(), want, rtol=1e-3, atol=1e-7)
    assert not torch.allclose(want, x * (slopes @ node.weight.double()), rtol=0.01)


def test_one_number_in_one_number_out():
    network = lower(tiny_vit(), MEAN, STD)
    found = propagate(network, pixels(network, 2))
    torch.testing.assert_close(
        found.of("blocks.0.mlp.fc1"), found.of("blocks.0.mlp.act"), rtol=1e-3, atol=1e-7
    )


def test_a_product_is_shared_by_its_factors():
    network = lower(tiny_vit(), MEAN, STD)
    found = propagate(network, pixels(network, 2))
    out = total(found, "blocks.0.attn.attend")
    assert torch.allclose(total(found, "blocks.0.attn"), out / 2, rtol=1e-3)
    # q and k get half of the scores' relevance each, v the other half of the product's.
    q, k, v = found.of("blocks.0.attn.qkv").double().unflatten(2, (3, -1)).sum(dim=(1, 3)).T
    scores = total(found, "blocks.0.attn.scores")
    for part, want in ((q, scores / 2), (k, scores / 2), (v, out / 2)):
        assert torch.allclose(part, want, rtol=1e-3, atol=1e-6)


def test_without_rules_it_is_the_gradient():
    """Against one backward pass through all nodes at once."""
    network = lower(tiny_swin(), MEAN, STD)
    images = pixels(network, 2)
    found = propagate(network, images, {})
    tensors = {"image": images.float()}
    for node in network:
        tensors[node.name] = node.forward(*(tensors[name] for name in node.inputs))
        if not tensors[node.name].requires_grad:
            tensors[node.name].requires_grad_()
        tensors[node.name].retain_grad()
    out = tensors[network.output.name]
    (out.square().flatten(1).sum(dim=1).log() / 2).sum().backward()  # d log |y| = y dy / |y|**2
    for node in network:
        got, want = found.slopes[node.name], tensors[node.name].grad
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5 * float(want.abs().max()))
    with_rules = propagate(network, images).slopes["embed" if "embed" in tensors else "patch_embed"]
    assert not torch.allclose(with_rules, found.slopes["patch_embed"], rtol=0.01)


def test_relevance_does_not_depend_on_the_batch():
    network = lower(tiny_vit(), MEAN, STD)
    images = pixels(network, 3)
    alone, together = propagate(network, images[1:2]), propagate(network, images)
    for name in ("blocks.0.norm1", "blocks.1.attn.qkv"):
        largest = float(alone.of(name).abs().max())
        torch.testing.assert_close(
            alone.of(name)[0], together.of(name)[1], rtol=1e-3, atol=1e-4 * largest
        )


def test_errors_are_weighted_by_relevance():
    network = lower(tiny_vit(), MEAN, STD)
    images = pixels(network, 3)
    twin = prepare(network, images, find_preset("w4a8")).build()
    names = ("blocks.0.mlp.fc2.weight", "blocks.1.mlp.act")
    want = dict.fromkeys(names, 0.0)
    for image in images.split(1):
        found = propagate(network, image)
        fc2, act = network["blocks.0.mlp.fc2"], network["blocks.1.mlp.act"]
        x = found.values[fc2.inputs[0]]
        planned = twin.plan.weights[fc2.name]
        scale = planned.scale / twin.plan.affine(fc2.inputs[0]).unit
        weight = torch.tensor(planned.codes * scale[:, None])
        error = x.double() @ (weight - fc2.weight.double()).T
        # What the bias of the plan makes up for is a constant per channel.
        whole = twin.alone(names[0], [x]).double() - found.values[fc2.name].double()
        assert (whole - error).flatten(0, 1).std(dim=0).max() < 1e-3 * error.std()
        want[names[0]] += float((whole * found.slopes[fc2.name]).square().sum()) / 3
        grid = twin.plan.affine(act.name)
        rounded = grid.values(grid.codes(found.values[act.name]))
        lost = (rounded - found.values[act.name]) * found.slopes[act.name]
        want[names[1]] += float(lost.square().sum()) / 3
    got = relevance_errors(twin, images, names)
    assert list(got) == list(names)
    for name in names:
        assert got[name] == pytest.approx(want[name], rel=1e-4)
        assert got[name] > 0


def ranks(values):
    return np.argsort(np.argsort(values))


def test_slopes_foretell_the_measured_errors():
    """Rank correlation over a trained network's quantisers; of ranks by chance there is little."""
    loaded = load_model("digits")
    found, _ = load_images(None, loaded, 32, split="train")
    images, preset = torch.tensor(found), find_preset("w4a8")
    names = list(cost_model("bitops", loaded.network, preset).choices)
    twin = prepare(loaded.network, images, preset).build(dict.fromkeys(names, 4))
    scores = [score(twin, images, names) for score in SCORES.values()]
    measured, gradient, relevant = (ranks([each[name] for name in names]) for each in scores)
    assert np.corrcoef(measured, gradient)[0, 1] > 0.95
    assert np.corrcoef(measured, relevant)[0, 1] > 0.75
    rng = np.random.default_rng(0)
    chance = [np.corrcoef(rng.permutation(len(names)), measured)[0, 1] for _ in range(50)]
    assert np.quantile(chance, 0.9) < 0.5

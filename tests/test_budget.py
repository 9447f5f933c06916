# SPDX-License-Identifier: Apache-2.0
"""Budgets as they are written, and what widths cost: bits of weights, operations on bits."""

import itertools
import re
from fractions import Fraction

import pytest
import torch
from family_samples import MEAN, STD, W4A8, mixed, prepared, tiny_swin, tiny_vit
from torch.utils.flop_counter import FlopCounterMode

from qvit_hw.budget import ACT_BITS, WEIGHT_BITS, cost_model, parse_budget
from qvit_hw.errors import UserError
from qvit_hw.families import lower
from qvit_hw.integers import export

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("text", "kind", "amount", "unit", "shown"),
    [
        ("size:6", "size", Fraction(6), "", "size:6"),
        ("size:4.25", "size", Fraction(17, 4), "", "size:4.25"),
        ("size:5.2MB", "size", Fraction(26, 5), "MB", "size:5.2MB"),
        (" size:080kB ", "size", Fraction(80), "kB", "size:80kB"),
        ("bitops:0.6", "bitops", Fraction(3, 5), "", "bitops:0.6"),
        ("bitops:10", "bitops", Fraction(10), "", "bitops:10"),
    ],
)
def test_budgets_are_read(text, kind, amount, unit, shown):
    budget = parse_budget(text)
    assert (budget.kind, budget.amount, budget.unit, str(budget)) == (kind, amount, unit, shown)
    assert parse_budget(str(budget)) == budget


@pytest.mark.parametrize(
    "text",
    [
        *("", "6", "size", "size:", "size:-1", "size:6GB", "size:6 MB", "size:1e3", "size:.5"),
        *("size:nan", "bitops:0.6MB", "bitops:x", "bitops:0,6", "macs:1", "Size:6", "size:٦"),
        "size:6\nsize:6",
    ],
)
def test_budgets_that_cannot_be_read(text):
    sentence = (
        "Budget must be size:BITS of a weight, size:NUMBERkB, size:NUMBERMB or bitops:SHARE of the "
        f"preset's, not {text!r}."
    )
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
        parse_budget(text)


def test_limits_are_whole_and_rounded_down():
    network = lower(tiny_vit(), MEAN, STD)
    model = cost_model("size", network, W4A8)
    weights = sum(term.count for term in model.terms)
    assert parse_budget("size:0.1kB").limit(model) == 800
    assert parse_budget("size:0.5MB").limit(model) == 4_000_000
    assert parse_budget("size:5").limit(model) == 5 * weights
    assert parse_budget("size:4.99999").limit(model) == 5 * weights - 1
    ops = cost_model("bitops", network, W4A8)
    assert parse_budget("bitops:1").limit(ops) == ops.cost()
    assert parse_budget("size:1").text(Fraction(31415, 10000), 3) == "size:3.142"
    assert parse_budget("size:1").text(Fraction(31411, 10000), 3) == "size:3.142"  # up


# ------------------------------------------------------------------------------------------- costs


@pytest.mark.parametrize("kind", [tiny_vit, tiny_swin])
def test_size_is_what_the_exported_weights_take(kind):
    ready = prepared(kind())
    model = cost_model("size", ready.network, W4A8)
    for bits in ({}, mixed(model)):
        nodes = export(ready.network, ready.build(bits).plan)
        want = sum(
            node.params.weight.size * node.spec.weight_bits
            for node in nodes
            if node.op in ("linear", "patch_embed")
        )
        assert model.cost(bits) == want
    one = next(iter(model.choices))
    assert model.cost({one: 5}) != model.cost()


@pytest.mark.parametrize("kind", [tiny_vit, tiny_swin])
def test_multiplications_are_those_of_the_original(kind):
    """Without widths, bitops are MACs: torch counts them in timm's own model."""
    original = kind()
    network = lower(original, MEAN, STD)
    model = cost_model("bitops", network, W4A8)
    for module in original.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        original(torch.zeros(1, *network.input_size))
    assert 2 * sum(term.count for term in model.terms) == counter.get_total_flops()


def test_bit_operations_by_hand():
    network = lower(tiny_vit(), MEAN, STD)
    model = cost_model("bitops", network, W4A8)
    bits = mixed(model)
    tokens, width, hidden = 17, 24, 48
    want = 16 * 48 * width * 8 * 8 + width * 7 * 8 * 8  # the patches' pixels; the head
    for block in ("blocks.0", "blocks.1"):
        w = {
            k: bits[f"{block}.{k}.weight"] for k in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        }
        qkv, attend, act = (bits[f"{block}.{k}"] for k in ("attn.qkv", "attn.attend", "mlp.act"))
        want += tokens * width * 3 * width * 8 * w["attn.qkv"]
        want += tokens * tokens * width * (qkv * qkv + W4A8.code_bits * qkv)
        want += tokens * width * width * attend * w["attn.proj"]
        want += tokens * width * hidden * (8 * w["mlp.fc1"] + act * w["mlp.fc2"])
    assert model.cost(bits) == want


def test_names_that_multiply_each_other_are_chosen_together():
    model = cost_model("bitops", lower(tiny_vit(), MEAN, STD), W4A8)
    assert ("blocks.0.attn.attend", "blocks.0.attn.proj.weight") in model.groups
    assert ("blocks.1.mlp.act", "blocks.1.mlp.fc2.weight") in model.groups
    assert ("blocks.1.attn.qkv",) in model.groups
    assert sorted(itertools.chain(*model.groups)) == sorted(model.choices)
    sizes = cost_model("size", lower(tiny_vit(), MEAN, STD), W4A8)
    assert all(len(group) == 1 for group in sizes.groups)
    # Costs of groups add up, whatever the widths of the others.
    first, second = mixed(model, 1), mixed(model, 2)
    group = model.groups[2]
    part = {name: second[name] for name in group}
    change = model.group_cost(group, second) - model.group_cost(group, first)
    assert model.cost(first | part) - model.cost(first) == change != 0


@pytest.mark.parametrize("kind", [tiny_vit, tiny_swin])
def test_what_may_be_chosen(kind):
    network = lower(kind(), MEAN, STD)
    choices = cost_model("bitops", network, W4A8).choices
    linears = {node.name for node in network.of("linear")} - {network.output.name}
    tensors = {node.name for node in network.of("attend", "gelu")}
    tensors |= {node.inputs[0] for node in network.of("scores")}
    assert {n: WEIGHT_BITS if n.endswith(".weight") else ACT_BITS for n in choices} == choices
    assert set(choices) == {f"{name}.weight" for name in linears} | tensors
    assert set(cost_model("size", network, W4A8).choices) == {f"{name}.weight" for name in linears}

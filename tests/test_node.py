# SPDX-License-Identifier: Apache-2.0
"""Nodes whose parts do not fit: each gets its own sentence, before anything is computed."""

import re
from dataclasses import replace

import numpy as np
import pytest
from networks import tiny_swin, tiny_vit

from golden.attention import ScoreSpec
from golden.gelu import GeluSpec
from golden.residual import ResidualSpec
from golden.softmax import SoftmaxSpec
from golden.vit import VitModel

MAKE = {"vit": tiny_vit, "swin": tiny_swin}


def changed(model, name, **changes):
    """The model's nodes, one of them changed; a function gets the old value."""
    node = model[name]
    new = {
        key: change(getattr(node, key)) if callable(change) else change
        for key, change in changes.items()
    }
    return [replace(each, **new) if each is node else each for each in model.nodes]


def put(**changes):
    """A change of a layout, a spec or params."""

    def change(old):
        if isinstance(old, dict):
            return {**old, **changes}
        return replace(old, **changes)

    return change


def cut(*keys, count=-1):
    """A change that shortens arrays of params."""
    return lambda old: replace(old, **{key: getattr(old, key)[:count] for key in keys})


B0 = "layers.0.blocks.0"
FAULTS = [
    # (network, node, changes, error)
    ("vit", "head", {"inputs": ("pol",)}, "Input must come before it, not 'pol'"),
    ("vit", "head", {"inputs": ("head",)}, "Input must come before it, not 'head'"),
    ("vit", "head", {"inputs": ()}, "Inputs of linear must be 1, not 0"),
    ("vit", "head", {"op": "dense"}, r"Operator must be one of \['attend', .*\], not 'dense'"),
    ("vit", "head", {"spec": GeluSpec()}, r"Spec of linear must be a LinearSpec, not GeluSpec\(.*"),
    ("vit", "head", {"params": None}, "Parameters of linear must be a LinearParams, not None"),
    ("swin", "layers.1.merge", {"spec": GeluSpec()}, "Spec of merge must be None, not GeluSpec.*"),
    ("vit", "head", {"layout": {"x": 1}}, r"Layout of linear must have \[\], not \['x'\]"),
    ("vit", "pool", {"layout": {}}, r"Layout of select must have \['tokens'\], not \[\]"),
    ("vit", "head", {"inputs": ("norm",)}, "Row length must be 24, not 12"),
    ("vit", "head", {"spec": put(in_features=23)}, r"Weights must be \[out, 1 to 23\] .*"),
    ("vit", "head", {"spec": put(in_bits=7)}, "Codes must be from -64 to 63, not from -128 to 127"),
    ("vit", "patch_embed", {"spec": put(channels=4)}, "Colour channels must be 4, not 3"),
    ("vit", "patch_embed", {"spec": put(patch=5)}, "Image size .* of 5 pixels, not 8 x 12"),
    ("vit", "patch_embed", {"spec": put(patch=2)}, r"Weights must be \[out, 1 to 12\] .*"),
    ("vit", "patch_embed", {"params": cut("weight", count=3)}, r"Bias must have shape \(3,\).*"),
    ("vit", "embed", {"inputs": ("image",)}, r"Input must be \[tokens, channels\], not shape .*"),
    (
        "vit",
        "embed",
        {"layout": put(positions=np.zeros((5, 12), int))},
        "Positions must be 6, not 5",
    ),
    (
        "vit",
        "embed",
        {"layout": put(positions=np.zeros((6, 11), int))},
        r"Positions must be \[rows, 12\], not shape \(6, 11\)",
    ),
    (
        "vit",
        "embed",
        {"layout": put(prefix=np.full((1, 12), 1 << 15))},
        "Prefix must be from -32768 to 32767, not 32768",
    ),
    (
        "vit",
        "embed",
        {"layout": put(prefix=np.zeros((1, 12)))},
        "Prefix must be an array of integers, not float64",
    ),
    ("vit", "embed", {"params": put(shift=62)}, "Shift must be from 0 to 58, not 62"),
    (
        "vit",
        "embed",
        {"spec": ResidualSpec(in_bits=16, out_bits=16, acc_bits=16, multiplier_bits=24)},
        "Accumulators of the branch must be from -32768 to 32767, not from .*",
    ),
    (
        "vit",
        "blocks.0.residual1",
        {"spec": ResidualSpec(in_bits=8, out_bits=16, multiplier_bits=24)},
        "Codes of the stream must be from -128 to 127, not from -32768 to 32767",
    ),
    (
        "vit",
        "blocks.0.residual1",
        {"inputs": ("start", "blocks.0.attn.qkv")},
        "Row length must be 12, not 36",
    ),
    (
        "vit",
        "blocks.0.residual1",
        {"inputs": ("start", "patch_embed")},
        r"Shape of the branch must be \(8, 12\), not \(6, 12\)",
    ),
    ("vit", "start", {"layout": {"source": "both"}}, "Source must be 'branch' or .*, not 'both'"),
    ("vit", "norm", {"spec": put(in_bits=8)}, "Codes must be from -128 to 127, not from -32768 .*"),
    ("vit", "norm", {"params": cut("shift", "gain", "offset")}, "Row length must be 11, not 12"),
    ("vit", "norm", {"params": cut("gain")}, r"Gain must have shape \(12,\), not \(11,\)"),
    ("vit", "blocks.0.attn.scores", {"layout": {"heads": 5}}, "Width of q, .* 3 x 5, not 36"),
    (
        "vit",
        "blocks.0.attn.scores",
        {"layout": {"heads": 0}},
        "Heads must be from 1 to 4096, not 0",
    ),
    ("vit", "blocks.0.attn.scores", {"layout": {"heads": 3}}, "Requantiser .* 3 channels, not 2"),
    ("vit", "blocks.0.attn.scores", {"spec": put(head_dim=5)}, "Head dimension .* 5, not 6"),
    (
        "vit",
        "blocks.0.attn.scores",
        {"spec": ScoreSpec(bits=7)},
        "Codes must be from -64 to 63, .*",
    ),
    ("vit", "blocks.0.attn", {"spec": put(max_tokens=7)}, "Row length must be at most 7, not 8"),
    ("vit", "blocks.0.attn", {"spec": put(score_bits=11)}, "Scores must be from -1024 to 1023, .*"),
    ("vit", "blocks.0.attn", {"params": put(frac=5)}, "Score fraction bits must be .*, not 5"),
    ("vit", "blocks.0.attn", {"layout": {"mask": [[True]]}}, "Mask must be .* booleans, not list"),
    (
        "vit",
        "blocks.0.attn",
        {"layout": {"mask": np.zeros((1, 8, 8), bool)}},
        r"Scores must be by windows for a mask, not shape \(2, 8, 8\)",
    ),
    (
        "vit",
        "blocks.0.attn.attend",
        {"spec": put(softmax=SoftmaxSpec(max_tokens=17))},
        r"Softmax of the codes must be SoftmaxSpec\(max_tokens=17.*",
    ),
    (
        "vit",
        "blocks.0.attn.attend",
        {"inputs": ("blocks.0.attn.scores", "blocks.0.attn.qkv")},
        r"Softmax of the codes must be SoftmaxSpec\(.*\), not None",
    ),
    (
        "vit",
        "blocks.1.attn.attend",
        {"inputs": ("blocks.0.attn", "blocks.1.attn.qkv")},
        r"Shape of the codes must be \(3, 8, 8\), not \(2, 8, 8\)",
    ),
    ("vit", "blocks.0.attn.attend", {"spec": put(value_bits=7)}, "Values must be from -64 to .*"),
    ("vit", "blocks.0.mlp.act", {"spec": put(in_bits=7)}, r"Table must have shape \(128,\), .*"),
    ("vit", "blocks.1.mlp.act", {"inputs": ("blocks.1.attn.proj",)}, "Codes must be from -512 .*"),
    ("vit", "pool", {"layout": {"tokens": (0, 8)}}, "Token must be from 0 to 7, not 8"),
    ("vit", "pool", {"layout": {"tokens": ()}}, r"Tokens must be a tuple of numbers, not \(\)"),
    ("vit", "pool", {"layout": {"tokens": [0]}}, r"Tokens must be a tuple of numbers, not \[0\]"),
    (
        "swin",
        f"{B0}.attn.scores",
        {"layout": put(windows=np.arange(16).reshape(4, 4) // 2)},
        "Windows must hold each of 16 tokens once, not 4 x 4",
    ),
    (
        "swin",
        f"{B0}.attn.scores",
        {"layout": put(windows=np.arange(12).reshape(3, 4))},
        "Windows must hold each of 16 tokens once, not 3 x 4",
    ),
    (
        "swin",
        f"{B0}.attn.scores",
        {"layout": put(windows=np.arange(16).reshape(4, 4) + 1)},
        "Windows must be from 0 to 15, not 16",
    ),
    (
        "swin",
        f"{B0}.attn.scores",
        {"layout": put(windows=np.arange(16))},
        r"Windows must be \[rows, .*",
    ),
    (
        "swin",
        f"{B0}.attn.scores",
        {"params": put(bias=np.zeros((2, 4, 3), int))},
        r"Shape of the bias must be \(2, 4, 4\), not \(2, 4, 3\)",
    ),
    (
        "swin",
        "layers.0.blocks.1.attn",
        {"layout": {"mask": np.zeros((1, 4, 4), bool)}},
        r"Shape of the mask must be \(4, 4, 4\), not \(1, 4, 4\)",
    ),
    ("swin", "layers.1.merge", {"layout": {"index": np.array([[16]])}}, "Index must be .*, not 16"),
    (
        "swin",
        "layers.1.merge",
        {"layout": {"index": np.zeros((0, 4), int)}},
        r"Index must hold tokens, not have shape \(0, 4\)",
    ),
    ("swin", "pool", {"layout": {"first": 4}}, "First token must be from 0 to 3, not 4"),
    ("swin", "pool", {"spec": put(max_tokens=3)}, "Tokens must be at most 3, not 4"),
    ("swin", "pool", {"spec": put(in_bits=7)}, "Codes must be from -64 to 63, not from -128 .*"),
    (
        "swin",
        "pool",
        {"params": lambda old: replace(old, requant=cut("multiplier", "shift")(old.requant))},
        "Requantiser must have 1 or 16 channels, not 15",
    ),
]


@pytest.mark.parametrize(("network", "name", "changes", "message"), FAULTS)
def test_parts_that_do_not_fit(network, name, changes, message):
    model = MAKE[network]()
    VitModel(model.nodes, model.input_size)
    with pytest.raises((TypeError, ValueError), match=f"^Node {re.escape(repr(name))}: {message}$"):
        VitModel(changed(model, name, **changes), model.input_size)

# SPDX-License-Identifier: Apache-2.0
"""Bundles: of a small network and its own tensors, as calibration would write it, and of the digits."""

import numpy as np
from networks import images, tiny_swin, tiny_vit

from qvit_hw import cli
from qvit_hw.bundle_writer import LayerData, write_bundle

MAKE = {"vit": tiny_vit, "swin": tiny_swin}
LAYERS = {
    "vit": ("blocks.0.norm1", "blocks.0.attn"),
    "swin": ("layers.0.blocks.1.norm1", "layers.0.blocks.1.attn"),
}
"""The LayerNorm and the softmax with vectors, by network."""


def sample(out, which="vit", seed=0, **changes):
    """A small network with vectors of one LayerNorm and one softmax, from its own tensors."""
    model, rng = MAKE[which](seed), np.random.default_rng(seed)
    tensors, layers = model.trace(images(model, 3, seed)), []
    for name in LAYERS[which]:
        node = model[name]
        length = model.flows[name].shape[-1]
        codes, golden = (tensors[each].reshape(-1, length) for each in (*node.inputs, name))
        heads, tokens = model.flows[name].shape[-3:-1] if node.op == "softmax" else (None, None)
        layers.append(
            LayerData(
                name=name,
                op=node.op,
                input=codes,
                golden=golden,
                reference=rng.normal(size=codes.shape),
                scale={"input": 0.25},
                metrics={"equal": 1.0, "max_difference": 0},
                folded={} if heads else {"scale": np.ones(length), "rest": np.zeros(length)},
                extra={"heads": heads, "tokens": tokens} if heads else {},
            )
        )
    content = {
        "model": {"name": "sample", "source": "none", "input_size": [3, 8, 12]},
        "preset": "w8a8p4",
        "observers": {"activations": "minmax"},
        "images": {"source": "none", "calibration": 1, "vectors": 3},
        "specs": {node.op: node.spec for node in (model[name] for name in LAYERS[which])},
        "nodes": model.nodes,
        "input_size": model.input_size,
        "plan": {"grids": {"embed": {"scale": 0.125, "bits": 16}}},
        "scales": {"head/scale": np.linspace(0.5, 1.5, 5), "head/rest": np.array(0.25)},
        "layers": layers,
    }
    write_bundle(out, **(content | changes))
    return model, layers


def digits(out):
    """The digits model as the command calibrates it, on a few images; the folder."""
    wanted = ["--preset", "w8a8p5", "--reparam", "0", "--calibration", "8", "--vector-images", "1"]
    assert cli.invoke(["calibrate", "--model", "digits", *wanted, "--out", str(out)]) == 0
    return out

# SPDX-License-Identifier: Apache-2.0
"""Which observer sees which tensor, and with which width."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from family_samples import MEAN, STD, tiny_vit

from qvit_hw import observation
from qvit_hw.families import lower
from qvit_hw.observation import observe, observe_inputs
from qvit_hw.observers import make_observer
from qvit_hw.presets import find_preset


@pytest.fixture(scope="module")
def network():
    return lower(tiny_vit(), MEAN, STD)


@pytest.fixture(scope="module")
def images(network):
    rng = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (4, *network.input_size), generator=rng, dtype=torch.uint8)


def widths(network, images, preset, monkeypatch):
    """{tensor: (observer, bits)} that ``observe`` asks for."""
    asked = {}

    def note(kind, name, axis=None, bits=8):
        asked[name] = kind, bits
        return make_observer(kind, name, axis, bits)

    monkeypatch.setattr(observation, "make_observer", note)
    observe(network, images, preset)
    return asked


def test_wide_tensors_keep_their_extremes(network, images, monkeypatch):
    asked = widths(network, images, find_preset("w4a4"), monkeypatch)
    block = {name[9:]: each for name, each in asked.items() if name.startswith("blocks.0.")}
    assert block == {
        "norm1": ("omse", 4),
        "attn.qkv": ("omse", 4),
        "attn.attend": ("omse", 4),
        "residual1": ("minmax", 16),
        "norm2": ("omse", 4),
        "mlp.fc1": ("minmax", 10),
        "mlp.act": ("omse", 4),
        "residual2": ("minmax", 16),
    }
    assert asked["embed"] == ("minmax", 16)


def test_tensors_as_wide_as_the_codes_do_not(network, images, monkeypatch):
    preset = replace(find_preset("w8a8p4"), observer="kl")
    assert set(widths(network, images, preset, monkeypatch).values()) == {("kl", 8)}


def test_moments_are_of_what_each_layer_reads(network, images):
    seen = {}

    def tap(node, out):
        seen[node.name] = out.double().numpy()
        return out

    network.run(images, tap)
    moments = observe_inputs(network, images, batch=3)
    assert set(moments) == {node.name for node in network.of("linear")}
    for name, found in moments.items():
        source = seen[network[name].inputs[0]]
        rows = source.reshape(-1, source.shape[-1])
        assert found.count == len(rows)
        assert np.allclose(found.mean, rows.mean(axis=0), atol=1e-6)
        assert np.allclose(found.covariance, np.cov(rows.T, bias=True), atol=1e-5)

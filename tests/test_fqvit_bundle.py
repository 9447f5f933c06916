# SPDX-License-Identifier: Apache-2.0
"""A network of FQ-ViT's operators as it stands in a bundle."""

import json
from typing import Any

import numpy as np
import pytest
from test_fqvit_block import IMAGES, network

from golden.bundle import pack_node, unpack_node
from golden.node import Node
from golden.vit import VitModel


def through_json(node: Node, tensors: dict[str, np.ndarray]) -> Any:
    entry, arrays = pack_node(node)
    tensors.update(arrays)
    return json.loads(json.dumps(entry))


def test_a_network_of_fqvit_goes_through_a_bundle() -> None:
    model, tensors = network(), {}
    entries = [through_json(node, tensors) for node in model.nodes]
    assert all(array.dtype.kind in "iu" for array in tensors.values())
    again = VitModel([unpack_node(entry, tensors) for entry in entries], model.input_size)
    before, after = model.trace(IMAGES), again.trace(IMAGES)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_gain_beyond_its_width_is_refused() -> None:
    node, tensors = network()["norm"], {}
    entry = through_json(node, tensors)
    tensors["norm/gain"] = tensors["norm/gain"] + (1 << 50)
    with pytest.raises(ValueError, match="Node 'norm': Gain must be from"):
        unpack_node(entry, tensors)

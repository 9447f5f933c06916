# SPDX-License-Identifier: Apache-2.0
"""Bundles that nobody wrote: whatever stands in one, the answer is a network that runs, or a BundleError."""

import copy
import json

import numpy as np
import pytest
from bundles import described, written
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import images, tiny_swin, tiny_vit

from golden.bundle import BundleError, read_bundle
from golden.vit import VitModel

MODELS = {"vit": tiny_vit(), "swin": tiny_swin()}


def places(value, path=()):
    """Paths of everything inside a JSON value."""
    for key in value if isinstance(value, dict) else range(len(value)):
        yield (*path, key)
        if isinstance(value[key], dict | list):
            yield from places(value[key], (*path, key))


CONTENTS = {name: described(model) for name, model in MODELS.items()}
PLACES = {name: list(places(network)) for name, (network, _) in CONTENTS.items()}
NAMES = sorted({name for _, tensors in CONTENTS.values() for name in tensors})
JUNK = (
    st.none()
    | st.booleans()
    | st.integers(-5, 40)
    | st.integers()
    | st.floats(allow_nan=False)
    | st.sampled_from([*NAMES, "branch", "stream", "image", "sqrt2", "", "linear", "softmax"])
    | st.lists(st.integers(-1, 5), max_size=3)
    | st.dictionaries(st.sampled_from(["softmax", "requant", "heads"]), st.integers(), max_size=2)
)


@settings(max_examples=400)
@given(st.data(), st.sampled_from(sorted(MODELS)))
def test_no_network_raises_anything_but_bundle_error(data, which):
    network, tensors = CONTENTS[which]
    network, tensors = copy.deepcopy(network), dict(tensors)
    for path in data.draw(st.lists(st.sampled_from(PLACES[which]), min_size=1, max_size=2)):
        inside = network
        try:
            for key in path[:-1]:
                inside = inside[key]
            inside[path[-1]] = data.draw(JUNK)
        except (KeyError, IndexError, TypeError):
            pass  # the first change took this place away
    for name in data.draw(st.lists(st.sampled_from(sorted(tensors)), max_size=2)):
        shape = data.draw(st.lists(st.integers(0, 13), max_size=3))
        tensors[name] = np.full(shape, data.draw(st.integers(-3, 130)) % 128, tensors[name].dtype)
    try:
        model = VitModel.from_bundle("b", ({"network": network}, tensors))
    except BundleError as error:
        message = str(error)
        refused = message.startswith("Bundle 'b' has an invalid network: ")
        refused &= message.endswith(".") and "\n" not in message
    else:
        # What is taken can be run: nothing inside the network refuses its own tensors.
        refused = model(images(model)).shape[0] == 3
    assert refused


@settings(max_examples=200)
@given(data=st.data())
def test_no_file_raises_anything_but_bundle_error(data, tmp_path_factory):
    folder = written(tmp_path_factory.mktemp("fuzz"), *CONTENTS["vit"])
    manifest = json.loads((folder / "manifest.json").read_text())
    top = [path for path in places(manifest) if path[0] != "network"]
    path = data.draw(st.sampled_from(top))
    inside = manifest
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = data.draw(JUNK)
    if manifest == json.loads((folder / "manifest.json").read_text()):
        return  # as it was
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"^Bundle '.*' [a-z].*\.$"):
        read_bundle(folder)

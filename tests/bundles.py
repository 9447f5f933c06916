# SPDX-License-Identifier: Apache-2.0
"""Bundles that hold a network and nothing else, written without the product's own writer."""

import hashlib
import json

from safetensors.numpy import save

from golden.bundle import pack_node


def described(model):
    """(the manifest's network, its tensors)."""
    pairs = [pack_node(node) for node in model.nodes]
    tensors = {name: array for _, part in pairs for name, array in part.items()}
    entries = [entry for entry, _ in pairs]
    network = {"input_size": list(model.input_size), "output": model.output, "nodes": entries}
    return json.loads(json.dumps(network)), tensors


def written(folder, network, tensors):
    """A bundle of nothing but a network."""
    folder.mkdir(exist_ok=True)
    file = "network.safetensors"
    (folder / file).write_bytes(save(tensors))
    manifest = {
        "schema": "qvit-hw/bundle",
        "version": 2,
        "network": network,
        "files": {file: hashlib.sha256((folder / file).read_bytes()).hexdigest()},
        "tensors": {
            name: {
                "file": file,
                "dtype": str(array.dtype),
                "shape": list(array.shape),
                "sha256": hashlib.sha256(array.tobytes()).hexdigest(),
            }
            for name, array in tensors.items()
        },
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder

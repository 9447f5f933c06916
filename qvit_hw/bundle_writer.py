# SPDX-License-Identifier: Apache-2.0
"""Write a bundle: beside the target and renamed, so that it is either there in full or not there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from golden.bundle import MANIFEST, SCHEMA, VERSION, pack_node
from golden.fixedpoint import Ints
from golden.node import Node
from golden.vit import VitModel
from qvit_hw.bundle import NETWORK, ROLES, SCALES, VECTORS, Spec, vector_dtype
from qvit_hw.outputs import check_replaced, replaced_folder

__all__ = ["LayerData", "check_target", "write_bundle"]


@dataclass(frozen=True, eq=False)
class LayerData:
    """The vectors of one layer as calibration hands them to :func:`write_bundle`.

    ``name``: of the network's node, a LayerNorm or a softmax, which has the spec and the params.
    """

    name: str
    op: str
    input: Ints
    golden: Ints
    reference: Any
    scale: Mapping[str, Any]
    metrics: Mapping[str, float | int]
    folded: Mapping[str, Any] = field(default_factory=dict)
    """What affine "shift" leaves to the next linear layer, per channel: "scale" and "rest"."""
    extra: Mapping[str, int] = field(default_factory=dict)
    """More entries of the layer in the manifest: a softmax's heads and tokens."""


def _sha256(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()


def check_target(path: Path) -> None:
    """Raise UserError unless ``path`` can become a bundle: absent, an empty folder, or a bundle."""
    check_replaced(path, MANIFEST, SCHEMA, " and no bundle")


def write_bundle(
    path: Path,
    *,
    model: Mapping[str, Any],
    preset: str,
    observers: Mapping[str, Any],
    images: Mapping[str, Any],
    specs: Mapping[str, Spec],
    nodes: Sequence[Node],
    input_size: Sequence[int],
    plan: Mapping[str, Any],
    scales: Mapping[str, Any],
    layers: Sequence[LayerData],
) -> None:
    """Write a bundle, in place of an older one; UserError where the target cannot be one.

    model, preset, observers, images, plan: go into the manifest as they are (JSON).  specs: of the units,
    by operator.  nodes: the integer network, for images of ``input_size``.  scales: arrays by name, stored
    as float64.  layers: vectors of nodes. TypeError or ValueError where the nodes are no network, or where
    two tensors have one name.
    """
    check_target(path)
    network = VitModel(nodes, input_size)
    packed = [pack_node(node) for node in nodes]
    vectors: dict[str, np.ndarray] = {}
    entries = [_pack(layer, network[layer.name].spec, vectors) for layer in layers]
    tensors: dict[str, dict[str, np.ndarray]] = {
        NETWORK: {name: array for _, part in packed for name, array in part.items()},
        VECTORS: vectors,
        SCALES: {name: np.array(values, np.float64, order="C") for name, values in scales.items()},
    }
    names = [name for content in tensors.values() for name in content]
    if twice := sorted(name for name in set(names) if names.count(name) > 1):
        raise ValueError(f"Tensors must have different names, not {twice[0]!r} twice")
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "version": VERSION,
        "model": dict(model),
        "preset": preset,
        "observers": dict(observers),
        "images": dict(images),
        "specs": {op: asdict(spec) for op, spec in specs.items()},
        "network": {
            "input_size": list(network.input_size),
            "output": network.output,
            "nodes": [entry for entry, _ in packed],
        },
        "layers": entries,
        "plan": dict(plan),
        "tensors": {
            name: {
                "file": file,
                "dtype": str(array.dtype),
                "shape": list(array.shape),
                "sha256": _sha256(array.tobytes()),
            }
            for file, content in tensors.items()
            for name, array in content.items()
        },
        "files": {},
    }
    with replaced_folder(path) as made:
        for file, content in tensors.items():
            (made / file).write_bytes(save(content))  # save_file would hide it from all others
            manifest["files"][file] = _sha256((made / file).read_bytes())
        text = json.dumps(manifest, indent=1, allow_nan=False)
        (made / MANIFEST).write_text(f"{text}\n", encoding="utf-8")


def _pack(layer: LayerData, spec: Spec, vectors: dict[str, np.ndarray]) -> dict[str, Any]:
    """Add a layer's vectors; return its entry in the manifest."""
    names = {}
    for role, array in zip(ROLES, (layer.input, layer.golden, layer.reference), strict=True):
        names[role] = f"{layer.name}/{role}"
        vectors[names[role]] = np.asarray(array).astype(vector_dtype(role, spec), order="C")
    entry: dict[str, Any] = {
        "name": layer.name,
        "op": layer.op,
        "scale": dict(layer.scale),
        "vectors": names,
        "metrics": dict(layer.metrics),
        **layer.extra,
    }
    for key, values in layer.folded.items():
        entry.setdefault("folded", {})[key] = f"{layer.name}/folded_{key}"
        vectors[f"{layer.name}/folded_{key}"] = np.array(values, np.float32, order="C")
    return entry

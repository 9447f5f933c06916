# SPDX-License-Identifier: Apache-2.0
"""The bundle: a folder with everything that hardware needs to know about a calibrated network.

``manifest.json`` says what there is. ``network.safetensors`` holds the integers of the whole network, which
golden alone can read and run (:mod:`golden.bundle`); ``vectors.safetensors`` the recorded integer inputs of
LayerNorms and softmaxes, their golden outputs and a float reference in units of the output code;
``scales.safetensors`` what calibration knows about the integers: the float scales of its plan. The same
content gives the same bytes: no date, no path.

``load_bundle`` trusts nothing: schema, file and tensor hashes, shapes, types and ranges are checked, and that
the parts agree; the first fault is one UserError, and nothing in a bundle can execute.
:mod:`qvit_hw.bundle_writer` writes one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from golden.bounds import Interval
from golden.bundle import (
    MANIFEST,
    BundleError,
    make_spec,
    read_bundle,
    smallest_dtype,
)
from golden.layernorm import LayerNormSpec, layernorm
from golden.node import Node
from golden.softmax import SoftmaxSpec, softmax
from golden.vit import VitModel
from qvit_hw.errors import UserError

__all__ = ["Bundle", "Layer", "load_bundle", "vector_dtype"]

NETWORK = "network.safetensors"
VECTORS = "vectors.safetensors"
SCALES = "scales.safetensors"

Spec = LayerNormSpec | SoftmaxSpec
SPECS: dict[str, type[Spec]] = {"layernorm": LayerNormSpec, "softmax": SoftmaxSpec}
ROLES = ("input", "golden", "float")
EXTRAS = ("heads", "tokens")
AGAIN = 8
"""Rows of each layer's vectors that loading computes again."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer of a loaded bundle."""

    name: str
    op: str
    spec: Any
    params: Any
    entry: dict[str, Any]
    """The layer's entry in the manifest, metrics and scales included."""
    _vectors: Mapping[str, np.ndarray]

    def input(self) -> np.ndarray:
        """Recorded integers, [rows, N]: LayerNorm's input codes, softmax's scores."""
        return self._vectors[self.entry["vectors"]["input"]]

    def golden(self) -> np.ndarray:
        """Golden output codes, [rows, N]."""
        return self._vectors[self.entry["vectors"]["golden"]]

    def float(self) -> np.ndarray:
        """Float reference in units of the output code, unrounded, float32 [rows, N]."""
        return self._vectors[self.entry["vectors"]["float"]]


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle that has passed every check."""

    path: Path
    manifest: dict[str, Any]
    specs: dict[str, Any]
    """Specs of the hardware's units by operator; all nodes of an operator have the same."""
    layers: list[Layer]
    network: VitModel
    """The whole network in integers."""
    plan: dict[str, Any]
    """What calibration decided, as JSON; arrays are names in ``scales``."""
    scales: dict[str, np.ndarray]
    """Float scales, float64."""

    @cached_property
    def sha256(self) -> str:
        """Hash of the manifest, which holds the hashes of everything else."""
        return hashlib.sha256((self.path / MANIFEST).read_bytes()).hexdigest()

    def units(self) -> dict[str, Any]:
        """``specs``; UserError where there are none, because the preset is for the golden model alone."""
        if not self.specs:
            preset = self.manifest["preset"]
            raise UserError(
                f"Bundle {self.path.name!r} has nothing for hardware: preset {preset!r} is for the golden "
                "model alone."
            )
        return self.specs

    def layer(self, name: str) -> Layer:
        """Return the layer of this name; UserError for an unknown one."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise UserError(f"Bundle {self.path.name!r} has no layer {name!r}.")


def _legal(role: str, spec: Spec) -> Interval:
    """Range of a layer's input or golden codes."""
    if role == "golden":
        return spec.bounds["code"]
    if isinstance(spec, SoftmaxSpec):
        return spec.bounds["score"]
    return Interval.of_bits(spec.in_bits, signed=True)


def vector_dtype(role: str, spec: Spec) -> np.dtype:
    """Type in which a layer's vectors are stored; ``role``: one of ROLES."""
    return np.dtype(np.float32) if role == "float" else smallest_dtype(_legal(role, spec))


# ---------------------------------------------------------------------------------------- loading


def load_bundle(path: Path | str) -> Bundle:
    """Read and check a bundle; UserError, in one sentence, on the first fault."""
    try:
        return _Loader(Path(path)).load()
    except BundleError as error:
        raise UserError(str(error)) from None


class _Loader:
    """Checks what :func:`golden.bundle.read_bundle` does not: network, layers, and that they agree."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest, self.content = read_bundle(path)
        self.network = VitModel.from_bundle(path, (self.manifest, self.content))

    def fail(self, fault: str) -> NoReturn:
        raise BundleError(f"Bundle {str(self.path)!r} {fault}.")

    def load(self) -> Bundle:
        for key, kind in {"model": dict, "preset": str, "observers": dict, "images": dict}.items():
            self.field(key, kind)
        specs = self._specs()
        layers = [self._layer(entry) for entry in self.field("layers", list)]
        names = [layer.name for layer in layers]
        if len(set(names)) != len(names):
            self.fail("names a layer twice")
        plan, scales = self.field("plan", dict), self._scales()
        return Bundle(self.path, self.manifest, specs, layers, self.network, plan, scales)

    def field(self, key: str, kind: type, within: Any = None, where: str = "manifest") -> Any:
        """Return an entry of the manifest, of this type."""
        value = (self.manifest if within is None else within).get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            self.fail(f"has no valid {key!r} in its {where}")
        return value

    def _specs(self) -> dict[str, Spec]:
        """The units' specs, which are those of all nodes."""
        specs: dict[str, Spec] = {}
        for op, entry in self.field("specs", dict).items():
            if op not in SPECS:
                self.fail(f"has an unknown operator {op!r}")
            try:
                specs[op] = make_spec(SPECS[op], entry)
            except (TypeError, ValueError) as error:
                self.fail(f"has an invalid spec of {op}: {error}")
        for node in self.network.nodes:
            if node.op in SPECS and node.spec != specs.get(node.op):
                self.fail(
                    f"has parts that disagree: node {node.name!r} has another spec of {node.op}"
                )
        return specs

    def _scales(self) -> dict[str, np.ndarray]:
        scales = {
            name: self.content[name]
            for name, entry in self.manifest["tensors"].items()
            if entry["file"] == SCALES
        }
        for name, array in scales.items():
            if array.dtype != np.float64 or not np.isfinite(array).all():
                self.fail(f"has scales that are not finite float64: {name!r}")
        return scales

    def _layer(self, entry: Any) -> Layer:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            self.fail("has a layer without a name")
        name, where = entry["name"], f"layer {entry['name']!r}"
        op = self.field("op", str, entry, where)
        if op not in SPECS:
            self.fail(f"has an unknown operator {op!r} in its {where}")
        node = next((node for node in self.network.nodes if node.name == name), None)
        if node is None or node.op != op:
            self.fail(f"has parts that disagree: {where} is no {op} of its network")
        for key in ("scale", "metrics"):
            self.field(key, dict, entry, where)
        shape = self.network.flows[name].shape
        rows = self._check_vectors(entry, where, node, shape[-1])
        if op == "softmax":
            heads, tokens = (self.field(key, int, entry, where) for key in EXTRAS)
            if (heads, tokens) != shape[-3:-1]:
                self.fail(
                    f"has parts that disagree: {where} has {heads} x {tokens} rows an image, "
                    f"its network {shape[-3]} x {shape[-2]}"
                )
            if rows % (heads * tokens):
                self.fail(f"has {rows} rows in its {where}: not images of {heads} x {tokens} rows")
        folded = self.field("folded", dict, entry, where) if "folded" in entry else {}
        for key in folded:
            tensor = self.content.get(self.field(key, str, folded, where))
            if tensor is None or tensor.shape != shape[-1:]:
                self.fail(f"lacks the folded {key} of its {where}")
        return Layer(name, op, node.spec, node.params, entry, self.content)

    def _check_vectors(self, entry: Any, where: str, node: Node, length: int) -> int:
        """The number of rows, after all checks; the first rows are computed again."""
        spec: Spec = node.spec
        names = self.field("vectors", dict, entry, where)
        arrays = {role: self._vector(names, role, where, spec) for role in ROLES}
        shape = arrays["input"].shape
        if len(shape) != 2 or not math.prod(shape):
            self.fail(f"has vectors of shape {list(shape)} in its {where}: they must be rows")
        wanted = (shape[0], length)
        for role, array in arrays.items():
            if array.shape != wanted:
                self.fail(
                    f"has a wrong shape: {role} vectors of {where} must be {list(wanted)}, "
                    f"not {list(array.shape)}"
                )
        if not np.isfinite(arrays["float"]).all():
            self.fail(f"has float vectors in its {where} that are not finite")
        for role in ("input", "golden"):
            legal = _legal(role, spec)
            if not legal.holds(arrays[role]):
                self.fail(f"has {role} vectors in its {where} outside {legal.low} to {legal.high}")
        operator: Any = layernorm if node.op == "layernorm" else softmax
        again = operator(arrays["input"][:AGAIN].astype(np.int64), spec, node.params)
        if not np.array_equal(again, arrays["golden"][:AGAIN]):
            self.fail(f"has parts that disagree: golden vectors of {where} are not of its parameters")
        return shape[0]

    def _vector(self, names: dict[str, Any], role: str, where: str, spec: Spec) -> np.ndarray:
        name = self.field(role, str, names, where)
        if name not in self.content:
            self.fail(f"lacks the tensor {name!r}")
        wanted, found = vector_dtype(role, spec), self.content[name].dtype
        if found != wanted:
            self.fail(f"has a wrong dtype: tensor {name!r} must be {wanted}, not {found}")
        return self.content[name]

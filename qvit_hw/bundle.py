# SPDX-License-Identifier: Apache-2.0
"""The bundle: a folder with everything that hardware needs to know about a calibrated network.

``manifest.json`` says what there is, ``tensors.safetensors`` holds the parameters (integers only),
``vectors.safetensors`` per layer the recorded integer inputs, the golden outputs and a float
reference in units of the output code. The same content gives the same bytes: no date, no path.

``load_bundle`` trusts nothing: schema, file and tensor hashes, shapes, types and ranges are checked, the
first fault is one UserError, and nothing in a bundle can execute. ``write_bundle`` writes beside the
target and renames, so that a bundle is either there in full or not there.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from golden.bounds import Interval
from golden.fixedpoint import Ints
from golden.layernorm import LayerNormParams, LayerNormSpec
from golden.softmax import SoftmaxParams, SoftmaxSpec
from qvit_hw.errors import UserError
from qvit_hw.outputs import check_folder, made_folder, told

__all__ = [
    "SCHEMA",
    "VERSION",
    "Bundle",
    "Layer",
    "LayerData",
    "check_target",
    "load_bundle",
    "write_bundle",
]

SCHEMA = "qvit-hw/bundle"
VERSION = 1
MANIFEST = "manifest.json"
TENSORS = "tensors.safetensors"
VECTORS = "vectors.safetensors"

Spec = LayerNormSpec | SoftmaxSpec
Params = LayerNormParams | SoftmaxParams
SPECS: dict[str, type[Spec]] = {"layernorm": LayerNormSpec, "softmax": SoftmaxSpec}
SCALARS = {"layernorm": ("zero_point", "eps", "point"), "softmax": ("frac",)}
ARRAYS: dict[str, tuple[str, ...]] = {"layernorm": ("shift", "gain", "offset"), "softmax": ()}
ROLES = ("input", "golden", "float")
EXTRAS = ("heads", "tokens")


@dataclass(frozen=True, eq=False)
class LayerData:
    """One layer as calibration hands it to :func:`write_bundle`."""

    name: str
    op: str
    params: Params
    input: Ints
    golden: Ints
    reference: Any
    scale: Mapping[str, Any]
    metrics: Mapping[str, float | int]
    folded: Mapping[str, Any] = field(default_factory=dict)
    """What affine "shift" leaves to the next linear layer, per channel: "scale" and "rest"."""
    extra: Mapping[str, int] = field(default_factory=dict)
    """More entries of the layer in the manifest: a softmax's heads and tokens."""


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
    layers: list[Layer]

    @cached_property
    def sha256(self) -> str:
        """Hash of the manifest, which holds the hashes of everything else."""
        return _sha256((self.path / MANIFEST).read_bytes())

    def layer(self, name: str) -> Layer:
        """Return the layer of this name; UserError for an unknown one."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise UserError(f"Bundle {self.path.name!r} has no layer {name!r}.")


def _sha256(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()


# ---------------------------------------------------------------------------------------- writing


def check_target(path: Path) -> None:
    """Raise UserError unless ``path`` can become a bundle: absent, an empty folder, or a bundle."""
    if path.is_symlink():
        raise UserError(f"Output {str(path)!r} must be a folder, not a file.")
    if path.is_dir() and any(path.iterdir()):
        try:
            known = json.loads((path / MANIFEST).read_bytes()).get("schema") == SCHEMA
        except (OSError, ValueError, AttributeError):
            known = False
        if not known:
            raise UserError(
                f"Output {str(path)!r} holds other files and no bundle: it is left alone."
            )
    check_folder(path, replaced=True)


def write_bundle(
    path: Path,
    *,
    model: Mapping[str, Any],
    preset: str,
    observers: Mapping[str, Any],
    images: Mapping[str, Any],
    specs: Mapping[str, Spec],
    layers: Sequence[LayerData],
) -> None:
    """Write a bundle, in place of an older one; UserError where the target cannot be one."""
    check_target(path)
    tensors: dict[str, dict[str, np.ndarray]] = {TENSORS: {}, VECTORS: {}}
    entries = [_pack(layer, specs[layer.op], tensors) for layer in layers]
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "version": VERSION,
        "model": dict(model),
        "preset": preset,
        "observers": dict(observers),
        "images": dict(images),
        "specs": {op: asdict(spec) for op, spec in specs.items()},
        "layers": entries,
        "tensors": {
            name: {
                "file": file,
                "dtype": str(array.dtype),
                "shape": list(array.shape),
                "sha256": _sha256(array.data),
            }
            for file, content in tensors.items()
            for name, array in content.items()
        },
        "files": {},
    }
    path = path.absolute()
    with made_folder(path.parent), told(path):
        _put(path, manifest, tensors)


def _put(
    path: Path, manifest: dict[str, Any], tensors: Mapping[str, dict[str, np.ndarray]]
) -> None:
    """Write the files beside ``path``, then rename."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        made = temporary / "new"
        made.mkdir()
        for file, content in tensors.items():
            (made / file).write_bytes(save(content))  # save_file would hide it from all others
            manifest["files"][file] = _sha256((made / file).read_bytes())
        text = json.dumps(manifest, indent=1, allow_nan=False)
        (made / MANIFEST).write_text(f"{text}\n", encoding="utf-8")
        if path.exists():
            path.rename(temporary / "old")
        try:
            made.rename(path)
        except OSError:
            if (temporary / "old").exists():
                (temporary / "old").rename(path)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _pack(
    layer: LayerData, spec: Spec, tensors: dict[str, dict[str, np.ndarray]]
) -> dict[str, Any]:
    """Add a layer's tensors; return its entry in the manifest."""
    params: dict[str, Any] = {key: getattr(layer.params, key) for key in SCALARS[layer.op]}
    for key in ARRAYS[layer.op]:
        params[key] = f"{layer.name}/{key}"
        array = np.asarray(getattr(layer.params, key))
        tensors[TENSORS][params[key]] = array.astype(_dtype(layer.op, key, spec), order="C")
    vectors = {}
    for role, array in zip(ROLES, (layer.input, layer.golden, layer.reference), strict=True):
        vectors[role] = f"{layer.name}/{role}"
        packed = np.asarray(array).astype(_dtype(layer.op, role, spec), order="C")
        tensors[VECTORS][vectors[role]] = packed
    entry: dict[str, Any] = {
        "name": layer.name,
        "op": layer.op,
        "params": params,
        "scale": dict(layer.scale),
        "vectors": vectors,
        "metrics": dict(layer.metrics),
        **layer.extra,
    }
    for key, values in layer.folded.items():
        entry.setdefault("folded", {})[key] = f"{layer.name}/folded_{key}"
        tensors[VECTORS][f"{layer.name}/folded_{key}"] = np.asarray(values).astype(np.float32)
    return entry


def _dtype(op: str, role: str, spec: Any) -> np.dtype:
    """Type in which a tensor is stored."""
    if role == "float":
        return np.dtype(np.float32)
    if op == "softmax":
        return np.dtype(np.int16 if role == "input" else np.uint8)
    wide = {"input": spec.in_bits, "golden": spec.out_bits}
    if role in wide:
        return np.dtype(np.int8 if wide[role] <= 8 else np.int16)
    offset = np.int32 if spec.bounds["offset"].bits <= 32 else np.int64
    return np.dtype({"shift": np.uint8, "gain": np.int16, "offset": offset}[role])


# ---------------------------------------------------------------------------------------- loading


def load_bundle(path: Path | str) -> Bundle:
    """Read and check a bundle; UserError, in one sentence, on the first fault."""
    return _Loader(Path(path)).load()


class _Loader:
    """Checks a bundle from the outside in: folder, manifest, files, tensors, layers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: dict[str, Any] = {}
        self.content: dict[str, np.ndarray] = {}

    def fail(self, fault: str) -> NoReturn:
        raise UserError(f"Bundle {str(self.path)!r} {fault}.")

    def load(self) -> Bundle:
        self._read_manifest()
        self._read_files()
        self._check_tensors()
        specs = self._specs()
        layers = [self._layer(entry, specs) for entry in self.field("layers", list)]
        names = [layer.name for layer in layers]
        if len(set(names)) != len(names):
            self.fail("names a layer twice")
        return Bundle(self.path, self.manifest, specs, layers)

    def field(self, key: str, kind: type, within: Any = None, where: str = "manifest") -> Any:
        """Return an entry of the manifest, of this type."""
        value = (self.manifest if within is None else within).get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            self.fail(f"has no valid {key!r} in its {where}")
        return value

    def _read_manifest(self) -> None:
        if not self.path.is_dir() or not (self.path / MANIFEST).is_file():
            self.fail(f"is not a bundle: it has no {MANIFEST}")
        try:
            content = json.loads(
                (self.path / MANIFEST).read_text(encoding="utf-8"), parse_constant=_no_constant
            )
        except (ValueError, RecursionError):
            self.fail(f"has a broken {MANIFEST}: it is not JSON")
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            self.fail(f"is not a bundle: its {MANIFEST} does not say {SCHEMA!r}")
        if content.get("version") != VERSION or isinstance(content["version"], bool):
            self.fail(f"must have version {VERSION}, not {content.get('version')!r}")
        self.manifest = content
        self.field("model", dict)
        self.field("preset", str)
        self.field("observers", dict)
        self.field("images", dict)

    def _read_files(self) -> None:
        files = self.field("files", dict)
        for file, wanted in files.items():
            if not file or file in (".", "..") or set(file) & set("/\\:\0"):
                self.fail(f"names a file outside its folder: {file!r}")
            source = self.path / file
            if source.is_symlink() or not source.is_file():
                self.fail(f"lacks the file {file!r}")
            if _sha256(source.read_bytes()) != wanted:
                self.fail(f"has a wrong hash: {file!r} is not the file that was written")
            try:
                content = load_file(source)
            except (SafetensorError, ValueError, TypeError, KeyError):
                self.fail(f"has a damaged file {file!r}: it is not safetensors")
            for name, array in content.items():
                if name in self.content:
                    self.fail(f"holds the tensor {name!r} twice")
                self.content[name] = array

    def _check_tensors(self) -> None:
        tensors = self.field("tensors", dict)
        for name, entry in tensors.items():
            if name not in self.content:
                self.fail(f"lacks the tensor {name!r}")
            array = self.content[name]
            if not isinstance(entry, dict) or str(array.dtype) != entry.get("dtype"):
                self.fail(f"has a wrong dtype: tensor {name!r} is {array.dtype}")
            if list(array.shape) != entry.get("shape"):
                self.fail(f"has a wrong shape: tensor {name!r} is {list(array.shape)}")
            if _sha256(np.ascontiguousarray(array).data) != entry.get("sha256"):
                self.fail(f"has a wrong hash: tensor {name!r} is not the one that was written")
        for name in self.content:
            if name not in tensors:
                self.fail(f"holds a tensor that its manifest does not name: {name!r}")

    def _specs(self) -> dict[str, Spec]:
        specs: dict[str, Spec] = {}
        for op, fields in self.field("specs", dict).items():
            if op not in SPECS:
                self.fail(f"has an unknown operator {op!r}")
            try:
                specs[op] = SPECS[op](**fields)
            except (TypeError, ValueError) as error:
                self.fail(f"has an invalid spec of {op}: {error}")
        return specs

    def _layer(self, entry: Any, specs: Mapping[str, Spec]) -> Layer:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            self.fail("has a layer without a name")
        name, where = entry["name"], f"layer {entry['name']!r}"
        op = self.field("op", str, entry, where)
        if op not in specs:
            self.fail(f"has an unknown operator {op!r} in its {where}")
        spec = specs[op]
        given = self.field("params", dict, entry, where)
        values: dict[str, Any] = {key: self.field(key, int, given, where) for key in SCALARS[op]}
        for key in ARRAYS[op]:
            array = self._tensor(self.field(key, str, given, where), op, key, spec)
            values[key] = array.astype(np.int64)
        params: Params = LayerNormParams(**values) if op == "layernorm" else SoftmaxParams(**values)
        try:
            params.check(spec)  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            self.fail(f"has invalid parameters in its {where}: {error}")
        self._check_vectors(entry, where, spec, params)
        for key in ("scale", "metrics"):
            self.field(key, dict, entry, where)
        rows = len(self.content[entry["vectors"]["input"]])
        if op == "softmax":
            heads, tokens = (self.field(key, int, entry, where) for key in EXTRAS)
            if heads < 1 or tokens < 1 or rows % (heads * tokens):
                self.fail(f"has {rows} rows in its {where}: not images of {heads} x {tokens} rows")
        folded = self.field("folded", dict, entry, where) if "folded" in entry else {}
        for key in folded:
            tensor = self.content.get(self.field(key, str, folded, where))
            if tensor is None or tensor.shape != np.shape(values.get("shift", 0)):
                self.fail(f"lacks the folded {key} of its {where}")
        return Layer(name, op, spec, params, entry, self.content)

    def _tensor(self, name: str, op: str, role: str, spec: Any) -> np.ndarray:
        if name not in self.content:
            self.fail(f"lacks the tensor {name!r}")
        wanted = _dtype(op, role, spec)
        if self.content[name].dtype != wanted:
            self.fail(
                f"has a wrong dtype: tensor {name!r} must be {wanted}, not {self.content[name].dtype}"
            )
        return self.content[name]

    def _check_vectors(self, entry: Any, where: str, spec: Any, params: Params) -> None:
        op, names = entry["op"], self.field("vectors", dict, entry, where)
        arrays = {
            role: self._tensor(self.field(role, str, names, where), op, role, spec)
            for role in ROLES
        }
        shape = arrays["input"].shape
        if len(shape) != 2 or not math.prod(shape):
            self.fail(f"has vectors of shape {list(shape)} in its {where}: they must be rows")
        longest = spec.max_channels if op == "layernorm" else spec.max_tokens
        if shape[1] > longest:
            self.fail(f"has rows of {shape[1]} in its {where}: the spec's maximum is {longest}")
        wanted = (shape[0], params.channels) if isinstance(params, LayerNormParams) else shape
        for role, array in arrays.items():
            if array.shape != wanted:
                self.fail(
                    f"has a wrong shape: {role} vectors of {where} must be {list(wanted)}, "
                    f"not {list(array.shape)}"
                )
        if not np.isfinite(arrays["float"]).all():
            self.fail(f"has float vectors in its {where} that are not finite")
        if op == "layernorm":
            legal = {"input": Interval.of_bits(spec.in_bits, signed=True)}
        else:
            legal = {"input": spec.bounds["score"]}
        legal["golden"] = spec.bounds["code"]
        for role, interval in legal.items():
            if not interval.holds(arrays[role]):
                self.fail(
                    f"has {role} vectors in its {where} outside {interval.low} to {interval.high}"
                )


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")

# SPDX-License-Identifier: Apache-2.0
"""Bundles, read with NumPy alone, and the nodes of a network as they stand in one.

A bundle is a folder: ``manifest.json`` and files of tensors (:mod:`golden.tensorfile`). The manifest names
each file and each tensor with its hash; ``network`` in it describes the integer network:

    {"input_size": [C, H, W], "output": name of the last node, "nodes": [node, ...]}
    node: {"name", "op", "inputs", "spec", "params", "layout"}

Spec and params are the fields of their dataclasses, one inside the other where they are; an array is the
name of a tensor. :func:`pack_node` and :func:`unpack_node` are each other's inverse, and the same node gives
the same bytes: each array has the smallest type that holds every value its spec allows, so that no type
depends on the values. Nothing is trusted: the first fault of a bundle is one BundleError, one sentence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NoReturn, get_args, get_type_hints

import numpy as np
import numpy.typing as npt

from golden.bounds import Interval
from golden.node import OPERATIONS, Node, check_parts
from golden.requant import MULTIPLIER, SHIFT
from golden.tensorfile import read_json, read_tensors

__all__ = [
    "MANIFEST",
    "SCHEMA",
    "VERSION",
    "BundleError",
    "array_ranges",
    "make_spec",
    "pack_node",
    "read_bundle",
    "smallest_dtype",
    "unpack_network",
    "unpack_node",
]

SCHEMA = "qvit-hw/bundle"
VERSION = 2
MANIFEST = "manifest.json"

Arrays = dict[str, npt.NDArray[Any]]


class BundleError(ValueError):
    """A bundle is at fault; the message is one sentence."""


# ------------------------------------------------------------------------------------------- folder


def read_bundle(path: Path | str) -> tuple[dict[str, Any], Arrays]:
    """Return (manifest, tensors by name) of a bundle; BundleError on the first fault.

    Schema, version, names of files, hashes of files and tensors, types and shapes are as they should be then;
    what they mean is for others to check. The arrays are read-only.
    """
    reader = _Reader(Path(path))
    return reader.manifest, reader.tensors


class _Reader:
    """Checks a bundle from the outside in: folder, manifest, files, tensors."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = self._manifest()
        self.origin: dict[str, str] = {}
        self.tensors = self._tensors()

    def fail(self, fault: str) -> NoReturn:
        raise BundleError(f"Bundle {str(self.path)!r} {fault}.")

    def _read(self, file: str) -> bytes:
        try:
            return self.path.joinpath(file).read_bytes()
        except OSError as error:
            self.fail(f"cannot be read: {file!r}: {error.strerror or type(error).__name__}")

    def _is_file(self, file: str) -> bool:
        place = self.path.joinpath(file)
        return place.is_file() and not place.is_symlink()

    def _manifest(self) -> dict[str, Any]:
        if not self._is_file(MANIFEST):
            self.fail(f"is not a bundle: it has no {MANIFEST}")
        try:
            content = read_json(self._read(MANIFEST))
        except BundleError:
            raise
        except ValueError:
            self.fail(f"has a broken {MANIFEST}: it is not JSON")
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            self.fail(f"is not a bundle: its {MANIFEST} does not say {SCHEMA!r}")
        if type(content.get("version")) is not int or content["version"] != VERSION:
            self.fail(f"must have version {VERSION}, not {content.get('version')!r}")
        for key in ("files", "tensors"):
            if not isinstance(content.get(key), dict):
                self.fail(f"has no valid {key!r} in its manifest")
        return content

    def _tensors(self) -> Arrays:
        found: Arrays = {}
        for file, digest in self.manifest["files"].items():
            for name, array in self._file(file, digest).items():
                if name in found:
                    self.fail(f"holds the tensor {name!r} twice")
                found[name], self.origin[name] = array, file
        for name, entry in self.manifest["tensors"].items():
            self._check(name, entry, found)
        for name in found:
            if name not in self.manifest["tensors"]:
                self.fail(f"holds a tensor that its manifest does not name: {name!r}")
        return found

    def _file(self, file: str, digest: Any) -> Arrays:
        if file in ("", ".", "..") or set(file) & set("/\\:\0"):
            self.fail(f"names a file outside its folder: {file!r}")
        if not self._is_file(file):
            self.fail(f"lacks the file {file!r}")
        content = self._read(file)
        if hashlib.sha256(content).hexdigest() != digest:
            self.fail(f"has a wrong hash: {file!r} is not the file that was written")
        try:
            return read_tensors(content)
        except ValueError as error:
            self.fail(f"has a damaged file {file!r}: it is not safetensors ({error})")

    def _check(self, name: str, entry: Any, found: Arrays) -> None:
        if name not in found:
            self.fail(f"lacks the tensor {name!r}")
        array = found[name]
        if not isinstance(entry, dict) or entry.get("file") != self.origin[name]:
            self.fail(f"has a wrong file: tensor {name!r} is in {self.origin[name]!r}")
        if entry.get("dtype") != str(array.dtype):
            self.fail(f"has a wrong dtype: tensor {name!r} is {array.dtype}")
        if entry.get("shape") != list(array.shape):
            self.fail(f"has a wrong shape: tensor {name!r} is {list(array.shape)}")
        if entry.get("sha256") != hashlib.sha256(array.data).hexdigest():
            self.fail(f"has a wrong hash: tensor {name!r} is not the one that was written")


# -------------------------------------------------------------------------------------- types in files


def smallest_dtype(values: Interval) -> np.dtype[Any]:
    """The smallest integer type that holds an interval; unsigned where nothing in it is negative.

    >>> smallest_dtype(Interval(-127, 127)), smallest_dtype(Interval(0, 256))
    (dtype('int8'), dtype('uint16'))
    """
    for size in (1, 2, 4, 8):
        if values.bits <= 8 * size:
            return np.dtype(f"{'i' if values.signed else 'u'}{size}")
    raise ValueError(f"Values must fit in 64 bits, not be from {values.low} to {values.high}")


_TOKENS = Interval(-(1 << 31), (1 << 31) - 1)
"""Numbers of tokens are int32 everywhere: no spec bounds them."""


def _residual_arrays(spec: Any) -> dict[str, Interval]:
    shift = Interval(0, spec.max_shift)
    return {"in_shift": shift, "multiplier": spec.bounds["multiplier"], "out_shift": shift}


def _embed_arrays(spec: Any) -> dict[str, Interval]:
    codes = Interval.of_bits(spec.in_bits, signed=True)
    return {**_residual_arrays(spec), "positions": codes, "prefix": spec.bounds["code"]}


def _layernorm_arrays(spec: Any) -> dict[str, Interval]:
    shift = Interval(0, spec.max_shift)
    return {"shift": shift, "gain": spec.gain_range, "offset": spec.bounds["offset"]}


def _linear_arrays(spec: Any) -> dict[str, Interval]:
    return {"weight": spec.bounds["weight"], "bias": spec.bounds["bias"], **_FACTORS}


_FACTORS = {"requant.multiplier": MULTIPLIER, "requant.shift": SHIFT}
_ARRAYS: Mapping[str, Callable[[Any], Mapping[str, Interval | None]]] = {
    "patch_embed": lambda spec: _linear_arrays(spec.linear),
    "embed": _embed_arrays,
    "start": _residual_arrays,
    "layernorm": _layernorm_arrays,
    "linear": _linear_arrays,
    "scores": lambda spec: {**_FACTORS, "bias": spec.bounds["bias"], "windows": _TOKENS},
    "softmax": lambda spec: {"mask": None},
    "attend": lambda spec: {"multiplier": MULTIPLIER, "shift": SHIFT, "windows": _TOKENS},
    "gelu": lambda spec: {"table": spec.bounds["code"]},
    "residual": _residual_arrays,
    "merge": lambda spec: {"index": _TOKENS},
    "select": lambda spec: {},
    "pool": lambda spec: _FACTORS,
    "fqvit_embed": _embed_arrays,
    "fqvit_layernorm": lambda spec: {key: spec.bounds[key] for key in ("shift", "gain", "offset")},
    "fqvit_requant": lambda spec: {"multiplier": MULTIPLIER, "shift": SHIFT},
    "fqvit_scores": lambda spec: {**_FACTORS, "windows": _TOKENS},
    "fqvit_softmax": lambda spec: {"mask": None},
    "fqvit_attend": lambda spec: {"multiplier": MULTIPLIER, "shift": SHIFT, "windows": _TOKENS},
    "fqvit_residual": _residual_arrays,
}
"""See :func:`array_ranges`."""


def array_ranges(op: Any) -> Callable[[Any], Mapping[str, Interval | None]]:
    """Return what gives, for an operator's spec, the arrays of its params and layout by path.

    Each with the range of its values; None: booleans. ValueError for an unknown operator.
    """
    if not isinstance(op, str) or op not in _ARRAYS:
        raise ValueError(f"Operator must be one of {sorted(_ARRAYS)}, not {op!r}")
    return _ARRAYS[op]


def _dtype(values: Interval | None) -> np.dtype[Any]:
    return np.dtype(np.bool_) if values is None else smallest_dtype(values)


# -------------------------------------------------------------------------------------------- packing


def pack_node(node: Node) -> tuple[dict[str, Any], Arrays]:
    """Return (entry of the manifest, tensors) of a node; TypeError or ValueError where it is not sound."""
    check_parts(node)
    arrays, tensors = array_ranges(node.op)(node.spec), {}

    def packed(value: Any, path: str) -> Any:
        if value is None or path not in arrays:
            return _plain(value, path, packed)
        array, legal, name = np.asarray(value), arrays[path], f"{node.name}/{path}"
        if array.dtype.kind not in ("b" if legal is None else "iu"):
            raise TypeError(f"{path} must be an array of {_dtype(legal)}, not {array.dtype}")
        if legal is not None:
            legal.require(array, path)
        tensors[name] = array.astype(_dtype(legal), order="C")
        return name

    given = {key: value for key, value in sorted(node.layout.items()) if value is not None}
    entry = {
        "name": node.name,
        "op": node.op,
        "inputs": list(node.inputs),
        "spec": _plain(node.spec),
        "params": _plain(node.params, "", packed),
        "layout": {key: packed(value, key) for key, value in given.items()},
    }
    return entry, tensors


def _plain(value: Any, path: str = "", packed: Callable[[Any, str], Any] | None = None) -> Any:
    """JSON of a dataclass's fields, a tuple or a number; ``packed`` is asked for the fields' values."""
    if is_dataclass(value):
        inner = packed or _plain
        head = f"{path}." if path else ""
        names = [field.name for field in fields(value)]
        return {name: inner(getattr(value, name), head + name) for name in names}
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return value.item() if isinstance(value, np.generic) else value


# ------------------------------------------------------------------------------------------ unpacking


def unpack_network(
    manifest: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]]
) -> tuple[list[Node], tuple[int, int, int]]:
    """Return (nodes, input size) of a bundle's network; BundleError where an entry is not sound.

    Whether the nodes suit each other is for :class:`golden.vit.VitModel` to check.
    """
    network = manifest.get("network")
    if not isinstance(network, dict) or set(network) != {"input_size", "output", "nodes"}:
        raise BundleError("Network must have input_size, output and nodes")
    size, entries = network["input_size"], network["nodes"]
    if not isinstance(size, list) or len(size) != 3 or not all(type(n) is int for n in size):
        raise BundleError(f"Input size must be channels, height, width, not {size!r}")
    if not isinstance(entries, list) or not entries:
        raise BundleError("Nodes must be a list of at least one")
    nodes = [unpack_node(entry, tensors) for entry in entries]
    if network["output"] != nodes[-1].name:
        raise BundleError(
            f"Output must be the last node, {nodes[-1].name!r}, not {network['output']!r}"
        )
    return nodes, (size[0], size[1], size[2])


def unpack_node(entry: Any, tensors: Mapping[str, npt.NDArray[Any]]) -> Node:
    """Return the node of an entry, its arrays out of ``tensors``; BundleError where it is not sound."""
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name:
        raise BundleError("Node must have a name")
    try:
        return _unpacked(name, entry, tensors)
    except (TypeError, ValueError) as error:
        raise BundleError(f"Node {name!r}: {error}") from None


def _unpacked(name: str, entry: dict[str, Any], tensors: Mapping[str, npt.NDArray[Any]]) -> Node:
    _check_names("Entry", entry, ("name", "op", "inputs", "spec", "params", "layout"))
    op, inputs, layout = entry["op"], entry["inputs"], entry["layout"]
    if not isinstance(inputs, list) or not all(isinstance(each, str) for each in inputs):
        raise ValueError(f"Inputs must be a list of names, not {inputs!r}")
    if not isinstance(layout, dict):
        raise ValueError(f"Layout must be an object, not {layout!r}")
    described = array_ranges(op)
    kinds = OPERATIONS[op]
    spec = None if kinds.spec is None else make_spec(kinds.spec, entry["spec"])
    arrays = described(spec)

    def fetch(value: Any, path: str) -> Any:
        if path not in arrays:
            return tuple(value) if isinstance(value, list) else value
        if not isinstance(value, str) or value not in tensors:
            raise ValueError(f"{path} must be the name of a tensor, not {value!r}")
        wanted, found = _dtype(arrays[path]), tensors[value].dtype
        if found != wanted:
            raise ValueError(f"{path} must be of type {wanted}, not {found}")
        return tensors[value]

    node = Node(
        name=name,
        op=op,
        inputs=tuple(inputs),
        spec=spec,
        params=None if kinds.params is None else _build(kinds.params, entry["params"], fetch),
        layout={key: fetch(value, key) for key, value in layout.items()},
    )
    check_parts(node)
    return node


def make_spec(kind: type, entry: Any) -> Any:
    """Return the spec that a manifest describes; TypeError or ValueError where there is none."""
    return _build(kind, entry, lambda value, _: value)


def _build(kind: type, entry: Any, fetch: Callable[[Any, str], Any], head: str = "") -> Any:
    """Return a dataclass from the JSON of its fields; ``fetch`` returns a value for what stands there."""
    hints = _parts(kind)
    _check_names(kind.__name__, entry, hints)
    values: dict[str, Any] = {}
    for name, (inner, optional) in hints.items():
        value, path = entry[name], head + name
        if value is None and optional:
            values[name] = None
        elif inner is not None:
            values[name] = _build(inner, value, fetch, f"{path}.")
        else:
            values[name] = fetch(value, path)
    return kind(**values)


@cache
def _parts(kind: Any) -> dict[str, tuple[Any, bool]]:
    """For each field: the dataclass that it holds, if it does, and whether it may be None."""
    hints = get_type_hints(kind)
    parts = {}
    for field in fields(kind):
        hint = hints[field.name]
        options = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        inner = [option for option in options if is_dataclass(option)]
        parts[field.name] = (inner[0] if inner else None, NoneType in options)
    return parts


def _check_names(what: str, entry: Any, names: Collection[str]) -> None:
    if not isinstance(entry, dict) or set(entry) != set(names):
        given = sorted(entry) if isinstance(entry, dict) else entry
        raise ValueError(f"{what} must have {', '.join(names)}, not {given!r}")

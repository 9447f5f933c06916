# SPDX-License-Identifier: Apache-2.0
"""Every integer of a network in a file of its own: for ROMs, for other programs, for other people's hardware.

A folder holds ``<node>.<tensor>.npy`` or ``.hex`` and ``index.json``. Tensors are the node's parameters
(weights, biases with the input's zero point folded in, multipliers M and shifts N, PTF shifts, gains,
offsets), what is constant about its layout (positions, prefix tokens, windows, masks) and the tables of its
operator. The index has for every node its spec, its scalars and what its output means, and for every tensor

    node, tensor, file, shape, bits, signed, scale, zero_point

``bits`` is the width that the spec gives the tensor, not that of a type. ``scale``, a number or one per
channel, is there where the integers mean numbers: ``x = (q - zero_point) * scale``; null where they
do not, as of a multiplier. Weights are [out, in]: their scale is per output channel.

A hex file is one that ``$readmemh`` reads: a comment with shape, bits and sign, then a word a line in
C order, two's complement, ``ceil(bits / 4)`` digits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from golden.bounds import Interval
from golden.bundle import array_ranges, pack_node, smallest_dtype
from golden.vit import Node, VitModel
from qvit_hw.errors import UserError
from qvit_hw.grids import LogGrid
from qvit_hw.plan import Plan

__all__ = ["INDEX", "SCHEMA", "Tensor", "read_hex", "tensors_of", "write_hex", "write_tensors"]

INDEX = "index.json"
SCHEMA = "qvit-hw/integers"
VERSION = 1
HEADER = "// shape {shape}, {bits} bits, {sign}\n"

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Tensor:
    """Integers of a node and how wide a word of them is."""

    node: str
    name: str
    values: Array
    bits: int
    signed: bool
    scale: Any = None
    """Float64, a number or an array; None where the integers are no numbers on a grid."""
    zero_point: int = 0


# ---------------------------------------------------------------------------------- what there is


def tensors_of(node: Node, model: VitModel, plan: Plan | None = None) -> list[Tensor]:
    """All integer tensors of a node, with scales where there is a plan."""
    _, packed = pack_node(node)
    legal = array_ranges(node.op)(node.spec)
    found = []
    for full, values in packed.items():
        path = full.removeprefix(f"{node.name}/")
        within = legal[path] or Interval(0, 1)
        if path in ("windows", "index"):
            within = Interval(0, len(values.ravel()) - 1)  # places of tokens: no spec bounds them
        scale, zero = (None, 0) if plan is None else _meaning(node, path, plan)
        name = path.removeprefix("requant.")
        integers = values.astype(np.uint8) if values.dtype == np.bool_ else values
        found.append(Tensor(node.name, name, integers, within.bits, within.signed, scale, zero))
    for name in ("exp2", "log2", "rsqrt"):
        table = getattr(node.spec, name, None)
        if isinstance(table, tuple):
            within = Interval(0, int(np.max(table)))
            values = np.array(table, smallest_dtype(within))
            found.append(Tensor(node.name, name, values, within.bits, within.signed))
    return found


def _meaning(node: Node, path: str, plan: Plan) -> tuple[Any, int]:
    """(scale, zero point) of a node's tensor; scale None where it has none."""
    if path == "bias" and node.op != "scores":
        return plan.weights[node.name].scale, 0
    if path == "weight":
        source = plan.grids.get(node.inputs[0])  # none: the image, whose unit is 1
        unit = 1.0 if source is None else plan.affine(node.inputs[0]).unit
        return plan.weights[node.name].scale / unit, 0
    if path in ("bias", "table", "prefix"):
        grid = plan.affine(node.name)
        return grid.scale, grid.zero_point if path != "bias" else 0
    if path == "positions":
        grid_of_positions = plan.streams[f"{node.name}/positions"]
        return grid_of_positions.channel_scale, grid_of_positions.zero_point
    return None, 0


def _output(node: Node, model: VitModel, plan: Plan | None) -> dict[str, Any]:
    """What a node's tensor holds, and means."""
    flow = model.flows[node.name]
    entry: dict[str, Any] = {
        "shape": list(flow.shape),
        "bits": flow.range.bits,
        "signed": flow.range.signed,
    }
    grid = None if plan is None else plan.grids.get(node.name)
    if isinstance(grid, LogGrid):
        return entry | {"base": grid.spec.base, "gain": grid.gain}
    if grid is None:
        return entry
    zero = {"zero_point": grid.zero_point, "rest": _plain(grid.rest)}
    return entry | {"scale": _plain(grid.scale), **zero}


def _plain(scale: Any) -> Any:
    return None if scale is None else np.asarray(scale, np.float64).tolist()


# --------------------------------------------------------------------------------------- writing


def write_tensors(
    folder: Path, model: VitModel, plan: Plan | None, kind: str, about: Mapping[str, Any]
) -> int:
    """Write all tensors into an empty folder, as "npy" or "hex"; return how many.

    ``about``: more entries at the head of the index (JSON). UserError for a node whose name no file can have.
    """
    nodes, tensors = [], []
    for node in model.nodes:
        if set(node.name) & set("/\\:\0"):
            raise UserError(f"Node must have a name that can be a file's, not {node.name!r}.")
        entry, packed = pack_node(node)
        scalars = _without(entry["params"], packed)
        layout = _without(entry["layout"], packed)
        described = {key: entry[key] for key in ("name", "op", "inputs", "spec")}
        output = _output(node, model, plan)
        nodes.append(described | {"params": scalars, "layout": layout, "output": output})
        for tensor in tensors_of(node, model, plan):
            file = f"{tensor.node}.{tensor.name}.{kind}"
            if kind == "npy":
                np.save(folder / file, tensor.values, allow_pickle=False)
            else:
                write_hex(folder / file, tensor.values, tensor.bits, tensor.signed)
            tensors.append(
                {
                    "node": tensor.node,
                    "tensor": tensor.name,
                    "file": file,
                    "shape": list(tensor.values.shape),
                    "bits": tensor.bits,
                    "signed": tensor.signed,
                    "scale": _plain(tensor.scale),
                    "zero_point": tensor.zero_point,
                }
            )
    head = {"schema": SCHEMA, "version": VERSION, **about, "format": kind}
    network = {"input_size": list(model.input_size), "output": model.output}
    content = head | network | {"nodes": nodes, "tensors": tensors}
    (folder / INDEX).write_text(_lines(content), encoding="utf-8")
    return len(tensors)


def _without(values: Any, packed: Mapping[str, Array]) -> Any:
    """A node's parameters without its tensors, which are named by their place in ``packed``."""
    if not isinstance(values, dict):
        return values
    kept = {key: _without(value, packed) for key, value in values.items()}
    return {
        key: value
        for key, value in kept.items()
        if value is not None and value != {} and not (isinstance(value, str) and value in packed)
    }


def _lines(content: Mapping[str, Any]) -> str:
    """JSON with one line for each node and each tensor: made to be searched."""

    def parts() -> Iterator[str]:
        for key, value in content.items():
            if isinstance(value, list) and value and isinstance(value[0], dict):
                rows = ",\n  ".join(json.dumps(row, allow_nan=False) for row in value)
                yield f'"{key}": [\n  {rows}\n ]'
            else:
                yield f'"{key}": {json.dumps(value, allow_nan=False)}'

    return "{\n " + ",\n ".join(parts()) + "\n}\n"


# ------------------------------------------------------------------------------------------- hex


def write_hex(path: Path, values: Array, bits: int, signed: bool) -> None:
    """Write integers as words of ``bits`` bits for ``$readmemh``; ValueError where one does not fit."""
    Interval.of_bits(bits, signed=signed).require(values, "Word")
    shape = "x".join(str(length) for length in values.shape) or "1"
    header = HEADER.format(shape=shape, bits=bits, sign="signed" if signed else "unsigned")
    mask = np.uint64((1 << bits) - 1)
    words = values.astype(np.int64).ravel().astype(np.uint64) & mask
    places = 4 * np.arange(-(-bits // 4), dtype=np.uint64)[::-1]
    digits = (words[:, None] >> places) & np.uint64(15)
    text = np.full((len(words), len(places) + 1), ord("\n"), np.uint8)
    text[:, :-1] = np.frombuffer(b"0123456789abcdef", np.uint8)[digits]
    path.write_bytes(header.encode() + text.tobytes())


def read_hex(path: Path | str) -> npt.NDArray[np.int64]:
    """Read the integers of a hex file back, in their shape; UserError where it is none of ours."""
    path = Path(path)
    try:
        header, _, body = path.read_text(encoding="ascii").partition("\n")
        words = header.replace(",", "").split()
        if len(words) != 6 or words[:2] != ["//", "shape"] or words[4] != "bits":
            raise ValueError("its first line is no header")
        shape, bits = tuple(int(n) for n in words[2].split("x")), int(words[3])
        if not 1 <= bits <= 62 or words[5] not in ("signed", "unsigned"):
            raise ValueError("its header is not one of ours")
        lines = body.split()
        if {len(line) for line in lines} - {-(-bits // 4)}:
            raise ValueError(f"its words are not of {bits} bits")
        values = np.array([int(line, 16) for line in lines], np.int64)
        if values.size and int(values.max()) >> bits:
            raise ValueError(f"its words are not of {bits} bits")
        if len(values) != prod(shape):
            raise ValueError(f"it has {len(values)} words, not {prod(shape)}")
    except (ValueError, OSError) as error:
        raise UserError(f"{str(path)!r} is not a hex file of integers: {error}.") from None
    sign = 1 << (bits - 1) if words[5] == "signed" else 0
    return ((values ^ sign) - sign).reshape(shape)

# SPDX-License-Identifier: Apache-2.0
"""A bundle's network for other programs: ONNX, NumPy files, hex files.

    python -m qvit_hw.export --bundle B --format onnx|onnx-integer|npy|hex --out PATH

``onnx`` is what tools for quantised networks read: float operators between QuantizeLinear and
DequantizeLinear (:mod:`qvit_hw.onnx_qdq`). ``onnx-integer`` computes what the golden model computes, bit for
bit, without a float (:mod:`qvit_hw.onnx_integer`). Both take uint8 images [B, C, H, W]. ``npy`` and ``hex``
are a folder with every integer tensor and an index (:mod:`qvit_hw.integer_files`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from golden.vit import IMAGE, VitModel
from qvit_hw.bundle import Bundle, load_bundle
from qvit_hw.errors import UserError
from qvit_hw.integer_files import INDEX, SCHEMA, write_tensors
from qvit_hw.onnx_graph import BATCH, Graph, Value, load_onnx
from qvit_hw.onnx_integer import integer_graph, integer_outputs
from qvit_hw.onnx_qdq import qdq_graph, qdq_outputs
from qvit_hw.outputs import (
    check_folder,
    check_replaced,
    made_folder,
    replaced_folder,
    told,
    write_files,
)
from qvit_hw.plan import Plan
from qvit_hw.stored_plan import load_plan

__all__ = ["FORMATS", "integer_onnx", "qdq_onnx", "run"]

FORMATS = ("onnx", "onnx-integer", "npy", "hex")


def run(*, bundle: Path, out: Path, format: str = "onnx") -> int:
    """Write a bundle's network in another format; return the exit status, 0.

    UserError, with nothing written, for anything that will not do; MissingTool without the package onnx.
    """
    if format not in FORMATS:
        raise UserError(f"Format must be one of {', '.join(FORMATS)}, not {format!r}.")
    single = format.startswith("onnx")
    if single:
        _check_file(out)
        load_onnx()
    else:
        check_replaced(out, INDEX, SCHEMA)
    loaded = load_bundle(bundle)
    model, plan, about = loaded.network, _plan(loaded), _about(loaded)
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    if not single:
        with _agreeing(bundle), replaced_folder(out) as folder:
            count = write_tensors(folder, model, plan, format, about)
        console.print(f"{out}: {count} tensors, listed in {INDEX}")
        return 0
    if plan is None:
        raise UserError(
            f"Bundle {str(bundle)!r} has FQ-ViT's operators, which ONNX has no form for: "
            "its integers can be had as npy or hex."
        )
    make = integer_onnx if format == "onnx-integer" else qdq_onnx
    with _agreeing(bundle):
        content = make(model, plan, about)
    out = out.absolute()
    with made_folder(out.parent), told(out):
        write_files({out: content})
    console.print(f"{out}: {len(content):,} bytes, input {IMAGE!r}, uint8 [{BATCH}, C, H, W]")
    return 0


def qdq_onnx(
    model: VitModel,
    plan: Plan,
    about: Mapping[str, Any] | None = None,
    outputs: Sequence[str] = (),
) -> bytes:
    """The network as an ONNX file of float operators between quantisers.

    about: notes for the file's metadata (JSON).  outputs: tensors to return as float values, in order;
    without any, the network's output alone. MissingTool without the package onnx; UserError for a network
    that has no such form.
    """
    wanted = qdq_outputs(model, outputs or (model.output,))
    return _model(model, qdq_graph(model, plan), wanted, {"format": "onnx", **(about or {})})


def integer_onnx(
    model: VitModel,
    plan: Plan | None = None,
    about: Mapping[str, Any] | None = None,
    outputs: Sequence[str] = (),
) -> bytes:
    """The network as an ONNX file of integers, bit exact; the rest as :func:`qdq_onnx`.

    plan: adds to the metadata what the output's integers mean, ``scale`` and ``zero_point``.
    """
    notes = {"format": "onnx-integer", **(about or {})}
    if plan is not None:
        grid = plan.affine(model.output)
        notes |= {"scale": np.asarray(grid.scale).tolist(), "zero_point": grid.zero_point}
    wanted = integer_outputs(model, outputs or (model.output,))
    return _model(model, integer_graph(model), wanted, notes)


def _model(
    model: VitModel, graph: Graph, outputs: Sequence[Value], notes: Mapping[str, Any]
) -> bytes:
    notes = {f"qvit-hw.{key}": value for key, value in {**notes, "bits": _widths(model)}.items()}
    image = Value(IMAGE, np.uint8, model.input_size)
    return graph.model("qvit-hw", [image], outputs, notes)


def _widths(model: VitModel) -> dict[str, int]:
    """Bits of every tensor and every weight."""
    found = {}
    for node in model.nodes:
        if hasattr(node.spec, "weight_bits"):
            found[f"{node.name}.weight"] = node.spec.weight_bits
        found[node.name] = model.flows[node.name].range.bits
    return found


def _about(bundle: Bundle) -> dict[str, Any]:
    """What a file says of where it comes from."""
    return {
        "model": bundle.manifest["model"].get("name"),
        "preset": bundle.manifest["preset"],
        "bundle": bundle.sha256,
    }


def _plan(bundle: Bundle) -> Plan | None:
    """The bundle's plan; None for FQ-ViT's operators, whose scales no plan of ours describes."""
    if any(node.op.startswith("fqvit") for node in bundle.network.nodes):
        return None
    with _agreeing(bundle.path):
        return load_plan(bundle.plan, bundle.scales, bundle.network)


@contextlib.contextmanager
def _agreeing(bundle: Path) -> Iterator[None]:
    """Tell what goes wrong where a bundle's scales are not those of its network."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, StopIteration) as error:
        raise UserError(f"Bundle {str(bundle)!r} has parts that disagree: {error}.") from error


# ----------------------------------------------------------------------------------------- files


def _check_file(path: Path) -> None:
    if path.suffix != ".onnx":
        raise UserError(f"An ONNX file must be named *.onnx, not {path.name!r}.")
    if path.is_dir():
        raise UserError(f"Output {str(path)!r} must be a file, not a folder.")
    check_folder(path.parent)


if __name__ == "__main__":
    from .cli import main

    main("export")

# SPDX-License-Identifier: Apache-2.0
"""An ONNX graph under construction: values are names, constants are NumPy arrays.

The lowerings (:mod:`qvit_hw.onnx_qdq`, :mod:`qvit_hw.onnx_integer`) know this class and not the package
onnx, which only :meth:`Graph.model` needs: it is optional.

Also here is what both lowerings do alike: how images become patches and tokens become heads. The batch is
the first axis of every tensor and is never written down as a number.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
import numpy.typing as npt

from golden.node import Node
from qvit_hw.errors import MissingTool, UserError

__all__ = ["BATCH", "INSTALL", "IR_VERSION", "OPSET", "Graph", "Value", "load_onnx", "lower_nodes"]

OPSET = 21
"""The first opset whose quantisers have 16 bits; tested with onnx 1.16 and onnxruntime 1.20 and newer."""
IR_VERSION = 10
"""What came with that opset: a newer number would lock older runtimes out, for nothing."""
BATCH = "batch"
"""Name of the first dimension of the image and of every output."""
INSTALL = "pip install 'qvit-hw[onnx]'"

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Value:
    """An input or an output of the graph: its type, and its shape without the batch."""

    name: str
    dtype: npt.DTypeLike
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Step:
    op: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any]


class Graph:
    """Collects nodes in order of execution."""

    def __init__(self) -> None:
        self.nodes: list[_Step] = []
        self.constants: dict[str, Array] = {}
        self._anonymous: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._scope = ""
        self._count: Counter[str] = Counter()

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Names made inside begin with ``name``."""
        before, self._scope = self._scope, name
        yield
        self._scope = before

    def fresh(self, what: str) -> str:
        """A name that is not taken."""
        stem = f"{self._scope}/{what}"
        self._count[stem] += 1
        return stem if self._count[stem] == 1 else f"{stem}.{self._count[stem]}"

    def constant(self, array: Any, name: str | None = None) -> str:
        """An initialiser; without a name, equal ones are one."""
        array = np.asarray(array)
        if name is not None:
            self.constants[name] = array
            return name
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._anonymous:
            self._anonymous[key] = f"constant.{len(self._anonymous)}"
            self.constants[self._anonymous[key]] = array
        return self._anonymous[key]

    def add(self, op: str, *inputs: Any, name: str | None = None, **attributes: Any) -> str:
        """Add a node and return its output, called ``name``. Inputs: names ("" for none), or arrays."""
        names = [each if isinstance(each, str) else self.constant(each) for each in inputs]
        output = self.fresh(op) if name is None else name
        self.nodes.append(_Step(op, tuple(names), output, attributes))
        return output

    def cast(self, x: str, dtype: npt.DTypeLike, name: str | None = None) -> str:
        """``x`` in another type; beyond its range, integers wrap around."""
        return self.add("Cast", x, name=name, to=np.dtype(dtype))

    # ------------------------------------------------------------------------- tokens and heads

    def reshape(self, x: str, *shape: int, name: str | None = None) -> str:
        """``shape`` behind the batch."""
        return self.add("Reshape", x, np.array([0, *shape], np.int64), name=name)

    def transpose(self, x: str, *order: int) -> str:
        """``order`` of the axes behind the batch, which is axis 0."""
        return self.add("Transpose", x, perm=[0, *order])

    def tokens(self, x: str, index: Any, name: str | None = None) -> str:
        """The tokens (axis 1) of ``index``."""
        index = np.asarray(index, np.int64)
        return self.add("Gather", x, index, name=name, axis=1)

    def patches(self, image: str, size: tuple[int, int, int], patch: int) -> str:
        """Patches [B, N, C * P * P] of images [B, C, H, W], as :mod:`golden.patch_embed` orders them."""
        channels, height, width = size
        rows, columns = height // patch, width // patch
        cut = self.reshape(image, channels, rows, patch, columns, patch)
        return self.reshape(
            self.transpose(cut, 2, 4, 1, 3, 5), rows * columns, channels * patch * patch
        )

    def split_heads(self, x: str, width: int, heads: int, windows: Any) -> str:
        """[B, N, width] to [B, heads, N, d]; by windows [W, n] to [B, W, heads, n, d]."""
        depth = width // heads
        if windows is None:
            return self.transpose(self.reshape(x, -1, heads, depth), 2, 1, 3)
        number, count = np.shape(windows)
        parts = self.reshape(self.tokens(x, np.ravel(windows)), number, count, heads, depth)
        return self.transpose(parts, 1, 3, 2, 4)

    def join_heads(self, x: str, width: int, windows: Any) -> str:
        """[B, heads, N, d] (or [B, W, heads, n, d]) to [B, N, width]: the way back."""
        if windows is None:
            return self.reshape(self.transpose(x, 2, 1, 3), -1, width)
        rows = self.reshape(self.transpose(x, 1, 3, 2, 4), int(np.size(windows)), width)
        return self.tokens(rows, np.argsort(windows, axis=None))

    def thirds(self, qkv: str, width: int) -> list[str]:
        """q, k and v, [B, N, width] each, of [B, N, 3 * width]."""
        return [
            self.add("Slice", qkv, *(np.array([at], np.int64) for at in (first, first + width, -1)))
            for first in (0, width, 2 * width)
        ]

    def prepend(self, prefix: str, x: str, shape: tuple[int, ...], name: str | None = None) -> str:
        """Constant tokens of this shape [P, C] before those of every image in ``x`` [B, N, C]."""
        batch = self.add("Shape", x, start=0, end=1)
        wanted = self.add("Concat", batch, np.array(shape, np.int64), axis=0)
        rows = self.add("Expand", prefix, wanted)
        return self.add("Concat", rows, x, name=name, axis=1)

    # --------------------------------------------------------------------------------- protobuf

    def model(
        self,
        name: str,
        inputs: Sequence[Value],
        outputs: Sequence[Value],
        notes: Mapping[str, Any],
    ) -> bytes:
        """The checked graph as the bytes of an ONNX file, the same for the same calls.

        ``notes``: metadata; what is no string becomes JSON. Nodes that no output needs are left out.
        MissingTool without the package onnx.
        """
        onnx = load_onnx()
        helper, to_tensor = onnx.helper, onnx.numpy_helper.from_array
        nodes = self._needed([value.name for value in outputs])
        used = {each for node in nodes for each in node.inputs}

        def described(value: Value) -> Any:
            kind = helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype))
            return helper.make_tensor_value_info(value.name, kind, [BATCH, *value.shape])

        def attribute(value: Any) -> Any:
            is_type = isinstance(value, np.dtype)
            return int(helper.np_dtype_to_tensor_dtype(value)) if is_type else value

        graph = helper.make_graph(
            [
                helper.make_node(
                    node.op,
                    node.inputs,
                    [node.output],
                    name=node.output,
                    **{key: attribute(value) for key, value in node.attributes.items()},
                )
                for node in nodes
            ],
            name,
            [described(value) for value in inputs],
            [described(value) for value in outputs],
            [to_tensor(array, key) for key, array in self.constants.items() if key in used],
        )
        model = helper.make_model(
            graph,
            producer_name="qvit-hw",
            producer_version=_version(),
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET)],
        )
        texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in notes.items()}
        helper.set_model_props(model, texts)
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString(deterministic=True))

    def _needed(self, outputs: Sequence[str]) -> list[_Step]:
        """The nodes that lead to these outputs."""
        wanted, kept = set(outputs), []
        for node in reversed(self.nodes):
            if node.output in wanted:
                wanted.update(node.inputs)
                kept.append(node)
        return kept[::-1]


def _version() -> str:
    try:
        return metadata.version("qvit-hw")
    except metadata.PackageNotFoundError:  # run from a checkout that was never installed
        return "unknown"


def lower_nodes(nodes: Sequence[Node], lowering: Any, graph: Graph) -> Graph:
    """Call the lowering's method ``_<op>`` for every node, in order; return the graph.

    UserError where it has none: for operators that exist to compare with other programs only (FQ-ViT's).
    """
    for node in nodes:
        if not hasattr(lowering, f"_{node.op}"):
            raise UserError(f"Node {node.name!r} has no form in ONNX: {node.op!r} has none.")
    for node in nodes:
        with graph.scope(node.name):
            getattr(lowering, f"_{node.op}")(node)
    return graph


def load_onnx() -> Any:
    """The package onnx; MissingTool where it is not installed."""
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
    except ImportError:
        raise MissingTool(f"Writing ONNX needs the package onnx: run `{INSTALL}`.") from None
    return onnx

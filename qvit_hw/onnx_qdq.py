# SPDX-License-Identifier: Apache-2.0
"""The integer network as the ONNX graph that tools expect: float operators between quantisers (QDQ).

Weights and biases are integer initialisers behind DequantizeLinear with a scale per channel, activations
pass QuantizeLinear and DequantizeLinear, and in between stand Conv, MatMul, LayerNormalization, Softmax
and Gelu in float32. The value of a tensor has its node's name, its codes that name and ``/codes``. Scores
are natural ones here, not octaves.

What codes mean comes from the plan, all else from the golden model's own integers:

- codes of 8 bits or fewer are int8, of more int16; where they are narrower than their type, a Clip (with
  ends per channel Max and Min) stands before the quantiser;
- the residual stream has a scale per channel, ``scale * 2**shift`` (power-of-two factors), q, k and v one
  per head; both are per-channel quantisers of the last axis;
- a LayerNorm whose channels' scales were folded into the next layer hands on ``NAME/folded``, in that
  layer's units: scale 1; what it means, ``NAME``, is there where it is an output;
- softmax's codes are powers of two, which no quantiser can say: they are made by
  ``floor(-log2(p) + 1/2)`` and looked up in a table of what codes mean;
- a GELU is the function whose table the golden model has; a table of no known function is looked up.

The arithmetic is not the golden model's. QuantizeLinear rounds half to even and not up, which matters at
ties alone: 7 of 21 million sums of a DINOv2. float32 rounds, which shows in a stream of 16 bits; LayerNorm
and softmax are exact where hardware has tables. From the same inputs, an operator's codes are never more
than 1 from golden's, and equal in 99.5 % or more; from there on a network goes its own way, as close to the
float network as golden. :mod:`qvit_hw.onnx_integer` is bit exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from golden.vit import IMAGE, Node, VitModel
from qvit_hw.grids import AffineGrid, LogGrid
from qvit_hw.network import FUNCTIONS
from qvit_hw.onnx_graph import Graph, Value, lower_nodes
from qvit_hw.plan import Plan

__all__ = ["CODES", "qdq_graph", "qdq_outputs"]

CODES = "/codes"
"""What a tensor's codes are called, behind its name."""
HIDDEN = np.float32(-1e9)
"""A masked score: its exponential is 0, without the NaN that -inf gives in a row of nothing else."""

Floats = npt.NDArray[np.float64]


def qdq_graph(model: VitModel, plan: Plan) -> Graph:
    """The graph of a network and the plan that it was made from.

    UserError for an operator that exists to compare with other programs only (FQ-ViT's); KeyError or
    ValueError where the plan is not the model's.
    """
    lowering = _Lowering(model, plan)
    return lower_nodes(model.nodes, lowering, lowering.graph)


def qdq_outputs(model: VitModel, names: Sequence[str]) -> list[Value]:
    """Values of these tensors as outputs of the graph."""
    return [Value(name, np.float32, model.flows[name].shape) for name in names]


def _integer_type(bits: int) -> np.dtype[Any]:
    return np.dtype(np.int8 if bits <= 8 else np.int16)


class _Lowering:
    def __init__(self, model: VitModel, plan: Plan) -> None:
        self.model, self.plan, self.graph = model, plan, Graph()
        self.add = self.graph.add
        self.scales: dict[str, Floats] = {}
        """Scale of every tensor of codes, one or one per channel: 1 where it is folded."""
        self.values: dict[str, str] = {}
        """What the operators behind it take for a tensor, where that is not its name."""

    def grid(self, name: str) -> AffineGrid:
        grid = self.plan.grids[name]
        if not isinstance(grid, AffineGrid):
            raise KeyError(name)
        return grid

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without the batch."""
        return self.model.flows[name].shape

    def source(self, node: Node, which: int = 0) -> str:
        """An input of a node."""
        return self.values.get(node.inputs[which], node.inputs[which])

    # -------------------------------------------------------------------------------- quantisers

    def quantised(self, node: Node, x: str, scale: Any = None, folded: bool = False) -> None:
        """``x`` on the node's grid is its tensor; ``scale``, where it is not the grid's own."""
        grid = self.grid(node.name)
        scale = np.asarray(grid.scale if scale is None else scale, np.float64)
        if folded:
            scale = np.ones(())
        if scale.shape not in ((), self.shape(node.name)[-1:]):
            raise ValueError(f"{node.name!r} has a scale of shape {scale.shape}")
        self.scales[node.name] = scale
        low, high = -(1 << (grid.bits - 1)), (1 << (grid.bits - 1)) - 1
        kind = _integer_type(grid.bits)
        if grid.bits < 8 * kind.itemsize:
            ends = [((end - grid.zero_point) * scale).astype(np.float32) for end in (low, high)]
            if scale.ndim:
                x = self.add("Min", self.add("Max", x, ends[0]), ends[1])
            else:
                x = self.add("Clip", x, *ends)
        step, zero = scale.astype(np.float32), np.full(scale.shape, grid.zero_point, kind)
        axis = {"axis": -1} if scale.ndim else {}
        codes = self.add("QuantizeLinear", x, step, zero, name=f"{node.name}{CODES}", **axis)
        value = f"{node.name}/folded" if folded else node.name
        self.add("DequantizeLinear", codes, step, zero, name=value, **axis)
        if folded:
            self.unfolded(node, value)

    def unfolded(self, node: Node, value: str) -> None:
        """``value`` is the node's tensor in the next layer's units; what it means gets its name."""
        grid, self.values[node.name] = self.grid(node.name), value
        product = self.add("Mul", value, np.asarray(grid.scale, np.float32))
        self.add("Add", product, np.asarray(grid.rest, np.float32), name=node.name)

    def constant(
        self, what: str, codes: Any, kind: npt.DTypeLike, scale: Any, axis: int = 0, zero: int = 0
    ) -> str:
        """A constant tensor as integers and their scale, one or one per entry of ``axis``."""
        name = self.graph.fresh(what)
        integers = self.graph.constant(np.asarray(codes).astype(kind), f"{name}{CODES}")
        step = np.asarray(scale, np.float32)
        # onnxruntime 1.20 fails on fused weights without zero points; int32 must not have any.
        zeros = [] if kind == np.int32 else [np.full(step.shape, zero, kind)]
        axes = {"axis": axis} if step.ndim else {}
        return self.add("DequantizeLinear", integers, step, *zeros, name=name, **axes)

    # ---------------------------------------------------------------------------------- matrices

    def _weights(self, node: Node, unit: float, zero: int) -> tuple[Any, Any, Floats, Floats]:
        """(weights [out, in], bias [out], scale of a weight, scale of a sum) with the zero point out."""
        codes = np.asarray(node.params.weight, np.int64)
        sums = np.broadcast_to(np.asarray(self.plan.weights[node.name].scale), len(codes))
        bias = np.asarray(node.params.bias, np.int64) + zero * codes.sum(axis=1)
        return codes, bias, sums / unit, sums

    def _bias(self, bias: Any, scale: Floats) -> str:
        if np.abs(bias).max() < 1 << 31:
            return self.constant("bias", bias, np.int32, scale)
        return self.graph.constant((bias * scale).astype(np.float32), self.graph.fresh("bias"))

    def _patch_embed(self, node: Node) -> None:
        codes, bias, scale, sums = self._weights(node, 1.0, 0)
        spec, shape = node.spec, self.shape(node.name)
        pixels = self.add("DequantizeLinear", IMAGE, np.float32(1), np.uint8(0))
        kernel = codes.reshape(len(codes), spec.channels, spec.patch, spec.patch)
        weight = self.constant("weight", kernel, np.int8, scale)
        size = [spec.patch, spec.patch]
        acc = self.add(
            "Conv", pixels, weight, self._bias(bias, sums), kernel_shape=size, strides=size
        )
        rows = self.graph.reshape(acc, shape[1], shape[0])
        self.add("Transpose", rows, perm=[0, 2, 1], name=node.name)

    def _linear(self, node: Node) -> None:
        source, given = self.grid(node.inputs[0]), self.scales[node.inputs[0]]
        x, unit = self.source(node), source.unit
        if given.ndim:
            # A stream without a LayerNorm: the weights have taken the channels' scales in.
            x = self.add("Mul", x, (1 / given).astype(np.float32))
        codes, bias, scale, sums = self._weights(node, unit, source.zero_point)
        weight = self.constant("weight", codes.T, np.int8, scale, axis=1)
        product = self.add("MatMul", x, weight)
        if node.params.requant is None:
            self.add("Add", product, self._bias(bias, sums), name=node.name)
        else:
            self.quantised(node, self.add("Add", product, self._bias(bias, sums)))

    def _scores(self, node: Node) -> None:
        heads, windows = node.layout["heads"], node.layout.get("windows")
        width = self.shape(node.inputs[0])[-1] // 3
        q, k, _ = (
            self.graph.split_heads(third, width, heads, windows)
            for third in self.graph.thirds(node.inputs[0], width)
        )
        axes = [0, 1, 3, 2] if windows is None else [0, 1, 2, 4, 3]
        # Codes are octaves; in the graph stand natural scores, for a natural Softmax.
        step = float(self.grid(node.name).scale) * math.log(2)
        per_head = self._per_head(node.inputs[0], heads)
        requant = node.params.requant
        ratio = requant.multiplier / 2.0**requant.shift * step / (per_head[0] * per_head[1])
        scores = self.add("MatMul", q, self.add("Transpose", k, perm=axes))
        scores = self.add("Mul", scores, self._columns(ratio))
        if node.params.bias is not None:
            bias = self.constant("bias", node.params.bias, np.int16, step)
            scores = self.add("Add", scores, bias)
        self.quantised(node, scores, step)

    def _per_head(self, name: str, heads: int) -> Floats:
        """Scales of q, k and v, [3, heads]."""
        return self.scales[name].reshape(3, heads, -1)[:, :, 0]

    def _columns(self, ratio: Floats) -> npt.NDArray[np.float32]:
        """Numbers per head as [heads, 1, 1]; one number where all are the same."""
        if np.ptp(ratio) <= 1e-6 * ratio.max():
            return np.asarray(ratio.mean(), np.float32)
        return ratio.reshape(-1, 1, 1).astype(np.float32)

    def _attend(self, node: Node) -> None:
        windows, width = node.layout.get("windows"), self.shape(node.name)[-1]
        third = self.graph.thirds(node.inputs[1], width)[2]
        v = self.graph.split_heads(third, width, node.layout["heads"], windows)
        out = self.add("MatMul", node.inputs[0], v)
        self.quantised(node, self.graph.join_heads(out, width, windows))

    # -------------------------------------------------------------------------------- functions

    def _softmax(self, node: Node) -> None:
        grid, mask, x = self.plan.grids[node.name], node.layout.get("mask"), node.inputs[0]
        if not isinstance(grid, LogGrid):
            raise KeyError(node.name)
        if mask is not None:
            x = self.add("Where", np.asarray(mask, bool)[:, None], HIDDEN, x)
        logs = self.add("Log", self.add("Softmax", x, axis=-1))  # of 0: -inf, the last code
        level = self.add("Mul", logs, np.float32(-grid.per_octave / math.log(2)))
        whole = self.add("Floor", self.add("Add", level, np.float32(0.5)))
        limited = self.add("Clip", whole, np.float32(0), np.float32(grid.spec.last_code))
        codes = self.graph.cast(limited, np.uint8, f"{node.name}{CODES}")
        meaning = grid.values(torch.arange(grid.spec.last_code + 1)).numpy().astype(np.float32)
        self.add("Gather", meaning, self.graph.cast(codes, np.int32), name=node.name, axis=0)

    def _gelu(self, node: Node) -> None:
        source, grid = self.grid(node.inputs[0]), self.grid(node.name)
        half = 1 << (node.spec.in_bits - 1)
        inputs = source.values(torch.arange(-half, half).double())
        for name, function in FUNCTIONS.items():
            if np.array_equal(grid.codes(function(inputs)).numpy(), node.params.table):
                self.quantised(node, self._function(name, node.inputs[0]))
                return
        self.scales[node.name] = np.asarray(grid.scale, np.float64)
        rolled = np.roll(node.params.table, -half).astype(_integer_type(grid.bits))
        place = self.graph.cast(f"{node.inputs[0]}{CODES}", np.int32)
        codes = self.add("Gather", rolled, place, name=f"{node.name}{CODES}", axis=0)
        zero = rolled.dtype.type(grid.zero_point)
        self.add("DequantizeLinear", codes, np.float32(grid.scale), zero, name=node.name)

    def _function(self, name: str, x: str) -> str:
        if name == "relu":
            return self.add("Relu", x)
        if name.startswith("gelu"):
            return self.add("Gelu", x, approximate="tanh" if name == "gelu_tanh" else "none")
        inner = self.add("Mul", x, np.float32(1.702)) if name == "quick_gelu" else x
        return self.add("Mul", x, self.add("Sigmoid", inner))

    def _layernorm(self, node: Node) -> None:
        spec, params, grid = node.spec, node.params, self.grid(node.name)
        gain = params.gain if spec.affine == "dyadic" else 2.0**params.gain
        gamma = gain * 2.0 ** (params.point - spec.output_shift) * grid.unit
        beta = (params.offset * 2.0**-spec.output_shift - grid.zero_point) * grid.unit
        eps = params.eps * (self.plan.streams[node.inputs[0]].scale / params.channels) ** 2
        out = self.add(
            "LayerNormalization",
            node.inputs[0],
            gamma.astype(np.float32),
            beta.astype(np.float32),
            axis=-1,
            epsilon=float(eps),
        )
        self.quantised(node, out, folded=grid.folds)

    # ------------------------------------------------------------------------------- the stream

    def _stream(self, node: Node, x: str) -> None:
        self.quantised(node, x, self.plan.streams[node.name].channel_scale)

    def _residual(self, node: Node) -> None:
        self._stream(node, self.add("Add", *node.inputs))

    def _start(self, node: Node) -> None:
        self._stream(node, node.inputs[0])

    def _embed(self, node: Node) -> None:
        params, stream, x = node.params, self.plan.streams[node.name], node.inputs[0]
        kind = _integer_type(node.spec.in_bits)
        if params.gain:
            step = 2.0**params.in_shift * (params.gain / 2.0**params.shift * stream.scale)
            zero, codes = params.in_zero_point, node.layout["positions"]
            x = self.add("Add", x, self.constant("positions", codes, kind, step, 1, zero))
        prefix = np.asarray(node.layout["prefix"])
        if len(prefix):
            step, zero = stream.channel_scale, stream.zero_point
            kind = _integer_type(node.spec.out_bits)
            first = self.constant("prefix", prefix, kind, step, 1, zero)
            x = self.graph.prepend(first, x, prefix.shape)
        self._stream(node, x)

    def _merge(self, node: Node) -> None:
        self._gathered(node, np.asarray(node.layout["index"]))

    def _select(self, node: Node) -> None:
        self._gathered(node, np.asarray(node.layout["tokens"])[None])

    def _gathered(self, node: Node, index: Any) -> None:
        """Tokens side by side; their quantisers stand before."""
        source, x = node.inputs[0], self.source(node)
        scale, folded = self.scales.get(source), x != source
        if scale is not None:
            self.scales[node.name] = np.tile(scale, index.shape[1]) if scale.ndim else scale
        parts = self.graph.tokens(x, index.ravel())
        value = f"{node.name}/folded" if folded else node.name
        self.graph.reshape(parts, *self.shape(node.name), name=value)
        if folded:
            self.unfolded(node, value)

    def _pool(self, node: Node) -> None:
        source, grid, requant = node.inputs[0], self.grid(node.name), node.params.requant
        stream = self.plan.streams.get(node.name)
        folded = stream is None and grid.folds
        scale = np.asarray(grid.unit) if stream is None else stream.channel_scale
        every = np.arange(node.layout["first"], self.shape(source)[0])
        x = self.graph.tokens(self.source(node), every)
        mean = self.add("ReduceMean", x, np.array([1], np.int64), keepdims=0)
        # The factor of the golden model, in the values' units: 1 but for a folded LayerNorm's codes.
        factor = requant.multiplier / 2.0**requant.shift * len(every)
        factor = factor * scale / self.scales[source]
        if np.abs(factor - 1).max() > 1e-6:
            mean = self.add("Mul", mean, factor.astype(np.float32))
        self.quantised(node, mean, scale, folded)

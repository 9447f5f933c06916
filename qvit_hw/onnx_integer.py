# SPDX-License-Identifier: Apache-2.0
"""The golden model as an ONNX graph of integers: every tensor equals golden's, bit for bit.

From the uint8 image to the logits there is no float in the graph. Products of codes and weights are
MatMulInteger, tables are Gather, everything else is arithmetic in int64 (int32 in softmax). A tensor has its
node's name and the narrowest type that holds it.

What ONNX or its runtime does not offer is put together:

- An arithmetic shift to the right. BitShift knows unsigned numbers only: ``x >> n`` is
  ``((x + 2**62) >> n) - 2**(62-n)``, and every x is known to be below 2**61.
- The position of the leading one: how many shifts to the right leave something.
- Saturation. onnxruntime's Clip, Min and Max are wrong for int64 beyond 32 bits (its pull request 25280), so
  nothing of 64 bits is ever compared. Nearly always, intervals prove that 32 bits hold the number;
  where not, its upper half decides.
- Exact products of 8 bits on every processor: both factors are unsigned, with zero point 128. Where x86 has
  no VNNI, onnxruntime multiplies unsigned by signed with sums that saturate at 16 bits (its pull
  request 12088).

An image must have the network's size and the batch is free. Values are not checked: the golden model's
intervals have proven that no image leaves its ranges.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from golden.arrays import narrowest
from golden.attention import SQRT2, SQRT2_BITS
from golden.bounds import Interval
from golden.layernorm import INTERP_BITS, RSQRT_BITS
from golden.vit import Node, VitModel
from qvit_hw.onnx_graph import Graph, Value, lower_nodes

__all__ = ["integer_graph", "integer_outputs"]

OFFSET_BITS = 62
POWERS = np.int64(1) << np.arange(OFFSET_BITS + 1, dtype=np.int64)
FLIP = np.uint8(128)
"""What makes signed codes unsigned, as a number to add or as a bit to flip."""

Ints = npt.NDArray[Any]


def integer_graph(model: VitModel) -> Graph:
    """The graph; its tensors have the names of the model's nodes.

    UserError for an operator that exists to compare with other programs only (FQ-ViT's).
    """
    lowering = _Lowering(model)
    return lower_nodes(model.nodes, lowering, lowering.graph)


def integer_outputs(model: VitModel, names: Sequence[str]) -> list[Value]:
    """These tensors as outputs of the graph."""
    flows = {name: model.flows[name] for name in names}
    return [Value(name, _dtype(flow.range), flow.shape) for name, flow in flows.items()]


def _dtype(values: Interval) -> np.dtype[Any]:
    """Type of a tensor: softmax's codes are unsigned, sums have 32 bits at least."""
    if not values.signed and values.bits <= 8:
        return np.dtype(np.uint8)
    return narrowest(values if values.bits <= 16 else values | Interval.of_bits(32, signed=True))


def _bytes(codes: Ints) -> npt.NDArray[np.uint8]:
    """Signed 8-bit integers with zero point 128."""
    return (np.asarray(codes, np.int64) + int(FLIP)).astype(np.uint8)


class _Lowering:
    def __init__(self, model: VitModel) -> None:
        self.model, self.graph = model, Graph()
        self.add = self.graph.add

    def dtype(self, name: str) -> np.dtype[Any]:
        """Type of a tensor of the model."""
        return _dtype(self.model.flows[name].range)

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape, without the batch."""
        return self.model.flows[name].shape

    def wide(self, name: str, dtype: npt.DTypeLike = np.int64) -> str:
        """A tensor to compute with."""
        return self.graph.cast(name, dtype)

    # ------------------------------------------------------------------------------ arithmetic

    def shifted(self, x: str, shift: Any, before: Any = 0, after: Any = 0) -> str:
        """``((x + before) >> shift) + after`` with constants that broadcast to int64 ``x``."""
        shift = np.asarray(shift, np.int64)
        raised = self.add("Add", x, np.asarray(POWERS[OFFSET_BITS] + before))
        moved = self._moved(raised, shift.astype(np.uint64))
        return self.add("Sub", moved, np.asarray(POWERS[OFFSET_BITS - shift] - after))

    def _moved(self, raised: str, shift: Any) -> str:
        """A number that is not negative, shifted to the right."""
        unsigned = self.graph.cast(raised, np.uint64)
        return self.graph.cast(self.add("BitShift", unsigned, shift, direction="RIGHT"), np.int64)

    def rounded(self, x: str, shift: Any, after: Any = 0) -> str:
        """``rs(x, shift) + after``."""
        return self.shifted(x, shift, POWERS[np.asarray(shift)] >> 1, after)

    def saturated(self, x: str, values: Interval, node: Node) -> str:
        """int64 ``x``, known to be in ``values``, as int32, limited to the codes of the node's tensor."""
        code = self.model.flows[node.name].range
        low, high = np.int32(code.low), np.int32(code.high)
        short = self.wide(x, np.int32)
        if values.bits > 32:
            upper = self.wide(self.shifted(x, 31), np.int32)  # 0 or -1 where 32 bits hold x
            short = self.add("Where", self.add("Greater", upper, np.int32(0)), high, short)
            short = self.add("Where", self.add("Less", upper, np.int32(-1)), low, short)
        return self.add("Clip", short, low, high)

    def requantised(
        self, node: Node, acc: str, values: Interval, params: Any, after: Any = None
    ) -> str:
        """int32 codes of int64 accumulators, known to be in ``values``.

        params: per channel, or per head.  after: what is added behind the shift, if not the zero point.
        """
        m, n = (np.asarray(each, np.int64) for each in (params.multiplier, params.shift))
        if node.op in ("scores", "attend"):
            m, n = m.reshape(-1, 1, 1), n.reshape(-1, 1, 1)
        after = np.asarray(params.zero_point if after is None else after, np.int64)
        scaled = self.rounded(self.add("Mul", acc, m), n, after)
        low, high = ((end * m >> n) + after for end in (values.low, values.high))
        return self.saturated(scaled, Interval(int(low.min()), int(high.max()) + 1), node)

    def named(self, code: str, node: Node) -> None:
        """These codes are the node's tensor."""
        self.graph.cast(code, self.dtype(node.name), node.name)

    def table(self, values: Any, place: str) -> str:
        """``values[place]``."""
        return self.add("Gather", np.asarray(values), place, axis=0)

    def product(self, left: str, right: Any, signed: bool = True) -> str:
        """int32 products of rows of codes and a matrix, a tensor of codes or [K, N] integers.

        signed: whether the rows are; a right factor always is.
        """
        factor = self.unsigned(right) if isinstance(right, str) else _bytes(right)
        if not signed:
            return self.add("MatMulInteger", left, factor, np.uint8(0), FLIP)
        return self.add("MatMulInteger", self.unsigned(left), factor, FLIP, FLIP)

    def unsigned(self, codes: str) -> str:
        """Signed 8-bit codes with zero point 128."""
        return self.add("BitwiseXor", self.graph.cast(codes, np.uint8), FLIP)

    def leading_one(self, x: str) -> str:
        """``bit_length(x)`` of [..., 1], not negative; int64."""
        left = self.add(
            "BitShift",
            self.graph.cast(x, np.uint64),
            np.arange(OFFSET_BITS, dtype=np.uint64),
            direction="RIGHT",
        )
        some = self.wide(self.graph.cast(left, np.bool_))
        return self.add("ReduceSum", some, np.array([-1], np.int64), keepdims=1)

    # -------------------------------------------------------------------------------- matrices

    def _sums(self, node: Node, rows: str, name: str | None = None, signed: bool = True) -> str:
        """Accumulators, int64, or the tensor ``name``."""
        total = self.product(rows, node.params.weight.T, signed)
        if name is not None and self.dtype(name) == np.int32:
            return self.add("Add", total, node.params.bias.astype(np.int32), name=name)
        return self.add("Add", self.wide(total), node.params.bias.astype(np.int64), name=name)

    def _patch_embed(self, node: Node) -> None:
        rows = self.graph.patches(node.inputs[0], self.model.input_size, node.spec.patch)
        self._sums(node, rows, node.name, signed=False)

    def _linear(self, node: Node) -> None:
        signed = node.spec.in_signed
        if node.params.requant is None:
            self._sums(node, node.inputs[0], node.name, signed)
            return
        acc = self._sums(node, node.inputs[0], None, signed)
        reach = node.params.reach(node.spec)
        self.named(self.requantised(node, acc, reach, node.params.requant), node)

    def _scores(self, node: Node) -> None:
        spec, params = node.spec, node.params
        heads, windows = node.layout["heads"], node.layout.get("windows")
        width = self.shape(node.inputs[0])[-1] // 3
        q, k, _ = (
            self.graph.split_heads(third, width, heads, windows)
            for third in self.graph.thirds(node.inputs[0], width)
        )
        axes = [0, 1, 3, 2] if windows is None else [0, 1, 2, 4, 3]
        acc = self.wide(self.product(q, self.add("Transpose", k, perm=axes)))
        code = self.requantised(node, acc, spec.bounds["acc"], params.requant, params.bias)
        self.named(code, node)

    def _attend(self, node: Node) -> None:
        spec, windows = node.spec, node.layout.get("windows")
        codes, qkv = node.inputs
        width = self.shape(node.name)[-1]
        third = self.graph.thirds(qkv, width)[2]
        v = self.graph.split_heads(third, width, node.layout["heads"], windows)
        place = self.wide(codes, np.int32)
        sums = [self._weighed(spec, place, v, parity) for parity in range(spec.per_octave)]
        acc = self.wide(sums[0])
        if len(sums) == 2:
            odd = self.add("Mul", self.wide(sums[1]), np.int64(SQRT2))
            acc = self.add("Add", acc, self.rounded(odd, SQRT2_BITS))
        code = self.requantised(node, acc, spec.bounds["acc"], node.params)
        self.named(self.graph.join_heads(code, width, windows), node)

    def _weighed(self, spec: Any, place: str, v: str, parity: int) -> str:
        """``sum_i v_i << shift(c_i)`` over the codes of one parity."""
        kind = narrowest(spec.bounds["even" if parity == 0 else "odd"] | Interval(0, 1 << 30))
        weight = [
            1 << shift if shift is not None and code % spec.per_octave == parity else 0
            for code, shift in enumerate(spec.shifts)
        ]
        return self.add("MatMul", self.table(np.array(weight, kind), place), self.wide(v, kind))

    # ------------------------------------------------------------------------ row by row, tables

    def _layernorm(self, node: Node) -> None:
        spec, params, count = node.spec, node.params, node.params.channels
        bounds = spec.bounds["scaled"]
        scale = POWERS[params.shift]
        x = self.add("Mul", self.wide(node.inputs[0]), scale)
        x = self.add("Sub", x, params.zero_point * scale)
        last = np.array([-1], np.int64)
        total = self.add("ReduceSum", x, last, keepdims=1)
        squares = self.add("ReduceSum", self.add("Mul", x, x), last, keepdims=1)
        scaled = self.add("Mul", squares, np.int64(count))
        variance = self.add("Sub", scaled, self.add("Mul", total, total))
        variance = self.add("Add", variance, np.int64(params.eps))
        rsqrt, k = self._rsqrt(variance, spec)
        top = spec.variance_bits // 2 + RSQRT_BITS - 1 - params.point
        shift = self.add("Sub", np.int64(top), k)
        # (C * x - S) * R, rounded: the shift is 1 or more, and its own in every row.
        centered = self.add("Sub", self.add("Mul", x, np.int64(count)), total)
        centered = self.add("Mul", centered, rsqrt)
        half = self.table(POWERS, self.add("Sub", shift, np.int64(1)))
        raised = self.add("Add", centered, self.add("Add", half, POWERS[OFFSET_BITS]))
        moved = self._moved(raised, self.graph.cast(shift, np.uint64))
        back = self.table(POWERS, self.add("Sub", np.int64(OFFSET_BITS), shift))
        score = self.add("Sub", moved, back)
        gain = params.gain.astype(np.int64)
        gain = gain if spec.affine == "dyadic" else POWERS[gain]
        scaled = self.add("Mul", score, gain)
        half_more = params.offset.astype(np.int64) + (1 << spec.output_shift >> 1)
        code = self.shifted(scaled, spec.output_shift, half_more)
        values = Interval(bounds.low >> spec.output_shift, (bounds.high >> spec.output_shift) + 1)
        self.named(self.saturated(code, values, node), node)

    def _rsqrt(self, variance: str, spec: Any) -> tuple[str, str]:
        """R and k of golden.layernorm, [..., 1], for a variance of at least 1."""
        width, segments = spec.variance_bits, 1 << (spec.table_bits - 1)
        zeros = self.add("Sub", np.int64(width), self.leading_one(variance))
        aligned = self.add("Mul", variance, self.table(POWERS, zeros))
        # Segments of an octave and the fraction in a segment; nothing is negative, Div rounds down.
        fine = width - spec.table_bits - INTERP_BITS
        if fine < 0:
            aligned = self.add("Mul", aligned, POWERS[-fine])
        steps = self.add("Div", aligned, POWERS[max(fine, 0)])
        part = self.add("Mod", steps, POWERS[INTERP_BITS])
        segment = self.add("Div", steps, POWERS[INTERP_BITS])  # from ``segments``: the leading one
        odd = self.add("Mod", zeros, np.int64(2))
        upper = self.add("Mul", self.add("Sub", np.int64(1), odd), np.int64(segments))
        place = self.add("Add", self.add("Sub", segment, np.int64(segments)), upper)
        table = np.array(spec.rsqrt, np.int64)
        slope = self.add("Mul", self.table(table[:, 1], place), part)
        chord = self.add("Div", slope, POWERS[INTERP_BITS])
        rsqrt = self.add("Sub", self.table(table[:, 0], place), chord)
        return rsqrt, self.add("Div", zeros, np.int64(2))

    def _softmax(self, node: Node) -> None:
        spec, mask = node.spec, node.layout.get("mask")
        distance, last = spec.bounds["distance"].high, np.array([-1], np.int64)
        x = shown = self.wide(node.inputs[0], np.int32)
        if mask is not None:
            mask = np.asarray(mask, bool)[:, None]
            shown = self.add("Where", mask, np.int32(spec.bounds["score"].low), x)
        d = self.add("Sub", self.add("ReduceMax", shown, last, keepdims=1), x)
        d = self.add("Mul", d, np.int32(1 << (spec.frac_bits - node.params.frac)))
        d = self.add("Clip", d, np.int32(0), np.int32(distance))
        if mask is not None:
            d = self.add("Where", mask, np.int32(distance), d)
        every = np.arange(distance + 1)
        exponential = np.array(spec.exp2)[every % len(spec.exp2)] >> every // len(spec.exp2)
        terms = self.table(exponential.astype(np.int32), d)
        total = self.add("ReduceSum", terms, last, keepdims=1)
        half = np.int32(1 << spec.code_shift >> 1)
        level = self.add("Add", self._log2(total, spec), half)
        code = self.add("Div", self.add("Add", d, level), np.int32(1 << spec.code_shift))
        self.named(self.add("Min", code, np.int32(spec.last_code)), node)

    def _log2(self, total: str, spec: Any) -> str:
        """``floor(2**F * (log2(total) - (W-1)))``; 0 where total is below 1.0. All int32."""
        total = self.wide(total)
        length = self.wide(self.leading_one(total), np.int32)
        # Of a total of 0 the length is 0, and so is the index behind any division.
        above = self.add("Max", self.add("Sub", length, np.int32(1)), np.int32(0))
        steps = self.add("Mul", total, POWERS[spec.log_index_bits])
        index = self.add("Div", steps, self.table(POWERS, above))
        index = self.add("Mod", index, POWERS[spec.log_index_bits])
        octave = self.add("Sub", length, np.int32(spec.exp_bits))
        whole = self.add("Mul", octave, np.int32(1 << spec.frac_bits))
        level = self.add("Add", whole, self.table(np.array(spec.log2, np.int32), index))
        return self.add("Where", self.add("Less", octave, np.int32(0)), np.int32(0), level)

    def _gelu(self, node: Node) -> None:
        # A negative place counts from the table's end: a code is its own place.
        rolled = np.roll(node.params.table, -(1 << (node.spec.in_bits - 1)))
        place = self.wide(node.inputs[0], np.int32)
        self.add("Gather", rolled.astype(self.dtype(node.name)), place, name=node.name, axis=0)

    # ---------------------------------------------------------------------------- the stream

    def _onto(self, node: Node, stream: Any, acc: str | None) -> str:
        """The residual unit's int32 codes. stream: a tensor, or constant codes.  acc: sums, None for none."""
        params, flows, parts = node.params, self.model.flows, []
        gain = np.int64(params.gain) << params.in_shift.astype(np.int64)
        if isinstance(stream, str):
            parts.append(self.add("Mul", self.wide(stream), gain))
            codes, offset = flows[stream].range, -params.in_zero_point * gain
            low, high = codes.low * gain + offset, codes.high * gain + offset
        else:
            low = high = offset = (np.asarray(stream, np.int64) - params.in_zero_point) * gain
        if acc is not None:
            multiplier, sums = params.multiplier.astype(np.int64), flows[acc].range
            parts.append(self.add("Mul", self.wide(acc), multiplier))
            low, high = low + sums.low * multiplier, high + sums.high * multiplier
        total = parts[0] if len(parts) == 1 else self.add("Add", *parts)
        shift = params.shift + params.out_shift.astype(np.int64)
        code = self.shifted(total, shift, offset + (POWERS[shift] >> 1), params.zero_point)
        low, high = ((end >> shift) + params.zero_point for end in (low, high))
        return self.saturated(code, Interval(int(low.min()), int(high.max()) + 1), node)

    def _residual(self, node: Node) -> None:
        self.named(self._onto(node, *node.inputs), node)

    def _start(self, node: Node) -> None:
        source = node.inputs[0]
        if node.layout["source"] == "stream":
            self.named(self._onto(node, source, None), node)
        else:
            self.named(self._onto(node, node.params.in_zero_point, source), node)

    def _embed(self, node: Node) -> None:
        patches = self._onto(node, node.layout["positions"], node.inputs[0])
        prefix = np.asarray(node.layout["prefix"], np.int32)
        if len(prefix):
            patches = self.graph.prepend(self.graph.constant(prefix), patches, prefix.shape)
        self.named(patches, node)

    def _merge(self, node: Node) -> None:
        self._gathered(node, node.layout["index"])

    def _select(self, node: Node) -> None:
        self._gathered(node, node.layout["tokens"])

    def _gathered(self, node: Node, index: Any) -> None:
        parts = self.graph.tokens(node.inputs[0], np.ravel(index))
        self.graph.reshape(parts, *self.shape(node.name), name=node.name)

    def _pool(self, node: Node) -> None:
        params, count = node.params, self.shape(node.inputs[0])[0]
        every = np.arange(node.layout["first"], count)
        x = self.wide(self.graph.tokens(node.inputs[0], every))
        total = self.add("ReduceSum", x, np.array([1], np.int64), keepdims=0)
        acc = self.add("Sub", total, np.int64(len(every) * params.in_zero_point))
        self.named(self.requantised(node, acc, node.spec.bounds["acc"], params.requant), node)

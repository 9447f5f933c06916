# SPDX-License-Identifier: Apache-2.0
"""A network in plain loops over Python integers, which have no width: written from the formulas alone.

It shares with the golden model what a node is made of and the look-up tables, which have tests of their own;
no array, no rounding helper and no bound.
"""

from __future__ import annotations

from typing import Any

from golden.node import IMAGE, Node
from golden.vit import VitModel

Rows = list[list[int]]


def slow_trace(model: VitModel, image: Any) -> dict[str, Any]:
    """Every tensor of one image [C, H, W], as nested lists."""
    tensors: dict[str, Any] = {IMAGE: image.tolist()}
    for node in model.nodes:
        inputs = [tensors[name] for name in node.inputs]
        tensors[node.name] = globals()[f"_{node.op}"](node, *inputs)
    return tensors


def rounded(x: int, n: int) -> int:
    """x / 2**n, a half goes up."""
    return (2 * x + 2**n) // (2 * 2**n)


def clipped(x: int, bits: int) -> int:
    return max(-(2 ** (bits - 1)), min(2 ** (bits - 1) - 1, x))


def channel(values: Any, index: int) -> int:
    """Entry of a channel; one entry serves all."""
    return int(values[index if len(values) > 1 else 0])


def requantised(acc: int, params: Any, index: int, bits: int) -> int:
    scaled = acc * channel(params.multiplier, index)
    return clipped(rounded(scaled, channel(params.shift, index)) + params.zero_point, bits)


def dot(a: list[int], b: Any) -> int:
    return sum(x * int(y) for x, y in zip(a, b, strict=True))


def each_row(function: Any, x: Any) -> Any:
    """Apply ``function`` to every row, however deeply nested."""
    if isinstance(x[0], list):
        return [each_row(function, part) for part in x]
    return function(x)


# ----------------------------------------------------------------------------------------- matrices


def _patch_embed(node: Node, image: list[Rows]) -> Rows:
    size, params, out = node.spec.patch, node.params, []
    for top in range(0, len(image[0]), size):
        for left in range(0, len(image[0][0]), size):
            pixels = [
                plane[top + row][left + column]
                for plane in image
                for row in range(size)
                for column in range(size)
            ]
            acc = [int(b) + dot(pixels, w) for w, b in zip(params.weight, params.bias, strict=True)]
            out.append(acc)
    return out


def _linear(node: Node, x: Any) -> Any:
    params, bits = node.params, node.spec.out_bits

    def row(codes: list[int]) -> list[int]:
        acc = [int(b) + dot(codes, w) for w, b in zip(params.weight, params.bias, strict=True)]
        if bits is None:
            return acc
        return [requantised(a, params.requant, c, bits) for c, a in enumerate(acc)]

    return each_row(row, x)


# ------------------------------------------------------------------------------------------- stream


def joined(node: Node, codes: list[int], acc: list[int]) -> list[int]:
    p, out = node.params, []
    for c, (q, a) in enumerate(zip(codes, acc, strict=True)):
        kept = (q - p.in_zero_point) * 2 ** int(p.in_shift[c]) * p.gain
        total = kept + a * int(p.multiplier[c])
        code = rounded(total, p.shift + int(p.out_shift[c])) + p.zero_point
        out.append(clipped(code, node.spec.out_bits))
    return out


def _embed(node: Node, acc: Rows) -> Rows:
    positions = node.layout["positions"].tolist()
    rows = [joined(node, q, a) for q, a in zip(positions, acc, strict=True)]
    return node.layout["prefix"].tolist() + rows


def _residual(node: Node, x: Rows, acc: Rows) -> Rows:
    return [joined(node, q, a) for q, a in zip(x, acc, strict=True)]


def _start(node: Node, x: Rows) -> Rows:
    if node.layout["source"] == "stream":
        return [joined(node, q, [0] * len(q)) for q in x]
    return [joined(node, [node.params.in_zero_point] * len(a), a) for a in x]


def _layernorm(node: Node, x: Any) -> Any:
    spec, p = node.spec, node.params

    def row(codes: list[int]) -> list[int]:
        count = len(codes)
        values = [(q - p.zero_point) * 2 ** int(a) for q, a in zip(codes, p.shift, strict=True)]
        total = sum(values)
        variance = count * sum(value * value for value in values) - total * total + p.eps
        width = spec.variance_bits
        k = (width - variance.bit_length()) // 2
        v = variance * 4**k  # v / 2**(width - 2) is in [1, 4)
        one = 2 ** (width - 2)
        half = 2 ** (spec.table_bits - 1)
        # Segments of 1 / half from 1 on, and of 2 / half from 2 on; 10 bits of fraction inside.
        step, first = (one, 0) if v < 2 * one else (2 * one, half)
        inside = (v - step) * half * 1024 // step
        base, slope = spec.rsqrt[first + inside // 1024]
        rsqrt = base - slope * (inside % 1024) // 1024
        out = []
        for c, value in enumerate(values):
            score = rounded((count * value - total) * rsqrt, width // 2 + 13 - k - p.point)
            gain = int(p.gain[c]) if spec.affine == "dyadic" else 2 ** int(p.gain[c])
            scaled = rounded(score * gain + int(p.offset[c]), spec.output_shift)
            out.append(clipped(scaled, spec.out_bits))
        return out

    return each_row(row, x)


# ---------------------------------------------------------------------------------------- attention


def gathered(node: Node, qkv: Rows) -> list[Rows]:
    """The rows of each window; all rows where there are none."""
    windows = node.layout.get("windows")
    return [qkv] if windows is None else [[qkv[t] for t in window] for window in windows.tolist()]


def third(row: list[int], which: int, head: int, heads: int) -> list[int]:
    depth = len(row) // (3 * heads)
    first = (which * heads + head) * depth
    return row[first : first + depth]


def _scores(node: Node, qkv: Rows) -> Any:
    heads, p, bits = node.layout["heads"], node.params, node.spec.score_bits

    def score(rows: Rows, head: int, i: int, j: int) -> int:
        acc = dot(third(rows[i], 0, head, heads), third(rows[j], 1, head, heads))
        scaled = acc * channel(p.requant.multiplier, head)
        bias = 0 if p.bias is None else int(p.bias[head, i, j])
        return clipped(rounded(scaled, channel(p.requant.shift, head)) + bias, bits)

    out = [
        [
            [[score(rows, head, i, j) for j in range(len(rows))] for i in range(len(rows))]
            for head in range(heads)
        ]
        for rows in gathered(node, qkv)
    ]
    return out[0] if node.layout.get("windows") is None else out


def weighed(spec: Any, frac: int, scores: list[int], hidden: list[bool]) -> list[int]:
    """Softmax codes of one row."""
    f, point = spec.frac_bits, spec.exp_bits - 1
    seen = [t for t, h in zip(scores, hidden, strict=True) if not h]
    if not seen:
        return [spec.last_code] * len(scores)
    distance = [(max(seen) - t) * 2 ** (f - frac) for t in scores]
    total = sum(
        spec.exp2[d % 2**f] // 2 ** (d // 2**f)
        for d, h in zip(distance, hidden, strict=True)
        if not h
    )
    whole = total.bit_length() - 1
    index = total * 2**spec.log_index_bits // 2**whole - 2**spec.log_index_bits
    log = (whole - point) * 2**f + spec.log2[index]
    shift = f if spec.base == "2" else f - 1
    return [
        spec.last_code if h else min(rounded(log + d, shift), spec.last_code)
        for d, h in zip(distance, hidden, strict=True)
    ]


def _softmax(node: Node, scores: Any) -> Any:
    mask, frac = node.layout.get("mask"), node.params.frac

    def rows(part: Rows, hidden: list[list[bool]]) -> Rows:
        return [weighed(node.spec, frac, t, h) for t, h in zip(part, hidden, strict=True)]

    if mask is None:
        return each_row(lambda t: weighed(node.spec, frac, t, [False] * len(t)), scores)
    return [
        [rows(head, hidden) for head in window]
        for window, hidden in zip(scores, mask.tolist(), strict=True)
    ]


def _attend(node: Node, codes: Any, qkv: Rows) -> Rows:
    spec, heads, windows = node.spec, node.layout["heads"], node.layout.get("windows")
    octave = 2 if spec.softmax.base == "sqrt2" else 1
    top = min((spec.softmax.last_code - 1) // octave, 22)

    def code(row: list[int], values: list[int], head: int) -> int:
        sums = [0, 0]
        for c, v in zip(row, values, strict=True):
            depth = -(-c // octave)
            if c < spec.softmax.last_code and depth <= top:
                sums[c % octave] += v * 2 ** (top - depth)
        acc = sums[0] + rounded(sums[1] * 46341, 15)
        return requantised(acc, node.params, head, spec.out_bits)

    out: Rows = [[] for _ in qkv]
    order = [list(range(len(qkv)))] if windows is None else windows.tolist()
    parts = [codes] if windows is None else codes
    for tokens, rows, part in zip(order, gathered(node, qkv), parts, strict=True):
        for head in range(heads):
            values = list(zip(*(third(row, 2, head, heads) for row in rows), strict=True))
            for token, row in zip(tokens, part[head], strict=True):
                out[token] += [code(row, list(column), head) for column in values]
    return out


# ------------------------------------------------------------------------------------------- others


def _gelu(node: Node, x: Any) -> Any:
    first = -(2 ** (node.spec.in_bits - 1))
    return each_row(lambda codes: [int(node.params.table[q - first]) for q in codes], x)


def _merge(node: Node, x: Rows) -> Rows:
    return [[q for token in group for q in x[token]] for group in node.layout["index"].tolist()]


def _select(node: Node, x: Rows) -> list[int]:
    return [q for token in node.layout["tokens"] for q in x[token]]


def _pool(node: Node, x: Rows) -> list[int]:
    p, rows = node.params, x[node.layout["first"] :]
    sums = [sum(q - p.in_zero_point for q in column) for column in zip(*rows, strict=True)]
    return [requantised(acc, p.requant, c, node.spec.out_bits) for c, acc in enumerate(sums)]

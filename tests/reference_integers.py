# SPDX-License-Identifier: Apache-2.0
"""Every operator in plain loops over Python's integers, which have no width: written from the formulas alone.

Each function takes rows as (nested) lists and returns every value on the way as ``{name: flat list}``, by the
names that the spec's bounds have; "code" (or "acc", "score") is the output in the order of the array.
From golden comes nothing but the look-up tables of a spec, which have tests of their own.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

Values = dict[str, list[int]]


def half_up(x: int, n: int) -> int:
    """x / 2**n, rounded to the nearest whole number, a half goes up."""
    return (2 * x + 2**n) // 2 ** (n + 1)


def clipped(x: int, bits: int) -> int:
    return max(-(2 ** (bits - 1)), min(2 ** (bits - 1) - 1, x))


def of(values: Any, index: int) -> int:
    """Entry of a channel; a single one serves all."""
    return int(values[index if len(values) > 1 else 0])


def requantised(seen: Values, acc: int, params: Any, channel: int, bits: int) -> int:
    product = acc * of(params.multiplier, channel)
    seen["product"].append(product)
    return clipped(half_up(product, of(params.shift, channel)) + params.zero_point, bits)


def requant(rows: list[list[int]], spec: Any, params: Any) -> Values:
    seen: Values = defaultdict(list)
    for row in rows:
        for c, acc in enumerate(row):
            seen["acc"].append(acc)
            seen["code"].append(requantised(seen, acc, params, c, spec.out_bits))
    return seen


def linear(rows: list[list[int]], spec: Any, params: Any) -> Values:
    seen: Values = defaultdict(list)
    for row in rows:
        for o, (weights, bias) in enumerate(zip(params.weight, params.bias, strict=True)):
            total = 0
            for weight, x in zip(weights, row, strict=True):
                seen["input"].append(x)
                seen["weight"].append(int(weight))
                seen["product"].append(int(weight) * x)
                total += int(weight) * x
                seen["total"].append(total)
                seen["acc"].append(total + int(bias))  # no order of adding overflows
            seen["bias"].append(int(bias))
            seen["out"].append(total + int(bias))
            if spec.out_bits is not None:
                scratch: Values = defaultdict(list)
                code = requantised(scratch, total + int(bias), params.requant, o, spec.out_bits)
                seen["code"].append(code)
    return seen


def patch_embed(image: list[list[list[int]]], spec: Any, params: Any) -> Values:
    size, patches = spec.patch, []
    for top in range(0, len(image[0]), size):
        for left in range(0, len(image[0][0]), size):
            window = [plane[top + y][left : left + size] for plane in image for y in range(size)]
            patches.append([pixel for line in window for pixel in line])
    return linear(patches, spec.linear, params)


def scores(q: list[Any], k: list[Any], spec: Any, params: Any) -> Values:
    """q [heads, n, d], k [heads, m, d]."""
    seen: Values = defaultdict(list)
    for h, (queries, keys) in enumerate(zip(q, k, strict=True)):
        for i, x in enumerate(queries):
            for j, y in enumerate(keys):
                acc = 0
                for a, b in zip(x, y, strict=True):
                    seen["input"] += [a, b]
                    seen["product"].append(a * b)
                    acc += a * b
                    seen["acc"].append(acc)
                m, n = of(params.requant.multiplier, h), of(params.requant.shift, h)
                bias = 0 if params.bias is None else int(params.bias[h][i][j])
                scaled = half_up(acc * m, n)
                seen["scaled"].append(scaled)
                seen["bias"].append(bias)
                seen["biased"].append(scaled + bias)
                seen["score"].append(clipped(scaled + bias, spec.score_bits))
    return seen


def softmax(rows: list[list[int]], hidden: list[list[bool]], spec: Any, params: Any) -> Values:
    seen: Values = defaultdict(list)
    f, w, last = spec.frac_bits, spec.exp_bits, 2**spec.code_bits - 1
    furthest = 2 ** (spec.octave_bits + f) - 1
    shift = f if spec.base == "2" else f - 1
    for row, mask in zip(rows, hidden, strict=True):
        shown = [t for t, masked in zip(row, mask, strict=True) if not masked]
        maximum = max(shown, default=-(2 ** (spec.score_bits - 1)))
        distances = [
            furthest if masked else min((maximum - t) * 2 ** (f - params.frac), furthest)
            for t, masked in zip(row, mask, strict=True)
        ]
        exponentials = [spec.exp2[d % 2**f] // 2 ** (d // 2**f) for d in distances]
        total = sum(exponentials)
        log = 0
        if total >= 2 ** (w - 1):
            octave = total.bit_length() - 1
            behind = total * 2**spec.log_index_bits // 2**octave - 2**spec.log_index_bits
            log = (octave - (w - 1)) * 2**f + spec.log2[behind]
        seen["score"] += row
        seen["maximum"].append(maximum)
        seen["distance"] += distances
        seen["exponential"] += exponentials
        seen["total"].append(total)
        seen["log_total"].append(log)
        seen["code"] += [min(half_up(log + d, shift), last) for d in distances]
    return seen


def attend(codes: list[Any], v: list[Any], spec: Any, params: Any) -> Values:
    """codes [heads, n, m], v [heads, m, d]."""
    seen: Values = defaultdict(list)
    last = 2**spec.softmax.code_bits - 1
    per_octave = 2 if spec.softmax.base == "sqrt2" else 1
    top = min((last - 1) // per_octave, 22)
    for h, (rows, values) in enumerate(zip(codes, v, strict=True)):
        for row in rows:
            weights = []
            for code in row:
                octave = -(-code // per_octave)
                weights.append(0 if code == last or octave > top else 2 ** (top - octave))
            odd_code = [per_octave == 2 and code % 2 == 1 for code in row]
            pairs = list(zip(weights, odd_code, strict=True))
            seen["weight"] += weights
            seen["even_weights"].append(sum(w for w, odd in pairs if not odd))
            seen["odd_weights"].append(sum(w for w, odd in pairs if odd))
            for j in range(len(values[0])):
                even = odd_sum = 0
                for (weight, odd), value in zip(pairs, values, strict=True):
                    seen["value"].append(value[j])
                    even += 0 if odd else weight * value[j]
                    odd_sum += weight * value[j] if odd else 0
                acc = even + half_up(odd_sum * 46341, 15)
                seen["even"].append(even)
                seen["odd"].append(odd_sum)
                seen["product"].append(odd_sum * 46341)
                seen["acc"].append(acc)
                scratch: Values = defaultdict(list)
                seen["code"].append(requantised(scratch, acc, params, h, spec.out_bits))
    return seen


def gelu(codes: list[int], spec: Any, params: Any) -> Values:
    first = -(2 ** (spec.in_bits - 1))
    return {"input": codes, "code": [int(params.table[x - first]) for x in codes]}


def residual(rows: list[list[int]], accs: list[list[int]], spec: Any, params: Any) -> Values:
    seen: Values = defaultdict(list)
    for row, line in zip(rows, accs, strict=True):
        for c, (q, acc) in enumerate(zip(row, line, strict=True)):
            x = (q - params.in_zero_point) * 2 ** int(params.in_shift[c])
            kept, branch = x * params.gain, acc * int(params.multiplier[c])
            rounded = half_up(kept + branch, params.shift + int(params.out_shift[c]))
            seen["x"].append(x)
            seen["acc"].append(acc)
            seen["gain"].append(params.gain)
            seen["multiplier"].append(int(params.multiplier[c]))
            seen["shift"].append(params.shift)
            seen["kept"].append(kept)
            seen["branch"].append(branch)
            seen["total"].append(kept + branch)
            seen["code"].append(clipped(rounded + params.zero_point, spec.out_bits))
    return seen


def pool(tokens: list[list[int]], spec: Any, params: Any) -> Values:
    seen: Values = defaultdict(list)
    for c in range(len(tokens[0])):
        acc = 0
        for token in tokens:
            seen["input"].append(token[c])
            seen["x"].append(token[c] - params.in_zero_point)
            acc += token[c] - params.in_zero_point
            seen["acc"].append(acc)
        seen["code"].append(requantised(seen, acc, params.requant, c, spec.out_bits))
    return seen


def layernorm(rows: list[list[int]], spec: Any, params: Any) -> Values:
    seen: Values = defaultdict(list)
    for row in rows:
        pairs = zip(row, params.shift, strict=True)
        x = [(q - params.zero_point) * 2 ** int(a) for q, a in pairs]
        count, total, squares = len(x), sum(x), sum(v * v for v in x)
        variance = count * squares - total * total + params.eps
        width = spec.variance_bits
        assert variance < 2**width
        k = (width - variance.bit_length()) // 2
        # v = variance * 4**k / 2**(width - 2) lies in [1, 4): its segment, and 10 bits inside of it.
        v, one, half = variance * 4**k, 2 ** (width - 2), 2 ** (spec.table_bits - 1)
        step, first = (one, 0) if v < 2 * one else (2 * one, half)
        inside = (v - step) * half * 2**10 // step
        base, slope = spec.rsqrt[first + inside // 2**10]
        rsqrt = base - slope * (inside % 2**10) // 2**10
        seen["x"] += x
        seen["square"] += [value * value for value in x]
        seen["total"].append(total)
        seen["squares"].append(squares)
        seen["variance"].append(variance)
        seen["rsqrt"].append(rsqrt)
        for c, value in enumerate(x):
            centered = count * value - total
            score = half_up(centered * rsqrt, width // 2 + 13 - k - params.point)
            gain = int(params.gain[c]) if spec.affine == "dyadic" else 2 ** int(params.gain[c])
            scaled = score * gain + int(params.offset[c])
            seen["centered"].append(centered)
            seen["score"].append(score)
            seen["offset"].append(int(params.offset[c]))
            seen["scaled"].append(scaled)
            seen["code"].append(clipped(half_up(scaled, spec.output_shift), spec.out_bits))
    return seen

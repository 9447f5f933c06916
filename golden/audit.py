# SPDX-License-Identifier: Apache-2.0
"""How much of every register a network uses on given images: each intermediate value against its bound.

Widths are proven from the specs alone (:mod:`golden.bounds`), so no image can leave them; a row that does
would be an error in a proof, and :func:`audit` raises. What remains is of interest to who builds the
hardware: a register that real rows never half fill may be a spec that is wider than the network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from golden.attention import attend_trace
from golden.bounds import Interval
from golden.fixedpoint import Ints
from golden.layernorm import layernorm_trace
from golden.linear import accumulate
from golden.node import IMAGE, Node
from golden.residual import residual_trace
from golden.softmax import softmax_trace
from golden.vit import FUNCTIONS, VitModel

__all__ = ["Use", "audit"]


@dataclass(frozen=True)
class Use:
    """The range of a node's intermediate value ``quantity`` over all images, inside what is proven."""

    node: str
    quantity: str
    seen: Interval
    bound: Interval


Quantities = list[tuple[str, Ints, Interval]]


def _traced(node: Node, inputs: list[Ints], trace: Callable[..., Any]) -> Quantities:
    """The intermediate values that ``trace`` names as the spec's bounds do, for a node's inputs."""
    traces: list[Any] = []

    def spy(*arguments: Any) -> Ints:
        traces.append(trace(*arguments))
        code: Ints = traces[-1].code
        return code

    if node.op in ("embed", "softmax", "attend"):  # they shape the unit's inputs themselves
        FUNCTIONS[node.op](node, *inputs, unit=spy)
    else:
        spy(*inputs, node.spec, node.params)
    bounds: dict[str, Interval] = node.spec.bounds
    return [
        (name, value, bounds[name]) for name, value in vars(traces[0]).items() if name in bounds
    ]


def _accumulators(node: Node, inputs: list[Ints]) -> Quantities:
    acc = accumulate(inputs[0], node.spec, node.params)
    return [("acc", acc, node.params.reach(node.spec)), ("register", acc, node.spec.bounds["acc"])]


TRACES: dict[str, Callable[..., Any]] = {
    "embed": residual_trace,
    "residual": residual_trace,
    "layernorm": layernorm_trace,
    "softmax": softmax_trace,
    "attend": attend_trace,
}


def _within(node: Node, inputs: list[Ints]) -> Quantities:
    if node.op == "linear":
        return _accumulators(node, inputs)
    return _traced(node, inputs, TRACES[node.op]) if node.op in TRACES else []


def _range(values: npt.ArrayLike) -> Interval:
    array = np.asarray(values)
    return Interval(int(array.min()), int(array.max()))


def audit(model: VitModel, images: npt.NDArray[np.uint8]) -> list[Use]:
    """Use of every intermediate value on ``images``; AssertionError where one leaves its bound."""
    tensors = {IMAGE: images} | model.trace(images)
    found = []
    for node in model.nodes:
        inputs = [tensors[name] for name in node.inputs]
        out = tensors[node.name]
        rows: Quantities = [("output", out, model.flows[node.name].range)]
        rows += _within(node, inputs)
        for quantity, values, bound in rows:
            seen = _range(values)
            if seen.low < bound.low or seen.high > bound.high:
                raise AssertionError(f"{node.name}: {quantity} {seen} is outside {bound}")
            found.append(Use(node.name, quantity, seen, bound))
    return found

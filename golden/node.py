# SPDX-License-Identifier: Apache-2.0
"""One operation of an integer network: what it is made of, and what goes in and comes out.

The operators themselves are other modules of this package, one each; :mod:`golden.vit` runs them.

    op           spec, params                     layout                inputs           output
    patch_embed  PatchEmbedSpec, LinearParams                           image            sums [N, C]
    embed        ResidualSpec, ResidualParams     positions, prefix     sums [N, C]      codes [P + N, C]
    start        ResidualSpec, ResidualParams     source                sums or codes    codes, alike
    layernorm    LayerNormSpec, LayerNormParams                         codes [.., C]    codes, alike
    linear       LinearSpec, LinearParams                               codes [.., K]    codes or sums [.., C]
    scores       ScoreSpec, ScoreParams           heads, (windows)      qkv [N, 3C]      [(W,) heads, n, n]
    softmax      SoftmaxSpec, SoftmaxParams       (mask)                scores           codes, alike
    attend       AttendSpec, RequantParams        heads, (windows)      softmax, qkv     codes [N, C]
    gelu         GeluSpec, GeluParams                                   codes            codes, alike
    residual     ResidualSpec, ResidualParams                           codes, sums      codes, alike
    merge                                         index [M, g]          codes [N, C]     codes [M, g * C]
    select                                        tokens                codes [N, C]     codes [k * C]
    pool         PoolSpec, PoolParams             first                 codes [N, C]     codes [C]

FQ-ViT's operators have the rows of those above, but take codes for sums: fqvit_embed, fqvit_layernorm,
fqvit_scores, fqvit_softmax, fqvit_attend, fqvit_residual (:mod:`golden.fqvit`, :mod:`golden.fqvit_block`);
there is one more:

    fqvit_requant  RequantSpec, RequantParams                           sums [.., C]     codes, alike

Shapes are those of one image; every tensor has the batch as its first axis. ``positions`` [N, C] are codes
on the input grid of embed's residual unit, ``prefix`` [P, C] codes on its output grid (P may be 0).
``source`` says which input of the residual unit a start feeds: "branch" (sums) or "stream" (codes).
``windows`` [W, n] holds every token once; without it all tokens are one window. ``mask`` [W, n, n] is True
where a pair is left out. What stands in parentheses may be absent or None.

A network is checked before it runs, by intervals: :func:`flow_of` follows shapes and ranges from node to
node, so that no image can lead to a value that the next operator refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from golden.attention import AttendSpec, ScoreParams, ScoreSpec
from golden.bounds import Interval
from golden.fixedpoint import integer, integers
from golden.fqvit import FqLayerNormParams, FqLayerNormSpec, FqSoftmaxParams, FqSoftmaxSpec
from golden.fqvit_block import (
    FqAttendParams,
    FqAttendSpec,
    FqResidualParams,
    FqScoreParams,
    FqScoreSpec,
)
from golden.gelu import GeluParams, GeluSpec
from golden.layernorm import LayerNormParams, LayerNormSpec
from golden.linear import LinearParams, LinearSpec
from golden.patch_embed import PatchEmbedSpec
from golden.pool import PoolParams, PoolSpec
from golden.requant import RequantParams, RequantSpec
from golden.residual import ResidualParams, ResidualSpec
from golden.softmax import SoftmaxParams, SoftmaxSpec

__all__ = ["IMAGE", "OPERATIONS", "Flow", "Node", "Operation", "check_parts", "flow_of"]

IMAGE = "image"
"""Name of a network's input: raw uint8 pixels [B, C, H, W]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Node:
    """One operation; its name is the name of its output tensor.

    ``inputs``: names of the tensors it takes.  ``spec``, ``params``, ``layout``: as the module's table says.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    spec: Any = None
    params: Any = None
    layout: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Flow:
    """What a tensor may hold, for one image: its shape, the range of its values, and the spec of the
    softmax whose codes they are, if they are such codes.
    """

    shape: tuple[int, ...]
    range: Interval
    softmax: SoftmaxSpec | FqSoftmaxSpec | None = None


@dataclass(frozen=True)
class Operation:
    """A row of the table: the rule for what comes out, and the kinds of what a node is made of."""

    flow: Callable[..., Flow]
    spec: type | None = None
    params: type | None = None
    inputs: int = 1
    layout: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


def check_parts(node: Node) -> None:
    """Raise TypeError or ValueError unless a node has what its operator needs, parameters within range."""
    operation = OPERATIONS.get(node.op)
    if operation is None:
        raise ValueError(f"Operator must be one of {sorted(OPERATIONS)}, not {node.op!r}")
    for name, value, kind in (
        ("Spec", node.spec, operation.spec),
        ("Parameters", node.params, operation.params),
    ):
        if not isinstance(value, kind or type(None)):
            wanted = "None" if kind is None else f"a {kind.__name__}"
            raise TypeError(f"{name} of {node.op} must be {wanted}, not {value!r}")
    known = {*operation.layout, *operation.optional}
    if not set(operation.layout) <= set(node.layout) <= known:
        raise ValueError(
            f"Layout of {node.op} must have {sorted(known)}, not {sorted(node.layout)}"
        )
    if len(node.inputs) != operation.inputs:
        raise ValueError(
            f"Inputs of {node.op} must be {operation.inputs}, not {len(node.inputs)!r}"
        )
    if isinstance(node.spec, PatchEmbedSpec):
        node.params.check(node.spec.linear)
    elif isinstance(node.spec, AttendSpec | FqAttendSpec):
        node.params.check(node.spec.requant)
    elif node.params is not None:
        node.params.check(node.spec)


def flow_of(node: Node, *inputs: Flow) -> Flow:
    """Return what a node's output may hold; TypeError or ValueError unless all of its parts suit each
    other and whatever ``inputs`` may hold.
    """
    check_parts(node)
    return OPERATIONS[node.op].flow(node, *inputs)


# ------------------------------------------------------------------------------------ shapes and ranges


def _same(name: str, value: Any, wanted: Any) -> None:
    if value != wanted:
        raise ValueError(f"{name} must be {wanted!r}, not {value!r}")


def _within(name: str, flow: Flow, legal: Interval) -> None:
    if flow.range.low < legal.low or flow.range.high > legal.high:
        raise ValueError(
            f"{name} must be from {legal.low} to {legal.high}, "
            f"not from {flow.range.low} to {flow.range.high}"
        )


def _check_channels(params: RequantParams, channels: int) -> None:
    given = int(np.shape(params.multiplier)[0])
    if given not in (1, channels):
        raise ValueError(f"Requantiser must have 1 or {channels} channels, not {given!r}")


def _signed(bits: int) -> Interval:
    return Interval.of_bits(bits, signed=True)


def _tokens(flow: Flow) -> tuple[int, int]:
    """(N, C) of a tensor of tokens."""
    if len(flow.shape) != 2:
        raise ValueError(f"Input must be [tokens, channels], not shape {flow.shape!r}")
    return flow.shape[0], flow.shape[1]


def _rows(name: str, value: Any, columns: int | None, legal: Interval) -> tuple[int, ...]:
    """Shape of a two-dimensional integer array of the layout, after its checks."""
    array = integers(value, name)
    if array.ndim != 2 or columns not in (None, array.shape[1]):
        width = "columns" if columns is None else columns
        raise ValueError(f"{name} must be [rows, {width}], not shape {array.shape!r}")
    legal.require(array, name)
    return array.shape


def _flow_patch_embed(node: Node, image: Flow) -> Flow:
    spec: PatchEmbedSpec = node.spec
    params: LinearParams = node.params
    if len(image.shape) != 3:
        raise ValueError(f"Input must be the image, not of shape {image.shape!r}")
    channels, height, width = image.shape
    _same("Colour channels", channels, spec.channels)
    if height % spec.patch or width % spec.patch:
        raise ValueError(
            f"Image size must be a multiple of {spec.patch} pixels, not {height!r} x {width!r}"
        )
    _same("Pixels of the weights", params.in_features, spec.linear.in_features)
    count = (height // spec.patch) * (width // spec.patch)
    return Flow((count, params.out_features), params.reach(spec.linear))


def _check_residual(node: Node, stream: Flow | None, acc: Flow | None) -> Flow:
    """The output of a residual unit with these inputs; what is None is a constant of the unit."""
    spec: ResidualSpec = node.spec
    params: ResidualParams = node.params
    shapes = [flow.shape for flow in (stream, acc) if flow is not None]
    for shape in shapes:
        _same("Row length", shape[-1], params.channels)
        _same("Shape of the branch", shape, shapes[0])
    if stream is not None:
        _within("Codes of the stream", stream, _signed(spec.in_bits))
    if acc is not None:
        _within("Accumulators of the branch", acc, spec.bounds["acc"])
    return Flow(shapes[0], spec.bounds["code"])


def _flow_embed(node: Node, acc: Flow) -> Flow:
    count, channels = _tokens(acc)
    out = _check_residual(node, None, acc)
    given = _rows("Positions", node.layout["positions"], channels, _signed(node.spec.in_bits))
    _same("Positions", given[0], count)
    more = _rows("Prefix", node.layout["prefix"], channels, out.range)[0]
    return Flow((more + count, channels), out.range)


def _flow_residual(node: Node, stream: Flow, acc: Flow) -> Flow:
    return _check_residual(node, stream, acc)


def _flow_start(node: Node, x: Flow) -> Flow:
    source = node.layout["source"]
    if source not in ("branch", "stream"):
        raise ValueError(f"Source must be 'branch' or 'stream', not {source!r}")
    return _check_residual(node, *((x, None) if source == "stream" else (None, x)))


def _flow_layernorm(node: Node, x: Flow) -> Flow:
    _same("Row length", x.shape[-1], node.params.channels)
    _within("Codes", x, _signed(node.spec.in_bits))
    return Flow(x.shape, node.spec.bounds["code"])


def _flow_linear(node: Node, x: Flow) -> Flow:
    spec: LinearSpec = node.spec
    params: LinearParams = node.params
    _same("Row length", x.shape[-1], params.in_features)
    _within("Codes", x, spec.bounds["input"])
    out = params.reach(spec) if spec.requant is None else spec.requant.bounds["code"]
    return Flow((*x.shape[:-1], params.out_features), out)


def _flow_requant(node: Node, acc: Flow) -> Flow:
    spec: RequantSpec = node.spec
    params: RequantParams = node.params
    _check_channels(params, acc.shape[-1])
    _within("Accumulators", acc, spec.bounds["acc"])
    return Flow(acc.shape, spec.bounds["code"])


def _heads(node: Node, qkv: Flow, channels: int) -> tuple[tuple[int, ...], int]:
    """([(W,) heads, n], d) of attention over ``qkv``; ``channels`` of parameters, 1 or one per head."""
    count, width = _tokens(qkv)
    heads = integer(node.layout["heads"], "Heads", 1, 4096)
    if width % (3 * heads):
        raise ValueError(f"Width of q, k and v must be a multiple of 3 x {heads}, not {width!r}")
    if channels not in (1, heads):
        raise ValueError(f"Requantiser must have 1 or {heads} channels, not {channels!r}")
    windows = node.layout.get("windows")
    if windows is None:
        return (heads, count), width // (3 * heads)
    number, size = _rows("Windows", windows, None, Interval(0, count - 1))
    if number * size != count or len(np.unique(windows)) != count:
        raise ValueError(f"Windows must hold each of {count} tokens once, not {number} x {size}")
    return (number, heads, size), width // (3 * heads)


def _flow_scores(node: Node, qkv: Flow) -> Flow:
    spec: ScoreSpec = node.spec
    params: ScoreParams = node.params
    rows, depth = _heads(node, qkv, int(np.shape(params.requant.multiplier)[0]))
    if depth > spec.head_dim:
        raise ValueError(f"Head dimension must be at most {spec.head_dim}, not {depth!r}")
    if params.bias is not None:
        _same("Shape of the bias", np.shape(params.bias), (*rows[-2:], rows[-1]))
    _within("Codes", qkv, spec.bounds["input"])
    return Flow((*rows, rows[-1]), spec.bounds["score"])


def _flow_softmax(node: Node, scores: Flow) -> Flow:
    spec: SoftmaxSpec = node.spec
    _within("Scores", scores, spec.bounds["score"])
    if scores.shape[-1] > spec.max_tokens:
        raise ValueError(f"Row length must be at most {spec.max_tokens}, not {scores.shape[-1]!r}")
    mask: npt.NDArray[np.bool_] | None = node.layout.get("mask")
    if mask is not None:
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
            raise TypeError(f"Mask must be an array of booleans, not {type(mask).__name__}")
        if len(scores.shape) != 4:
            raise ValueError(f"Scores must be by windows for a mask, not shape {scores.shape!r}")
        _same("Shape of the mask", mask.shape, (scores.shape[0], *scores.shape[2:]))
    return Flow(scores.shape, spec.bounds["code"], spec)


def _flow_attend(node: Node, codes: Flow, qkv: Flow) -> Flow:
    spec: AttendSpec = node.spec
    params: RequantParams = node.params
    rows, _ = _heads(node, qkv, int(np.shape(params.multiplier)[0]))
    _same("Softmax of the codes", codes.softmax, spec.softmax)
    _same("Shape of the codes", codes.shape, (*rows, rows[-1]))
    _within("Values", qkv, spec.bounds["value"])
    return Flow((qkv.shape[0], qkv.shape[1] // 3), spec.bounds["code"])


def _flow_gelu(node: Node, x: Flow) -> Flow:
    _within("Codes", x, node.spec.bounds["input"])
    return Flow(x.shape, node.spec.bounds["code"])


def _flow_merge(node: Node, x: Flow) -> Flow:
    count, channels = _tokens(x)
    rows, group = _rows("Index", node.layout["index"], None, Interval(0, count - 1))
    if not rows or not group:
        raise ValueError(f"Index must hold tokens, not have shape {(rows, group)!r}")
    return Flow((rows, group * channels), x.range)


def _flow_select(node: Node, x: Flow) -> Flow:
    count, channels = _tokens(x)
    tokens = node.layout["tokens"]
    if not isinstance(tokens, tuple) or not tokens:
        raise TypeError(f"Tokens must be a tuple of numbers, not {tokens!r}")
    for token in tokens:
        integer(token, "Token", 0, count - 1)
    return Flow((len(tokens) * channels,), x.range)


def _flow_pool(node: Node, x: Flow) -> Flow:
    spec: PoolSpec = node.spec
    params: PoolParams = node.params
    count, channels = _tokens(x)
    first = integer(node.layout["first"], "First token", 0, count - 1)
    if count - first > spec.max_tokens:
        raise ValueError(f"Tokens must be at most {spec.max_tokens}, not {count - first!r}")
    _check_channels(params.requant, channels)
    _within("Codes", x, spec.bounds["input"])
    return Flow((channels,), spec.bounds["code"])


OPERATIONS: Mapping[str, Operation] = {
    "patch_embed": Operation(_flow_patch_embed, PatchEmbedSpec, LinearParams),
    "embed": Operation(_flow_embed, ResidualSpec, ResidualParams, layout=("positions", "prefix")),
    "start": Operation(_flow_start, ResidualSpec, ResidualParams, layout=("source",)),
    "layernorm": Operation(_flow_layernorm, LayerNormSpec, LayerNormParams),
    "linear": Operation(_flow_linear, LinearSpec, LinearParams),
    "scores": Operation(
        _flow_scores, ScoreSpec, ScoreParams, layout=("heads",), optional=("windows",)
    ),
    "softmax": Operation(_flow_softmax, SoftmaxSpec, SoftmaxParams, optional=("mask",)),
    "attend": Operation(
        _flow_attend, AttendSpec, RequantParams, 2, layout=("heads",), optional=("windows",)
    ),
    "gelu": Operation(_flow_gelu, GeluSpec, GeluParams),
    "residual": Operation(_flow_residual, ResidualSpec, ResidualParams, 2),
    "merge": Operation(_flow_merge, layout=("index",)),
    "select": Operation(_flow_select, layout=("tokens",)),
    "pool": Operation(_flow_pool, PoolSpec, PoolParams, layout=("first",)),
    "fqvit_embed": Operation(
        _flow_embed, ResidualSpec, FqResidualParams, layout=("positions", "prefix")
    ),
    "fqvit_layernorm": Operation(_flow_layernorm, FqLayerNormSpec, FqLayerNormParams),
    "fqvit_requant": Operation(_flow_requant, RequantSpec, RequantParams),
    "fqvit_scores": Operation(
        _flow_scores, FqScoreSpec, FqScoreParams, layout=("heads",), optional=("windows",)
    ),
    "fqvit_softmax": Operation(_flow_softmax, FqSoftmaxSpec, FqSoftmaxParams, optional=("mask",)),
    "fqvit_attend": Operation(
        _flow_attend, FqAttendSpec, FqAttendParams, 2, layout=("heads",), optional=("windows",)
    ),
    "fqvit_residual": Operation(_flow_residual, ResidualSpec, FqResidualParams, 2),
}
"""Every operator that a node may be."""

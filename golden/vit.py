# SPDX-License-Identifier: Apache-2.0
"""A whole Vision Transformer in integers: from uint8 pixels to logits.

    model = VitModel.from_bundle("bundle")
    logits = model(images)                              # int64 [B, classes]
    tensors = model.trace(images, ["blocks.0.attn"])    # any tensor on the way

A network is a list of nodes (:mod:`golden.node`), computed one after the other by the functions of this
package. Nothing is left to this module but to split and join heads, to gather tokens, and to forget a
tensor behind its last consumer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from golden.attention import attend, attention_scores
from golden.bounds import Interval
from golden.bundle import BundleError, read_bundle, unpack_network
from golden.fixedpoint import Ints, integer
from golden.fqvit import fq_layernorm, fq_requantise, fq_softmax
from golden.fqvit_block import fq_attend, fq_residual, fq_scores
from golden.gelu import gelu
from golden.layernorm import layernorm
from golden.linear import linear
from golden.node import IMAGE, Flow, Node, flow_of
from golden.patch_embed import patch_embed
from golden.pool import pool
from golden.residual import residual
from golden.softmax import softmax

__all__ = ["FUNCTIONS", "IMAGE", "Node", "VitModel"]

IMAGES_AT_ONCE = 8
"""Images that go through the network together; the results do not depend on it."""


def _evaluate(node: Node, *inputs: Ints) -> Ints:
    """Return a node's output tensor, [B, ...]. The operators check types and ranges of the values."""
    return FUNCTIONS[node.op](node, *inputs)


class VitModel:
    """An integer network, checked once, when it is made."""

    def __init__(self, nodes: Sequence[Node], input_size: Sequence[int]) -> None:
        """``nodes`` in order of execution, the last one's tensor is the output; ``input_size``: channels,
        height and width in pixels. TypeError or ValueError, with the node's name, where a node is not
        sound in itself or does not suit what the nodes before it may hold.
        """
        if len(input_size) != 3:
            raise ValueError(f"Input size must be channels, height, width, not {input_size!r}")
        if not nodes:
            raise ValueError("Nodes must be at least one, not none")
        channels, height, width = (integer(n, "Input size", 1, 1 << 16) for n in input_size)
        self.input_size = (channels, height, width)
        self.nodes = tuple(nodes)
        flows = {IMAGE: Flow(self.input_size, Interval.of_bits(8, signed=False))}
        for node in self.nodes:
            if node.name in flows:
                raise ValueError(f"Names of nodes must be unique, not {node.name!r} twice")
            for name in node.inputs:
                if name not in flows:
                    raise ValueError(f"Node {node.name!r}: Input must come before it, not {name!r}")
            try:
                flows[node.name] = flow_of(node, *(flows[name] for name in node.inputs))
            except (TypeError, ValueError) as error:
                raise type(error)(f"Node {node.name!r}: {error}") from error
        self.flows: Mapping[str, Flow] = flows
        """Shape (of one image) and range of every tensor, IMAGE included."""
        self._by_name = {node.name: node for node in self.nodes}

    @classmethod
    def from_bundle(
        cls,
        path: Path | str,
        contents: tuple[Mapping[str, Any], Mapping[str, npt.NDArray[Any]]] | None = None,
    ) -> VitModel:
        """Read the network of a bundle; :class:`golden.bundle.BundleError` where it is not sound.

        ``contents``: what :func:`golden.bundle.read_bundle` has returned for it before.
        """
        manifest, tensors = read_bundle(path) if contents is None else contents
        try:
            return cls(*unpack_network(manifest, tensors))
        except (TypeError, ValueError) as error:
            raise BundleError(f"Bundle {str(path)!r} has an invalid network: {error}.") from None

    def __getitem__(self, name: str) -> Node:
        return self._by_name[name]

    @property
    def output(self) -> str:
        """Name of the output tensor."""
        return self.nodes[-1].name

    def __call__(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Return the output, int64 [B, ...], for uint8 images [B, C, H, W].

        TypeError for anything but uint8, ValueError for another size.
        """
        output = self.trace(images, (self.output,))[self.output]
        return output.astype(np.int64, copy=False)

    def trace(
        self, images: npt.NDArray[np.uint8], names: Collection[str] | None = None
    ) -> dict[str, Ints]:
        """Return tensors [B, ...] by name, all of them or those of ``names``, in order of execution.

        Nothing is computed that they do not need. Errors as of a call; ValueError for an unknown name.
        """
        pixels = np.asarray(images)
        if pixels.dtype != np.uint8:
            raise TypeError(f"Images must be an array of uint8 pixels, not {pixels.dtype}")
        if pixels.ndim != 4 or pixels.shape[1:] != self.input_size or not len(pixels):
            raise ValueError(f"Images must be [B, *{self.input_size}], not shape {pixels.shape!r}")
        wanted = set(self._by_name if names is None else names)
        if unknown := wanted - set(self._by_name):
            raise ValueError(f"Tensors must be the network's, not {sorted(unknown)!r}")
        parts = [
            self._run(pixels[first : first + IMAGES_AT_ONCE], wanted)
            for first in range(0, len(pixels), IMAGES_AT_ONCE)
        ]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def step(self, name: str, *inputs: Ints) -> Ints:
        """Return one node's output for given input tensors [B, ...], in the order of its ``inputs``.

        KeyError for an unknown name; TypeError or ValueError where the inputs do not suit the node.
        """
        return _evaluate(self[name], *inputs)

    def _run(self, images: Ints, wanted: set[str]) -> dict[str, Ints]:
        needed = set(wanted)
        for node in reversed(self.nodes):
            if node.name in needed:
                needed.update(node.inputs)
        nodes = [node for node in self.nodes if node.name in needed]
        left = Counter(name for node in nodes for name in node.inputs)
        tensors: dict[str, Ints] = {IMAGE: images}
        found = {}
        for node in nodes:
            out = _evaluate(node, *(tensors[name] for name in node.inputs))
            if node.name in wanted:
                found[node.name] = out
            if left[node.name]:
                tensors[node.name] = out
            for name in node.inputs:
                left[name] -= 1
                if not left[name]:
                    del tensors[name]
        return found


# ---------------------------------------------------------------------------------- tokens and heads


def _split(x: Ints, heads: int, windows: Ints | None) -> Ints:
    """[B, N, heads * d] to [B, heads, N, d], a view; by windows [B, W, heads, n, d], one gather."""
    if windows is not None:
        x = x[:, windows]
    return x.reshape(*x.shape[:-1], heads, -1).swapaxes(-3, -2)


def _join(x: Ints, windows: Ints | None) -> Ints:
    """[B, heads, N, d] (or [B, W, heads, n, d]) to [B, N, heads * d]: the way back."""
    rows = x.swapaxes(-3, -2)
    rows = rows.reshape(len(x), -1, rows.shape[-2] * rows.shape[-1])
    return rows if windows is None else rows[:, np.argsort(windows, axis=None)]


def _third(qkv: Ints, which: int) -> Ints:
    """q, k or v of [B, N, 3C]: a view."""
    width = qkv.shape[-1] // 3
    return qkv[..., which * width : (which + 1) * width]


# --------------------------------------------------------------------------------------- operators


def _embed(node: Node, acc: Ints, unit: Callable[..., Ints] = residual) -> Ints:
    prefix = np.asarray(node.layout["prefix"])
    patches = unit(node.layout["positions"], acc, node.spec, node.params)
    prefix = np.broadcast_to(prefix, (len(patches), *prefix.shape))
    return np.concatenate([prefix, patches], axis=1)


def _start(node: Node, x: Ints) -> Ints:
    blank = np.zeros(x.shape[-1], np.int64)
    if node.layout["source"] == "stream":
        return residual(x, blank, node.spec, node.params)
    return residual(blank + node.params.in_zero_point, x, node.spec, node.params)


def _scores(node: Node, qkv: Ints, unit: Callable[..., Ints] = attention_scores) -> Ints:
    heads, windows = node.layout["heads"], node.layout.get("windows")
    q, k = (_split(_third(qkv, which), heads, windows) for which in (0, 1))
    return unit(q, k, node.spec, node.params)


def _softmax(node: Node, scores: Ints, unit: Callable[..., Ints] = softmax) -> Ints:
    mask = node.layout.get("mask")
    return unit(scores, node.spec, node.params, None if mask is None else mask[:, None])


def _attend(node: Node, codes: Ints, qkv: Ints, unit: Callable[..., Ints] = attend) -> Ints:
    windows = node.layout.get("windows")
    v = _split(_third(qkv, 2), node.layout["heads"], windows)
    return _join(unit(codes, v, node.spec, node.params), windows)


def _merge(node: Node, x: Ints) -> Ints:
    gathered = x[:, node.layout["index"]]
    return gathered.reshape(*gathered.shape[:2], -1)


def _select(node: Node, x: Ints) -> Ints:
    return x[:, list(node.layout["tokens"])].reshape(len(x), -1)


FUNCTIONS: Mapping[str, Callable[..., Ints]] = {
    "patch_embed": lambda node, images: patch_embed(images, node.spec, node.params),
    "embed": _embed,
    "start": _start,
    "layernorm": lambda node, x: layernorm(x, node.spec, node.params),
    "linear": lambda node, x: linear(x, node.spec, node.params),
    "scores": _scores,
    "softmax": _softmax,
    "attend": _attend,
    "gelu": lambda node, x: gelu(x, node.spec, node.params),
    "residual": lambda node, x, acc: residual(x, acc, node.spec, node.params),
    "merge": _merge,
    "select": _select,
    "pool": lambda node, x: pool(x[:, node.layout["first"] :], node.spec, node.params),
    "fqvit_embed": partial(_embed, unit=fq_residual),
    "fqvit_layernorm": lambda node, x: fq_layernorm(x, node.spec, node.params),
    "fqvit_requant": lambda node, acc: fq_requantise(acc, node.spec, node.params),
    "fqvit_scores": partial(_scores, unit=fq_scores),
    "fqvit_softmax": partial(_softmax, unit=fq_softmax),
    "fqvit_attend": partial(_attend, unit=fq_attend),
    "fqvit_residual": lambda node, x, codes: fq_residual(x, codes, node.spec, node.params),
}
"""The function of every operator: node and input tensors to output tensor."""

# SPDX-License-Identifier: Apache-2.0
"""Observe a float network: every range that calibration needs, in two passes over the images.

The first pass fills one observer per tensor, the second measures the squared error of every PTF shift
under the ranges of the first. Tensors have the names of their nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from qvit_hw.network import LayerNorm, Linear, Network, Node, Pool, Scores, split_heads
from qvit_hw.observers import MinMaxObserver, Observer, make_observer
from qvit_hw.presets import Preset
from qvit_hw.quantize import PtfGrid, PtfSearch
from qvit_hw.weights import Moments

__all__ = ["Observations", "feed", "observe", "observe_inputs"]

Floats = npt.NDArray[np.float64]
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Observations:
    """What was seen, by tensor.

    ranges: (low, high) of streams and features; of q, k and v [3, heads].  channels: (low, high) per
    channel of LayerNorm outputs and means.  grids: the PTF grid of each stream.  peaks: the largest
    |score| of each softmax, in octaves.
    """

    ranges: dict[str, tuple[Floats, Floats]]
    channels: dict[str, tuple[Floats, Floats]]
    grids: dict[str, PtfGrid]
    peaks: dict[str, float]


def feed(
    network: Network,
    images: Tensor,
    tap: Callable[[Node, Tensor], None],
    batch: int = 8,
    progress: Progress | None = None,
) -> None:
    """Run ``images`` (uint8) through the float network in batches and show ``tap`` every tensor."""

    def see(node: Node, out: Tensor) -> Tensor:
        tap(node, out)
        return out

    for part in images.split(batch):
        network.run(part, see)
        if progress is not None:
            progress(len(part))


def observe(
    network: Network,
    images: Tensor,
    preset: Preset,
    batch: int = 8,
    progress: Progress | None = None,
) -> Observations:
    """Run ``images`` (uint8) through the float network twice and return what was seen.

    The preset's observer is for tensors as wide as the codes between operators. A wider one has bits to
    spare and keeps its extremes: the few values that a network can least do without.
    Raises UserError, with the tensor's name, for constant, NaN or infinite activations. ``progress``
    is called with the number of images done, which adds up to twice ``len(images)``.
    """
    observers: dict[str, Observer] = {}
    channels: dict[str, MinMaxObserver] = {}
    scores: dict[str, MinMaxObserver] = {}
    heads: dict[str, Scores] = {}

    def watch(node: Node, axis: int | None = None) -> Observer:
        bits = preset.act_bits
        if network.kind(node) == "stream":
            bits = preset.residual_bits
        elif network.kind(node) == "features" and isinstance(node, Linear):
            bits = preset.gelu_bits
        chosen = preset.observer if bits <= preset.act_bits else "minmax"
        return make_observer(chosen, node.name, axis, bits)

    for node in network:
        kind = network.kind(node)
        if kind in ("stream", "features") and node.op not in ("merge", "select"):
            observers[node.name] = watch(node)
        if isinstance(node, LayerNorm | Pool):
            channels[node.name] = MinMaxObserver(node.name, axis=-1)
        if isinstance(node, Scores):
            heads[node.inputs[0]] = node
            observers[node.inputs[0]] = watch(network[node.inputs[0]], 0)
            scores[node.name] = MinMaxObserver(node.name)

    def see(node: Node, out: Tensor) -> None:
        if isinstance(node, Scores):
            softmax = network.consumers[node.name][0]
            mask = getattr(softmax, "mask", None)  # a score that is left out needs no room
            scores[node.name].update(out if mask is None else out.masked_fill(mask[:, None], 0))
        elif node.name in heads:
            count = heads[node.name].heads
            parts = split_heads(out, count, None)
            observers[node.name].update(parts.transpose(1, 2).reshape(3 * count, -1))
        elif node.name in observers:
            observers[node.name].update(out)
        if node.name in channels:
            channels[node.name].update(out)

    feed(network, images, see, batch, progress)
    ranges = {name: seen.range() for name, seen in observers.items()}
    for name, node in heads.items():
        low, high = ranges[name]
        ranges[name] = low.reshape(3, node.heads), high.reshape(3, node.heads)

    searches: dict[str, PtfSearch] = {}

    def measure(node: Node, out: Tensor) -> None:
        if node.name not in ranges or network.kind(node) != "stream":
            return
        if node.name not in searches:
            low, high = (float(end) for end in ranges[node.name])
            count = out.shape[-1]
            searches[node.name] = PtfSearch(
                low, high, count, preset.residual_bits, preset.max_shift
            )
        searches[node.name].update(out)

    feed(network, images, measure, batch, progress)
    return Observations(
        ranges,
        {name: seen.extremes() for name, seen in channels.items()},
        {name: search.grid() for name, search in searches.items()},
        {
            network.consumers[name][0].name: max(abs(float(end)) for end in seen.range())
            for name, seen in scores.items()
        },
    )


def observe_inputs(
    network: Network, images: Tensor, batch: int = 8, progress: Progress | None = None
) -> dict[str, Moments]:
    """Moments of the inputs of every linear layer but the patch embedding, over uint8 images."""
    moments: dict[str, Moments] = {}

    def see(node: Node, out: Tensor) -> None:
        for reader in network.consumers[node.name]:
            if isinstance(reader, Linear):
                if reader.name not in moments:
                    moments[reader.name] = Moments.empty(out.shape[-1])
                moments[reader.name].update(out)

    feed(network, images, see, batch, progress)
    return moments

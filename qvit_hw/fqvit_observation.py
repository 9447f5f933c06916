# SPDX-License-Identifier: Apache-2.0
"""What FQ-ViT observes on a float network: the range behind every one of its quantisers.

It has one range for all of q, k and v, one for natural scores (ours are base-2 exponents), and ranges of what
our own units never round: the outputs of the patch embedding, of proj and of fc2. The residual stream is seen
by its PTF observer, whatever the others are, and the last LayerNorm at the tokens that are used.

Source: megvii-research/FQ-ViT, config.py, models/vit_quant.py, models/ptq/observer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from qvit_hw.errors import UserError
from qvit_hw.network import LayerNorm, Linear, Network, Node, Scores, Select
from qvit_hw.observation import feed
from qvit_hw.observers import MinMaxObserver, Observer, make_observer
from qvit_hw.presets import Preset
from qvit_hw.quantize import PtfGrid, PtfSearch

__all__ = ["FqObservations", "check_network", "feeds_gelu", "is_head", "observe_fqvit"]

UNKNOWN = {
    "start": "a LayerNorm before its blocks",
    "merge": "merged tokens",
    "pool": "an average of tokens",
}
"""Operators that FQ-ViT's ViT has not, in words."""


@dataclass(frozen=True, eq=False)
class FqObservations:
    """What was seen, by tensor.

    ranges: (low, high) of everything that has a grid of its own; of natural scores.  streams: PTF grids.
    """

    ranges: dict[str, tuple[float, float]]
    streams: dict[str, PtfGrid]


def check_network(network: Network) -> None:
    """Raise UserError for a network that FQ-ViT's ViT has no arithmetic for."""
    found: list[tuple[str, str]] = []
    for node in network:
        if isinstance(node, Scores) and (node.windows is not None or node.bias is not None):
            found.insert(
                0, ("attention by windows", node.name)
            )  # says more than the rest of a Swin
            break
        if isinstance(node, Select) and network.kind(node) == "stream":
            found.append(("tokens without a LayerNorm", node.name))
        elif node.op in UNKNOWN:
            found.append((UNKNOWN[node.op], node.name))
    if found:
        raise UserError(
            "Preset 'fqvit' is for ViT, DeiT and DINOv2 with a class token, not for a network with "
            f"{found[0][0]} ({found[0][1]!r})."
        )


def is_head(network: Network, node: Node) -> bool:
    """Whether a node's accumulators are the logits."""
    return isinstance(node, Linear) and node is network.output


def feeds_gelu(network: Network, node: Node) -> bool:
    """Whether a node's tensor is the input of an activation function."""
    return any(reader.op == "gelu" for reader in network.consumers[node.name])


def seen_part(network: Network, node: Node, out: Tensor) -> Tensor:
    """What an observer of FQ-ViT sees of a tensor."""
    if isinstance(node, Scores):
        return out / Scores.LOG2E
    readers = network.consumers[node.name]
    if isinstance(node, LayerNorm) and len(readers) == 1 and isinstance(readers[0], Select):
        return out[:, list(readers[0].tokens)]
    return out


def observe_fqvit(
    network: Network,
    images: Tensor,
    preset: Preset,
    observer: str = "minmax",
    batch: int = 8,
    progress: Callable[[int], None] | None = None,
) -> FqObservations:
    """Run ``images`` (uint8) through the float network twice and return what was seen.

    UserError, with the tensor's name, for constant, NaN or infinite activations. ``progress`` is called with
    the number of images done, which adds up to twice ``len(images)``.
    """
    observers: dict[str, Observer] = {}
    for node in network:
        if network.kind(node) == "stream":
            observers[node.name] = MinMaxObserver(node.name)
        elif node.op not in ("softmax", "select") and not is_head(network, node):
            bits = preset.gelu_bits if feeds_gelu(network, node) else preset.act_bits
            observers[node.name] = make_observer(observer, node.name, bits=bits)

    def see(node: Node, out: Tensor) -> None:
        if node.name in observers:
            observers[node.name].update(seen_part(network, node, out))

    feed(network, images, see, batch, progress)
    ranges = {}
    for name, seen in observers.items():
        low, high = seen.range()
        ranges[name] = float(low), float(high)

    searches: dict[str, PtfSearch] = {}

    def measure(node: Node, out: Tensor) -> None:
        if network.kind(node) != "stream":
            return
        if node.name not in searches:
            searches[node.name] = PtfSearch(
                *ranges[node.name], out.shape[-1], preset.residual_bits, preset.max_shift
            )
        searches[node.name].update(out)

    feed(network, images, measure, batch, progress)
    return FqObservations(ranges, {name: search.grid() for name, search in searches.items()})

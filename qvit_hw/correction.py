# SPDX-License-Identifier: Apache-2.0
"""What quantisation shifts on average, put back where hardware has a free constant for it.

- A.V: codes are powers of two, so weights are off by up to half an octave, and not evenly to both sides. One
  gain per layer, the least-squares factor between A.V with codes and A.V without, goes into the requantiser
  behind A.V.
- Linear layers: rounding moves the mean of an output channel, and the mean of a whole data set passes through
  every layer behind. The bias takes it back (Nagel et al., arXiv 1906.04721, section 4.2; here with measured
  means, layer by layer, so that each layer sees what the corrected ones before it give).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from golden.softmax import SoftmaxSpec
from qvit_hw.calibrated import CalibratedModel
from qvit_hw.grids import LogGrid
from qvit_hw.network import Attend, Linear, Network, Node, PatchEmbed, split_heads
from qvit_hw.observation import feed

__all__ = ["attention_gains", "correct_bias"]

Floats = npt.NDArray[np.float64]
Progress = Callable[[int], None]


def attention_gains(
    network: Network, images: Tensor, spec: SoftmaxSpec, progress: Progress | None = None
) -> dict[str, float]:
    """Return {softmax: gain} for uint8 images, the least-squares gain of each layer."""
    grid, softmaxes = LogGrid(spec=spec), {node.name for node in network.of("softmax")}
    seen: dict[str, Tensor] = {}
    sums: dict[str, Floats] = {}

    def see(node: Node, out: Tensor) -> None:
        if node.name in softmaxes:
            seen[node.name] = out
        if isinstance(node, Attend):
            v = split_heads(seen.pop(f"{node.name}/qkv"), node.heads, node.windows)[2].double()
            exact = seen.pop(node.inputs[0]).double()
            coded = grid.values(grid.codes(exact)) @ v
            pair = np.array([float((coded * (exact @ v)).sum()), float((coded * coded).sum())])
            sums[node.inputs[0]] = sums.get(node.inputs[0], np.zeros(2)) + pair
        for reader in network.consumers[node.name]:
            if isinstance(reader, Attend) and node.name == reader.inputs[1]:
                seen[f"{reader.name}/qkv"] = out

    feed(network, images, see, progress=progress)
    return {name: float(up / down) if down else 1.0 for name, (up, down) in sums.items()}


def correct_bias(
    calibrated: CalibratedModel, images: Tensor, progress: Progress | None = None
) -> None:
    """Move the biases of ``calibrated`` so that every linear layer's mean is the float network's.

    In place. Over all tokens of uint8 images, which run at once: give a few dozen at most.
    """
    network, weights = calibrated.network, calibrated.plan.weights
    means: dict[str, Tensor] = {}

    def see(node: Node, out: Tensor) -> Tensor:
        if node.name in weights:
            means[node.name] = out.double().flatten(0, -2).mean(dim=0)
        return out

    def forward(node: Node, inputs: Sequence[Tensor]) -> Tensor:
        if isinstance(node, Linear | PatchEmbed):
            planned = weights[node.name]
            total = calibrated.sums(node, inputs[0]) * torch.tensor(planned.scale)
            missing = (means[node.name] - total.flatten(0, -2).mean(dim=0)).numpy()
            steps = np.floor(missing / planned.scale + 0.5).astype(np.int64)
            weights[node.name] = replace(planned, bias=planned.bias + steps)
        if progress is not None:
            progress(1)
        return calibrated.codes(node, inputs)

    network.run(images, see)
    network.run(images, forward=forward)

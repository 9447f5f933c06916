# SPDX-License-Identifier: Apache-2.0
"""What quantisation shifts on average, put back where hardware has a free constant for it.

- A.V: codes are powers of two, so weights are off by up to half an octave, and not evenly to both sides. One
  gain per layer, the least-squares factor between A.V with codes and A.V without, goes into the requantiser
  behind A.V.
- Linear layers, their biases: rounding moves the mean of an output channel, and the mean of a whole data set
  passes through every layer behind. The bias takes it back (Nagel et al., arXiv 1906.04721, section 4.2; here
  with measured means, layer by layer, so that each layer sees what the corrected ones before it give).
- Linear layers, their weights: a layer's input is off by what all layers before it did, and that error is
  correlated with the input. The weights that bring the layer's output nearest to the float network's are
  those of least squares on the input as it is (asymmetric calibration, GPTAQ, arXiv 2504.02692; here as a
  ridge regression towards the float weights, solved once, and rounded once).

The second and the third are one walk through the network. With x a layer's codes, y the float network's
output in units of the accumulator, and means and covariances over all tokens,

    W' = W + (cov(y, x) - W cov(x)) (cov(x) + damping * in / rows * mean(var(x)) I)**-1,  rounded,
    b' = mean(y) - W' mean(x),                                                            rounded.

The damping is a prior, the weaker the more rows there are per weight: where they are few it holds the float
weights, W, in place. Refitting, tokens count by what they do to the network's output, by the square of its
gradient: of the last block's tokens none but the class token does anything. ``rows`` is then the effective
number, ``(sum w)**2 / sum w**2``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from golden.softmax import SoftmaxSpec
from qvit_hw.calibrated import CalibratedModel
from qvit_hw.grids import LogGrid
from qvit_hw.network import (
    IMAGE,
    Attend,
    Linear,
    Network,
    Node,
    PatchEmbed,
    split_heads,
)
from qvit_hw.observation import feed
from qvit_hw.plan import WeightPlan
from qvit_hw.relevance import propagate
from qvit_hw.weights import Moments, round_weights

__all__ = ["Rows", "attention_gains", "correct_bias", "importance", "refit_weights"]

Floats = npt.NDArray[np.float64]
Ints64 = npt.NDArray[np.int64]
Progress = Callable[[int], None]
Layer = Linear | PatchEmbed

BATCH, GRADIENT_BATCH = 8, 2
"""Images that run at once, and those whose gradients are computed at once: no result depends on them."""


@dataclass(frozen=True, eq=False)
class Rows:
    """What a linear layer gets and what it should give.

    codes: of its input [rows, in].  exact: the float network's output [rows, out] in units of the
    accumulator.  share: of each row in every mean [rows]; sums to 1.
    """

    codes: Floats
    exact: Floats
    share: Floats

    def bias(self, weight: Ints64) -> Ints64:
        """The bias that brings the mean of the accumulators of ``weight`` [out, in] to that of ``exact``."""
        missing = self.share @ self.exact - weight @ (self.share @ self.codes)
        return np.floor(missing + 0.5).astype(np.int64)

    @cached_property
    def inputs(self) -> Moments:
        """Moments of the codes."""
        return Moments(1, self.share @ self.codes, self.codes.T @ self._shared)

    def refit(self, weight: Floats, damping: float) -> Floats:
        """The weights of least squares [out, in], damped towards ``weight``, unrounded."""
        inputs = self.inputs
        covariance, count = inputs.covariance, len(inputs.total)
        joint = self.exact.T @ self._shared - np.outer(self.share @ self.exact, inputs.mean)
        # Effective rows are 1 / sum(share**2). Codes are whole: a smaller variance than the floor is none.
        held = damping * count * float(self.share @ self.share) * float(np.diag(covariance).mean())
        damped = covariance + max(held, 1e-6) * np.eye(count)
        missing = joint - weight @ covariance
        return np.asarray(weight + np.linalg.solve(damped, missing.T).T)

    @cached_property
    def _shared(self) -> Floats:
        return self.codes * self.share[:, None]


Choose = Callable[[Layer, WeightPlan, Rows], Ints64]
"""Returns the codes of a layer's weights [out, in]."""


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

    In place, over all tokens of uint8 images. Kept of each at a time: the stream, and one layer's input and
    output.  progress: is called with 1 after each layer.
    """
    _settle(calibrated, images, lambda layer, planned, rows: planned.codes, {}, progress)


def refit_weights(
    calibrated: CalibratedModel, images: Tensor, damping: float, progress: Progress | None = None
) -> None:
    """Choose weights and biases of ``calibrated`` anew, for what each linear layer really gets.

    In place, by the formula at the head of this module. Scales, widths and the method of rounding stay.
    damping: above 0, the larger the less changes.  images, progress: as of :func:`correct_bias`.
    ValueError for a damping that is not above 0.
    """
    if not damping > 0:
        raise ValueError(f"Damping must be above 0, not {damping!r}")
    plan = calibrated.plan

    def refitted(layer: Layer, planned: WeightPlan, rows: Rows) -> Ints64:
        exact = layer.weight.double().numpy() / planned.scale.reshape(-1, 1)
        if layer.inputs[0] != IMAGE:
            exact = exact * plan.affine(layer.inputs[0]).scale
        # From the float weights, not the codes: so they are rounded once.
        weight = rows.refit(exact, damping)
        compensated = rows.inputs if plan.preset.weights == "gptq" else None
        return round_weights(weight, np.ones(len(weight)), planned.bits, compensated)

    _settle(calibrated, images, refitted, importance(calibrated.network, images), progress)


def importance(network: Network, images: Tensor) -> dict[str, Floats]:
    """{linear layer: squared gradient of the output's size by each of its rows [rows]}."""
    layers = [node.name for node in network.of("patch_embed", "linear")]
    found: dict[str, list[Tensor]] = {name: [] for name in layers}
    for part in images.split(GRADIENT_BATCH):
        slopes = propagate(network, part, {}).slopes
        for name in layers:
            found[name].append(slopes[name].double().square().sum(dim=-1).flatten())
    return {name: torch.cat(parts).numpy() for name, parts in found.items()}


def _settle(
    calibrated: CalibratedModel,
    images: Tensor,
    choose: Choose,
    counts: Mapping[str, Floats],
    progress: Progress | None,
) -> None:
    """Give every linear layer the codes that ``choose`` returns, and the bias that goes with them.

    counts: what each of a layer's rows counts; without any, all count alike.
    """
    network, weights = calibrated.network, calibrated.plan.weights
    walks = [_walk(calibrated, part) for part in images.split(BATCH)]
    for layer in network.of("patch_embed", "linear"):
        assert isinstance(layer, Linear | PatchEmbed)
        pairs = zip(*(next(walk) for walk in walks), strict=True)
        codes, exact = (torch.cat(parts).double().numpy() for parts in pairs)
        share = counts.get(layer.name, np.zeros(0))
        if not share.sum() > 0:
            share = np.ones(len(codes))
        planned = weights[layer.name]
        rows = Rows(codes, exact / planned.scale, share / share.sum())
        chosen = choose(layer, planned, rows)
        weights[layer.name] = replace(planned, codes=chosen, bias=rows.bias(chosen))
        if progress is not None:
            progress(1)


@torch.no_grad()
def _walk(calibrated: CalibratedModel, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Run the calibrated network beside the float one; stop at every linear layer.

    Yields its input's codes [rows, in] and its float output [rows, out]; goes on with the weights that the
    layer has by then.
    """
    network = calibrated.network
    exact, codes = {IMAGE: images.float()}, {IMAGE: images.float()}
    for node in network:
        exact[node.name] = node.forward(*(exact[name] for name in node.inputs))
        inputs = [codes[name] for name in node.inputs]
        if isinstance(node, Linear | PatchEmbed):
            yield calibrated.rows(node, inputs[0]).flatten(0, -2), exact[node.name].flatten(0, -2)
        codes[node.name] = calibrated.codes(node, inputs)
        for name in set(node.inputs):
            if network.consumers[name][-1] is node:
                del exact[name], codes[name]

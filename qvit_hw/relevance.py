# SPDX-License-Identifier: Apache-2.0
"""Layer-wise relevance propagation: which numbers inside a network its output consists of.

The output begins with one unit of relevance per image, shared out in proportion to its squared numbers.
Node by node it goes back to the inputs. A relevance is ``R = x * slope``; what is handed back are
slopes, so that nothing is divided by an x near 0, and a rule is a function with the node's values and a
derivative of its own:

============ ================================ ===================================================
node         rule                             why
============ ================================ ===================================================
linear       epsilon: R_i = sum_j x_i w_ji    the rule of LRP (Bach et al. 2015); epsilon damps
             R_j / (z_j + eps sign z_j)       outputs that are all cancellation
GELU         identity: R_i = R_o              one number in, one out
LayerNorm    its standard deviation is a      with it, the relevance of a scaled sum would always
             constant, the rest is linear     cancel to 0 (Ali et al., arXiv 2202.07304)
q.k, A.V     half to each factor              a product is due to both alike (AttnLRP, arXiv
                                              2402.05602)
softmax      gradient times input             its first-order expansion (AttnLRP)
all others   gradient times input             they are linear: epsilon 0
============ ================================ ===================================================

Relevance is conserved: what goes into a node comes out of it, but for the share of constants (biases, beta,
positions, and the constant term of softmax's expansion), which stays there.

From relevance to widths: an error d of a number x is a relative error d / x of its relevance, and
takes ``R * d / x = slope * d`` from the output. Errors of different numbers add up in squares:
:func:`relevance_errors` is the mean over images of ``sum (slope * d)**2``. LRP-QViT (arXiv 2401.11243)
propagates relevance in the same manner and gives more bits to layers with more relevance; how a width
changes a layer's error is not part of its score, and is of this one.

What an output consists of is not quite what an error does to it: the rules that conserve relevance change
derivatives. Without them, gradient times input throughout, slopes are the output's true first-order
response, relative to its size, and :func:`gradient_errors` foretells measured errors better.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qvit_hw.calibrated import CalibratedModel
from qvit_hw.network import (
    IMAGE,
    Activation,
    Attend,
    LayerNorm,
    Linear,
    Network,
    Node,
    Scores,
)

__all__ = ["EPSILON", "RULES", "Relevance", "gradient_errors", "propagate", "relevance_errors"]

EPSILON = 1e-4
"""The epsilon of linear layers, in units of the root mean square of the layer's output, per image."""
BATCH = 4
"""Images at once; every tensor of them is kept."""
Rule = Callable[[Node, Sequence[Tensor]], Tensor]


@dataclass(frozen=True, eq=False)
class Relevance:
    """Tensors of some images and the slopes that the output has along them, by name."""

    values: Mapping[str, Tensor]
    slopes: Mapping[str, Tensor]

    def of(self, name: str) -> Tensor:
        """Relevance of every number of a tensor."""
        return self.values[name] * self.slopes[name]


def damped(out: Tensor, factor: Tensor | float) -> Tensor:
    """``out`` with its derivative times ``factor``."""
    fixed = out.detach()
    return fixed + (out - fixed) * factor


def _linear(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    out = node.forward(*inputs)
    size = out.detach().abs()
    epsilon = EPSILON * size.square().mean(dim=list(range(1, size.ndim)), keepdim=True).sqrt()
    return damped(out, size / (size + epsilon).clamp_min(1e-30))


def _identity(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    x = inputs[0].detach()
    x = torch.where(x.abs() < 1e-6, 1e-6, x)  # f(x) / x is smooth at 0, where every f is 0
    return inputs[0] * (node.forward(x) / x)


def _layernorm(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    assert isinstance(node, LayerNorm)
    centred = inputs[0] - inputs[0].mean(dim=-1, keepdim=True)
    variance = centred.detach().square().mean(dim=-1, keepdim=True)
    return centred / (variance + node.eps).sqrt() * node.gamma + node.beta


def _half(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    return damped(node.forward(*inputs), 0.5)


RULES: Mapping[type[Node], Rule] = {
    Linear: _linear,
    Activation: _identity,
    LayerNorm: _layernorm,
    Scores: _half,
    Attend: _half,
}
"""Rules other than gradient times input."""


def propagate(
    network: Network, images: Tensor, rules: Mapping[type[Node], Rule] = RULES
) -> Relevance:
    """Propagate the relevance of the output back to all tensors, for uint8 images [B, C, H, W].

    The patch embedding's output is the last tensor to get any: behind it are raw pixels, with the
    normalisation in a bias.
    """
    values: dict[str, Tensor] = {}

    def keep(node: Node, out: Tensor) -> Tensor:
        values[node.name] = out
        return out

    out = network.run(images, keep)
    energy = out.square().flatten(1).sum(dim=1).clamp_min(1e-30)
    slopes = {network.output.name: out / energy.reshape(-1, *[1] * (out.ndim - 1))}
    for node in reversed(network.nodes):
        if IMAGE in node.inputs:
            continue
        inputs = [values[name].detach().requires_grad_() for name in node.inputs]
        with torch.enable_grad():
            rule = rules.get(type(node))
            again = node.forward(*inputs) if rule is None else rule(node, inputs)
        for name, slope in zip(
            node.inputs, torch.autograd.grad(again, inputs, slopes[node.name]), strict=True
        ):
            slopes[name] = slopes[name] + slope if name in slopes else slope
    return Relevance(values, slopes)


def relevance_errors(
    calibrated: CalibratedModel,
    images: Tensor,
    names: Collection[str],
    rules: Mapping[type[Node], Rule] = RULES,
) -> dict[str, float]:
    """What each of these quantisers alone takes from the output's relevance, squared; see the module."""
    network = calibrated.network
    errors = dict.fromkeys(names, 0.0)
    for part in images.split(BATCH):
        relevance = propagate(network, part, rules)
        values = {**relevance.values, IMAGE: part.float()}
        for name in names:
            node = network[name.removesuffix(".weight")]
            with torch.no_grad():
                rounded = calibrated.alone(name, [values[each] for each in node.inputs])
            lost = (rounded - values[node.name]) * relevance.slopes[node.name]
            errors[name] += float(lost.double().square().sum()) / len(images)
    return errors


def gradient_errors(
    calibrated: CalibratedModel, images: Tensor, names: Collection[str]
) -> dict[str, float]:
    """What each of these quantisers alone does to the output's size to first order, squared, relative."""
    return relevance_errors(calibrated, images, names, {})

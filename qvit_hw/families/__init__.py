# SPDX-License-Identifier: Apache-2.0
"""Adapters: a timm model as a :class:`~qvit_hw.network.Network`, one module for each family."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from qvit_hw.errors import UserError
from qvit_hw.families.swin import lower_swin
from qvit_hw.families.vit import lower_vit
from qvit_hw.network import Network

__all__ = ["SUPPORTED", "lower"]

_ADAPTERS: dict[type[nn.Module], Callable[..., Network]] = {
    VisionTransformer: lower_vit,
    VisionTransformerDistilled: lower_vit,
    SwinTransformer: lower_swin,
}
SUPPORTED = tuple(_ADAPTERS)
"""Classes that :func:`lower` knows; not their subclasses, which may compute something else."""


def lower(
    model: nn.Module,
    mean: Sequence[float],
    std: Sequence[float],
    input_size: tuple[int, int, int] | None = None,
) -> Network:
    """Return the network that computes, from raw pixels, what ``model`` computes in eval mode.

    Args:
        model: of one of SUPPORTED; it stays as it is.
        mean: per channel, in units of pixel / 255.
        std: per channel, in units of pixel / 255.
        input_size: channels, height, width that the model must have; None: whatever it has.

    Raises UserError, in one sentence with the name of the module, for whatever is not understood.
    """
    if type(model) not in _ADAPTERS:
        names = [kind.__name__ for kind in SUPPORTED]
        known = f"{', '.join(names[:-1])} or {names[-1]}"
        raise UserError(f"Network must be timm's {known}, not {type(model).__name__}.")
    network = _ADAPTERS[type(model)](model, mean, std)
    if input_size is not None and network.input_size != tuple(input_size):
        raise UserError(
            f"Input of the model must be {network.input_size}, not {tuple(input_size)}."
        )
    return network

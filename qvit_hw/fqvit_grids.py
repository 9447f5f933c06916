# SPDX-License-Identifier: Apache-2.0
"""A network calibrated as FQ-ViT: golden nodes, what their integers mean, and how a bundle keeps that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from golden.fqvit import FqSoftmaxSpec
from golden.node import Node
from golden.vit import VitModel
from qvit_hw.errors import UserError
from qvit_hw.grids import AffineGrid
from qvit_hw.network import IMAGE, Linear, Network, PatchEmbed
from qvit_hw.presets import find_preset

if TYPE_CHECKING:
    from qvit_hw.bundle import Bundle

__all__ = ["FqCalibrated", "FqGrid", "LevelGrid", "load_fqvit", "pack_fqvit", "rebuild_fqvit"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class LevelGrid:
    """Softmax codes, ``p = 2**-code``; the last one, ``2**code_bits``, is 0."""

    spec: FqSoftmaxSpec

    def values(self, codes: Tensor) -> Tensor:
        """What codes mean, float64."""
        value = torch.exp2(-codes.double())
        return torch.where(codes == self.spec.last_code, torch.zeros_like(value), value)


FqGrid = AffineGrid | LevelGrid


@dataclass(frozen=True, eq=False)
class FqCalibrated:
    """A calibrated network.

    nodes: of the golden model, in order.  grids: what the integers of each node mean, in the units of the
    float network's tensors (so scores are base-2 exponents).  places: for each tensor of the float network
    the golden node that has its codes: "<name>.codes" behind a linear layer, else the node of the same name.
    """

    nodes: list[Node] = field(default_factory=list)
    grids: dict[str, FqGrid] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)

    def values(self, name: str, codes: Any) -> Floats:
        """What integers of a golden node mean."""
        return np.asarray(self.grids[name].values(torch.tensor(np.asarray(codes)).double()).numpy())

    def rounded(self, network: Network) -> Iterator[tuple[Floats, Floats]]:
        """The weights [out, in] of every layer, the float network's and the rounded ones, in one unit."""
        params = {node.name: node.params for node in self.nodes}
        for node in _layers(network):
            unit = 1.0 if IMAGE in node.inputs else self._scale(self.places[node.inputs[0]])
            scale = np.reshape(self._scale(node.name), (-1, 1))
            rounded = np.asarray(params[node.name].weight * scale, np.float64)
            yield node.weight.double().numpy() * unit, rounded

    def _scale(self, name: str) -> Floats:
        grid = self.grids[name]
        if not isinstance(grid, AffineGrid):
            raise UserError(f"The bundle's plan is not of its network: {name!r} has no scale.")
        return grid.scale


def pack_fqvit(made: FqCalibrated) -> tuple[dict[str, Any], dict[str, Floats]]:
    """Return (JSON entry, float64 tensors): a bundle's "plan" and scales."""
    tensors: dict[str, Floats] = {}
    grids: dict[str, Any] = {}
    for name, grid in made.grids.items():
        if isinstance(grid, LevelGrid):
            grids[name] = {"levels": grid.spec.last_code + 1}
            continue
        scale: Any = float(grid.scale) if not grid.folds else f"{name}/scale"
        if grid.folds:
            tensors[scale] = np.ascontiguousarray(grid.scale, np.float64)
        grids[name] = {"scale": scale, "zero_point": grid.zero_point, "bits": grid.bits}
    entry = {"preset": asdict(find_preset("fqvit")), "grids": grids, "places": made.places}
    return entry, tensors


def load_fqvit(
    entry: Mapping[str, Any], scales: Mapping[str, Floats], model: VitModel
) -> FqCalibrated:
    """Return what :func:`pack_fqvit` packed; ``model``: the bundle's golden network.

    UserError where the parts are not those of such a network.
    """
    try:
        grids = {
            name: _grid(part, scales, model[name].spec) for name, part in entry["grids"].items()
        }
        places = {str(name): str(place) for name, place in entry["places"].items()}
        known = {node.name for node in model.nodes}
        if set(grids) != known or not set(places.values()) <= known:
            raise ValueError("grids and nodes have different names")
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"The bundle's plan is not of its network: {error}.") from error
    return FqCalibrated(list(model.nodes), grids, places)


def rebuild_fqvit(bundle: Bundle, network: Network) -> FqCalibrated:
    """Return what a bundle of the preset keeps; UserError where it is not of this float network."""
    made = load_fqvit(bundle.plan, bundle.scales, bundle.network)
    if (
        list(made.places) != [node.name for node in network]
        or network.input_size != bundle.network.input_size
        or any(
            np.shape(bundle.network[layer.name].params.weight) != tuple(layer.weight.shape)
            for layer in _layers(network)
        )
    ):
        name = bundle.manifest["model"].get("name")
        raise UserError(
            f"Bundle {str(bundle.path)!r} is not of this model: it was made of {name!r}."
        )
    return made


def _layers(network: Network) -> list[Linear | PatchEmbed]:
    return [node for node in network if isinstance(node, Linear | PatchEmbed)]


def _grid(part: Mapping[str, Any], scales: Mapping[str, Floats], spec: Any) -> FqGrid:
    if "levels" in part:
        if not isinstance(spec, FqSoftmaxSpec) or part["levels"] != spec.last_code + 1:
            raise ValueError(f"levels must be a softmax's, not {part['levels']!r}")
        return LevelGrid(spec=spec)
    scale = part["scale"]
    values = scales[scale] if isinstance(scale, str) else np.asarray(float(scale))
    return AffineGrid(scale=values, zero_point=int(part["zero_point"]), bits=int(part["bits"]))

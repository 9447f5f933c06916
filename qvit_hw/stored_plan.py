# SPDX-License-Identifier: Apache-2.0
"""A plan as a bundle keeps it: its float scales. The integers are the golden model's own nodes.

With them and the float network, :func:`rebuild` makes the calibrated model again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from golden.vit import VitModel
from qvit_hw.calibrated import CalibratedModel
from qvit_hw.errors import UserError
from qvit_hw.grids import AffineGrid, Grid, LogGrid
from qvit_hw.network import Linear, Network, PatchEmbed
from qvit_hw.plan import Plan, WeightPlan
from qvit_hw.presets import PRESETS, Preset
from qvit_hw.quantize import LayerNormPlan, PtfGrid

if TYPE_CHECKING:
    from qvit_hw.bundle import Bundle

__all__ = ["is_golden_only", "load_plan", "pack_plan", "rebuild"]

Floats = npt.NDArray[np.float64]
NORM_ARRAYS = ("gain", "offset", "scale", "rest")


def pack_plan(plan: Plan) -> tuple[dict[str, Any], dict[str, Floats]]:
    """Return (JSON entry, float64 tensors) of a plan."""
    tensors: dict[str, Floats] = {}

    def array(name: str, values: Any) -> str | float:
        values = np.asarray(values, np.float64)
        if not values.ndim:
            return float(values)
        tensors[name] = np.ascontiguousarray(values)
        return name

    grids: dict[str, Any] = {}
    for name, grid in plan.grids.items():
        if isinstance(grid, LogGrid):
            grids[name] = {"gain": grid.gain}
            continue
        grids[name] = {
            "scale": array(f"{name}/scale", grid.scale),
            "zero_point": grid.zero_point,
            "bits": grid.bits,
            "rest": array(f"{name}/rest", grid.rest),
        }
    streams = {
        name: {
            "scale": grid.scale,
            "zero_point": grid.zero_point,
            "bits": grid.bits,
            "shift": array(f"{name}/shift", grid.shift),
        }
        for name, grid in plan.streams.items()
    }
    norms = {
        name: {
            "input": next(key for key, grid in plan.streams.items() if grid is norm.input),
            "zero_point": norm.zero_point,
            "bits": norm.bits,
            "eps": norm.eps,
        }
        | {key: array(f"{name}/norm_{key}", getattr(norm, key)) for key in NORM_ARRAYS}
        for name, norm in plan.norms.items()
    }
    weights = {
        name: {"bits": weight.bits, "scale": array(f"{name}/weight_scale", weight.scale)}
        for name, weight in plan.weights.items()
    }
    entry = {
        "preset": asdict(plan.preset),
        "grids": grids,
        "streams": streams,
        "norms": norms,
        "weights": weights,
    }
    return entry, tensors


def load_plan(entry: Mapping[str, Any], scales: Mapping[str, Floats], model: VitModel) -> Plan:
    """Return the plan of :func:`pack_plan`'s parts and the golden model that was made from it.

    KeyError, TypeError, ValueError or AttributeError where the parts do not belong together.
    """
    nodes = {node.name: node for node in model.nodes}

    def array(value: Any) -> Floats:
        return np.asarray(scales[value] if isinstance(value, str) else float(value), np.float64)

    softmax = {name: node for name, node in nodes.items() if node.op == "softmax"}
    layernorm_specs = [node.spec for node in model.nodes if node.op == "layernorm"]
    softmax_specs = [node.spec for node in softmax.values()]
    preset = Preset(**entry["preset"])
    plan = Plan(preset, layernorm_specs[0], softmax_specs[0])
    for name, part in entry["grids"].items():
        grid: Grid
        if "gain" in part:
            grid = LogGrid(spec=nodes[name].spec, gain=float(part["gain"]))
        else:
            grid = AffineGrid(
                scale=array(part["scale"]),
                zero_point=int(part["zero_point"]),
                bits=int(part["bits"]),
                rest=array(part["rest"]),
            )
        plan.grids[name] = grid
    for name, part in entry["streams"].items():
        told = array(part["shift"])
        if not ((told >= 0) & (told < 64)).all():
            raise ValueError(f"shifts of {name!r} are not from 0 to 63")
        shift = told.astype(np.int64)
        plan.streams[name] = PtfGrid(
            float(part["scale"]), int(part["zero_point"]), shift, int(part["bits"])
        )
    for name, part in entry["norms"].items():
        plan.norms[name] = LayerNormPlan(
            params=nodes[name].params,
            input=plan.streams[part["input"]],
            zero_point=int(part["zero_point"]),
            bits=int(part["bits"]),
            eps=float(part["eps"]),
            **{key: array(part[key]) for key in NORM_ARRAYS},
        )
    for name, part in entry["weights"].items():
        params = nodes[name].params
        plan.weights[name] = WeightPlan(
            np.asarray(params.weight, np.int64),
            np.asarray(params.bias, np.int64),
            array(part["scale"]),
            int(part["bits"]),
        )
    plan.softmax.update({name: node.params for name, node in softmax.items()})
    return plan


def is_golden_only(bundle: Bundle) -> bool:
    """Whether the bundle's preset is for the golden model alone: there is no plan, then."""
    preset = PRESETS.get(bundle.manifest["preset"])
    return preset is not None and preset.golden_only


def rebuild(bundle: Bundle, network: Network) -> CalibratedModel:
    """Return the calibrated model of a bundle and the float network that it was made from.

    UserError where they do not belong together.
    """
    name = bundle.manifest["model"].get("name")
    if is_golden_only(bundle):
        raise UserError(
            f"Bundle {str(bundle.path)!r} has no calibrated model: preset {bundle.manifest['preset']!r} is "
            "for the golden model alone."
        )
    try:
        plan = load_plan(bundle.plan, bundle.scales, bundle.network)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"Bundle {str(bundle.path)!r} has parts that disagree: {error}.") from error
    ours = [(node.name, node.op, node.inputs) for node in network]
    theirs = [(node.name, node.op, tuple(node.inputs)) for node in bundle.network.nodes]
    if ours != theirs or network.input_size != bundle.network.input_size:
        raise UserError(
            f"Bundle {str(bundle.path)!r} is not of this model: it was made of {name!r}."
        )
    for node in network:
        layer = isinstance(node, Linear | PatchEmbed)
        if node.name not in plan.grids or (layer and node.name not in plan.weights):
            raise UserError(
                f"Bundle {str(bundle.path)!r} has parts that disagree: no scales of {node.name!r}."
            )
        if not isinstance(node, Linear | PatchEmbed):
            continue
        if plan.weights[node.name].codes.shape != tuple(node.weight.shape):
            raise UserError(f"Bundle {str(bundle.path)!r} has other weights at {node.name!r}.")
    return CalibratedModel(network, plan)

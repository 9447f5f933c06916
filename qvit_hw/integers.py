# SPDX-License-Identifier: Apache-2.0
"""From a plan to the golden model: one integer node for each node of the network."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from golden.attention import ScoreParams, ScoreSpec
from golden.gelu import GeluParams, GeluSpec
from golden.linear import LinearParams, LinearSpec
from golden.patch_embed import PatchEmbedSpec
from golden.pool import PoolParams, PoolSpec
from golden.requant import RequantParams, factor
from golden.residual import ResidualParams, ResidualSpec, factors
from golden.vit import Node as GoldenNode
from qvit_hw.grids import AffineGrid, LogGrid
from qvit_hw.network import (
    FUNCTIONS,
    Activation,
    Attend,
    Embed,
    LayerNorm,
    Linear,
    Merge,
    Network,
    Node,
    PatchEmbed,
    Pool,
    Residual,
    Scores,
    Select,
    Softmax,
    Start,
)
from qvit_hw.plan import Plan, count_tokens, pool_ratio, residual_spec
from qvit_hw.quantize import PtfGrid

__all__ = ["export"]

Ints64 = npt.NDArray[np.int64]


def export(network: Network, plan: Plan) -> list[GoldenNode]:
    """The golden model's nodes, under the same names and in the same order."""
    exporter = _Exporter(network, plan)
    nodes = []
    for node in network:
        spec, params, layout = getattr(exporter, node.op)(node)
        nodes.append(
            GoldenNode(
                name=node.name,
                op=node.op,
                inputs=node.inputs,
                spec=spec,
                params=params,
                layout=layout,
            )
        )
    return nodes


Parts = tuple[Any, Any, dict[str, Any]]


def requantiser(ratio: Any, zero_point: int) -> RequantParams:
    """Multipliers and shifts for these ratios of scales, one per channel."""
    pairs = [factor(Fraction(float(each))) for each in np.atleast_1d(ratio)]
    return RequantParams(
        multiplier=np.array([multiplier for multiplier, _ in pairs], dtype=np.int64),
        shift=np.array([shift for _, shift in pairs], dtype=np.int64),
        zero_point=zero_point,
    )


def _array(values: torch.Tensor | None) -> Any:
    return None if values is None else values.numpy()


class _Exporter:
    def __init__(self, network: Network, plan: Plan) -> None:
        self.network, self.plan = network, plan
        preset = plan.preset
        self.unit: ResidualSpec = residual_spec(preset.residual_bits, preset.max_shift)

    def grid(self, name: str) -> AffineGrid:
        return self.plan.affine(name)

    def per_head(self, name: str, heads: int) -> npt.NDArray[np.float64]:
        """Scales of q, k and v: [3, heads]."""
        return self.grid(name).scale.reshape(3, heads, -1)[:, :, 0]

    # ------------------------------------------------------------------------------- matrices

    def patch_embed(self, node: PatchEmbed) -> Parts:
        planned = self.plan.weights[node.name]
        spec = PatchEmbedSpec(patch=node.patch, channels=node.channels, weight_bits=planned.bits)
        return spec, LinearParams(weight=planned.codes, bias=planned.bias), {}

    def linear(self, node: Linear) -> Parts:
        planned, raw = self.plan.weights[node.name], self.network.kind(node) == "accumulators"
        requant, out_bits = None, None
        if not raw:
            grid = self.grid(node.name)
            requant, out_bits = requantiser(planned.scale / grid.scale, grid.zero_point), grid.bits
        spec = LinearSpec(
            in_features=planned.codes.shape[1],
            in_bits=self.grid(node.inputs[0]).bits,
            weight_bits=planned.bits,
            out_bits=out_bits,
        )
        return spec, LinearParams(weight=planned.codes, bias=planned.bias, requant=requant), {}

    def scores(self, node: Scores) -> Parts:
        source, grid = self.grid(node.inputs[0]), self.grid(node.name)
        scale = self.per_head(node.inputs[0], node.heads)
        octaves = node.scale * node.LOG2E / float(grid.scale)
        spec = ScoreSpec(
            head_dim=source.scale.size // (3 * node.heads),
            bits=source.bits,
            score_bits=grid.bits,
        )
        bias = None
        if node.bias is not None:
            half = 1 << (grid.bits - 1)
            exact = node.bias.double().numpy() * (node.LOG2E / float(grid.scale))
            bias = np.floor(exact + 0.5).clip(-half, half - 1).astype(np.int64)
        params = ScoreParams(requant=requantiser(scale[0] * scale[1] * octaves, 0), bias=bias)
        return spec, params, {"heads": node.heads, "windows": _array(node.windows)}

    def softmax(self, node: Softmax) -> Parts:
        layout = {"mask": _array(node.mask)}
        return self.plan.softmax_spec, self.plan.softmax[node.name], layout

    def attend(self, node: Attend) -> Parts:
        log, grid = self.plan.grids[node.inputs[0]], self.grid(node.name)
        assert isinstance(log, LogGrid)
        spec = self.plan.attend_spec(node)
        scale = self.per_head(node.inputs[1], node.heads)[2]
        params = requantiser(scale * log.gain / grid.unit * 2.0**-spec.top, grid.zero_point)
        return spec, params, {"heads": node.heads, "windows": _array(node.windows)}

    # --------------------------------------------------------------------------------- stream

    def embed(self, node: Embed) -> Parts:
        grid = self.plan.streams[f"{node.name}/positions"]
        plain = AffineGrid(scale=grid.channel_scale, zero_point=grid.zero_point, bits=grid.bits)
        prefix = self.grid(node.name).codes(node.prefix)
        layout = {
            "positions": plain.codes(node.positions).numpy().astype(np.int64),
            "prefix": prefix.numpy().astype(np.int64),
        }
        has_positions = bool(node.positions.any())
        return self.unit, self.onto(node, grid if has_positions else None, node.inputs[0]), layout

    def start(self, node: Start) -> Parts:
        source = self.network[node.inputs[0]]
        if self.network.kind(source) == "accumulators":
            return self.unit, self.onto(node, None, source.name), {"source": "branch"}
        features = self.grid(source.name)
        count = self.plan.streams[node.name].shift.size
        flat = PtfGrid(features.unit, features.zero_point, np.zeros(count, np.int64), features.bits)
        return self.unit, self.onto(node, flat, None), {"source": "stream"}

    def residual(self, node: Residual) -> Parts:
        return self.unit, self.onto(node, self.plan.streams[node.inputs[0]], node.inputs[1]), {}

    def onto(self, node: Node, before: PtfGrid | None, branch: str | None) -> ResidualParams:
        """Parameters of a residual unit that puts a stream and a branch onto the node's grid."""
        after = self.plan.streams[node.name]
        none = np.zeros(after.shift.size, np.int64)
        scale = none / 1.0 if branch is None else self.plan.weights[branch].scale
        kept = Fraction(0) if before is None else Fraction(before.scale / after.scale)
        gain, multiplier, shift = factors(
            kept, [Fraction(float(each)) for each in scale / after.scale], self.unit
        )
        return ResidualParams(
            in_zero_point=0 if before is None else before.zero_point,
            in_shift=none if before is None else before.shift,
            gain=gain,
            multiplier=multiplier,
            shift=shift,
            zero_point=after.zero_point,
            out_shift=after.shift,
        )

    def merge(self, node: Merge) -> Parts:
        return None, None, {"index": node.index.numpy()}

    # ------------------------------------------------------------------------------- features

    def layernorm(self, node: LayerNorm) -> Parts:
        return self.plan.layernorm_spec, self.plan.norms[node.name].params, {}

    def gelu(self, node: Activation) -> Parts:
        source, grid = self.grid(node.inputs[0]), self.grid(node.name)
        half = 1 << (source.bits - 1)
        values = source.values(torch.arange(-half, half).double())
        table = grid.codes(FUNCTIONS[node.function](values)).numpy().astype(np.int64)
        return GeluSpec(in_bits=source.bits, out_bits=grid.bits), GeluParams(table=table), {}

    def select(self, node: Select) -> Parts:
        return None, None, {"tokens": node.tokens}

    def pool(self, node: Pool) -> Parts:
        source, grid = self.grid(node.inputs[0]), self.grid(node.name)
        spec = PoolSpec(in_bits=source.bits, out_bits=grid.bits)
        ratio = pool_ratio(source, grid, count_tokens(self.network, node.inputs[0]) - node.first)
        params = PoolParams(
            in_zero_point=source.zero_point, requant=requantiser(ratio, grid.zero_point)
        )
        return spec, params, {"first": node.first}

# SPDX-License-Identifier: Apache-2.0
"""Calibration of the preset "fqvit": a whole network on FQ-ViT's datapath, for the golden model alone.

Every tensor has the quantiser that it has there, uniform, asymmetric, 8 bits, from what was observed. No
scale is snapped: a ratio of scales has the 16 significant bits of a multiplier (wrong by 2**-17 at most, two
thousandths of a code), where the program has the 24 bits of float32.

    network node               golden nodes
    patch_embed, qkv, proj,    the layer's accumulators, and behind them "<name>.codes": fqvit_requant
      fc1, fc2
    head                       its accumulators, which are the logits
    embed                      fqvit_embed on the codes of the patches
    layernorm, softmax         fqvit_layernorm, fqvit_softmax
    scores, attend             fqvit_scores, fqvit_attend: one grid for q, k and v; no gain behind A.V
    residual                   fqvit_residual on the codes of the branch
    gelu                       gelu, a table; select stays what it is

Where this cannot be the program, or need not be:

- Images are raw pixels, exact; standard deviations are in the weights when those are rounded. The program
  rounds normalised pixels to 8 bits (DeiT) or leaves them alone (ViT).
- The input of GELU has the preset's bits; there it is a float. Biases are whole accumulators; there, floats.
- Patches and positions are rounded once each, class and register tokens only as part of the stream. There the
  class token's position is rounded on its own, and patches and class token once more together.
- Weights of the most negative code are -127 (golden.linear has no -128). The head's have one scale, and no
  8-bit quantiser stands behind its logits, which could make them equal.
- LayerScale, which FQ-ViT's networks do not have, is in the weights of the layer before it.
- Ranges come from the float network alone, PTF shifts from all images; there the softmax is already integer
  in the last batch, which alone decides on the shifts. A range is widened to hold zero.

Source: megvii-research/FQ-ViT, models/vit_quant.py, models/layers_quant.py, models/ptq.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from golden.fqvit import FqLayerNormSpec, FqSoftmaxSpec
from golden.fqvit_block import (
    FqAttendParams,
    FqAttendSpec,
    FqResidualParams,
    FqScoreParams,
    FqScoreSpec,
)
from golden.gelu import GeluParams, GeluSpec
from golden.linear import LinearParams, LinearSpec
from golden.node import Node as GoldenNode
from golden.patch_embed import PatchEmbedSpec
from golden.requant import RequantSpec
from golden.residual import ResidualSpec, factors
from qvit_hw import fqvit
from qvit_hw.errors import UserError
from qvit_hw.fqvit_grids import FqCalibrated, FqGrid, LevelGrid
from qvit_hw.fqvit_observation import (
    FqObservations,
    check_network,
    feeds_gelu,
    is_head,
    observe_fqvit,
)
from qvit_hw.grids import AffineGrid
from qvit_hw.integers import requantiser
from qvit_hw.network import (
    FUNCTIONS,
    Activation,
    Attend,
    Embed,
    LayerNorm,
    Linear,
    Network,
    Node,
    PatchEmbed,
    Residual,
    Scores,
    Select,
    Softmax,
)
from qvit_hw.plan import count_tokens
from qvit_hw.presets import Preset, find_preset
from qvit_hw.quantize import Grid, PtfGrid, affine_grid

__all__ = ["calibrate_fqvit", "check_options"]

Floats = npt.NDArray[np.float64]
Ints64 = npt.NDArray[np.int64]

UNIT = ResidualSpec(acc_bits=9, multiplier_bits=24)
"""M2 is a scale of the branch over the stream's finest one, about 8: with 24 bits for it, M1 has 21."""


def calibrate_fqvit(
    network: Network,
    images: Tensor,
    observer: str = "minmax",
    mean: Sequence[float] | None = None,
    batch: int = 8,
    watch: Callable[[str, int], Callable[[int], None]] | None = None,
) -> FqCalibrated:
    """Observe a float network on uint8 images [B, C, H, W] and quantise it as FQ-ViT does.

    mean: of pixels as the model has it, per channel, in units of pixel / 255. FQ-ViT's weights meet pixels
    less their mean, so that is where rounding them changes nothing; without a mean it is black.  watch: gets
    the name and the length of a long part, and returns what counts its steps. UserError for a network that
    FQ-ViT has no arithmetic for, and for activations without a range.
    """
    check_network(network)
    preset = find_preset("fqvit")
    progress = None if watch is None else watch("observing", 2 * len(images))
    seen = observe_fqvit(network, images, preset, observer, batch, progress)
    pixels = np.zeros(network.input_size[0]) if mean is None else np.asarray(mean, np.float64)
    return _Builder(network, seen, preset, 255 * pixels).made


def check_options(given: Mapping[str, bool]) -> None:
    """Raise UserError for the first option that is given: FQ-ViT has no choice there."""
    for option in (name for name, is_given in given.items() if is_given):
        raise UserError(f"Preset 'fqvit' is FQ-ViT's own arithmetic: it does not go with {option}.")


def even(x: Any) -> Ints64:
    """Nearest whole numbers, of two the even one: the program's rounding."""
    return np.asarray(np.rint(np.asarray(x, np.float64)), np.int64)


def coded(values: Tensor, grid: AffineGrid) -> Ints64:
    """Codes of float values [..., C]."""
    half = 1 << (grid.bits - 1)
    return even(values.double().numpy() / grid.scale + grid.zero_point).clip(-half, half - 1)


def affine(grid: Grid) -> AffineGrid:
    """A uniform grid as those of the calibrated model are."""
    return AffineGrid(scale=np.asarray(grid.scale), zero_point=grid.zero_point, bits=grid.bits)


def stream_grid(grid: PtfGrid) -> AffineGrid:
    """A PTF grid, likewise."""
    return AffineGrid(scale=grid.channel_scale, zero_point=grid.zero_point, bits=grid.bits)


def weight_scales(weight: Floats, bias: Floats, bits: int) -> Floats:
    """The scale of each row of weights [out, in]: the largest magnitude is 127.5 codes.

    A row that is next to nothing beside the others, or beside its bias (in units of the input), has a scale
    that keeps its bias and its multiplier in range.
    """
    reach = np.abs(weight).max(axis=1) / (2**bits - 1) * 2
    scale = np.maximum(np.maximum(reach, reach.max() * 2.0**-24), np.abs(bias) * 2.0**-30)
    return np.where(scale > 0, scale, 1.0)


@contextmanager
def at(node: Node) -> Iterator[None]:
    """Let a UserError say where it is."""
    try:
        yield
    except UserError as error:
        raise UserError(f"At {node.name!r}: {error}") from error


class _Builder:
    """Makes golden nodes of network nodes, one method an operator."""

    def __init__(
        self, network: Network, seen: FqObservations, preset: Preset, pixels: Floats
    ) -> None:
        """``pixels``: where rounding the first weights shall change nothing, per channel."""
        self.network, self.seen, self.preset, self.pixels = network, seen, preset, pixels
        self.made = FqCalibrated()
        self.softmax_specs: dict[str, FqSoftmaxSpec] = {}
        for node in network:
            step: Callable[[Any], None] = getattr(self, node.op)
            step(node)

    def add(self, node: Node, grid: FqGrid, op: str, parts: tuple[Any, Any], **layout: Any) -> None:
        """Add the golden node of a node; parts: spec and params."""
        inputs = tuple(self.made.places.get(name, name) for name in node.inputs)
        made = GoldenNode(
            name=node.name, op=op, inputs=inputs, spec=parts[0], params=parts[1], layout=layout
        )
        self.put(node.name, made, grid)

    def put(self, tensor: str, node: GoldenNode, grid: FqGrid) -> None:
        """Add a golden node, which has the codes of a network's tensor until another one has."""
        self.made.nodes.append(node)
        self.made.grids[node.name], self.made.places[tensor] = grid, node.name

    def uniform(self, name: str, bits: int | None = None) -> Grid:
        """The grid of what was observed at a tensor."""
        return affine_grid(*self.seen.ranges[name], self.preset.act_bits if bits is None else bits)

    def grid(self, name: str) -> AffineGrid:
        """The grid of the codes of a network's tensor."""
        grid = self.made.grids[self.made.places[name]]
        assert isinstance(grid, AffineGrid), name
        return grid

    # ------------------------------------------------------------------------------- matrices

    def patch_embed(self, node: PatchEmbed) -> None:
        spec = PatchEmbedSpec(
            patch=node.patch, channels=node.channels, weight_bits=self.preset.weight_bits
        )
        self.matrix(node, spec, np.repeat(self.pixels, node.patch**2), 1.0, 0)

    def linear(self, node: Linear) -> None:
        grid = self.grid(node.inputs[0])
        spec = LinearSpec(
            in_features=node.weight.shape[1],
            in_bits=grid.bits,
            weight_bits=self.preset.weight_bits,
            out_bits=None,
        )
        self.matrix(node, spec, np.zeros(()), float(grid.scale), grid.zero_point)

    def matrix(
        self,
        node: PatchEmbed | Linear,
        spec: PatchEmbedSpec | LinearSpec,
        centre: Floats,
        unit: float,
        zero_point: int,
    ) -> None:
        """A layer's accumulators, and their codes.

        Of the inputs: ``centre``, where rounding the weights shall change nothing, ``unit``, ``zero_point``.
        """
        weight, bias = node.weight.double().numpy(), node.bias.double().numpy()
        scale = weight_scales(weight, bias / unit, self.preset.weight_bits)
        if is_head(self.network, node):
            scale = np.full_like(scale, scale.max())
        limit = (1 << (self.preset.weight_bits - 1)) - 1
        codes = even(weight / scale[:, None]).clip(-limit, limit)
        bias = bias + (weight - codes * scale[:, None]) @ np.broadcast_to(centre, weight.shape[1:])
        params = LinearParams(
            weight=codes, bias=even(bias / (unit * scale)) - zero_point * codes.sum(axis=1)
        )
        self.add(node, AffineGrid(scale=unit * scale, bits=32), node.op, (spec, params))
        if is_head(self.network, node):
            return
        wide = self.preset.gelu_bits if feeds_gelu(self.network, node) else None
        out = self.uniform(node.name, wide)
        codes_of = GoldenNode(
            name=f"{node.name}.codes",
            op="fqvit_requant",
            inputs=(node.name,),
            spec=RequantSpec(out_bits=out.bits),
            params=requantiser(unit * scale / out.scale, out.zero_point),
        )
        self.put(node.name, codes_of, affine(out))

    # -------------------------------------------------------------------------------- stream

    def embed(self, node: Embed) -> None:
        flat = np.zeros(node.positions.shape[1], np.int64)
        before = PtfGrid(0.0, 0, flat, self.preset.act_bits)  # no positions: nothing but zeros
        positions = np.zeros(node.positions.shape, np.int64)
        if node.positions.any():
            ends = float(node.positions.min()), float(node.positions.max())
            grid = affine_grid(*ends, self.preset.act_bits)
            before = PtfGrid(grid.scale, grid.zero_point, flat, grid.bits)
            positions = coded(node.positions, affine(grid))
        prefix = coded(node.prefix, stream_grid(self.seen.streams[node.name]))
        self.onto(node, before, node.inputs[0], positions=positions, prefix=prefix)

    def residual(self, node: Residual) -> None:
        self.onto(node, self.seen.streams[node.inputs[0]], node.inputs[1])

    def onto(self, node: Node, before: PtfGrid, branch: str, **layout: Any) -> None:
        """The unit that adds a branch's codes to a stream and puts the sum onto the node's grid."""
        after, added = self.seen.streams[node.name], self.grid(branch)
        ratio = Fraction(float(added.scale) / after.scale)
        gain, multiplier, shift = factors(Fraction(before.scale / after.scale), [ratio], UNIT)
        params = FqResidualParams(
            in_zero_point=before.zero_point,
            in_shift=before.shift,
            gain=gain,
            multiplier=np.repeat(multiplier, after.shift.size),
            shift=shift,
            zero_point=after.zero_point,
            out_shift=after.shift,
            branch_zero_point=added.zero_point,
        )
        self.add(node, stream_grid(after), f"fqvit_{node.op}", (UNIT, params), **layout)

    def layernorm(self, node: LayerNorm) -> None:
        stream, out = self.seen.streams[node.inputs[0]], self.uniform(node.name)
        with at(node):
            params = fqvit.layernorm_params(node.gamma, node.beta, stream, out)
        spec = FqLayerNormSpec(
            max_channels=params.channels,
            in_bits=stream.bits,
            out_bits=out.bits,
            max_shift=self.preset.max_shift,
        )
        self.add(node, affine(out), "fqvit_layernorm", (spec, params))

    # ----------------------------------------------------------------------------- attention

    def scores(self, node: Scores) -> None:
        source, out = self.grid(node.inputs[0]), self.uniform(node.name)
        qkv = self.network[node.inputs[0]]
        assert isinstance(qkv, Linear), qkv.name
        ratio = float(source.scale) ** 2 * node.scale / out.scale
        depth = len(qkv.weight) // (3 * node.heads)
        spec = FqScoreSpec(head_dim=depth, bits=source.bits, score_bits=out.bits)
        params = FqScoreParams(requantiser(ratio, out.zero_point), zero_point=source.zero_point)
        octaves = Grid(out.scale * node.LOG2E, out.zero_point, out.bits)
        self.add(node, affine(octaves), "fqvit_scores", (spec, params), heads=node.heads)

    def softmax(self, node: Softmax) -> None:
        scores = self.uniform(node.inputs[0])
        qkv = self.network[self.network[node.inputs[0]].inputs[0]]
        spec = FqSoftmaxSpec(
            max_tokens=count_tokens(self.network, qkv.inputs[0]), code_bits=self.preset.code_bits
        )
        with at(node):
            params = fqvit.softmax_params(scores, spec)
        self.softmax_specs[node.name] = spec
        self.add(node, LevelGrid(spec=spec), "fqvit_softmax", (spec, params))

    def attend(self, node: Attend) -> None:
        source, out = self.grid(node.inputs[1]), self.uniform(node.name)
        spec = FqAttendSpec(
            softmax=self.softmax_specs[node.inputs[0]], value_bits=source.bits, out_bits=out.bits
        )
        ratio = requantiser(float(source.scale) * 2.0**-spec.top / out.scale, out.zero_point)
        params = FqAttendParams(
            multiplier=ratio.multiplier,
            shift=ratio.shift,
            zero_point=ratio.zero_point,
            value_zero_point=source.zero_point,
        )
        self.add(node, affine(out), "fqvit_attend", (spec, params), heads=node.heads)

    # ------------------------------------------------------------------------------ features

    def gelu(self, node: Activation) -> None:
        source, out = self.grid(node.inputs[0]), affine(self.uniform(node.name))
        half = 1 << (source.bits - 1)
        values = source.values(torch.arange(-half, half).double())
        table = coded(FUNCTIONS[node.function](values), out)
        spec = GeluSpec(in_bits=source.bits, out_bits=out.bits)
        self.add(node, out, "gelu", (spec, GeluParams(table=table)))

    def select(self, node: Select) -> None:
        self.add(node, self.grid(node.inputs[0]), "select", (None, None), tokens=node.tokens)

# SPDX-License-Identifier: Apache-2.0
"""The calibrated model: a timm ViT whose tensors live on the integer grids, computed in float.

``calibrate_model`` copies the network and replaces four kinds of module, wherever they stand:

- ``nn.LayerNorm``: input on its PTF grid, output on its int8 grid;
- ``nn.Linear`` and the patch embedding: int8 weights per output channel, int8 input;
- ``Attention``: q, k, v int8 with a scale per head, scores on the base-2 grid, probabilities
  ``2**-code`` (or ``2**(-code/2)``, the last code zero);
- ``Block``: the residual stream on the PTF grid of the norm that reads it.

The rest of timm's forward pass stays what it is. What a module computes on its integers is float: it
is the reference of what hardware should give, never the source of golden outputs. ``record`` returns
the integers that passed by.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from golden.layernorm import LayerNormSpec
from golden.softmax import SoftmaxParams, SoftmaxSpec
from qvit_hw.observation import Observations, Topology, split_heads
from qvit_hw.presets import Preset
from qvit_hw.quantize import (
    LayerNormPlan,
    affine_grid,
    plan_layernorm,
    plan_softmax,
    symmetric_scale,
)

__all__ = [
    "CalibratedAttention",
    "CalibratedBlock",
    "CalibratedLayerNorm",
    "CalibratedModel",
    "FakeQuant",
    "QuantLinear",
    "calibrate_model",
]

Sink = Callable[[str, str, torch.Tensor], None]
"""Takes (layer, kind, integers as a float tensor)."""


def _round(x: torch.Tensor) -> torch.Tensor:
    return torch.floor(x + 0.5)


def _tensor(values: Any) -> torch.Tensor:
    return torch.tensor(np.asarray(values, dtype=np.float32))


class FakeQuant(nn.Module):
    """Rounds to codes of ``bits`` bits and back. Scale and zero point broadcast to the input."""

    scale: torch.Tensor
    zero_point: torch.Tensor

    def __init__(self, scale: Any, zero_point: Any, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("scale", _tensor(scale))
        self.register_buffer("zero_point", _tensor(zero_point))

    def codes(self, x: torch.Tensor) -> torch.Tensor:
        """Return the codes of x, as floats."""
        half = 1 << (self.bits - 1)
        return _round(x / self.scale + self.zero_point).clamp(-half, half - 1)

    def values(self, codes: torch.Tensor) -> torch.Tensor:
        """Return what the codes mean."""
        return (codes - self.zero_point) * self.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x on the grid."""
        return self.values(self.codes(x))


class QuantLinear(nn.Module):
    """A linear layer with integer weights per output channel: ``codes``, ``scale``, float bias."""

    codes: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, bits: int, quant: nn.Module
    ) -> None:
        super().__init__()
        self.quant = quant
        rows = weight.detach().double().flatten(1)
        scale = symmetric_scale(rows.amin(1), rows.amax(1), bits)
        limit = (1 << (bits - 1)) - 1
        shaped = torch.tensor(scale).reshape(-1, *[1] * (weight.ndim - 1))
        codes = _round(weight.detach().double() / shaped).clamp(-limit, limit)
        self.register_buffer("codes", codes.to(torch.int16 if bits > 8 else torch.int8))
        self.register_buffer("scale", shaped.float())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``quant(x) @ W.T + bias``."""
        return nn.functional.linear(self.quant(x), self.codes * self.scale, self.bias)


class CalibratedLayerNorm(nn.Module):
    """LayerNorm from PTF codes to output codes.

    Returns the value of the output codes; if ``folded``, without the plan's scale and rest, which the
    linear layers behind it have taken over.
    """

    scale: torch.Tensor
    rest: torch.Tensor
    gain: torch.Tensor
    offset: torch.Tensor

    def __init__(self, name: str, plan: LayerNormPlan, folded: bool) -> None:
        super().__init__()
        self.name, self.plan, self.folded = name, plan, folded
        self.sink: Sink | None = None
        self.input = FakeQuant(plan.input.channel_scale, plan.input.zero_point, plan.input.bits)
        for part in ("scale", "rest", "gain", "offset"):
            self.register_buffer(part, torch.tensor(getattr(plan, part)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return LayerNorm of x on the grids."""
        codes = self.input.codes(x)
        values = self.input.values(codes).double()
        variance, mean = torch.var_mean(values, dim=-1, unbiased=False, keepdim=True)
        score = (values - mean) / torch.sqrt(variance + self.plan.eps)
        half = 1 << (self.plan.bits - 1)
        out = _round(score * self.gain + self.offset).clamp(-half, half - 1)
        if self.sink is not None:
            self.sink(self.name, "input", codes)
            self.sink(self.name, "output", out)
        out = out - self.plan.zero_point
        return (out if self.folded else out * self.scale + self.rest).float()


class CalibratedAttention(nn.Module):
    """Self-attention with integer scores and log2 codes."""

    def __init__(
        self, name: str, attention: Attention, heads: FakeQuant, spec: SoftmaxSpec, frac: int
    ) -> None:
        super().__init__()
        self.name, self.heads, self.spec, self.frac = name, heads, spec, frac
        self.sink: Sink | None = None
        self.num_heads = attention.num_heads
        self.octave = float(attention.scale) * math.log2(math.e)
        self.qkv, self.proj = attention.qkv, attention.proj

    def forward(
        self, x: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False
    ) -> torch.Tensor:
        """Return attention over all tokens; masks are not part of calibration."""
        if attn_mask is not None or is_causal:
            raise ValueError("Mask must be None: a calibrated model attends to all tokens")
        q, k, v = self.heads(split_heads(self.qkv(x), self.num_heads)).unbind(0)
        bounds = self.spec.bounds["score"]
        octaves = (q @ k.transpose(-2, -1)).double() * self.octave
        scores = _round(octaves * 2**self.frac).clamp(bounds.low, bounds.high)
        codes = self.codes(scores)
        if self.sink is not None:
            self.sink(self.name, "scores", scores)
            self.sink(self.name, "codes", codes)
        batch, tokens, _ = x.shape
        return self.proj((self.weights(codes).to(v) @ v).transpose(1, 2).reshape(batch, tokens, -1))

    def codes(self, scores: torch.Tensor) -> torch.Tensor:
        """Exact log quantisation of the float softmax of integer scores."""
        octaves = scores / 2**self.frac
        per_code = 2 if self.spec.base == "sqrt2" else 1
        level = (torch.logsumexp(octaves * math.log(2), -1, keepdim=True) / math.log(2)) - octaves
        return _round(level * per_code).clamp(0, self.spec.last_code)

    def weights(self, codes: torch.Tensor) -> torch.Tensor:
        """What the codes mean."""
        value = torch.exp2(-codes / (2 if self.spec.base == "sqrt2" else 1))
        return torch.where(codes == self.spec.last_code, torch.zeros_like(value), value)


class CalibratedBlock(nn.Module):
    """A pre-norm block whose residual stream is on the PTF grids of norm1 and norm2."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.norm1 = cast(CalibratedLayerNorm, block.norm1)
        self.norm2 = cast(CalibratedLayerNorm, block.norm2)
        self.attn, self.mlp, self.ls1, self.ls2 = block.attn, block.mlp, block.ls1, block.ls2

    def forward(
        self, x: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False
    ) -> torch.Tensor:
        """Return the block's output, which the next block puts on its grid."""
        x = self.norm1.input(x)
        x = x + self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal))
        x = self.norm2.input(x)
        return x + self.ls2(self.mlp(self.norm2(x)))


@dataclass(frozen=True, eq=False)
class CalibratedModel:
    """The fake-quantised network and the integers it was built from."""

    model: VisionTransformer
    topology: Topology
    layernorm_spec: LayerNormSpec
    softmax_spec: SoftmaxSpec
    plans: dict[str, LayerNormPlan]
    softmax: dict[str, SoftmaxParams]

    @property
    def layers(self) -> list[tuple[str, str]]:
        """(name, op) of every LayerNorm and softmax, in order of execution."""
        found: list[tuple[str, str]] = []
        for name in self.topology.norms:
            found.append((name, "layernorm"))
            attention = name.removesuffix("norm1") + "attn"
            if attention in self.softmax:
                found.append((attention, "softmax"))
        return found

    @torch.no_grad()
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the network's output for normalised images."""
        return cast(torch.Tensor, self.model(inputs))

    def record(self, inputs: torch.Tensor) -> dict[str, dict[str, np.ndarray]]:
        """Run ``inputs`` and return {layer: {kind: integers}}.

        Kinds: "input" and "output" codes [B, N, C] of a LayerNorm, "scores" and "codes"
        [B, heads, N, N] of an attention.
        """
        seen: dict[str, dict[str, np.ndarray]] = {}

        def sink(layer: str, kind: str, values: torch.Tensor) -> None:
            seen.setdefault(layer, {})[kind] = values.numpy().astype(np.int32)

        parts = [
            part
            for part in self.model.modules()
            if isinstance(part, CalibratedLayerNorm | CalibratedAttention)
        ]
        for part in parts:
            part.sink = sink
        try:
            self.forward(inputs)
        finally:
            for part in parts:
                part.sink = None
        return seen


def calibrate_model(
    model: VisionTransformer, seen: Observations, preset: Preset, affine: str = "dyadic"
) -> CalibratedModel:
    """Return the calibrated copy of ``model``, which stays untouched."""
    topology, bits = seen.topology, preset.act_bits
    layernorm_spec = preset.layernorm_spec(affine)
    softmax_spec, softmax = plan_softmax(seen.peaks, preset.softmax_spec())
    twin = copy.deepcopy(model).eval()
    modules = dict(twin.named_modules())

    def quantiser(name: str) -> FakeQuant:
        low, high = seen.ranges[name]
        grid = affine_grid(float(low), float(high), bits)
        return FakeQuant(grid.scale, grid.zero_point, bits)

    def replace(name: str, module: nn.Module) -> None:
        parent, _, leaf = name.rpartition(".")
        setattr(twin.get_submodule(parent), leaf, module)

    plans: dict[str, LayerNormPlan] = {}
    for name in topology.norms:
        norm, (low, high) = modules[name], seen.ranges[f"{name}.output"]
        ones = torch.ones(norm.normalized_shape)
        gamma = ones if norm.weight is None else norm.weight.detach()
        beta = torch.zeros_like(ones) if norm.bias is None else norm.bias.detach()
        plan = plan_layernorm(
            seen.grids[name], gamma, beta, norm.eps, low, high, layernorm_spec, seen.channels[name]
        )
        plans[name] = plan
        consumers = topology.consumers[name]
        replace(name, CalibratedLayerNorm(name, plan, bool(consumers)))
        for consumer in consumers:
            linear = modules[consumer]
            weight, rest = linear.weight.detach().double(), torch.tensor(plan.rest)
            bias = (0 if linear.bias is None else linear.bias.detach().double()) + weight @ rest
            folded = weight * torch.tensor(plan.scale)
            replace(consumer, QuantLinear(folded, bias.float(), preset.weight_bits, nn.Identity()))
    for name in topology.linears:
        linear = modules[name]
        quant = quantiser(f"{name}.input")
        replace(name, QuantLinear(linear.weight, linear.bias, preset.weight_bits, quant))
    for name in topology.activations:
        replace(name, nn.Sequential(quantiser(f"{name}.input"), modules[name]))
    for name in topology.attentions:
        low, high = seen.ranges[f"{name}.qkv.heads"]
        scale = symmetric_scale(low, high, bits).reshape(3, 1, -1, 1, 1)
        heads = FakeQuant(scale, 0, bits)
        replace(
            name,
            CalibratedAttention(name, modules[name], heads, softmax_spec, softmax[name].frac),
        )
    for name, module in modules.items():
        if isinstance(module, Block):
            replace(name, CalibratedBlock(module))
    patch = QuantLinear(  # only its weights: raw pixels are on a grid already
        twin.patch_embed.proj.weight, None, preset.weight_bits, nn.Identity()
    )
    twin.patch_embed.proj.weight.data = patch.codes * patch.scale
    return CalibratedModel(twin, topology, layernorm_spec, softmax_spec, plans, softmax)

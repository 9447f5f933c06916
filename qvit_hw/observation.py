# SPDX-License-Identifier: Apache-2.0
"""Observe a float timm ViT: every range that calibration needs, by hooks, in two passes.

The first pass fills one observer per tensor, the second measures the squared error of every PTF shift
under the ranges of the first. Tensors are named after the module they enter or leave:
``blocks.0.norm1.input``, ``blocks.0.attn.qkv.heads``, ``blocks.0.mlp.fc2.input``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from qvit_hw.errors import UserError
from qvit_hw.observers import MinMaxObserver, Observer, make_observer
from qvit_hw.presets import Preset
from qvit_hw.quantize import PtfGrid, PtfSearch

__all__ = ["Observations", "Topology", "observe", "split_heads"]

Floats = npt.NDArray[np.float64]
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Topology:
    """What stands where in the network; names are module paths, in order of execution."""

    norms: tuple[str, ...]
    attentions: tuple[str, ...]
    linears: tuple[str, ...]
    """Linear layers that quantise their own input."""
    activations: tuple[str, ...]
    """Non-linearities between two linear layers (GELU)."""
    consumers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """For each norm, the linear layers that take its output codes; none: it leaves in float."""

    @classmethod
    def of(cls, model: VisionTransformer) -> Topology:
        """Read a model's topology; UserError for parts that calibration does not know."""
        modules = dict(model.named_modules())
        consumers: dict[str, tuple[str, ...]] = {}
        activations: list[str] = []
        norms = [name for name in ("norm_pre",) if isinstance(modules.get(name), nn.LayerNorm)]
        for path, block in modules.items():
            if not isinstance(block, Block):
                continue
            _check_attention(f"{path}.attn", block.attn)
            hidden = [
                name for name, part in block.mlp.named_children() if isinstance(part, nn.Linear)
            ]
            first = [f"{path}.mlp.{name}" for name in hidden if name.startswith("fc1")]
            norms += [f"{path}.norm1", f"{path}.norm2"]
            consumers[f"{path}.norm1"] = (f"{path}.attn.qkv",)
            consumers[f"{path}.norm2"] = tuple(first)
            if isinstance(modules.get(f"{path}.mlp.norm"), nn.LayerNorm):
                norms.append(f"{path}.mlp.norm")
                consumers[norms[-1]] = (f"{path}.mlp.fc2",)
            if isinstance(getattr(block.mlp, "act", None), nn.Module) and len(first) == 1:
                activations.append(f"{path}.mlp.act")
        last = [name for name in ("norm", "fc_norm") if isinstance(modules.get(name), nn.LayerNorm)]
        norms += last
        if last and (last[-1] == "fc_norm" or model.global_pool == "token"):
            heads = ("head", "head_dist")  # the second one in distilled DeiTs
            consumers[last[-1]] = tuple(n for n in heads if isinstance(modules.get(n), nn.Linear))
        for name, module in modules.items():
            if isinstance(module, nn.LayerNorm) and name not in norms:
                raise UserError(
                    f"LayerNorm at {name!r} is not supported: calibration does not know it."
                )
        fed = {name for names in consumers.values() for name in names}
        linears = [n for n, m in modules.items() if isinstance(m, nn.Linear) and n not in fed]
        attentions = [n for n, m in modules.items() if isinstance(m, Attention)]
        order = {name: consumers.get(name, ()) for name in norms}
        return cls(tuple(norms), tuple(attentions), tuple(linears), tuple(activations), order)


def _check_attention(path: str, attention: nn.Module) -> None:
    for part in ("q_norm", "k_norm", "norm"):
        if not isinstance(getattr(attention, part, nn.Identity()), nn.Identity):
            raise UserError(f"Attention at {path!r} is not supported with a {part!r} of its own.")
    if getattr(attention, "gate", None) is not None:
        raise UserError(f"Attention at {path!r} is not supported with a gate.")


def split_heads(qkv: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, N, 3 * heads * d] to [3, B, heads, N, d]."""
    batch, tokens, _ = qkv.shape
    return qkv.reshape(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)


@dataclass(frozen=True)
class Observations:
    """Ranges by tensor name, PTF grids by norm, and the largest |score| by attention, in octaves."""

    topology: Topology
    ranges: dict[str, tuple[Floats, Floats]]
    channels: dict[str, tuple[Floats, Floats]]
    grids: dict[str, PtfGrid]
    peaks: dict[str, float]


@contextmanager
def _hooks(handles: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _feed(model: nn.Module, inputs: torch.Tensor, batch: int, progress: Progress | None) -> None:
    for part in inputs.split(batch):
        model(part)
        if progress is not None:
            progress(len(part))


def observe(
    model: VisionTransformer,
    inputs: torch.Tensor,
    preset: Preset,
    observer: str = "minmax",
    batch: int = 8,
    progress: Progress | None = None,
) -> Observations:
    """Run ``inputs`` (normalised images) through the float model twice and return what was seen.

    Raises UserError, with the tensor's name, for constant, NaN or infinite activations. ``progress``
    is called with the number of images done, which adds up to twice ``len(inputs)``.
    """
    topology = Topology.of(model)
    modules = dict(model.named_modules())
    observers: dict[str, Observer] = {}
    channels: dict[str, MinMaxObserver] = {}
    scores: dict[str, MinMaxObserver] = {}
    handles: list[Any] = []

    def watch(name: str, axis: int | None = None) -> Observer:
        observers[name] = make_observer(observer, name, axis)
        return observers[name]

    def on_input(name: str) -> None:
        seen = watch(f"{name}.input")
        handles.append(
            modules[name].register_forward_pre_hook(lambda _module, args: seen.update(args[0]))
        )

    def on_norm_output(name: str) -> None:
        seen, each = watch(f"{name}.output"), MinMaxObserver(f"{name}.output", axis=-1)
        channels[name] = each

        def hook(_module: nn.Module, _args: Any, output: torch.Tensor) -> None:
            seen.update(output)
            each.update(output)

        handles.append(modules[name].register_forward_hook(hook))

    def on_heads(name: str) -> None:
        attention = modules[name]
        heads, octave = attention.num_heads, float(attention.scale) * math.log2(math.e)
        seen, score = watch(f"{name}.qkv.heads", axis=0), MinMaxObserver(f"{name}.scores")
        scores[name] = score

        def hook(_module: nn.Module, _args: Any, output: torch.Tensor) -> None:
            q, k, v = split_heads(output, heads).unbind(0)
            score.update(q @ k.transpose(-2, -1) * octave)
            seen.update(torch.stack([q, k, v]).transpose(1, 2).flatten(0, 1))

        handles.append(modules[f"{name}.qkv"].register_forward_hook(hook))

    for name in (*topology.norms, *topology.linears, *topology.activations):
        on_input(name)
    for name in topology.norms:
        on_norm_output(name)
    for name in topology.attentions:
        on_heads(name)
    with _hooks(handles):
        _feed(model, inputs, batch, progress)
    ranges = {name: seen.range() for name, seen in observers.items()}
    peaks = {name: max(abs(float(end)) for end in seen.range()) for name, seen in scores.items()}

    searches: dict[str, PtfSearch] = {}
    handles = []
    for name in topology.norms:
        low, high = (float(end) for end in ranges[f"{name}.input"])
        count = int(np.prod(modules[name].normalized_shape))
        search = PtfSearch(low, high, count, preset.residual_bits, preset.max_shift)
        searches[name] = search

        def measure(_module: nn.Module, args: Any, search: PtfSearch = search) -> None:
            search.update(args[0])

        handles.append(modules[name].register_forward_pre_hook(measure))
    with _hooks(handles):
        _feed(model, inputs, batch, progress)
    return Observations(
        topology,
        ranges,
        {name: seen.extremes() for name, seen in channels.items()},
        {name: search.grid() for name, search in searches.items()},
        peaks,
    )

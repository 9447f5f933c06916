# SPDX-License-Identifier: Apache-2.0
"""What a program costs, layer by layer, by the cycle model: cycles, use of the array, traffic, the limit.

A layer is what one would call one: the patch embedding, a LayerNorm, the attention of a block with its
projection, the MLP of a block, the head. Its cycles are those from the end of the layer before to its own
end, so that they add up to the run's.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import prod

from golden.accelerator_cycles import Timeline, timeline
from golden.program import Op
from golden.vit import VitModel
from qvit_hw.compiler.program import Program, Step

__all__ = ["UNITS", "Costs", "LayerCost", "costs", "layer_of", "macs_of"]

UNITS = ("array", "layernorm", "softmax", "stream")
"""What can be the limit. The stream is busy a cycle for each word that the layer has in it."""


@dataclass(frozen=True)
class LayerCost:
    """A layer: ``begin`` and ``end`` in cycles, useful MACs, bytes of the stream, busy cycles by unit."""

    name: str
    begin: int
    end: int
    macs: int
    bytes: int
    busy: dict[str, int]

    @property
    def cycles(self) -> int:
        """From the end of the layer before to the end of this one."""
        return self.end - self.begin

    @property
    def limit(self) -> str:
        """The unit that is busy for the longest time."""
        return max(UNITS, key=lambda unit: self.busy[unit])

    def utilisation(self, multipliers: int) -> float:
        """Share of all multiplications that the array could have done meanwhile that are of use."""
        return self.macs / (multipliers * self.cycles) if self.cycles else 0.0

    @property
    def intensity(self) -> float:
        """Useful MACs for each byte read."""
        return self.macs / self.bytes if self.bytes else float("inf")


@dataclass(frozen=True)
class Costs:
    """A run: its layers, and the timeline that they come from."""

    layers: tuple[LayerCost, ...]
    timeline: Timeline
    size: int

    @property
    def cycles(self) -> int:
        """From start to end."""
        return self.timeline.cycles

    @property
    def macs(self) -> int:
        """Useful ones, of the whole network."""
        return sum(layer.macs for layer in self.layers)

    @property
    def bytes(self) -> int:
        """Of the stream: image, program, weights."""
        return self.timeline.words * self.size

    @property
    def utilisation(self) -> float:
        """Share of the array's multiplications that are of use, over the whole run."""
        return self.macs / (self.size**2 * self.cycles)


def layer_of(tensor: str) -> str:
    """The layer that a tensor belongs to.

    >>> layer_of("blocks.3.attn.qkv"), layer_of("blocks.3.mlp.fc1"), layer_of("head")
    ('blocks.3.attn', 'blocks.3.mlp', 'head')
    """
    parts = tensor.split(".")
    return ".".join(parts[:-1]) if len(parts) > 3 else ".".join(parts[:3])


def macs_of(model: VitModel, name: str) -> int:
    """Multiplications and additions of a node for one image; 0 where it is no product."""
    node, shape = model[name], model.flows[name].shape
    if node.op in ("linear", "patch_embed"):
        return prod(shape) * int(node.params.in_features)
    if node.op == "scores":
        return prod(shape) * (model.flows[node.inputs[0]].shape[-1] // (3 * node.layout["heads"]))
    if node.op == "attend":
        return prod(model.flows[node.inputs[0]].shape) * (shape[-1] // node.layout["heads"])
    return 0


def costs(program: Program, model: VitModel, bandwidth: Fraction | int = 1) -> Costs:
    """The costs of a program, compiled from ``model``; bandwidth: as of :func:`timeline`."""
    instructions = [step.instruction for step in program.steps]
    image_words = instructions[0]["image_words"]
    run = timeline(instructions, program.spec, image_words, bandwidth=bandwidth)
    names = _layers(program.steps)
    macs = dict.fromkeys(names, 0)
    for node in model.nodes:
        if (layer := layer_of(node.name)) in macs:
            macs[layer] += macs_of(model, node.name)
    busy = {name: dict.fromkeys(UNITS, 0) for name in macs}
    ends, words = dict.fromkeys(macs, 0), dict.fromkeys(macs, 0)
    words[names[0]] = busy[names[0]]["stream"] = image_words
    for step, name in zip(program.steps, names, strict=True):
        words[name] += step.words
        busy[name]["stream"] += step.words
        busy[name]["array"] += _passes(step, program.spec.size)
    for span in run.spans:
        if span.instruction >= 0:
            name = names[span.instruction]
            ends[name] = max(ends[name], span.end)
            if span.unit in ("layernorm", "softmax"):
                busy[name][span.unit] += span.end - span.begin
    ends[names[-1]] = run.cycles
    layers, before = [], 0
    for name in macs:
        end = max(ends[name], before)
        layers.append(
            LayerCost(name, before, end, macs[name], words[name] * program.spec.size, busy[name])
        )
        before = end
    return Costs(tuple(layers), run, program.spec.size)


def _passes(step: Step, size: int) -> int:
    """Cycles in which source words go through the array for an instruction."""
    instruction = step.instruction
    if instruction.op is not Op.MULTIPLY:
        return 0
    return instruction["blocks"] * instruction["depth"] * instruction["tokens"]


def _layers(steps: tuple[Step, ...]) -> list[str]:
    """The layer of each instruction; one without results belongs to the next that has some."""
    names: list[str] = []
    following = ""
    for step in reversed(steps):
        if step.parts:
            following = layer_of(step.parts[0].tensor)
        names.append(following)
    names.reverse()
    last = next(name for name in reversed(names) if name)
    return [name or last for name in names]

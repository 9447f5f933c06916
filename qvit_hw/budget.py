# SPDX-License-Identifier: Apache-2.0
"""What a network costs with given widths, and what it may cost.

Two costs, both sums of terms ``count * width * width ...``, whole numbers throughout:

- *size*: bits of all weights, patch embedding and head included (biases and tables are not: they do not
  depend on the widths).
- *bitops*: bits times bits of every multiplication, MACs * weight bits * activation bits. q.k counts
  with the width of q and k on both sides, A.V with the bits of a softmax code and those of v.

A budget is written ``size:6`` (bits of a weight, on average), ``size:5.2MB`` or ``size:80kB`` (of 1000
bytes each), or ``bitops:0.6`` (of what the preset needs without a budget).

Which widths are free: those of the weights of every linear layer but the head, and, where multiplications are
counted, those of the tensors whose operator requantises them: q, k and v, outputs of A.V and of GELU.
LayerNorm's outputs keep the preset's width, because one unit serves all layers and its width is built in;
patch embedding and head keep the preset's ``head_bits``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from qvit_hw.errors import UserError
from qvit_hw.network import IMAGE, Activation, Attend, Linear, Network, Node, PatchEmbed, Scores
from qvit_hw.presets import Preset

__all__ = ["ACT_BITS", "WEIGHT_BITS", "Budget", "CostModel", "Term", "cost_model", "parse_budget"]

WEIGHT_BITS = (3, 4, 5, 6, 7, 8)
"""Widths that a layer's weights may get."""
ACT_BITS = (4, 5, 6, 7, 8)
"""Widths that a tensor's codes may get."""
PIXEL_BITS = 8

_FORM = re.compile(r"(?:(size):([0-9]+(?:\.[0-9]+)?)(kB|MB)?|(bitops):([0-9]+(?:\.[0-9]+)?))")
_UNITS = {"kB": 8_000, "MB": 8_000_000}


@dataclass(frozen=True)
class Term:
    """``count`` times the product of the factors' widths; a factor is a name, or a width that is fixed."""

    count: int
    factors: tuple[str | int, ...]


@dataclass(frozen=True)
class CostModel:
    """The terms of a cost.

    widths: of every name in the terms, without a budget.  choices: the widths that a name may get.
    """

    terms: tuple[Term, ...]
    widths: Mapping[str, int]
    choices: Mapping[str, tuple[int, ...]]

    def cost(self, bits: Mapping[str, int] | None = None) -> int:
        """The cost with these widths; names that are missing have their own."""
        return sum(self._of(term, bits or {}) for term in self.terms)

    def _of(self, term: Term, bits: Mapping[str, int]) -> int:
        widths = (
            bits.get(each, self.widths[each]) if isinstance(each, str) else each
            for each in term.factors
        )
        return term.count * prod(widths)

    @cached_property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Names that share a term must be chosen together; those of different groups add up."""
        found: list[set[str]] = [{name} for name in self.choices]
        for term in self.terms:
            names = self.choices.keys() & {each for each in term.factors if isinstance(each, str)}
            joined = [group for group in found if group & names]
            found = [group for group in found if not group & names]
            if joined:
                found.append(set().union(*joined))
        order = list(self.choices)
        groups = (tuple(sorted(group, key=order.index)) for group in found)
        return tuple(sorted(groups, key=lambda group: order.index(group[0])))

    def group_cost(self, group: tuple[str, ...], bits: Mapping[str, int]) -> int:
        """Cost of the terms that a group has a part in."""
        return sum(self._of(term, bits) for term in self.terms if set(group) & set(term.factors))


def cost_model(kind: str, network: Network, preset: Preset) -> CostModel:
    """The cost "size" or "bitops" of a network under a preset."""
    terms = _sizes(network, preset) if kind == "size" else _bit_operations(network, preset)
    listed = tuple(terms)
    names = {each: None for term in listed for each in term.factors if isinstance(each, str)}
    weights = {name: name.endswith(".weight") for name in names}
    return CostModel(
        terms=listed,
        widths={n: preset.weight_bits if weights[n] else preset.act_bits for n in names},
        choices={n: WEIGHT_BITS if weights[n] else ACT_BITS for n in names},
    )


def _weight(network: Network, node: Linear | PatchEmbed, preset: Preset) -> str | int:
    fixed = isinstance(node, PatchEmbed) or node is network.output
    return preset.head_bits if fixed else f"{node.name}.weight"


def _tensor(network: Network, name: str, preset: Preset) -> str | int:
    if name == IMAGE:
        return PIXEL_BITS
    node = network[name]
    free = isinstance(node, Attend | Activation) or network.kind(node) == "heads"
    return name if free else preset.act_bits


def _sizes(network: Network, preset: Preset) -> Iterator[Term]:
    for node in network:
        if isinstance(node, Linear | PatchEmbed):
            yield Term(node.weight.numel(), (_weight(network, node, preset),))


def _bit_operations(network: Network, preset: Preset) -> Iterator[Term]:
    count: dict[str, int] = {}

    def see(node: Node, out: Tensor) -> Tensor:
        count[node.name] = out.numel()
        return out

    network.run(torch.zeros(1, *network.input_size), see)
    channels = {node.name: len(node.weight) for node in network if isinstance(node, Linear)}
    for node in network:
        if isinstance(node, Linear | PatchEmbed):
            source = _tensor(network, node.inputs[0], preset)
            macs = count[node.name] * node.weight.shape[1]
            yield Term(macs, (source, _weight(network, node, preset)))
        elif isinstance(node, Scores):
            qkv = node.inputs[0]
            yield Term(count[node.name] * (channels[qkv] // (3 * node.heads)), (qkv, qkv))
        elif isinstance(node, Attend):
            codes, qkv = node.inputs
            macs = count[codes] * (channels[qkv] // (3 * node.heads))
            yield Term(macs, (preset.code_bits, qkv))


@dataclass(frozen=True)
class Budget:
    """What a network may cost: an amount of a kind, in a unit ("" for the kind's own)."""

    kind: str
    amount: Fraction
    unit: str = ""

    def __str__(self) -> str:
        return self.text(self.amount)

    def text(self, amount: Fraction, digits: int = 12) -> str:
        """An amount in this budget's terms, rounded up."""
        step = 10**digits
        number = f"{math.ceil(amount * step) / step:.{digits}f}".rstrip("0").rstrip(".")
        return f"{self.kind}:{number}{self.unit}"

    def limit(self, model: CostModel) -> int:
        """The largest cost within the budget."""
        return math.floor(self.amount * self._unit(model))

    def measure(self, cost: int, model: CostModel) -> Fraction:
        """A cost as an amount of this budget."""
        return Fraction(cost, self._unit(model))

    def _unit(self, model: CostModel) -> int:
        """Cost of an amount of one."""
        if self.unit:
            return _UNITS[self.unit]
        return sum(term.count for term in model.terms) if self.kind == "size" else model.cost()


def parse_budget(text: str) -> Budget:
    """Read a budget, see the module's docstring; UserError for what is none."""
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise UserError(
            "Budget must be size:BITS of a weight, size:NUMBERkB, size:NUMBERMB or bitops:SHARE of the "
            f"preset's, not {text!r}."
        )
    if found[1]:
        return Budget(found[1], Fraction(found[2]), found[3] or "")
    return Budget(found[4], Fraction(found[5]))

# SPDX-License-Identifier: Apache-2.0
"""Mixed precision: which width every layer gets under a budget.

Every quantiser is scored alone at every width, the scores of all are taken to add up, and the widths with
the smallest sum within the budget are chosen: a knapsack with one choice per layer, solved by dynamic
programming. Scores:

- ``error``: energy of the output's error with nothing but this quantiser on, relative to the output's.
  Measured, so it takes a run of the network for every quantiser and width.
- ``gradient``: the same to first order, from gradients: a run forward and one back for every width.
- ``relevance``: as fast, from layer-wise relevance propagation. It tells what the output consists of rather
  than what an error does to it; of the three it chooses worst. See :mod:`qvit_hw.relevance`.

That errors add up is the assumption of all: they are nearly independent while they are small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich import box
from rich.table import Table
from torch import Tensor

from qvit_hw.budget import Budget, CostModel, cost_model
from qvit_hw.calibrated import CalibratedModel
from qvit_hw.errors import UserError
from qvit_hw.network import IMAGE, Network
from qvit_hw.plan import count_tokens
from qvit_hw.presets import Preset
from qvit_hw.relevance import gradient_errors, relevance_errors

__all__ = [
    "SCORES",
    "SCORE_IMAGES",
    "SCORE_TOKENS",
    "Allocation",
    "Build",
    "Losses",
    "allocate",
    "check_score",
    "choose_bits",
    "knapsack",
    "output_errors",
]

Build = Callable[[Mapping[str, int]], CalibratedModel]
"""Makes the calibrated model with these widths."""
Score = Callable[[CalibratedModel, Tensor, Collection[str]], dict[str, float]]
"""Scores quantisers on uint8 images: the higher, the worse."""
Losses = Mapping[str, Mapping[int, float]]
"""{name: {width: score}}."""

SCORE_IMAGES, SCORE_TOKENS = 8, 2048
"""Scores come from so many of the calibration images, or as many more as it takes for so many tokens."""
CELLS = 1 << 17
"""Resolution of the knapsack where costs have no common divisor that is coarse enough."""


@dataclass(frozen=True)
class Allocation:
    """Chosen widths, {"<layer>.weight" or tensor: bits}, and how they came about.

    loss: sum of the scores.  cost, limit: in the units of the cost model.  spent: the cost in terms of the
    budget.
    """

    budget: Budget
    score: str
    bits: Mapping[str, int]
    losses: Losses
    cost: int
    limit: int
    spent: str

    @property
    def loss(self) -> float:
        """Sum of the scores at the chosen widths."""
        return sum(self.losses[name][bits] for name, bits in self.bits.items())

    def record(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {
            "budget": str(self.budget),
            "spent": self.spent,
            "score": self.score,
            "bits": dict(self.bits),
        }

    def table(self) -> Table:
        """Widths and scores, one line per layer or tensor."""
        table = Table(title=f"{self.budget}, spent {self.spent}, by {self.score}", box=box.SIMPLE)
        for column in ("weights, tensor", "bits", "score (dB)"):
            justify = "right" if column != "weights, tensor" else "left"
            table.add_column(column, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        for name, bits in self.bits.items():
            loss = self.losses[name][bits]
            shown = f"{10 * math.log10(loss):.1f}" if loss > 0 else "none"
            table.add_row(name, str(bits), shown)
        return table


def check_score(score: str) -> str:
    """Return the name of a score; UserError for any other."""
    if score not in SCORES:
        raise UserError(f"Score must be one of {', '.join(SCORES)}, not {score!r}.")
    return score


def allocate(
    network: Network,
    images: Tensor,
    preset: Preset,
    build: Build,
    budget: Budget,
    score: str = "error",
    progress: Callable[[int], None] | None = None,
) -> Allocation:
    """Choose the widths of layers and tensors of a network under a budget.

    build: is called once per width, with all names at that width.  images: uint8, the first
    ones are used, see SCORE_IMAGES.  progress: is called with 1 after each width. UserError where the
    budget cannot be met.
    """
    rate = SCORES[check_score(score)]
    model = cost_model(budget.kind, network, preset)
    _check_least(budget, model)
    tokens = count_tokens(network, network.of("patch_embed")[0].name)
    shown = images[: max(SCORE_IMAGES, SCORE_TOKENS // tokens)]
    losses: dict[str, dict[int, float]] = {name: {} for name in model.choices}
    for width in sorted({bits for each in model.choices.values() for bits in each}):
        trial = {name: width for name, each in model.choices.items() if width in each}
        for name, loss in rate(build(trial), shown, trial).items():
            losses[name][width] = loss
        if progress is not None:
            progress(1)
    bits = choose_bits(model, losses, budget.limit(model))
    cost = model.cost(bits)
    return Allocation(
        budget=budget,
        score=score,
        bits=bits,
        losses=losses,
        cost=cost,
        limit=budget.limit(model),
        spent=budget.text(budget.measure(cost, model), digits=3),
    )


def _check_least(budget: Budget, model: CostModel) -> None:
    least = model.cost({name: min(each) for name, each in model.choices.items()})
    if least > budget.limit(model):
        text = budget.text(budget.measure(least, model), digits=3)
        raise UserError(f"Budget '{budget}' cannot be met: the least is '{text}'.")


# ------------------------------------------------------------------------------------------ scores


@torch.no_grad()
def output_errors(
    calibrated: CalibratedModel, images: Tensor, names: Collection[str]
) -> dict[str, float]:
    """Energy of the output's error with each of these quantisers alone, relative to the output's."""
    network = calibrated.network
    exact = network.run(images).double()
    signal = max(float(exact.square().sum()), 1e-300)
    errors: dict[str, float] = {}
    tensors = {IMAGE: images.float()}
    for place, node in enumerate(network.nodes):
        inputs = [tensors[name] for name in node.inputs]
        for name in (f"{node.name}.weight", node.name):
            if name in names:
                rounded = {node.name: calibrated.alone(name, inputs)}
                error = _onwards(network, place + 1, tensors | rounded) - exact
                errors[name] = float(error.square().sum()) / signal
        tensors[node.name] = node.forward(*inputs)
        _drop(network, place, tensors)
    return errors


def _onwards(network: Network, start: int, tensors: dict[str, Tensor]) -> Tensor:
    """The output from what is there before node ``start``, float64."""
    for place, node in enumerate(network.nodes[start:], start):
        tensors[node.name] = node.forward(*(tensors[name] for name in node.inputs))
        _drop(network, place, tensors)
    return tensors[network.output.name].double()


def _drop(network: Network, place: int, tensors: dict[str, Tensor]) -> None:
    """Forget the tensors that node ``place`` was the last to read."""
    node = network.nodes[place]
    for name in set(node.inputs):
        if network.consumers[name][-1] is node:
            del tensors[name]


SCORES: dict[str, Score] = {
    "error": output_errors,
    "gradient": gradient_errors,
    "relevance": relevance_errors,
}
"""Scores by the names that users know them by."""


# --------------------------------------------------------------------------------------- knapsack


def choose_bits(model: CostModel, losses: Losses, limit: int) -> dict[str, int]:
    """The widths with the smallest sum of losses whose cost is within the limit."""
    options = [
        [
            dict(zip(group, bits, strict=True))
            for bits in product(*(model.choices[name] for name in group))
        ]
        for group in model.groups
    ]
    own = [
        [model.group_cost(group, bits) for bits in each]
        for group, each in zip(model.groups, options, strict=True)
    ]
    scores = [
        [sum(losses[name][width] for name, width in bits.items()) for bits in each]
        for each in options
    ]
    fixed = model.cost(first := {n: b for each in options for n, b in each[0].items()}) - sum(
        each[0] for each in own
    )
    picks = knapsack(own, scores, limit - fixed)
    chosen = first | {
        n: b for each, pick in zip(options, picks, strict=True) for n, b in each[pick].items()
    }
    return {name: chosen[name] for name in model.choices}


def knapsack(
    costs: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], limit: int
) -> list[int]:
    """Pick one option of every group: the smallest sum of losses with a sum of costs within the limit.

    Exact where the costs above each group's cheapest are multiples of a unit of which all groups together
    have at most CELLS. Otherwise they are rounded up to 1 / CELLS of the range: never above the limit, and at
    most that much per group below what is possible. The rounding does not depend on the limit, so a
    larger one never gives a larger sum. ValueError where the cheapest options exceed the limit.
    """
    least = [min(each) for each in costs]
    spare = limit - sum(least)
    if spare < 0:
        raise ValueError(f"Limit must be at least {sum(least)}, not {limit!r}")
    extra = [[cost - low for cost in each] for each, low in zip(costs, least, strict=True)]
    span = sum(max(each) for each in extra)
    unit = max(math.gcd(*(cost for each in extra for cost in each)), -(-span // CELLS), 1)
    cells = min(spare, span) // unit
    if spare >= span:
        cells = sum(-(-max(each) // unit) for each in extra)
    best: npt.NDArray[np.float64] = np.zeros(cells + 1)
    tables = []
    for steps, loss in zip(extra, losses, strict=True):
        least_loss, pick = np.full(cells + 1, np.inf), np.zeros(cells + 1, np.int16)
        for option in _undominated(steps, loss):
            step = -(-steps[option] // unit)
            if step > cells:
                continue
            reach = best[: cells + 1 - step] + loss[option]
            better = reach < least_loss[step:]
            least_loss[step:][better] = reach[better]
            pick[step:][better] = option
        best = least_loss
        tables.append(pick)
    picks = []
    for steps, pick in zip(reversed(extra), reversed(tables), strict=True):
        option = int(pick[cells])
        picks.append(option)
        cells -= -(-steps[option] // unit)
    return picks[::-1]


def _undominated(costs: Sequence[int], losses: Sequence[float]) -> list[int]:
    """Options that no other beats in both, the cheapest first."""
    kept: list[int] = []
    for option in sorted(range(len(costs)), key=lambda k: (costs[k], losses[k])):
        if not kept or losses[option] < losses[kept[-1]]:
            kept.append(option)
    return kept

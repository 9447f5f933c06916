# SPDX-License-Identifier: Apache-2.0
"""From what was measured image by image (:mod:`qvit_hw.measuring`) to the results of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from qvit_hw.evaluation import (
    MODELS,
    Accuracy,
    Agreement,
    Difference,
    Example,
    Share,
    Tensor,
    decibel,
    pairs_of,
)
from qvit_hw.measuring import SUMS, Floats, Outcome, Subject
from qvit_hw.models.labelled import Labelled
from qvit_hw.sensitivity import group_of, part_of

__all__ = ["accuracies", "agreements", "differences", "examples", "spread", "tensors"]

FIVE = 5


def spread(count: int, wanted: int) -> list[int]:
    """``wanted`` of the numbers 0 .. count - 1, evenly; all if there are no more."""
    if wanted >= count:
        return list(range(count))
    return [(2 * place + 1) * count // (2 * wanted) for place in range(wanted)]


def _ranks(outcomes: Sequence[Outcome]) -> np.ndarray:
    """[images, models]; no rows where there are no labels."""
    return np.array([outcome.rank for outcome in outcomes if outcome.rank is not None])


def accuracies(outcomes: Sequence[Outcome], models: Sequence[str] = MODELS) -> tuple[Accuracy, ...]:
    """Of every model that the outcomes are of; none without labels."""
    ranks, total = _ranks(outcomes), len(outcomes)
    return tuple(
        Accuracy(
            name,
            Share.of(int((ranks[:, place] < 1).sum()), total),
            Share.of(int((ranks[:, place] < FIVE).sum()), total),
        )
        for place, name in enumerate(models)
        if len(ranks)
    )


def differences(
    outcomes: Sequence[Outcome], models: Sequence[str] = MODELS
) -> tuple[Difference, ...]:
    """Of every pair, the later model against the earlier; none without labels."""
    ranks, found = _ranks(outcomes), []
    if not len(ranks):
        return ()
    for against, model in pairs_of(models):
        right = ranks[:, models.index(model)] < 1
        other = ranks[:, models.index(against)] < 1
        won, lost = int((right & ~other).sum()), int((other & ~right).sum())
        found.append(Difference.of(model, against, won, lost, len(ranks)))
    return tuple(found)


def agreements(
    outcomes: Sequence[Outcome], classifier: bool, models: Sequence[str] = MODELS
) -> tuple[Agreement, ...]:
    """Of every pair, the later model against the earlier."""
    found = []
    for place, (against, model) in enumerate(pairs_of(models)):
        one, other = models.index(against), models.index(model)
        same = sum(outcome.first[one] == outcome.first[other] for outcome in outcomes)
        cosines = [outcome.cosine[place] for outcome in outcomes]
        found.append(
            Agreement(
                model,
                against,
                Share.of(same, len(outcomes)) if classifier else None,
                decibel(
                    math.fsum(outcome.energy[one] for outcome in outcomes),
                    math.fsum(outcome.noise[place] for outcome in outcomes),
                ),
                math.fsum(cosines) / len(cosines),
                min(cosines),
                sum(outcome.equal[place] for outcome in outcomes),
            )
        )
    return tuple(found)


def tensors(subject: Subject, images: Sequence[Floats]) -> tuple[Tensor, ...]:
    """From the sums [tensors, SUMS] of every image."""
    totals = np.zeros((len(subject.names), len(SUMS)))
    for sums in images:  # in this order: float addition is not associative
        totals += sums
    return tuple(
        _tensor(subject, name, dict(zip(SUMS, row, strict=True)))
        for name, row in zip(subject.names, totals.tolist(), strict=True)
    )


def _tensor(subject: Subject, name: str, sums: Mapping[str, float]) -> Tensor:
    node, complete = subject.network[name], subject.calibrated is not None

    def cosine(model: str) -> float | None:
        energy = sums["signal"] * sums[f"energy_{model}"]
        return min(1.0, sums[f"dot_{model}"] / math.sqrt(energy)) if energy > 0 else None

    return Tensor(
        name=name,
        op=node.op,
        group=group_of(subject.network, name),
        part=part_of(subject.network, name),
        elements=int(sums["elements"]),
        sqnr_db=decibel(sums["signal"], sums["noise_golden"]),
        cosine=cosine("golden"),
        sqnr_calibrated_db=decibel(sums["signal"], sums["noise_calibrated"]),
        cosine_calibrated=cosine("calibrated"),
        end_to_end=int(sums["end_to_end"]) if complete else None,
        operator=int(sums["operator"]) if complete else None,
        ties=int(sums["ties"]) if complete else None,
    )


def examples(outcomes: Sequence[Outcome], data: Labelled, most: int) -> tuple[Example, ...]:
    """Images on which float and golden do not say the same; those that golden alone has wrong first."""
    numbers = [
        number for number, outcome in enumerate(outcomes) if outcome.first[0] != outcome.first[-1]
    ]

    def urgency(number: int) -> int:
        rank = outcomes[number].rank
        if rank is None:
            return 0
        return 0 if rank[0] == 0 else 1 if rank[-1] == 0 else 2

    return tuple(
        Example(
            number,
            data.names[number],
            None if data.labels is None else int(data.labels[number]),
            outcomes[number].first,
        )
        for number in sorted(numbers, key=urgency)[:most]
    )

# SPDX-License-Identifier: Apache-2.0
"""Where error enters: quantisers switched on alone, and off alone, one by one and in sets.

A quantiser on alone shows what it costs, off alone what is to be had by widening it. Between them lies
what errors do to each other; energies of single ones add up nearly, which is why sets are tried, too:
all of a kind (*group*), and all at one place in the network (*part*).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from qvit_hw.crew import Bench, Crew
from qvit_hw.evaluation import Cost, Sensitivity, decibel
from qvit_hw.measuring import Floats, Pixels, dot, one_thread
from qvit_hw.network import Network

__all__ = ["Watch", "find_sensitivity", "group_of", "part_of"]

Watch = Callable[[str, Sequence[Any], Iterator[Any]], Iterator[Any]]
"""Takes what is being done, its tasks and their results; yields the results and may show a bar."""
Trial = tuple[Pixels, Floats, Sequence[str]]
"""Images, their float outputs, and the quantisers that are on."""


def find_sensitivity(crew: Crew, numbers: Sequence[int], watch: Watch) -> Sensitivity:
    """Try every quantiser, group and part on these images of the crew's bench."""
    subject, images = crew.bench.subject, crew.bench.data.images(numbers)
    assert subject.calibrated is not None
    names = subject.calibrated.quantisers
    groups = {name: group_of(subject.network, name) for name in names}
    parts = {name: part_of(subject.network, name) for name in names}
    sets = [*_gathered(groups), *_gathered(parts), *((name, (name,)) for name in names)]
    with one_thread():
        plain = subject.calibrated_outputs(images, ())
    active = [names]
    for _, members in sets:
        active += [members, tuple(name for name in names if name not in members)]
    trials: list[Trial] = [(images, plain, each) for each in active]
    signal = dot(plain, plain)
    everything, *noises = watch("quantisers", trials, crew.map(output_noise, trials))
    costs = [
        _cost(
            label,
            members,
            _only({groups[name] for name in members}),
            _only({parts[name] for name in members}),
            signal,
            (everything, noises[2 * place], noises[2 * place + 1]),
        )
        for place, (label, members) in enumerate(sets)
    ]
    ends = len(set(groups.values())), len(set(groups.values())) + len(set(parts.values()))
    return Sensitivity(
        images=len(numbers),
        all_db=decibel(signal, everything),
        groups=tuple(costs[: ends[0]]),
        parts=tuple(costs[ends[0] : ends[1]]),
        quantisers=tuple(costs[ends[1] :]),
    )


def output_noise(bench: Bench, trial: Trial) -> float:
    """Energy of the output's error over all images of a trial, which are computed at once."""
    images, plain, active = trial
    error = bench.subject.calibrated_outputs(images, active) - plain
    return dot(error, error)


def _gathered(belongs: dict[str, str]) -> list[tuple[str, tuple[str, ...]]]:
    """[(set, its members)], sets in the order of their first member."""
    return [
        (each, tuple(name for name in belongs if belongs[name] == each))
        for each in dict.fromkeys(belongs.values())
    ]


def _only(names: set[str]) -> str:
    """The one name, or nothing."""
    return next(iter(names)) if len(names) == 1 else ""


def _cost(
    name: str,
    members: Sequence[str],
    group: str,
    part: str,
    signal: float,
    noises: tuple[float, float, float],
) -> Cost:
    """noises: of the output with everything quantised, with the members alone, with all but them."""
    all_db, alone_db, without_db = (decibel(signal, noise) for noise in noises)
    return Cost(
        name=name,
        group=group,
        part=part,
        count=len(members),
        noise=noises[1] / signal if signal > 0 else 0.0,
        alone_db=alone_db,
        without_db=without_db,
        gain_db=None if all_db is None or without_db is None else without_db - all_db,
    )


# ------------------------------------------------------------------------------------------- names

_GROUPS = {
    "layernorm": "LayerNorm",
    "scores": "scores",
    "softmax": "softmax",
    "attend": "A·V",
    "linear": "GELU",
    "gelu": "GELU",
    "pool": "pooling",
    "select": "pooling",
}
_KINDS = {"heads": "q, k, v", "stream": "residual stream", "accumulators": "sums"}
_PART = re.compile(r"(?:.*\.)?blocks\.\d+|.*\bdownsample")


def group_of(network: Network, name: str) -> str:
    """What a tensor or a quantiser is, as people call it."""
    if name.endswith(".weight"):
        return "weights"
    node = network[name]
    return _KINDS.get(network.kind(node)) or _GROUPS[node.op]


def part_of(network: Network, name: str) -> str:
    """Where in the network a tensor or a quantiser is: a block, what is before all blocks, or behind."""
    found = _PART.match(name)
    if found:
        return found[0]
    order = [node.name for node in network]
    first = next((place for place, each in enumerate(order) if _PART.match(each)), len(order))
    return "embedding" if order.index(name.removesuffix(".weight")) < first else "head"

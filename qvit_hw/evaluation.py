# SPDX-License-Identifier: Apache-2.0
"""What an evaluation found, as numbers: shares with their uncertainty, energies turned into dB.

An :class:`Evaluation` is what :func:`qvit_hw.evaluate.evaluate` returns and what ``evaluation.json`` holds:
``{"schema": SCHEMA, "version": VERSION, **asdict(evaluation)}``, each field under its name here, shares from
0 to 1, dB, seconds and bytes, and null for what is not known (no labels) or infinite (the SQNR of
equal tensors).

Three models see the same images: *float* (timm's own), *calibrated* (float arithmetic on integer grids)
and *golden* (integers). A preset for the golden model alone has no calibrated one: what compares with it is
null.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = [
    "BAR",
    "MODELS",
    "PAIRS",
    "SCHEMA",
    "VERSION",
    "Accuracy",
    "Agreement",
    "Cost",
    "Difference",
    "Evaluation",
    "Example",
    "Sensitivity",
    "Share",
    "Speed",
    "Tensor",
    "decibel",
    "document",
    "pairs_of",
]

SCHEMA = "qvit-hw/evaluation"
VERSION = 1
MODELS = ("float", "calibrated", "golden")
PAIRS = (("float", "golden"), ("float", "calibrated"), ("calibrated", "golden"))
BAR = 0.999
"""Share of codes on which the calibrated and the golden model must agree, on every tensor."""
_Z = 1.959963984540054
"""Standard normal quantile of a two-sided 95 % interval."""


def pairs_of(models: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The PAIRS that these of the MODELS make."""
    return tuple(pair for pair in PAIRS if set(pair) <= set(models))


def decibel(signal: float, noise: float) -> float | None:
    """Ratio of two energies in dB; None where there is no noise or no signal."""
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None


@dataclass(frozen=True)
class Share:
    """``count`` of ``total``, with Wilson's 95 % interval of the share.

    Wilson, J. Am. Stat. Assoc. 22 (1927): unlike the textbook's interval it stays within 0 to 1 and says
    something at both ends.
    """

    count: int
    total: int
    share: float
    low: float
    high: float

    @classmethod
    def of(cls, count: int, total: int) -> Share:
        """ValueError unless 0 <= count <= total and total > 0."""
        if not 0 <= count <= total or not total:
            raise ValueError(f"Count must be from 0 to the total {total!r} > 0, not {count!r}")
        share, z = count / total, _Z * _Z / total
        middle = (share + z / 2) / (1 + z)
        half = _Z * math.sqrt(share * (1 - share) / total + z / (4 * total)) / (1 + z)
        low = 0.0 if count == 0 else middle - half
        return cls(count, total, share, low, 1.0 if count == total else middle + half)


@dataclass(frozen=True)
class Accuracy:
    """How often the label is a model's first guess, and among its first five."""

    model: str
    top1: Share
    top5: Share


@dataclass(frozen=True)
class Difference:
    """Top-1 of ``model`` minus top-1 of ``against``, on the same images.

    won: images that only ``model`` has right; lost: that only ``against`` has.  difference: of the shares;
    low, high: its 95 % interval for paired shares with Laplace's adjustment (Bonett & Price, J. Educ.
    Behav. Stat. 37, 2012).  p: of the exact sign test, two-sided: 1 says that won and lost tell nothing.
    """

    model: str
    against: str
    won: int
    lost: int
    difference: float
    low: float
    high: float
    p: float

    @classmethod
    def of(cls, model: str, against: str, won: int, lost: int, total: int) -> Difference:
        """ValueError unless won and lost are counts that fit into ``total`` > 0."""
        if min(won, lost) < 0 or not 0 < total >= won + lost:
            raise ValueError(f"Won and lost must fit into {total!r}, not {won!r} and {lost!r}")
        p, q = (won + 1) / (total + 2), (lost + 1) / (total + 2)
        half = _Z * math.sqrt((p + q - (p - q) ** 2) / (total + 2))
        return cls(
            model,
            against,
            won,
            lost,
            (won - lost) / total,
            max(-1.0, p - q - half),
            min(1.0, p - q + half),
            _sign_test(won, lost),
        )


def _sign_test(won: int, lost: int) -> float:
    """Two-sided p-value of a fair coin that shows ``won`` heads and ``lost`` tails."""
    tail = sum(math.comb(won + lost, k) for k in range(min(won, lost) + 1))
    return min(1.0, 2 * tail / 2 ** (won + lost))


@dataclass(frozen=True)
class Agreement:
    """Two models on the same images.

    same: images with the same first guess; None without a classifier.  sqnr_db: of ``model``'s outputs
    against ``against``'s.  cosine: of the outputs, mean over images; cosine_least: the worst image's.  equal:
    images whose outputs are equal to the last bit.
    """

    model: str
    against: str
    same: Share | None
    sqnr_db: float | None
    cosine: float
    cosine_least: float
    equal: int


@dataclass(frozen=True)
class Tensor:
    """One tensor of the network, summed over images.

    group, part: what it is and where, as people say it.  sqnr_db, cosine: of the golden model against float;
    sqnr_calibrated_db, cosine_calibrated: of the calibrated model against float.  end_to_end: codes
    that differ between calibrated and golden, each computed from the pixels on; operator: that differ when
    the calibrated operator is given the golden model's inputs; ties: how many of the latter were, before
    rounding, within 1/1000 of a code of the boundary, so that float rounding decided.  The last three are
    None where there is no calibrated model.
    """

    name: str
    op: str
    group: str
    part: str
    elements: int
    sqnr_db: float | None
    cosine: float | None
    sqnr_calibrated_db: float | None
    cosine_calibrated: float | None
    end_to_end: int | None
    operator: int | None
    ties: int | None

    @property
    def agreement(self) -> float | None:
        """Share of equal codes, both models from the pixels on."""
        return None if self.end_to_end is None else 1 - self.end_to_end / self.elements

    @property
    def operator_agreement(self) -> float | None:
        """Share of equal codes of the operator alone."""
        return None if self.operator is None else 1 - self.operator / self.elements

    @property
    def least_agreement(self) -> float:
        """The smaller of both; 1 where nothing was compared."""
        shares = (self.agreement, self.operator_agreement)
        return min((share for share in shares if share is not None), default=1.0)


@dataclass(frozen=True)
class Cost:
    """What a quantiser, or a set of them, does to the output.

    group: what is quantised; part: where in the network; empty for a set that is of several.  count: of
    quantisers.  noise: energy of the output's error with nothing else quantised, as a share of the
    output's; alone_db: the same as SQNR.  without_db: SQNR of the output with everything else quantised;
    gain_db: how much better that is than with everything.
    """

    name: str
    group: str
    part: str
    count: int
    noise: float
    alone_db: float | None
    without_db: float | None
    gain_db: float | None


@dataclass(frozen=True)
class Sensitivity:
    """Where error enters.

    images: number of them.  all_db: SQNR of the output with every quantiser on.  groups, parts: of
    quantisers at once; quantisers: one by one, in order.
    """

    images: int
    all_db: float | None
    groups: tuple[Cost, ...]
    parts: tuple[Cost, ...]
    quantisers: tuple[Cost, ...]


@dataclass(frozen=True)
class Speed:
    """A model in a process of its own.

    one, batch: seconds an image, alone and in a batch of ``batch_size``, of the fastest run.  idle: bytes
    of memory of the process with its libraries and before the model; peak: at most.  threads: that it
    could use.
    """

    model: str
    one: float
    batch: float
    batch_size: int
    idle: int
    peak: int
    threads: int


@dataclass(frozen=True)
class Example:
    """An image on which the float and the golden model do not agree: its number in the data, and the
    classes that the three models say.
    """

    number: int
    name: str
    label: int | None
    says: tuple[int, ...]


@dataclass(frozen=True)
class Evaluation:
    """Everything that was found; ``differences``: golden and calibrated against float, golden against
    calibrated.

    model, bundle: as the bundle says.  traced: images whose tensors were compared.  lowering: largest
    difference of the lowered network's output from timm's, as a share of the largest output.
    """

    model: Mapping[str, Any]
    bundle: Mapping[str, Any]
    data: str
    images: int
    classes: tuple[str, ...] | None
    accuracies: tuple[Accuracy, ...]
    differences: tuple[Difference, ...]
    agreements: tuple[Agreement, ...]
    traced: int
    lowering: float
    tensors: tuple[Tensor, ...]
    sensitivity: Sensitivity | None
    speeds: tuple[Speed, ...]
    examples: tuple[Example, ...]
    notes: tuple[str, ...]

    @property
    def models(self) -> tuple[str, ...]:
        """Those of MODELS that there are."""
        seen = {name for pair in self.agreements for name in (pair.model, pair.against)}
        return tuple(name for name in MODELS if name in seen)

    @property
    def apart(self) -> tuple[Tensor, ...]:
        """The tensors whose codes are below the bar, worst first."""
        found = [tensor for tensor in self.tensors if tensor.least_agreement < BAR]
        return tuple(sorted(found, key=lambda tensor: tensor.least_agreement))

    @property
    def holds(self) -> bool | None:
        """Whether calibrated and golden model agree on BAR of every tensor's codes; None without both."""
        return not self.apart if "calibrated" in self.models else None

    def of(self, model: str) -> Accuracy:
        """Accuracy of a model; KeyError where there are no labels."""
        return {accuracy.model: accuracy for accuracy in self.accuracies}[model]

    def between(self, model: str, against: str) -> Agreement:
        """Agreement of a pair; KeyError for an unknown one."""
        return {(pair.model, pair.against): pair for pair in self.agreements}[model, against]


def document(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation as JSON: the dataclasses' fields, and what their properties say."""
    told = {"schema": SCHEMA, "version": VERSION, "holds": evaluation.holds, **asdict(evaluation)}
    for entry, tensor in zip(told["tensors"], evaluation.tensors, strict=True):
        entry["agreement"] = tensor.agreement
        entry["operator_agreement"] = tensor.operator_agreement
    return told

# SPDX-License-Identifier: Apache-2.0
"""What is to be proven, as data: a claim, what it covers, and the check that looks for a counterexample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Counterexample", "Property"]

Kind = Literal["arithmetic", "stream", "accumulator"]


@dataclass(frozen=True)
class Counterexample:
    """Why a claim is wrong, in golden's terms: a sentence, and the values of its names."""

    text: str
    values: Mapping[str, int | list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Property:
    """A claim about a unit.

    unit: the operator or module.  name: what of it, unique within the unit.  claim: one sentence.
    scope: what the proof covers, such as "all inputs", "every 40 cycles after reset", "induction".
    check: a counterexample, or None where the claim holds; a module's function (or a partial of one), so
    that a process of its own can run it.
    """

    unit: str
    name: str
    kind: Kind
    claim: str
    scope: str
    check: Callable[[], Counterexample | None]

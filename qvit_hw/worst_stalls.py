# SPDX-License-Identifier: Apache-2.0
"""A search for the stalls that cost a row unit most, in simulation.

    python -m qvit_hw.worst_stalls [--generations 6] [--seed 1] [--pauses 12]

The contract says that a cycle in which a side pauses delays a row by one cycle at most. Patterns of pauses on
both sides are changed and tried on the emitted Verilog, the one with the longest delay goes on; a delay
beyond the number of pauses would be a fault of the unit. What was found is a scenario of every simulation
(``sim.scenarios.WORST_STALLS``).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from golden.layernorm import LayerNormSpec
from golden.softmax import SoftmaxSpec
from qvit_hw.generate import build_unit
from sim.job import Case, Job, Pattern, Unit, load_unit
from sim.runner import Simulation, build, run_job
from sim.scenarios import STALLED_LENGTHS as LENGTHS
from sim.scenarios import Row, case_of, operator, predict
from sim.tools import find

__all__ = ["Stalls", "cases", "delays", "search", "small_unit"]

BROOD = 20
SPECS: dict[str, Any] = {
    "softmax": SoftmaxSpec(max_tokens=24),
    "layernorm": LayerNormSpec(max_channels=24),
}


@dataclass(frozen=True)
class Stalls:
    """Turns in which the input and the output pause."""

    inside: tuple[int, ...]
    outside: tuple[int, ...]

    @property
    def pauses(self) -> int:
        """How many there are."""
        return len(self.inside) + len(self.outside)


def small_unit(op: str, lanes: int, folder: Path) -> Unit:
    """Emit a small unit into a folder."""
    built = build_unit(op, SPECS[op], lanes)
    (folder / built.entry["file"]).write_text(built.verilog, encoding="utf-8")
    return load_unit(built.entry, folder)


def cases(unit: Unit, patterns: Sequence[Stalls], seed: int = 1) -> list[Case]:
    """The same rows under each pattern."""
    op, rng = operator(unit.op, unit.spec), np.random.default_rng(seed)
    params = op.random_params(rng, op.longest)
    rows = [Row(rng.integers(op.low, op.high, length, endpoint=True), params) for length in LENGTHS]
    return [
        case_of(
            f"stalls_{number}",
            rows,
            op,
            unit.lanes,
            stall_in=Pattern(turns=stalls.inside),
            stall_out=Pattern(turns=stalls.outside),
        )
        for number, stalls in enumerate(patterns)
    ]


def delays(simulation: Simulation, unit: Unit, patterns: Sequence[Stalls], folder: Path) -> list[int]:
    """Cycles by which the last beat comes later than the cycle model says of rows without stalls."""
    tried = cases(unit, patterns)
    lengths = np.array(LENGTHS, dtype=np.int64)
    told = int(predict(operator(unit.op, unit.spec), unit.lanes, lengths)[-1][3])
    results = run_job(simulation, Job(unit, tried), folder)
    for case, (outcome, fault) in zip(tried, results, strict=True):
        if fault is not None or not np.array_equal(outcome.codes, case.expected):
            raise AssertionError(f"stalls change codes: {fault}")
    return [int(outcome.beat_cycles[-1]) - told for outcome, _ in results]


def search(op: str, lanes: int, pauses: int, generations: int, seed: int, folder: Path) -> tuple[Stalls, int]:
    """The pattern of so many pauses with the longest delay, and that delay."""
    unit, rng = small_unit(op, lanes, folder), np.random.default_rng(seed)
    simulation = build(find("verilator"), unit.verilog, unit.top)
    horizon = 3 * sum(-(-length // lanes) for length in LENGTHS) + 60
    brood = [_random(rng, pauses, horizon) for _ in range(2 * BROOD)]
    best, most = brood[0], -1
    for _ in range(generations):
        found = delays(simulation, unit, brood, folder / "run")
        place = int(np.argmax(found))
        if found[place] >= most:
            best, most = brood[place], found[place]
        brood = [_changed(best, rng, horizon) for _ in range(BROOD)]
    return best, most


def _random(rng: np.random.Generator, pauses: int, horizon: int) -> Stalls:
    """So many pauses, in one burst or scattered, on one side or both."""
    begin, width = int(rng.integers(horizon)), int(rng.choice((pauses, 3 * pauses, horizon)))
    turns = begin + rng.choice(max(width, pauses), pauses, replace=False)
    share = float(rng.choice((0, 0.5, 1)))
    inside = rng.random(pauses) < share
    return Stalls(_turns(turns[inside]), _turns(turns[~inside]))


def _changed(stalls: Stalls, rng: np.random.Generator, horizon: int) -> Stalls:
    """Some of the pauses elsewhere, or on the other side."""
    sides = [set(stalls.inside), set(stalls.outside)]
    for _ in range(int(rng.integers(1, 4))):
        side = int(rng.integers(2)) if all(sides) else int(bool(sides[1]))
        turn = int(rng.choice(sorted(sides[side])))
        side_to = int(rng.integers(2))
        to = turn + int(rng.integers(-3, 4)) if rng.random() < 0.5 else int(rng.integers(horizon))
        if to >= 0 and to not in sides[side_to]:
            sides[side].remove(turn)
            sides[side_to].add(to)
    return Stalls(_turns(sides[0]), _turns(sides[1]))


def _turns(numbers: Any) -> tuple[int, ...]:
    return tuple(sorted(int(number) for number in numbers))


def main() -> int:
    """Search on both units; return 1 if a delay exceeds the pauses."""
    parser = argparse.ArgumentParser(description="Searches the stalls that cost a unit most.")
    parser.add_argument("--generations", type=int, default=6)
    parser.add_argument("--pauses", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    status = 0
    for op in SPECS:
        with tempfile.TemporaryDirectory(prefix="qvit-") as name:
            best, most = search(op, 2, options.pauses, options.generations, options.seed, Path(name))
        print(f"{op}: {best.pauses} pauses delay by {most} cycles: {asdict(best)}")
        status |= most > best.pauses
    return status


if __name__ == "__main__":
    raise SystemExit(main())

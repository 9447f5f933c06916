# SPDX-License-Identifier: Apache-2.0
"""Read what simulate left behind, and refuse it unless it is whole.

Everything downstream trusts these classes: a field that is missing, of another kind or negative is
one `UserError` here, never a blank in the page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from golden.tensorfile import read_json

from ..errors import UserError

__all__ = [
    "SCHEMA",
    "VERSION",
    "Divergence",
    "Intermediate",
    "Reader",
    "Results",
    "Run",
    "load_results",
]

SCHEMA = "qvit-hw/results"
VERSION = 1
_OPS = ("layernorm", "softmax")


@dataclass(frozen=True)
class Intermediate:
    """One named value of the diverging row, on both sides."""

    name: str
    golden: int | None
    rtl: int | None
    equal: bool


@dataclass(frozen=True)
class Divergence:
    """The first element of a run on which golden and RTL differ."""

    row: int
    column: int
    cycle: int
    golden: int
    rtl: int | None
    """None if the element never came."""
    intermediates: tuple[Intermediate, ...]
    waveform: str | None


@dataclass(frozen=True)
class Run:
    """One testbench run: a layer's vectors, or a scenario."""

    op: str
    layer: str | None
    scenario: str
    lanes: int
    rows: int
    row_length: int | None
    elements: int
    mismatches: int
    max_difference: int
    float_equal: float | None
    float_max_difference: int | None
    sqnr_db: float | None
    cycles: int
    cycles_predicted: int | None
    latency: int
    latency_predicted: int | None
    stall_in_cycles: int
    stall_out_cycles: int
    seconds: float
    output: str | None
    divergence: Divergence | None
    fault: str | None
    """What the testbench says is wrong, in one line."""

    @property
    def name(self) -> str:
        """What a person calls it: the layer, or the scenario."""
        return self.scenario if self.layer is None else self.layer

    @property
    def timing_holds(self) -> bool:
        """Whether cycles and latency are what the cycle model said, where it said anything."""
        return self.cycles_predicted in (None, self.cycles) and self.latency_predicted in (
            None,
            self.latency,
        )

    @property
    def passed(self) -> bool:
        """No mismatch, the cycle model holds, and the testbench has no complaint."""
        sound = not self.mismatches and self.divergence is None and self.fault is None
        return sound and self.timing_holds


@dataclass(frozen=True)
class Results:
    """All of results.json."""

    folder: Path
    bundle: Mapping[str, Any]
    bundle_path: Path | None
    simulator: str
    rtl: Mapping[str, str]
    seed: int
    runs: tuple[Run, ...]
    passed: bool

    @property
    def layers(self) -> list[Run]:
        """Runs over a layer's vectors."""
        return [run for run in self.runs if run.layer is not None]

    @property
    def scenarios(self) -> list[Run]:
        """Runs that belong to no layer."""
        return [run for run in self.runs if run.layer is None]

    def outputs(self) -> dict[str, np.ndarray]:
        """The RTL's output codes by name; raises UserError if a run's output is not there."""
        wanted = {run.output for run in self.runs if run.output is not None}
        if not wanted:
            return {}
        path = self.folder / "outputs.safetensors"
        try:
            found: dict[str, np.ndarray] = load_file(path)
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(f"Outputs {str(path)!r} are missing or damaged.") from error
        missing = sorted(wanted - set(found))
        if missing:
            raise UserError(f"Outputs {str(path)!r} must hold {missing[0]!r}, which is not there.")
        return found


def load_results(folder: Path) -> Results:
    """Read ``folder/results.json``; raise UserError in one sentence for anything amiss."""
    path = folder / "results.json"
    if not folder.is_dir():
        raise UserError(f"Results folder {str(folder)!r} does not exist.")
    try:
        data = read_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{str(folder)!r} holds no results.json: is it simulate's --out?") from None
    except (OSError, ValueError) as error:
        raise UserError(f"Results {str(path)!r} are damaged: {_first_line(error)}.") from error
    reader = Reader(path)
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise UserError(f"{str(path)!r} must be of schema {SCHEMA!r}.")
    if data.get("version") != VERSION:
        raise UserError(f"{str(path)!r} must be of version {VERSION}, not {data.get('version')!r}.")
    simulator = reader.get(data, "simulator", (dict,), "results")
    bundle_path = data.get("bundle_path")
    runs = reader.get(data, "runs", (list,), "results")
    if not runs:
        raise UserError(f"Results {str(path)!r} hold no run: nothing was compared.")
    results = Results(
        folder=folder,
        bundle=reader.get(data, "bundle", (dict,), "results"),
        bundle_path=folder / bundle_path if isinstance(bundle_path, str) else None,
        simulator=_name(simulator),
        rtl=reader.get(data, "rtl", (dict,), "results"),
        seed=reader.get(data, "seed", (int,), "results"),
        runs=tuple(reader.run(run, index) for index, run in enumerate(runs)),
        passed=reader.get(data, "passed", (bool,), "results"),
    )
    if not any(run.elements for run in results.runs):
        raise UserError(f"Results {str(path)!r} compare no element.")
    return results


def _name(simulator: Mapping[str, Any]) -> str:
    """Name and version, the name not twice."""
    name, version = str(simulator.get("name", "?")), str(simulator.get("version", ""))
    return version if version.lower().startswith(name.lower()) else f"{name} {version}".strip()


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


_NUMBER = (int, float)
_NONE = type(None)
_KINDS: dict[str, tuple[type, ...]] = {
    "op": (str,),
    "layer": (str, _NONE),
    "scenario": (str,),
    "row_length": (int, _NONE),
    "float_equal": (*_NUMBER, _NONE),
    "float_max_difference": (int, _NONE),
    "sqnr_db": (*_NUMBER, _NONE),
    "cycles_predicted": (int, _NONE),
    "latency_predicted": (int, _NONE),
    "seconds": _NUMBER,
    "output": (str, _NONE),
    "fault": (str, _NONE),
}
"""Kinds of a run's fields; a field that is not listed is an integer."""
_SIGNED = frozenset(("sqnr_db",))


class Reader:
    """Takes fields out of a parsed file and holds them to their kinds."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def fail(self, fault: str) -> NoReturn:
        """Say what is wrong with the file."""
        raise UserError(f"{str(self._path)!r} is damaged: {fault}.")

    def get(self, data: Mapping[str, Any], key: str, kinds: tuple[type, ...], where: str) -> Any:
        """The field ``key`` of one of the ``kinds``; not negative if ``where`` is a run."""
        value = data.get(key, self)
        if value is self:
            self.fail(f"{where} must have a field {key!r}")
        wrong_bool = isinstance(value, bool) and bool not in kinds
        wrong_float = isinstance(value, float) and not math.isfinite(value)
        negative = isinstance(value, int | float) and value < 0 and key not in _SIGNED
        if wrong_bool or wrong_float or not isinstance(value, kinds):
            names = " or ".join("null" if kind is _NONE else kind.__name__ for kind in kinds)
            self.fail(f"{key!r} of {where} must be {names}, not {value!r}")
        if negative and where.startswith("run"):
            self.fail(f"{key!r} of {where} must be at least 0, not {value!r}")
        return value

    def run(self, data: Any, index: int) -> Run:
        """The fields of a testbench's run."""
        where = f"run {index}"
        if not isinstance(data, dict):
            self.fail(f"{where} must be an object")
        values = {
            field.name: self.get(data, field.name, _KINDS.get(field.name, (int,)), where)
            for field in fields(Run)
            if field.name != "divergence"
        }
        if values["op"] not in _OPS:
            self.fail(f"'op' of {where} must be one of {', '.join(_OPS)}, not {values['op']!r}")
        return Run(**values, divergence=self._divergence(data.get("divergence"), where))

    def _divergence(self, data: Any, where: str) -> Divergence | None:
        if data is None:
            return None
        where = f"the divergence of {where}"
        if not isinstance(data, dict):
            self.fail(f"{where} must be an object")
        ints = {
            key: self.get(data, key, (int,), where) for key in ("row", "column", "cycle", "golden")
        }
        rows = self.get(data, "intermediates", (list,), where)
        intermediates = tuple(
            Intermediate(
                name=self.get(row, "name", (str,), where),
                golden=self.get(row, "golden", (int, _NONE), where),
                rtl=self.get(row, "rtl", (int, _NONE), where),
                equal=self.get(row, "equal", (bool,), where),
            )
            for row in rows
        )
        return Divergence(
            **ints,
            rtl=self.get(data, "rtl", (int, _NONE), where),
            intermediates=intermediates,
            waveform=self.get(data, "waveform", (str, _NONE), where),
        )

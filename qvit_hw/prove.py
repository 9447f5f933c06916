# SPDX-License-Identifier: Apache-2.0
"""Prove that the units compute what golden computes, for all inputs.

    python -m qvit_hw.prove [--out build/proofs] [--only "softmax*"] [--jobs 2]

Each property is put to a solver in one of several processes; the folder gets a page and its JSON. The exit
status is 1 where a property has a counterexample or stays undecided.
"""

from __future__ import annotations

import fnmatch
import importlib
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from .errors import UserError, check_packages
from .outputs import check_replaced, replace_folder
from .processes import ended_with, processes
from .progress import bars
from .report_page.frame import render

if TYPE_CHECKING:
    from .proofs.property import Property

__all__ = ["JSON", "PAGE", "SCHEMA", "Proof", "document", "page", "run"]

PAGE, JSON = "proofs.html", "proofs.json"
SCHEMA, VERSION = "qvit-hw/proofs", 1
MODULES = tuple(
    f"qvit_hw.proofs.{name}"
    for name in (
        *("arithmetic", "trees", "softmax", "layernorm", "matrix", "accumulators"),
        *("queues", "row_store", "turns", "packing", "bursts", "streams"),
    )
)


@dataclass(frozen=True)
class Proof:
    """What became of a property: ``proven``, ``refuted`` or ``undecided``, and why."""

    unit: str
    name: str
    kind: str
    claim: str
    scope: str
    status: str
    seconds: float
    text: str = ""
    values: dict[str, Any] | None = None


def run(
    *, out: Path = Path("build/proofs"), only: Sequence[str] | None = None, jobs: int | None = None
) -> int:
    """Prove everything (or what matches a pattern of ``only``); 1 if anything is not proven."""
    check_packages("verify", "pyosys", "bitwuzla")
    workers = processes(jobs)
    check_replaced(out, JSON, SCHEMA, " and no proofs")
    names = _names(only)
    began = time.monotonic()
    found = list(_proofs(names, workers))
    found.sort(key=lambda proof: names.index((proof.unit, proof.name)))
    told = document(found, time.monotonic() - began, only)
    replace_folder(out, {JSON: told, PAGE: page(told)})
    _print(told, out / PAGE)
    return 0 if told["passed"] else 1


def _properties() -> list[Property]:
    return [
        item
        for name in MODULES
        for item in importlib.import_module(name).properties()
    ]


def _names(only: Sequence[str] | None) -> list[tuple[str, str]]:
    """(unit, name) of what is to be proven."""
    names = [(item.unit, item.name) for item in _properties()]
    for pattern in only or ():
        if not any(_matches(unit, name, pattern) for unit, name in names):
            units = ", ".join(dict.fromkeys(unit for unit, _ in names))
            raise UserError(f"No property is called {pattern!r}; the units are {units}.")
    if not only:
        return names
    return [(u, n) for u, n in names if any(_matches(u, n, pattern) for pattern in only)]


def _matches(unit: str, name: str, pattern: str) -> bool:
    return unit == pattern or fnmatch.fnmatchcase(f"{unit}: {name}", pattern)


def _proofs(names: Sequence[tuple[str, str]], jobs: int) -> Iterator[Proof]:
    """Each property's proof, as they become ready."""
    context = multiprocessing.get_context("spawn")
    with bars() as bar, ProcessPoolExecutor(min(jobs, len(names)), context) as pool:
        task = bar.add_task("proving", total=len(names))
        with ended_with():
            waiting = [pool.submit(attempt, unit, name) for unit, name in names]
            for future in as_completed(waiting):
                proof = future.result()
                bar.update(task, advance=1, description=f"proving {proof.unit}")
                yield proof


def attempt(unit: str, name: str) -> Proof:
    """Put one property to the solver."""
    from .proofs.case import Undecided

    item = next(item for item in _properties() if (item.unit, item.name) == (unit, name))
    began, text, values = time.monotonic(), "", None
    try:
        found = item.check()
        status = "proven" if found is None else "refuted"
        if found is not None:
            text, values = found.text, dict(found.values)
    except (Undecided, TimeoutError) as reason:
        status, text = "undecided", str(reason)
    told = {key: getattr(item, key) for key in ("unit", "name", "kind", "claim", "scope")}
    return Proof(**told, status=status, seconds=time.monotonic() - began, text=text, values=values)


def document(
    found: Sequence[Proof], seconds: float, only: Sequence[str] | None = None
) -> dict[str, Any]:
    """The JSON of a run; only: what was asked for, if not everything."""
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "only": list(only or ()),
        "passed": all(proof.status == "proven" for proof in found),
        "proven": sum(proof.status == "proven" for proof in found),
        "properties": len(found),
        "seconds": round(seconds, 1),
        "proofs": [asdict(proof) | {"seconds": round(proof.seconds, 2)} for proof in found],
    }


def page(told: dict[str, Any]) -> str:
    """The page of a run's JSON."""
    proofs = told["proofs"]
    whole = told["proven"] == told["properties"]
    return render(
        "proofs.html.j2",
        kind="proofs",
        number=str(told["proven"]) if whole else f"{told['proven']} of {told['properties']}",
        of="properties proven",
        passed=told["passed"],
        only=told["only"],
        proofs=proofs,
        units=list(dict.fromkeys(proof["unit"] for proof in proofs)),
        kinds={
            kind: sum(proof["kind"] == kind for proof in proofs)
            for kind in dict.fromkeys(proof["kind"] for proof in proofs)
        },
        open_=[proof for proof in proofs if proof["status"] != "proven"],
        seconds=told["seconds"],
    )


def _print(told: dict[str, Any], where: Path) -> None:
    console = Console(highlight=False)
    table = Table("unit", "property", "scope", "status", "s", box=None)
    table.columns[-1].justify = "right"
    for proof in told["proofs"]:
        colour = {"proven": "green", "refuted": "red", "undecided": "yellow"}[proof["status"]]
        status = f"[{colour}]{proof['status']}[/]"
        table.add_row(proof["unit"], proof["name"], proof["scope"], status, f"{proof['seconds']:.1f}")
    console.print(table)
    for proof in told["proofs"]:
        if proof["status"] != "proven":
            console.print(f"{proof['status']}: {proof['text']}", style="red", soft_wrap=True)
    console.print(
        f"{told['proven']} of {told['properties']} properties proven in {told['seconds']:.0f} s: {where}",
        soft_wrap=True,
    )


if __name__ == "__main__":
    from qvit_hw.cli import main

    main("prove")

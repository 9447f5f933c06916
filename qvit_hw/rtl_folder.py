# SPDX-License-Identifier: Apache-2.0
"""The folder that generate wrote, read back by simulate: whole, unmodified, made for these specs."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from golden.tensorfile import read_json
from qvit_hw.errors import UserError
from sim.job import Unit, load_unit

__all__ = ["SCHEMA", "load_rtl"]

SCHEMA = "qvit-hw/rtl"
"""What the manifest of such a folder says that it is."""


def load_rtl(
    folder: Path, specs: dict[str, Any], *, allow_modified: bool = False
) -> dict[str, Unit]:
    """Return the units of an RTL folder by operator; UserError for the first thing amiss.

    specs: what each operator must have been built for. A Verilog file that is not the one its
    manifest was written with is an error, or with ``allow_modified`` a warning on stderr.
    """
    try:
        manifest = read_json((folder / "manifest.json").read_bytes())
    except FileNotFoundError:
        raise UserError(f"{str(folder)!r} holds no manifest.json: is it generate's --out?") from None
    except (OSError, ValueError) as error:
        raise UserError(f"The manifest in {str(folder)!r} cannot be read: {error}.") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise UserError(f"The manifest in {str(folder)!r} must be of schema {SCHEMA!r}.")
    if manifest.get("version") != 1:
        told = manifest.get("version")
        raise UserError(f"The manifest in {str(folder)!r} must be of version 1, not {told!r}.")
    units: dict[str, Unit] = {}
    entries = manifest.get("units", [])
    if not isinstance(entries, list):
        raise UserError(f"The manifest in {str(folder)!r} must list its units.")
    for entry in entries:
        try:
            if Path(entry["file"]).name != entry["file"]:
                raise UserError(f"A unit's file must be a plain name, not {entry['file']!r}.")
            unit = load_unit(entry, folder)
            _check_kinds(unit)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"The manifest in {str(folder)!r} is damaged: {error!r}.") from error
        if unit.op in specs:
            _check_spec(unit, asdict(specs[unit.op]))
            units[unit.op] = _check_file(unit, allow_modified)
    if not units:
        raise UserError(f"{str(folder)!r} holds no unit for this bundle.")
    return units


def _check_kinds(unit: Unit) -> None:
    """Raise TypeError unless all that a testbench reads of a unit is of its kind."""
    kinds: dict[str, type] = {
        **dict.fromkeys(("op", "top", "sha256"), str),
        **dict.fromkeys(("lanes", "in_slot", "out_slot", "adapter"), int),
        **dict.fromkeys(("out_signed", "has_mask"), bool),
        "spec": dict, "registers": dict, "probes": list,
    }
    for name, kind in kinds.items():
        value = getattr(unit, name)
        if not isinstance(value, kind) or (isinstance(value, int) and not 0 <= value <= 64):
            raise TypeError(f"{name} of a unit must be of type {kind.__name__}, not {value!r}")
    if not 1 <= unit.lanes <= 32 or not min(unit.in_slot, unit.out_slot) >= 1:
        raise TypeError(f"lanes and slots of a unit must be from 1, not {unit.lanes!r}")
    if not all(type(offset) is int for offset in unit.registers.values()):
        raise TypeError(f"registers must be offsets, not {unit.registers!r}")
    for probe in unit.probes:
        if {type(probe[key]) for key in ("name", "signal", "valid")} != {str}:
            raise TypeError(f"a probe must name signals, not {probe!r}")


def _check_spec(unit: Unit, wanted: dict[str, Any]) -> None:
    for name, value in wanted.items():
        if unit.spec.get(name) != value:
            raise UserError(
                f"{unit.top} must be generated for the bundle's spec: {name} must be {value!r}, "
                f"not {unit.spec.get(name)!r}."
            )


def _check_file(unit: Unit, allow_modified: bool) -> Unit:
    try:
        digest = hashlib.sha256(unit.verilog.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{str(unit.verilog)!r} cannot be read: {error.strerror}.") from error
    if digest == unit.sha256:
        return unit
    told = f"{unit.verilog.name} is not the file that the manifest was written with"
    if not allow_modified:
        raise UserError(f"{told}: generate it again, or run it as it is with --allow-modified.")
    Console(stderr=True).print(f"[yellow]warning:[/] {told}; it runs as it is")
    return replace(unit, sha256=digest)

# SPDX-License-Identifier: Apache-2.0
"""A bundle as a program of the accelerator.

    python -m qvit_hw.compile --bundle B --config 16x16|32x32|FILE.json [--fit] [--verilog] --out DIR

writes ``program.bin`` (the stream), ``program.json`` (what each instruction is for, where its results
belong, use of every memory, hashes), ``listing.txt`` and ``bundle/``, a copy of the bundle, so that a run can
be held against golden with nothing else at hand. With ``--verilog`` the hardware comes along,
``qvit_accelerator.v``. The same bundle and configuration give the same bytes; all of it or nothing is
written.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from rich.console import Console

from golden.accelerator import PRESETS, AcceleratorSpec
from golden.bundle import MANIFEST
from golden.tensorfile import read_json
from qvit_hw.bundle import Bundle, load_bundle
from qvit_hw.compiler.layout import fitted
from qvit_hw.compiler.listing import listing
from qvit_hw.compiler.program import INDEX, SCHEMA, STREAM
from qvit_hw.compiler.schedule import compile_network
from qvit_hw.compiler.stages import recognise
from qvit_hw.errors import UserError
from qvit_hw.outputs import check_replaced, replaced_folder

__all__ = ["TOP", "configuration", "run"]

LISTING = "listing.txt"
BUNDLE = "bundle"
TOP = "qvit_accelerator"
"""The hardware's top module."""


def run(
    *,
    bundle: Path,
    out: Path,
    config: str = "16x16",
    fit: bool = False,
    verilog: bool = False,
    port_bits: int = 27,
) -> int:
    """Write a bundle's program into the folder ``out``; return the exit status, 0.

    config: a preset or a JSON file.  fit: take the units from the bundle, and enlarge memories.  verilog:
    write the hardware, too, for multipliers with a port of ``port_bits`` (27: UltraScale+, 18: others).
    UserError, with nothing written, where the configuration cannot run the network.
    """
    spec = configuration(config)
    check_replaced(out, INDEX, SCHEMA)
    loaded = load_bundle(bundle)
    if fit:
        spec = fitted(recognise(loaded.network), spec)
    notes = {
        "model": loaded.manifest["model"].get("name"),
        "preset": loaded.manifest["preset"],
        "bundle": loaded.sha256,
    }
    program = compile_network(loaded.network, spec, notes)
    contents = {STREAM: program.words.tobytes(), LISTING: listing(program).encode("utf-8")}
    contents |= {f"{BUNDLE}/{name}": content for name, content in _copied(loaded).items()}
    if verilog:
        contents[f"{TOP}.v"] = _verilog(spec, port_bits)
    index = program.to_json()
    index["files"] = {name: hashlib.sha256(part).hexdigest() for name, part in contents.items()}
    contents[INDEX] = (json.dumps(index, indent=1) + "\n").encode("utf-8")
    with replaced_folder(out) as folder:
        (folder / BUNDLE).mkdir()
        for name, content in contents.items():
            (folder / name).write_bytes(content)
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    console.print(
        f"{out}: {len(program.steps)} instructions, {program.words.size:,} bytes, "
        f"for a {spec.size} x {spec.size} array"
    )
    return 0


def _verilog(spec: AcceleratorSpec, port_bits: int) -> bytes:
    from rtl.accelerator import Accelerator  # Amaranth: only where hardware is asked for
    from rtl.emit import emit

    if not 18 <= port_bits <= 27:
        raise UserError(f"Multiplier port width must be 18 to 27, not {port_bits}.")
    with Console(stderr=True).status("emitting the accelerator"):
        return emit(Accelerator(spec, port_bits=port_bits), TOP).encode("utf-8")


def configuration(name: str) -> AcceleratorSpec:
    """A preset by its name, or the spec in a JSON file; UserError for anything else."""
    if name in PRESETS:
        return PRESETS[name]
    if not name.endswith(".json"):
        raise UserError(
            f"Configuration must be {', '.join(PRESETS)} or a file *.json, not {name!r}."
        )
    try:
        return AcceleratorSpec.from_json(read_json(Path(name).read_bytes()))
    except OSError as error:
        raise UserError(f"Configuration {name!r} cannot be read: {error.strerror}.") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"Configuration {name!r} is not sound: {error}.") from None


def _copied(bundle: Bundle) -> dict[str, bytes]:
    """The bundle's files by name."""
    names = [MANIFEST, *bundle.manifest["files"]]
    return {name: (bundle.path / name).read_bytes() for name in names}


if __name__ == "__main__":
    from .cli import main

    main("compile")

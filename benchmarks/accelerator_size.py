# SPDX-License-Identifier: Apache-2.0
"""Size of the accelerator by unit with open tools: ``python benchmarks/accelerator_size.py``.

Yosys' ``synth_xilinx -family xcup`` and ``synth_ecp5``, the hierarchy kept so that the cells of each unit can
be counted. A latch anywhere ends it with an error. Nothing is placed or routed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from amaranth.back import rtlil
from pyosys import libyosys
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.size import LUTS_OF_RAM, PORT_BITS
from golden.accelerator import PRESETS, AcceleratorSpec
from rtl.accelerator import Accelerator

SCRIPTS = {
    "xcup": "synth_xilinx -family xcup -top top -noiopad -noclkbuf",
    "ecp5": "synth_ecp5 -top top",
}
LATCHES = ("LDCE", "LDPE", "$_DLATCH_P_", "$_DLATCH_N_", "$dlatch", "$adlatch")


def modules(spec: AcceleratorSpec, target: str, folder: Path) -> dict[str, Any]:
    """Yosys' statistics, by module, of the mapped accelerator."""
    top = Accelerator(spec, port_bits=PORT_BITS[target])
    (folder / "top.il").write_text(rtlil.convert(top, name="top", emit_src=False))
    design = libyosys.Design()
    for name, line in (
        ("read.log", f"read_rtlil {folder / 'top.il'}"),
        # Amaranth names fields like bits (`\\x[0]`), names that Yosys gives to bits of its own.
        ("names.log", "rename -hide w:*"),
        ("synth.log", SCRIPTS[target]),
        ("stat.json", "stat -json"),
    ):
        libyosys.run_pass(f"tee -q -o {folder / name} {line}", design)
    found: dict[str, Any] = json.loads((folder / "stat.json").read_text())["modules"]
    return found


def totals(found: dict[str, Any], module: str) -> Counter[str]:
    """Cells of a module and of all below it."""
    count: Counter[str] = Counter()
    for cell, number in found[module]["num_cells_by_type"].items():
        if "\\" + cell in found or cell in found:
            inner = totals(found, cell if cell in found else "\\" + cell)
            for name, inside in inner.items():
                count[name] += inside * number
        else:
            count[cell] += number
    return count


def figures(target: str, count: Counter[str]) -> dict[str, float]:
    """LUT, FF, DSP and BRAM of some cells."""
    if latches := {name: count[name] for name in LATCHES if count[name]}:
        raise SystemExit(f"latches: {latches}")
    if target == "xcup":
        ram = sum(count[name] * luts for name, luts in LUTS_OF_RAM.items())
        ram += sum(n for name, n in count.items() if name.startswith("SRL"))
        return {
            "LUT": sum(count[f"LUT{n}"] for n in range(1, 7)) + count["INV"] + ram,
            "FF": sum(n for name, n in count.items() if name.startswith("FD")),
            "DSP": count["DSP48E2"],
            "BRAM": (count["RAMB18E2"] + 2 * count["RAMB36E2"]) / 2,
        }
    return {
        "LUT": count["LUT4"] + 2 * count["CCU2C"] + 4 * count["TRELLIS_DPR16X4"],
        "FF": count["TRELLIS_FF"],
        "DSP": count["MULT18X18D"],
        "BRAM": count["DP16KD"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", choices=PRESETS, default="16x16")
    parser.add_argument("--target", nargs="+", choices=SCRIPTS, default=list(SCRIPTS))
    options = parser.parse_args()
    console = Console(width=100)
    for target in options.target:
        with tempfile.TemporaryDirectory() as folder, console.status(f"{target}: {options.config}"):
            found = modules(PRESETS[options.config], target, Path(folder))
        names = [name for name in found if name.strip("\\").count(".") in (1, 2)]
        table = Table(title=f"{options.config} for {target}")
        for title in ("unit", "LUT", "FF", "DSP", "BRAM"):
            table.add_column(title, justify="left" if title == "unit" else "right")
        top = next(name for name in found if name.strip("\\") == "top")
        for name in [*sorted(names), top]:
            row = figures(target, totals(found, name))
            shown = name.strip("\\").removeprefix("top.")
            table.add_row(shown, *(f"{value:g}" for value in row.values()))
        console.print(table)


if __name__ == "__main__":
    main()

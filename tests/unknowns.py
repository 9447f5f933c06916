# SPDX-License-Identifier: Apache-2.0
"""Verilog of which nothing is initialised: what an ASIC is after power-up, before its reset.

The emitted text gives each register its reset value as its first value, and each memory that is written
zeros: an FPGA starts so. :func:`uninitialised` takes both away:

    reg [3:0] level = 4'h0;                                   ->  reg [3:0] level;
    initial begin : zero_ring ... for (...) ring[i] = 0; end  ->  nothing

A table (a memory that nothing writes) keeps its contents, and so does the register ``wake_up`` of each
module, which no hardware has: it makes ``always @*`` run once at time zero.
"""

import re

REGISTER = re.compile(r"(?m)^(  reg (?:signed )?(?:\[\d+:\d+\] )?(?:\\\S+ |\w+)) *= \d+'[a-z][0-9a-f]+;$")
ZEROS = re.compile(
    r"(?m)^  initial begin : zero_\w+\n    integer i;\n"
    r"    for \(.*\) (\\\S+ |\w+)\[i\] = .*;\n  end\n"
)
TABLE = re.compile(r"(?m)^  initial begin\n(?:    (\\\S+ |\w+)\[\d+\] = .*;\n)+  end\n")


def uninitialised(text: str) -> str:
    """The same hardware, with nothing in its registers and memories."""
    parts = re.split(r"(?m)^(?=module )", text)
    return "".join(_module(part) for part in parts)


def _module(whole: str) -> str:
    text = REGISTER.sub(r"\1;", whole)
    for pattern in (ZEROS, TABLE):
        text = pattern.sub(lambda match: "" if _is_written(match[1], whole) else match[0], text)
    left = re.findall(r"(?m)^  (?:reg .* = .*|initial (?!wake_up|begin).*)$", text)
    assert not left, left
    return text


def _is_written(memory: str, text: str) -> bool:
    return re.search(rf"(?m)^ *{re.escape(memory.strip())} ?\[.*\] <= ", text) is not None


def without_reset(text: str, register: str) -> str:
    """The same Verilog, in which the reset leaves one register as it is."""
    clocked = rf"(?m)^ *{re.escape(register)} <= (\\\$\d+ ?);"
    (value,) = set(re.findall(clocked, text))
    changed, count = re.subn(
        rf"    if \(rst\) begin\n      {re.escape(value)} = [^;]*;\n    end\n", "", text, count=1
    )
    assert count == 1, f"{register} has no reset"
    return changed

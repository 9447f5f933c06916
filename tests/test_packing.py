# SPDX-License-Identifier: Apache-2.0
"""Registers in multipliers and block RAMs of ECP5: the netlist still computes what the design says."""

import json
import re

import pytest

from qvit_hw.costing.packing import pack_registers
from qvit_hw.costing.yosys import Failed, run_passes

DESIGN = """
module {name}(input clk, input rst, input signed [8:0] a, input signed [7:0] b, input [17:0] word,
              input write, input [9:0] into, input [9:0] from, output reg signed [16:0] product,
              output reg [17:0] entry, output reg signed [8:0] copy);
  reg signed [8:0] x;
  reg signed [7:0] y;
  (* no_rw_check *) reg [17:0] memory[0:1023];
  reg [17:0] read;
  always @(posedge clk) begin
    x <= a;
    y <= b;
    product <= x * y;
    copy <= x;
    if (write) memory[into] <= word;
    read <= memory[from];
    entry <= read;
    if (rst) begin
      x <= 0;
      y <= 0;
      product <= 0;
    end
  end
endmodule
"""
MODELS = """
module MULT18X18D({ports});
  input {inputs};
  output {outputs};
  parameter REG_INPUTA_CLK = "NONE", REG_INPUTA_CE = "CE0", REG_INPUTA_RST = "RST0";
  parameter REG_INPUTB_CLK = "NONE", REG_INPUTB_CE = "CE0", REG_INPUTB_RST = "RST0";
  parameter REG_OUTPUT_CLK = "NONE", REG_OUTPUT_CE = "CE0", REG_OUTPUT_RST = "RST0";
  wire [17:0] a = {{{a}}}, b = {{{b}}};
  reg [17:0] ar, br;
  reg [35:0] pr;
  wire [17:0] x = REG_INPUTA_CLK == "CLK0" ? ar : a, y = REG_INPUTB_CLK == "CLK0" ? br : b;
  wire signed [36:0] p = $signed({{SIGNEDA & x[17], x}}) * $signed({{SIGNEDB & y[17], y}});
  wire [3:0] resets = {{RST3, RST2, RST1, RST0}};
  always @(posedge CLK0) if (CE0) begin
    ar <= resets[REG_INPUTA_RST[1:0]] ? 0 : a;
    br <= resets[REG_INPUTB_RST[1:0]] ? 0 : b;
    pr <= resets[REG_OUTPUT_RST[1:0]] ? 0 : p[35:0];
  end
  assign {{{p}}} = REG_OUTPUT_CLK == "CLK0" ? pr : p[35:0];
endmodule
"""
"""A multiplier by its documentation, of which Yosys has no model; the last two bits of "RST2" are 2."""
RAM = """
module DP16KD({ports});
  input {inputs};
  output {outputs};
  parameter REGMODE_B = "NOREG";
  {ignored}
  reg [17:0] memory[0:1023];
  reg [17:0] latch, register;
  always @(posedge CLKA) if (CEA & WEA) memory[{{{write}}}] <= {{{data}}};
  always @(posedge CLKB) begin
    if (CEB) latch <= memory[{{{read}}}];
    if (OCEB) register <= latch;
  end
  assign {{{out}}} = REGMODE_B == "OUTREG" ? register : latch;
endmodule
"""
"""A RAM of 18-bit words that is written at port A and read at port B."""
CHECK = """
module check(input clk, input rst);
  reg [63:0] noise = 64'h9e3779b97f4a7c15;
  reg [6:0] cycle = 0;
  wire early = ~cycle[6];
  always @(posedge clk) begin
    noise <= {noise[62:0], noise[63] ^ noise[62] ^ noise[60] ^ noise[59]};
    cycle <= cycle + early;
  end
  wire signed [16:0] product[0:1];
  wire [17:0] entry[0:1];
  wire signed [8:0] copy[0:1];
  wire [9:0] into = early ? cycle[5:0] : noise[41:36], from = noise[51:46];  // of 64 words
  wire again = rst | &noise[60:58];
  gold g(clk, again, noise[8:0], noise[16:9], noise[34:17], early | noise[35] & into != from, into, from,
         product[0], entry[0], copy[0]);
  top t(.clk(clk), .rst(again), .a(noise[8:0]), .b(noise[16:9]), .word(noise[34:17]),
        .write(early | noise[35] & into != from), .into(into), .from(from),
        .product(product[1]), .entry(entry[1]), .copy(copy[1]));
  reg [3:0] settled = 0;
  always @(posedge clk) if (!early & !(&settled)) settled <= settled + 1;
  always @* if (&settled) assert (product[0] == product[1] && entry[0] == entry[1] && copy[0] == copy[1]);
endmodule
"""


def bits(prefix, count):
    return ", ".join(f"{prefix}{bit}" for bit in reversed(range(count)))


def models(cells):
    """Verilog of the two blocks, with the ports that the netlist's have."""
    texts = []
    for kind, template in (("MULT18X18D", MODELS), ("DP16KD", RAM)):
        cell = next(cell for cell in cells.values() if cell["type"] == kind)
        directions = cell["port_directions"]
        named = {way: ", ".join(n for n, w in directions.items() if w == way) for way in ("input", "output")}
        unread = {key for key in cell["parameters"] if not re.search(rf"\b{key}\b", template)}
        texts.append(
            template.format(
                ports=", ".join(directions),
                inputs=named["input"],
                outputs=named["output"],
                ignored="".join(f"parameter {key} = 0; " for key in sorted(unread)),
                a=bits("A", 18),
                b=bits("B", 18),
                p=bits("P", 36),
                write=", ".join(f"ADA{bit}" for bit in range(13, 3, -1)),
                read=", ".join(f"ADB{bit}" for bit in range(13, 3, -1)),
                data=bits("DIA", 18),
                out=bits("DOB", 18),
            )
        )
    return "\n".join(texts)


def made(folder, change=("", "")):
    """The design mapped in a folder, by itself or changed; the cells."""
    text = DESIGN.format(name="top").replace(*change)
    (folder / "unit.v").write_text(text)
    run_passes(["read_verilog unit.v", "synth_ecp5 -top top -json unit.json"], folder)
    return cells_of(folder)


def cells_of(folder):
    return json.loads((folder / "unit.json").read_text())["modules"]["top"]["cells"]


def simulated(folder, change=("", "")):
    """Demand that the netlist does what the design does, for 500 cycles of noise with resets."""
    text = models(cells_of(folder)) + DESIGN.format(name="gold").replace(*change) + CHECK
    (folder / "check.v").write_text(text)
    run_passes(["read_json unit.json", "select top", "write_verilog -selected -noattr mapped.v"], folder)
    run_passes(
        [
            "read_verilog -sv check.v",
            "read_verilog mapped.v",
            "read_verilog -nooverwrite +/lattice/cells_sim_ecp5.v",
            *("hierarchy -top check", "proc", "flatten", "memory -nomap", "memory_nordff"),
            *("chformal -lower", "opt_clean", "sim -clock clk -reset rst -rstlen 4 -n 500 -assert"),
        ],
        folder,
    )


def flip_flops(cells):
    return sum(cell["type"] == "TRELLIS_FF" for cell in cells.values())


@pytest.mark.parametrize("change", [("", ""), ("      y <= 0;", "")], ids=["one reset", "two resets"])
def test_registers_go_into_the_blocks_and_nothing_else_changes(tmp_path, change):
    before = made(tmp_path, change)
    assert pack_registers(tmp_path / "unit.json") == 18 + 18 + 17 + 18
    after = cells_of(tmp_path)
    # x has a second reader: it stays, and the multiplier has a copy.
    assert flip_flops(before) - flip_flops(after) == 8 + 17 + 18
    kinds = {cell["type"]: cell["parameters"] for cell in after.values()}
    assert kinds["MULT18X18D"]["REG_INPUTA_CLK"] == kinds["MULT18X18D"]["REG_OUTPUT_CLK"] == "CLK0"
    assert (kinds["DP16KD"]["REGMODE_A"], kinds["DP16KD"]["REGMODE_B"]) == ("NOREG", "OUTREG")
    simulated(tmp_path, change)


def test_the_simulation_sees_a_register_too_many(tmp_path):
    made(tmp_path)
    pack_registers(tmp_path / "unit.json")
    simulated(tmp_path)
    text = (tmp_path / "unit.json").read_text()
    (tmp_path / "unit.json").write_text(text.replace('"REG_OUTPUT_CLK": "CLK0"', '"REG_OUTPUT_CLK": "NONE"'))
    with pytest.raises(Failed, match="assert"):
        simulated(tmp_path)


@pytest.mark.parametrize(
    ("change", "packed"),
    [
        (("product <= 0;", "product <= -1;"), 18 + 18 + 18),
        (("    y <= b;", "    if (write) y <= b;"), 18 + 17 + 18),
        (("product <= x * y;", "product <= (x * y) ^ a;"), 18 + 18 + 18),
        (("    entry <= read;", "    entry <= read; if (rst) entry <= 0;"), 18 + 18 + 17),
        (("    entry <= read;", "    entry <= read ^ word;"), 18 + 18 + 17),
    ],
    ids=["set", "enable", "logic behind", "a RAM's reset", "logic behind a RAM"],
)
def test_what_a_block_cannot_do_stays_outside(tmp_path, change, packed):
    made(tmp_path, change)
    assert pack_registers(tmp_path / "unit.json") == packed

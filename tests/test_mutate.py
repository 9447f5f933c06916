# SPDX-License-Identifier: Apache-2.0
"""Mutants of a tiny unit: found by the whole testbench, not by half of it, and told apart from no fault."""

import json

import pytest

from golden.gelu import GeluSpec
from golden.softmax import SoftmaxSpec
from qvit_hw import mutate
from qvit_hw.errors import UserError
from qvit_hw.generate import build_unit
from qvit_hw.mutation.accelerator import UNITS, Accelerated
from qvit_hw.mutation.attention import HEAD_UNITS
from qvit_hw.mutation.equivalence import Judge
from qvit_hw.mutation.schemata import CONTROL, FLAT, netlist, schemata
from qvit_hw.mutation.subjects import RowUnit
from qvit_hw.proofs.circuit import Circuit
from qvit_hw.trial import Desk, compiled, pictures, two_networks

TINY = GeluSpec(in_bits=4, out_bits=4)

LOGIC = """
module top(input aclk, input aresetn, input go, output reg [3:0] count, output near, output never);
  assign near = count == 4'd9;
  assign never = count > 4'd10;
  always @(posedge aclk)
    if (!aresetn) count <= 0;
    else if (go) count <= near ? 4'd0 : count + 4'd1;
  initial count = 0;
endmodule
"""


@pytest.fixture(scope="module")
def verilog():
    return build_unit("gelu", TINY, 1).verilog


def test_mutants_are_the_same_for_the_same_seed_and_leave_the_ports_alone(verilog):
    made = schemata(verilog, "qvit_gelu", 30, 1)
    assert made == schemata(verilog, "qvit_gelu", 30, 1) != schemata(verilog, "qvit_gelu", 30, 2)
    assert [mutant.number for mutant in made.mutants] == list(range(1, 31))
    head = made.verilog.partition("module qvit_gelu(")[2].partition(")")[0]
    assert CONTROL not in head.split(", ")
    assert "aclk" in head
    assert {mutant.port for mutant in made.mutants}.isdisjoint({"CLK", "clk", "aclk"})
    assert all(mutant.kind != "?" and mutant.text for mutant in made.mutants)


def test_groups_hold_their_modules_alone(verilog):
    made = schemata(verilog, "qvit_gelu", 5, 1, groups=["qvit_gelu", ".*core.*"])
    modules = [mutant.module for mutant in made.mutants]
    assert modules[:5] == ["qvit_gelu"] * 5
    assert all("core" in module for module in modules[5:])
    with pytest.raises(ValueError, match=r"^A group must have modules"):
        schemata(verilog, "qvit_gelu", 5, 1, groups=["softmax"])


def test_ports_that_must_be_constants_stay_so():
    """Yosys gives up writing a memory that is read without a clock, but with an enable or a reset."""
    (unit,) = [each for each in HEAD_UNITS if each.name == "attention-sqrt2"]
    made = schemata(unit.verilog(), unit.top, 200, 1)
    assert len(made.mutants) == 200
    reads = {mutant.port for mutant in made.mutants if mutant.kind.startswith("$memrd")}
    assert reads
    assert reads <= {"ADDR", "DATA"}


@pytest.mark.parametrize(
    ("edit", "how"),
    [
        # The counter never gets to 11 or beyond: no state that can be reached tells 10 from 12.
        (("count > 4'd10", "count > (mutant == 1 ? 4'd12 : 4'd10)"), "proven"),
        (("count > 4'd10", "count > (mutant == 1 ? 4'd8 : 4'd10)"), "different"),
        (("count == 4'd9", "count == 4'd9 || mutant == 1 && count == 4'd13"), "proven"),
        (("!aresetn", "!aresetn && mutant != 1"), "different"),
    ],
)
def test_a_difference_is_found_and_no_difference_is_proven(edit, how, tmp_path):
    assert edit[0] in LOGIC
    (tmp_path / "top.v").write_text(LOGIC.replace(*edit).replace("top(", "top(input mutant, "))
    yosys = netlist(tmp_path / "top.v", "top")
    yosys(*FLAT, f"write_btor {tmp_path / 'top.btor'}")
    verdict = Judge((tmp_path / "top.btor").read_text()).verdict(1)
    assert verdict.how in (how, "bounded" if how == "proven" else how)
    assert verdict.equivalent == (how == "proven")


GUARDED = """
module top(input mutant, input clk, input rst, input go, input stop, input [3:0] x, output [3:0] y);
  reg valid = 0, late = 0; reg [3:0] data = 0, next = 0; reg [1:0] state = 0; reg [3:0] kept = 0;
  always @(posedge clk) begin
    state <= rst ? 2'd0 : state == 0 ? {1'b0, go} : state == 1 ? 2'd2 : stop ? 2'd0 : 2'd2;
    kept <= state == 0 ? KEPT : kept;
    valid <= rst ? 1'b0 : VALID;
    late <= rst ? 1'b0 : valid;
    data <= go ? x : mutant ? ~x : x;
    next <= data;
  end
  assign y = (USE ? next : 4'd0) ^ (state == 1 ? kept : 4'd0);
endmodule
"""
"""Data beside a valid bit, through two registers; a parameter that one state of a machine uses."""


@pytest.mark.parametrize(
    ("valid", "use", "kept", "how"),
    [
        ("go", "late", "x", "proven"),
        ("go || mutant", "late", "x", "different"),  # what should guard it is broken
        ("1'b1", "late", "x", "different"),
        ("go", "late || valid", "x", "different"),  # it is looked at a cycle early, or late
        ("go", "1'b1", "x", "different"),
        ("go", "late", "go ? x : mutant ? ~x : x", "proven"),
        ("go", "late", "stop ? x : mutant ? ~x : x", "different"),
    ],
)
def test_data_counts_only_under_its_guard(valid, use, kept, how, tmp_path):
    text = GUARDED.replace("VALID", valid).replace("USE", use).replace("KEPT", kept)
    (tmp_path / "top.v").write_text(text)
    yosys = netlist(tmp_path / "top.v", "top")
    yosys(*FLAT, f"write_btor {tmp_path / 'top.btor'}")
    judge = Judge((tmp_path / "top.btor").read_text())
    assert judge.proven(1) == (how == "proven")
    assert judge.verdict(1, depth=8).how == how


READ = """
module top(input mutant, input clk, input [3:0] x, input \\unit.read__en , input [1:0] \\unit.read__from ,
           output [3:0] \\unit.read__word );
  reg [3:0] one = 0, other = 0; reg [1:0] from = 0;
  wire en = \\unit.read__en , chosen = \\unit.read__from == 1;
  always @(posedge clk) begin
    from <= \\unit.read__from ;
    one <= en && chosen ? x : one ^ {4{mutant && WRONG}};
    other <= en ? ~x : other;
  end
  assign \\unit.read__word  = from == 1 ? one : other;
endmodule
"""
"""A port that reads one of two words."""


@pytest.mark.parametrize(
    ("wrong", "how"), [("!en", "proven"), ("1'b1", "proven"), ("from == 1", "proven"), ("LATE", "different")]
)
def test_what_is_read_counts_in_the_cycle_after(wrong, how, tmp_path):
    text = READ.replace("WRONG", wrong)
    if wrong == "LATE":  # the word read is wrong, and not the one that is held
        text = text.replace("? x : one ^ {4{mutant && LATE}}", "? x ^ {3'b0, mutant} : one")
    (tmp_path / "top.v").write_text(text)
    yosys = netlist(tmp_path / "top.v", "top")
    yosys(*FLAT, f"write_btor {tmp_path / 'top.btor'}")
    judge = Judge((tmp_path / "top.btor").read_text())
    assert judge.reads
    assert judge.verdict(1, depth=8).how == how


BEGUN = """
module top(input mutant, input clk, input x, output y);
  reg first = 0, then = START;
  always @(posedge clk) begin first <= x; then <= 1; end
  assign y = then ? x : x ^ mutant;
endmodule
"""


@pytest.mark.parametrize(("start", "how"), [("1", "proven"), ("0", "different")])
def test_the_first_steps_count_though_nothing_leads_to_them(start, how, tmp_path):
    (tmp_path / "top.v").write_text(BEGUN.replace("START", start))
    yosys = netlist(tmp_path / "top.v", "top")
    yosys(*FLAT, f"write_btor {tmp_path / 'top.btor'}")
    assert Judge((tmp_path / "top.btor").read_text()).verdict(1, depth=8).how == how


def test_a_probe_stays_though_only_the_testbench_looks_at_it(tmp_path):
    (tmp_path / "top.v").write_text(
        "module part(input clk, input [3:0] x, output reg [3:0] seen, output reg [3:0] lost, output reg y);\n"
        "  always @(posedge clk) begin seen <= x; lost <= x + 1; y <= &x; end\nendmodule\n"
        "module top(input clk, input [3:0] x, output y);\n"
        "  wire [3:0] probe_x, lost; part part(clk, x, probe_x, lost, y);\nendmodule\n"
    )
    yosys = netlist(tmp_path / "top.v", "top")
    yosys(f"write_verilog {tmp_path / 'out.v'}")
    text = (tmp_path / "out.v").read_text()
    assert ".seen(probe_x)" in text
    assert "x + " not in text
    assert "look" not in text


@pytest.mark.parametrize(("offered", "how"), [("go", "proven"), ("1", "different")])
def test_a_payload_that_nobody_is_offered_means_nothing(offered, how, tmp_path):
    (tmp_path / "top.v").write_text(
        "module top(input mutant, input aclk, input go, input [1:0] x, output \\unit.i__valid ,"
        " output [1:0] \\unit.i__payload );\n"
        f"  assign \\unit.i__valid  = {offered};\n"
        "  assign \\unit.i__payload  = go ? x : {2{mutant}};\nendmodule\n"
    )
    yosys = netlist(tmp_path / "top.v", "top")
    yosys(*FLAT, f"write_btor {tmp_path / 'top.btor'}")
    assert Judge((tmp_path / "top.btor").read_text()).verdict(1).how == how


def told(out):
    document = json.loads((out / "mutation.json").read_text())
    assert (out / "mutation.html").read_text().startswith("<!doctype html>")
    return document


SMALL = SoftmaxSpec(max_tokens=4, code_bits=3)
WHOLE = ("ready_late", "mixed_lengths", "stall_both_0.5", "params_change", "corners", "short_rows")


def test_the_testbench_finds_the_mutants_of_a_tiny_unit(tmp_path):
    status = mutate.run(
        out=tmp_path, count=12, seed=2, subjects=[RowUnit("softmax", SMALL, 1, only=WHOLE)], patience=4
    )
    document = told(tmp_path)
    (unit,) = document["units"]
    assert unit["mutants"] == 12 == unit["killed"] + unit["proven"] + unit["bounded"] + unit["survived"]
    assert unit["killed"] >= 6  # half of them: none of these tests looks at the registers
    assert sum(unit["tests"].values()) + unit["hung"] + unit["crashed"] == unit["killed"]
    assert (status, document["passed"]) == ((0, True) if unit["score"] >= mutate.BAR else (1, False))


def test_half_a_testbench_leaves_survivors_and_says_so(tmp_path):
    poor = RowUnit("softmax", SMALL, 1, only=("reset_after_1",))
    assert mutate.run(out=tmp_path, count=8, seed=2, subjects=[poor], patience=2) == 1
    document = told(tmp_path)
    assert not document["passed"]
    left = [mutant for mutant in document["mutants"] if mutant["fate"] == "survived"]
    assert left
    assert all(mutant["hint"] and mutant["cell"] and mutant["mode"] for mutant in left)


def one_image(**more):
    """A session with one run; with ``abandon`` it is over before anything is computed."""
    models = two_networks()
    model, program = models[1], compiled(models)[1]
    desk, image = Desk(program.spec), pictures(program, 1)[0]
    if more:
        desk.run(program, image, **more)
    else:
        desk.whole(model, program, image)
    return desk


def test_the_accelerator_s_mutants_are_found_by_a_run_and_not_by_one_that_checks_nothing(tmp_path):
    found = []
    for number, desk in enumerate((one_image, lambda: one_image(abandon=1))):
        subject = Accelerated(session=desk, units={"array": UNITS["array"]}, registers=False)
        mutate.run(out=tmp_path / str(number), count=4, subjects=[subject], patience=1)
        (unit,) = told(tmp_path / str(number))["units"]
        assert (unit["unit"], unit["mutants"]) == ("array", 4)
        found.append(unit["killed"])
    assert found[0] >= 3
    assert found[1] == 0


def test_a_unit_is_compared_without_what_is_below_it(verilog):
    made = schemata(verilog, "qvit_gelu", 6, 1, groups=["qvit_gelu", "qvit_gelu_core.*"])
    assert set(made.circuits) == {"qvit_gelu", "qvit_gelu_core"}
    assert {mutant.holders for mutant in made.mutants} == {(name,) for name in made.circuits}
    outer, inner = (Circuit(made.circuits[name]) for name in ("qvit_gelu", "qvit_gelu_core"))
    # What the core answers may be anything, and what it is told must be equal.
    assert {"core.o__payload", "s_axis_tdata"} <= set(outer.inputs)
    assert {"core.i__payload", "m_axis_tdata"} <= set(outer.outputs)
    assert "i__payload" in inner.inputs
    more = schemata(verilog, "qvit_gelu", 2, 1, groups=["qvit_gelu_core.*"], together="qvit_gelu(_core)?")
    assert {mutant.holders for mutant in more.mutants} == {("qvit_gelu_core", "qvit_gelu and more")}
    assert not {"core.o__payload"} & set(Circuit(more.circuits["qvit_gelu and more"]).inputs)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"count": 0}, "Mutants must be at least 1"),
        ({"seed": -1}, "Seed must be at least 0"),
        ({"jobs": 0}, "Processes must be at least 1"),
        ({"only": ["sofmax"]}, "No unit is called 'sofmax'"),
    ],
)
def test_what_cannot_be_is_refused(options, said, tmp_path):
    with pytest.raises(UserError, match=f"^{said}"):
        mutate.run(out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()

# amaranth: UnusedElaboratable=no
# SPDX-License-Identifier: Apache-2.0
"""Proofs of arithmetic: golden on symbols is golden, what holds is proven, and what is broken is refuted."""

from __future__ import annotations

import importlib.util
import json
import pickle

import numpy as np
import pytest
from amaranth.hdl import Signal, signed, unsigned

import rtl.arith
import rtl.drain
import rtl.gelu
import rtl.layernorm
import rtl.requant
import rtl.residual
import rtl.row
import rtl.softmax
import rtl.stream
from golden.bounds import Interval
from golden.fixedpoint import rounding_shift, saturate
from golden.gelu import GeluSpec
from golden.layernorm import LayerNormSpec, _rsqrt
from golden.program import Sink
from golden.requant import RequantSpec
from golden.residual import ResidualSpec
from golden.softmax import SoftmaxParams, SoftmaxSpec, softmax_trace
from qvit_hw import cli, prove
from qvit_hw.proofs import arithmetic, layernorm, matrix, softmax, trees
from qvit_hw.proofs.case import Case, Claim, Undecided, bench, decide
from qvit_hw.proofs.circuit import Circuit
from qvit_hw.proofs.logic import Logic
from qvit_hw.proofs.property import Counterexample, Property
from qvit_hw.proofs.symbolic import Row, Symbols, lifted

REQUANT = RequantSpec(acc_bits=12, out_bits=4)
RESIDUAL = ResidualSpec(acc_bits=10, gain_bits=16, max_shift=1)
SOFTMAX = SoftmaxSpec(score_bits=8, frac_bits=3, code_bits=3, max_tokens=4, log_index_bits=6)
LAYERNORM = LayerNormSpec(in_bits=4, out_bits=4, max_shift=1, max_channels=16, table_bits=4)


# ------------------------------------------------------------------------------------------ symbols


def test_golden_on_constants_is_golden():
    """Symbols that are constants fold to numbers: the same code gives the same values."""
    symbols, rng = Symbols(Logic()), np.random.default_rng(1)
    shift, clip = lifted(rounding_shift, symbols), lifted(saturate, symbols)
    for x, n in zip(rng.integers(-1 << 40, 1 << 40, 200), rng.integers(0, 63, 200), strict=True):
        wanted = saturate(rounding_shift(x, n), 8)
        assert clip(shift(symbols.number(x), symbols.number(n)), 8).bits.signed_value == wanted
    params, trace = SoftmaxParams(frac=3), lifted(softmax_trace, symbols)
    for row in rng.integers(-2048, 2048, (20, 4)):
        found = trace(Row.of([symbols.number(t) for t in row]), SoftmaxSpec(), params)
        wanted = softmax_trace(row, SoftmaxSpec(), params)
        for name in ("code", "distance", "exponential"):
            assert [s.bits.signed_value for s in getattr(found, name)] == getattr(wanted, name).tolist()
    spec = LayerNormSpec()
    for variance in [1, 2, 3, spec.bounds["variance"].high, *rng.integers(1, 1 << 40, 50).tolist()]:
        found = lifted(_rsqrt, symbols)(symbols.number(variance), spec)
        wanted = _rsqrt(np.array([variance]), spec)
        assert [s.bits.signed_value for s in found] == [int(w[0]) for w in wanted]


def test_a_symbol_knows_its_interval():
    symbols = Symbols(Logic())
    x = symbols.of(symbols.logic.free(4), signed=True)
    assert (x.low, x.high) == (-8, 7)
    assert ((x + 3).low, (x * x).high, (x << 2).high, (x >> 1).low) == (-5, 64, 28, -4)
    largest = symbols.larger(x, 2)
    assert ((largest - x).low, (x - largest).low, (x & 5).high) == (0, -15, 5)
    with pytest.raises(TypeError, match=r"^golden must not branch on a symbol$"):
        bool(x)


# ------------------------------------------------------------------------------------- what is sound

SOUND = [
    (arithmetic.rounding, 12, 4),
    (arithmetic.saturation, 9, 8),
    (arithmetic.product, signed(20), signed(21), 18),
    (arithmetic.squares, 6),
    (arithmetic.shifting, 12, 4, 12),
    (arithmetic.requant_lane, REQUANT, 18),
    (arithmetic.residual_lane, RESIDUAL, 27),
    (arithmetic.gelu_address, GeluSpec(in_bits=4, out_bits=4)),
    (softmax.exponential, SOFTMAX),
    (softmax.logarithm, SOFTMAX),
    (softmax.row, SOFTMAX, 2, (0, 0, 0)),
    (layernorm.variance, LAYERNORM, 27),
    (layernorm.root, LAYERNORM),
    (layernorm.factors, LAYERNORM, 18),
    (layernorm.lane, LAYERNORM, 27),
    (trees.summed, signed(12)),
    (trees.counted,),
    (matrix.operand, matrix.SPECS["base 2"], 27),
    (matrix.products, matrix.SPECS["base 2"], 27),
]


def told(case):
    return f"{case[0].__module__.rpartition('.')[2]}.{case[0].__name__}"


@pytest.mark.parametrize("case", SOUND, ids=told)
def test_what_holds_is_proven(case):
    ask, *given = case
    assert decide(lambda c: ask(*given, c), "claim", seconds=120) is None


def test_every_kind_of_claim_is_in_the_list():
    names = {item.check.args[0].func.__name__ for item in prove_list()}
    assert names >= {ask.__name__ for ask, *_ in SOUND} | {"attention_term", "drain_lane", "drain_gelu"}


def prove_list():
    return [
        item
        for module in (arithmetic, trees, softmax, layernorm, matrix)
        for item in module.properties()
    ]


# ------------------------------------------------------------------------------------ what is broken


def without_half(value, after, bits):
    near = rtl.arith.saturated(value, bits + 2)
    return rtl.arith.saturated((near >> 1) + after, bits)


def short_shift(m, value, amount, name):
    return rtl.arith.halves(m, value, amount & 31, name)


def unsigned_piece(m, a, b, name, *, port_bits=18):
    return rtl.arith.product(m, a, b.as_unsigned(), name, port_bits=port_bits)


def wrong_entry(table, index, width):
    entries = list(table)
    entries[-1] ^= 1
    return rtl.arith.look_up(entries, index, width)


def late(m, value, cycles, name):
    return rtl.arith.carried(m, value, cycles + (name == "shift_now_0"), name)


def wraps(value, bits):
    return value[:bits].as_signed()


def odd_lane_dropped(m, values, node, name):
    return rtl.row.tree(m, values[: max(len(values) // 2 * 2, 1)], node, name)


def sum_that_wraps(m, values, node, name):
    return rtl.row.tree(m, values, lambda a, b: node(a, b)[: len(values[0]) + 4].as_signed(), name)


def one_lane_too_few(bits):
    return rtl.row.popcount(bits[:31])


BROKEN = [
    (trees, "tree", odd_lane_dropped, (trees.summed, signed(12))),
    (trees, "tree", sum_that_wraps, (trees.summed, signed(12))),
    (trees, "popcount", one_lane_too_few, (trees.counted,)),
    (rtl.requant, "settled", without_half, SOUND[5]),
    (rtl.requant, "halves", short_shift, SOUND[5]),
    (rtl.requant, "product", unsigned_piece, SOUND[5]),
    (rtl.requant, "carried", late, SOUND[5]),
    (rtl.requant, "saturated", wraps, SOUND[5]),
    (rtl.residual, "settled", without_half, SOUND[6]),
    (rtl.residual, "product", unsigned_piece, SOUND[6]),
    (rtl.softmax, "look_up", wrong_entry, SOUND[8]),
    (rtl.softmax, "look_up", wrong_entry, SOUND[9]),
    (rtl.softmax, "look_up", wrong_entry, SOUND[10]),
    (rtl.layernorm, "look_up", wrong_entry, SOUND[12]),
]


@pytest.mark.parametrize(("module", "name", "bug", "case"), BROKEN)
def test_what_is_broken_is_refuted_in_golden_s_terms(module, name, bug, case, monkeypatch):
    ask, *given = case
    monkeypatch.setattr(module, name, bug)
    found = decide(lambda c: ask(*given, c), "claim", seconds=120)
    assert isinstance(found, Counterexample)
    assert ", golden's " in found.text
    assert found.values
    monkeypatch.undo()
    assert decide(lambda c: ask(*given, c), "claim", seconds=120) is None


def drained():
    return decide(lambda c: matrix.drain_lane(matrix.SPECS["base 2"], 8, Sink.FEATURES, 27, c), "drain")


def test_a_broken_drain_is_refuted(monkeypatch):
    def shallow(m, value, amount, name):
        return rtl.arith.floor_shift(m, value, amount & 31, name)

    monkeypatch.setattr(rtl.drain, "floor_shift", shallow)
    found = drained()
    assert isinstance(found, Counterexample)
    assert found.values["shift"] > 31


def test_a_broken_table_of_the_drain_is_refuted(monkeypatch):
    plain = rtl.drain.Drain._table

    def from_the_lowest_code(self, m, y, lane):
        return plain(self, m, y ^ (1 << self._spec.gelu_bits - 1), lane)

    monkeypatch.setattr(rtl.drain.Drain, "_table", from_the_lowest_code)
    found = decide(lambda c: matrix.drain_gelu(matrix.SPECS["base 2"], c), "drain")
    assert isinstance(found, Counterexample)
    assert found.values.keys() >= {"entry_a", "value_a", "acc"}


def test_a_broken_wide_stream_is_refuted(monkeypatch):
    monkeypatch.setattr(rtl.drain, "MAX_ALIGN", 6)
    found = decide(lambda c: matrix.drain_lane(matrix.WIDE, 16, Sink.STREAM, 27, c), "drain")
    assert isinstance(found, Counterexample)
    assert found.values["align"] == 7


def test_an_answer_that_does_not_stand_is_no_counterexample():
    """The solver may think of any function as multiplication: such an answer is never told as a bug."""

    def ask(case):
        x, y = (case.input(name, Interval(-100, 100)) for name in "xy")
        circuit = bench({"x": signed(8), "y": signed(8)}, lambda m, x, y: {"p": x * y + 1})
        found = case.run(circuit, {"x": [(0, x)], "y": [(0, y)]}, {"p": (0, True)})
        return [Claim("p", found["p"], (x - y) * y + y * y + 1)]

    with pytest.raises(Undecided, match=r"does not stand with real products$"):
        decide(ask, "ring", seconds=20)


def test_registers_are_found_by_name():
    circuit = bench({"x": unsigned(4)}, lambda m, x: {"y": rtl.arith.carried(m, x, 1, "held") + 1})
    assert circuit.states[circuit.register("held_1")] == "held_1"
    with pytest.raises(ValueError, match=r"^Register must be one of the circuit's, not 'other'$"):
        circuit.register("other")
    case = Case()
    held = case.input("held", Interval(0, 15))
    found = case.run(circuit, {}, {"y": (0, False)}, registers={"held_1": (0, held)})
    wrong = case.symbols.compare("neq", found["y"], held + 1)
    assert case.logic.solve([wrong, *case.assumed], []) is None


def test_a_circuit_is_the_netlist():
    """Constant inputs from reset fold to what a simulator would show."""
    unit = rtl.gelu.GeluTable(GeluSpec(in_bits=4, out_bits=4), lanes=1)
    circuit, logic = Circuit.of(unit), Logic()
    state = circuit.initial(logic)
    outputs, _ = circuit.step(logic, state, lambda name, width: logic.const(0, width))
    assert (outputs["i__ready"].value, outputs["o__valid"].value) == (1, 0)
    assert isinstance(unit.i.valid, Signal)


# ------------------------------------------------------------------------------------- the command


def broken_claim():
    return Counterexample("requant, lane: with acc 3, golden's code is 1, the RTL's is 2", {"acc": 3})


def open_claim():
    raise Undecided("requant, lane: no answer in 1 s")


def sound_claim():
    return None


def listed(monkeypatch, *checks):
    items = [
        Property("requant", f"lane {n}", "arithmetic", "a lane is golden's", "all inputs", check)
        for n, check in enumerate(checks)
    ]
    monkeypatch.setattr(prove, "_properties", lambda: items)


@pytest.mark.parametrize(
    ("checks", "status"),
    [((sound_claim,), 0), ((sound_claim, broken_claim), 1), ((open_claim,), 1)],
)
def test_status_page_and_json_say_what_was_found(checks, status, tmp_path, monkeypatch, capsys):
    listed(monkeypatch, *checks)
    proofs = [prove.attempt("requant", f"lane {n}") for n in range(len(checks))]
    monkeypatch.setattr(prove, "_proofs", lambda names, jobs: iter(proofs))
    assert cli.invoke(["prove", "--out", str(tmp_path / "out")]) == status
    document = json.loads((tmp_path / "out" / prove.JSON).read_text())
    assert (document["schema"], document["version"]) == ("qvit-hw/proofs", 1)
    assert document["passed"] == (status == 0)
    assert [proof["status"] for proof in document["proofs"]] == [
        {sound_claim: "proven", broken_claim: "refuted", open_claim: "undecided"}[check]
        for check in checks
    ]
    page = (tmp_path / "out" / prove.PAGE).read_text()
    assert ("golden&#39;s code is 1" in page) == (broken_claim in checks)
    assert ("golden's code is 1" in capsys.readouterr().out) == (broken_claim in checks)


def test_processes_prove(tmp_path):
    options = ["--only", "arith: squares*", "--jobs", "1"]
    assert cli.invoke(["prove", "--out", str(tmp_path / "out"), *options]) == 0
    document = json.loads((tmp_path / "out" / prove.JSON).read_text())
    assert (document["proven"], document["properties"]) == (3, 3)


def test_bad_options_are_told(tmp_path, capsys, monkeypatch):
    out = ["--out", str(tmp_path / "out")]
    assert cli.invoke(["prove", *out, "--only", "nothing"]) == cli.BAD_INPUT
    assert "No property is called 'nothing'; the units are arith, " in capsys.readouterr().err
    assert cli.invoke(["prove", *out, "--jobs", "0"]) == cli.BAD_INPUT
    assert "Processes must be at least 1, not 0." in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.invoke(["prove", *out]) == cli.MISSING_TOOL
    assert "pyosys is not installed: pip install 'qvit-hw[verify]'." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_every_property_has_a_name_of_its_own_and_can_travel():
    items = prove._properties()
    assert len({(item.unit, item.name) for item in items}) == len(items) > 100
    assert {item.kind for item in items} == {"arithmetic", "stream", "accumulator"}
    for item in items:
        assert pickle.loads(pickle.dumps(item)).name == item.name

# amaranth: UnusedElaboratable=no
# SPDX-License-Identifier: Apache-2.0
"""Stream units against golden on the corners of every spec, and the bugs that the corners must see."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from amaranth.hdl import Const
from stream_runs import check, run

import golden.gelu
import golden.requant
import golden.residual
import rtl.arith
import rtl.requant
import rtl.residual
import rtl.stream
from golden.cycles import holding
from golden.gelu import GeluParams, GeluSpec
from golden.requant import RequantSpec
from golden.residual import ResidualSpec
from golden.words import TABLE_WORDS, writes
from rtl.gelu import GeluTable
from rtl.requant import Requantiser
from rtl.residual import PtfResidual
from sim.operators import Row, operator

UNITS = {"gelu": GeluTable, "requant": Requantiser, "residual": PtfResidual}
CASES = [
    *(("gelu", spec, lanes) for spec, lanes in zip(golden.gelu.SPEC_GRID, (8, 32, 1, 3), strict=True)),
    *(("requant", spec, lanes) for spec, lanes in zip(golden.requant.SPEC_GRID, (4, 1, 5, 2), strict=True)),
    *(
        ("residual", spec, lanes)
        for spec, lanes in zip(golden.residual.SPEC_GRID, (4, 3, 1, 7, 8), strict=True)
    ),
]
SMALL = {
    "gelu": (GeluSpec(in_bits=4, out_bits=4), 2),
    "requant": (RequantSpec(), 4),
    "residual": (ResidualSpec(max_shift=1), 4),
}


def corners(op):
    return [row for _, row in op.corners()]


def mixed(op, lanes):
    """Rows of several lengths whose channels all have parameters of their own."""
    rng, lengths = np.random.default_rng(1), (1, 2 * lanes + 1, lanes, 5 * lanes)
    params = op.random_params(rng, max(lengths))
    return [Row(rng.integers(op.low, op.high, n, endpoint=True), params) for n in lengths]


@pytest.mark.parametrize(("op", "spec", "lanes"), CASES, ids=lambda value: str(value)[:60])
def test_corners(op, spec, lanes):
    described = operator(op, asdict(spec))
    check(UNITS[op](spec, lanes=lanes), described, corners(described) + mixed(described, lanes))


@pytest.mark.parametrize("op", ["requant", "residual"])
def test_narrow_multipliers_change_neither_codes_nor_cycles(op):
    spec, lanes = SMALL[op]
    described = operator(op, asdict(spec))
    check(UNITS[op](spec, lanes=lanes, port_bits=18), described, corners(described)[::3])


# ------------------------------------------------------------------------------------- seeded bugs


def without_half(value, after, bits):
    near = rtl.arith.saturated(value, bits + 2)
    return rtl.arith.saturated((near >> 1) + after, bits)


def wrapping(value, after, bits):
    return ((value >> 1) + value[0] + after)[:bits].as_signed()


def unsigned_at(name):
    """Registers that lose the sign of what is called so."""

    def carried(m, value, cycles, called):
        value = value.as_unsigned() if called.startswith(name) else value
        return rtl.arith.carried(m, value, cycles, called)

    return carried


def early(name):
    """Registers of which one is missing where something is called so."""
    return lambda m, value, cycles, called: rtl.arith.carried(m, value, cycles - (called == name), called)


def low_bit_lost(m, value, cycles, called):
    return rtl.arith.carried(m, value & ~1 if called == "table_1" else value, cycles, called)


BUGS = [
    ("gelu", rtl.stream, "carried", low_bit_lost),
    ("gelu", rtl.stream, "carried", early("keep")),
    ("gelu", rtl.stream, "carried", early("last")),
    ("requant", rtl.requant, "settled", without_half),
    ("requant", rtl.requant, "settled", wrapping),
    ("requant", rtl.requant, "carried", unsigned_at("acc")),
    ("requant", rtl.requant, "carried", early("shift_now_3")),
    ("residual", rtl.residual, "settled", without_half),
    ("residual", rtl.residual, "settled", wrapping),
    ("residual", rtl.residual, "carried", unsigned_at("acc")),
    ("residual", rtl.residual, "carried", unsigned_at("code")),
    ("residual", rtl.residual, "carried", early("amount_now_2")),
]


@pytest.mark.parametrize(("op", "module", "name", "bug"), BUGS)
def test_a_seeded_bug_is_seen(op, module, name, bug, monkeypatch):
    spec, lanes = SMALL[op]
    described = operator(op, asdict(spec))
    monkeypatch.setattr(module, name, bug)
    unit = UNITS[op](spec, lanes=lanes)
    with pytest.raises(AssertionError):
        check(unit, described, corners(described) + mixed(described, lanes))


# ------------------------------------------------------------------------------------------ banks


def rows_of_new_parameters(op):
    """Rows of one channel, each with parameters of its own: a few writes, then a beat."""
    rng = np.random.default_rng(2)
    return [Row(np.array([20 << turn]), op.random_params(rng, 1)) for turn in range(12)]


def test_the_port_waits_for_the_rows_of_the_bank_before():
    """The second set goes in while the first row is inside the unit; the third waits for that row."""
    spec, lanes = SMALL["requant"]
    described = operator("requant", asdict(spec))
    rows, unit = rows_of_new_parameters(described), Requantiser(spec, lanes=lanes)
    check(unit, described, rows)
    seen = run(Requantiser(spec, lanes=lanes), described, rows)
    size = len(rows[0].params.words(spec))
    assert seen.written[size] - seen.entered[0] == 1
    assert seen.written[2 * size] - seen.entered[0] == holding(unit.pipeline.drain - 1) + 1


def test_a_port_that_never_waits_is_seen(monkeypatch):
    class Always:
        def __init__(self, values):
            pass

        def __getitem__(self, index):
            return Const(1)

    monkeypatch.setattr(rtl.stream, "Array", Always)
    spec, lanes = SMALL["requant"]
    described = operator("requant", asdict(spec))
    with pytest.raises(AssertionError):
        check(Requantiser(spec, lanes=lanes), described, rows_of_new_parameters(described))


# ------------------------------------------------------------------------------------------ words


@pytest.mark.parametrize("op", ["gelu", "requant", "residual"])
def test_words_say_all_parameters(op):
    for _, spec, _ in (case for case in CASES if case[0] == op):
        described = operator(op, asdict(spec))
        for row in corners(described):
            words = row.params.words(spec)
            assert len({address for address, _ in words}) == len(words)
            assert all(0 <= address < 4 * TABLE_WORDS and 0 <= value < 1 << 32 for address, value in words)
            again = described.params_of(dict(words), row.elements.size)
            for name, value in vars(row.params).items():
                if not name.startswith("_"):
                    assert np.array_equal(getattr(again, name), value), name


def test_words_of_bad_parameters_are_refused():
    with pytest.raises(ValueError, match=r"^A table must have at most 4096 entries, not 4097$"):
        writes({}, {TABLE_WORDS: np.zeros(TABLE_WORDS + 1, np.int64)}, 0)
    with pytest.raises(ValueError, match=r"^Table must have shape \(256,\), not \(3,\)$"):
        GeluParams(table=np.zeros(3, np.int64)).words(GeluSpec())

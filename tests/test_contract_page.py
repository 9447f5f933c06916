# SPDX-License-Identifier: Apache-2.0
"""``docs/contract.md`` itself: each sentence has its test, its figures are the limits that were computed."""

import re
from fractions import Fraction
from pathlib import Path

from golden import layernorm as norm
from golden import softmax as soft
from golden.limits import code_limit, sum_limits
from golden.worst import worst_layernorm, worst_softmax

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "contract.md").read_text(encoding="utf-8")


def cited(page):
    """(sentence, tests) of the last table."""
    lines = re.findall(r"(?m)^\| (\d+) \| (.*) \|$", page)
    return {int(number): re.findall(r"`(tests/\w+\.py)::(\w+)`", tests) for number, tests in lines}


def missing(page):
    """Tests that the page cites and that are not there."""
    return [
        f"{file}::{name}"
        for tests in cited(page).values()
        for file, name in tests
        if f"def {name}(" not in (ROOT / file).read_text(encoding="utf-8")
    ]


def test_every_sentence_has_a_test_that_is_there():
    numbers = [int(number) for number in re.findall(r"(?m)^(\d+)\. ", PAGE)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert sorted(cited(PAGE)) == numbers
    assert all(cited(PAGE).values())
    assert missing(PAGE) == []


def test_a_test_that_is_not_there_is_found():
    page = PAGE.replace("test_16_latency", "test_16_gone")
    assert missing(page) == ["tests/test_contract.py::test_16_gone"]


def test_the_page_s_figures_are_the_limits():
    kinds = {
        "base 2, 4 bits (default)": soft.SPEC_GRID[0],
        "base √2, 5 bits": soft.SPEC_GRID[1],
    }
    lines = re.findall(r"(?m)^\| (base .*) \|$", PAGE)
    assert len(lines) == 4
    told = [[cell.strip() for cell in line.split(" | ")] for line in lines]
    for kind, length, least, most, sums, within, code in told:
        spec, count = kinds[kind], int(length)
        limits = sum_limits(spec, count)
        # Rounded outwards, so that what the page says is proven, too.
        assert 0 <= limits[0] - Fraction(least) < Fraction(1, 1000)
        assert 0 <= Fraction(most) - limits[1] < Fraction(1, 1000)
        assert 0 <= Fraction(within) - code_limit(spec, count) < Fraction(1, 1000)
        if sums != "–":
            found = {row.aim: row.millionths / 1e6 for row in worst_softmax(spec) if row.own}
            assert sums == f"{found['sum low']:.3f}, {found['sum high']:.3f}"
            assert code == f"{found['code']:.3f}"


def test_the_search_s_worst_are_what_the_page_says():
    found = [row.millionths for spec in norm.SPEC_GRID for row in worst_layernorm(spec) if row.own]
    assert max(found) // 10_000 == 59
    assert "0.59 is the worst that the search has found" in PAGE

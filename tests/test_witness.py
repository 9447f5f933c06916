# SPDX-License-Identifier: Apache-2.0
"""Every bit of every table has a row that sees it flip."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest

from golden.layernorm import SPEC_GRID as LAYERNORM_SPECS
from golden.layernorm import LayerNormSpec, layernorm
from golden.softmax import SPEC_GRID as SOFTMAX_SPECS
from golden.softmax import SoftmaxSpec, softmax, softmax_trace
from golden.witness import layernorm_witnesses, softmax_witnesses

LANES = 2


def flips(table: tuple[int, ...], width: int) -> list[tuple[int, tuple[int, ...]]]:
    """Every table that differs from this one in a single bit, with the entry's index."""
    return [
        (index, (*table[:index], entry ^ 1 << bit, *table[index + 1 :]))
        for index, entry in enumerate(table)
        for bit in range(width)
    ]


@pytest.mark.parametrize("spec", SOFTMAX_SPECS[:3])
@pytest.mark.parametrize("table", ["exp2", "log2"])
def test_every_bit_of_a_softmax_table_is_seen(spec: SoftmaxSpec, table: str) -> None:
    rows = [row for row in softmax_witnesses(spec, LANES) if row[0].startswith(table)]
    plain = [softmax(scores, spec, params) for _, scores, params in rows]
    width = spec.exp_bits if table == "exp2" else spec.frac_bits
    for index, wrong in flips(getattr(spec, table), width):
        near = [
            n for n, row in enumerate(rows)
            if int(row[0].split("[")[1].split("]")[0]) % len(wrong) == index
        ]
        with patch.object(SoftmaxSpec, table, wrong):
            seen = any((softmax(rows[n][1], spec, rows[n][2]) != plain[n]).any() for n in near)
        assert seen, f"{table}[{index}] = {wrong[index]} is not seen"


@pytest.mark.parametrize("spec", SOFTMAX_SPECS)
def test_every_lane_and_fine_shift_has_its_rows(spec: SoftmaxSpec) -> None:
    """The element under test sits in its lane, at its entry of the unit's combined table."""
    rows = [row for row in softmax_witnesses(spec, 3) if row[0].startswith("exp2")]
    assert len(rows) == 3 * (4 << spec.frac_bits) * 2
    for position, (_, scores, params) in enumerate(rows):
        lane, index = divmod(position // 2, 4 << spec.frac_bits)
        assert int(softmax_trace(scores, spec, params).distance[lane]) == index


@pytest.mark.parametrize("spec", [LAYERNORM_SPECS[0], LAYERNORM_SPECS[1], LAYERNORM_SPECS[5]])
def test_every_bit_of_the_root_table_is_seen(spec: LayerNormSpec) -> None:
    rows = list(layernorm_witnesses(spec))
    plain = [layernorm(codes, spec, params) for _, codes, params in rows]
    table = spec.rsqrt
    per_entry = len(rows) // len(table)
    rng = np.random.default_rng(4)
    for index in range(len(table)) if len(table) <= 64 else rng.choice(len(table), 40, False):
        base, slope = table[index]
        wrong = [(base ^ 1 << bit, slope) for bit in range(base.bit_length())]
        wrong += [(base, slope ^ 1 << bit) for bit in range(slope.bit_length())]
        for pair in wrong:
            near = range(index * per_entry, (index + 1) * per_entry)
            with patch.object(LayerNormSpec, "rsqrt", (*table[:index], pair, *table[index + 1 :])):
                seen = any((layernorm(rows[n][1], spec, rows[n][2]) != plain[n]).any() for n in near)
            assert seen, f"rsqrt[{index}] = {pair} is not seen"

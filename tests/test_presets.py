# SPDX-License-Identifier: Apache-2.0
"""Presets: the table in the module's docstring is the truth, and every spec can be built."""

import itertools
import math
from dataclasses import replace

import pytest

from golden.layernorm import LayerNormSpec
from qvit_hw import presets
from qvit_hw.errors import UserError
from qvit_hw.presets import AFFINES, DEFAULT, PRESETS, adapt, find_preset


def table():
    """Rows of the docstring's table: {name: columns}."""
    lines = (presets.__doc__ or "").splitlines()
    marks = [number for number, line in enumerate(lines) if line.startswith("======")]
    edges = [0, *(at + 1 for at, char in enumerate(lines[marks[0]]) if char == " "), None]
    rows = lines[marks[1] + 1 : marks[2]]
    return {
        row.split()[0]: [row[a:b].strip() for a, b in itertools.pairwise(edges)] for row in rows
    }


def columns(preset):
    """What the table should say of a preset, without the last column."""
    base = "base 2" if preset.base == "2" else "sqrt 2"
    return [
        preset.name,
        str(preset.weight_bits),
        str(preset.act_bits),
        str(preset.residual_bits),
        str(preset.gelu_bits),
        f"{base}, {preset.code_bits}",
        f"{preset.reparam:g}",
        preset.weights,
        preset.observer,
        f"{preset.refit:g}",
    ]


def test_table_is_what_the_presets_are():
    rows = table()
    assert list(rows) == list(PRESETS)
    for name, preset in PRESETS.items():
        assert rows[name][:-1] == columns(preset)
        assert ("golden model only" in rows[name][-1]) == preset.golden_only


def test_table_check_sees_a_difference():
    assert table()["w4a8"][:-1] != columns(replace(PRESETS["w4a8"], weight_bits=5))


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("affine", AFFINES)
def test_specs(name, affine):
    preset = find_preset(name)
    assert preset.name == name
    assert preset.head_bits == 8
    layernorm = preset.layernorm_spec(affine)
    assert layernorm == LayerNormSpec(
        in_bits=preset.residual_bits, out_bits=preset.act_bits, affine=affine
    )
    assert preset.softmax_spec().code_bits == preset.code_bits
    assert preset.softmax_spec().base == preset.base
    gelu = preset.gelu_spec()
    assert (gelu.in_bits, gelu.out_bits) == (preset.gelu_bits, preset.act_bits)


def test_find():
    assert find_preset("default") == PRESETS[DEFAULT]
    names = ", ".join(PRESETS)
    with pytest.raises(UserError, match=rf"^Preset must be one of {names}, not 'w2a2'\.$"):
        find_preset("w2a2")
    with pytest.raises(UserError, match=r"^Affine must be one of dyadic, shift, not 'float'\.$"):
        find_preset("default").layernorm_spec("float")


def test_adapt():
    preset = find_preset("w4a4")
    assert adapt(preset) == preset
    assert not preset.correct_bias
    changed = adapt(preset, "omse", 0.5, True, "kl")
    assert changed == replace(preset, weights="omse", reparam=0.5, correct_bias=True, observer="kl")
    assert adapt(changed).correct_bias  # it cannot be taken back
    assert adapt(preset, reparam=0).reparam == 0
    assert (adapt(preset, refit=3).refit, adapt(PRESETS["w8a8p4"], refit=0).refit) == (3, 0)
    with pytest.raises(UserError, match=r"^Weights must be one of minmax, omse, gptq, not 'x'\.$"):
        adapt(preset, weights="x")
    with pytest.raises(UserError, match=r"^Reparam must be 0 to 1, not 1\.5\.$"):
        adapt(preset, reparam=1.5)
    for refit in (-1, math.inf, math.nan):
        with pytest.raises(
            UserError, match=rf"^Refit must be 0 or a damping above it, not {refit!r}\.$"
        ):
            adapt(preset, refit=refit)
    with pytest.raises(UserError, match=r"^Observer must be one of minmax, .*, not 'mean'\.$"):
        adapt(preset, observer="mean")

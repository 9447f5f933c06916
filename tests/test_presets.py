# SPDX-License-Identifier: Apache-2.0
"""Presets: the table in the module's docstring is the truth, and every spec can be built."""

import itertools
import math
from dataclasses import replace

import pytest

from golden.layernorm import LayerNormSpec
from qvit_hw import presets
from qvit_hw.errors import UserError
from qvit_hw.presets import AFFINES, DEFAULT, PRESETS, SETTINGS, adapt, find_preset, with_settings


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


def test_settings_change_widths_and_nothing_else():
    preset = find_preset("w8a8p4")
    assert with_settings(preset, []) == preset
    changed = with_settings(preset, ["base=sqrt2", "code_bits=5", "exp_bits=12", "table_bits=5"])
    assert changed == replace(preset, base="sqrt2", code_bits=5, exp_bits=12, table_bits=5)
    assert changed.softmax_spec() == replace(
        preset.softmax_spec(), base="sqrt2", code_bits=5, exp_bits=12
    )
    assert changed.layernorm_spec("shift").table_bits == 5
    assert with_settings(preset, ["act_bits=6", "act_bits=7"]).act_bits == 7


def test_every_setting_reaches_both_ends_and_no_further():
    for name, ends in SETTINGS.items():
        preset = replace(find_preset("w8a8p4"), log_index_bits=10, frac_bits=2)
        for end in (ends[0], ends[-1]):
            assert getattr(with_settings(preset, [f"{name}={end}"]), name) == end
        for value in ("", "x", *((f"{ends[0] - 1}", f"{ends[-1] + 1}") if name != "base" else ())):
            with pytest.raises(UserError, match=rf"^Setting {name} must be .*, not '{value}'\.$"):
                with_settings(preset, [f"{name}={value}"])


def test_settings_that_will_not_do_are_refused():
    preset = find_preset("w8a8p4")
    for setting in ("code_bits", "lanes=4", "=5"):
        with pytest.raises(UserError, match=rf"^Setting must be NAME=VALUE .*, not '{setting}'\.$"):
            with_settings(preset, [setting])
    with pytest.raises(UserError, match=r"^Logarithm index width must be .*5.*\.$"):
        with_settings(preset, ["frac_bits=5", "log_index_bits=4"])

# SPDX-License-Identifier: Apache-2.0
"""Golden LayerNorm: against scalar Python integers, against float64, and its contract."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import reference_integers as reference

from golden.layernorm import SPEC_GRID, LayerNormParams, LayerNormSpec, layernorm, layernorm_trace
from golden.layernorm_corners import corner_rows

ROWS = [
    pytest.param(spec, *row, id=f"{index}: {row[0]}")
    for index, spec in enumerate(SPEC_GRID)
    for row in corner_rows(spec)
]


@pytest.mark.parametrize(("spec", "name", "codes", "params"), ROWS)
def test_corner_rows_equal_the_scalar_formula(spec, name, codes, params) -> None:  # type: ignore[no-untyped-def]
    trace = layernorm_trace(codes, spec, params)
    seen = reference.layernorm([codes.tolist()], spec, params)
    assert trace.code.tolist() == layernorm(codes, spec, params).tolist() == seen["code"]
    for field, bound in spec.bounds.items():
        if hasattr(trace, field):
            assert bound.holds(getattr(trace, field)), field


@pytest.mark.parametrize("affine", ["dyadic", "shift"])
@pytest.mark.parametrize("channels", [192, 384, 768, 3072])
def test_codes_are_those_of_float64(channels: int, affine: str) -> None:
    """At least 99.5 % equal to float64 LayerNorm of the same codes, never more than 1 away."""
    rng = np.random.default_rng(channels)
    spec = LayerNormSpec(affine=affine)  # type: ignore[arg-type]
    shift = rng.choice([0, 0, 0, 1, 2, 3], channels)
    codes = np.clip(np.round(rng.normal(10, 25, (400, channels))), -128, 127).astype(int)
    eps = 5000
    if affine == "dyadic":
        gain_real = rng.normal(20, 6, channels) * rng.choice([1, 1, 1, -1], channels)
        point = spec.output_shift - 15 + int(np.ceil(np.log2(np.abs(gain_real).max())))
        gain = np.round(gain_real * 2.0 ** (spec.output_shift - point)).astype(int)
    else:
        gain, point = rng.integers(4, 8, channels), 12
        gain_real = 2.0 ** (point + gain - spec.output_shift)
    offset = np.round(rng.normal(0, 10, channels) * 2.0**spec.output_shift).astype(int)
    params = LayerNormParams(
        zero_point=10, eps=eps, point=point, shift=shift, gain=gain, offset=offset
    )
    x = ((codes - 10) << shift).astype(float)
    z = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps / channels**2)
    exact = np.floor(z * gain_real + offset / 2.0**spec.output_shift + 0.5)
    difference = np.abs(layernorm(codes, spec, params) - np.clip(exact, -128, 127))
    assert difference.max() <= 1
    assert (difference == 0).mean() >= 0.995


@pytest.mark.parametrize("table_bits", [4, 9])
def test_a_table_finer_than_the_variance(table_bits: int) -> None:
    """The smallest unit: D has 8 bits, fewer than the 8 + 10 behind its leading one that the table takes."""
    spec = LayerNormSpec(max_channels=1, in_bits=4, max_shift=0, eps_bits=8, table_bits=table_bits)
    assert spec.variance_bits == 8
    column = np.zeros(1, int)
    for eps in range(1, 256):
        params = LayerNormParams(
            zero_point=0, eps=eps, point=9, shift=column, gain=column, offset=column
        )
        root = int(layernorm_trace(column, spec, params).rsqrt[0])
        assert [root] == reference.layernorm([[0]], spec, params)["rsqrt"]
        k = (8 - eps.bit_length()) // 2
        assert abs(root * (eps * 4**k / 64) ** 0.5 / 2**14 - 1) < 2 ** -min(2 * table_bits + 1, 12)


def test_a_constant_row_is_beta() -> None:
    spec = LayerNormSpec()
    for name, codes, params in corner_rows(spec):
        if name.startswith("constant") and (params.shift == params.shift[0]).all():
            beta = np.clip((params.offset + (1 << 21)) >> 22, -128, 127)
            assert (layernorm(codes, spec, params) == beta).all(), name


def test_leading_axes() -> None:
    spec = LayerNormSpec()
    rng = np.random.default_rng(2)
    _, _, params = next(row for row in corner_rows(spec) if row[1].size == 192)
    codes = rng.integers(-128, 128, (2, 3, 192)).astype(np.int8)
    whole = layernorm(codes, spec, params)
    assert whole.shape == codes.shape
    assert (whole[1, 2] == layernorm(codes[1, 2], spec, params)).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_channels": 4097}, r"^Maximum row length must be from 1 to 4096, not 4097$"),
        ({"in_bits": 3}, r"^Input width must be from 4 to 16, not 3$"),
        ({"out_bits": 17}, r"^Output width must be from 3 to 16, not 17$"),
        ({"max_shift": 8}, r"^Largest PTF shift must be from 0 to 7, not 8$"),
        ({"eps_bits": 41}, r"^Width of E must be from 8 to 40, not 41$"),
        ({"affine": "none"}, r"^Affine must be 'dyadic' or 'shift', not 'none'$"),
        ({"table_bits": 3}, r"^Table index width must be from 4 to 9, not 3$"),
        ({"in_bits": 16, "max_shift": 7}, r"^Row length, input width and largest shift must keep "),
    ],
)
def test_spec_errors(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LayerNormSpec(**fields)  # type: ignore[arg-type]


def test_param_and_input_errors() -> None:
    spec, column = LayerNormSpec(max_channels=4), np.zeros(3, int)
    good = LayerNormParams(zero_point=0, eps=1, point=9, shift=column, gain=column, offset=column)
    good.check(spec)
    for change, message in (
        ({"zero_point": 128}, r"^Zero point must be from -128 to 127, not 128$"),
        ({"eps": 0}, r"^E must be from 1 to 1099511627775, not 0$"),
        ({"point": 14}, r"^E must be from 4 to 1099511627775, not 1$"),
        ({"point": 15}, r"^Point must be from 0 to 14, not 15$"),
        ({"shift": column + 4}, r"^PTF shift must be from 0 to 3, not 4$"),
        ({"gain": column + 32768}, r"^Gain must be from -32768 to 32767, not 32768$"),
        ({"gain": column[:2]}, r"^Gain must have shape \(3,\), not \(2,\)$"),
        ({"shift": np.zeros(5, int)}, r"^Shifts must be 1 to 4 channels, not \(5,\)$"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(good, **change).check(spec)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^Offset must be an array of integers, not float64$"):
        replace(good, offset=column * 1.0).check(spec)
    with pytest.raises(TypeError, match=r"^Codes must be an array of integers, not float64$"):
        layernorm(np.zeros(3), spec, good)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^Row length must be 3, not 2$"):
        layernorm(np.zeros(2, int), spec, good)
    with pytest.raises(ValueError, match=r"^Codes must fit in 8 bits with sign, not 0 to 128$"):
        layernorm(np.array([0, 128, 0]), spec, good)


@pytest.mark.parametrize("spec", SPEC_GRID)
def test_words_are_unsigned_and_end_with_commit(spec: LayerNormSpec) -> None:
    _, _, params = next(iter(corner_rows(spec)))
    words = params.words(spec)
    assert words[-1] == (4, 0)
    assert all(0 <= address < 1 << 14 and 0 <= value < 1 << 32 for address, value in words)
    assert len({address for address, _ in words}) == len(words) == 5 + 3 * params.channels

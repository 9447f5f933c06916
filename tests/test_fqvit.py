# SPDX-License-Identifier: Apache-2.0
"""FQ-ViT's operators: equal to exact rationals on every row, near its float program; wrong ones are seen."""

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
import torch
from fqvit_reference import (
    EXACT,
    Variant,
    Weights,
    float_layernorm,
    float_softmax,
    layernorm_rows,
    multiplier,
    nearest,
    softmax_integers,
    softmax_rows,
)

from golden.fqvit import (
    FRACTION,
    FqLayerNormParams,
    FqLayerNormSpec,
    FqSoftmaxParams,
    FqSoftmaxSpec,
    fq_layernorm,
    fq_requantise,
    fq_softmax,
    half_even,
    layernorm_params,
    softmax_params,
)
from golden.requant import RequantParams, RequantSpec

SEED = 20211124
LENGTHS = {**dict.fromkeys((1, 2, 3, 4, 5, 7, 8, 12, 16, 24, 33, 48, 64), 7900), 197: 150, 768: 40}
"""Rows of each length."""


class Layer:
    """A LayerNorm with float32 weights: its float32 tensors, and the same numbers as integers."""

    def __init__(self, rng: np.random.Generator, count: int, max_shift: int = 3) -> None:
        sign = np.where(rng.random(count) < 0.2, -1, 1) * (rng.random(count) > 0.05)
        gamma = sign * rng.lognormal(0, 0.6, count)
        self.gamma, self.beta, self.out_scale = (
            torch.tensor(each, dtype=torch.float32)
            for each in (gamma, rng.normal(0, 0.5, count), rng.uniform(0.02, 0.06))
        )
        self.zero_point, self.out_zero_point = rng.integers(-40, 40, 2).tolist()
        self.shift = rng.integers(0, max_shift, count, endpoint=True)
        step = torch.tensor(rng.uniform(0.003, 0.02), dtype=torch.float32)
        self.scales = step * torch.tensor(2.0**self.shift, dtype=torch.float32)
        self.params = layernorm_params(
            [Fraction(g) for g in self.gamma.tolist()],
            [Fraction(b) for b in self.beta.tolist()],
            Fraction(self.out_scale.item()),
            zero_point=self.zero_point,
            shift=self.shift,
            out_zero_point=self.out_zero_point,
        )

    def codes(self, rng: np.random.Generator, rows: int) -> np.ndarray:
        """Channels with means and spreads of their own; a few rows constant, at both ends, two-valued."""
        count = len(self.shift)
        drawn = rng.normal(rng.normal(0, 25, count), rng.uniform(2, 40, count), (rows, count))
        codes = np.clip(np.round(drawn), -128, 127).astype(np.int64)
        codes[:4] = [[-128], [127], [self.zero_point], [5]]
        codes[4:10] = rng.choice([-128, 127], (6, count))
        return codes

    @property
    def weights(self) -> Weights:
        return weights_of(self.params)

    def float_codes(self, codes: np.ndarray) -> np.ndarray:
        """Codes of the float32 program, not finite where its result is not."""
        out = float_layernorm(
            codes, self.zero_point, self.scales, self.gamma, self.beta, self.out_scale
        )
        limited = (out + self.out_zero_point).clamp(-128, 127)
        return torch.where(torch.isfinite(out), limited, torch.nan).numpy()


def weights_of(params: FqLayerNormParams) -> Weights:
    columns = (params.shift.tolist(), params.gain.tolist(), params.offset.tolist())
    return Weights(params.zero_point, *columns, params.out_zero_point)


def layers(rows: dict[int, int]) -> Iterator[tuple[Layer, np.ndarray]]:
    rng = np.random.default_rng(SEED)
    for count, number in rows.items():
        layer = Layer(rng, count)
        yield layer, layer.codes(rng, number)


def scores(rows: dict[int, int]) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    """Scales from 0.01 to 1.6, rows flat to peaked; some constant, one-hot, at both ends or full of ties."""
    rng = np.random.default_rng(SEED)
    for count, number in rows.items():
        for part in np.array_split(np.arange(number), max(1, number // 160)):
            scale = torch.tensor(np.exp(rng.uniform(-4.6, 0.47)), dtype=torch.float32)
            spread = rng.uniform(0.2, 4, (len(part), 1)) / scale.item()
            drawn = np.clip(np.round(rng.normal(0, spread, (len(part), count))), -128, 127)
            drawn[0], drawn[1], drawn[1, -1] = -128, -128, 127
            drawn[2:4] = rng.choice([-128, 127], (2, count))
            # Whole octaves apart, sums of few exponentials meet ties.
            octave = softmax_params(Fraction(scale.item())).octave
            drawn[4:8] = 127 - np.minimum(octave * rng.integers(0, 3, (4, count)), 255)
            yield scale, drawn.astype(np.int64)


def test_layernorm_is_the_exact_rational_result(capsys) -> None:
    torch.set_num_threads(1)
    rows = elements = ties = equal = defined = 0
    for layer, codes in layers(LENGTHS):
        wanted, found = layernorm_rows(codes, layer.weights)
        got = fq_layernorm(codes, FqLayerNormSpec(), layer.params)
        assert np.array_equal(got, wanted), f"rows of {codes.shape[1]}"
        program = layer.float_codes(codes)
        rows, elements, ties = rows + len(codes), elements + got.size, ties + found
        defined += int(np.isfinite(program).sum())
        equal += int((got == program).sum())
    with capsys.disabled():
        print(
            f"\nLayerNorm, seed {SEED}: {rows} rows, {elements} codes, {ties} exact ties; the float32 "
            f"program has no result in {1 - defined / elements:.4%} and the same code in "
            f"{equal / defined:.4%} of the others"
        )
    assert rows >= 100_000
    assert ties > 500
    assert equal / defined > 0.99


def test_softmax_is_the_exact_rational_result(capsys) -> None:
    torch.set_num_threads(1)
    rows = elements = ties = equal = repaired = 0
    for scale, codes in scores(LENGTHS):
        exact = Fraction(scale.item())
        params = softmax_params(exact)
        integers = softmax_integers(exact)
        assert (params.octave, params.linear, params.constant) == integers
        wanted, found = softmax_rows(codes, integers)
        got = fq_softmax(codes, FqSoftmaxSpec(), params)
        assert np.array_equal(got, wanted), f"scale {exact}"
        rows, elements, ties = rows + len(codes), elements + got.size, ties + found
        equal += int((got == float_softmax(codes, -37, scale).numpy()).sum())
        repaired += int((got == float_softmax(codes, -37, scale, whole=True).numpy()).sum())
    with capsys.disabled():
        print(
            f"\nlog-int-softmax, seed {SEED}: {rows} rows, {elements} codes, {ties} exact ties; the float32 "
            f"program gives the same code in {equal / elements:.4%}, and in {repaired / elements:.4%} if it "
            f"rounds (q * s) / s to q"
        )
    assert rows >= 100_000
    assert ties > 500
    assert equal / elements > 0.97
    assert repaired / elements > 0.9999


SOME = {2: 400, 3: 400, 5: 400, 16: 400, 64: 100}


@pytest.mark.parametrize("wrong", [Variant(tie="up"), Variant(floored=False)], ids=str)
def test_a_wrong_layernorm_is_seen(wrong: Variant) -> None:
    off = 0
    for layer, codes in layers(SOME):
        got = fq_layernorm(codes, FqLayerNormSpec(), layer.params)
        assert np.array_equal(got, layernorm_rows(codes, layer.weights, EXACT)[0])
        off += int((got != layernorm_rows(codes, layer.weights, wrong)[0]).sum())
    assert off > 0


@pytest.mark.parametrize("wrong", [Variant(tie="up"), Variant(levels=16)], ids=str)
def test_a_wrong_softmax_is_seen(wrong: Variant) -> None:
    off = 0
    for scale, codes in scores(SOME):
        exact = Fraction(scale.item())
        got = fq_softmax(codes, FqSoftmaxSpec(), softmax_params(exact))
        off += int((got != softmax_rows(codes, softmax_integers(exact), wrong)[0]).sum())
    assert off > 0


# ------------------------------------------------------------------------- rows that are solved for


def plain(count: int, **changes: object) -> FqLayerNormParams:
    zero = np.zeros(count, np.int64)
    given: dict[str, object] = {
        "zero_point": 0,
        "shift": zero,
        "gain": zero + (1 << FRACTION),
        "offset": zero,
        "out_zero_point": 0,
    }
    return FqLayerNormParams(**(given | changes))  # type: ignore[arg-type]


def test_ties_of_both_roundings_of_layernorm_go_to_even() -> None:
    # X = +-1 has V = C^2: A = 1, N = 7, M = 128, so y = rhe((+-128 + B) / 128), B = rhe(128 * b).
    count = 64
    codes = np.where(np.arange(count) % 2, 1, -1)
    steps = np.arange(count) // 2 - 16
    outer = plain(count, offset=(2 * steps + 1) << (FRACTION - 1))
    assert fq_layernorm(codes, FqLayerNormSpec(), outer).tolist() == [
        round(Fraction(2 * s + 1, 2) + x)
        for s, x in zip(steps.tolist(), codes.tolist(), strict=True)
    ]
    # 128 * b = 191.5 and 192.5 both go to 192, which makes the other rounding a tie: of x + 3/2.
    inner = plain(count, offset=(192 + steps % 2) * (1 << 25) - (1 << 24))
    assert fq_layernorm(codes, FqLayerNormSpec(), inner).tolist() == (codes + 1).tolist()
    up = layernorm_rows(codes[None], weights_of(inner), Variant(tie="up"))[0][0]
    assert up.tolist() == (codes + 2).tolist()


def test_a_constant_row_gives_beta_and_a_dead_channel_too() -> None:
    offset = np.arange(-8, 8) << (FRACTION - 1)
    beta = [round(Fraction(k, 2)) + 3 for k in range(-8, 8)]
    params = plain(16, offset=offset, out_zero_point=3)
    assert fq_layernorm(np.full((2, 16), -128), FqLayerNormSpec(), params).tolist() == [beta] * 2
    dead = plain(16, offset=offset, out_zero_point=3, gain=np.zeros(16, np.int64))
    assert fq_layernorm(np.arange(16), FqLayerNormSpec(), dead).tolist() == beta
    with np.errstate(all="ignore"):
        one, zero = torch.ones(16), torch.zeros(16)
        program = float_layernorm(np.full((1, 16), -128), 0, one, one, zero, torch.tensor(1.0))
    assert not torch.isfinite(program).any()  # what the original makes of it


@pytest.mark.parametrize("count", [1, 2, 4096])
@pytest.mark.parametrize("edge", ["low", "high"])
def test_layernorm_at_the_ends_of_its_parameters(count: int, edge: str) -> None:
    spec = FqLayerNormSpec(max_channels=4096)
    rng = np.random.default_rng(count)
    gain, offset = (getattr(spec.bounds[name], edge) for name in ("gain", "offset"))
    shift = np.full(count, 3)
    shift[0] = 0
    small = rng.integers(-(1 << 20), 1 << 20, count)
    for codes in (np.full(count, -128), np.full(count, 127), rng.integers(-128, 128, count)):
        codes[0] ^= 1  # the smallest variance with the largest sum
        for gains, offsets in (
            (np.full(count, gain), np.full(count, offset)),
            (np.full(count, gain), np.full(count, -offset)),
            (small, small),
            (rng.integers(-3, 4, count), np.full(count, offset)),
        ):
            for zero_point in (-128, 127):
                params = plain(
                    count, shift=shift, gain=gains, offset=offsets, zero_point=zero_point
                )
                wanted = layernorm_rows(codes[None], weights_of(params))[0][0]
                assert np.array_equal(fq_layernorm(codes, spec, params), wanted)


def test_the_float_program_loses_the_variance_of_a_row_with_a_large_mean() -> None:
    rng = np.random.default_rng(SEED)
    layer, shares = Layer(rng, 768, max_shift=0), []
    for spread in (30, 1):
        codes = np.round(rng.normal(-110, spread, (60, 768))).clip(-128, 127).astype(np.int64)
        got = fq_layernorm(codes, FqLayerNormSpec(), layer.params)
        assert np.array_equal(got, layernorm_rows(codes, layer.weights)[0])
        shares.append(float((got == layer.float_codes(codes)).mean()))
    assert shares[0] > 0.999 > 0.99 > shares[1]


def test_the_unit_is_the_finest_scale_in_use() -> None:
    rng = np.random.default_rng(1)
    codes, layer = rng.integers(-99, 99, 24), Layer(rng, 24)
    used = plain(24, shift=layer.shift % 2 + 2, gain=layer.params.gain)
    same = plain(24, shift=layer.shift % 2, gain=layer.params.gain)
    assert np.array_equal(*(fq_layernorm(codes, FqLayerNormSpec(), p) for p in (used, same)))


def test_the_multiplier_is_floored_to_eight_bits() -> None:
    assert multiplier(255, 256) == (255, 8)
    assert multiplier((1 << 20) - 1, 1 << 20) == (255, 8)  # rounded, it would be 256
    assert multiplier(300, 1) == (255, 0)
    assert multiplier(1, 1 << 31) == (1, 31)
    assert multiplier(1, 1 << 32) == multiplier(0, 1) == (0, 31)


def test_only_a_quotient_of_two_and_a_half_shows_half_even() -> None:
    # Two maxima and one element an octave below: 2.5 to even is 2, code 1; half up 3, code 2.
    params = softmax_params(Fraction(1, 10))
    row = np.array([0, 0, -params.octave])
    assert fq_softmax(row, FqSoftmaxSpec(), params).tolist() == [1, 1, 2]
    integers = softmax_integers(Fraction(1, 10))
    assert softmax_rows([row], integers, Variant(tie="up"))[0].tolist() == [[2, 2, 2]]
    # At 1.5, 5.5 and 11.5 the even neighbour is the upper one: rounding half down would show.
    for count, code in ((1, 1), (9, 3), (21, 4)):
        row = np.array([0, *[-params.octave] * count])
        assert fq_softmax(row, FqSoftmaxSpec(), params)[0] == code


def test_seventeen_levels() -> None:
    params = softmax_params(Fraction(1, 4))
    row = -params.octave * np.arange(20)[:, None] * [0, 1]
    codes = fq_softmax(row, FqSoftmaxSpec(), params)[:, 1]  # of 1 / (2**k + 1)
    assert codes.tolist() == [1, 2, *range(2, 17), 16, 16, 16]
    assert fq_softmax(row, FqSoftmaxSpec(code_bits=3), params).max() == 8
    integers = softmax_integers(Fraction(1, 4))
    assert softmax_rows(row, integers, Variant(levels=16))[0].max() == 15


def test_masked_elements_leave_the_row() -> None:
    params, rng = softmax_params(Fraction(1, 8)), np.random.default_rng(2)
    row, mask = rng.integers(-60, 60, (5, 20)), np.arange(20) >= 15
    codes = fq_softmax(row, FqSoftmaxSpec(), params, mask)
    assert (codes[:, 15:] == 16).all()
    assert np.array_equal(codes[:, :15], fq_softmax(row[:, :15], FqSoftmaxSpec(), params))
    assert (fq_softmax(row, FqSoftmaxSpec(), params, np.full(20, True)) == 16).all()


def test_an_exponential_below_zero_is_zero() -> None:
    # No scale leads to such integers; the program clamps all the same.
    params = FqSoftmaxParams(octave=4, linear=6, constant=5)
    wanted = softmax_rows([[0, -1, -2, -3, -4]], (4, 6, 5))[0]
    assert fq_softmax(np.arange(0, -5, -1), FqSoftmaxSpec(), params).tolist() == wanted[0].tolist()
    assert wanted[0].tolist().count(16) == 3


@pytest.mark.parametrize("octaves", [20, 30])
def test_softmax_at_the_ends_of_its_parameters(octaves: int) -> None:
    spec = FqSoftmaxSpec(max_tokens=4096, octaves=octaves, score_bits=16)
    params = FqSoftmaxParams(octave=1 << 9, linear=1 << 9, constant=spec.bounds["constant"].high)
    row = np.zeros(4096, np.int64)
    assert (fq_softmax(row, spec, params) == 12).all()
    row[1:] = -(1 << 15)
    assert fq_softmax(row, spec, params).tolist() == [0, *[16] * 4095]


# --------------------------------------------------------------------------------- plain rounding


def test_half_even_is_pythons_rounding() -> None:
    x = np.arange(-4000, 4000)
    for n in (0, 1, 2, 5, 12):
        for add in (0, 1, -7):
            wanted = [round(Fraction(v, 1 << n) + add) for v in x.tolist()]
            assert half_even(x, n, add).tolist() == wanted
            # round() knows the fraction as a whole; the tie is broken on the sum.
            assert [nearest(v + (add << n), 1 << n, "even") for v in x.tolist()] == wanted
    above = [round(Fraction(v, 4) + Fraction(1, 9)) for v in x.tolist()]
    assert half_even(x, 2, more=True).tolist() == above
    with pytest.raises(ValueError, match="Shift must be from 0 to 62, not 63 to 63"):
        half_even(x, 63)


def test_requantise_breaks_ties_on_the_code_with_its_zero_point() -> None:
    spec, acc = RequantSpec(acc_bits=12), np.arange(-600, 600)[:, None]
    for zero_point in (-3, 0, 5):
        params = RequantParams(
            multiplier=np.array([1 << 15]), shift=np.array([16]), zero_point=zero_point
        )
        wanted = [round(Fraction(a, 2) + zero_point) for a in acc[:, 0].tolist()]
        got = fq_requantise(acc, spec, params)
        assert got[:, 0].tolist() == np.clip(wanted, -128, 127).tolist()
    both = RequantParams(multiplier=np.array([1 << 15] * 2), shift=np.array([15, 17]), zero_point=0)
    assert fq_requantise(np.array([[6, 6]]), spec, both).tolist() == [[6, 2]]

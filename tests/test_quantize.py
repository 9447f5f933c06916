# SPDX-License-Identifier: Apache-2.0
"""Integers from ranges: PTF against brute force, LayerNorm and softmax parameters against float64."""

import numpy as np
import pytest

from golden.layernorm import LayerNormSpec, layernorm
from golden.softmax import SoftmaxParams, SoftmaxSpec, softmax
from qvit_hw.errors import UserError
from qvit_hw.quantize import (
    SCORE_MARGIN,
    PtfSearch,
    affine_grid,
    plan_layernorm,
    plan_softmax,
    round_half_up,
    symmetric_scale,
)
from qvit_hw.references import (
    code_values,
    float_layernorm,
    float_softmax,
    layernorm_metrics,
    softmax_metrics,
    sqnr,
)


def run(codes, plan, spec):
    """Golden codes, wide enough to subtract from."""
    return layernorm(codes, spec, plan.params).astype(np.int64)


def meaning(codes, plan):
    return (codes - plan.zero_point) * plan.scale + plan.rest


def make_plan(spec, seed=0, count=96, gamma=None, beta=None, eps=1e-6, reparam=0.0, clip=None):
    """A plan and input codes from a random residual stream with channels of very different size."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (200, count)) * 2.0 ** rng.uniform(-2, 2, count) + rng.normal(0, 1, count)
    gamma = rng.normal(1, 0.3, count) if gamma is None else gamma
    beta = rng.normal(0, 0.5, count) if beta is None else beta
    search = PtfSearch(x.min(), x.max(), count, spec.in_bits, spec.max_shift)
    search.update(x)
    grid = search.grid()
    score = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    y = score * gamma + beta
    plan = plan_layernorm(
        grid,
        gamma,
        beta,
        eps,
        y.min(),
        y.max(),
        spec,
        (y.min(axis=0), y.max(axis=0)),
        reparam,
        clip,
    )
    half = 1 << (spec.in_bits - 1)
    codes = np.clip(
        np.floor(x / grid.channel_scale + grid.zero_point + 0.5), -half, half - 1
    ).astype(np.int64)
    return plan, codes, y


def test_affine_grid_holds_zero_and_both_ends():
    for low, high in ((-1.0, 3.0), (0.5, 2.0), (-7.0, -1.0), (-1e-6, 1e6)):
        grid = affine_grid(low, high)
        ends = (np.array([grid.low, grid.high]) - grid.zero_point) * grid.scale
        assert grid.low <= grid.zero_point <= grid.high
        assert ends[0] <= min(low, 0) + grid.scale
        assert ends[1] >= max(high, 0) - grid.scale
    assert affine_grid(-128, 127).zero_point == 0
    assert affine_grid(0, 255).zero_point == -128
    with pytest.raises(
        ValueError, match=r"^Range must hold more than one value, not 0\.0 to 0\.0$"
    ):
        affine_grid(0, 0)


def test_a_symmetric_scale_wastes_the_codes_of_the_shorter_side():
    assert symmetric_scale(-1, 14, bits=4) == 2.0
    assert affine_grid(-1, 14, bits=4).scale == 1.0


def test_symmetric_scale_survives_dead_entries():
    assert symmetric_scale([-127, 0, 0], [10, 0, 254]).tolist() == [1, 2, 2]
    assert symmetric_scale([0.0], [0.0]).tolist() == [1]


def test_round_half_up():
    assert round_half_up([-1.5, -0.5, 0.5, 1.5, 0.4]).tolist() == [-1, 0, 1, 2, 0]


@pytest.mark.parametrize(("bits", "max_shift"), [(8, 3), (4, 2), (10, 0)])
def test_ptf_shifts_minimise_the_squared_error(bits, max_shift):
    rng = np.random.default_rng(bits)
    x = rng.normal(0, 2.0 ** np.arange(-3, 3), (2, 40, 6)) + rng.normal(0, 1, 6)
    search = PtfSearch(x.min(), x.max(), 6, bits, max_shift)
    for part in x:
        search.update(part)
    grid = search.grid()
    half = 1 << (bits - 1)
    for channel, shift in enumerate(grid.shift):
        errors = []
        for a in range(max_shift + 1):
            error = 0.0
            for value in x[..., channel].ravel():
                scale = grid.scale * 2**a
                code = np.clip(np.floor(value / scale + grid.zero_point + 0.5), -half, half - 1)
                error += (value - (code - grid.zero_point) * scale) ** 2
            errors.append(error)
        assert shift == int(np.argmin(errors))
    coarse = affine_grid(x.min(), x.max(), bits)
    assert grid.zero_point == coarse.zero_point
    assert grid.scale * 2**max_shift == pytest.approx(coarse.scale)


KINDS = [("dyadic", 0.0), ("dyadic", 0.8), ("dyadic", 1.0), ("shift", 0.0), ("shift", 0.8)]


@pytest.mark.parametrize(("affine", "reparam"), KINDS)
@pytest.mark.parametrize("count", [16, 96, 384])
def test_layernorm_codes_equal_float64(affine, reparam, count):
    spec = LayerNormSpec(affine=affine)
    plan, codes, y = make_plan(spec, seed=count, count=count, reparam=reparam)
    golden, reference = run(codes, plan, spec), float_layernorm(codes, plan)
    metrics = layernorm_metrics(golden, reference, plan)
    assert metrics["equal"] >= 0.995
    assert metrics["max_difference"] <= 1
    # The codes' meaning is LayerNorm of the real numbers, up to both grids.
    assert sqnr(y, meaning(golden, plan)) > 25
    assert plan.folds == (affine == "shift" or reparam > 0)


@pytest.mark.parametrize(("affine", "reparam"), KINDS)
@pytest.mark.parametrize("bits", [4, 6, 8])
def test_folding_is_exact(affine, reparam, bits):
    """What the scales take out of LayerNorm, weights and bias of the next layer give back."""
    rng = np.random.default_rng(bits)
    spec, count = LayerNormSpec(affine=affine, out_bits=bits), 64
    gamma, beta = rng.normal(1, 0.5, count), rng.normal(0, 0.5, count)
    gamma[:3] = 0, 1e-7, -5.0
    plan, _, _ = make_plan(spec, count=count, gamma=gamma, beta=beta, reparam=reparam)
    weight, bias, score = rng.normal(size=(24, count)), rng.normal(size=24), rng.normal(size=count)
    plain = weight @ (score * gamma + beta) + bias
    codes = score * plan.gain + plan.offset  # not rounded
    folded = (weight * plan.scale) @ (codes - plan.zero_point) + (bias + weight @ plan.rest)
    assert np.allclose(folded, plain, rtol=0, atol=1e-12)
    # The integers are these numbers; at most 16 bits of the largest gain are lost.
    assert isinstance(plan.zero_point, int)
    unit = 2.0**-spec.output_shift
    assert np.abs(plan.params.offset * unit - plan.offset).max() <= unit / 2
    whole = plan.params.gain if affine == "dyadic" else 2.0**plan.params.gain
    live = plan.scale != 0
    difference = whole * unit * 2.0**plan.params.point - plan.gain
    assert np.abs(difference[live]).max() <= 2**-15 * np.abs(plan.gain).max()


@pytest.mark.parametrize(("affine", "reparam"), [("dyadic", 1.0), ("shift", 1.0), ("shift", 0.5)])
def test_channels_use_their_codes(affine, reparam):
    spec = LayerNormSpec(affine=affine)
    gamma = 2.0 ** np.random.default_rng(1).uniform(-3, 3, 96)
    plan, _, y = make_plan(spec, gamma=gamma, reparam=reparam)
    codes = (y - plan.rest) / plan.scale + plan.zero_point
    assert plan.zero_point == 0
    # Whether all of a channel's codes are used or not: their middle is that of the range.
    assert np.allclose(codes.min(axis=0) + codes.max(axis=0), -1)
    spread = codes.max(axis=0) - codes.min(axis=0)
    assert spread.max() <= 255 + 1e-9
    free = np.abs(plan.gain) < 63  # the unit ends at 128 codes per standard deviation
    assert free.sum() > 30
    if affine == "dyadic":
        assert np.allclose(spread[free], 255)
    elif reparam == 1:
        assert spread[free].min() > 127
    else:
        assert spread[free].min() < 127


def test_reparam_is_a_geometric_mean():
    gamma = 2.0 ** np.random.default_rng(2).uniform(-3, 3, 96)
    one, half, none = (
        make_plan(LayerNormSpec(), gamma=gamma, reparam=share)[0].scale for share in (1, 0.5, 1e-9)
    )
    assert np.allclose(none, one.max())
    assert np.allclose(half, np.sqrt(one * one.max()))


@pytest.mark.parametrize("affine", ["dyadic", "shift"])
def test_clip_limits_outliers_among_the_channels(affine):
    spec, count = LayerNormSpec(affine=affine), 64
    grid, gamma = PtfSearch(-1, 1, count, 8, 3).grid(), np.full(count, 2.0)
    low, high = np.full(count, -4.0), np.full(count, 4.0)
    low[5], high[5], gamma[40] = -100.0, 100.0, 0.0

    def scales(clip):
        ends = low, high
        plan = plan_layernorm(
            grid, gamma, np.zeros(count), 1e-6, -100.0, 100.0, spec, ends, 1.0, clip
        )
        return plan.scale * 255

    usual = np.exp((62 * np.log(8) + np.log(200)) / 63)  # what is dead has no say
    room = 1 if affine == "dyadic" else 2  # powers of two
    plain, clipped = scales(None), scales(4.0)
    assert plain[5] >= 200
    assert 4 * usual * 0.999 < clipped[5] < 4 * usual * room * 1.001
    others = np.delete(np.arange(count), [5, 40])
    assert np.array_equal(clipped[others], plain[others])
    assert clipped[40] == plain[40] == 0
    assert np.array_equal(scales(1e6), plain)


@pytest.mark.parametrize("clip", [0.9, float("nan")])
def test_clip_out_of_range(clip):
    with pytest.raises(ValueError, match=rf"^Clip must be 1 or more, not {clip!r}$"):
        make_plan(LayerNormSpec(), reparam=1.0, clip=clip)


@pytest.mark.parametrize("affine", ["dyadic", "shift"])
@pytest.mark.parametrize("bits", [4, 6])
def test_reparam_helps_unequal_channels(affine, bits):
    """Channels whose sizes span six octaves, through the layer that follows, its weights exact."""
    rng = np.random.default_rng(bits)
    spec, weight = LayerNormSpec(affine=affine, out_bits=bits), rng.normal(size=(32, 96))
    gamma, beta = 2.0 ** rng.uniform(-4, 2, 96), rng.normal(0, 1, 96)
    noise = {}
    for reparam in (0.0, 0.8):
        plan, codes, y = make_plan(spec, gamma=gamma, beta=beta, reparam=reparam)
        value = meaning(run(codes, plan, spec), plan)
        noise[reparam] = sqnr(y @ weight.T, value @ weight.T)
    assert noise[0.8] > noise[0.0] + 3


def test_an_offset_beyond_the_codes_coarsens_only_its_channel():
    """A channel that is nearly constant, far from beta: its scale must leave room for the offset."""
    spec, count = LayerNormSpec(), 32
    grid = PtfSearch(-1, 1, count, 8, 3).grid()
    low, high = np.full(count, -3.0), np.full(count, 3.0)
    low[7], high[7] = 40.0, 40.01
    plan = plan_layernorm(
        grid, np.ones(count), np.zeros(count), 1e-6, -3.0, 41.0, spec, (low, high), 1.0
    )
    reach = spec.bounds["offset"].high / 2**spec.output_shift
    assert reach - 2 < np.abs(plan.offset[7]) <= reach
    assert np.delete(plan.scale, 7) == pytest.approx(6 / 255)
    assert (plan.offset[7] - plan.zero_point) * plan.scale[7] + plan.rest[7] == pytest.approx(0)


@pytest.mark.parametrize("reparam", [-0.1, 1.1, float("nan")])
def test_reparam_out_of_range(reparam):
    with pytest.raises(ValueError, match=rf"^Reparam must be 0 to 1, not {reparam!r}$"):
        make_plan(LayerNormSpec(), reparam=reparam)


@pytest.mark.parametrize(("affine", "reparam"), KINDS)
def test_gamma_of_every_size(affine, reparam):
    spec, count = LayerNormSpec(affine=affine), 64
    gamma = np.concatenate([[0.0, 0.0, -1.0, 1.0], 2.0 ** -np.arange(60.0) * (-1) ** np.arange(60)])
    beta = np.linspace(-1, 1, count)
    plan, codes, y = make_plan(spec, count=count, gamma=gamma, beta=beta, reparam=reparam)
    golden, reference = run(codes, plan, spec), float_layernorm(codes, plan)
    assert layernorm_metrics(golden, reference, plan)["max_difference"] <= 1
    value = meaning(golden, plan)
    assert np.abs(value - y).max() < 0.25
    if plan.folds:
        assert (plan.scale[:2] == 0).all()
        assert (plan.rest[:2] == beta[:2]).all()
    if affine == "shift":
        assert (np.log2(plan.gain[2:]) % 1 == 0).all()
        assert plan.folds


def test_no_gamma_at_all():
    for affine, reparam in KINDS[1:]:
        spec, beta = LayerNormSpec(affine=affine), np.linspace(-1, 1, 8)
        plan, codes, _ = make_plan(spec, count=8, gamma=np.zeros(8), beta=beta, reparam=reparam)
        golden = run(codes, plan, spec)
        value = meaning(golden, plan)
        assert (value == beta).all()


@pytest.mark.parametrize(("affine", "reparam"), KINDS)
def test_constant_row_gives_beta(affine, reparam):
    spec = LayerNormSpec(affine=affine)
    plan, _, _ = make_plan(spec, count=32, reparam=reparam)
    row = np.full(32, plan.input.zero_point)
    beta = meaning(np.clip(plan.offset, -128, 127), plan)  # which calibration need not have seen
    value = meaning(run(row, plan, spec), plan)
    assert (np.abs(value - beta) <= np.abs(plan.scale) * 0.51).all()


def test_eps_in_the_units_of_the_row():
    spec = LayerNormSpec()
    plan, _, _ = make_plan(spec, count=64, eps=1e-2)
    assert plan.params.eps == int(np.floor(1e-2 * 64**2 / plan.input.scale**2 + 0.5))
    assert make_plan(spec, eps=0.0)[0].params.eps == 1
    assert make_plan(spec, eps=1e12)[0].params.eps == (1 << 40) - 1


@pytest.mark.parametrize("exponent", range(-12, 13, 3))
def test_largest_gain_uses_its_16_bits(exponent):
    gamma = np.full(48, 2.0**exponent)
    gamma[5] *= 1.9
    plan, _, y = make_plan(LayerNormSpec(), count=48, gamma=gamma, beta=np.zeros(48))
    assert 1 << 14 <= np.abs(plan.params.gain).max() < 1 << 15
    assert y.max() == pytest.approx((127 - plan.zero_point) * plan.scale[0], abs=plan.scale[0])


def test_a_gain_of_a_power_of_two_does_not_wrap():
    spec = LayerNormSpec()
    grid = PtfSearch(-1, 1, 4, 8, 3).grid()
    high, gamma = 255.0, np.full(4, 8.0)  # an output scale of 1, gains of 8
    plan = plan_layernorm(grid, gamma, np.zeros(4), 1e-6, 0.0, high, spec)
    assert plan.params.gain.tolist() == [1 << 14] * 4
    gain = plan.params.gain / 2.0 ** (spec.output_shift - plan.params.point)
    assert np.allclose(gain, plan.gain)


def test_huge_gamma_coarsens_the_scale_instead_of_wrapping():
    for affine in ("dyadic", "shift"):
        spec = LayerNormSpec(affine=affine)
        grid = PtfSearch(-1, 1, 4, 8, 3).grid()
        plan = plan_layernorm(grid, np.full(4, 1e6), np.zeros(4), 1e-6, -1.0, 1.0, spec)
        golden_gain = (
            plan.params.gain / 2.0 ** (spec.output_shift - plan.params.point)
            if affine == "dyadic"
            else 2.0 ** (plan.params.gain + plan.params.point - spec.output_shift)
        )
        assert np.allclose(golden_gain, plan.gain, rtol=1e-4)
        assert np.allclose(plan.gain * plan.scale, 1e6)


def test_score_fraction_bits_are_the_most_that_fit():
    spec = SoftmaxSpec()
    top = spec.bounds["score"].high
    edge = top / SCORE_MARGIN / 16
    peaks = {"fits": edge, "beyond": edge * 1.001, "small": 1.0, "large": top / SCORE_MARGIN / 2}
    planned, params = plan_softmax(peaks, spec)
    assert planned == spec
    assert {name: p.frac for name, p in params.items()} == {
        "fits": 4,
        "beyond": 3,
        "small": 4,
        "large": 1,
    }


@pytest.mark.parametrize("bits", range(13, 17))
def test_score_bits_grow(bits):
    spec = SoftmaxSpec()
    peak = ((1 << (bits - 1)) - 1) / SCORE_MARGIN / 2
    planned, params = plan_softmax({"a": peak, "b": 3.0}, spec)
    assert planned.score_bits == bits
    assert (params["a"].frac, params["b"].frac) == (1, 4)
    for name, value in (("a", peak), ("b", 3.0)):
        params[name].check(planned)
        assert value * SCORE_MARGIN * 2 ** params[name].frac <= planned.bounds["score"].high


def test_scores_beyond_16_bits():
    message = r"^Scores of 'b' must fit in 16 bits, not reach 20000 octaves\.$"
    with pytest.raises(UserError, match=message):
        plan_softmax({"a": 1.0, "b": 20000.0}, SoftmaxSpec())


@pytest.mark.parametrize(("base", "bits"), [("2", 4), ("2", 3), ("sqrt2", 5)])
@pytest.mark.parametrize("frac", [1, 4])
def test_softmax_codes_equal_float64(base, bits, frac):
    rng = np.random.default_rng(bits)
    spec, params = SoftmaxSpec(base=base, code_bits=bits), SoftmaxParams(frac=frac)
    scores = rng.normal(0, 3 * 2**frac, (2, 3, 197, 197)).astype(np.int64)
    reference = float_softmax(scores, spec, params)
    probability = np.exp2(scores / 2**frac)
    probability /= probability.sum(axis=-1, keepdims=True)
    assert np.allclose(code_units := -np.log2(probability) * (1 + (base == "sqrt2")), reference)
    assert code_units.min() > 0
    golden = softmax(scores, spec, params)
    metrics = softmax_metrics(scores, golden, reference, rng.normal(size=(6, 197, 16)), spec)
    assert metrics["equal"] >= 0.97
    assert metrics["max_difference"] <= 1
    assert metrics["saturated"] == 0
    assert metrics["av_sqnr"] > metrics["av_sqnr_ideal"] - 0.1


def test_code_values():
    spec = SoftmaxSpec(base="sqrt2", code_bits=3)
    assert np.allclose(code_values([0, 1, 2, 6, 7], spec), [1, 2**-0.5, 0.5, 0.125, 0])
    assert code_values([0, 1, 14, 15], SoftmaxSpec()).tolist() == [1, 0.5, 2**-14, 0]


def test_sqnr():
    assert sqnr([3.0, 4.0], [3.0, 4.5]) == pytest.approx(20)
    assert sqnr([1.0], [1.0]) is None
    assert sqnr([0.0], [1.0]) is None

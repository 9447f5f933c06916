# SPDX-License-Identifier: Apache-2.0
"""Weights as integers: known answers, each method against the one before it, GPTQ against its definition."""

import numpy as np
import pytest

from qvit_hw import weights as module
from qvit_hw.weights import (
    METHODS,
    Moments,
    mean_error,
    quantise_weights,
    round_weights,
    weight_scale,
)


def inputs(features=24, rows=4000, seed=0):
    """Correlated inputs of unequal size with a mean: what a layer in mid-network sees."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(rows, 6)) @ rng.normal(size=(6, features))
    return (mixed + 0.3 * rng.normal(size=(rows, features))) * rng.uniform(0.2, 3, features) + 1


def gathered(rows):
    moments = Moments.empty(rows.shape[-1])
    moments.update(rows)
    return moments


def output_error(weight, codes, scale, rows):
    """Squared error of the output once its mean error is in the bias."""
    difference = (weight - codes * scale[:, None]) @ (rows - rows.mean(axis=0)).T
    return float((difference**2).mean())


@pytest.mark.parametrize("bits", range(3, 9))
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("per_tensor", [False, True])
def test_codes_and_scales_are_legal(bits, method, per_tensor):
    rng, rows = np.random.default_rng(bits), inputs()
    weight = rng.normal(size=(7, 24)) * 2.0 ** rng.uniform(-5, 5, (7, 1))
    weight[3] = 0
    codes, scale = quantise_weights(weight, bits, method, per_tensor, gathered(rows))
    limit = 2 ** (bits - 1) - 1
    assert codes.dtype == np.int64
    assert codes.shape == (7, 24)
    assert scale.shape == (7,)
    assert (scale > 0).all()
    assert np.abs(codes).max() == limit  # all codes are used, the most negative one never
    assert not codes[3].any()
    assert (np.ptp(scale) == 0) == per_tensor


def test_minmax_by_hand():
    weight = np.array([[0.5, -7.0, 3.5], [1.75, 0.375, 0.0]])
    codes, scale = quantise_weights(weight, 4)
    assert scale.tolist() == [1.0, 0.25]
    assert codes.tolist() == [[1, -7, 4], [7, 2, 0]]  # halves go up
    codes, scale = quantise_weights(weight, 4, per_tensor=True)
    assert scale.tolist() == [1.0, 1.0]
    assert codes.tolist() == [[1, -7, 4], [2, 0, 0]]


def test_weights_on_the_grid_stay_what_they_are():
    codes = np.random.default_rng(0).integers(-7, 7, (5, 24), endpoint=True)
    codes[:, 0] = 7
    scale = 2.0 ** np.arange(5)
    for method in METHODS:
        again, found = quantise_weights(
            codes * scale[:, None], 4, method, inputs=gathered(inputs())
        )
        assert np.array_equal(again, codes)
        assert np.allclose(found, scale)


def test_omse_is_the_best_factor_of_each_channel():
    rng = np.random.default_rng(1)
    weight, rows = rng.standard_t(3, size=(9, 24)), inputs()
    variance = rows.var(axis=0)
    scale = weight_scale(weight, 4, "omse", inputs=gathered(rows))
    widest = weight_scale(weight, 4)

    def cost(row, step):
        code = np.clip(np.floor(row / step + 0.5), -7, 7)
        return float(((row - code * step) ** 2 * variance).sum())

    for row, chosen, top in zip(weight, scale, widest, strict=True):
        costs = [cost(row, top * percent / 100) for percent in range(36, 101, 2)]
        assert cost(row, chosen) == pytest.approx(min(costs))
    assert (scale < widest).any()
    assert not np.allclose(scale, weight_scale(weight, 4, "omse"))  # the inputs do count


def test_omse_of_a_whole_tensor_is_the_best_common_factor():
    weight = np.random.default_rng(2).standard_t(3, size=(9, 24))
    scale = weight_scale(weight, 4, "omse", per_tensor=True)

    def cost(step):
        return float(((weight - round_weights(weight, np.full(9, step), 4) * step) ** 2).sum())

    top = np.abs(weight).max() / 7
    costs = [cost(top * percent / 100) for percent in range(36, 101, 2)]
    assert cost(scale[0]) == pytest.approx(min(costs))


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
@pytest.mark.parametrize("features", [24, 300])
def test_each_method_is_better_than_the_one_before(bits, features):
    rng, rows = np.random.default_rng(bits), inputs(features)
    weight, moments = rng.standard_t(4, size=(16, features)), gathered(rows)
    results = [quantise_weights(weight, bits, method, inputs=moments) for method in METHODS]
    variance = rows.var(axis=0)
    alone = [((weight - codes * scale[:, None]) ** 2 @ variance).sum() for codes, scale in results]
    assert alone[1] <= alone[0]  # what omse takes for the error: of inputs without correlation
    together = [output_error(weight, *result, rows) for result in results]
    assert together[2] < 0.7 * min(together[:2])
    assert alone[2] > alone[1]  # it is by correlation that errors make up for each other


def test_compensation_sees_nothing_to_gain_in_uncorrelated_inputs():
    """The negative twin: with a diagonal covariance the nearest codes are the best."""
    rng = np.random.default_rng(3)
    weight, scale = rng.normal(size=(8, 40)), np.full(8, 0.25)
    variance = rng.uniform(0.1, 9, 40)
    moments = Moments(1, np.zeros(40), np.diag(variance))
    assert np.array_equal(round_weights(weight, scale, 4, moments), round_weights(weight, scale, 4))
    nothing = Moments(1, np.zeros(40), np.zeros((40, 40)))
    assert np.array_equal(round_weights(weight, scale, 4, nothing), round_weights(weight, scale, 4))


def test_compensation_by_its_definition():
    """After each column, those left over are solved anew by least squares: what the recursion shortens."""
    rng, rows = np.random.default_rng(4), inputs(12)
    weight, moments = rng.normal(size=(5, 12)), gathered(rows)
    scale = weight_scale(weight, 4)
    covariance = moments.covariance
    damped = covariance + module.DAMPING * np.diag(covariance).mean() * np.eye(12)
    order = np.argsort(-np.diag(covariance))
    left, codes = weight.copy(), np.zeros((5, 12))
    for place, column in enumerate(order):
        codes[:, column] = np.clip(np.floor(left[:, column] / scale + 0.5), -7, 7)
        done, behind = order[: place + 1], order[place + 1 :]
        error = weight[:, done] - codes[:, done] * scale[:, None]
        # min |error x_done + (weight - left) x_behind|: normal equations in the damped covariance.
        shift = np.linalg.solve(
            damped[np.ix_(behind, behind)], damped[np.ix_(behind, done)] @ error.T
        )
        left[:, behind] = weight[:, behind] + shift.T
    assert np.array_equal(round_weights(weight, scale, 4, moments), codes)


def test_blocks_do_not_matter(monkeypatch):
    rng, rows = np.random.default_rng(5), inputs(50)
    weight, moments = rng.normal(size=(6, 50)), gathered(rows)
    scale, found = weight_scale(weight, 4), []
    for block in (1, 7, 50, 128):
        monkeypatch.setattr(module, "BLOCK", block)
        found.append(round_weights(weight, scale, 4, moments))
    assert all(np.array_equal(each, found[0]) for each in found)
    assert not np.array_equal(found[0], round_weights(weight, scale, 4))


def test_moments_are_those_of_all_batches():
    rows = inputs()
    moments = Moments.empty(24)
    for part in np.array_split(rows, 3):
        moments.update(part.reshape(1, *part.shape))
    assert moments.count == len(rows)
    assert np.allclose(moments.mean, rows.mean(axis=0))
    assert np.allclose(moments.covariance, np.cov(rows.T, bias=True))


def test_moments_of_codes():
    rows, rng = inputs(), np.random.default_rng(6)
    scale, rest = rng.uniform(-2, 2, 24), rng.normal(size=24)
    moved = gathered(rows).affine(scale, rest)
    expected = gathered((rows - rest) / scale)
    assert np.allclose(moved.mean, expected.mean)
    assert np.allclose(moved.covariance, expected.covariance)
    scale[5] = 0  # a constant channel
    moved = gathered(rows).affine(scale, rest)
    assert moved.mean[5] == 0
    assert not moved.covariance[5].any()
    assert not moved.covariance[:, 5].any()
    plain = gathered(rows).affine(2.0)
    assert np.allclose(plain.mean, rows.mean(axis=0) / 2)


def test_mean_error_is_what_the_bias_needs():
    rows = inputs()
    weight = np.random.default_rng(7).normal(size=(5, 24))
    codes, scale = quantise_weights(weight, 3)
    error = mean_error(weight, codes, scale, gathered(rows))
    output, rounded = rows @ weight.T, rows @ (codes * scale[:, None]).T
    assert np.allclose(error, (output - rounded).mean(axis=0))
    assert np.abs(error).max() > 0.1


@pytest.mark.parametrize("bits", [2, 9])
def test_width(bits):
    with pytest.raises(ValueError, match=rf"^Weight width must be 3 to 8, not {bits}$"):
        weight_scale(np.ones((1, 1)), bits)


def test_method():
    with pytest.raises(ValueError, match=r"^Method must be one of minmax, omse, gptq, not 'kl'$"):
        weight_scale(np.ones((1, 1)), 8, "kl")
    with pytest.raises(ValueError, match=r"^Inputs must be moments for gptq, not None$"):
        quantise_weights(np.ones((1, 1)), 8, "gptq")

# SPDX-License-Identifier: Apache-2.0
"""Observers against brute force, and what they refuse."""

import numpy as np
import pytest
import torch

from qvit_hw.errors import UserError
from qvit_hw.observers import (
    OBSERVERS,
    EmaObserver,
    Histogram,
    MinMaxObserver,
    OmseObserver,
    PercentileObserver,
    jensen_shannon,
    kullback_leibler,
    make_observer,
)
from qvit_hw.quantize import affine_grid

KINDS = sorted(OBSERVERS)


def bell(seed=0, size=20_000):
    return np.random.default_rng(seed).normal(0.3, 1, size)


def test_minmax_is_the_extremes_of_all_updates():
    seen = MinMaxObserver("x")
    for part in np.split(bell(), 4):
        seen.update(torch.tensor(part))
    low, high = seen.range()
    assert low.shape == high.shape == ()
    assert (low, high) == (bell().min(), bell().max())


def test_ema_follows_its_recurrence():
    seen, low, high = EmaObserver("x", momentum=0.25), None, None
    for part in np.split(bell(), 5):
        seen.update(part)
        low = part.min() if low is None else low + 0.25 * (part.min() - low)
        high = part.max() if high is None else high + 0.25 * (part.max() - high)
    assert np.allclose(seen.range(), (low, high), rtol=1e-15)


def test_percentile_leaves_the_tails_out():
    values = np.append(bell(), [500.0, -300.0])
    seen = PercentileObserver("x", share=0.999)
    seen.update(values)
    low, high = seen.range()
    bin_width = 2 * 500 / 4096
    assert abs(low - np.quantile(values, 0.001)) < bin_width
    assert abs(high - np.quantile(values, 0.999)) < bin_width


def test_percentile_never_exceeds_the_extremes():
    seen = PercentileObserver("x", share=1.0)
    seen.update(bell())
    assert seen.range() == (bell().min(), bell().max())


def error_of_range(values, low, high, bits):
    grid = affine_grid(low, high, bits)
    code = np.clip(np.floor(values / grid.scale + grid.zero_point + 0.5), grid.low, grid.high)
    return ((values - (code - grid.zero_point) * grid.scale) ** 2).sum()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 700.0])
def test_omse_is_the_best_shrink_factor(scale, bits):
    values = np.append(bell(), np.full(3, 30.0)) * scale
    seen = OmseObserver("x", bits=bits)
    for part in np.array_split(values, 3):
        seen.update(part)
    low, high = (float(end) for end in seen.range())
    best = min(
        error_of_range(values, values.min() * factor, values.max() * factor, bits)
        for factor in np.arange(11, 101) / 100
    )
    assert error_of_range(values, low, high, bits) < 1.01 * best  # the bins cost the percent
    assert high < values.max()
    # Neither end alone can be better by more than a step of the search.
    for factor in np.arange(50, 151) / 100:
        for ends in ((low * factor, high), (low, high * factor)):
            assert error_of_range(values, *ends, bits) > 0.97 * error_of_range(
                values, low, high, bits
            )


def test_fewer_bits_clip_more():
    tops = []
    for bits in (3, 4, 6, 8):
        seen = OmseObserver("x", bits=bits)
        seen.update(bell(size=200_000))
        tops.append(float(seen.range()[1]))
    assert tops == sorted(tops)
    assert tops[0] < 0.7 * tops[-1]


def test_the_short_side_is_kept_when_the_long_one_is_cut():
    values = bell(size=200_000) * 2
    values = np.append(np.where(values > 0, values, np.sin(values)), [30.0])
    seen = OmseObserver("x", bits=6)
    seen.update(values)
    low, high = (float(end) for end in seen.range())
    assert high < 15
    assert low < 0.7 * values.min()
    joint = values.min() * high / 30, high  # what one factor for both ends would have given
    assert error_of_range(values, low, high, 6) < error_of_range(values, *joint, 6)


def test_divergences_of_known_distributions():
    p, q = np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.25, 0.5])
    assert kullback_leibler(p, p) == jensen_shannon(p, p) == 0
    assert kullback_leibler(p, q) == pytest.approx(np.log(2))
    # The empty bin of p counts as 1e-12.
    assert kullback_leibler(q, p) == pytest.approx(-0.5 * np.log(2) + 0.5 * np.log(0.5e12))
    middle = np.array([0.375, 0.375, 0.25])
    by_hand = (np.log(4 / 3) + 0.5 * np.log(2 / 3) + 0.5 * np.log(2)) / 2
    assert jensen_shannon(p, q) == jensen_shannon(q, p) == pytest.approx(by_hand)
    assert by_hand == (kullback_leibler(p, middle) + kullback_leibler(q, middle)) / 2
    assert jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(np.log(2))


@pytest.mark.parametrize(
    ("kind", "divergence"),
    [
        ("kl", kullback_leibler),
        ("symkl", lambda p, q: kullback_leibler(p, q) + kullback_leibler(q, p)),
        ("js", jensen_shannon),
    ],
)
def test_divergence_of_a_histogram_by_hand(kind, divergence):
    """Eight bins of width 1, two levels: every step of the cost can be done by hand."""
    seen = make_observer(kind, "x", bits=1)
    histogram = Histogram(half=4)
    counts = [1, 0, 2, 4, 4, 2, 0, 3]
    histogram.update(np.repeat(np.arange(-4, 4) + 0.5, counts))
    assert histogram.counts.tolist() == counts
    # -3 to 3 keeps 6 bins, whose ends take the outliers; two levels of three bins each. The first bin is
    # empty but for its outlier: three bins of the first level are used, and share 0 + 2 + 4.
    p = np.array([1, 2, 4, 4, 2, 3]) / 16
    q = np.array([2, 2, 2, 2, 2, 2]) / 12
    assert seen._cost(histogram, -3.0, 3.0) == pytest.approx(divergence(p, q))
    # Everything: four bins a level, one of them empty for good.
    p = np.array([1, 0, 2, 4, 4, 2, 0, 3]) / 16
    q = np.array([7 / 3, 0, 7 / 3, 7 / 3, 3, 3, 0, 3]) / 16
    assert seen._cost(histogram, -4.0, 4.0) == pytest.approx(divergence(p, q))
    assert seen._cost(histogram, -0.6, 0.0) == np.inf  # a single bin is no distribution
    empty = Histogram(half=4)
    empty.update(np.array([-3.5, 3.5]))
    assert seen._cost(empty, -2.0, 2.0) == np.inf


@pytest.mark.parametrize("kind", ["kl", "symkl", "js"])
def test_divergence_clips_outliers_and_keeps_a_flat_distribution(kind):
    flat, spiky = make_observer(kind, "flat"), make_observer(kind, "spiky")
    flat.update(np.linspace(-1, 1, 50_000))
    low, high = flat.range()
    assert low < -0.9
    assert high > 0.9
    spiky.update(np.append(bell(), [40.0, -40.0]))
    low, high = spiky.range()
    assert -30 < low < -2
    assert 2 < high < 30


@pytest.mark.parametrize("kind", KINDS)
def test_per_axis_equals_one_observer_per_slice(kind):
    values = np.random.default_rng(1).normal(0, [[1.0], [3.0], [0.01]], (3, 4000))
    together = make_observer(kind, "x", axis=1)
    together.update(values.T)
    low, high = together.range()
    assert low.shape == high.shape == (3,)
    for index, row in enumerate(values):
        alone = make_observer(kind, "x")
        alone.update(row)
        assert alone.range() == (low[index], high[index])


@pytest.mark.parametrize("kind", KINDS)
def test_range_lies_inside_what_was_seen_and_repeats(kind):
    ranges = []
    for _ in range(2):
        seen = make_observer(kind, "x")
        for part in np.split(bell(3), 4):
            seen.update(part)
        ranges.append(tuple(float(end) for end in seen.range()))
    assert ranges[0] == ranges[1]
    assert bell(3).min() <= ranges[0][0] < ranges[0][1] <= bell(3).max()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "ema"])
def test_order_and_split_of_updates_do_not_matter(kind):
    ranges = []
    for values, parts in ((bell(5), 1), (bell(5)[::-1], 7)):
        seen = make_observer(kind, "x")
        for part in np.array_split(values, parts):
            seen.update(part)
        ranges.append(tuple(float(end) for end in seen.range()))
    # The histogram's first bin width depends on the first update: at most a bin and a search step.
    assert np.allclose(ranges[0], ranges[1], rtol=0.02)


def test_histogram_merges_without_moving_a_count():
    values = bell(7) * 10.0 ** np.random.default_rng(7).integers(-3, 3, 20_000)
    histogram = Histogram(half=64)
    for part in np.array_split(np.sort(np.abs(values)), 9):
        histogram.update(part * np.where(np.arange(part.size) % 2, 1, -1))
    signed = np.concatenate(
        [
            part * np.where(np.arange(part.size) % 2, 1, -1)
            for part in np.array_split(np.sort(np.abs(values)), 9)
        ]
    )
    assert np.array_equal(histogram.counts, np.histogram(signed, histogram.edges)[0])
    assert histogram.counts.sum() == 20_000
    assert np.log2(histogram.width) % 1 == 0


def test_histogram_takes_zeros_first():
    histogram = Histogram()
    histogram.update(np.zeros(3))
    histogram.update(np.ones(2))
    assert histogram.counts.sum() == 5
    assert histogram.counts[histogram.half] == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", ["NaN", "infinite"])
def test_not_finite(kind, bad):
    values = torch.ones(4)
    values[2] = float("nan") if bad == "NaN" else float("-inf")
    with pytest.raises(UserError, match=rf"^Activations of 'a\.b' must be finite, not {bad}\.$"):
        make_observer(kind, "a.b").update(values)


@pytest.mark.parametrize("kind", KINDS)
def test_constant(kind):
    seen = make_observer(kind, "a.b")
    seen.update(torch.full((3, 4), 2.5))
    seen.update(torch.full((1, 4), 2.5))
    message = (
        r"^Activations of 'a\.b' must vary over the calibration images, not be 2\.5 everywhere\.$"
    )
    with pytest.raises(UserError, match=message):
        seen.range()


def test_one_constant_channel_is_no_fault():
    seen = make_observer("omse", "x", axis=0)
    seen.update(np.stack([np.zeros(100), np.linspace(-1, 1, 100)]))
    low, high = seen.range()
    assert (low[0], high[0]) == (0, 0)
    assert high[1] > 0.5


def test_unseen():
    with pytest.raises(
        UserError, match=r"^Activations of 'x' must be observed on at least one image\.$"
    ):
        make_observer("minmax", "x").range()


def test_bad_arguments():
    names = ", ".join(OBSERVERS)
    with pytest.raises(UserError, match=rf"^Observer must be one of {names}, not 'mean'\.$"):
        make_observer("mean", "x")
    with pytest.raises(ValueError, match=r"^Share must be above 0\.5 and at most 1, not 0\.5$"):
        PercentileObserver("x", share=0.5)
    with pytest.raises(ValueError, match=r"^Half must be an even number of bins, not 3$"):
        Histogram(half=3)
    with pytest.raises(ValueError, match=r"^Tensor of 'x' must not be empty$"):
        MinMaxObserver("x").update(np.zeros(0))

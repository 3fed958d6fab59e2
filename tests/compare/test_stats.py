"""The statistics on synthetic studies whose truth is known, and against published tables."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tunesmith.compare.stats import LEVELS, difference, estimate, holm, quantile, seeds_needed, tail, variances

ITEMS = 200


def answers(random, seeds, items, shift, seed_noise, difficulty):
    """Right or wrong [seeds, items]: items differ in difficulty, an arm has its own taste in items, seeds differ."""
    taste = random.normal(0, 0.5, (1, items))
    logit = 0.4 + shift + random.normal(0, seed_noise, (seeds, 1)) + difficulty + taste
    return (random.random((seeds, items)) < 1 / (1 + np.exp(-logit))).astype(float)


def study(random, seeds, shift=0.0, seed_noise=0.1, items=ITEMS):
    """Two arms on the same items. A seed noise of 0.1 moves the share of right answers by about two points."""
    difficulty = random.normal(0, 1.5, (1, items))
    return (
        answers(random, seeds, items, shift, seed_noise, difficulty),
        answers(random, seeds, items, 0.0, seed_noise, difficulty),
    )


@pytest.mark.parametrize(("seeds", "seed_noise"), [(2, 0.1), (3, 0.1), (5, 0.1), (5, 0.25)])
def test_equal_methods_are_called_different_in_at_most_5_percent_of_1000_studies(seeds, seed_noise):
    random = np.random.default_rng(0)
    found = [difference(*study(random, seeds, seed_noise=seed_noise)).p_value <= 0.05 for _ in range(1000)]
    assert 0 < np.mean(found) <= 0.05


def test_a_difference_of_10_points_is_found_in_80_percent_of_studies_of_5_seeds_and_200_items():
    random = np.random.default_rng(1)
    found = [difference(*study(random, 5, shift=0.62)) for _ in range(500)]
    assert np.mean([one.value for one in found]) == pytest.approx(0.10, abs=0.01)
    assert np.mean([one.p_value <= 0.05 for one in found]) >= 0.8


def test_among_several_equal_arms_none_is_called_different_in_95_percent_of_studies():
    random = np.random.default_rng(2)
    wrong = 0
    for _ in range(400):
        difficulty = random.normal(0, 1.5, (1, ITEMS))
        arms = [answers(random, 5, ITEMS, 0.0, 0.1, difficulty) for _ in range(5)]
        wrong += min(holm([difference(arm, arms[0]).p_value for arm in arms[1:]])) <= 0.05
    assert wrong / 400 <= 0.05


def test_intervals_hold_the_true_difference():
    """δ is what many seeds and items would show; the items' own taste counts as noise."""
    random = np.random.default_rng(3)
    held = 0
    for _ in range(400):
        by_seed, by_item = random.normal(0, 0.03, (4, 1)), random.normal(0, 0.3, (1, 60))
        found = difference(0.07 + by_seed + by_item + random.normal(0, 0.4, (4, 60)), np.zeros((4, 60)))
        held += found.low <= 0.07 <= found.high
    assert held / 400 >= 0.95


def test_losses_of_whole_runs_are_told_by_a_t_interval_over_the_seeds():
    d = np.array([[0.1], [0.3], [0.2]])
    found = difference(d, np.zeros((3, 1)))
    half = 4.302653 * d.std(ddof=1) / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((0.2 - half, 0.2 + half), rel=1e-4)
    assert found.p_value == pytest.approx(tail(0.2 / (d.std(ddof=1) / math.sqrt(3)), 2), rel=1e-3)


def test_never_narrower_than_the_t_interval_over_seeds():
    random = np.random.default_rng(4)
    for _ in range(50):
        d = random.normal(0, 1, (4, 30))
        seed, item = variances(d)
        assert seed == pytest.approx(d.mean(axis=1).var(ddof=1) / 4)
        assert item >= 0


def test_the_parts_of_the_variance_are_found():
    random = np.random.default_rng(5)
    parts = np.mean(
        [variances(random.normal(0, 0.3, (6, 1)) + random.normal(0, 2.0, (1, 50))) for _ in range(400)], axis=0
    )
    assert parts == pytest.approx([0.3**2 / 6, 2.0**2 / 50], rel=0.1)


def test_one_seed_proves_nothing():
    found = difference(np.ones((1, 100)), np.zeros((1, 100)))
    assert found.p_value == 1.0
    assert math.isinf(found.high)
    assert math.isinf(estimate(np.ones((1, 9))).high)


def test_the_same_answers_are_no_difference():
    x = np.random.default_rng(6).integers(0, 2, (3, 40))
    found = difference(x, x)
    assert (found.value, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    assert seeds_needed(found) is None


def test_paired_scores_must_fit():
    with pytest.raises(ValueError, match="the same seeds and items"):
        difference(np.zeros((2, 3)), np.zeros((2, 4)))


@pytest.mark.parametrize(
    ("degrees", "level", "t"),
    [(1, 0.05, 12.706205), (2, 0.05, 4.302653), (4, 0.05, 2.776445), (4, 0.01, 4.604095), (30, 0.001, 3.645959)],
)
def test_quantiles_are_those_of_the_tables(degrees, level, t):
    assert quantile(degrees, level) == pytest.approx(t, rel=2e-4)


def test_tails_are_those_of_closed_forms():
    for t in (0.1, 1.0, 3.0, 50.0, 1e4):
        assert tail(t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(t), rel=1e-9)
        assert tail(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-6)
    assert quantile(100_000, 0.05) == pytest.approx(1.959964, rel=1e-3)
    assert quantile(3, LEVELS[-1]) > quantile(3, 1e-6) > quantile(3, 0.5) > quantile(3, 1.0) == 0


def test_holm():
    """Holm's own order: the smallest times 4, the next times 3, never falling."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_so_many_more_seeds_are_enough():
    """Studies of the number of seeds that is asked for find such a difference about four times in five."""
    random = np.random.default_rng(7)
    noise, shift, items = 0.06, 0.05, 100

    def pair(seeds):
        return shift + random.normal(0, noise, (seeds, 1)) + random.normal(0, 0.1, (seeds, items)), np.zeros(
            (seeds, items)
        )

    asked = [
        needed for _ in range(200) if (needed := seeds_needed(_with_value(difference(*pair(4)), shift))) is not None
    ]
    enough = round(float(np.median(asked)))
    assert enough > 4
    found = np.mean([difference(*pair(enough)).p_value <= 0.05 for _ in range(400)])
    assert 0.6 <= found <= 0.97


def _with_value(found, value):
    from dataclasses import replace

    return replace(found, value=value)


def test_where_the_rows_are_too_few_no_number_of_seeds_is_named():
    random = np.random.default_rng(8)
    d = 0.01 + random.normal(0, 0.001, (4, 1)) + random.normal(0, 1.0, (1, 30)) + random.normal(0, 0.01, (4, 30))
    found = difference(d, np.zeros_like(d))
    assert seeds_needed(_with_value(found, 0.05)) is None

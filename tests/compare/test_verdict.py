"""The words: they name a winner only beyond the noise, and say what it would take."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tunesmith.compare.pictures import pareto
from tunesmith.compare.stats import difference
from tunesmith.compare.verdict import HELD_OUT, LOSS, best, score, verdict

EXACT = score("exact")


def found(shift, seeds=5, items=200, noise=0.02, seed=0):
    random = np.random.default_rng(seed)
    d = shift + random.normal(0, noise, (seeds, 1)) + random.normal(0, 0.4, (seeds, items))
    return difference(d, np.zeros((seeds, items)))


def said(one, measure=EXACT, comparisons=1):
    return verdict("dora", "lora", measure, one, min(1.0, comparisons * one.p_value), comparisons)


def test_a_large_difference_is_told_with_its_interval_and_its_direction():
    assert said(found(0.2)).startswith("dora is better than lora: +")
    assert said(found(-0.2)).startswith("dora is worse than lora: -")
    assert said(found(0.2), LOSS).startswith("dora is worse than lora: +0.")
    assert "points [" in said(found(0.2))


def test_inside_the_noise_nothing_is_told_but_what_it_would_take():
    one = next(f for f in (found(0.03, seed=seed) for seed in range(50)) if f.value > 0.02 and f.p_value > 0.1)
    assert said(one).startswith("cannot tell dora from lora: ")
    assert "it would take about" in said(one)
    assert "more seed" in said(one)


def test_a_difference_that_would_do_alone_may_not_do_among_many():
    one = next(f for f in (found(0.05, seed=seed) for seed in range(50)) if 0.02 < f.p_value < 0.04)
    assert said(one).startswith("dora is better")
    among = said(one, comparisons=10)
    assert among.startswith("cannot tell")
    assert "among so many comparisons may be chance" in among


def test_one_seed_is_no_verdict_however_large_the_difference():
    one = found(0.5, seeds=1)
    assert said(one).startswith("cannot tell dora from lora: one seed says nothing of the next")
    assert "at least two seeds more" in said(one)


def test_too_few_rows_are_named():
    random = np.random.default_rng(0)
    d = 0.05 + random.normal(0, 0.5, (1, 40)) + random.normal(0, 0.001, (5, 40))
    one = difference(d - d.mean() + 0.05, np.zeros((5, 40)))
    assert "the test has 40 rows, and it would take" in said(one)


def test_the_same_on_every_seed():
    one = difference(np.ones((3, 9)), np.ones((3, 9)))
    assert said(one).endswith("; the two gave the same on every seed")


@pytest.mark.parametrize(
    "d",
    [
        np.repeat([[0.1], [-0.1]], 9, axis=1),  # one seed better, one worse by as much
        np.repeat([[0.1, -0.1]], 4, axis=0),  # one row better, one worse, on every seed
        np.array([[1.0, -1.0, 0.0], [0.0, 1.0, -1.0]]),  # each seed's mean is the same, its rows are not
        np.array([0.3, -0.1, -0.2]),  # whole runs
    ],
)
def test_equal_means_are_not_the_same_everywhere(d):
    told = said(difference(d, np.zeros_like(d)), LOSS)
    assert told.endswith("; their means are the same: each is better where the other is worse")


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("seeds", [1, 4])
def test_a_loss_that_is_no_number_gives_no_verdict(wrong, seeds):
    d = np.ones((seeds, 5))
    d[0, 0] = wrong
    told = said(difference(d, np.zeros_like(d)), LOSS)
    assert told == "cannot tell dora from lora: a test loss that is not a finite number can be compared with none"


def test_one_row_asks_for_more_rows():
    told = said(difference(np.ones((5, 1)), np.zeros((5, 1))))
    assert told.startswith("cannot tell dora from lora: +100.0 points [unknown]")
    assert told.endswith("the test has one row, which says nothing of others")


def test_of_whole_runs_no_rows_are_asked_for():
    one = difference(np.array([0.001, -0.2, 0.2]), np.zeros(3))
    assert "rows" not in said(one, HELD_OUT)
    assert "more seeds would be needed" in said(one, HELD_OUT)


@pytest.mark.parametrize(
    ("beats", "words"),
    [
        ({}, "No winner by exact: b has the best mean, and a and c cannot be told from it"),
        ({("b", "a"): True}, "No winner by exact: b has the best mean, and c cannot be told from it"),
        ({("b", "a"): True, ("b", "c"): True}, "Best by exact: b; it beats every other beyond the noise."),
    ],
)
def test_a_winner_beats_every_other_or_is_none(beats, words):
    assert best(["a", "b", "c"], [0.4, 0.5, 0.3], beats, EXACT).startswith(words)


def test_of_losses_the_least_is_best():
    assert best(["a", "b"], [0.4, 0.5], {("a", "b"): True}, LOSS).startswith("Best by test loss: a;")


def test_the_front_holds_what_nothing_beats_in_both():
    points = {"a": (1.0, 0.5), "b": (2.0, 0.4), "c": (3.0, 0.9), "d": (3.0, 0.8), "e": (1.0, 0.6)}
    assert pareto(points, higher_is_better=True) == ["e", "c"]
    assert pareto(points, higher_is_better=False) == ["a", "b"]


def test_those_that_tie_are_named_together():
    one = best(["a", "b", "c"], [0.5, 0.5, 0.4], {}, EXACT)
    assert one == "No winner by exact: a and b have the same mean, the best, and c cannot be told from a."
    assert best(["a", "b"], [0.0, 0.0], {}, EXACT).endswith("a and b have the same mean, the best.")

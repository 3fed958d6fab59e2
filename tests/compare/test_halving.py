"""Successive halving: the same trials for every arm, and the rate that is best."""

from __future__ import annotations

import math

import pytest

from tunesmith.compare.halving import cost, halve, rounds


@pytest.mark.parametrize(
    ("count", "plan"),
    [(2, [(2, 0.5)]), (3, [(3, 0.25), (2, 0.5)]), (4, [(4, 0.25), (2, 0.5)]), (6, [(6, 0.125), (3, 0.25), (2, 0.5)])],
)
def test_rounds(count, plan):
    assert rounds(count) == plan
    assert cost(count) == sum(trials * share for trials, share in plan)


def test_the_best_rate_is_found_and_every_arm_has_as_many_trials():
    for target in (1e-4, 3e-4, 1e-3, 3e-3):
        made = []

        def attempt(rate, number, share, target=target, made=made):
            made.append((number, share))
            return abs(math.log(rate / target))

        found = halve([3e-3, 1e-4, 1e-3, 3e-4], attempt)
        assert found.learning_rate == target
        assert found.at_the_edge == (target in (1e-4, 3e-3))
        assert made == [(0, 0.25)] * 4 + [(1, 0.5)] * 2
        assert len(found.trials) == 6


def test_a_trial_that_failed_is_the_worst():
    assert halve([0.1, 1.0], lambda rate, *_: math.inf if rate > 0.5 else 3.0).learning_rate == 0.1
    assert halve([0.1, 1.0], lambda *_: math.inf) is None

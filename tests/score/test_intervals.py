"""Intervals and paired tests against closed forms and simulation."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.score.intervals import mcnemar, paired_change, wilson


def test_wilson_known_values():
    # Agresti and Coull 1998; also what statsmodels' proportion_confint(method="wilson") prints.
    share = wilson(8, 10)
    assert (share.low, share.high) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert wilson(0, 20).high == pytest.approx(0.161125, abs=1e-6)


@given(st.integers(0, 300), st.integers(0, 300))
def test_wilson_holds_its_share_and_is_symmetric(a, b):
    right, total = min(a, b), max(a, b)
    share = wilson(right, total)
    assert 0 <= share.low <= share.high <= 1
    if total:
        assert share.low <= share.value <= share.high
    mirrored = wilson(total - right, total)
    assert mirrored.low == pytest.approx(1 - share.high, abs=1e-12)


def test_wilson_covers():
    random_, p, n = random.Random(0), 0.85, 60
    intervals = [wilson(sum(random_.random() < p for _ in range(n)), n) for _ in range(2000)]
    assert 0.93 < sum(i.low <= p <= i.high for i in intervals) / 2000 < 0.975


def test_wilson_refuses_more_right_than_asked():
    with pytest.raises(ValueError, match="3 right of 2"):
        wilson(3, 2)


@pytest.mark.parametrize(("gained", "lost", "p"), [(0, 0, 1.0), (5, 5, 1.0), (6, 0, 2 / 64), (8, 1, 2 * 10 / 512)])
def test_mcnemar_is_the_exact_binomial(gained, lost, p):
    assert mcnemar(gained, lost) == pytest.approx(p)
    assert mcnemar(lost, gained) == pytest.approx(p)


def test_paired_change():
    before, after = [0] * 40 + [1] * 60, [1] * 30 + [0] * 10 + [1] * 58 + [0] * 2
    change = paired_change(before, after)
    assert change.difference == pytest.approx(0.28)
    assert (change.gained, change.lost) == (30, 2)
    assert change.p_value < 1e-5
    # The bootstrap's own standard error is known here: the spread of the differences over the root of their number.
    spread = math.sqrt((32 / 100 - 0.28**2) / 100)
    assert change.low == pytest.approx(0.28 - 1.96 * spread, abs=0.02)
    assert change.high == pytest.approx(0.28 + 1.96 * spread, abs=0.02)
    assert paired_change(before, after) == change


def test_no_change_is_no_change():
    change = paired_change([1, 0, 1], [1, 0, 1])
    assert (change.difference, change.low, change.high, change.p_value) == (0, 0, 0, 1)


def test_pairs_are_needed():
    with pytest.raises(ValueError, match="same questions"):
        paired_change([1, 0], [1])
    with pytest.raises(ValueError, match="same questions"):
        paired_change([], [])

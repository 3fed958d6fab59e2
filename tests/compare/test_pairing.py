"""Two arms side by side: the same seeds and rows, and losses in one unit."""

from __future__ import annotations

import numpy as np
import pytest

from tunesmith.compare.pairing import ONCE, Measured, paired, side_by_side
from tunesmith.compare.verdict import HELD_OUT, LOSS, score

EXACT = score("exact")


def losses(sums, tokens, seeds=(0, 1), **more):
    """An arm with the same losses by row on every seed; rows count from 1."""
    rows, learned = (dict(enumerate(values, 1)) for values in (sums, tokens))
    once = {"loss": rows, "held_out_loss": {0: 1.0}, "exact": {0: 1.0, 1: 0.0}}
    by_seed = {key: dict.fromkeys(seeds, own) for key, own in once.items()}
    return Measured(by_seed, dict.fromkeys(seeds, learned), **more)


def test_losses_are_told_per_learned_token():
    left, right, rows = side_by_side(losses([4, 8], [2, 6]), losses([8, 16], [2, 6]), LOSS)
    assert rows == [1, 2]
    assert left.tolist() == [[1, 2], [1, 2]]  # four learned tokens a row on average
    assert right.mean() == (8 + 16) / 8
    figure = losses([4, 8], [2, 6]).by_seed(LOSS)[0]
    assert np.mean(list(figure.values())) == 12 / 8


def test_a_row_that_one_arm_lacks_changes_nothing_of_the_others():
    ours, theirs = losses([4, 8], [2, 6]), losses([4, 8, 100], [2, 6, 40])
    left, right, rows = side_by_side(ours, theirs, LOSS)
    assert rows == [1, 2]
    assert (left == right).all()


def test_where_a_row_has_other_learned_tokens_no_loss_stands_beside_another():
    ours, theirs = losses([4, 8], [2, 6]), losses([4, 8], [2, 7])
    assert not ours.is_like(theirs, LOSS)
    assert side_by_side(ours, theirs, LOSS) is None
    assert side_by_side(ours, theirs, HELD_OUT) is None
    assert side_by_side(ours, theirs, EXACT) is not None


def test_learned_tokens_are_known_of_arms_that_share_no_seed():
    assert losses([4], [2], seeds=[0]).is_like(losses([4], [2], seeds=[1]), LOSS)
    assert not losses([4], [2], seeds=[ONCE]).is_like(losses([4], [3], seeds=[1]), LOSS)


@pytest.mark.parametrize(("names", "like"), [(("a", "a"), True), (("a", "b"), False), (("a", None), True)])
def test_where_no_row_of_the_test_has_a_loss_the_settings_say_how_rows_become_tokens(names, like):
    ours, theirs = (
        Measured({"held_out_loss": {0: {0: 1.0}}}, read_by=None if name is None else {("model", "name"): name})
        for name in names
    )
    assert ours.is_like(theirs, LOSS) == like
    assert (side_by_side(ours, theirs, HELD_OUT) is not None) == like


def test_where_the_tokens_are_known_the_settings_do_not_matter():
    of = [{("model", "name"): name} for name in "ab"]
    assert losses([4], [2], read_by=of[0]).is_like(losses([5], [2], read_by=of[1]), LOSS)


def test_what_no_seed_changes_stands_beside_every_seed():
    left, right, _ = paired({ONCE: {0: 1.0}}, {3: {0: 0.0}, 4: {0: 0.5}})
    assert (left.tolist(), right.tolist()) == ([[1.0], [1.0]], [[0.0], [0.5]])
    assert paired({0: {0: 1.0}}, {1: {0: 1.0}}) is None
    assert paired({0: {0: 1.0}}, {0: {1: 1.0}}) is None

"""Space and budget: what is proposed lies inside, the same past proposes the same, no step is beyond the budget."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import RecipeError
from tunesmith.search import rungs, space
from tunesmith.search.space import Range, Seen

WIDE = {"train.learning_rate": Range(low=1e-5, high=1e-1, log=True), "adapter.r": Range(low=2, high=64)}


@given(st.integers(2, 40), st.floats(0.2, 20), st.integers(1, 2000))
def test_rungs_keep_to_the_budget(trials, budget, num_steps):
    plan = rungs.plan(trials, budget, num_steps)
    assert rungs.steps_of(plan) <= budget * num_steps + 1e-6
    assert all(1 <= rung.step <= num_steps for rung in plan)
    assert [rung.trials for rung in plan] == sorted((rung.trials for rung in plan), reverse=True)
    steps = [rung.step for rung in plan]
    assert steps == sorted(set(steps))
    if plan:
        assert plan[0].trials == trials
        assert plan[-1].trials <= 2


def test_rungs_of_the_six_ratios():
    """6 f + 3 f + 2 (2 f) = 13 f steps: 13 f = 1.5 runs of 100 steps."""
    assert rungs.plan(6, 1.5, 100) == [rungs.Rung(6, 11), rungs.Rung(3, 23), rungs.Rung(2, 46)]
    assert rungs.plan(2, 5.0, 10) == [rungs.Rung(2, 10)]
    assert rungs.plan(8, 1.5, 4) == []


def valley(values):
    """Least at a learning rate of 3e-3 and rank 40."""
    return math.log10(values["train.learning_rate"] / 3e-3) ** 2 + ((values["adapter.r"] - 40) / 30) ** 2


def hunt(trials, seed):
    seen = []
    for _ in range(trials):
        values = space.propose(WIDE, seen, seed=seed, trials=trials)
        seen.append(Seen(values, valley(values)))
    return seen


def test_proposals_lie_in_the_space_and_never_come_twice():
    seen = hunt(12, 0)
    assert all(space.holds(WIDE, one.values) for one in seen)
    assert all(isinstance(one.values["adapter.r"], int) for one in seen)
    assert len({str(one.values) for one in seen}) == 12


def test_the_same_past_proposes_the_same():
    seen = hunt(7, 3)
    for count in range(7):
        assert space.propose(WIDE, seen[:count], seed=3, trials=7) == seen[count].values
    other = [Seen(one.values, -one.loss) for one in seen]
    assert space.propose(WIDE, other, seed=3, trials=7) != space.propose(WIDE, seen, seed=3, trials=7)


def test_later_proposals_are_better_than_chance():
    """Over ten seeds, the second half of 24 proposals against the first, which knows nothing."""
    early, late = [], []
    for seed in range(10):
        losses = [one.loss for one in hunt(24, seed)]
        early += losses[:12]
        late += losses[12:]
    assert sorted(late)[len(late) // 2] < 0.6 * sorted(early)[len(early) // 2]


def test_a_grid_is_tried_in_whole():
    grid = {"adapter.lr_ratio": (1, 2, 4), "adapter.method": ("lora", "dora")}
    seen = []
    while (values := space.propose(grid, seen, seed=0, trials=6)) is not None:
        seen.append(Seen(values, 0.0))
    assert len({str(one.values) for one in seen}) == 6
    some = []
    for _ in range(4):
        some.append(Seen(space.propose(grid, some, seed=0, trials=4), math.inf))
    assert len({str(one.values) for one in some}) == 4


def test_a_value_at_an_end_is_told():
    found = {"train.learning_rate": 1e-1, "adapter.r": 30}
    assert space.at_an_end(WIDE, found) == ["train.learning_rate"]
    choices = {"adapter.lr_ratio": (1, 2, 4), "adapter.method": ("lora", "dora", "vera")}
    assert space.at_an_end(choices, {"adapter.lr_ratio": 4, "adapter.method": "lora"}) == ["adapter.lr_ratio"]
    assert space.at_an_end(choices, {"adapter.lr_ratio": 2, "adapter.method": "vera"}) == []


def test_without_optuna_a_range_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(Exception, match=r"tunesmith\[search\]"):
        space.propose(WIDE, [], seed=0, trials=4)
    assert space.propose({"adapter.r": (1, 2)}, [], seed=0, trials=4) == {"adapter.r": 1}


@pytest.mark.parametrize(("low", "high", "log"), [(2, 1, False), (0, 1, True), (-1.0, 1.0, True)])
def test_a_range_that_is_none(low, high, log):
    from tunesmith.search import settings

    values = {"recipe": {}, "space": {"train.learning_rate": {"low": low, "high": high, "log": log}}}
    with pytest.raises(RecipeError, match=r"space\.train\.learning_rate"):
        settings.from_dict(values)

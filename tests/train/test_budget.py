"""Budgets in steps, epochs, tokens and minutes, and the schedules that run over them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from loops import Clock, bench, rates, rows

from tunesmith.data.types import Example, Origin
from tunesmith.errors import RecipeError
from tunesmith.events import Evaluated, Started, StepDone
from tunesmith.train.budget import Budget
from tunesmith.train.schedule import multiplier
from tunesmith.train.settings import TrainSettings

pytestmark = pytest.mark.filterwarnings("ignore")


def of_lengths(*lengths):
    return [
        Example(np.arange(3, 3 + length), np.ones(length, np.float32), Origin("rows", number))
        for number, length in enumerate(lengths, 1)
    ]


@pytest.mark.parametrize(("settings", "steps"), [
    ({"steps": 5}, 5), ({"epochs": 2.0}, 4), ({"epochs": 0.5}, 1), ({"epochs": 1.5}, 3), ({"epochs": 1.2}, 3), ({}, 6),
])  # fmt: skip
def test_budgets_in_steps_and_epochs(tmp_path, settings, steps):
    made = bench(tmp_path, **settings)
    assert made.loop.run().step == steps
    assert [event.step for event in made.kinds(StepDone)] == list(range(1, steps + 1))
    assert made.kinds(StepDone)[-1].epoch == pytest.approx(steps / 2)


@pytest.mark.parametrize(("tokens", "steps"), [(1, 1), (12, 1), (13, 2), (31, 2), (32, 3), (43, 3), (44, 4), (86, 6)])
def test_a_budget_in_tokens_of_a_known_order(tmp_path, tokens, steps):
    """Steps of 5 + 7, 9 + 10 and 12 tokens, over and over."""
    made = bench(tmp_path, train=of_lengths(5, 7, 9, 10, 12), tokens=tokens, batch_size=2, shuffle=False)
    assert made.loop.run().step == steps
    assert made.kinds(Started)[0].num_steps == steps
    assert [event.num_steps for event in made.kinds(StepDone)] == [steps] * steps
    assert made.kinds(StepDone)[-1].seconds_left == 0


@pytest.mark.parametrize("tokens", [1, 50, 137, 400])
@pytest.mark.parametrize("batch", [{"batch_size": 3}, {"batch_tokens": 45}])
@pytest.mark.parametrize("cut", [{}, {"micro_batch_tokens": 31}, {"flat": False}])
def test_a_budget_in_tokens_ends_with_the_first_step_that_reaches_it(tmp_path, tokens, batch, cut):
    """As the run's own count has it, however steps are cut, and with rows in an order of the seed."""
    made = bench(tmp_path, train=rows(11), tokens=tokens, seed=5, **batch, **cut)
    ended = made.loop.run()
    assert ended.num_tokens >= tokens > ended.num_tokens - made.kinds(StepDone)[-1].num_tokens


def test_what_rows_share_counts_each_time_they_come(tmp_path):
    """So a run of as many tokens reads as many rows, whether their beginning is computed once or for each."""
    same = np.arange(3, 33)
    train = [
        Example(np.append(same, number), np.ones(31, np.float32), Origin("rows", number), group="a")
        for number in range(40, 48)
    ]
    runs = [bench(tmp_path / str(flat), train=train, tokens=300, flat=flat) for flat in (True, False)]
    for made in runs:
        made.loop.objective.share = made.policy.flat
        assert made.loop.run().step == 3  # of 4 rows and 124 tokens each
    once, each = (made.loop.at.num_tokens for made in runs)
    assert once < 300 <= each == 3 * 124


@pytest.mark.parametrize("settings", [{"schedule": "linear"}, {"warmup": 0.2}, {"warmup": 3.0, "schedule": "linear"}])
def test_the_schedule_of_a_budget_in_tokens_is_that_of_its_steps(tmp_path, settings):
    held_out = rows(2, seed=9)
    made = bench(tmp_path / "tokens", train=rows(11), tokens=400, held_out=held_out, **settings)
    steps = made.loop.run().step
    again = bench(tmp_path / "steps", train=rows(11), steps=steps, held_out=held_out, **settings)
    again.loop.run()
    assert steps > 4
    assert rates(made) == rates(again)
    evaluated = [event.step for event in made.kinds(Evaluated)]
    assert evaluated == [event.step for event in again.kinds(Evaluated)]
    assert made.loop.budget.spent(made.loop.at) == 1.0
    assert made.loop.budget.learning_rate(made.loop.at) == pytest.approx(0.0, abs=1e-12)


def test_without_an_order_a_budget_in_tokens_has_no_number_of_steps():
    for unknown in (None, lambda tokens: None):
        with pytest.raises(RecipeError, match=r"train\.tokens does not say how many steps") as caught:
            Budget(TrainSettings(tokens=5000), 3, unknown).num_steps  # noqa: B018 - it is what raises
        assert caught.value.found == "5,000 tokens"
    assert Budget(TrainSettings(tokens=5000), 0).num_steps == 0, "an objective that learns without steps"


def test_every_row_once_an_epoch_whatever_the_batch(tmp_path):
    made = bench(tmp_path, train=rows(7), batch_size=3)
    assert made.loop.objective.steps_per_epoch == 3
    stream = made.loop.objective.steps(made.policy)
    for _ in range(4):
        seen = [example.origin.row for _ in range(3) for example in next(stream).examples]
        assert sorted(seen) == list(range(1, 8))


@pytest.mark.parametrize("evaluation_ticks", [0, 50])
def test_a_budget_in_minutes_stops_in_time_and_counts_training_alone(tmp_path, monkeypatch, evaluation_ticks):
    clock = Clock(monkeypatch, 3.0)
    made = bench(tmp_path, minutes=1.0, held_out=rows(3, seed=2))
    evaluate = made.loop.objective.evaluate

    def slow(policy, max_tokens):
        clock.now += evaluation_ticks
        return evaluate(policy, max_tokens)

    made.loop.objective.evaluate = slow
    ended = made.loop.run()
    assert ended.step == 20  # a step is 3 s between its two looks
    assert ended.train_seconds == pytest.approx(60.0)
    assert ended.evaluation_seconds >= evaluation_ticks * len(made.kinds(Evaluated))
    assert 9 <= len(made.kinds(Evaluated)) <= 11
    assert made.kinds(Evaluated)[-1].step == 20
    assert made.kinds(StepDone)[9].seconds_left == pytest.approx(30.0)


def test_a_step_that_would_end_late_is_not_begun(tmp_path, monkeypatch):
    Clock(monkeypatch, 25.0)
    assert bench(tmp_path, minutes=1.0).loop.run().train_seconds == pytest.approx(50.0)


def test_minutes_warm_up_and_fall(tmp_path, monkeypatch):
    Clock(monkeypatch, 3.0)
    made = bench(tmp_path, minutes=1.0, warmup=0.25, schedule="linear")
    made.loop.run()
    got = rates(made)
    assert 0 < got[0] <= 0.21
    assert got[1:5] == pytest.approx([0.4, 0.6, 0.8, 1.0])
    assert got[5:] == pytest.approx([1 - i / 15 for i in range(15)])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(("warmup", "num_warm"), [(0.0, 0), (0.2, 2), (3.0, 3), (1.0, 1), (10.0, 10)])
def test_shapes_of_the_schedules(tmp_path, schedule, warmup, num_warm):
    made = bench(tmp_path, steps=10, schedule=schedule, warmup=warmup, min_learning_rate=1e-3)
    made.loop.run()
    left = 10 - num_warm
    falls = {
        "constant": lambda t: 1.0,
        "linear": lambda t: 1 - 0.9 * t,
        "cosine": lambda t: 0.1 + 0.9 * (1 + math.cos(math.pi * t)) / 2,
    }[schedule]
    wanted = [(i + 1) / num_warm for i in range(num_warm)] + [falls(i / left) for i in range(left)]
    assert rates(made) == pytest.approx(wanted)


def test_multipliers_stay_within_nought_and_one():
    for name in ("constant", "linear", "cosine"):
        for steps in (1, 2, 3, 7, 100):
            for warmup in (0.0, 0.03, 0.5, 0.99):
                values = [multiplier(name, i / steps, 1 / steps, warmup, 0.0) for i in range(steps)]
                assert all(0 < value <= 1 for value in values), (name, steps, warmup)

"""Budgets in steps, epochs and minutes, and the schedules that run over them."""

from __future__ import annotations

import math

import pytest
from loops import Clock, bench, rates, rows

from tunesmith.events import Evaluated, StepDone
from tunesmith.train.schedule import multiplier

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(("settings", "steps"), [
    ({"steps": 5}, 5), ({"epochs": 2.0}, 4), ({"epochs": 0.5}, 1), ({"epochs": 1.5}, 3), ({"epochs": 1.2}, 3), ({}, 6),
])  # fmt: skip
def test_budgets_in_steps_and_epochs(tmp_path, settings, steps):
    made = bench(tmp_path, **settings)
    assert made.loop.run().step == steps
    assert [event.step for event in made.kinds(StepDone)] == list(range(1, steps + 1))
    assert made.kinds(StepDone)[-1].epoch == pytest.approx(steps / 2)


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

"""What comes up every so many steps or passes: after which steps, whatever the budget, and gone on with."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loops import Clock, bench, rows, whole_and_resumed
from pydantic import ValidationError

from tunesmith.errors import RecipeError
from tunesmith.events import Evaluated, Saved
from tunesmith.train.budget import Budget
from tunesmith.train.every import first_due, is_due, passes
from tunesmith.train.settings import TrainSettings

pytestmark = pytest.mark.filterwarnings("ignore")


def due(every, steps, steps_per_epoch):
    return [step for step in range(1, steps + 1) if is_due(every, step, steps_per_epoch)]


def test_a_quarter_of_ten_steps():
    assert due("0.25 epochs", 20, 10) == [3, 5, 8, 10, 13, 15, 18, 20]
    assert due("1 epoch", 20, 10) == [10, 20]
    assert due("1/3 epochs", 20, 10) == [4, 7, 10, 14, 17, 20]
    assert due("0.05 epochs", 5, 10) == [1, 2, 3, 4, 5]
    assert due(3, 10, 10) == [3, 6, 9]


@given(
    share=st.fractions(min_value=Fraction(1, 50), max_value=4, max_denominator=1000),
    steps_per_epoch=st.integers(1, 2000),
)
def test_each_multiple_is_due_after_the_step_that_completes_it(share, steps_per_epoch):
    text = f"{share.numerator}/{share.denominator} epochs"
    steps = 2 * steps_per_epoch
    multiples = range(1, math.floor(2 / share) + 1)
    found = due(text, steps, steps_per_epoch)
    assert found == sorted({math.ceil(k * share * steps_per_epoch) for k in multiples})
    assert first_due(text, steps_per_epoch) == math.ceil(share * steps_per_epoch)


@given(st.integers(1, 10**6), st.integers(0, 6))
def test_decimals_are_exact(digits, places):
    text = f"{digits // 10**places}.{digits % 10**places:0{places}d}" if places else str(digits)
    assert passes(f"{text}  epochs") == Fraction(digits, 10**places)


@pytest.mark.parametrize(
    "text", ["", "often", "0.25", "epoch", "0 epochs", "0.0 epochs", "-1 epochs", "1/0 epochs", "1epoch", "1 epochss",
             "1e2 epochs", "nan epochs", "1 epoch ", "٣ epochs"],
)  # fmt: skip
def test_what_is_no_number_of_passes_is_refused(text):
    assert passes(text) is None
    with pytest.raises(ValidationError, match=r"0\.25 epochs"):
        TrainSettings(save_every=text)


BUDGETS = {"steps": {"steps": 7}, "epochs": {"epochs": 2.3}, "minutes": {"minutes": 0.35}}
BUDGETS |= {"tokens": {"tokens": 2 * sum(map(len, rows(10))) + 1}}


@pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS)
def test_whatever_the_budget(tmp_path, monkeypatch, budget):
    """Three steps a pass, seven in all: multiples of three quarters of a pass are done after steps 3, 5 and 7."""
    Clock(monkeypatch, 3.0)
    made = bench(tmp_path, train=rows(10), held_out=rows(2, seed=4), evaluate_every="0.75 epochs", **budget)
    assert made.loop.run().step == 7
    assert made.loop.objective.steps_per_epoch == 3
    assert [event.step for event in made.kinds(Evaluated)] == [3, 5, 7]


def test_checkpoints_come_with_passes_too(tmp_path):
    made = bench(tmp_path, train=rows(10), steps=7, save_every="1/2 epochs", evaluate_every=100)
    made.loop.run()
    assert [event.step for event in made.kinds(Saved)] == [2, 3, 5, 6, 7]


@pytest.mark.parametrize("cut", [1, 3, 4, 6])
def test_a_run_that_is_gone_on_with_does_what_was_left(tmp_path, cut):
    options = {"train": rows(10), "held_out": rows(2, seed=4), "steps": 8, "dropout": 0.3}
    whole, again = whole_and_resumed(tmp_path, cut, evaluate_every="0.4 epochs", save_every="0.4 epochs", **options)
    wanted = [event for event in whole.kinds(Evaluated) if event.step > cut]
    found = [event for event in again.kinds(Evaluated) if event.step > cut]
    assert [event.step for event in whole.kinds(Evaluated)] == due("0.4 epochs", 8, 3)
    assert [(event.step, event.metrics) for event in found] == [(event.step, event.metrics) for event in wanted]


@pytest.mark.parametrize("name", ["evaluate_every", "save_every"])
def test_an_objective_without_passes_refuses_shares_of_them(name):
    with pytest.raises(RecipeError, match=f"train.{name} counts passes") as caught:
        Budget(TrainSettings(**{name: "0.5 epochs"}), steps_per_epoch=0)
    assert caught.value.found == "0.5 epochs"
    assert Budget(TrainSettings(**{name: 5}), steps_per_epoch=0).num_steps == 0

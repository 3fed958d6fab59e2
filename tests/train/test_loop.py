"""Which checkpoints stay, when a run stops early, and what an evaluation measures."""

from __future__ import annotations

import math

import pytest
import torch
from loops import bench, rows

from tunesmith.events import Ended, Evaluated, Saved, StepDone
from tunesmith.train.checkpoint import Checkpoints
from tunesmith.train.settings import TrainSettings

pytestmark = pytest.mark.filterwarnings("ignore")


class Scripted:
    """Held-out losses as told."""

    def __init__(self, made, losses):
        self.losses = iter(losses)
        made.loop.objective.evaluate = lambda policy, max_tokens: {"loss": next(self.losses)}


def test_the_best_checkpoint_and_the_last_few_stay(tmp_path):
    made = bench(tmp_path, steps=8, evaluate_every=1, keep_checkpoints=2)
    Scripted(made, [5, 3, 1, 2, 4, 4, 4, 4])
    ended = made.loop.run()
    assert ended.best_step == 3
    assert Checkpoints(tmp_path / "checkpoints", 2).steps() == [3, 7, 8]
    assert [event.best for event in made.kinds(Evaluated)] == [True] * 3 + [False] * 5


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_without_held_out_rows_the_last_stay(tmp_path, keep):
    made = bench(tmp_path, steps=6, save_every=1, keep_checkpoints=keep)
    made.loop.run()
    assert made.loop.checkpoints.steps() == list(range(7 - keep, 7))


def test_an_evaluation_that_is_not_a_number_is_never_the_best(tmp_path):
    made = bench(tmp_path, steps=3, evaluate_every=1)
    Scripted(made, [float("nan"), 2.0, float("inf")])
    assert made.loop.run().best_step == 2


def test_patience(tmp_path):
    made = bench(tmp_path, steps=50, evaluate_every=2, stop_after_no_gain=2)
    Scripted(made, [3, 2, 2.5, 2.0, 1])
    ended = made.loop.run()
    assert ended.step == 8
    assert "no gain in 2" in ended.reason
    again = bench(tmp_path, steps=50, evaluate_every=2, stop_after_no_gain=2)
    Scripted(again, [])
    again.loop.restore(again.loop.checkpoints.latest(print))
    assert again.loop.run().step == 8, "a run that had stopped takes no further step when it is resumed"
    assert not again.kinds(StepDone)


def test_a_loss_that_stays_too_high_ends_the_run_and_its_resumption(tmp_path):
    plain = bench(tmp_path / "plain", steps=6)
    plain.loop.run()
    lowest = min(event.loss for event in plain.kinds(StepDone))
    made = bench(tmp_path / "watched", steps=6, stop_above=lowest / 2, stop_above_steps=2)
    ended = made.loop.run()
    assert ended.step == 2
    assert "above" in ended.reason
    assert "for 2 steps in a row" in ended.reason
    again = bench(tmp_path / "watched", steps=6, stop_above=lowest / 2, stop_above_steps=2)
    again.loop.restore(again.loop.checkpoints.latest(print))
    assert again.loop.run().step == 2
    calm = bench(tmp_path / "calm", steps=6, stop_above=1e6, stop_above_steps=1)
    assert calm.loop.run().step == 6


def test_a_listener_stops_the_run_with_a_checkpoint(tmp_path):
    made = bench(
        tmp_path,
        steps=50,
        listeners=[lambda event: "stop" if isinstance(event, StepDone) and event.step == 3 else None],
    )
    ended = made.loop.run()
    assert ended.step == 3
    assert "listener" in ended.reason
    assert made.loop.checkpoints.steps() == [3]
    assert isinstance(made.events[-1], Ended)


def test_evaluation_leaves_no_trace(tmp_path):
    """With dropout and listeners that draw random numbers: the same weights as without any of them."""
    plain = bench(tmp_path / "a", steps=6, dropout=0.3)
    plain.loop.run()
    torch.manual_seed(99)
    busy = bench(
        tmp_path / "b", steps=6, dropout=0.3, evaluate_every=1, held_out=rows(3, seed=4),
        listeners=[lambda event: torch.rand(7) and None if False else torch.rand(7).sum() and None],
    )  # fmt: skip
    busy.loop.run()
    for name, value in plain.weights().items():
        assert torch.equal(value, busy.weights()[name]), name


def test_held_out_loss_is_the_mean_over_learned_tokens_however_it_is_cut(tmp_path):
    made = bench(tmp_path, held_out=rows(6, seed=3), dtype=torch.float64, arch="gpt2")
    made.policy.eval()
    whole = made.loop.objective.evaluate(made.policy, 10_000)
    assert made.loop.objective.evaluate(made.policy, 1)["loss"] == pytest.approx(whole["loss"], rel=1e-12)
    assert whole["perplexity"] == pytest.approx(math.exp(whole["loss"]))


def test_defaults_evaluate_ten_times_and_at_the_end(tmp_path):
    made = bench(tmp_path, steps=20, held_out=rows(2, seed=8))
    made.loop.run()
    assert [event.step for event in made.kinds(Evaluated)] == list(range(2, 21, 2))
    assert made.kinds(Saved)[-1].step == 20
    assert TrainSettings().epochs == 3.0

"""What a signal or an end leaves goes on as if nothing had happened, bit for bit."""

from __future__ import annotations

import signal

import pytest
import torch
from loops import Clock, bench, rates, rows, whole_and_resumed

from tunesmith.errors import Interrupted
from tunesmith.events import BrokenOff, Evaluated, StepDone
from tunesmith.train.checkpoint import Checkpoints
from tunesmith.train.signals import Signals

pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_signal_in_a_step_leaves_the_state_of_the_last_whole_step(tmp_path):
    signals = Signals()
    made = bench(tmp_path, steps=5, batch_size=8, micro_batch_tokens=40, dropout=0.2, signals=signals)
    whole = bench(tmp_path / "whole", steps=5, batch_size=8, micro_batch_tokens=40, dropout=0.2)
    whole.loop.run()
    loss, calls = made.loop.objective.loss, []

    def interrupting(policy, batch):
        calls.append(batch)
        if made.loop.at.step == 2 and len(calls) % 2:
            signals.handle(signal.SIGTERM, None)
        return loss(policy, batch)

    made.loop.objective.loss = interrupting
    with pytest.raises(Interrupted) as caught:
        made.loop.run()
    assert caught.value.exit_code == 128 + signal.SIGTERM
    again = bench(tmp_path, steps=5, batch_size=8, micro_batch_tokens=40, dropout=0.2)
    saved = again.loop.checkpoints.latest(print)
    assert saved.step == 2
    again.loop.restore(saved)
    again.loop.run()
    assert all(torch.equal(value, again.weights()[name]) for name, value in whole.weights().items())


def test_a_second_sigint_amid_an_update_saves_nothing_half_done(tmp_path):
    signals = Signals()
    made = bench(tmp_path, steps=5, save_every=1, signals=signals)
    step = made.loop.optimizer.step

    def struck():
        step()
        if made.loop.at.step == 2:
            signals.handle(signal.SIGINT, None)
            signals.handle(signal.SIGINT, None)

    made.loop.optimizer.step = struck
    before = {}
    made.loop.listeners = [*made.loop.listeners, lambda e: isinstance(e, BrokenOff) or before.update(made.weights())]
    with pytest.raises(Interrupted):
        made.loop.run()
    saved = made.loop.checkpoints.latest(print)
    assert saved.step == 2
    for name, value in before.items():
        assert torch.equal(saved.tensors[f"weights/{name}"], value)


def test_a_signal_in_an_evaluation_is_heard_there_and_the_evaluation_done_again(tmp_path):
    signals = Signals()
    options = {"steps": 4, "evaluate_every": 2, "held_out": rows(4, seed=5)}
    made = bench(tmp_path, signals=signals, **options)
    made.loop.objective.evaluate = lambda policy, max_tokens: signals.handle(signal.SIGINT, None)
    with pytest.raises(Interrupted):
        made.loop.run()
    again = bench(tmp_path, **options)
    again.loop.restore(again.loop.checkpoints.latest(print))
    again.loop.run()
    assert [event.step for event in again.kinds(Evaluated)] == [2, 4]


STATES = ("weights", "optimizer", "random")


@pytest.mark.parametrize("cut", [1, 2, 3, 5])
@pytest.mark.parametrize("shuffle", [True, False])
def test_a_resumed_run_is_the_unbroken_one_bit_for_bit(tmp_path, cut, shuffle):
    options = {"steps": 7, "train": rows(10), "dropout": 0.3, "save_every": 1, "evaluate_every": 3, "shuffle": shuffle}
    options |= {"held_out": rows(3, seed=6), "warmup": 2.0}
    whole = bench(tmp_path / "whole", **options)
    whole.loop.run()
    first = bench(tmp_path / "cut", **options, listeners=[lambda e: "stop" if getattr(e, "step", 0) == cut else None])
    first.loop.run()
    again = bench(tmp_path / "cut", **options)
    torch.rand(3)
    again.loop.restore(again.loop.checkpoints.latest(print))
    again.loop.run()
    assert all(torch.equal(value, again.weights()[name]) for name, value in whole.weights().items())
    wanted = [(e.step, e.loss, e.grad_norm, e.learning_rate) for e in whole.kinds(StepDone)][cut:]
    assert [(e.step, e.loss, e.grad_norm, e.learning_rate) for e in again.kinds(StepDone)] == wanted


@pytest.mark.parametrize("cut", [1, 4, 6])
def test_steps_that_are_counted_in_tokens_go_on_bit_for_bit(tmp_path, cut):
    options = {"train": rows(11), "batch_tokens": 45, "steps": 9, "dropout": 0.3}
    whole, again = whole_and_resumed(tmp_path, cut, **options)
    assert 1 < whole.loop.objective.steps_per_epoch < 9
    losses = [event.loss for event in whole.kinds(StepDone)]
    assert [event.loss for event in again.kinds(StepDone)] == losses[cut:]


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_a_budget_in_tokens_goes_on_to_the_same_step_bit_for_bit(tmp_path, cut):
    whole, again = whole_and_resumed(tmp_path, cut, train=rows(11), tokens=400, dropout=0.3, schedule="linear")
    assert whole.loop.at.num_tokens == again.loop.at.num_tokens >= 400
    assert cut < whole.loop.at.step == again.loop.at.step
    assert rates(again) == rates(whole)[cut:]


@pytest.mark.parametrize("what", STATES)
def test_every_part_of_the_state_matters(tmp_path, what):
    """A checkpoint with one part put wrong does not continue the run: nothing that is saved is idle."""
    options = {"steps": 6, "dropout": 0.3, "save_every": 1}
    whole = bench(tmp_path, **options, keep_checkpoints=9)
    whole.loop.run()
    again = bench(tmp_path, **options)
    folder = Checkpoints(tmp_path / "checkpoints", 9)
    for step in folder.steps():
        if step > 3:
            __import__("shutil").rmtree(folder.path(step))
    saved = folder.latest(print)
    for name, tensor in saved.tensors.items():
        if name.startswith(what):
            tensor.copy_(torch.roll(tensor, 8) if what == "random" else tensor * 1.01)
    if what == "random":
        saved.tensors["random/torch"] = torch.Generator().manual_seed(1).get_state()
    again.loop.restore(saved)
    again.loop.run()
    assert not all(torch.equal(value, again.weights()[name]) for name, value in whole.weights().items())


def test_minutes_and_rates_are_restored(tmp_path, monkeypatch):
    Clock(monkeypatch, 3.0)
    options = {"minutes": 1.0, "warmup": 0.25, "schedule": "linear"}
    whole = bench(tmp_path / "whole", **options)
    whole.loop.run()
    first = bench(tmp_path / "cut", **options, listeners=[lambda e: "stop" if getattr(e, "step", 0) == 7 else None])
    first.loop.run()
    again = bench(tmp_path / "cut", **options)
    again.loop.restore(again.loop.checkpoints.latest(print))
    ended = again.loop.run()
    assert ended.train_seconds == pytest.approx(60.0)
    assert rates(again) == pytest.approx(rates(whole)[7:])
    assert all(torch.equal(value, again.weights()[name]) for name, value in whole.weights().items())

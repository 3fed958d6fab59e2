"""What ends a run early, or nearly: memory in an evaluation or an update, listeners, disks; and where its time went."""

from __future__ import annotations

import errno
import math
import signal

import pytest
import torch
from loops import Clock, bench, rows

from tunesmith.errors import Interrupted, MachineError, NonFiniteError
from tunesmith.events import BrokenOff, Ended, Evaluated, Noted, Saved, StepDone
from tunesmith.models.room import is_out_of_memory
from tunesmith.train import checkpoint
from tunesmith.train.budget import Budget
from tunesmith.train.settings import TrainSettings
from tunesmith.train.signals import Signals

pytestmark = pytest.mark.filterwarnings("ignore")
FULL = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes")


def short_of_memory(made, most_tokens):
    """In evaluations alone, no more than `most_tokens` fit, and it shows after some of the work is done."""
    loss = made.loop.objective.loss

    def checked(policy, batch):
        result = loss(policy, batch)
        if not torch.is_grad_enabled() and len(batch) > most_tokens:
            raise FULL
        return result

    made.loop.objective.loss = checked


# ---- memory


def test_what_this_torch_says_when_memory_runs_out_is_understood():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert not is_out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))


def test_out_of_memory_in_an_evaluation_halves_the_micro_batch_and_measures_all_of_it_again(tmp_path):
    held_out = rows(9, seed=5)
    options = {"steps": 4, "evaluate_every": 2, "held_out": held_out, "dtype": torch.float64, "arch": "gpt2"}
    options |= {"stop_after_no_gain": 3}
    plain = bench(tmp_path / "a", **options)
    plain.loop.run()
    made = bench(tmp_path / "b", **options)
    short_of_memory(made, 60)
    made.loop.run()
    assert [(event.step, event.best) for event in made.kinds(Evaluated)] == [
        (event.step, event.best) for event in plain.kinds(Evaluated)
    ]
    for got, wanted in zip(made.kinds(Evaluated), plain.kinds(Evaluated), strict=True):
        assert got.metrics["loss"] == pytest.approx(wanted.metrics["loss"], rel=1e-10)
    notes = [event.text for event in made.kinds(Noted)]
    assert notes
    assert all("the evaluation itself is unchanged" in note for note in notes)
    for name, value in plain.weights().items():
        torch.testing.assert_close(made.weights()[name], value, rtol=1e-10, atol=1e-10)
    again = bench(tmp_path / "b", **options)
    again.loop.restore(again.loop.checkpoints.latest(print))
    assert max(map(len, held_out)) <= again.loop.at.micro_tokens == made.loop.at.micro_tokens < sum(map(len, held_out))
    assert again.loop.at.no_gain == plain.loop.at.no_gain


def test_a_held_out_row_too_long_for_memory_is_said_and_the_step_before_it_kept(tmp_path):
    made = bench(tmp_path, steps=4, evaluate_every=2, save_every=99, held_out=rows(5, seed=5))
    short_of_memory(made, 5)
    with pytest.raises(MachineError, match=r"out of memory in the evaluation, with one row of \d+ tokens") as caught:
        made.loop.run()
    assert caught.value.exit_code == 4
    saved = made.loop.checkpoints.latest(print)
    assert saved.step == 2
    progress = saved.state["progress"]
    assert (progress["evaluated_step"], progress["no_gain"], progress["best_step"]) == (-1, 0, None)
    assert progress["evaluation_seconds"] == 0.0
    again = bench(tmp_path, steps=4, evaluate_every=2, held_out=rows(5, seed=5))
    again.loop.restore(saved)
    again.loop.run()
    assert [event.step for event in again.kinds(Evaluated)] == [2, 4], "the evaluation is made up for"


def test_out_of_memory_in_an_update_is_a_sentence_and_nothing_half_done_is_saved(tmp_path):
    made = bench(tmp_path, steps=4, save_every=1)
    update = made.loop.optimizer.step

    def full():
        update()
        if made.loop.at.step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    made.loop.optimizer.step = full
    with pytest.raises(MachineError, match="out of memory in the update of step 3"):
        made.loop.run()
    assert made.loop.checkpoints.steps() == [1, 2]


# ---- what ends a run early


class Thrown(ValueError):
    pass


def throws_at(step, kind=StepDone):
    def listener(event):
        if isinstance(event, kind) and event.step == step:
            raise Thrown("a fault of one's own")

    return listener


@pytest.mark.parametrize(("kind", "evaluated"), [(StepDone, [3, 5]), (Evaluated, [5])])
def test_a_listener_that_raises_ends_the_run_with_its_error_and_a_checkpoint(tmp_path, kind, evaluated):
    options = {"steps": 5, "save_every": 99, "evaluate_every": 3, "held_out": rows(3, seed=2), "dropout": 0.3}
    whole = bench(tmp_path / "whole", **options)
    whole.loop.run()
    made = bench(tmp_path / "b", **options, listeners=[throws_at(3, kind)])
    with pytest.raises(Thrown) as caught:
        made.loop.run()
    assert "saved as it was after step 3" in "".join(caught.value.__notes__)
    (told,) = made.kinds(BrokenOff)
    assert (told.step, told.status, told.reason) == (3, "failed", "a fault of one's own")
    assert not made.kinds(Ended)
    again = bench(tmp_path / "b", **options)
    again.loop.restore(again.loop.checkpoints.latest(print))
    again.loop.run()
    assert [event.step for event in again.kinds(Evaluated)] == evaluated
    assert all(torch.equal(value, again.weights()[name]) for name, value in whole.weights().items())


def test_every_listener_hears_of_the_end_whatever_another_does(tmp_path):
    heard = []

    def deaf(event):
        if isinstance(event, BrokenOff):
            raise Thrown("once more")

    made = bench(tmp_path, steps=5, listeners=[deaf, throws_at(2), heard.append])
    with pytest.raises(Thrown, match="a fault of one's own"):
        made.loop.run()
    assert isinstance(heard[-1], BrokenOff)


def test_a_number_that_is_not_finite_is_not_saved_again(tmp_path):
    made = bench(tmp_path, steps=4, save_every=2)
    parameter = next(iter(made.adapter_set.parameters().values()))
    parameter.register_hook(lambda grad: grad * float("nan") if made.loop.at.step == 3 else grad)
    with pytest.raises(NonFiniteError):
        made.loop.run()
    assert made.loop.checkpoints.steps() == [2]
    (told,) = made.kinds(BrokenOff)
    assert (told.step, told.status) == (3, "failed")
    assert "gradient of step 4" in told.reason


def test_a_disk_that_is_full_when_a_signal_comes_hides_neither(tmp_path, monkeypatch):
    signals = Signals()
    made = bench(tmp_path, steps=5, save_every=2, signals=signals)
    made.loop.listeners = [*made.loop.listeners, lambda e: getattr(e, "step", 0) == 3 and signals.handle(2, None)]

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    made.loop.listeners = [
        *made.loop.listeners,
        lambda e: getattr(e, "step", 0) == 3 and monkeypatch.setattr(checkpoint, "save_file", full),
    ]
    with pytest.raises(Interrupted) as caught:
        made.loop.run()
    assert caught.value.exit_code == 128 + signal.SIGINT
    assert "not saved" in str(caught.value)
    assert "step 3" in str(caught.value)
    assert made.kinds(BrokenOff)[0].status == "interrupted"
    assert made.loop.checkpoints.latest(print).step == 2


def test_a_disk_that_is_full_is_asked_once(tmp_path, monkeypatch):
    made = bench(tmp_path, steps=5, save_every=2)
    asked = []

    def full(*_):
        asked.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(MachineError, match="checkpoint of step 2 could not be written"):
        made.loop.run()
    assert len(asked) == 1
    assert made.kinds(BrokenOff)[0].status == "failed"


def test_what_was_begun_on_a_gpu_goes_on_without(tmp_path):
    made = bench(tmp_path, steps=2, listeners=[lambda e: "stop" if getattr(e, "step", 0) == 1 else None])
    made.loop.run()
    saved = made.loop.checkpoints.latest(print)
    saved.tensors["random/cuda"] = torch.zeros(16, dtype=torch.uint8)
    again = bench(tmp_path, steps=2)
    again.loop.restore(saved)
    assert again.loop.run().step == 2


# ---- where the time went


def test_training_evaluating_and_saving_are_counted_apart(tmp_path, monkeypatch):
    clock = Clock(monkeypatch, 0.0)
    made = bench(tmp_path, steps=4, evaluate_every=2, save_every=1, held_out=rows(2, seed=1))
    objective, write = made.loop.objective, made.loop.checkpoints.write
    loss, evaluate, steps = objective.loss, objective.evaluate, objective.steps

    def spends(seconds, function):
        def slow(*arguments):
            clock.now += seconds
            return function(*arguments)

        return slow

    def slow_steps(policy):
        for step in steps(policy):
            clock.now += 1000.0
            yield step

    objective.evaluate = spends(10.0, evaluate)
    objective.loss = lambda policy, batch: ((torch.is_grad_enabled() and spends(1.0, loss)) or loss)(policy, batch)
    objective.steps = slow_steps
    made.loop.checkpoints.write = spends(100.0, write)
    made.loop.listeners = [*made.loop.listeners, lambda event: setattr(clock, "now", clock.now + 1e6)]
    ended = made.loop.run()
    assert ended.train_seconds == 4 * 1001.0, "which rows a step has is part of training; listeners are not"
    assert ended.evaluation_seconds == 20.0
    assert ended.saving_seconds == 100.0 * len(made.kinds(Saved)) == 400.0
    assert [event.seconds for event in made.kinds(Saved)] == [100.0] * 4
    saved = made.loop.checkpoints.latest(print).state["progress"]
    assert saved["saving_seconds"] == 300.0, "how long a checkpoint took is known when it is there"


# ---- warm-up and budget


def test_a_warm_up_longer_than_the_budget_rises_as_far_as_it_gets_and_says_so(tmp_path):
    made = bench(tmp_path, epochs=2.0, warmup=50.0)
    made.loop.run()
    rates = [event.learning_rate for event in made.kinds(StepDone)]
    assert rates == pytest.approx([made.loop.settings.learning_rate * step / 50 for step in (1, 2, 3, 4)])
    assert "longer than the budget of 4 steps: the learning rate rises to 8%" in made.loop.budget.note
    assert Budget(TrainSettings(epochs=2.0, warmup=4.0), 2).note is None


def test_minutes_that_end_within_the_warm_up_say_so(tmp_path, monkeypatch):
    Clock(monkeypatch, 10.0)
    made = bench(tmp_path, minutes=1.0, warmup=50.0)
    assert made.loop.run().step == 6
    assert [event.text for event in made.kinds(Noted)] == [
        "the budget ended within the warm-up: train.learning_rate was never reached"
    ]
    assert math.isclose(made.kinds(StepDone)[-1].learning_rate, 1e-2 * 6 / 50)

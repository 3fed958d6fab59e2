"""Budgets, schedules, stopping, retention, and what the loop does when numbers, memory or a person break in."""

from __future__ import annotations

import math
import signal
import time

import pytest
import torch
from loops import bench, rows

from tunesmith.errors import Interrupted, MachineError, NonFiniteError
from tunesmith.events import BrokenOff, Ended, Evaluated, Noted, Saved, StepDone
from tunesmith.train.checkpoint import Checkpoints
from tunesmith.train.schedule import multiplier
from tunesmith.train.settings import TrainSettings
from tunesmith.train.signals import Signals

pytestmark = pytest.mark.filterwarnings("ignore")


class Clock:
    """Every look at it takes `tick` seconds."""

    def __init__(self, monkeypatch, tick: float) -> None:
        self.now, self.tick = 0.0, tick
        monkeypatch.setattr(time, "perf_counter", self.look)

    def look(self) -> float:
        self.now += self.tick
        return self.now


def rates(made) -> list[float]:
    return [event.learning_rate / made.loop.settings.learning_rate for event in made.kinds(StepDone)]


# ---- budgets and schedules


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


# ---- evaluation, stopping, retention


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


# ---- numbers


@pytest.mark.parametrize("at", [1, 3])
def test_a_bad_loss_stops_before_the_update_and_names_the_rows(tmp_path, at):
    examples = rows(8)
    made = bench(tmp_path, train=examples, batch_size=4, steps=4, shuffle=False, save_every=1, micro_batch_tokens=10**6)
    loss = made.loop.objective.loss
    steps_done = made.kinds(StepDone)

    def poisoned(policy, batch):
        result = loss(policy, batch)
        if len(made.kinds(StepDone)) == at and any(origin.row in (2, 7) for origin in batch.origins):
            result.sums["loss"] = result.sums["loss"] * float("nan")
        return result

    made.loop.objective.loss = poisoned
    before = {}
    made.loop.listeners = [*made.loop.listeners, lambda event: before.update(made.weights())]
    with pytest.raises(NonFiniteError) as caught:
        made.loop.run()
    assert f"step {at + 1}" in str(caught.value)
    assert caught.value.found == f"rows rows.jsonl, row {2 if at % 2 == 0 else 7}"
    assert caught.value.exit_code == 5
    assert f"the checkpoint of step {at} is intact" in caught.value.fix
    assert all(torch.equal(before[name], value) for name, value in made.weights().items())
    assert all(p.grad is None for p in made.adapter_set.parameters().values())
    assert made.loop.checkpoints.problem(at) is None
    assert steps_done == []


def test_a_bad_gradient_stops_too(tmp_path):
    made = bench(tmp_path, steps=4)
    parameter = next(iter(made.adapter_set.parameters().values()))
    parameter.register_hook(lambda grad: grad * float("inf") if made.loop.at.step == 2 else grad)
    before = {}
    made.loop.listeners = [*made.loop.listeners, lambda event: before.update(made.weights())]
    with pytest.raises(NonFiniteError, match="gradient of step 3"):
        made.loop.run()
    assert all(torch.equal(before[name], value) for name, value in made.weights().items())


def test_fp16_overflow_lowers_the_scale_and_redoes_the_step(tmp_path):
    plain = bench(tmp_path / "a", dtype=torch.float16, steps=3, dropout=0.2)
    assert plain.loop.at.loss_scale == 2.0**14
    plain.loop.at.loss_scale = 2.0**12
    plain.loop.run()
    made = bench(tmp_path / "b", dtype=torch.float16, steps=3, dropout=0.2)
    parameter = next(iter(made.adapter_set.parameters().values()))
    parameter.register_hook(lambda grad: grad * float("inf") if made.loop.at.loss_scale > 2.0**12 else grad)
    made.loop.run()
    assert [event.text.split()[-5] for event in made.kinds(Noted)] == ["8192,", "4096,"]
    assert all(torch.equal(value, plain.weights()[name]) for name, value in made.weights().items())
    saved = made.loop.checkpoints.latest(print)
    assert saved.state["progress"]["loss_scale"] == 2.0**12


def test_the_gradient_in_fp16_is_that_of_fp32(tmp_path):
    norms = []
    for dtype in (torch.float32, torch.float16):
        made = bench(tmp_path / str(dtype), dtype=dtype, steps=1)
        made.loop.run()
        norms.append(made.kinds(StepDone)[0].grad_norm)
    assert norms[1] == pytest.approx(norms[0], rel=2e-2)


# ---- memory


FULL = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes. Error code 12")


def limited(made, most_tokens, error=FULL):
    """Out of memory above `most_tokens` in one forward pass, thrown after some of the work is done."""
    loss = made.loop.objective.loss

    def checked(policy, batch):
        result = loss(policy, batch)
        if len(batch) > most_tokens:
            raise error
        return result

    made.loop.objective.loss = checked


@pytest.mark.parametrize(
    "error", [RuntimeError("not enough memory"), torch.OutOfMemoryError("CUDA out of memory"), MemoryError()]
)
def test_out_of_memory_halves_the_micro_batch_and_changes_nothing_else(tmp_path, error):
    examples = rows(8)
    options = {"train": examples, "batch_size": 8, "steps": 3, "dtype": torch.float64, "arch": "gpt2"}
    plain = bench(tmp_path / "a", **options)
    plain.loop.run()
    made = bench(tmp_path / "b", **options)
    limited(made, 60, error)
    made.loop.run()
    assert made.kinds(Noted)
    assert all("unchanged" in event.text for event in made.kinds(Noted))
    assert len(made.kinds(Noted)) <= 3
    for name, value in plain.weights().items():
        torch.testing.assert_close(made.weights()[name], value, rtol=1e-10, atol=1e-10)
    again = bench(tmp_path / "b", **options)
    again.loop.restore(again.loop.checkpoints.latest(print))
    assert again.loop.at.micro_tokens == made.loop.at.micro_tokens < sum(map(len, examples))


def test_one_row_too_long_for_memory_is_said(tmp_path):
    made = bench(tmp_path, batch_size=8)
    limited(made, 5)
    with pytest.raises(MachineError, match=r"one row of \d+ tokens") as caught:
        made.loop.run()
    assert caught.value.exit_code == 4
    assert "recompute" in caught.value.fix


def test_other_errors_pass(tmp_path):
    made = bench(tmp_path)
    limited(made, 0, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        made.loop.run()


# ---- signals


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


# ---- resuming


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


def test_defaults_evaluate_ten_times_and_at_the_end(tmp_path):
    made = bench(tmp_path, steps=20, held_out=rows(2, seed=8))
    made.loop.run()
    assert [event.step for event in made.kinds(Evaluated)] == list(range(2, 21, 2))
    assert made.kinds(Saved)[-1].step == 20
    assert TrainSettings().epochs == 3.0

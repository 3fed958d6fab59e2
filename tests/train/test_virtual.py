"""Methods that no weight can hold, in the loop: a broken run goes on bit for bit, and virtual tokens do not count."""

from __future__ import annotations

import pytest
import torch
from loops import bench, rows

from tunesmith.adapters import METHODS
from tunesmith.events import StepDone

pytestmark = pytest.mark.filterwarnings("ignore")
CHOICES = {
    "bottleneck": {"r": 3},
    "prompt": {"num_tokens": 4},
    "prefix": {"num_tokens": 4},
    "prefix, projected": {"num_tokens": 4, "projection": 5},
    "llama-adapter": {"num_tokens": 4},
}


def made(folder, choice, arch="llama", **settings):
    adapter = METHODS[choice.partition(",")[0]].Settings(**CHOICES[choice])
    return bench(folder, arch=arch, adapter=adapter, held_out=rows(3, seed=1), **settings)


@pytest.mark.parametrize("choice", CHOICES)
def test_a_resumed_run_is_the_unbroken_one_bit_for_bit(tmp_path, choice):
    options = {"steps": 4, "save_every": 1, "neftune_alpha": 5.0, "evaluate_every": 2}
    whole = made(tmp_path / "whole", choice, **options)
    whole.loop.run()
    stop = lambda event: "stop" if getattr(event, "step", 0) == 2 else None  # noqa: E731
    made(tmp_path / "cut", choice, **options, listeners=[stop]).loop.run()
    again = made(tmp_path / "cut", choice, **options)
    again.loop.restore(again.loop.checkpoints.latest(print))
    again.loop.run()
    assert all(torch.equal(tensor, again.weights()[name]) for name, tensor in whole.weights().items())
    wanted = [(event.step, event.loss, event.grad_norm) for event in whole.kinds(StepDone)][2:]
    assert len(wanted) == 2
    assert [(event.step, event.loss, event.grad_norm) for event in again.kinds(StepDone)] == wanted


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("arch", ["llama", "bloom"])
def test_the_loss_falls_and_tokens_are_those_of_the_data(tmp_path, choice, arch):
    if choice == "llama-adapter" and arch == "bloom":
        pytest.skip("BLOOM's attention is its own")
    train = rows(4)
    run = made(tmp_path, choice, arch, train=train, steps=12, learning_rate=3e-2, evaluate_every=12, batch_size=4)
    run.loop.run()
    steps = run.kinds(StepDone)
    assert steps[-1].loss < steps[0].loss
    assert steps[0].num_tokens == sum(map(len, train))

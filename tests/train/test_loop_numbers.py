"""Losses and gradients that are not finite, and what fp16 can hold."""

from __future__ import annotations

import pytest
import torch
from loops import bench, rows

from tunesmith.errors import NonFiniteError
from tunesmith.events import Noted, StepDone

pytestmark = pytest.mark.filterwarnings("ignore")


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

"""Distillation against TRL's own numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from distill_case import SHARED, teacher_model
from preference_case import answers
from test_preference import policy_of, same

from tunesmith.adapters.attach import Switch
from tunesmith.models import attention
from tunesmith.models.policy import probe
from tunesmith.objectives.distill import Distillation, DistillSettings

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "distill_trl.json").read_text())["made"]


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("max_tokens", [1, 10**6])
def test_losses_and_gradients_are_trls(name, max_tokens):
    policy, parameters = policy_of(filled="formula")
    rows, teacher = answers(), teacher_model()
    attention.install(teacher)
    settings = DistillSettings(teacher="x", **SHARED[name][1])
    objective = Distillation(rows, [], settings, batch_size=len(rows), seed=0, shuffle=False)
    objective.teacher, _ = probe(teacher, Switch())
    step, total = next(objective.steps(policy)), 0.0
    for batch in objective.micro_batches(step, max_tokens):
        loss = objective.loss(policy, batch).sums["loss"] / step.denominators["loss"]
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(GOLDEN[name]["loss"], rel=1e-5)
    found = {key: parameter.grad for key, parameter in parameters.items()}
    wanted = {key: torch.tensor(values).view_as(found[key]) for key, values in GOLDEN[name]["gradients"].items()}
    same(found, wanted, 3e-5)

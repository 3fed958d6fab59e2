"""RLOO against TRL's own numbers, from rewards on: the divergence from the reference is taken from them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from policy_case import COMPLETIONS, MOST, REWARDS, TEMPERATURE, WITH_PRICE, samples
from preference_case import PROMPTS
from test_policy_gradient import Words, of_rewards
from test_preference import policy_of, same

from tunesmith.data.pack import micro_batches
from tunesmith.data.types import Asked, Message, Origin, Prompt
from tunesmith.models.generate import Generated
from tunesmith.objectives.logprobs import token_logps
from tunesmith.objectives.policy import PolicyGradient
from tunesmith.objectives.policy_losses import PolicySettings

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "policy_trl.json").read_text())["made"]["rloo, beta"]


class Dictated:
    """A sampler that writes the case's completions, with what the policy thinks of them."""

    def sync(self, policy):
        pass

    def close(self):
        pass

    def generate(self, policy, prompts, most, drawing, *, num_samples=1, rows=None):
        assert (list(prompts), num_samples) == (PROMPTS[:2], 2)
        made = []
        for sample, own in zip(samples(), COMPLETIONS, strict=True):
            (batch,) = micro_batches([sample], 10**6)
            with policy.answering():
                logps = token_logps(policy, batch, drawing.temperature).values.tolist()
            made.append(Generated(own, "eos", logps))
        return made


def asked(row, prompt):
    given = Prompt((Message("user", "what"),), "what", {}, Origin("prompts", row))
    return Asked(np.array(prompt), np.zeros(len(prompt), np.float32), given.origin, prompt=given)


@pytest.mark.parametrize("max_tokens", [1, 10**6])
def test_advantages_losses_and_gradients_are_trls(max_tokens):
    policy, parameters = policy_of(filled="formula")
    settings = PolicySettings(
        preset="rloo", beta=WITH_PRICE, num_generations=2, temperature=TEMPERATURE, max_completion_length=MOST,
        rewards=("json",),
    )  # fmt: skip
    rows = [asked(row, prompt) for row, prompt in enumerate(PROMPTS[:2], 1)]
    objective = PolicyGradient(rows, [], settings, batch_size=2, seed=0, shuffle=False, renderer=Words())
    of_rewards(objective, REWARDS)
    objective.share, objective._sampler = True, Dictated()
    step, total = next(objective.steps(policy)), 0.0
    assert [row.advantage for row in step.examples] == pytest.approx(GOLDEN["advantages"], rel=1e-4, abs=1e-5)
    for batch in objective.micro_batches(step, max_tokens):
        loss = objective.loss(policy, batch).sums["loss"] / step.denominators["loss"]
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(GOLDEN["loss"], rel=1e-4, abs=1e-6)
    found = {key: parameter.grad for key, parameter in parameters.items()}
    wanted = {key: torch.tensor(values).view_as(found[key]) for key, values in GOLDEN["gradients"].items()}
    same(found, wanted, 1e-4)

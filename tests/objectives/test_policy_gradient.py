"""Online learning: TRL's losses and gradients, what is sampled is what is trained, and nothing is run for nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from policy_case import MOST, SHARED, TEMPERATURE, samples
from test_preference import policy_of, same

from tunesmith.data.types import Asked, Message, Origin, Prompt
from tunesmith.errors import ModelError
from tunesmith.models.tiny import tiny
from tunesmith.objectives.logprobs import token_logps
from tunesmith.objectives.policy import PolicyGradient
from tunesmith.objectives.policy_losses import PRESETS, PolicySettings
from tunesmith.objectives.rewards import Reward
from tunesmith.objectives.rollout import Rollout

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "policy_trl.json").read_text())


class Words:
    """Stands in for a renderer: token t is written as one character."""

    end_ids = (2,)

    class tokenizer:
        @staticmethod
        def decode(ids, **_):
            return "".join(chr(60 + int(i)) for i in ids)


def asked(count=3):
    prompts = [[5 + i, 9, 20, 7, 33, 41, 8, 11, 64, 70, 3, 15, 22, 18, 90, 61, 12, 30 + i] for i in range(count)]
    return [
        Asked(
            np.array(ids),
            np.zeros(len(ids), dtype=np.float32),
            Origin("prompts", row),
            prompt=Prompt((Message("user", f"q{row}"),), f"q{row}", {"row": row}, Origin("prompts", row)),
        )
        for row, ids in enumerate(prompts, 1)
    ]


def mixed(completions, **_):
    """A reward that differs from completion to completion, whatever a random model says."""
    return [sum(map(ord, text)) % 7 / 7 for text in completions]


def objective_of(settings=None, rows=None, batch_size=2, held_out=(), **keys):
    keys_given = set(keys)
    keys = {
        "rewards": ("length:3",),
        "max_completion_length": MOST,
        "num_generations": 4,
        "max_sampling_gap": 1e-3,
    } | keys
    record = settings or PolicySettings(**keys)
    made = PolicyGradient(
        asked() if rows is None else rows,
        held_out,
        record,
        batch_size=batch_size,
        seed=0,
        shuffle=False,
        renderer=Words(),
    )
    made.share = True
    if settings is None and "rewards" not in keys_given:
        made.rewards = [Reward("mixed", mixed, 1.0)]
    return made


def of_rewards(objective, values):
    """Judged by these numbers, in the order of what is sampled."""
    objective.rewards = [Reward("given", lambda completions, **_: values[: len(completions)], 1.0)]
    return objective


def of_case(name, policy, **keys):
    """The objective with the case's completions, as if the model without its adapter had sampled them."""
    own = SHARED[name][1] | {"rewards": ("json",), "temperature": TEMPERATURE, "max_completion_length": MOST}
    objective = objective_of(PolicySettings(**own, max_sampling_gap=10.0, num_iterations=2, **keys))
    rows, old = samples(), {}
    objective._rollout = Rollout(rows, [], {}, [], 1.0, old)
    objective.share = policy.flat
    rows = objective._with_reference(policy, rows)
    old |= {row.number: row.reference.tolist() for row in rows}
    sampled = [row.reference for row in rows]
    objective._rollout = Rollout(rows, sampled, {}, [], 1.0, old, iteration=1)
    return objective


def gradients(policy, parameters, objective, max_tokens=10**6):
    step = next(objective.steps(policy))
    total = 0.0
    for parameter in parameters.values():
        parameter.grad = None
    for batch in objective.micro_batches(step, max_tokens):
        found = objective.loss(policy, batch)
        part = found.sums["loss"] / step.denominators["loss"]
        part.backward()
        total += part.item()
    return total, {name: parameter.grad.clone() for name, parameter in parameters.items()}


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("max_tokens", [1, 10**6])
def test_losses_and_gradients_are_trls(name, max_tokens):
    policy, parameters = policy_of(filled="formula")
    loss, grads = gradients(policy, parameters, of_case(name, policy), max_tokens)
    golden = GOLDEN["made"][name]
    assert loss == pytest.approx(golden["loss"], rel=1e-4, abs=1e-6)
    wanted = {key: torch.tensor(values).view_as(grads[key]) for key, values in golden["gradients"].items()}
    same(grads, wanted, 1e-4)


@pytest.mark.parametrize("preset", PRESETS)
def test_no_cut_of_a_step_changes_the_gradient(preset):
    results = []
    for max_tokens in (1, 60, 10**6):
        policy, parameters = policy_of(torch.float64)
        for parameter in parameters.values():
            parameter.data = parameter.data.double()
        results.append(gradients(policy, parameters, objective_of(preset=preset, num_generations=3), max_tokens))
    for loss, grads in results[1:]:
        assert loss == pytest.approx(results[0][0], abs=1e-7)
        same(grads, results[0][1], 1e-6)
    assert any(grad.abs().max() > 0 for grad in results[0][1].values())


def test_what_was_sampled_is_what_is_trained():
    policy, _ = policy_of()
    objective = objective_of(temperature=0.8)
    step = next(objective.steps(policy))
    rollout = objective._rollout
    for batch in objective.micro_batches(step, 10**6):
        found = token_logps(policy, batch, 0.8)
        for place, leaf in enumerate(batch.leaves):
            row = batch.examples[leaf]
            sampled = rollout.sampled[row.number]
            assert len(sampled) == len(row) - row.prompt_tokens == row.num_learned
            np.testing.assert_allclose(found.values.detach().numpy()[found.row == place], sampled, atol=2e-4)
    assert {row.origin.row for row in step.examples} <= {1, 2}


def test_a_sampler_that_lags_behind_ends_the_run():
    policy, _ = policy_of()
    objective = objective_of()
    step = next(objective.steps(policy))
    objective._rollout.sampled = [values - 0.1 for values in objective._rollout.sampled]
    with pytest.raises(ModelError, match="another policy"):
        objective.loss(policy, objective.micro_batches(step, 10**6)[0])


def test_a_divergence_in_the_reward_is_taken_from_it():
    policy, _ = policy_of()
    objective = of_rewards(objective_of(preset="rloo", beta=0.3, num_generations=2, batch_size=1), [1.0, 0.2])
    next(objective.steps(policy))
    rollout = objective._rollout
    worth = [
        reward - 0.3 * float((own - sample.reference).sum())
        for reward, own, sample in zip([1.0, 0.2], rollout.sampled, rollout.samples, strict=True)
    ]
    found = [sample.advantage for sample in rollout.samples]
    assert found == pytest.approx([worth[0] - worth[1], worth[1] - worth[0]], rel=1e-5)


def test_recomputation_does_not_disturb_sampling():
    from tunesmith.train.mode import train_mode

    policy, _ = policy_of()
    wanted = objective_of()
    next(wanted.steps(policy))
    policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    train_mode(policy, recompute=True)
    found = objective_of()
    step = next(found.steps(policy))
    for batch in found.micro_batches(step, 10**6):
        found.loss(policy, batch)
    pairs = zip(found._rollout.samples, wanted._rollout.samples, strict=True)
    assert all(np.array_equal(a.token_ids, b.token_ids) for a, b in pairs)


@pytest.mark.parametrize("changed", [False, True])
def test_other_code_of_the_rewards_goes_on_and_says_so_once(changed):
    policy, _ = policy_of()
    objective = objective_of()
    objective.load_state_dict(objective.state_dict() | ({"rewards": "else"} if changed else {}))
    steps = objective.steps(policy)
    told = [[note for note in next(steps).notes if "the new one judges" in note] for _ in range(2)]
    assert list(map(len, told)) == [int(changed), 0]


def test_an_epoch_is_every_prompt_however_many_updates_it_gives():
    assert objective_of(rows=asked(5), num_iterations=3).steps_per_epoch == 9


def test_equal_rewards_have_no_gradient_and_are_not_run():
    policy, parameters = policy_of()
    objective = objective_of(rewards=("json",))  # nothing here is JSON
    step = next(objective.steps(policy))
    assert len(step.examples) == 1
    assert step.metrics["frac_reward_zero_std"] == 1.0
    _, grads = gradients(policy, parameters, objective_of(rewards=("json",)))
    assert all(bool((grad == 0).all()) for grad in grads.values())
    with_kl = next(objective_of(rewards=("json",), beta=0.1).steps(policy))
    assert len(with_kl.examples) == 8


def test_the_reference_is_the_model_without_its_adapter():
    policy, _ = policy_of()
    objective = objective_of(beta=0.1)
    step = next(objective.steps(policy))
    for row in step.examples:
        ids = torch.from_numpy(row.token_ids)
        with policy.switch.set_to(None), torch.no_grad():
            logs = policy.model(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None]).squeeze(1)
        np.testing.assert_allclose(row.reference, logs[row.prompt_tokens - 1 :].numpy(), atol=2e-4)


def test_the_same_step_samples_the_same_and_another_step_something_else():
    policy, _ = policy_of()

    def sampled(done):
        objective = objective_of()
        objective.load_state_dict({"steps_done": done})
        next(objective.steps(policy))
        return [row.token_ids.tolist() for row in objective._rollout.samples]

    assert sampled(0) == sampled(0)
    assert sampled(0) != sampled(2)


def test_a_rollout_of_several_updates_goes_on_after_a_checkpoint():
    policy, parameters = policy_of()
    whole, broken = (objective_of(num_iterations=3, beta=0.1) for _ in range(2))
    steps = whole.steps(policy)
    for _ in range(2):
        step = next(steps)
        for batch in whole.micro_batches(step, 10**6):
            whole.loss(policy, batch)
    broken.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.01)
    one, other = next(steps), next(broken.steps(policy))
    pairs = zip(one.examples, other.examples, strict=True)
    assert all(np.array_equal(a.token_ids, b.token_ids) for a, b in pairs)
    losses = [
        [o.loss(policy, batch).sums["loss"].item() for batch in o.micro_batches(step, 10**6)]
        for o, step in ((whole, one), (broken, other))
    ]
    assert losses[0] == losses[1]
    assert whole._rollout.iteration == broken._rollout.iteration == 3
    assert "rollout" not in whole.state_dict()


def test_truncated_completions_teach_nothing_where_that_is_asked():
    policy, _ = policy_of()
    objective = objective_of(mask_truncated_completions=True, max_completion_length=2)
    next(objective.steps(policy))
    for row in objective._rollout.samples:
        ended = row.token_ids[-1] == 2
        assert bool(row.num_learned) == bool(ended)
    objective = objective_of(mask_truncated_completions=True, max_completion_length=1, rows=asked(1), batch_size=1)
    step = next(objective.steps(policy))
    for batch in objective.micro_batches(step, 100):  # none of them has ended
        assert objective.loss(policy, batch).sums["loss"].item() == 0.0


def test_held_out_prompts_are_answered_greedily():
    policy, _ = policy_of()
    objective = objective_of(held_out=asked(3))
    found = objective.evaluate(policy, 1000)
    assert found["loss"] == -found["reward"]
    assert 0 < found["completions/mean_length"] <= MOST
    assert objective_of().evaluate(policy, 100) == {}


def test_it_learns():
    """A random model comes to end its answers: the reward is a third of what it began with, in thirty steps."""
    policy, parameters = policy_of(model=tiny("llama"), filled=False)
    objective = objective_of(rows=asked(4), batch_size=4, num_generations=8, rewards=("length:1",))
    optimizer = torch.optim.Adam(parameters.values(), lr=2e-2)
    rewards = []
    steps = objective.steps(policy)
    for _ in range(30):
        step = next(steps)
        rewards.append(step.metrics["reward"])
        optimizer.zero_grad()
        for batch in objective.micro_batches(step, 10**6):
            (objective.loss(policy, batch).sums["loss"] / step.denominators["loss"]).backward()
        optimizer.step()
    assert sum(rewards[-5:]) / 5 > 0.5 * sum(rewards[:5]) / 5

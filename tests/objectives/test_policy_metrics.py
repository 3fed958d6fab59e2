"""What is told of a step of online learning: of which completions, of which updates, and in what table."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from policy_case import TEMPERATURE
from test_policy_gradient import asked, mixed, objective_of, of_case, of_rewards
from test_preference import policy_of

from tunesmith.data.types import Origin
from tunesmith.objectives.environment import Played
from tunesmith.objectives.logprobs import token_logps
from tunesmith.objectives.policy_metrics import shown
from tunesmith.objectives.rewards import Completion, Reward
from tunesmith.objectives.rollout import Judged


def test_dynamic_sampling_asks_further_prompts_until_enough_differ():
    policy, _ = policy_of()
    earned = []

    def reward(completions, row, **_):
        values = [value if r > 2 else 0.0 for value, r in zip(mixed(completions), row, strict=True)]
        earned.extend([values[:4], values[4:]])  # a prompt each
        return values

    objective = objective_of(dynamic_sampling=True, rows=asked(6))
    objective.rewards = [Reward("mine", reward, 1.0)]
    step = next(objective.steps(policy))
    assert {row.origin.row for row in step.examples} == {3, 4}
    assert objective.state_dict()["steps_done"] == 2
    assert sorted(row.number for row in objective._rollout.samples) == list(range(8))
    # What is told is of these two groups, and how many were left out beside it.
    assert step.metrics["reward"] == pytest.approx(sum(earned[2] + earned[3]) / 8) == step.metrics["rewards/mine"]
    assert (step.metrics["groups/draws"], step.metrics["groups/dropped"]) == (2, 2)
    assert step.metrics["frac_reward_zero_std"] == 0
    assert step.metrics["reward_std"] > 0
    assert "groups/draws" not in next(objective_of().steps(policy)).metrics
    assert [line.split("->")[0].split()[-1] in ("q3", "q4") for line in step.notes[1:]] == [True] * 5


def test_whether_a_group_differs_is_asked_of_its_rewards():
    """Neither the punishment of length nor a divergence that is taken from the reward makes it differ."""
    policy, _ = policy_of()
    for keys in ({"overlong_buffer": 1.0, "max_completion_length": 40}, {"preset": "rloo", "beta": 0.5}):
        objective = of_rewards(objective_of(rows=asked(6), **keys), [0.5] * 8)
        metrics = next(objective.steps(policy)).metrics
        assert metrics["reward_std"] == 0
        assert metrics["frac_reward_zero_std"] == 1
        assert any(row.advantage for row in objective._rollout.samples)  # and it is learned all the same

        def late(completions, row, **_):
            return [value if r > 2 else 0.5 for value, r in zip(mixed(completions), row, strict=True)]

        objective = objective_of(rows=asked(6), dynamic_sampling=True, **keys)
        objective.rewards = [Reward("late", late, 1.0)]
        next(objective.steps(policy))
        assert {row.origin.row for row in objective._rollout.samples} == {3, 4}


def test_entropy_is_of_all_that_was_sampled():
    policy, _ = policy_of()

    def solved(completions, row, **_):
        return [1.0 if r == 1 else value for value, r in zip(mixed(completions), row, strict=True)]

    objective = objective_of()
    objective.rewards = [Reward("solved", solved, 1.0)]
    step = next(objective.steps(policy))
    assert {row.origin.row for row in step.examples} == {2}
    values = np.concatenate(objective._rollout.sampled)
    assert step.metrics["entropy"] == pytest.approx(-values.mean(), rel=1e-6)
    cut = next(objective_of(mask_truncated_completions=True, max_completion_length=1).steps(policy))
    assert sum(row.num_learned for row in cut.examples) == 0
    assert cut.metrics["entropy"] > 0


def watching(objective, seen):
    """Its reward says which step it was told of."""

    def reward(completions, trainer_state, **_):
        seen.append(trainer_state.global_step)
        return mixed(completions)

    objective.rewards = [Reward("watching", reward, 1.0)]
    return objective


def test_rewards_are_told_how_many_updates_were_made():
    policy, _ = policy_of()
    seen: list[int] = []
    objective = watching(objective_of(num_iterations=2, rows=asked(8), held_out=asked(1)), seen)
    steps = objective.steps(policy)
    for _ in range(5):
        next(steps)
    objective.evaluate(policy, 1000)
    assert seen == [0, 2, 4, 5]
    state = json.loads(json.dumps(objective.state_dict()))
    before = {key: value for key, value in state.items() if key != "updates"}  # of an older version
    for held in (state, before):
        seen.clear()
        resumed = watching(objective_of(num_iterations=2, rows=asked(8)), seen)
        resumed.load_state_dict(held)
        further = resumed.steps(policy)
        next(further), next(further)
        assert seen == [6]
    seen.clear()
    drawn = objective_of(dynamic_sampling=True, rows=asked(8))
    drawn.rewards = [
        Reward("flat", lambda completions, trainer_state, **_: seen.append(trainer_state.global_step) or [1.0] * 8, 1.0)
    ]
    steps = drawn.steps(policy)
    next(steps), next(steps)
    assert seen == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(("iterations", "at"), [(1, [0, 10, 20]), (3, [0, 12, 21]), (4, [0, 12, 20])])
def test_a_table_is_shown_every_ten_updates(iterations, at):
    policy, _ = policy_of()
    steps = objective_of(num_iterations=iterations, batch_size=1, num_generations=2).steps(policy)
    assert [place for place in range(24) if any("->" in note for note in next(steps).notes)] == at


@pytest.mark.parametrize("name", ["grpo, epsilon", "dapo", "gspo", "cispo", "rloo"])
def test_the_share_that_is_clipped(name):
    """Of tokens, or of completions where the ratio is a completion's."""
    policy, _ = policy_of(filled="formula")
    objective = of_case(name, policy)
    step = next(objective.steps(policy))
    low, high = 1 - objective.settings.epsilon, 1 + (objective.settings.epsilon_high or objective.settings.epsilon)
    level, told, below, above, capped, count = objective.settings.importance_sampling_level, {}, 0, 0, 0, 0
    for batch in objective.micro_batches(step, 60):
        found = objective.loss(policy, batch)
        told = {key: told.get(key, 0) + value.item() for key, value in found.metrics.items()}
        logps = token_logps(policy, batch, TEMPERATURE)
        for place, leaf in enumerate(batch.leaves):
            row = batch.examples[leaf]
            log = logps.values.detach()[logps.row == place] - torch.tensor(row.reference)
            own = {"token": log, "sequence": log.mean()[None], "product": log.sum()[None]}[level].exp()
            below += int((own < low).sum()) if row.advantage < 0 else 0
            above += int((own > high).sum()) if row.advantage > 0 else 0
            capped += int((own > high - 1).sum())
            count += len(own)
    shares = {key: told[key] / step.denominators[key] for key in told if key.startswith("clip_ratio/")}
    wanted = {"clip_ratio/low_mean": below, "clip_ratio/high_mean": above, "clip_ratio/region_mean": below + above}
    if name == "cispo":
        wanted = {"clip_ratio/high_mean": capped}
    assert shares == pytest.approx({key: value / count for key, value in wanted.items()})
    assert max(shares.values()) > 0


def test_one_update_clips_nothing():
    policy, _ = policy_of()
    for preset in ("grpo", "gspo", "cispo"):
        objective = objective_of(preset=preset)
        step = next(objective.steps(policy))
        (batch,) = objective.micro_batches(step, 10**6)
        found = {key: value.item() for key, value in objective.loss(policy, batch).metrics.items() if "clip" in key}
        assert found
        assert not any(found.values())


def test_the_table_of_a_step_goes_from_the_best_to_the_worst():
    def played(tokens, cut):
        return Played(asked(1)[0], [1], token_ids=[5] * tokens, learned=[True] * tokens, is_cut=cut)

    texts = ["a\nb", "long " * 40, "c", "d"]
    completions = [Completion("q", text, [5], {}, Origin("rows", n)) for n, text in enumerate(texts, 1)]
    parts = [(1.0, 0.0), (0.5, 0.0), (math.nan, math.nan), (0.0, -2.0)]
    extra = [{"why": "x"}, {"why": "y"}, {}, {}]
    judged = [
        Judged(played(n, n == 2), completion, own, sum(own), more)
        for n, (completion, own, more) in enumerate(zip(completions, parts, extra, strict=True), 1)
    ]
    rewards = [Reward("one", mixed, 1.0), Reward("two", mixed, 1.0)]
    told = shown(judged, rewards)
    assert told[0].split() == ["reward", "one", "two", "tokens", "why", "prompt", "->", "answer"]
    assert [line.split()[:4] for line in told[1:]] == [
        ["1.00", "1.00", "0.00", "1"],
        ["0.50", "0.50", "0.00", "2+"],
        ["-2.00", "0.00", "-2.00", "4"],
    ]
    assert told[1].endswith("q -> a b")
    assert len({line.index("q -> ") for line in told[1:]}) == 1
    assert shown(judged[2:3], rewards) == []


def test_rewards_that_are_called_alike_have_a_column_each():
    policy, _ = policy_of()
    objective = objective_of()
    objective.rewards = [
        Reward("a/mine.py:score", lambda completions, **_: [1.0] * len(completions), 1.0),
        Reward("b/mine.py:score", mixed, 1.0),
    ]
    step = next(objective.steps(policy))
    names = [name.removeprefix("rewards/") for name in step.metrics if name.startswith("rewards/")]
    assert names == ["a/mine.py:score", "b/mine.py:score"]
    assert step.notes[0].split()[1:3] == names

"""Policy gradients as pure functions: closed forms, identities, a bandit whose gradient is known."""

from __future__ import annotations

import math

import pytest
import torch

from tunesmith.errors import RecipeError
from tunesmith.objectives.policy_losses import (
    PRESETS,
    PolicySettings,
    advantages,
    clipped,
    kl,
    overlong,
    ratios,
    token_losses,
)
from tunesmith.recipe import from_dict


def losses_of(logp, old, gain, row, counts, chosen):
    ratio = ratios(logp, old, row, counts, chosen.importance_sampling_level)
    return token_losses(logp, ratio, gain, chosen)


ONE = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
GROUP = torch.zeros(4, dtype=torch.long)


def settings(**keys):
    return PolicySettings(rewards=("json",), **keys)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [("group", [1.4997, -0.4999]), ("group_mean", [0.75, -0.25]), ("leave_one_out", [1.0, -1 / 3])],
)
def test_advantages_of_one_success_in_four(kind, wanted):
    found = advantages(ONE, GROUP, kind).tolist()
    assert found == pytest.approx([wanted[0], *[wanted[1]] * 3], abs=1e-6)


@pytest.mark.parametrize("kind", ["group", "group_mean", "group_mean_batch_std", "leave_one_out", "batch"])
def test_identities_of_advantages(kind):
    r = torch.tensor([0.1, 2.0, -1.0, 0.4, 0.9, 0.3], dtype=torch.float64)
    g = torch.tensor([0, 0, 0, 1, 1, 1])
    found = advantages(r, g, kind)
    torch.testing.assert_close(advantages(r + 7, g, kind), found)
    assert found.sum().abs() < 1e-9
    if kind in ("group_mean", "leave_one_out"):
        torch.testing.assert_close(advantages(3 * r, g, kind), 3 * found)
    else:
        torch.testing.assert_close(advantages(3 * r, g, kind), found, rtol=1e-3, atol=1e-3)
    assert torch.equal(advantages(torch.full((6,), 0.3, dtype=torch.float64), g, kind), torch.zeros(6).double())
    shuffled = torch.tensor([4, 0, 5, 2, 1, 3])
    torch.testing.assert_close(advantages(r[shuffled], g[shuffled], kind), found[shuffled])


def test_leave_one_out_is_the_mean_over_the_others():
    r, g = torch.tensor([0.1, 2.0, -1.0]).double(), torch.zeros(3, dtype=torch.long)
    wanted = [r[i] - (r.sum() - r[i]) / 2 for i in range(3)]
    torch.testing.assert_close(advantages(r, g, "leave_one_out"), torch.stack(wanted))
    torch.testing.assert_close(advantages(r, g, "leave_one_out"), 3 / 2 * advantages(r, g, "group_mean"))


def test_the_groups_mean_and_the_steps_deviation():
    """As TRL reckons with scale_rewards: batch."""
    r = torch.tensor([1.0, 0.0, math.nan, 5.0, 7.0, 9.0], dtype=torch.float64)
    g = torch.tensor([0, 0, 0, 1, 1, 1])
    deviation = torch.tensor([1.0, 0.0, 5.0, 7.0, 9.0], dtype=torch.float64).std()
    wanted = torch.tensor([0.5, -0.5, 0.0, -2.0, 0.0, 2.0], dtype=torch.float64) / (deviation + 1e-4)
    torch.testing.assert_close(advantages(r, g, "group_mean_batch_std"), wanted)
    alone = torch.tensor([math.nan, 3.0], dtype=torch.float64)
    assert advantages(alone, g[:2], "group_mean_batch_std").tolist() == [0.0, 0.0]


def test_a_completion_that_nobody_judged_counts_for_nothing():
    r = torch.tensor([1.0, math.nan, 0.0, math.nan, math.nan], dtype=torch.float64)
    g = torch.tensor([0, 0, 0, 1, 1])
    found = advantages(r, g, "group_mean")
    assert found.tolist() == [0.5, 0.0, -0.5, 0.0, 0.0]


def test_the_estimators_of_kl_against_the_sum_over_all_tokens():
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(6, generator=generator, dtype=torch.float64).log_softmax(0) for _ in range(2))
    exact = (p.exp() * (p - q)).sum()
    for kind in ("k1", "k3"):
        torch.testing.assert_close((p.exp() * kl(p, q, kind)).sum(), exact)
    assert bool((kl(p, q, "k3") >= 0).all())
    near = p + 0.01 * (q - p)
    near = near.log_softmax(0)
    close = (p.exp() * kl(p, near, "k2")).sum()
    torch.testing.assert_close(close, (p.exp() * (p - near)).sum(), rtol=0.05, atol=1e-7)


def test_on_policy_the_loss_is_less_the_advantage_and_its_gradient_that_of_the_log_probability():
    logp = torch.tensor([-0.5, -1.5, -0.2], dtype=torch.float64, requires_grad=True)
    gain, row, counts = torch.tensor([0.7, 0.7, -1.1]).double(), torch.tensor([0, 0, 1]), torch.tensor([2.0, 1.0])
    for preset in PRESETS:
        losses = losses_of(logp, logp.detach(), gain, row, counts.double(), settings(preset=preset))
        (grad,) = torch.autograd.grad(losses.sum(), logp)
        if preset == "cispo":
            torch.testing.assert_close(grad, -gain)
            continue
        torch.testing.assert_close(losses.detach(), -gain)
        # a token of a completion whose ratio is shared moves all of that completion's tokens
        scale = torch.tensor([2.0, 2.0, 1.0]).double() if preset == "rloo" else torch.ones(3).double()
        torch.testing.assert_close(grad, -gain * scale)


@pytest.mark.parametrize("preset", PRESETS)
def test_gradients_by_finite_differences(preset):
    old = torch.tensor([-0.55, -1.4, -0.21, -2.0], dtype=torch.float64)
    gain, row = torch.tensor([0.7, 0.7, -1.1, -1.1]).double(), torch.tensor([0, 0, 1, 1])
    counts = torch.tensor([2.0, 2.0]).double()
    chosen = settings(preset=preset, **({"epsilon_high": 9.0} if preset == "cispo" else {"epsilon": 0.5}))

    def loss(logp):
        return losses_of(logp, old, gain, row, counts, chosen)

    logp = torch.tensor([-0.5, -1.5, -0.2, -1.9], dtype=torch.float64, requires_grad=True)
    if preset == "cispo":  # the ratio is a weight there, of which no gradient is taken
        (grad,) = torch.autograd.grad(loss(logp).sum(), logp)
        torch.testing.assert_close(grad, -((logp - old).exp() * gain).detach())
    else:
        assert torch.autograd.gradcheck(loss, (logp,))


def test_what_has_moved_far_enough_moves_no_further():
    old = torch.zeros(4, dtype=torch.float64)
    logp = torch.tensor([0.5, -0.5, 0.5, -0.5], dtype=torch.float64, requires_grad=True)
    gain = torch.tensor([1.0, 1.0, -1.0, -1.0]).double()
    losses = losses_of(logp, old, gain, torch.arange(4), torch.ones(4).double(), settings(epsilon=0.2))
    (grad,) = torch.autograd.grad(losses.sum(), logp)
    assert (grad != 0).tolist() == [False, True, True, False]


def test_what_is_clipped_is_what_moves_no_further():
    ratio = torch.tensor([0.7, 0.7, 1.4, 1.4, 1.0, 9.0, 9.0], dtype=torch.float64)
    gain = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 0.0]).double()
    found = clipped(ratio, gain, settings(epsilon=0.2, epsilon_high=0.3))
    assert {name: own.nonzero().flatten().tolist() for name, own in found.items()} == {
        "clip_ratio/low_mean": [1],
        "clip_ratio/high_mean": [2],
        "clip_ratio/region_mean": [1, 2],
    }
    capped = clipped(ratio, gain, settings(preset="cispo"))
    assert {name: own.nonzero().flatten().tolist() for name, own in capped.items()} == {"clip_ratio/high_mean": [5]}
    assert clipped(ratio, gain, settings(clipping="none")) == {}


def test_a_bandit_of_three_arms_has_the_gradient_that_is_reckoned_by_hand():
    """Every arm drawn as often as it is likely: the mean gradient is that of the expected reward."""
    z = torch.tensor([0.2, -0.4, 0.9], dtype=torch.float64, requires_grad=True)
    reward = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)
    p = z.softmax(0).detach()
    gain = reward - (p * reward).sum()
    logp = z.log_softmax(0)
    losses = losses_of(logp, logp.detach(), gain, torch.arange(3), torch.ones(3).double(), settings(clipping="none"))
    (grad,) = torch.autograd.grad((p * losses).sum(), z)
    (wanted,) = torch.autograd.grad(-(z.softmax(0) * reward).sum(), z)
    torch.testing.assert_close(grad, wanted)


def test_overlong_completions():
    lengths = torch.tensor([10.0, 80.0, 90.0, 100.0])
    assert overlong(lengths, 100, 0.2).tolist() == pytest.approx([0.0, 0.0, -0.5, -1.0])


@pytest.mark.parametrize(
    ("objective", "rest", "says"),
    [
        ({}, {}, "objective.rewards is missing"),
        ({"rewards": []}, {}, "rewards"),
        ({"rewards": ["json"], "reward_weights": [1, 2]}, {}, "has 2 weights for 1 rewards"),
        ({"rewards": ["json"], "num_generations": 1}, {}, "at least 2"),
        ({"rewards": ["json"]}, {"adapter": {"dropout": 0.1}}, "adapter.dropout would make"),
        ({"rewards": ["json"]}, {"train": {"neftune_alpha": 5}}, "train.neftune_alpha would make"),
        ({"kind": "grpo", "rewards": ["json"]}, {}, "policy, with preset: grpo"),
    ],
)
def test_settings_that_cannot_be(objective, rest, says):
    values = {"model": {"name": "a/b"}, "data": {"train": "c/d"}, "objective": {"kind": "policy"} | objective} | rest
    with pytest.raises(RecipeError) as caught:
        from_dict(values)
    assert says in str(caught.value)


def test_a_given_setting_goes_before_the_presets():
    assert settings(preset="dapo").epsilon_high == 0.28
    assert settings(preset="dapo", epsilon_high=0.5).epsilon_high == 0.5
    assert settings(preset="dapo", epsilon_high=None, overlong_buffer=None).epsilon_high is None
    assert settings(preset="rloo", beta=0.0, kl="k3").beta == 0.0
    assert all(set(PRESETS[name]) == set(PRESETS["grpo"]) for name in PRESETS)


def test_a_presets_epsilons_are_for_its_own_clipping():
    assert settings(preset="gspo", clipping="cispo").epsilon_high == 5.0
    assert settings(preset="cispo", clipping="ratio").epsilon_high is None
    assert settings(preset="gspo", epsilon=0.2).epsilon_high is None
    assert settings(preset="gspo").epsilon_high == 4e-4


@pytest.mark.parametrize(
    "keys",
    [{"kl": "k1"}, {"kl_in": "reward"}, {"clipping": "none", "epsilon": 0.3}, {"preset": "cispo", "epsilon": 0.3}],
)
def test_what_is_not_read_is_refused(keys):
    with pytest.raises(ValueError, match="is not read with"):
        settings(**keys)


@pytest.mark.parametrize("preset", PRESETS)
def test_all_that_is_said_reads_back(preset):
    values = {"model": {"name": "a/b"}, "data": {"train": "c/d"}}
    resolved = from_dict(values | {"objective": {"kind": "policy", "rewards": ["json"], "preset": preset}})
    assert from_dict(resolved.plain).recipe.objective == resolved.recipe.objective

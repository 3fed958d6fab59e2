"""TRL's files: preferences of two parts, and policies with their rewards."""

from __future__ import annotations

from pathlib import Path

import pytest
from their_files import TRL as BASE
from their_files import TRL_DPO as DPO
from their_files import TRL_GRPO as GRPO
from their_files import TRL_PEFT as PEFT
from their_files import entry_of, file
from their_files import trl_settings as made

from tunesmith.dialects.base import Fate
from tunesmith.dialects.read import load_any
from tunesmith.errors import TunesmithError


def test_grpo_counts_completions(tmp_path: Path) -> None:
    grpo = made(tmp_path, **GRPO, gradient_accumulation_steps=2, num_generations=8)
    assert (grpo.train.batch_size, grpo.train.learning_rate) == (4, 1e-6)
    objective = grpo.objective
    assert (objective.preset, objective.aggregation, objective.max_completion_length) == ("grpo", "tokens", 512)
    assert (objective.rewards, objective.advantage, objective.beta) == (("mine:right",), "group", 0)
    assert not objective.dynamic_sampling
    cispo = made(tmp_path, **GRPO, loss_type="cispo", epsilon_high=5.0).objective
    assert (cispo.clipping, cispo.aggregation, cispo.epsilon_high) == ("cispo", "tokens", 5)
    rloo = made(tmp_path, **{**GRPO, "trainer": "rloo"})
    assert (rloo.train.batch_size, rloo.objective.num_generations, rloo.objective.kl_in) == (8, 2, "reward")
    with pytest.raises(TunesmithError, match="no multiple of num_generations") as caught:
        load_any(file(tmp_path, {**BASE, **GRPO, "per_device_train_batch_size": 6}))
    assert "gradient_accumulation_steps=4" in str(caught.value)
    for key in ("steps_per_generation", "generation_batch_size"):
        assert entry_of(load_any(file(tmp_path, {**BASE, **GRPO, key: 1 if key[0] == "s" else 16})), key).fate is (
            Fate.CARRIED
        )
        with pytest.raises(TunesmithError, match=key):
            load_any(file(tmp_path, {**BASE, **GRPO, key: 64}))


@pytest.mark.parametrize(
    ("scaled", "advantage"),
    [
        ("group", "group"),
        (True, "group"),
        ("none", "group_mean"),
        (False, "group_mean"),
        ("batch", "group_mean_batch_std"),
    ],
)
def test_rewards_are_scaled_as_in_trl(tmp_path: Path, scaled: str | bool, advantage: str) -> None:
    assert made(tmp_path, **GRPO, scale_rewards=scaled).objective.advantage == advantage


def test_no_other_scale_of_rewards_is_known(tmp_path: Path) -> None:
    with pytest.raises(TunesmithError, match="scale_rewards cannot be prompt"):
        load_any(file(tmp_path, {**BASE, **GRPO, "scale_rewards": "prompt"}))


def test_rewards_are_found_where_trl_finds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "rewards.py").touch()
    monkeypatch.chdir(tmp_path)
    names = ["mine.rewards.right", "installed.rewards.right", "think_format_reward"]
    policy = made(tmp_path, **{**GRPO, "reward_funcs": names}).objective
    file_of_mine = str(tmp_path / "mine" / "rewards.py")
    assert policy.rewards == (f"{file_of_mine}:right", "installed.rewards:right", "trl.rewards:think_format_reward")
    with pytest.raises(TunesmithError, match="overlong_buffer"):
        load_any(file(tmp_path, {**BASE, **GRPO, "reward_funcs": ["get_soft_overlong_punishment"]}))


def test_a_policy_trains_what_answers(tmp_path: Path) -> None:
    assert made(tmp_path, **GRPO, **PEFT).adapter.dropout == 0
    with pytest.raises(TunesmithError, match="lora_dropout=0"):
        load_any(file(tmp_path, {**BASE, **GRPO, **PEFT, "lora_dropout": 0.1}))


def test_losses_of_two_parts(tmp_path: Path) -> None:
    both = made(tmp_path, **DPO, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.5]).objective
    assert (both.loss, both.nll_weight) == ("sigmoid", 0.5)
    with pytest.raises(TunesmithError, match="losses are not mixed"):
        load_any(file(tmp_path, {**BASE, **DPO, "loss_type": ["sigmoid", "bco_pair", "sft"]}))
    with pytest.raises(TunesmithError, match="cannot be aot"):
        load_any(file(tmp_path, {**BASE, **DPO, "loss_type": "aot"}))

"""Axolotl's files: preferences, rewards and policies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from their_files import AXOLOTL as BASE
from their_files import AXOLOTL_GRPO as GRPO
from their_files import AXOLOTL_KTO as KTO
from their_files import AXOLOTL_PAIRS as PAIRS
from their_files import entry_of, file, recipe, with_key

from tunesmith.dialects import axolotl
from tunesmith.dialects.axolotl.objective import prompts_per_step
from tunesmith.dialects.base import Fate, Said
from tunesmith.dialects.read import load_any
from tunesmith.errors import TunesmithError


@pytest.mark.parametrize("rl", ["dpo", "ipo", "kto", "orpo", "simpo", "grpo"])
def test_beta_is_the_first_of_its_keys_whatever_is_learned(rl: str, tmp_path: Path) -> None:
    beside = {"kto": KTO, "grpo": GRPO}.get(rl, {**PAIRS, "rl": rl})
    keys = {"orpo_alpha": 0.4, "dpo_beta": 0.3, "rl_beta": 0.2}
    said: dict[str, Any] = {**BASE, **beside}
    for key, beta in keys.items():
        said[key] = beta
        read = load_any(file(tmp_path, said))
        assert read.resolved.recipe.objective.beta == beta
        assert entry_of(read, key).fate is Fate.CARRIED
    read = load_any(file(tmp_path, {**said, "trl": {**said.get("trl", {}), "beta": 0.1}}))
    assert read.resolved.recipe.objective.beta == 0.1
    assert {entry_of(read, key).text for key in keys} == {"trl.beta goes before it"}


def test_trl_s_defaults_of_grpo_are_written_down(tmp_path: Path) -> None:
    made = load_any(file(tmp_path, {**BASE, **GRPO})).resolved.recipe.objective
    assert (made.num_generations, made.max_completion_length, made.aggregation) == (8, 512, "tokens")
    assert (made.advantage, made.beta) == ("group", 0.0)


@pytest.mark.parametrize(
    ("key", "nothing"),
    [("top_k", 0), ("min_p", 0.0), ("repetition_penalty", 1), ("entropy_coef", 0), ("scale_rewards", "group")],
)
def test_what_grpo_says_and_means_nothing_by_is_no_hindrance(key: str, nothing: Any, tmp_path: Path) -> None:
    path = file(tmp_path, with_key({**BASE, **GRPO}, f"trl.{key}", nothing))
    assert recipe(path) == recipe(file(tmp_path, {**BASE, **GRPO}, "without.yml"))


def test_a_reward_that_is_a_model_is_one(tmp_path: Path) -> None:
    said = with_key({**BASE, **GRPO}, "trl.reward_funcs", ["some/judge-2.5", "mine.right"])
    assert load_any(file(tmp_path, said)).resolved.recipe.objective.rewards == ("model:some/judge-2.5", "mine.py:right")


def test_a_batch_of_grpo_counts_completions() -> None:
    def prompts(rows: int, **said: Any) -> tuple[int, Said]:
        values = Said(said, lambda _: "their.yml", axolotl)
        return prompts_per_step(values, rows), values

    assert prompts(16, rl="dpo")[0] == 16
    assert prompts(16, rl="grpo")[0] == 2
    made, values = prompts(16, rl="grpo", trl={"num_generations": 4, "generation_batch_size": 16})
    assert made == 4
    assert values.ledger.fates[("trl", "generation_batch_size")][0] is Fate.IDLE
    _, values = prompts(12, rl="grpo", micro_batch_size=12)
    assert "no multiple of trl.num_generations (8)" in str(values.ledger.errors[0])
    assert values.ledger.errors[0].fix == "set micro_batch_size=8"


def test_a_reward_model_as_axolotl_s_example_has_it(tmp_path: Path) -> None:
    pairs = {"datasets": [{"path": "some/pairs", "type": "bradley_terry.chat_template"}]}
    head = {"model_type": "AutoModelForSequenceClassification", "num_labels": 1}
    read = load_any(file(tmp_path, {**BASE, **pairs, **head, "reward_model": True}))
    assert read.resolved.recipe.objective.kind == "reward"
    assert {entry_of(read, key).fate for key in head} == {Fate.CARRIED}
    for odd in ({"num_labels": 2}, {"reward_model": None}):
        with pytest.raises(TunesmithError, match="num_labels is set"):
            load_any(file(tmp_path, {**BASE, **pairs, **head, "reward_model": True, **odd}))

"""Axolotl's files: what is trained, how long, which checkpoint is kept, and who is told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from their_files import AXOLOTL as BASE
from their_files import AXOLOTL_HELD as HELD
from their_files import entry_of, file, notes_of, recipe, refusal

from tunesmith.dialects.read import load_any
from tunesmith.errors import TunesmithError

BEST = {"load_best_model_at_end": True}


@pytest.mark.parametrize(
    ("said", "publish"),
    [
        ({}, "last"),
        (BEST, "last"),
        (HELD, "last"),
        ({**HELD, **BEST}, "best"),
        ({**HELD, "load_best_model_at_end": False}, "last"),
        ({**HELD, "early_stopping_patience": 3}, "best"),
        ({**HELD, "load_best_model_at_end": False, "early_stopping_patience": 3}, "best"),
        ({**HELD, **BEST, "evals_per_epoch": 4, "saves_per_epoch": 1}, "best"),
        ({**HELD, **BEST, "evals_per_epoch": 4, "saves_per_epoch": 3}, "last"),
        ({**HELD, **BEST, "eval_steps": 20, "save_steps": 50}, "last"),
        ({**HELD, **BEST, "eval_steps": 20, "saves_per_epoch": 1}, "last"),
    ],
)
def test_which_checkpoint_a_run_ends_with(said: dict[str, Any], publish: str, tmp_path: Path) -> None:
    """The best where the file asks for it, or for patience, and where each checkpoint comes with an evaluation."""
    read = load_any(file(tmp_path, {**BASE, **said}))
    assert read.resolved.recipe.train.publish == publish
    asked_in_vain = publish == "last" and said.get("load_best_model_at_end", False)
    assert any("load_best_model_at_end" in note for note in notes_of(read)) is asked_in_vain


@pytest.mark.parametrize(
    ("said", "warmup"),
    [
        ({}, 0.03),
        ({"max_steps": 20}, 0),
        ({"max_steps": 50}, 2),
        ({"max_steps": 200}, 6),
        ({"max_steps": 5000}, 100),
        ({"warmup_steps": 0}, 0),
        ({"lr_scheduler": "constant"}, 0),
    ],
)
def test_a_file_that_says_nothing_of_warm_up_warms_up_as_axolotl_does(
    said: dict[str, Any], warmup: float, tmp_path: Path
) -> None:
    read = load_any(file(tmp_path, {**BASE, **said}))
    assert read.resolved.recipe.train.warmup == warmup
    assert any("warmup_steps=100" in note for note in notes_of(read)) is (not said)


@pytest.mark.parametrize("key", ["lora_r", "lora_alpha"])
def test_what_axolotl_has_no_default_for_is_called_ours(key: str, tmp_path: Path) -> None:
    read = load_any(file(tmp_path, {**BASE, key: None}))
    adapter = read.resolved.recipe.adapter
    assert (adapter.r, adapter.alpha) == (8, 16)
    assert any(note.startswith(f"{key} is missing, and Axolotl has no default") for note in notes_of(read))
    assert key.removeprefix("lora_") not in read.resolved.recipe.explicit()["adapter"]


def test_embeddings_learn_at_axolotls_own_rate_beside_a_ratio(tmp_path: Path) -> None:
    tables = {"loraplus_lr_ratio": 16, "lora_target_linear": None, "lora_target_modules": ["q_proj", "embed_tokens"]}
    made = load_any(file(tmp_path, {**BASE, **tables, "learning_rate": 2e-4})).resolved.recipe.adapter
    assert made.embedding_lr_ratio * 2e-4 == pytest.approx(1e-6)
    without = load_any(file(tmp_path, {**BASE, "loraplus_lr_ratio": 16})).resolved.recipe.adapter
    assert without.embedding_lr_ratio == 1


@pytest.mark.parametrize("key", ["evals_per_epoch", "eval_steps", "saves_per_epoch", "save_steps"])
def test_zero_says_nothing(key: str, tmp_path: Path) -> None:
    assert recipe(file(tmp_path, {**BASE, **HELD, key: 0})) == recipe(file(tmp_path, {**BASE, **HELD}, "without.yml"))


def test_zero_warmup_steps_leave_the_ratio(tmp_path: Path) -> None:
    made = load_any(file(tmp_path, {**BASE, "warmup_steps": 0, "warmup_ratio": 0.1})).resolved.recipe
    assert made.train.warmup == 0.1


def test_what_is_typed_in_ours_goes_before_what_the_file_says(tmp_path: Path) -> None:
    path = file(tmp_path, {**BASE, "num_epochs": 4, "sample_packing": True})
    made = load_any(path, ["train.minutes=3", "train.batch_size=4"]).resolved.recipe.train
    assert (made.minutes, made.epochs, made.steps, made.batch_size, made.batch_tokens) == (3, None, None, 4, None)


def test_unfrozen_parameters_are_trained_and_nothing_else(tmp_path: Path) -> None:
    made = load_any(
        file(tmp_path, {**BASE, "adapter": None, "unfrozen_parameters": ["^lm_head.weight$", "layers.1.mlp"]})
    )
    adapter = made.resolved.recipe.adapter
    assert (adapter.method, adapter.targets) == ("full", "none")
    assert adapter.train_in_full == ("re:lm_head", r"re:(?:layers\.1\.mlp).*")
    assert any("has a bias" in note for note in notes_of(made))


NAMES = [f"model.layers.{block}.{part}" for block in (1, 2, 10) for part in ("mlp.up_proj", "norm")] + ["model.norm"]


@pytest.mark.parametrize(
    ("pattern", "reached"),
    [
        ("model.layers.1.", ["model.layers.1.mlp.up_proj", "model.layers.1.norm"]),
        ("model.norm.", ["model.norm"]),
        ("^model.layers.1.mlp.up_proj.weight$", ["model.layers.1.mlp.up_proj"]),
        (r"model\.layers\.1\.norm\.weight$", ["model.layers.1.norm"]),
        ("model.layers.[0-9]+.norm.[a-z]+$", [name for name in NAMES if "layers" in name and name.endswith("norm")]),
        ("model.layers.1.+up_proj.weight", ["model.layers.1.mlp.up_proj", "model.layers.10.mlp.up_proj"]),
        ("model.layers.2", ["model.layers.2.mlp.up_proj", "model.layers.2.norm"]),
    ],
)
def test_a_dot_of_unfrozen_parameters_is_a_dot(pattern: str, reached: list[str], tmp_path: Path) -> None:
    values = {**BASE, "adapter": None, "unfrozen_parameters": [pattern]}
    (made,) = load_any(file(tmp_path, values)).resolved.recipe.adapter.train_in_full
    assert [name for name in NAMES if re.fullmatch(made.removeprefix("re:"), name)] == reached


@pytest.mark.parametrize("pattern", ["model.norm.bias$", "lm_head.bias", "lm_head.weight[:100]", "lm_head.weight[3]"])
def test_a_part_of_a_module_is_not_unfrozen_alone(pattern: str, tmp_path: Path) -> None:
    said = refusal(file(tmp_path, {**BASE, "adapter": None, "unfrozen_parameters": [pattern]}))
    assert f"unfrozen_parameters holds {pattern}" in said


def test_relora_as_it_was_written_before_it_had_a_key(tmp_path: Path) -> None:
    made = load_any(file(tmp_path, {**BASE, "relora_steps": 150, "relora_warmup_steps": 10})).resolved.recipe
    assert (made.adapter.method, made.adapter.restart_every, made.adapter.rewarm) == ("relora", 150, 10)


def test_a_gptq_checkpoint_is_in_few_bits_already(tmp_path: Path) -> None:
    read = load_any(file(tmp_path, {**BASE, "gptq": True, "load_in_8bit": True}))
    assert read.resolved.recipe.model.storage == "auto"
    assert entry_of(read, "load_in_8bit").text == "the checkpoint is in few bits already"


def test_another_method_leaves_behind_what_it_has_not(tmp_path: Path) -> None:
    read = load_any(file(tmp_path, BASE), ["adapter.method=ia3", "train.steps=3"])
    assert read.resolved.recipe.adapter.method == "ia3"
    assert "the command line goes before it" in entry_of(read, "lora_r").text
    assert "the command line goes before it" in entry_of(read, "adapter").text


def test_wandb_is_as_its_mode_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    said = {**BASE, "wandb_project": "mine", "wandb_entity": "team", "use_tensorboard": True}
    path = file(tmp_path, {**said, "wandb_mode": "disabled"})
    assert load_any(path).resolved.recipe.output.report_to == ("tensorboard",)
    assert {entry_of(load_any(path), key).text for key in ("wandb_project", "wandb_entity")} == {
        "wandb_mode is disabled"
    }
    path = file(tmp_path, {**said, "wandb_mode": "offline"})
    with pytest.raises(TunesmithError, match="export WANDB_MODE=offline"):
        load_any(path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert load_any(path).resolved.recipe.output.report_to == ("wandb", "tensorboard")
    with pytest.raises(TunesmithError, match="cannot be shared"):
        load_any(path, ["wandb_mode=shared"])


def test_a_project_that_is_carried_over_is_not_said_to_be_off(tmp_path: Path) -> None:
    read = load_any(file(tmp_path, {**BASE, "wandb_project": "mine"}))
    assert "off" not in entry_of(read, "wandb_project").text
    read = load_any(file(tmp_path, {**BASE, "wandb_project": "mine", "use_wandb": False}))
    assert entry_of(read, "wandb_project").text == "its service is off"

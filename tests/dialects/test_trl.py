"""TRL's files: every key has its fate, and what is carried over changes the recipe as it would change their run."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
from their_files import TRL as BASE
from their_files import TRL_CPO as CPO
from their_files import TRL_DPO as DPO
from their_files import TRL_GRPO as GRPO
from their_files import TRL_HELD as HELD
from their_files import TRL_KTO as KTO
from their_files import TRL_MIXED as MIXED
from their_files import TRL_ORPO as ORPO
from their_files import TRL_PEFT as PEFT
from their_files import TRL_REWARD as REWARD
from their_files import entry_of, file, mixtures, recipe, survives, with_key

from tunesmith.dialects import trl
from tunesmith.dialects.base import Fate
from tunesmith.dialects.read import load_any
from tunesmith.dialects.trl.trainer import OF, TRAINERS
from tunesmith.errors import TunesmithError

FP32 = {"bf16": False}

CHANGES: dict[str, tuple[Any, dict[str, Any]]] = {
    "trainer": ("dpo", {}),
    "model_name_or_path": ("other/model", {}),
    "model_revision": ("v1", {}),
    "model_init_kwargs.revision": ("v1", {}),
    "dtype": ("bfloat16", {}),
    "torch_dtype": ("float16", {}),
    "model_init_kwargs.dtype": ("bfloat16", {}),
    "model_init_kwargs.torch_dtype": ("bfloat16", FP32),
    "bf16": (True, {}),
    "fp16": (True, {}),
    "load_in_8bit": (True, PEFT),
    "load_in_4bit": (True, PEFT),
    "use_bnb_nested_quant": (True, {**PEFT, "load_in_4bit": True}),
    "use_cpu": (True, {}),
    "no_cuda": (True, {}),
    "use_mps_device": (True, {}),
    "chat_template": ("{{ messages[0]['content'] }}", {}),
    "eos_token": ("<|im_end|>", {}),
    "use_peft": (True, {}),
    "use_dora": (True, PEFT),
    "use_rslora": (True, PEFT),
    "lora_r": (8, PEFT),
    "lora_alpha": (8, PEFT),
    "lora_dropout": (0.1, PEFT),
    "disable_dropout": (False, {**PEFT, **DPO}),
    "lora_target_modules": ("all-linear", PEFT),
    "lora_modules_to_save": (["lm_head"], PEFT),
    "dataset_name": ("other/rows", {}),
    "dataset_config": ("subset", {}),
    "dataset_train_split": ("train_sft", {}),
    "dataset_test_split": ("test_sft", HELD),
    "dataset_text_field": ("body", {}),
    "datasets[].path": ("other/rows", MIXED),
    "datasets[].data_files": ("rows.jsonl", {"dataset_name": None, "datasets": [{"path": "json"}]}),
    "datasets[].name": ("subset", MIXED),
    "datasets[].split": ("train_sft", MIXED),
    "datasets[].columns": (["prompt", "completion"], MIXED),
    "test_split_size": (0.1, MIXED),
    "max_length": (512, {}),
    "max_seq_length": (512, {}),
    "completion_only_loss": (True, {}),
    "assistant_only_loss": (True, {}),
    "train_sampling_strategy": ("sequential", {}),
    "shuffle_dataset": (False, GRPO),
    "packing": (True, {}),
    "per_device_train_batch_size": (2, {}),
    "gradient_accumulation_steps": (4, {}),
    "num_train_epochs": (1, {}),
    "max_steps": (50, {}),
    "learning_rate": (1e-3, {}),
    "lr_scheduler_type": ("cosine", {}),
    "lr_scheduler_kwargs": ({"lr_end": 1e-5}, {"lr_scheduler_type": "polynomial"}),
    "warmup_steps": (10, {}),
    "warmup_ratio": (0.1, {}),
    "optim": ("adamw_bnb_8bit", {}),
    "weight_decay": (0.1, {}),
    "adam_beta1": (0.8, {}),
    "adam_beta2": (0.95, {}),
    "adam_epsilon": (1e-6, {}),
    "max_grad_norm": (0, {}),
    "neftune_noise_alpha": (5, {}),
    "gradient_checkpointing": (False, {}),
    "activation_checkpointing": (False, {"gradient_checkpointing": True}),
    "eval_strategy": ("epoch", {}),
    "evaluation_strategy": ("steps", {}),
    "eval_steps": (20, HELD),
    "save_strategy": ("epoch", {}),
    "save_steps": (20, {}),
    "save_total_limit": (1, {}),
    "load_best_model_at_end": (True, HELD),
    "seed": (7, {}),
    "output_dir": ("elsewhere", {}),
    "run_name": ("this", {}),
    "report_to": (["wandb"], {}),
    "project": ("mine", {"report_to": "trackio"}),
    "loss_type": ("ipo", DPO),
    "loss_weights": ([1.0, 0.5], {**DPO, "loss_type": ["sigmoid", "sft"]}),
    "rpo_alpha": (1.0, DPO),
    "cpo_alpha": (0.5, CPO),
    "beta": (0.3, ORPO),
    "label_smoothing": (0.1, DPO),
    "f_divergence_type": ("js_divergence", DPO),
    "f_alpha_divergence_coef": (0.7, {**DPO, "f_divergence_type": "alpha_divergence"}),
    "simpo_gamma": (1.0, {**CPO, "loss_type": "simpo"}),
    "desirable_weight": (0.5, KTO),
    "undesirable_weight": (0.5, KTO),
    "precompute_ref_log_probs": (False, DPO),
    "center_rewards_coefficient": (0.01, REWARD),
    "reward_funcs": (["mine.other"], GRPO),
    "reward_model_name_or_path": ("some/judge", GRPO),
    "reward_weights": ([2.0], GRPO),
    "num_generations": (4, GRPO),
    "max_completion_length": (64, GRPO),
    "num_iterations": (2, GRPO),
    "temperature": (0.7, GRPO),
    "top_p": (0.9, GRPO),
    "top_k": (20, GRPO),
    "epsilon": (0.1, {**GRPO, "num_iterations": 2}),
    "epsilon_high": (0.3, {**GRPO, "num_iterations": 2}),
    "importance_sampling_level": ("sequence", GRPO),
    "scale_rewards": ("none", GRPO),
    "use_bias_correction_kl": (False, {**GRPO, "beta": 0.1}),
    "mask_truncated_completions": (True, GRPO),
}
"""A value of each carried key that says something else than the file without it, and what must stand beside it."""
NO_CHANGE = {
    "bnb_4bit_quant_type": "nf4 is the only kind that is held here; fp4 is refused",
    "datasets": "its entries are tested",
    "chat_template_path": "it must be there: tested with a file",
    "steps_per_generation": "it must be as many as a step takes; another number is refused",
    "generation_batch_size": "it must be as many as a step takes; another number is refused",
}
OF_OTHERS: dict[str, dict[str, Any]] = {
    "tools": DPO,
    "reference_free": DPO,
    "alpha": CPO,
    **dict.fromkeys(("delta", "top_entropy_quantile", "entropy_coef", "min_p", "repetition_penalty"), GRPO),
    "normalize_advantages": {**GRPO, "trainer": "rloo"},
    "reward_clip_range": {**GRPO, "trainer": "rloo"},
    "packing_strategy": {"packing": True},
}
"""What stands beside a refused key, so that it means something."""

CARRIED, IDLE, REFUSED = ([key for key, entry in trl.KEYS.items() if entry.fate is fate] for fate in Fate)
CASES = {key: with_key({**BASE, **beside}, key, value) for key, (value, beside) in CHANGES.items()}


def test_every_carried_key_has_its_case() -> None:
    assert [key for key in CARRIED if key not in CHANGES and key not in NO_CHANGE] == []


@pytest.mark.parametrize("key", CHANGES)
def test_a_carried_key_changes_the_recipe(key: str, tmp_path: Path) -> None:
    without = file(tmp_path, {**BASE, **CHANGES[key][1]}, "without.yaml")
    path = file(tmp_path, CASES[key])
    assert entry_of(load_any(path), key).fate is Fate.CARRIED
    assert recipe(path) != recipe(without)
    survives(path)


@pytest.mark.parametrize("key", IDLE)
def test_an_idle_key_is_named_with_its_reason(key: str, tmp_path: Path) -> None:
    path = file(tmp_path, with_key(BASE, key, "something"))
    read = load_any(path)
    entry = entry_of(read, key)
    assert (entry.fate, entry.text) == (Fate.IDLE, trl.KEYS[key].text)
    assert any(entry.key in line and entry.text in line for line in read.resolved.notes)


@pytest.mark.parametrize("key", REFUSED)
def test_a_refused_key_says_what_to_do(key: str, tmp_path: Path) -> None:
    values = {**BASE, **MIXED} if key.startswith("datasets[]") else {**BASE, **OF_OTHERS.get(key, {})}
    value = 3 if key == "label_smoothing_factor" else "something"
    with pytest.raises(TunesmithError) as caught:
        load_any(file(tmp_path, with_key(values, key, value)))
    assert key.rpartition(".")[2] in str(caught.value)
    assert "to do" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "harmless"), [(key, value) for key, values in trl.HARMLESS.items() for value in values]
)
def test_what_is_refused_may_stand_at_its_default(key: str, harmless: Any, tmp_path: Path) -> None:
    values = with_key({**BASE, **OF_OTHERS.get(key, {})}, key, harmless)
    assert entry_of(load_any(file(tmp_path, values)), key).fate is Fate.IDLE


def test_every_training_argument_is_known() -> None:
    """Of the transformers that is installed: none of its settings is a stranger."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import TrainingArguments
    assert [field.name for field in dataclasses.fields(TrainingArguments) if field.name not in trl.KEYS] == []


def test_the_defaults_of_training_arguments_are_no_reason_to_refuse(tmp_path: Path) -> None:
    from transformers import TrainingArguments

    defaults = {
        field.name: field.default
        for field in dataclasses.fields(TrainingArguments)
        if isinstance(field.default, str | int | float)
    }
    load_any(file(tmp_path, {**defaults, **BASE}))


def test_no_key_goes_unread(tmp_path: Path) -> None:
    """Whatever stands beside it, each key has its fate, or the file is refused."""
    read = 0
    for values in mixtures(BASE, CHANGES):
        with contextlib.suppress(TunesmithError):
            load_any(file(tmp_path, values))
            read += 1
    assert read > 10


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("lora_alpa", "lora_alpha"),
        ("gradient_acumulation_steps", "gradient_accumulation_steps"),
        ("datasets.pth", "path"),
        ("assistant_only_los", "assistant_only_loss"),
    ],
)
def test_a_typo_gets_a_suggestion(typed: str, meant: str, tmp_path: Path) -> None:
    with pytest.raises(TunesmithError) as caught:
        load_any(file(tmp_path, {**BASE, **MIXED}), [f"{typed}=1"])
    assert f"did you mean: {meant}" in str(caught.value)
    assert "command line" in str(caught.value)


# ---- which trainer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "kind", "note"),
    [
        ({}, "sft", "does not say"),
        ({"packing": False}, "sft", "does not say"),
        ({"packing": True}, "sft", "seen from packing"),
        ({"f_divergence_type": "reverse_kl"}, "preference", "trainer=dpo"),
        ({"loss_type": "sigmoid", "beta": 0.2}, "preference", "trainer=dpo"),
        ({"desirable_weight": 1.0}, "preference", "trainer=kto"),
        ({"loss_type": "simpo"}, "preference", "trainer=cpo"),
        ({"center_rewards_coefficient": 0.01}, "reward", "trainer=reward"),
        ({"num_generations": 8, "reward_funcs": ["mine.right"]}, "policy", "trainer=grpo"),
        ({"num_generations": 2, "reward_funcs": ["mine.right"], "normalize_advantages": False}, "policy", "rloo"),
    ],
)
def test_the_trainer_is_seen_from_its_own_keys(said: Any, kind: str, note: str, tmp_path: Path) -> None:
    read = load_any(file(tmp_path, {**BASE, "trainer": None, **said}))
    assert read.resolved.recipe.objective.kind == kind  # type: ignore[attr-defined]
    assert any(note in line for line in read.resolved.notes)


def test_a_key_of_another_trainer_is_refused(tmp_path: Path) -> None:
    path = file(tmp_path, {**BASE, "trainer": None, "beta": 0.1})
    with pytest.raises(TunesmithError, match="beta is not a key of sft") as caught:
        load_any(path)
    assert "trainer=dpo" in str(caught.value)
    assert load_any(path, ["trainer=orpo"]).resolved.recipe.objective.loss == "orpo"  # type: ignore[attr-defined]
    with pytest.raises(TunesmithError, match="say which: trainer="):
        load_any(file(tmp_path, {**BASE, "trainer": None, "packing": True, "rpo_alpha": 1.0}))


def test_trainers_of_keys_are_known() -> None:
    assert {name for names in OF.values() for name in names} == set(TRAINERS)
    assert set(OF) <= set(trl.KEYS)


def test_whose_file_it_is() -> None:
    assert trl.is_mine({"model_name_or_path": "a/b"})
    for mark in ("stage", "finetuning_type", "template", "cutoff_len", "dataset_dir"):
        assert not trl.is_mine({"model_name_or_path": "a/b", mark: "x"})
    assert not trl.is_mine({"base_model": "a/b"})


def test_overrides_in_their_words_and_in_ours(tmp_path: Path) -> None:
    path = file(tmp_path, {**BASE, "num_train_epochs": 4})
    read = load_any(
        path, ["model_name_or_path=my/model", "--max_steps=7", "adapter.method=lora", "train.schedule=cosine"]
    )
    recipe: Any = read.resolved.recipe
    assert (recipe.model.name, recipe.train.steps, recipe.adapter.method) == ("my/model", 7, "lora")
    assert recipe.train.schedule == "cosine"


def test_all_faults_at_once_each_with_its_line(tmp_path: Path) -> None:
    path = file(tmp_path, {**BASE, "optim": "lion_8bit", "lora_rr": 4, "lr_scheduler_type": "rex", "report_to": "all"})
    lines = {line.partition(":")[0]: number for number, line in enumerate(path.read_text().splitlines(), 1)}
    with pytest.raises(TunesmithError) as caught:
        load_any(path)
    for key in ("optim", "lora_rr", "lr_scheduler_type", "report_to"):
        assert f"line {lines[key]}: {key}" in str(caught.value)


def test_the_tables_name_no_key_twice() -> None:
    """A key that stands in two lines of KEYS would have the fate of the last."""
    tree = ast.parse(Path(trl.__file__).with_name("keys.py").read_text())
    names = [
        argument.value
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") in ("carried", "idle", "refused")
        for argument in call.args[1:]
        if isinstance(argument, ast.Constant)
    ]
    assert len(names) == len(set(names))

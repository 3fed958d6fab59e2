"""TRL's files: every key has its fate, and what is carried over changes the recipe as it would change their run."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from small_run import make_model
from their_files import entry_of, file, mixtures, recipe, survives, with_key

from tunesmith import run
from tunesmith.dialects import trl
from tunesmith.dialects.base import Fate
from tunesmith.dialects.read import load_any
from tunesmith.dialects.trl.trainer import OF, TRAINERS
from tunesmith.errors import TunesmithError

BASE: dict[str, Any] = {"model_name_or_path": "some/model", "dataset_name": "some/rows", "trainer": "sft"}
PEFT = {"use_peft": True}
HELD = {"eval_strategy": "steps"}
MIXED = {"dataset_name": None, "datasets": [{"path": "some/rows"}]}
DPO, KTO, ORPO, CPO = ({"trainer": name} for name in ("dpo", "kto", "orpo", "cpo"))
REWARD = {"trainer": "reward"}
GRPO = {"trainer": "grpo", "reward_funcs": ["mine.right"], "per_device_train_batch_size": 16}
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
    "epsilon": (0.1, GRPO),
    "epsilon_high": (0.3, GRPO),
    "importance_sampling_level": ("sequence", GRPO),
    "scale_rewards": ("none", GRPO),
    "use_bias_correction_kl": (False, GRPO),
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


# ---- what is trained ------------------------------------------------------------------------------------------------


def made(tmp_path: Path, **values: Any) -> Any:
    return load_any(file(tmp_path, {**BASE, **values})).resolved.recipe


def test_an_sft_file_of_their_documentation(tmp_path: Path) -> None:
    path = tmp_path / "sft.yaml"
    path.write_text(
        "model_name_or_path: Qwen/Qwen2.5-0.5B\ndataset_name: trl-lib/Capybara\nlearning_rate: 2.0e-4\n"
        "num_train_epochs: 1\npacking: true\nper_device_train_batch_size: 2\ngradient_accumulation_steps: 8\n"
        "eval_strategy: steps\neval_steps: 100\nuse_peft: true\nlora_r: 32\nlora_alpha: 16\n"
        "lr_scheduler_type: cosine\nwarmup_ratio: 0.1\noutput_dir: Qwen2.5-0.5B-SFT\npush_to_hub: true\n"
    )
    recipe = load_any(path).resolved.recipe
    train = recipe.train
    assert (train.batch_tokens, train.batch_size, train.epochs, train.steps) == (2 * 8 * 1024, None, 1, None)
    assert (train.learning_rate, train.schedule, train.warmup, train.weight_decay) == (2e-4, "cosine", 0.1, 0)
    assert (train.seed, train.max_grad_norm, train.recompute, train.publish) == (42, 1.0, True, "last")
    assert (train.evaluate_every, train.save_every) == (100, 500)
    adapter: Any = recipe.adapter
    assert (adapter.r, adapter.alpha, adapter.dropout, adapter.targets) == (32, 16, 0.05, ("q_proj", "v_proj"))
    assert (recipe.data.held_out, recipe.data.learn) == ("trl-lib/Capybara:test", "completions")
    assert (recipe.data.max_length, recipe.data.overlong) == (1024, "truncate")


def test_their_defaults(tmp_path: Path) -> None:
    plain = made(tmp_path)
    assert (plain.adapter.method, plain.train.batch_size, plain.train.epochs) == ("full", 8, 3)
    assert (plain.train.learning_rate, plain.train.schedule, plain.train.warmup) == (2e-5, "linear", 0)
    assert (plain.train.save_every, plain.output.folder) == (500, "trainer_output")
    dpo = made(tmp_path, **DPO, **PEFT)
    assert (dpo.train.learning_rate, dpo.objective.beta, dpo.objective.loss) == (1e-6, 0.1, "sigmoid")
    assert dpo.adapter.dropout == 0, "disable_dropout is DPO's default, and of the adapter too"
    assert (made(tmp_path, **KTO).data.shuffle, made(tmp_path, **DPO).data.shuffle) == (False, True)
    reward = made(tmp_path, **REWARD)
    assert (reward.train.learning_rate, reward.data.overlong) == (1e-4, "drop")
    assert made(tmp_path, **REWARD, **PEFT, lora_modules_to_save=["score"]).adapter.train_in_full == ("head",)
    assert made(tmp_path, **CPO).objective.nll_weight == 1
    assert made(tmp_path, max_steps=20, eval_strategy="steps").train.evaluate_every == 10, "as logging_steps"


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


@pytest.mark.parametrize(
    ("said", "learn"),
    [
        ({}, "completions"),
        ({"assistant_only_loss": False}, "completions"),
        ({"assistant_only_loss": True}, "answers"),
        ({"completion_only_loss": True}, "answers"),
        ({"completion_only_loss": False}, "everything"),
        ({**MIXED, "datasets": [{"path": "a/b", "columns": ["prompt", "completion"]}]}, "answers"),
        ({**MIXED, "datasets": [{"path": "a/b", "columns": ["messages"]}]}, "completions"),
    ],
)
def test_which_tokens_are_learned(said: Any, learn: str, tmp_path: Path) -> None:
    read = load_any(file(tmp_path, {**BASE, **said}))
    assert read.resolved.recipe.data.learn == learn
    is_open = "completion_only_loss" not in said and learn == "completions"
    assert any("assistant_only_loss=true" in line for line in read.resolved.notes) is is_open


@pytest.mark.parametrize(
    ("said", "dtype"),
    [
        ({}, "auto"),
        ({"bf16": True}, "bfloat16"),
        ({"fp16": True}, "float16"),
        ({"bf16": False}, "float32"),
        ({"bf16": False, "dtype": "auto"}, "auto"),
        ({"dtype": "float32"}, "auto"),
        ({"bf16": True, "dtype": "float32"}, "bfloat16"),
        ({"torch_dtype": "bfloat16"}, "bfloat16"),
    ],
)
def test_numbers_are_multiplied_as_bf16_says(said: Any, dtype: str, tmp_path: Path) -> None:
    assert made(tmp_path, **said).model.dtype == dtype


def test_sources_of_a_mixture(tmp_path: Path) -> None:
    two = [{"path": "a/b", "split": "train_sft", "name": "en"}, {"path": "json", "data_files": ["rows.jsonl"]}]
    (tmp_path / "rows.jsonl").touch()
    data = made(tmp_path, dataset_name="ignored/rows", datasets=two, test_split_size=100).data
    assert [(source.path, source.split, source.subset) for source in data.train] == [
        ("a/b", "train_sft", "en"),
        (str(tmp_path / "rows.jsonl"), None, None),
    ]
    assert data.held_out == 100
    assert entry_of(load_any(file(tmp_path, {**BASE, "datasets": two})), "dataset_name").fate is Fate.IDLE
    with pytest.raises(TunesmithError, match="test_split_size"):
        load_any(file(tmp_path, {**BASE, "datasets": two, **HELD}))


def test_a_file_has_no_test_split(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    with pytest.raises(TunesmithError, match=r"data\.held_out"):
        load_any(file(tmp_path, {**BASE, "dataset_name": "rows.jsonl", **HELD}))


def test_no_limit_of_length(tmp_path: Path) -> None:
    path = tmp_path / "their.yaml"
    path.write_text("model_name_or_path: a/b\ndataset_name: c/d\nmax_length: null\n")
    assert load_any(path).resolved.recipe.data.max_length > 1_000_000
    with pytest.raises(TunesmithError, match="how long a pack is"):
        load_any(path, ["packing=true"])


def test_schedules(tmp_path: Path) -> None:
    rate = made(tmp_path, lr_scheduler_type="polynomial", lr_scheduler_kwargs={"lr_end": 1e-6}).train
    assert (rate.schedule, rate.min_learning_rate) == ("linear", 1e-6)
    assert made(tmp_path, lr_scheduler_type="constant", warmup_steps=10).train.warmup == 0
    assert made(tmp_path, lr_scheduler_type="constant_with_warmup", warmup_steps=0.1).train.warmup == 0.1
    assert made(tmp_path, lr_scheduler_type="cosine_with_restarts", lr_scheduler_kwargs={"num_cycles": 1})
    for kind, options in (("cosine_with_restarts", {"num_cycles": 3}), ("polynomial", {"power": 2})):
        with pytest.raises(TunesmithError, match="lr_scheduler_kwargs"):
            load_any(file(tmp_path, {**BASE, "lr_scheduler_type": kind, "lr_scheduler_kwargs": options}))
    with pytest.raises(TunesmithError, match="lr_scheduler_type"):
        load_any(file(tmp_path, {**BASE, "lr_scheduler_type": "inverse_sqrt"}))


def test_shares_of_a_run(tmp_path: Path) -> None:
    passes = made(tmp_path, **HELD, eval_steps=0.25, num_train_epochs=2).train
    assert passes.evaluate_every == "0.5 epochs"
    assert made(tmp_path, **HELD, eval_steps=0.25, max_steps=50).train.evaluate_every == 13


def test_few_bits_want_an_adapter(tmp_path: Path) -> None:
    with pytest.raises(TunesmithError, match="use_peft=true"):
        load_any(file(tmp_path, {**BASE, "load_in_4bit": True}))
    with pytest.raises(TunesmithError, match="bnb_4bit_quant_type"):
        load_any(file(tmp_path, {**BASE, **PEFT, "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}))


def test_a_template_of_a_file(tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages[0]['content'] }}")
    assert made(tmp_path, chat_template_path="chat.jinja").model.template == str(template)
    (tmp_path / "tokenizer").mkdir()
    template.rename(tmp_path / "tokenizer" / "chat_template.jinja")
    folder = str(tmp_path / "tokenizer")
    assert made(tmp_path, chat_template_path=folder).model.template.endswith("chat_template.jinja")
    with pytest.raises(TunesmithError, match="is not fetched"):
        load_any(file(tmp_path, {**BASE, "chat_template_path": "Qwen/Qwen3-0.6B"}))


def test_a_patterns_name_of_layers(tmp_path: Path) -> None:
    assert made(tmp_path, **PEFT, lora_target_modules=r".*\.(q|v)_proj").adapter.targets == r"re:.*\.(q|v)_proj"
    assert made(tmp_path, **PEFT, lora_target_modules=["q_proj"]).adapter.targets == "q_proj"


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


# ---- a run ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_a_whole_run(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    rows = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "no"}]} for i in range(8)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = file(
        tmp_path,
        {
            "model_name_or_path": "model",
            "dataset_name": "rows.jsonl",
            "max_steps": 3,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-2,
            "warmup_steps": 1,
            "use_peft": True,
            "lora_r": 2,
            "bf16": False,
            "use_cpu": True,
            "output_dir": str(tmp_path / "run"),
        },
    )
    run.train(load_any(path).resolved, quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = [line["learning_rate"] for line in lines if line["event"] == "step"]
    assert rates == pytest.approx([1e-2, 1e-2, 5e-3])
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


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

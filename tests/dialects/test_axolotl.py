"""Axolotl's files: every key has its fate, and what is carried over changes the recipe as it would change their run."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from their_files import AXOLOTL as BASE
from their_files import AXOLOTL_CHAT as CHAT
from their_files import AXOLOTL_GRPO as GRPO
from their_files import AXOLOTL_HELD as HELD
from their_files import AXOLOTL_KTO as KTO
from their_files import AXOLOTL_PAIRS as PAIRS
from their_files import entry_of, file, mixtures, recipe, survives, with_key

from tunesmith.dialects import axolotl
from tunesmith.dialects.base import Fate
from tunesmith.dialects.read import load_any
from tunesmith.errors import TunesmithError
from tunesmith.notation import write

EXAMPLE = Path(__file__).resolve().parents[3] / "shared" / "examples" / "axolotl_lora_codellama.yml"

TABLES = {"lora_target_linear": None, "lora_target_modules": ["q_proj", "embed_tokens"]}
TWICE = {**GRPO, "trl": {**GRPO["trl"], "num_iterations": 2}}
RELORA = {"relora": True, "jagged_restart_steps": 50}
PRETRAIN = {"datasets": None, "pretraining_dataset": [{"path": "some/text"}], "max_steps": 5}

CHANGES: dict[str, tuple[Any, dict[str, Any]]] = {
    "base_model": ("other/model", {}),
    "revision_of_model": ("main", {}),
    "model_revision": ("main", {}),
    "model_type": ("LlamaForCausalLM", {}),
    "type_of_model": ("LlamaForCausalLM", {}),
    "tokenizer_type": ("LlamaTokenizer", {}),
    "load_in_8bit": (True, {}),
    "load_in_4bit": (True, {}),
    "bf16": (True, {}),
    "fp16": (True, {}),
    "bfloat16": (True, {}),
    "float16": (True, {}),
    "float32": (True, {}),
    "fp32": (True, {}),
    "special_tokens.bos_token": ("<s>", {}),
    "special_tokens.eos_token": ("</s>", {}),
    "special_tokens.unk_token": ("<unk>", {}),
    "special_tokens.additional_special_tokens": (["<a>"], {}),
    "tokens": (["<a>"], {}),
    "chat_template": ("chatml", CHAT),
    "chat_template_jinja": ("{{ messages[0]['content'] }}", CHAT),
    "datasets[].path": ("other/rows", {}),
    "datasets[].data_files": ("rows.jsonl", {"datasets": [{"path": "json", "type": "alpaca"}]}),
    "datasets[].split": ("validation", {}),
    "datasets[].train_on_split": ("validation", {}),
    "datasets[].name": ("subset", {}),
    "datasets[].type": ("alpaca:chat", {}),
    "datasets[].field": ("body", {"datasets": [{"path": "some/rows", "type": "completion"}]}),
    "datasets[].text_column": ("body", {"datasets": [{"path": "some/rows", "type": "pretrain"}]}),
    "datasets[].field_messages": ("turns", CHAT),
    "datasets[].field_tools": ("functions", CHAT),
    "datasets[].field_system": ("instructions", CHAT),
    "datasets[].field_chosen": ("good", PAIRS),
    "datasets[].field_rejected": ("bad", PAIRS),
    "datasets[].message_property_mappings": ({"role": "speaker", "content": "words"}, CHAT),
    "datasets[].message_field_role": ("speaker", CHAT),
    "datasets[].message_field_content": ("words", CHAT),
    "datasets[].message_field_training": ("flag", CHAT),
    "datasets[].message_field_training_detail": ("details", CHAT),
    "datasets[].field_thinking": ("thoughts", CHAT),
    "datasets[].roles": ({"user": ["asker"], "assistant": ["answerer"]}, CHAT),
    "datasets[].field_human": ("asker", CHAT),
    "datasets[].field_model": ("answerer", CHAT),
    "datasets[].roles_to_train": (["assistant", "user"], CHAT),
    "datasets[].train_on_eos": ("last", CHAT),
    "datasets[].shards": (4, {}),
    "datasets[].chat_template": ("chatml", CHAT),
    "datasets[].chat_template_jinja": ("{{ messages[0]['content'] }}", CHAT),
    "datasets[].conversation": ("chatml", {"datasets": [{"path": "some/rows", "type": "sharegpt"}]}),
    "pretraining_dataset[].path": ("other/text", PRETRAIN),
    "pretraining_dataset[].name": ("subset", PRETRAIN),
    "pretraining_dataset[].split": ("validation", PRETRAIN),
    "pretraining_dataset[].text_column": ("body", PRETRAIN),
    "test_datasets[].path": ("some/test", {}),
    "test_datasets[].split": ("test", {"test_datasets": [{"path": "some/test"}]}),
    "val_set_size": (0.1, {}),
    "sequence_len": (1024, {}),
    "excess_length_strategy": ("truncate", {}),
    "train_on_inputs": (True, {}),
    "shuffle_merged_datasets": (False, {}),
    "curriculum_sampling": (True, {}),
    "adapter": ("llama-adapter", {}),
    "peft_use_dora": (True, {}),
    "relora": (True, {"jagged_restart_steps": 50}),
    "lora_r": (16, {}),
    "lora_alpha": (32, {}),
    "lora_dropout": (0.1, {}),
    "lora_target_modules": (["q_proj"], {"lora_target_linear": False}),
    "lora_target_linear": (True, {"lora_target_linear": None, "lora_target_modules": ["q_proj"]}),
    "lora_modules_to_save": (["embed_tokens", "lm_head"], {}),
    "unfrozen_parameters": (["^lm_head.weight$"], {"adapter": None}),
    "peft_use_rslora": (True, {}),
    "peft_init_lora_weights": ("pissa", {}),
    "loraplus_lr_ratio": (16, {}),
    "loraplus_lr_embedding": (1e-5, {"loraplus_lr_ratio": 16, **TABLES}),
    "lora_model_dir": ("some/adapter", {}),
    "jagged_restart_steps": (70, RELORA),
    "relora_steps": (70, {"relora": True}),
    "jagged_restart_warmup_steps": (7, RELORA),
    "relora_warmup_steps": (7, RELORA),
    "relora_prune_method": ("reset", RELORA),
    "relora_prune_ratio": (0.5, RELORA),
    "micro_batch_size": (4, {}),
    "gradient_accumulation_steps": (4, {}),
    "batch_size": (16, {}),
    "sample_packing": (True, {}),
    "num_epochs": (5, {}),
    "max_steps": (50, {}),
    "learning_rate": (1e-3, {}),
    "lr_scheduler": ("linear", {}),
    "cosine_min_lr_ratio": (0.1, {}),
    "warmup_steps": (10, {}),
    "warmup_ratio": (0.2, {}),
    "optimizer": ("adamw_bnb_8bit", {}),
    "weight_decay": (0.1, {}),
    "adam_beta1": (0.8, {}),
    "adam_beta2": (0.95, {}),
    "adam_epsilon": (1e-6, {}),
    "max_grad_norm": (0.3, {}),
    "neftune_noise_alpha": (5, {}),
    "noisy_embedding_alpha": (5, {}),
    "gradient_checkpointing": (True, {}),
    "evals_per_epoch": (4, HELD),
    "eval_steps": (20, HELD),
    "eval_strategy": ("steps", HELD),
    "evaluation_strategy": ("steps", HELD),
    "saves_per_epoch": (2, {}),
    "save_steps": (20, {}),
    "save_strategy": ("steps", {}),
    "save_total_limit": (1, {}),
    "load_best_model_at_end": (True, {**HELD, "eval_steps": 10, "save_steps": 20}),
    "early_stopping_patience": (3, HELD),
    "loss_watchdog_threshold": (5.0, {}),
    "loss_watchdog_patience": (7, {"loss_watchdog_threshold": 5.0}),
    "seed": (7, {}),
    "output_dir": ("elsewhere", {}),
    "use_wandb": (True, {}),
    "use_trackio": (True, {}),
    "use_mlflow": (True, {}),
    "use_tensorboard": (True, {}),
    "wandb_mode": ("disabled", {"use_wandb": True}),
    "wandb_project": ("mine", {}),
    "wandb_entity": ("team", {"wandb_project": "mine"}),
    "trackio_project_name": ("mine", {}),
    "wandb_name": ("this", {}),
    "trackio_run_name": ("this", {}),
    "mlflow_run_name": ("this", {}),
    "rl": ("dpo", {"datasets": [{"path": "some/pairs", "type": "chat_template.argilla"}]}),
    "reward_model": (True, {"datasets": [{"path": "some/pairs", "type": "bradley_terry.chat_template"}]}),
    "rl_beta": (0.3, PAIRS),
    "dpo_beta": (0.3, PAIRS),
    "orpo_alpha": (0.3, {**PAIRS, "rl": "orpo"}),
    "rpo_alpha": (1.0, PAIRS),
    "cpo_alpha": (0.5, {**PAIRS, "rl": "simpo"}),
    "simpo_gamma": (1.0, {**PAIRS, "rl": "simpo"}),
    "dpo_label_smoothing": (0.1, PAIRS),
    "kto_desirable_weight": (0.5, KTO),
    "kto_undesirable_weight": (0.5, KTO),
    "center_rewards_coefficient": (
        0.01,
        {"reward_model": True, "datasets": [{"path": "some/pairs", "type": "bradley_terry.chat_template"}]},
    ),
    "precompute_ref_log_probs": (False, PAIRS),
    "trl.reward_funcs": (["number"], GRPO),
    "trl.loss_type": ("dr_grpo", GRPO),
    "trl.scale_rewards": (False, GRPO),
    "trl.beta": (0.1, GRPO),
    "trl.num_generations": (4, GRPO),
    "trl.max_completion_length": (64, GRPO),
    "trl.reward_weights": ([2.0], GRPO),
    "trl.temperature": (0.7, GRPO),
    "trl.top_p": (0.9, GRPO),
    "trl.top_k": (20, GRPO),
    "trl.num_iterations": (2, GRPO),
    "trl.epsilon": (0.1, TWICE),
    "trl.epsilon_high": (0.3, TWICE),
    "trl.mask_truncated_completions": (True, GRPO),
    "trl.importance_sampling_level": ("sequence", GRPO),
    "trl.use_bias_correction_kl": (False, {**GRPO, "trl": {**GRPO["trl"], "beta": 0.1}}),
}
"""A value of each carried key that says something else than the file without it, and what must stand beside it."""

NO_CHANGE = {
    "datasets[].train_on_eot": "it says the same as train_on_eos, or is refused",
    "gptq": "the files' own storage is taken in any case; without them it is refused as elsewhere",
    "plugins": "their kernels do what ours do",
    "datasets": "its entries are tested",
    "pretraining_dataset": "its entries are tested",
    "test_datasets": "its entries are tested",
}
ALONE = ("relora", "relora_steps", "lora_target_modules", "reward_model")
"""What must stand beside these is refused without them."""
OF_OTHER_LISTS = ("pretraining_dataset[].", "test_datasets[].")
"""Entries of these are read by the code that reads `datasets`."""


def beside(key: str) -> dict[str, Any]:
    """A file in which an entry of the key's list, or its block, means something."""
    if key.startswith("trl."):
        return {**BASE, **GRPO}
    return {**BASE, "test_datasets": [{"path": "some/test"}]} if key.startswith("test_datasets[].") else BASE


CARRIED = [key for key, entry in axolotl.KEYS.items() if entry.fate is Fate.CARRIED]
IDLE = [key for key, entry in axolotl.KEYS.items() if entry.fate is Fate.IDLE]
REFUSED = [key for key, entry in axolotl.KEYS.items() if entry.fate is Fate.REFUSED]


def test_every_carried_key_has_its_case() -> None:
    untested = [key for key in CARRIED if key not in CHANGES and key not in NO_CHANGE]
    assert [key for key in untested if not key.startswith(OF_OTHER_LISTS)] == []


@pytest.mark.parametrize("key", CHANGES)
def test_a_carried_key_changes_the_recipe(key: str, tmp_path: Path) -> None:
    value, beside = CHANGES[key]
    without = BASE if key in ALONE else {**BASE, **beside}
    changed = load_any(file(tmp_path, with_key({**BASE, **beside}, key, value), "with.yml"))
    assert changed.translation is not None
    assert entry_of(changed, key).fate is Fate.CARRIED
    assert changed.resolved.recipe.model_dump(mode="json") != recipe(file(tmp_path, without, "without.yml"))


@pytest.mark.parametrize("key", IDLE)
def test_an_idle_key_is_named_with_its_reason(key: str, tmp_path: Path) -> None:
    path = file(tmp_path, with_key(beside(key), key, "something"))
    read = load_any(path)
    assert read.translation is not None
    entry = entry_of(read, key)
    assert entry.fate is Fate.IDLE
    assert entry.text
    assert any(entry.key in line and entry.text in line for line in read.resolved.notes)
    with pytest.raises(TunesmithError, match="has no effect here"):
        load_any(path, strict=True)


@pytest.mark.parametrize("key", REFUSED)
def test_a_refused_key_says_what_to_do(key: str, tmp_path: Path) -> None:
    with pytest.raises(TunesmithError) as caught:
        load_any(file(tmp_path, with_key(beside(key), key, "something")))
    assert key.rpartition(".")[2] in str(caught.value)
    assert "to do" in str(caught.value)
    off = load_any(file(tmp_path, with_key(beside(key), key, False)))
    assert off.translation is not None
    assert any(entry.text == "off" for entry in off.translation.entries)


def test_empty_leftovers_are_named(tmp_path: Path) -> None:
    path = tmp_path / "their.yml"
    path.write_text(write(BASE) + "wandb_project:\nfsdp:\nresume_from_checkpoint:\n")
    translation = load_any(path).translation
    assert translation is not None
    assert {entry.key for entry in translation.entries if entry.text == "empty"} == {
        "wandb_project",
        "fsdp",
        "resume_from_checkpoint",
    }
    assert "  empty: wandb_project, fsdp, resume_from_checkpoint" in translation.summary


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("context_parapllel_size", "context_parallel_size"),
        ("lora_alpa", "lora_alpha"),
        ("gradient_acumulation_steps", "gradient_accumulation_steps"),
        ("datasets[0].tpye", "type"),
        ("special_tokens.bos_tokn", "bos_token"),
    ],
)
def test_a_typo_gets_a_suggestion(typed: str, meant: str, tmp_path: Path) -> None:
    with pytest.raises(TunesmithError) as caught:
        load_any(file(tmp_path, BASE), [f"{typed}=1"])
    assert f"did you mean: {meant}" in str(caught.value)
    assert "command line" in str(caught.value)


def test_all_faults_at_once_each_with_its_line(tmp_path: Path) -> None:
    path = file(tmp_path, {**BASE, "optimizer": "lion_8bit", "rl": "ppo", "lora_rr": 4, "lr_scheduler": "rex"})
    lines = {line.partition(":")[0]: number for number, line in enumerate(path.read_text().splitlines(), 1)}
    with pytest.raises(TunesmithError) as caught:
        load_any(path)
    for key in ("optimizer", "rl", "lora_rr", "lr_scheduler"):
        assert f"line {lines[key]}: {key}" in str(caught.value)


def test_overrides_in_their_words_and_in_ours(tmp_path: Path) -> None:
    path = file(tmp_path, {**BASE, "num_epochs": 4})
    for typed in ("datasets[0].path=mine", "datasets.0.path=mine", "datasets.path=mine", "data.train=mine"):
        made = load_any(path, ["base_model=my/model", typed, "max_steps=7", "adapter.r=4"]).resolved.recipe
        assert (made.model.name, made.data.train, made.train.steps, made.adapter.r) == ("my/model", "mine", 7, 4)
    assert load_any(path, ["--base_model=my/model"]).resolved.recipe.model.name == "my/model"


def test_an_override_that_names_no_entry_is_refused(tmp_path: Path) -> None:
    two = [{"path": "a/b", "type": "alpaca"}, {"path": "c/d", "type": "alpaca"}]
    with pytest.raises(TunesmithError, match="which entry is meant"):
        load_any(file(tmp_path, {**BASE, "datasets": two}), ["datasets.path=mine"])


MIXTURES = list(mixtures(BASE, CHANGES))
CASES = {key: with_key({**BASE, **beside}, key, value) for key, (value, beside) in CHANGES.items()}


@pytest.mark.parametrize("key", CASES)
def test_round_trip(key: str, tmp_path: Path) -> None:
    """What is converted, loaded and resolved again is the same recipe."""
    survives(file(tmp_path, CASES[key]))


@pytest.mark.parametrize("number", range(100))
def test_no_mixture_of_keys_makes_more_than_a_sentence(number: int, tmp_path: Path) -> None:
    with contextlib.suppress(TunesmithError):
        load_any(file(tmp_path, MIXTURES[number]))


@pytest.mark.skipif(not EXAMPLE.is_file(), reason="the examples are not beside the checkout")
def test_the_example_file_key_by_key() -> None:
    read = load_any(EXAMPLE)
    made = read.resolved.recipe
    assert read.translation is not None
    assert len(read.translation.entries) == 56
    assert not read.translation.of(Fate.REFUSED)
    assert (made.adapter.r, made.adapter.alpha, made.adapter.dropout, made.adapter.targets) == (
        32,
        16,
        0.05,
        "all-linear",
    )
    assert (made.model.storage, made.train.optimizer, made.train.schedule) == ("int8", "adamw-8bit", "cosine")
    assert (made.train.epochs, made.train.batch_tokens, made.train.learning_rate) == (4, 4 * 2 * 4096, 2e-4)
    assert (made.train.evaluate_every, made.train.save_every) == ("1/4 epochs", "1 epoch")
    assert made.model.special_tokens == {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}
    assert (made.data.held_out, made.data.max_length) == (0.05, 4096)


@pytest.mark.parametrize(
    ("key", "harmless", "harmful"),
    [
        ("dataset_exact_deduplication", False, True),
        ("pretraining_sample_concatenation", False, True),
        ("tokenizer_legacy", True, False),
        ("base_model_config", "some/model", "other/model"),
        ("tokenizer_config", "some/model", "other/tokenizer"),
    ],
)
def test_a_key_is_refused_where_it_would_change_something(
    key: str, harmless: Any, harmful: Any, tmp_path: Path
) -> None:
    assert recipe(file(tmp_path, {**BASE, key: harmless})) == recipe(file(tmp_path, BASE, "without.yml"))
    with pytest.raises(TunesmithError, match=key):
        load_any(file(tmp_path, {**BASE, key: harmful}))


def test_the_tool_is_known_by_what_is_typed_too(tmp_path: Path) -> None:
    path = file(tmp_path, {**BASE, "base_model": None})
    assert load_any(path, ["base_model=my/model"]).resolved.recipe.model.name == "my/model"
    with pytest.raises(TunesmithError, match="lora_r"):
        load_any(path)

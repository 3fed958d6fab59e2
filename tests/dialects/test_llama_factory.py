"""LLaMA-Factory's files: each key has its fate, and what is carried over changes the recipe as it would their run."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from their_files import FACTORY as BASE
from their_files import FACTORY_KTO as KTO
from their_files import FACTORY_ONWARDS as ONWARDS
from their_files import FACTORY_PAIRS as PAIRS
from their_files import factory_file as file
from their_files import recipe as plain
from their_files import refusal

from tunesmith.dialects import hf_arguments, llama_factory
from tunesmith.dialects.base import Fate
from tunesmith.dialects.read import load_any, recognise
from tunesmith.errors import TunesmithError
from tunesmith.recipe import load as load_recipe

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference" / "training-frameworks.md"

HELD = {"val_size": 0.1}
FREEZE = {"finetuning_type": "freeze"}
FOUR_BITS = {"quantization_bit": 4}

CHANGES: dict[str, tuple[Any, dict[str, Any]]] = {
    "model_name_or_path": ("other/model", {}),
    "model_revision": ("v2", {}),
    "adapter_name_or_path": ("some/adapter", {}),
    "adapter_folder": ("last", ONWARDS),
    "quantization_bit": (8, {}),
    "quantization_type": ("nf4", FOUR_BITS),
    "quantization_method": ("bnb", FOUR_BITS),
    "double_quantization": (False, FOUR_BITS),
    "pure_bf16": (True, {}),
    "bf16": (True, {}),
    "fp16": (True, {}),
    "add_tokens": ("<a>,<b>", {}),
    "add_special_tokens": ("<a>", {}),
    "resize_vocab": (True, {}),
    "template": ("vicuna", {}),
    "default_system": ("Be brief.", {}),
    "disable_gradient_checkpointing": (True, {}),
    "gradient_checkpointing": (True, {"disable_gradient_checkpointing": True}),
    "activation_checkpointing": (True, {"disable_gradient_checkpointing": True}),
    "dataset": ("more", {}),
    "dataset_dir": ("elsewhere", {}),
    "eval_dataset": ("more", {}),
    "val_size": (0.1, {}),
    "cutoff_len": (512, {}),
    "max_samples": (100, {}),
    "train_on_prompt": (True, {}),
    "disable_shuffling": (True, {}),
    "packing": (True, {}),
    "neat_packing": (True, {}),
    "finetuning_type": ("full", {}),
    "use_dora": (True, {}),
    "lora_rank": (16, {}),
    "lora_alpha": (64, {}),
    "lora_dropout": (0.1, {}),
    "lora_target": ("q_proj,v_proj", {}),
    "additional_target": ("embed_tokens,lm_head", {}),
    "use_rslora": (True, {}),
    "pissa_init": (True, {}),
    "pissa_iter": (4, {"pissa_init": True}),
    "loraplus_lr_ratio": (16, {}),
    "loraplus_lr_embedding": (1e-5, {"loraplus_lr_ratio": 16, "lora_target": "q_proj,embed_tokens"}),
    "freeze_trainable_layers": (3, FREEZE),
    "freeze_trainable_modules": ("mlp", FREEZE),
    "freeze_extra_modules": ("lm_head", FREEZE),
    "stage": ("pt", {"dataset": "text"}),
    "pref_beta": (0.3, PAIRS),
    "pref_ftx": (0.5, PAIRS),
    "pref_loss": ("simpo", PAIRS),
    "dpo_label_smoothing": (0.1, PAIRS),
    "simpo_gamma": (1.0, {**PAIRS, "pref_loss": "simpo"}),
    "kto_chosen_weight": (0.5, KTO),
    "kto_rejected_weight": (0.5, KTO),
    "early_stopping_steps": (3, {**HELD, "eval_strategy": "steps"}),
    "output_dir": ("elsewhere", {}),
    "per_device_train_batch_size": (2, {}),
    "gradient_accumulation_steps": (4, {}),
    "num_train_epochs": (5, {}),
    "max_steps": (50, {}),
    "learning_rate": (1e-4, {}),
    "lr_scheduler_type": ("cosine", {}),
    "lr_scheduler_kwargs": ({"min_lr_rate": 0.1}, {"lr_scheduler_type": "cosine_with_min_lr"}),
    "warmup_steps": (10, {}),
    "warmup_ratio": (0.1, {}),
    "optim": ("adamw_bnb_8bit", {}),
    "weight_decay": (0.1, {}),
    "adam_beta1": (0.8, {}),
    "adam_beta2": (0.95, {}),
    "adam_epsilon": (1e-6, {}),
    "max_grad_norm": (0.3, {}),
    "neftune_noise_alpha": (5, {}),
    "eval_strategy": ("epoch", HELD),
    "evaluation_strategy": ("epoch", HELD),
    "eval_steps": (20, {**HELD, "eval_strategy": "steps"}),
    "save_strategy": ("epoch", {}),
    "save_steps": (20, {}),
    "save_total_limit": (1, {}),
    "load_best_model_at_end": (True, {}),
    "seed": (7, {}),
    "train_sampling_strategy": ("sequential", {}),
    "use_cpu": (True, {}),
    "no_cuda": (True, {}),
    "use_mps_device": (True, {}),
    "report_to": (["wandb", "tensorboard"], {}),
    "run_name": ("this", {}),
    "project": ("mine", {"report_to": "trackio"}),
}
"""A value of each carried key that says something else than the file without it, and what must stand beside it."""

NO_CHANGE = {
    "quantization_method": "one method is carried over",
    "quantization_type": "one kind of numbers is carried over",
    "do_train": "to train is what the file is read for",
    "do_eval": "held-out rows are evaluated at the end in any case",
    "mask_history": "rows of one answer have no history; others are refused",
    "mix_strategy": "concat is what is done in any case; the others are refused",
    "pissa_convert": "an adapter's file holds a plain LoRA in any case",
    "ref_model": "the reference is what training begins with; others are refused",
    "ref_model_adapters": "the reference is what training begins with; others are refused",
}
BESIDE: dict[str, dict[str, Any]] = {
    "do_eval": HELD,
    "mix_strategy": {"dataset": "rows,more"},
    "pissa_convert": {"pissa_init": True},
    "ref_model": PAIRS,
    "ref_model_adapters": {**PAIRS, **ONWARDS},
}
"""What must stand beside a key of `NO_CHANGE`."""
SAME = {
    **{"do_train": True, "do_eval": True, "mask_history": True, "mix_strategy": "concat", "pissa_convert": True},
    **{"ref_model": "some/model", "ref_model_adapters": "some/adapter"},
}
ALONE = ("stage", "lr_scheduler_kwargs")
"""What must stand beside these is refused without them."""


CARRIED = [key for key, entry in llama_factory.KEYS.items() if entry.fate is Fate.CARRIED]
IDLE = [key for key, entry in llama_factory.KEYS.items() if entry.fate is Fate.IDLE]
REFUSED = [key for key, entry in llama_factory.KEYS.items() if entry.fate is Fate.REFUSED]


# ---- keys ---------------------------------------------------------------------------------------------------------


def test_every_carried_key_has_its_case() -> None:
    assert [key for key in CARRIED if key not in CHANGES and key not in NO_CHANGE] == []


@pytest.mark.parametrize("key", [key for key in CHANGES if key not in NO_CHANGE])
def test_a_carried_key_changes_the_recipe(key: str, tmp_path: Path) -> None:
    value, beside = CHANGES[key]
    without = BASE if key in ALONE else {**BASE, **beside}
    changed = load_any(file(tmp_path, {**BASE, **beside, key: value}, "with.yml"))
    assert changed.translation is not None
    entries = {entry.key: entry for entry in changed.translation.entries}
    assert entries[key].fate is Fate.CARRIED
    assert changed.resolved.recipe.model_dump(mode="json") != plain(file(tmp_path, without, "without.yml"))


@pytest.mark.parametrize("key", SAME)
def test_a_key_that_says_what_is_done_anyway(key: str, tmp_path: Path) -> None:
    beside = {**BASE, **BESIDE.get(key, {})}
    changed = load_any(file(tmp_path, {**beside, key: SAME[key]}))
    assert changed.translation is not None
    assert {entry.key: entry.fate for entry in changed.translation.entries}[key] is Fate.CARRIED
    assert changed.resolved.recipe.model_dump(mode="json") == plain(file(tmp_path, beside))


@pytest.mark.parametrize("key", IDLE)
def test_an_idle_key_is_named_with_its_reason(key: str, tmp_path: Path) -> None:
    path = file(tmp_path, {"do_train": True, **BASE, key: "yes"})
    read = load_any(path)
    assert read.translation is not None
    entry = {entry.key: entry for entry in read.translation.entries}[key]
    assert entry.fate is Fate.IDLE
    assert entry.text
    assert any(key in line and entry.text in line for line in read.resolved.notes)
    with pytest.raises(TunesmithError, match="has no effect here"):
        load_any(path, strict=True)


@pytest.mark.parametrize("key", REFUSED)
def test_a_refused_key_says_what_to_do(key: str, tmp_path: Path) -> None:
    said = refusal(file(tmp_path, {**BASE, key: 1}))
    assert key in said
    assert "to do" in said
    off = load_any(file(tmp_path, {**BASE, key: False})).translation
    assert off is not None
    assert any(entry.key == key and entry.text == "off" for entry in off.entries)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("lora_rnak", "lora_rank"),
        ("cutoff_length", "cutoff_len"),
        ("per_device_train_batchsize", "per_device_train_batch_size"),
        ("quantisation_bit", "quantization_bit"),
    ],
)
def test_a_typo_gets_a_suggestion(typed: str, meant: str, tmp_path: Path) -> None:
    said = refusal(file(tmp_path, BASE), (f"{typed}=1",))
    assert f"did you mean: {meant}" in said
    assert "command line" in said


CASES = {key: {**BASE, **beside, key: value} for key, (value, beside) in CHANGES.items()}


@pytest.mark.parametrize("key", CASES)
def test_round_trip(key: str, tmp_path: Path) -> None:
    """What is converted, loaded and resolved again is the same recipe."""
    first = load_any(file(tmp_path, CASES[key])).resolved
    (tmp_path / "ours.yaml").write_text(first.given)
    assert load_recipe(tmp_path / "ours.yaml").recipe.model_dump() == first.recipe.model_dump()


@pytest.mark.skipif(not REFERENCE.is_file(), reason="the reference is not beside the checkout")
def test_every_key_of_the_reference_has_a_fate() -> None:
    text = REFERENCE.read_text().partition("### 3.4")[2].partition("### 3.5")[0]
    counted = set(re.findall(r"\b([a-z][a-z0-9_]+) \d+\b", text))
    assert len(counted) > 50
    assert counted - set(llama_factory.KEYS) == set()


def test_every_argument_of_transformers_has_a_fate() -> None:
    from transformers import Seq2SeqTrainingArguments

    names = {field.name for field in dataclasses.fields(Seq2SeqTrainingArguments)}
    assert names - set(hf_arguments.KEYS) == set()


def test_all_faults_at_once_each_with_its_line(tmp_path: Path) -> None:
    wrong = {"optim": "lion", "lora_rr": 4, "lr_scheduler_type": "rex", "template": "belle", "dataset": "rwos"}
    path = file(tmp_path, {**BASE, **wrong})
    lines = {line.partition(":")[0]: number for number, line in enumerate(path.read_text().splitlines(), 1)}
    said = refusal(path)
    for key in wrong:
        assert f"line {lines[key]}: {key}" in said


# ---- whose file it is ---------------------------------------------------------------------------------------------


_MARKS = ("dataset", "lora_rank", "lora_target", "quantization_bit")


@pytest.mark.parametrize(
    ("values", "whose"),
    [
        ({"model_name_or_path": "a/b", "stage": "sft"}, "llama-factory"),
        ({"model_name_or_path": "a/b", "template": "qwen"}, "llama-factory"),
        ({"model_name_or_path": "a/b", "dataset": "rows", "do_train": True}, "llama-factory"),
        *(({"model_name_or_path": "a/b", key: 8}, "llama-factory") for key in _MARKS),
        *(({"model_name_or_path": "a/b", "dataset_name": "c/d", key: 8}, "trl") for key in _MARKS),
        ({"model_name_or_path": "a/b", "dataset_name": "c/d", "cutoff_len": 8}, "llama-factory"),
        ({"model_name_or_path": "a/b", "lora_r": 8}, "trl"),
        ({"stage": "sft", "dataset": "rows"}, "llama-factory"),
        ({"model": "a/b", "train_dataset": "rows.yaml"}, "llama-factory"),
        ({"base_model": "a/b"}, "axolotl"),
        ({"model": {"name": "a/b"}, "data": {}}, None),
        ({"model": "a/b"}, None),
    ],
)
def test_whose_file_it_is(values: dict[str, Any], whose: str | None) -> None:
    assert recognise(values, "here") == whose


def test_the_rewrite_is_refused_in_one_sentence(tmp_path: Path) -> None:
    rewritten = {
        **{"model": "Qwen/Qwen3-0.6B", "train_dataset": "rows.yaml", "output_dir": "out", "micro_batch_size": 1},
        **{"peft_config": {"name": "lora", "r": 16}, "quant_config": {"name": "bnb"}, "max_steps": 10},
    }
    said = refusal(file(tmp_path, rewritten))
    assert "rewrite (v1)" in said
    assert "model_name_or_path" in said
    assert "problems" not in said
    assert "sample_bakend" in refusal(file(tmp_path, {**rewritten, "sample_bakend": "hf"}))
    assert "write dataset" in refusal(file(tmp_path, {**BASE, "train_dataset": "rows.yaml"}))


@pytest.mark.parametrize(
    ("values", "key", "fix"),
    [
        ({"do_train": False}, "do_train", "tunesmith evaluate"),
        ({"do_predict": True}, "do_predict", "tunesmith generate"),
        ({"do_eval": True}, "do_eval", "val_size"),
        ({"export_dir": "out", "dataset": None, "stage": None, "template": "qwen"}, "export_dir", "tunesmith merge"),
        ({"task": "mmlu_test", "stage": None, "template": "fewshot", "n_shot": 5}, "task", "tunesmith evaluate"),
        ({"do_predict": True, "dataset": None, "eval_dataset": "rows,more"}, "do_predict", "tunesmith evaluate"),
        ({"dataset": None}, "dataset", "tunesmith chat"),
        ({"stage": "ppo"}, "stage", "objective.kind policy"),
        ({"finetuning_type": "oft"}, "finetuning_type", "lora, freeze, full"),
        ({"quantization_bit": 4, "finetuning_type": "full"}, "quantization_bit", "lora"),
        ({"quantization_bit": 4, "quantization_method": "hqq"}, "quantization_method", "bnb"),
        ({"quantization_bit": 3}, "quantization_bit", "4 or 8"),
        ({"bf16": True, "fp16": True}, "fp16", "take one"),
        ({"template": "belle"}, "template", "model.template=FILE"),
        ({"template": "alpca"}, "template", "alpaca"),
        ({"template": "qwen3", "enable_thinking": False}, "enable_thinking", "leave it out"),
        ({"mask_history": True, "dataset": "chat"}, "mask_history", "learn"),
        ({"mask_history": True, "train_on_prompt": True}, "mask_history", "take one"),
        ({"mix_strategy": "interleave_under", "dataset": "rows,more"}, "mix_strategy", "weight"),
        ({"default_system": "Be brief.", "dataset": "chat"}, "default_system", "write the system turn"),
        ({"val_size": 1.5}, "val_size", "a share"),
        ({"val_size": 0.1, "eval_dataset": "more"}, "val_size", "take one"),
        ({"eval_dataset": "rows,more"}, "eval_dataset", "one file"),
        ({"eval_dataset": "chat"}, "eval_dataset", "format"),
        ({**PAIRS, "pref_loss": "kto_pair"}, "pref_loss", "sigmoid"),
        ({**PAIRS, "pref_loss": "ipo", "dpo_label_smoothing": 0.1}, "dpo_label_smoothing", "sigmoid"),
        ({**PAIRS, "ref_model": "other/model"}, "ref_model", "leave it out"),
        ({**PAIRS, **ONWARDS, "ref_model": "some/model"}, "ref_model", "leave ref_model out"),
        ({**KTO, "pref_ftx": 0.5}, "pref_ftx", "leave it out"),
        ({"adapter_name_or_path": "a,b"}, "adapter_name_or_path", "tunesmith merge"),
        ({**ONWARDS, "create_new_adapter": True}, "create_new_adapter", "tunesmith merge"),
        ({**ONWARDS, "finetuning_type": "full"}, "adapter_name_or_path", "lora"),
        ({**FREEZE, "freeze_trainable_layers": -2}, "freeze_trainable_layers", "positive"),
        ({**FREEZE, "freeze_trainable_modules": "input_layernorm"}, "freeze_trainable_modules", "mlp"),
        ({"pissa_init": True, "use_dora": True}, "pissa_init", "take one"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type", "min_lr_rate"),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2}}, "lr_scheduler_kwargs", "power: 1"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor", "leave it out"),
        ({"report_to": "all"}, "report_to", "wandb"),
        ({"load_best_model_at_end": True, "metric_for_best_model": "accuracy"}, "metric_for_best_model", "loss"),
        ({"load_best_model_at_end": True, "eval_delay": 5}, "eval_delay", "take it out"),
    ],
)  # fmt: skip
def test_what_is_refused_by_its_value(values: dict[str, Any], key: str, fix: str, tmp_path: Path) -> None:
    said = refusal(file(tmp_path, {**BASE, **values}))
    assert "problems" not in said
    assert key in said
    assert fix in said

"""LLaMA-Factory's files: each key has its fate, and what is carried over changes the recipe as it would their run."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))
from tiny_tokenizers import byte_level

from tunesmith.data.prepare import Prepared, prepare
from tunesmith.data.templates import install
from tunesmith.data.types import Conversation
from tunesmith.dialects import hf_arguments, llama_factory
from tunesmith.dialects.base import Fate
from tunesmith.dialects.llama_factory.templates import WORDED
from tunesmith.dialects.read import load_any, recognise
from tunesmith.errors import TunesmithError
from tunesmith.notation import write
from tunesmith.recipe import load as load_recipe

SHARED = Path(__file__).resolve().parents[3] / "shared"
REFERENCE = SHARED / "reference" / "training-frameworks.md"
REAL = {
    "alpaca_en_demo": "instruct/alpaca_en.json",
    "identity": "instruct/identity.json",
    "dpo_en_demo": "preference/dpo_en_sharegpt.json",
    "kto_en_demo": "preference/kto_en.json",
    "glaive_toolcall_en_demo": "tools/glaive_toolcall_en.json",
}
needs_real = pytest.mark.skipif(
    not all((SHARED / "data" / name).is_file() for name in REAL.values()), reason="the data are not beside the checkout"
)

OPENAI_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
PAIR_COLUMNS = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
ALPACA_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output"}
INFO: dict[str, Any] = {
    "rows": {"file_name": "rows.json"},
    "more": {"file_name": "more.json"},
    "hub": {"hf_hub_url": "owner/rows", "ms_hub_url": "other/rows", "split": "train_sft", "subset": "en"},
    "chat": {"hf_hub_url": "owner/chat", "formatting": "sharegpt"},
    "text": {"file_name": "text.json", "columns": {"prompt": "text"}},
    "pairs": {"hf_hub_url": "owner/pairs", "formatting": "sharegpt", "ranking": True, "columns": PAIR_COLUMNS},
    "judged": {"hf_hub_url": "owner/judged", "formatting": "sharegpt", "columns": {"kto_tag": "label"}},
}
ROWS = [{"instruction": "Add.", "input": "1 2", "output": "3"}, {"instruction": "Hi.", "input": "", "output": "Ho."}]

BASE: dict[str, Any] = {"model_name_or_path": "some/model", "stage": "sft", "dataset": "rows"}
HELD = {"val_size": 0.1}
PAIRS = {"stage": "dpo", "dataset": "pairs"}
KTO = {"stage": "kto", "dataset": "judged"}
FREEZE = {"finetuning_type": "freeze"}
FOUR_BITS = {"quantization_bit": 4}
ONWARDS = {"adapter_name_or_path": "some/adapter"}

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
    "loraplus_lr_embedding": (1e-5, {"loraplus_lr_ratio": 16}),
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


def home(folder: Path, **more: Any) -> Path:
    """A folder of data as LLaMA-Factory has it, beside the file."""
    (folder / "some" / "adapter" / "last").mkdir(parents=True, exist_ok=True)
    for name in ("data", "elsewhere"):
        data = folder / name
        data.mkdir(exist_ok=True)
        (data / "dataset_info.json").write_text(json.dumps(INFO | more))
        for rows in ("rows.json", "more.json"):
            (data / rows).write_text(json.dumps(ROWS))
        (data / "text.json").write_text(json.dumps([{"text": "The quick brown fox."}]))
    return folder


def file(folder: Path, values: dict[str, Any], name: str = "their.yml", **more: Any) -> Path:
    path = home(folder, **more) / name
    path.write_text(write({key: value for key, value in values.items() if value is not None}))
    return path


def plain(path: Path) -> dict[str, Any]:
    return load_any(path).resolved.recipe.model_dump(mode="json")


def refusal(path: Path, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(TunesmithError) as caught:
        load_any(path, overrides)
    return str(caught.value)


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


@pytest.mark.parametrize(
    ("values", "whose"),
    [
        ({"model_name_or_path": "a/b", "stage": "sft"}, "llama-factory"),
        ({"model_name_or_path": "a/b", "template": "qwen"}, "llama-factory"),
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


# ---- what keys come to --------------------------------------------------------------------------------------------


def settings(folder: Path, **values: Any) -> Any:
    return load_any(file(folder, {**BASE, **values})).resolved.recipe


def test_its_defaults_are_put_where_they_differ(tmp_path: Path) -> None:
    made = settings(tmp_path)
    train, adapter = made.train, made.adapter
    assert (train.epochs, train.batch_size, train.learning_rate, train.schedule) == (3, 8, 5e-5, "linear")
    assert (train.warmup, train.seed, train.save_every, train.publish) == (0, 42, 500, "last")
    assert (train.recompute, train.keep_checkpoints) == (True, hf_arguments.ALL_CHECKPOINTS)
    assert (adapter.method, adapter.r, adapter.alpha, adapter.targets) == ("lora", 8, 16, "all-linear")
    assert (made.data.max_length, made.data.overlong) == (2048, "truncate")
    assert settings(tmp_path, lora_rank=32).adapter.alpha == 64


def test_stages(tmp_path: Path) -> None:
    text = settings(tmp_path, stage="pt", dataset="text", per_device_train_batch_size=2, cutoff_len=64)
    assert (text.data.format, text.data.overlong, text.train.batch_tokens) == ("text", "split", 2 * 64)
    text = settings(tmp_path, stage="pt", dataset="text", packing=False)
    assert (text.data.overlong, text.train.batch_size) == ("truncate", 8)
    assert settings(tmp_path, stage="rm", dataset="pairs").objective.kind == "reward"
    pairs = settings(tmp_path, **PAIRS, pref_loss="orpo", pref_ftx=0.5, lora_dropout=0.1)
    assert (pairs.objective.loss, pairs.objective.nll_weight, pairs.adapter.dropout) == ("orpo", 1.5, 0)
    assert settings(tmp_path, **PAIRS, pref_loss="ipo").objective.loss == "ipo_mean"
    judged = settings(tmp_path, **KTO, kto_chosen_weight=2)
    assert (judged.objective.loss, judged.objective.desirable_weight, judged.data.format) == ("kto", 2, "unpaired")


def test_freeze_and_full(tmp_path: Path) -> None:
    frozen = settings(tmp_path, finetuning_type="freeze")
    assert (frozen.adapter.method, frozen.adapter.last_blocks, frozen.adapter.targets) == ("full", 2, "all-linear")
    frozen = settings(tmp_path, finetuning_type="freeze", freeze_trainable_modules="self_attn,mlp")
    assert frozen.adapter.targets == ("attention", "mlp")
    frozen = settings(tmp_path, finetuning_type="freeze", freeze_extra_modules="embed_tokens,norm")
    assert frozen.adapter.train_in_full == ("rest", "embed_tokens", "norm")
    assert settings(tmp_path, finetuning_type="full").adapter.last_blocks is None


def test_how_weights_are_held(tmp_path: Path) -> None:
    for bits, double, storage in ((4, True, "nf4-double"), (4, False, "nf4"), (8, True, "int8")):
        made = settings(tmp_path, quantization_bit=bits, double_quantization=double)
        assert made.model.storage == storage


def test_how_often(tmp_path: Path) -> None:
    for beside, evaluate, save in (
        ({}, "3 epochs", 500),
        ({"eval_strategy": "steps"}, 500, 500),
        ({"eval_strategy": "steps", "logging_steps": 20}, 20, 500),
        ({"eval_strategy": "steps", "eval_steps": 0.1, "save_steps": 0.5}, "0.3 epochs", "1.5 epochs"),
        ({"eval_strategy": "steps", "eval_steps": 0.1, "max_steps": 50, "save_strategy": "no"}, 5, 50),
        ({"eval_strategy": "epoch", "save_strategy": "epoch"}, "1 epoch", "1 epoch"),
    ):
        train = settings(tmp_path, **HELD, **beside).train
        assert (train.evaluate_every, train.save_every) == (evaluate, save)


def test_rates(tmp_path: Path) -> None:
    for name, more, schedule, floor in (
        ("cosine_with_restarts", {}, "cosine", 0),
        ("cosine_with_min_lr", {"min_lr": 1e-6}, "cosine", 1e-6),
        ("cosine_with_min_lr", '{"min_lr_rate": 0.1}', "cosine", 5e-6),
        ("polynomial", {"power": 1.0}, "linear", 1e-7),
        ("constant_with_warmup", {}, "constant", 0),
    ):
        train = settings(tmp_path, lr_scheduler_type=name, lr_scheduler_kwargs=more, warmup_ratio=0.1).train
        assert (train.schedule, train.warmup) == (schedule, 0.1)
        assert train.min_learning_rate == pytest.approx(floor)
    assert settings(tmp_path, lr_scheduler_type="constant", warmup_ratio=0.1).train.warmup == 0
    assert settings(tmp_path, warmup_ratio=0.1, warmup_steps=5).train.warmup == 5


def test_an_adapter_to_go_on_from_brings_its_own_settings(tmp_path: Path) -> None:
    read = load_any(file(tmp_path, {**BASE, **PAIRS, **ONWARDS, "lora_rank": 64}))
    assert read.resolved.recipe.explicit().get("adapter") is None
    assert any("the reference is the adapter" in note for note in read.resolved.notes)
    same = {"ref_model": "some/model", "ref_model_adapters": "some/adapter"}
    notes = load_any(file(tmp_path, {**BASE, **PAIRS, **ONWARDS, **same})).resolved.notes
    assert not any("reference" in note for note in notes)


# ---- dataset_info.json --------------------------------------------------------------------------------------------


def test_several_data_sets_each_with_its_own_reading(tmp_path: Path) -> None:
    data = settings(tmp_path, dataset="rows, chat,hub", max_samples=7).data
    assert [source.path for source in data.train] == [str(tmp_path / "data" / "rows.json"), "owner/chat", "owner/rows"]
    assert [isinstance(source.format, str) for source in data.train] == [False, True, False]
    assert (data.train[2].split, data.train[2].subset, data.limit) == ("train_sft", "en", 7)


def test_tags_and_columns(tmp_path: Path) -> None:
    tags = {"role_tag": "speaker", "content_tag": "words", "user_tag": "asker", "assistant_tag": "gpt"}
    entry = {
        **{"hf_hub_url": "owner/rows", "formatting": "sharegpt", "tags": tags},
        **{"columns": {"messages": "turns", "system": "rules", "tools": "functions"}},
    }
    data = load_any(file(tmp_path, {**BASE, "dataset": "own"}, own=entry)).resolved.recipe.data
    assert data.message_keys == {"role": "speaker", "content": "words"}
    assert data.roles == {"asker": "user"}
    assert data.columns == {"messages": "turns", "system": "rules", "tools": "functions"}


def test_held_out_rows_of_their_own(tmp_path: Path) -> None:
    more = str(tmp_path / "data" / "more.json")
    assert settings(tmp_path, eval_dataset="more").data.held_out == more
    data = settings(tmp_path, dataset="rows,chat", eval_dataset="more").data
    assert (data.held_out, data.of_other_files.format) == (more, data.sources[0].format)
    assert data.sources[1].format == "messages"
    assert settings(tmp_path, val_size=5).data.held_out == 5


def test_a_file_in_place_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(json.dumps(ROWS))
    path = home(tmp_path) / "their.yml"
    path.write_text(write({**BASE, "dataset": "mine.json"}))
    assert load_any(path).resolved.recipe.data.train == str(tmp_path / "mine.json")
    assert settings(tmp_path, dataset_dir="ONLINE", dataset="owner/rows").data.train == "owner/rows"


def test_the_file_of_data_sets_is_found_where_theirs_looks_and_beside_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file(tmp_path, BASE)
    (tmp_path / "here" / "data").mkdir(parents=True)
    (tmp_path / "here" / "data" / "dataset_info.json").write_text(json.dumps({"rows": {"hf_hub_url": "from/here"}}))
    assert load_any(path).resolved.recipe.data.train == str(tmp_path / "data" / "rows.json")
    monkeypatch.chdir(tmp_path / "here")
    assert load_any(path).resolved.recipe.data.train == "from/here"


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        ({"file_name": "gone.json"}, "there is no"),
        ({"file_name": "rwos.json"}, "did you mean: rows.json"),
        ({"ms_hub_url": "a/b"}, "download it"),
        ({"script_url": "a"}, "download it"),
        ({"formatting": "sharegtp", "file_name": "rows.json"}, "alpaca, sharegpt or openai"),
        ({"file_name": "rows.json", "num_samples": 5}, "max_samples"),
        ({"hf_hub_url": "a/b", "folder": "x"}, "download that folder"),
        ({"file_name": "rows.json", "split": "test"}, "a file has no split"),
        ({"file_name": "rows.json", "columns": {"prmpt": "q"}}, "did you mean prompt"),
        ({"file_name": "rows.json", "colums": {}}, "did you mean columns"),
        ({"file_name": "rows.json", "formatting": "sharegpt", "columns": {"images": "images"}}, "train on text"),
        ({"file_name": "rows.json", "ranking": True}, "stage dpo or rm"),
        ({"file_name": "rows.json", "columns": {**ALPACA_COLUMNS, "kto_tag": "ok"}}, "stage kto"),
        ({"file_name": "rows.json", "columns": {**ALPACA_COLUMNS, "tools": "tools"}}, "sharegpt"),
        ({"file_name": "rows.json", "columns": {"prompt": "instruction"}}, "names no response"),
        ({"hf_hub_url": "a/b", "columns": {**ALPACA_COLUMNS, "history": "history"}}, "sharegpt"),
        ({"file_name": "rows.json", "formatting": "sharegpt", "tags": {"function_tag": "call"}}, "function_call"),
        ({}, "file_name or hf_hub_url"),
        ("rows.json", '{"file_name": …}'),
    ],
)  # fmt: skip
def test_an_entry_that_cannot_be_read_is_named(entry: Any, what: str, tmp_path: Path) -> None:
    said = refusal(file(tmp_path, {**BASE, "dataset": "own"}, own=entry))
    assert f"{tmp_path / 'data' / 'dataset_info.json'}, own" in said
    assert what in said


def test_names_that_are_not_there(tmp_path: Path) -> None:
    said = refusal(file(tmp_path, {**BASE, "dataset": "rosw"}))
    assert "did you mean rows?" in said
    assert "dataset_info.json" in said
    assert "line 3" in said
    path = tmp_path / "alone" / "their.yml"
    path.parent.mkdir()
    path.write_text(write(BASE))
    assert "there is no dataset_info.json" in refusal(path)
    assert "dataset_dir=" in refusal(path)
    (path.parent / "data").mkdir()
    (path.parent / "data" / "dataset_info.json").write_text('{"rows": {"file_name": "rows.json",}}')
    assert "line 1, column 36: this is not JSON" in refusal(path)


# ---- rows ---------------------------------------------------------------------------------------------------------


def prepared(
    folder: Path, rows: list[dict[str, Any]] | None, entry: dict[str, Any], **values: Any
) -> tuple[Prepared, Any]:
    """The rows of one data set as the model would see them."""
    own: dict[str, Any] = {"file_name": "own.json", **entry}
    if rows is not None:
        (home(folder) / "data" / "own.json").write_text(json.dumps(rows))
    recipe = load_any(file(folder, {**BASE, "dataset": "own", **values}, own=own)).resolved.recipe
    tokenizer = byte_level()
    install(recipe.model.template or "chatml", tokenizer)
    return prepare(recipe.data, tokenizer, takes=recipe.takes, seed=0), tokenizer


def shown(made: tuple[Prepared, Any], number: int = 0) -> tuple[str, str]:
    """A row's whole text, and what is learned of it."""
    example, tokenizer = made[0].train[number], made[1]
    learned = [token for token, weight in zip(example.token_ids, example.loss_weights, strict=True) if weight]
    return tokenizer.decode(example.token_ids), tokenizer.decode(learned)


CURIOUS = WORDED["vicuna"].opening
OPENING = WORDED["alpaca"].opening
ADD = [{"instruction": "Add.", "input": "1 2", "output": "3", "system": "Be brief."}]
WITH_SYSTEM = {"columns": {**ALPACA_COLUMNS, "system": "system"}}
ENDED = "3<|im_end|>"


@pytest.mark.parametrize(
    ("values", "entry", "text", "learned"),
    [
        ({}, {}, "<|im_start|>user\nAdd.\n1 2<|im_end|>\n<|im_start|>assistant\n3<|im_end|>\n", ENDED),
        ({}, {"columns": {"prompt": "instruction", "response": "output"}},
         "<|im_start|>user\nAdd.<|im_end|>\n<|im_start|>assistant\n3<|im_end|>\n", ENDED),
        ({}, WITH_SYSTEM, "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nAdd.\n1 2<|im_end|>\n"
         "<|im_start|>assistant\n3<|im_end|>\n", ENDED),
        ({"default_system": "Say {{it}}."}, {}, "<|im_start|>system\nSay {{it}}.<|im_end|>\n<|im_start|>user\nAdd.\n1 2"
         "<|im_end|>\n<|im_start|>assistant\n3<|im_end|>\n", ENDED),
        ({"template": "alpaca"}, {}, f"{OPENING}### Instruction:\nAdd.\n1 2\n\n### Response:\n3</s>", "3</s>"),
        ({"template": "vicuna"}, {}, f"{CURIOUS}USER: Add.\n1 2 ASSISTANT:3</s>", "3</s>"),
        ({"template": "vicuna"}, WITH_SYSTEM, "Be brief.USER: Add.\n1 2 ASSISTANT:3</s>", "3</s>"),
        ({"template": "vicuna", "default_system": "It's so."}, {}, "It's so.USER: Add.\n1 2 ASSISTANT:3</s>", "3</s>"),
        ({"template": "zephyr"}, WITH_SYSTEM,
         "<|system|>\nBe brief.</s><|user|>\nAdd.\n1 2</s><|assistant|>\n3</s>", "3</s>"),
        ({"template": "default"}, WITH_SYSTEM,
         "System: Be brief.</s>\nHuman: Add.\n1 2</s>\nAssistant:3</s>\n", "3</s>"),
        ({"template": "llama2"}, WITH_SYSTEM,
         "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nAdd.\n1 2 [/INST]3</s>", "3</s>"),
        ({"template": "empty"}, {}, "Add.\n1 23</s>", "3"),
        ({"template": "chatml_de"}, {}, "<|im_start|>system\nDu bist ein freundlicher und hilfsbereiter KI-Assistent."
         "<|im_end|>\n<|im_start|>user\nAdd.\n1 2<|im_end|>\n<|im_start|>assistant\n3<|im_end|>\n", ENDED),
    ],
)  # fmt: skip
def test_words(values: dict[str, Any], entry: dict[str, Any], text: str, learned: str, tmp_path: Path) -> None:
    whole, wanted = shown(prepared(tmp_path, ADD, entry, **values))
    assert (whole.removeprefix("<s>"), wanted) == (text.removeprefix("<s>"), learned)


def test_the_whole_row_is_learned_where_the_prompt_is(tmp_path: Path) -> None:
    text, learned = shown(prepared(tmp_path, ADD, {}, train_on_prompt=True))
    assert text.endswith(learned)
    assert "Add." in learned


def test_turns_of_several_questions_in_every_template(tmp_path: Path) -> None:
    rows = [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}] * 2}]
    for name, words in WORDED.items():
        text, learned = shown(prepared(tmp_path, rows, {"formatting": "sharegpt"}, template=name))
        one = words.user.replace("{content}", "a") + words.opens + words.answer.replace("{content}", "b")
        one = one.replace("{eos}", "</s>").replace("{bos}", "<s>").rstrip("\n")  # ours leaves out what follows the last
        assert text.rstrip("\n").endswith(one) or name == "empty"
        assert learned.count("b") == 2
        assert "a" not in learned.replace("assistant", "")


def test_columns_with_names_that_jinja_cannot_say(tmp_path: Path) -> None:
    entry = {"columns": {"prompt": "the question", "response": "the-answer"}}
    text, _ = shown(prepared(tmp_path, [{"the question": "Why?", "the-answer": "So."}], entry))
    assert "user\nWhy?<" in text
    assert "assistant\nSo.<" in text


def test_earlier_turns(tmp_path: Path) -> None:
    entry = {"columns": {**ALPACA_COLUMNS, "history": "history"}}
    bare = {**ADD[0], "input": ""}
    rows = [{**bare, "history": [["Hi", "Ho"]]}, {**bare, "history": []}]
    with pytest.raises(TunesmithError) as caught:
        prepared(tmp_path, [*rows, ADD[0]], entry)
    assert "rows with an input too" in str(caught.value)
    text, learned = shown(prepared(tmp_path, rows, entry))
    assert "Ho<|im_end|>" in text
    assert learned == "Ho<|im_end|>3<|im_end|>"
    assert "Add.\n1 2<" in shown(prepared(tmp_path, ADD, entry))[0]


@pytest.mark.parametrize(
    ("stage", "entry", "row"),
    [
        ("dpo", {"ranking": True}, {"instruction": "Q", "input": "R", "chosen": "A", "rejected": "B"}),
        ("rm", {"ranking": True, "columns": {**ALPACA_COLUMNS, "chosen": "good", "rejected": "bad"}},
         {"instruction": "Q", "input": "R", "good": "A", "bad": "B"}),
        ("kto", {"columns": {"prompt": "q", "response": "a", "kto_tag": "good"}}, {"q": "Q\nR", "a": "A", "good": 1}),
        ("kto", {"formatting": "sharegpt", "columns": {"messages": "turns", "kto_tag": "label"}, "tags": OPENAI_TAGS},
         {"turns": [{"role": "user", "content": "Q\nR"}, {"role": "assistant", "content": "A"}], "label": True}),
    ],
)  # fmt: skip
def test_answers_under_judgement(stage: str, entry: dict[str, Any], row: dict[str, Any], tmp_path: Path) -> None:
    text, learned = shown(prepared(tmp_path, [row, row], entry, stage=stage))
    assert text.startswith("<|im_start|>user\nQ\nR<|im_end|>")
    assert learned == "A<|im_end|>"


def test_plain_text(tmp_path: Path) -> None:
    text, _ = shown(prepared(tmp_path, [{"body": "The quick brown fox."}], {"columns": {"prompt": "body"}}, stage="pt"))
    assert "The quick brown fox." in text
    with pytest.raises(TunesmithError, match="is not of plain text"):
        prepared(tmp_path, [{"body": "x"}], {}, stage="pt")


# ---- their own files ----------------------------------------------------------------------------------------------


def real(folder: Path, **values: Any) -> tuple[Prepared, Any]:
    """One of LLaMA-Factory's demonstrations, by its own entry."""
    entries: dict[str, Any] = {
        "alpaca_en_demo": {},
        "identity": {},
        "dpo_en_demo": {"ranking": True, "formatting": "sharegpt", "columns": PAIR_COLUMNS},
        "kto_en_demo": {
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "kto_tag": "label"},
            "tags": OPENAI_TAGS,
        },
        "glaive_toolcall_en_demo": {
            "formatting": "sharegpt",
            "columns": {"messages": "conversations", "tools": "tools"},
        },
    }
    for name, entry in entries.items():
        entry["file_name"] = str(SHARED / "data" / REAL[name])
    recipe = load_any(file(folder, {**BASE, **values}, **entries)).resolved.recipe
    tokenizer = byte_level()
    install(recipe.model.template or "chatml", tokenizer)
    return prepare(recipe.data, tokenizer, takes=recipe.takes, seed=0), tokenizer


@needs_real
def test_their_instructions(tmp_path: Path) -> None:
    made, tokenizer = real(tmp_path, dataset="identity,alpaca_en_demo", max_samples=120, cutoff_len=8192)
    assert len(made.train) == 91 + 120
    rows = json.loads((SHARED / "data" / REAL["alpaca_en_demo"]).read_text())
    number = next(number for number, row in enumerate(rows) if row["input"])
    text = tokenizer.decode(made.train[91 + number].token_ids)
    assert f"user\n{rows[number]['instruction']}\n{rows[number]['input']}<|im_end|>" in text


@needs_real
def test_their_pairs_and_judgements(tmp_path: Path) -> None:
    pairs, _ = real(tmp_path, dataset="dpo_en_demo", stage="dpo", max_samples=20, cutoff_len=8192)
    assert len(pairs.train) == 2 * 20
    judged, _ = real(tmp_path, dataset="kto_en_demo", stage="kto", max_samples=20, cutoff_len=8192)
    assert len(judged.train) == 20


@needs_real
def test_their_tool_calls(tmp_path: Path) -> None:
    values = {**BASE, "dataset": "glaive_toolcall_en_demo"}
    entry = {
        **{"file_name": str(SHARED / "data" / REAL["glaive_toolcall_en_demo"]), "formatting": "sharegpt"},
        **{"columns": {"messages": "conversations", "tools": "tools"}},
    }
    recipe = load_any(file(tmp_path, values, glaive_toolcall_en_demo=entry)).resolved.recipe
    from tunesmith.data.mixture import read_parts

    (part,) = read_parts(recipe.data)
    rows = part.converted(recipe.takes).rows
    assert len(rows) == 300
    assert all(isinstance(row, Conversation) for row in rows)
    first = rows[0]
    assert isinstance(first, Conversation)
    assert first.tools
    call = next(turn for turn in first.messages if turn.tool_calls).tool_calls[0]["function"]
    assert call["name"] == "search_recipes"
    assert call["arguments"]["ingredients"]
    assert any(turn.role == "tool" for turn in first.messages)


EXAMPLE = """\
### model
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
trust_remote_code: true

### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all

### dataset
dataset: rows,more
template: llama3
cutoff_len: 2048
max_samples: 1000
overwrite_cache: true
preprocessing_num_workers: 16
dataloader_num_workers: 4

### output
output_dir: saves/llama3-8b/lora/sft
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
save_only_model: false
report_to: none  # choices: [none, wandb, tensorboard, swanlab, mlflow]

### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null

### eval
# eval_dataset: alpaca_en_demo
# val_size: 0.1
"""


def test_an_example_of_theirs_key_by_key(tmp_path: Path) -> None:
    path = home(tmp_path) / "llama3_lora_sft.yaml"
    path.write_text(EXAMPLE)
    read = load_any(path)
    assert read.translation is not None
    fates = {fate: {entry.key for entry in read.translation.of(fate)} for fate in Fate}
    assert len(fates[Fate.CARRIED]) == 20
    assert not fates[Fate.REFUSED]
    assert fates[Fate.IDLE] == {
        *("trust_remote_code", "overwrite_cache", "preprocessing_num_workers", "dataloader_num_workers", "ddp_timeout"),
        *("logging_steps", "plot_loss", "overwrite_output_dir", "save_only_model", "resume_from_checkpoint"),
    }
    made = read.resolved.recipe
    assert (made.model.name, made.model.dtype, made.model.template, made.model.storage) == (
        "meta-llama/Meta-Llama-3-8B-Instruct",
        "bfloat16",
        None,
        "auto",
    )
    assert (made.adapter.method, made.adapter.r, made.adapter.alpha) == ("lora", 8, 16)  # type: ignore[attr-defined]
    assert (made.data.max_length, made.data.limit, len(made.data.train)) == (2048, 1000, 2)
    assert (made.train.batch_size, made.train.epochs, made.train.learning_rate) == (8, 3, 1e-4)
    assert (made.train.schedule, made.train.warmup, made.train.save_every) == ("cosine", 0.1, 500)
    assert made.output.folder == "saves/llama3-8b/lora/sft"
    assert made.output.report_to == ()
    assert read.resolved.provenance["train.learning_rate"] == f"{path}, line 33 (learning_rate)"
    assert read.resolved.provenance["train.seed"] == "LLaMA-Factory's default"
    assert any("template llama3" in note for note in read.resolved.notes)


def test_a_run_of_such_a_file(tmp_path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from small_run import make_model

    from tunesmith import run

    values = {
        **{"model_name_or_path": str(make_model(tmp_path / "model")), "stage": "sft", "dataset": "rows,more"},
        **{"template": "qwen", "val_size": 1, "max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True},
        **{"lora_rank": 2, "output_dir": str(tmp_path / "out"), "eval_strategy": "steps", "eval_steps": 1},
    }
    run.train(load_any(file(tmp_path, values)).resolved)
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["status"] == "finished"
    assert (tmp_path / "out" / "adapter" / "adapter_config.json").is_file()

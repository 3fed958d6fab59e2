"""LLaMA-Factory's files: what their keys of training come to here, key by key in an example, and in a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from their_files import FACTORY as BASE
from their_files import FACTORY_KTO as KTO
from their_files import FACTORY_ONWARDS as ONWARDS
from their_files import FACTORY_PAIRS as PAIRS
from their_files import factory_file as file
from their_files import factory_home as home
from their_files import factory_settings as settings

from tunesmith.dialects import hf_arguments
from tunesmith.dialects.base import Fate
from tunesmith.dialects.read import load_any

HELD = {"val_size": 0.1}


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

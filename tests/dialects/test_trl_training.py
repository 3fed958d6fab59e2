"""TRL's files: defaults of its trainers, rates, budgets, numbers and layers; and a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_run import make_model
from their_files import TRL as BASE
from their_files import TRL_CPO as CPO
from their_files import TRL_DPO as DPO
from their_files import TRL_HELD as HELD
from their_files import TRL_KTO as KTO
from their_files import TRL_PEFT as PEFT
from their_files import TRL_REWARD as REWARD
from their_files import file
from their_files import trl_settings as made

from tunesmith import run
from tunesmith.dialects.read import load_any
from tunesmith.errors import TunesmithError


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


def test_a_patterns_name_of_layers(tmp_path: Path) -> None:
    assert made(tmp_path, **PEFT, lora_target_modules=r".*\.(q|v)_proj").adapter.targets == r"re:.*\.(q|v)_proj"
    assert made(tmp_path, **PEFT, lora_target_modules=["q_proj"]).adapter.targets == "q_proj"


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

"""A key that could change nothing in the recipe it makes is said to be without effect, and makes no setting of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from their_files import AXOLOTL, AXOLOTL_GRPO, TRL, TRL_GRPO, entry_of, factory_file, file, refusal
from their_files import FACTORY as LLAMA_FACTORY

from tunesmith.dialects.base import Fate
from tunesmith.dialects.read import load_any

HERE = {"datasets": [{"path": "rows.jsonl", "type": "alpaca"}]}
TEXTS = {"datasets": [{"path": "some/rows", "type": "completion"}]}
PIECES = {"datasets": [{"path": "some/rows", "type": "input_output"}]}
TRL_HERE = {**TRL, "dataset_name": "rows.jsonl"}
TRL_MIXED = {**TRL, "dataset_name": None, "datasets": [{"path": "rows.jsonl"}, {"path": "a/b"}]}
LITGPT: dict[str, Any] = {
    "checkpoint_dir": "checkpoints/some/model",
    "lora_r": 4,
    "lora_query": True,
    "data": {"class_path": "litgpt.data.JSON", "init_args": {"json_path": "rows.jsonl"}},
    "logger_name": "tensorboard",
}

IDLE: list[tuple[dict[str, Any], str, Any, str]] = [
    ({**AXOLOTL, **HERE}, "datasets[].split", "train", "a file has no splits"),
    ({**AXOLOTL, **HERE}, "datasets[].name", "en", "a subset is of a hub data set"),
    ({**AXOLOTL, **HERE}, "datasets[].roles", {"user": ["asker"]}, "no messages"),
    ({**AXOLOTL, **TEXTS}, "train_on_inputs", True, "text is learned whole"),
    ({**AXOLOTL, **PIECES}, "train_on_inputs", True, "the rows say themselves"),
    ({**AXOLOTL, **TEXTS}, "datasets[].train_on_eos", "none", "no turns"),
    ({**AXOLOTL, "loraplus_lr_ratio": 4}, "loraplus_lr_embedding", 1e-5, "no table of tokens"),
    ({**AXOLOTL, **AXOLOTL_GRPO}, "trl.epsilon", 0.1, "num_iterations is 1"),
    ({**AXOLOTL, **AXOLOTL_GRPO}, "trl.use_bias_correction_kl", False, "no divergence"),
    (TRL_HERE, "dataset_train_split", "train", "a file has no splits"),
    (TRL_HERE, "dataset_config", "en", "a subset is of a hub data set"),
    (TRL_MIXED, "datasets[].split", "train", "a file has no splits"),
    (TRL_MIXED, "datasets[].name", "en", "a subset is of a hub data set"),
    ({**TRL, **TRL_GRPO}, "epsilon_high", 0.3, "num_iterations is 1"),
    ({**TRL, **TRL_GRPO}, "use_bias_correction_kl", False, "no divergence"),
    (LITGPT, "log.project", "mine", "no service that has projects"),
]


def put(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy with the key set; of a list, in its first mapping."""
    above, _, last = key.rpartition(".")
    if not above:
        return {**values, last: value}
    name = above.removesuffix("[]")
    if not above.endswith("[]"):
        return {**values, name: {**values.get(name, {}), last: value}}
    first, *others = values[name]
    return {**values, name: [{**first, last: value}, *others]}


@pytest.mark.parametrize(
    ("values", "key", "value", "why"), IDLE, ids=[f"{key}-{n}" for n, (_, key, *_) in enumerate(IDLE)]
)
def test_it_is_said_and_changes_nothing(values: dict[str, Any], key: str, value: Any, why: str, tmp_path: Path) -> None:
    without = load_any(file(tmp_path, values)).resolved
    read = load_any(file(tmp_path, put(values, key, value)))
    entry = entry_of(read, key)
    assert entry.fate is Fate.IDLE
    assert why in entry.text
    assert read.resolved.recipe == without.recipe


def test_a_rate_of_embeddings_that_none_have(tmp_path: Path) -> None:
    path = factory_file(tmp_path, {**LLAMA_FACTORY, "loraplus_lr_ratio": 4, "loraplus_lr_embedding": 1e-5})
    read = load_any(path)
    assert entry_of(read, "loraplus_lr_embedding").fate is Fate.IDLE
    assert read.resolved.recipe.adapter.embedding_lr_ratio == 1


def test_the_first_rows_of_a_file_are_a_limit_and_another_split_of_it_is_refused(tmp_path: Path) -> None:
    for values, key in (({**AXOLOTL, **HERE}, "datasets[].split"), (TRL_HERE, "dataset_train_split")):
        data = load_any(file(tmp_path, put(values, key, "train[:100]"))).resolved.recipe.data
        assert (data.limit, data.split) == (100, "train")
        said = refusal(file(tmp_path, put(values, key, "test")))
        assert "is test, and the rows are one file" in said
        assert "to do: take it out, or name a file that holds these rows" in said


def test_a_cap_that_caps_nothing_is_ours_where_theirs_would_weigh_every_token(tmp_path: Path) -> None:
    cispo = {**TRL, **TRL_GRPO, "loss_type": "cispo"}
    read = load_any(file(tmp_path, {**cispo, "epsilon_high": 4.0}))
    assert "nothing is capped" in entry_of(read, "epsilon_high").text
    assert read.resolved.recipe.objective.epsilon_high == 5  # type: ignore[attr-defined]
    assert load_any(file(tmp_path, cispo)).resolved.recipe.objective.epsilon_high == 0.2  # type: ignore[attr-defined]


DEVICES = [
    (
        AXOLOTL,
        {"micro_batch_size": 2, "gradient_accumulation_steps": 4, "deepspeed": "zero2.json"},
        "train.batch_size 8",
    ),
    (
        AXOLOTL,
        {"micro_batch_size": 2, "sample_packing": True, "sequence_len": 64, "fsdp": ["full_shard"], "fsdp_version": 2},
        "train.batch_tokens 128",
    ),
    (LLAMA_FACTORY, {"per_device_train_batch_size": 3, "fsdp": "full_shard"}, "train.batch_size 3"),
    (LLAMA_FACTORY, {"gradient_accumulation_steps": 4, "deepspeed": "ds.json"}, "train.batch_size 32"),
]


@pytest.mark.parametrize(("base", "values", "batch"), DEVICES)
def test_a_batch_of_several_devices_is_said_to_be_of_one(
    base: dict[str, Any], values: dict[str, Any], batch: str, tmp_path: Path
) -> None:
    make = factory_file if base is LLAMA_FACTORY else file
    read = load_any(make(tmp_path, {**base, **values}))
    first = next(iter(values))
    device = next(key for key in ("deepspeed", "fsdp") if key in values)
    assert f"of one process, whatever the devices of {device}" in entry_of(read, first).text
    assert read.translation is not None
    note = next(note for note in read.translation.notes if note.startswith(batch))
    assert "gradient_accumulation_steps is to be N times as much" in note
    assert any(batch in line for line in read.translation.summary)


@pytest.mark.parametrize("base", [AXOLOTL, LLAMA_FACTORY])
def test_a_batch_of_one_device_needs_no_such_word(base: dict[str, Any], tmp_path: Path) -> None:
    make = factory_file if base is LLAMA_FACTORY else file
    read = load_any(make(tmp_path, {**base, "gradient_accumulation_steps": 4}))
    assert "of one process" not in entry_of(read, "gradient_accumulation_steps").text

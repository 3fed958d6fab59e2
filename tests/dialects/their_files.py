"""Files of another tool, written for a test, and what became of one of their keys."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tunesmith.dialects.base import Entry
from tunesmith.dialects.read import Read, load_any
from tunesmith.errors import TunesmithError
from tunesmith.notation import write
from tunesmith.recipe import load as load_recipe


def file(folder: Path, values: dict[str, Any], name: str = "their.yaml") -> Path:
    """`values` as YAML; a key that is None is left out. Beside it is a file of rows."""
    path = folder / name
    (folder / "rows.jsonl").touch()
    path.write_text(write({key: value for key, value in values.items() if value is not None}))
    return path


def with_key(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy with a key of the table set: `data.init_args.seed`, or `datasets[].path` in the first entry."""
    made = copy.deepcopy(values)
    *above, last = key.split(".")
    inner = made
    for part in above:
        name = part.removesuffix("[]")
        if not isinstance(inner.get(name), dict | list):
            inner[name] = [{}] if part.endswith("[]") else {}
        inner = inner[name][0] if part.endswith("[]") else inner[name]
    inner[last] = value
    return made


def mixtures(
    base: dict[str, Any], changes: dict[str, tuple[Any, dict[str, Any]]], count: int = 100
) -> Iterator[dict[str, Any]]:
    """Files with a few of the keys at once, whatever they make of each other; the same each time."""
    drawn = random.Random(0)
    for _ in range(count):
        values = base
        for key in drawn.sample(list(changes), 3):
            value, beside = changes[key]
            values = {**values, **beside}
            if key.split(".")[0] not in values or "." not in key or isinstance(values[key.split(".")[0]], dict):
                values = with_key(values, key, drawn.choice([value, value, False, 3]))
        yield values


def recipe(path: Path) -> dict[str, Any]:
    return load_any(path).resolved.recipe.model_dump(mode="json")


def entry_of(read: Read, key: str) -> Entry:
    """What became of a key of the table, in the first entry where it is of a list."""
    assert read.translation is not None
    return {entry.key.replace("[0]", "[]"): entry for entry in read.translation.entries}[key]


def notes_of(read: Read) -> tuple[str, ...]:
    """What a person is told of the file that no single key says."""
    assert read.translation is not None
    return read.translation.notes


def survives(path: Path) -> None:
    """What is converted, loaded and resolved again is the same recipe."""
    first = load_any(path).resolved
    ours = path.with_name("ours.yaml")
    ours.write_text(first.given)
    assert load_recipe(ours).recipe.model_dump() == first.recipe.model_dump()


def refusal(path: Path, overrides: tuple[str, ...] = ()) -> str:
    """What a person is told of a file that is refused."""
    with pytest.raises(TunesmithError) as caught:
        load_any(path, overrides)
    return str(caught.value)


# ---- LLaMA-Factory ------------------------------------------------------------------------------------------------

PAIR_COLUMNS = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
FACTORY_INFO: dict[str, Any] = {
    "rows": {"file_name": "rows.json"},
    "more": {"file_name": "more.json"},
    "hub": {"hf_hub_url": "owner/rows", "ms_hub_url": "other/rows", "split": "train_sft", "subset": "en"},
    "chat": {"hf_hub_url": "owner/chat", "formatting": "sharegpt"},
    "text": {"file_name": "text.json", "columns": {"prompt": "text"}},
    "pairs": {"hf_hub_url": "owner/pairs", "formatting": "sharegpt", "ranking": True, "columns": PAIR_COLUMNS},
    "judged": {"hf_hub_url": "owner/judged", "formatting": "sharegpt", "columns": {"kto_tag": "label"}},
}
FACTORY_ROWS = [
    {"instruction": "Add.", "input": "1 2", "output": "3"},
    {"instruction": "Hi.", "input": "", "output": "Ho."},
]
FACTORY: dict[str, Any] = {"model_name_or_path": "some/model", "stage": "sft", "dataset": "rows"}
FACTORY_PAIRS = {"stage": "dpo", "dataset": "pairs"}
FACTORY_KTO = {"stage": "kto", "dataset": "judged"}
FACTORY_ONWARDS = {"adapter_name_or_path": "some/adapter"}


def factory_home(folder: Path, **more: Any) -> Path:
    """A folder of data as LLaMA-Factory has it, beside the file."""
    (folder / "some" / "adapter" / "last").mkdir(parents=True, exist_ok=True)
    for name in ("data", "elsewhere"):
        data = folder / name
        data.mkdir(exist_ok=True)
        (data / "dataset_info.json").write_text(json.dumps(FACTORY_INFO | more))
        for rows in ("rows.json", "more.json"):
            (data / rows).write_text(json.dumps(FACTORY_ROWS))
        (data / "text.json").write_text(json.dumps([{"text": "The quick brown fox."}]))
    return folder


def factory_file(folder: Path, values: dict[str, Any], name: str = "their.yml", **more: Any) -> Path:
    path = factory_home(folder, **more) / name
    path.write_text(write({key: value for key, value in values.items() if value is not None}))
    return path


def factory_settings(folder: Path, **values: Any) -> Any:
    """The recipe of a file with these values."""
    return load_any(factory_file(folder, {**FACTORY, **values})).resolved.recipe


# ---- Axolotl ------------------------------------------------------------------------------------------------------

AXOLOTL: dict[str, Any] = {
    "base_model": "some/model",
    "datasets": [{"path": "some/rows", "type": "alpaca"}],
    "adapter": "lora",
    "lora_r": 8,
    "lora_alpha": 16,
    "lora_target_linear": True,
    "learning_rate": 2e-4,
}
AXOLOTL_CHAT = {"datasets": [{"path": "some/rows", "type": "chat_template"}]}
AXOLOTL_HELD = {"val_set_size": 0.1}
AXOLOTL_PAIRS = {"rl": "dpo", "datasets": [{"path": "some/pairs", "type": "chat_template.argilla_chat"}]}
AXOLOTL_KTO = {"rl": "kto", "datasets": [{"path": "some/rows", "type": "chatml.ultra"}]}
AXOLOTL_GRPO = {
    "rl": "grpo",
    "datasets": [{"path": "some/rows", "type": "chat_template"}],
    "trl": {"reward_funcs": ["exact"]},
    "micro_batch_size": 8,
}


# ---- TRL ----------------------------------------------------------------------------------------------------------

TRL: dict[str, Any] = {"model_name_or_path": "some/model", "dataset_name": "some/rows", "trainer": "sft"}
TRL_PEFT = {"use_peft": True}
TRL_HELD = {"eval_strategy": "steps"}
TRL_MIXED = {"dataset_name": None, "datasets": [{"path": "some/rows"}]}
TRL_DPO, TRL_KTO, TRL_ORPO, TRL_CPO = ({"trainer": name} for name in ("dpo", "kto", "orpo", "cpo"))
TRL_REWARD = {"trainer": "reward"}
TRL_GRPO = {"trainer": "grpo", "reward_funcs": ["mine.right"], "per_device_train_batch_size": 16}


def trl_settings(folder: Path, **values: Any) -> Any:
    """The recipe of a file with these values."""
    return load_any(file(folder, {**TRL, **values})).resolved.recipe

"""Numbers of other tools' files that say something else than the setting of ours they would become, and keys that are
given beside others which go before them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from their_files import (
    AXOLOTL,
    AXOLOTL_CHAT,
    AXOLOTL_GRPO,
    AXOLOTL_HELD,
    FACTORY,
    TRL,
    TRL_GRPO,
    entry_of,
    factory_file,
    file,
)

from tunesmith.dialects.base import Fate
from tunesmith.dialects.read import load_any
from tunesmith.errors import TunesmithError

COUNTS = ("micro_batch_size", "gradient_accumulation_steps", "batch_size")
HF_COUNTS = ("per_device_train_batch_size", "gradient_accumulation_steps")
RELORA = {"relora": True, "jagged_restart_steps": 50}
REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    *((base, {key: number}, key) for number in (0, -1) for base, keys in (
        (AXOLOTL, COUNTS), (FACTORY, HF_COUNTS), (TRL, HF_COUNTS), ({**TRL, **TRL_GRPO}, HF_COUNTS),
    ) for key in keys),
    *((base, {"warmup_ratio": share}, "warmup_ratio") for share in (1, 10.0, -0.1) for base in (AXOLOTL, FACTORY, TRL)),
    ({**AXOLOTL, **AXOLOTL_GRPO}, {"trl": {"num_generations": 0, "reward_funcs": ["exact"]}}, "num_generations"),
    (AXOLOTL, {"bf16": True, "fp16": True}, "fp16"),
    (AXOLOTL, {"bf16": "auto", "float16": True}, "float16"),
    ({**AXOLOTL, **RELORA}, {"peft_use_dora": True}, "peft_use_dora"),
    ({**AXOLOTL, **RELORA}, {"relora_prune_method": "reset", "relora_prune_ratio": 0.5}, "relora_prune_ratio"),
    (AXOLOTL, {"save_strategy": "no", "saves_per_epoch": 2}, "save_strategy"),
    (AXOLOTL, {"save_strategy": "epoch", "save_steps": 20}, "save_strategy"),
    ({**AXOLOTL, **AXOLOTL_HELD}, {"eval_strategy": "no", "eval_steps": 20}, "eval_strategy"),
]  # fmt: skip
GONE_BEFORE: list[tuple[dict[str, Any], str]] = [
    ({"bf16": True, "float32": True}, "float32"),
    ({"fp16": True, "fp32": True}, "fp32"),
    ({"neftune_noise_alpha": 5, "noisy_embedding_alpha": 7}, "noisy_embedding_alpha"),
    ({**AXOLOTL_CHAT, "chat_template": "chatml", "chat_template_jinja": "{{ messages }}"}, "chat_template_jinja"),
]


@pytest.mark.parametrize(("base", "values", "key"), REFUSED)
def test_what_cannot_be_meant_is_refused(
    base: dict[str, Any], values: dict[str, Any], key: str, tmp_path: Path
) -> None:
    written = (factory_file if base is FACTORY else file)(tmp_path, {**base, **values})
    with pytest.raises(TunesmithError) as caught:
        load_any(written)
    assert f"{key} " in str(caught.value)
    assert "to do" in str(caught.value)


@pytest.mark.parametrize(("values", "key"), GONE_BEFORE)
def test_what_another_key_goes_before_is_without_effect(values: dict[str, Any], key: str, tmp_path: Path) -> None:
    read = load_any(file(tmp_path, {**AXOLOTL, **values}))
    assert entry_of(read, key).fate is Fate.IDLE
    alone = load_any(file(tmp_path, {**AXOLOTL, **values, key: None}, "alone.yml"))
    assert read.resolved.recipe == alone.resolved.recipe

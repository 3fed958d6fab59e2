"""LitGPT's YAML, as its config_hub has it: what `litgpt finetune --config file.yaml` reads.

What its keys mean: litgpt 0.5.13 (finetune/lora.py, finetune/full.py, args.py, data/, prompts.py); the rates that
older versions kept under `train` are read too. Whether all weights are trained the file does not say: `command=…` does,
or that it has no lora_ key. Where LitGPT has a default that differs from ours, the recipe says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.dialects.base import Said
from tunesmith.dialects.litgpt.keys import KEYS as KEYS
from tunesmith.dialects.litgpt.keys import PARTS
from tunesmith.dialects.litgpt.model import adapter, model
from tunesmith.dialects.litgpt.rows import rows
from tunesmith.dialects.litgpt.training import budget, optimizer, output, when

CALLED = "LitGPT"


def is_mine(values: Mapping[str, Any]) -> bool:
    if "base_model" in values or "model_name_or_path" in values:
        return False
    data = values.get("data")
    by_class = isinstance(data, dict) and "class_path" in data
    pretrains = "model_name" in values or "initial_checkpoint_dir" in values
    known = "checkpoint_dir" in values or any(key in values for key in PARTS)
    return known or ("out_dir" in values and (by_class or pretrains))


def translate(said: Said) -> None:
    model(said)
    adapter(said)
    rows(said)
    train = said.within("train")
    budget(train)
    optimizer(said, train)
    when(said, train)
    output(said)

"""TRL's YAML, and that of transformers' TrainingArguments: what `trl sft --config file.yaml` reads.

What its keys mean: trl 1.16 (ScriptArguments, ModelConfig, the trainers' configurations) and transformers 5; some of
older versions are read too. Which trainer is meant the file does not say: `trainer=dpo` does, or a key that one alone
has. Where TRL has a default that differs from ours, the recipe says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.dialects.base import Said
from tunesmith.dialects.hf_arguments import is_llama_factorys
from tunesmith.dialects.trl.data import rows
from tunesmith.dialects.trl.keys import HARMLESS
from tunesmith.dialects.trl.keys import KEYS as KEYS
from tunesmith.dialects.trl.model import adapter, model
from tunesmith.dialects.trl.objective import objective
from tunesmith.dialects.trl.trainer import chosen
from tunesmith.dialects.trl.training import training

CALLED = "TRL"


def is_mine(values: Mapping[str, Any]) -> bool:
    return "model_name_or_path" in values and not is_llama_factorys(values)


def translate(said: Said) -> None:
    for key, harmless in HARMLESS.items():
        if said.has(key) and said.values[key] in harmless:
            said.idle(key, "as it is here")
    trainer = chosen(said)
    model(said)
    adapter(said, trainer)
    rows(said, trainer)
    objective(said, trainer)
    training(said, trainer)

"""LLaMA-Factory's training YAMLs, with the dataset_info.json that they name their rows by.

What its keys mean: its argument classes (src/llamafactory/hparams), data/README.md, and what its code does with them.
Where it has a default that differs from ours, the recipe says so: three epochs, batches of eight rows, a learning rate
of 5e-5 that falls linearly, activations that are recomputed, rows that are cut where they are too long, all checkpoints
kept and the last one as the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.dialects.base import Said, of_one_process
from tunesmith.dialects.hf_arguments import around, is_llama_factorys, steps, when
from tunesmith.dialects.llama_factory.data import data
from tunesmith.dialects.llama_factory.keys import KEYS as KEYS
from tunesmith.dialects.llama_factory.method import method
from tunesmith.dialects.llama_factory.model import model
from tunesmith.dialects.llama_factory.objective import STAGES, is_training, objective

CALLED = "LLaMA-Factory"
_OF_DEVICES = ("deepspeed", "fsdp", "fsdp_config", "ray_num_workers")
_OF_REWRITE = ("train_dataset", "micro_batch_size", "dist_config", "kernel_config", "quant_config", "peft_config")


def is_mine(values: Mapping[str, Any]) -> bool:
    older = "model_name_or_path" in values and is_llama_factorys(values)
    return older or ("stage" in values and "dataset" in values) or _is_rewrite(values)


def _is_rewrite(values: Mapping[str, Any]) -> bool:
    return isinstance(values.get("model"), str) and any(key in values for key in _OF_REWRITE)


def translate(said: Said) -> None:
    if not (_is_readable(said) and is_training(said)):
        for key in said.values:  # no more is said of them than that they are known
            if key in KEYS:
                said.raw(key)
                said.idle(key, "the file is refused as a whole")
        return
    if not said.has("model_name_or_path"):
        fix = "name the model: model_name_or_path: OWNER/NAME"
        said.refuse("model_name_or_path", "is missing", fix, expected="a folder or a hub id")
    stage = said.choose("stage", STAGES, "sft")
    model(said, stage)
    holds_out, packed = data(said, stage)
    method(said, stage)
    objective(said, stage)
    steps(said, packed=packed)
    of_one_process(said, _OF_DEVICES, ("per_device_train_batch_size", "gradient_accumulation_steps"))
    when(said, holds_out=holds_out)
    around(said)
    _stopping(said, holds_out)


def _is_readable(said: Said) -> bool:
    """Whether the file is of the older form; one of the rewrite is refused by one sentence."""
    if "model_name_or_path" in said.values or not _is_rewrite(said.values):
        return True
    fix = "write the older form, as its examples/train_lora: model_name_or_path, stage, finetuning_type, dataset …"
    said.refuse("model", "is a key of LLaMA-Factory's rewrite (v1), whose files are not read here", fix)
    return False


def _stopping(said: Said, holds_out: bool) -> None:
    patience = said.take("early_stopping_steps", int)
    if patience is not None and holds_out:
        said.put("train.stop_after_no_gain", patience, "early_stopping_steps")
    elif patience is not None:
        said.idle("early_stopping_steps", "no rows are held out")

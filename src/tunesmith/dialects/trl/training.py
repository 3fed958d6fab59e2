"""Of a TRL file: what its trainers have beside TrainingArguments, or otherwise than they, of batches and rates."""

from __future__ import annotations

import math

from tunesmith.dialects import hf_arguments
from tunesmith.dialects.base import Said, left_over, there
from tunesmith.dialects.trl.data import most_tokens, strategy
from tunesmith.dialects.trl.trainer import POLICY

LOGGING_STEPS = 10
_RATES = {"sft": 2e-5, "reward": 1e-4}
_RATE = 1e-6
"""Of the other trainers."""


def training(said: Said, trainer: str) -> None:
    hf_arguments.steps(said, learning_rate=_RATES.get(trainer, _RATE), packed=_packed(said))
    if trainer in POLICY:
        _prompts(said, trainer)
    if said.has("deepspeed", "fsdp", "num_processes", "accelerate_config"):
        said.note("a step takes the rows of one process; of N give gradient_accumulation_steps N times as much")
    holds_out = strategy(said) != "no" or said.has("test_split_size")
    if said.take("load_best_model_at_end", bool, False) and not holds_out:
        said.refuse("load_best_model_at_end", "has no held-out rows to go by", "set eval_strategy, or take it out")
    hf_arguments.when(said, holds_out=holds_out, logging_steps=LOGGING_STEPS)
    hf_arguments.around(said)
    _order(said, trainer)
    names = [key for key in ("activation_checkpointing", "gradient_checkpointing") if said.has(key)]
    said.put("train.recompute", said.take(names[0], bool, True) if names else True, *names[:1])
    left_over(said, "activation_checkpointing goes before it", *names[1:])
    if not said.has("output_dir"):
        said.put("output.folder", "trainer_output")


def _packed(said: Said) -> int | None:
    """How many tokens a pack has, where rows are packed."""
    if not said.take("packing", bool, False):
        left_over(said, "packing is off", "packing", "packing_strategy")
        return None
    how, most = said.take("packing_strategy", str, "bfd"), most_tokens(said)
    if how != "bfd":
        said.refuse("packing_strategy", f"is {how}, which cuts rows", "take bfd: rows stay whole, as here")
    left_over(said, "rows stay whole, side by side, as bfd has them", "packing_strategy")
    if most is None:
        said.refuse("packing", "stands beside max_length null", "give max_length: how long a pack is")
    said.carry("packing", "train.batch_tokens: a step takes so many tokens of whole rows")
    return most


def _prompts(said: Said, trainer: str) -> None:
    """TRL's batches of a policy count completions, ours prompts."""
    times = said.count("gradient_accumulation_steps", 1)
    count = said.count("per_device_train_batch_size", 8) * times
    keys = (*there(said, "per_device_train_batch_size"), *there(said, "gradient_accumulation_steps"))
    each = said.count("num_generations", 2 if trainer == "rloo" else 8)
    rounds, whole = said.take("steps_per_generation", int), said.take("generation_batch_size", int)
    for key, value, same in (("steps_per_generation", rounds, times), ("generation_batch_size", whole, count)):
        if value is not None and value != same:
            fix = f"leave it out, or set it to {same}: for further updates from what was sampled take num_iterations"
            said.refuse(key, f"is {value}, and a step takes {same}: completions are sampled for every step", fix)
        elif value is not None:
            said.carry(key, "completions are sampled for every step, as here")
    if count % each:
        said.refuse(
            next(iter(keys), "num_generations"),
            f"makes a step of {count} completions, which is no multiple of num_generations ({each})",
            f"set gradient_accumulation_steps={each * times // math.gcd(count, each)}",
        )
    said.put("train.batch_size", max(1, count // each), *keys)


def _order(said: Said, trainer: str) -> None:
    """Of kto rows come in their own order, of a policy as shuffle_dataset says."""
    if trainer in POLICY:
        said.put("data.shuffle", said.take("shuffle_dataset", bool, True), *there(said, "shuffle_dataset"))
    elif trainer == "kto" and not said.has("train_sampling_strategy"):
        said.put("data.shuffle", False)
    left_over(said, "rows come in a new seeded order in every pass", "shuffle_dataset")

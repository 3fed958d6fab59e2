"""Tunesmith's GRPO: its model, adapter, objective and loop; completions of one length, so that all do one work.

Variants (`job.variant`): num_generations, new_tokens.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from contender import begin
from contenders.tunesmith_dpo import silent
from contenders.tunesmith_sft import model_with_adapter, run
from transformers import AutoTokenizer

from tunesmith.data.types import Asked, Message, Origin, Prompt
from tunesmith.objectives.policy import PolicyGradient
from tunesmith.objectives.policy_losses import PolicySettings
from tunesmith.objectives.rewards import Reward
from tunesmith.train.memory import default_micro_batch_tokens


def vowels(completions: list[str], **_: object) -> list[float]:
    """As the rival's."""
    return [sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in completions]


def main(path: str) -> None:
    job, meter = begin(path)
    policy, adapter_set = model_with_adapter(job)
    asked = [
        Asked(
            np.array(row["input_ids"], dtype=np.int64),
            np.zeros(len(row["input_ids"]), dtype=np.float32),
            Origin(job.rows, number),
            prompt=Prompt((Message("user", row["text"]),), row["text"], {}, Origin(job.rows, number)),
        )
        for number, row in enumerate(meter.rows, 1)
    ]

    tokenizer = AutoTokenizer.from_pretrained(job.model)
    objective = PolicyGradient(
        asked,
        (),
        PolicySettings(
            rewards=("json",),
            num_generations=job.variant["num_generations"],
            max_completion_length=job.variant["new_tokens"],
        ),
        batch_size=job.rows_per_step,
        seed=job.seed,
        shuffle=False,
        renderer=SimpleNamespace(end_ids=(), tokenizer=tokenizer),  # type: ignore[arg-type]  # no completion ends early
    )
    objective.rewards = [Reward("vowels", vowels, 1.0)]
    with tempfile.TemporaryDirectory() as folder:
        most = default_micro_batch_tokens(policy.device)
        objective.begin(policy, num_steps=job.total_steps, max_tokens=most, cache=Path(folder), stage=silent)
    run(job, meter, policy, adapter_set, objective, job.rows_per_step)
    meter.finish(
        adapter_set.counts().trained,
        ["torch", "transformers", "tunesmith"],
        dtype=str(policy.model.dtype).removeprefix("torch."),
    )


if __name__ == "__main__":
    main(sys.argv[1])

"""Tunesmith's DPO: its model, adapter, objective and loop, on pairs that are tokenised already.

Variants (`job.variant`):
  share       what a pair's answers begin with in common is computed once (the default), or twice
  reference   "precomputed" (the default) or "online"
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from contender import IGNORED, begin
from contenders.tunesmith_sft import model_with_adapter, run

from tunesmith.data.types import Answer, Origin
from tunesmith.objectives.preference import PreferenceTuning
from tunesmith.objectives.preference_losses import PreferenceSettings
from tunesmith.train.memory import default_micro_batch_tokens


def answers(rows: list[dict[str, list[int]]], source: str) -> list[Answer]:
    return [
        Answer(
            np.array(row["input_ids"], dtype=np.int64),
            (np.array(row["labels"]) != IGNORED).astype(np.float32),
            Origin(source, number // 2 + 1),
            side="rejected" if number % 2 else "chosen",
        )
        for number, row in enumerate(rows)
    ]


@contextmanager
def silent(name: str) -> Iterator[Any]:
    yield lambda share: None


def main(path: str) -> None:
    job, meter = begin(path)
    policy, adapter_set = model_with_adapter(job)

    with tempfile.TemporaryDirectory() as folder:
        objective = PreferenceTuning(
            answers(meter.rows, job.rows),
            (),
            PreferenceSettings(beta=0.1, reference=job.variant.get("reference", "precomputed")),
            batch_size=job.rows_per_step // 2,
            seed=job.seed,
            shuffle=False,
            share=job.variant.get("share"),
        )
        begun = time.perf_counter()
        objective.begin(
            policy,
            num_steps=job.total_steps,
            max_tokens=default_micro_batch_tokens(policy.device),
            cache=Path(folder),
            stage=silent,
        )
        reference_seconds = time.perf_counter() - begun
    run(job, meter, policy, adapter_set, objective, job.rows_per_step // 2)
    meter.finish(
        adapter_set.counts().trained,
        ["torch", "transformers", "tunesmith"],
        dtype=str(policy.model.dtype).removeprefix("torch."),
        reference_seconds=reference_seconds,
    )


if __name__ == "__main__":
    main(sys.argv[1])

"""Tunesmith: its model, adapter, objective and loop, as `tunesmith.run` puts them together, on rows tokenised already.

Nothing is written during the measured steps (no contender saves or evaluates); all else is as a recipe runs it.

Variants (`job.variant`), each a setting of the recipe with its default:
  dtype               model.dtype: "auto" measures whether bf16 products are faster here
  micro_batch_tokens  train.micro_batch_tokens: None, chosen for the device
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from contender import IGNORED, Job, Meter, begin

from tunesmith.adapters import METHODS
from tunesmith.adapters.adapter_set import AdapterSet, add
from tunesmith.adapters.attach import Switch
from tunesmith.data.types import Example, Origin
from tunesmith.events import Event, StepDone
from tunesmith.models.load import load_model, load_tokenizer
from tunesmith.models.policy import Policy, probe
from tunesmith.models.settings import ModelSettings
from tunesmith.objectives.base import Objective
from tunesmith.objectives.sft import SFT
from tunesmith.train.checkpoint import Checkpoints
from tunesmith.train.loop import Job as LoopJob
from tunesmith.train.loop import Loop, train_mode
from tunesmith.train.settings import TrainSettings
from tunesmith.train.signals import Signals


def examples(meter: Meter) -> list[Example]:
    return [
        Example(
            np.array(row["input_ids"], dtype=np.int64),
            (np.array(row["labels"]) != IGNORED).astype(np.float32),
            Origin(meter.job.rows, number),
        )
        for number, row in enumerate(meter.rows, 1)
    ]


def model_with_adapter(job: Job) -> tuple[Policy, AdapterSet]:
    settings = ModelSettings(name=job.model, dtype=job.variant.get("dtype", "auto"))
    loaded = load_model(settings, load_tokenizer(settings))
    switch = Switch()
    chosen = METHODS[job.method].Settings(r=job.rank, alpha=job.alpha, dropout=0.0)
    adapter_set = add(loaded.model, switch, chosen, name="trained", seed=job.seed)
    policy, _ = probe(loaded.model, switch)
    switch.name = "trained"
    train_mode(policy, recompute=False)
    return policy, adapter_set


def run(job: Job, meter: Meter, policy: Policy, adapter_set: AdapterSet, objective: Objective, batch_size: int) -> None:
    """The measured loop: as a recipe runs it, but that nothing is saved or evaluated."""

    def listen(event: Event) -> None:
        if isinstance(event, StepDone):
            meter.step_done(event.loss, event.grad_norm)

    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(
            policy,
            objective,
            LoopJob.of(adapter_set, lambda folder: None),
            TrainSettings(
                steps=job.total_steps,
                batch_size=batch_size,
                micro_batch_tokens=job.variant.get("micro_batch_tokens"),
                learning_rate=job.learning_rate,
                schedule="constant",
                warmup=0.0,
                max_grad_norm=None,
                evaluate_every=job.total_steps + 1,
                save_every=job.total_steps + 1,
                seed=job.seed,
            ),
            Checkpoints(Path(folder), 1),
            Signals(),
            [listen],
        )
        meter.start()
        loop.run()


def main(path: str) -> None:
    job, meter = begin(path)
    policy, adapter_set = model_with_adapter(job)
    objective = SFT(examples(meter), (), batch_size=job.rows_per_step, seed=job.seed, shuffle=False)
    run(job, meter, policy, adapter_set, objective, job.rows_per_step)
    meter.finish(
        adapter_set.counts().trained,
        ["torch", "transformers", "tunesmith"],
        dtype=str(policy.model.dtype).removeprefix("torch."),
        without_padding=policy.flat,
    )


if __name__ == "__main__":
    main(sys.argv[1])

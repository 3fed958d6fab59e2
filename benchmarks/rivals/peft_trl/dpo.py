"""PEFT + TRL: `DPOTrainer` with LoRA on every linear of the blocks, on pairs that are tokenised already.

Variants (`job.variant`):
  weights           "float32" (what TRL loads when nothing is said) or "bfloat16"
  autocast          TRL's `bf16` flag: True as TRL ships
  checkpointing     recompute activations in the backward pass: True as TRL ships
  micro_batch_pairs pairs per forward pass; the rest of the step is accumulated
  precompute        the reference's log-probabilities before the first step, or in each step (as TRL ships)
"""

from __future__ import annotations

import sys
import tempfile
import time
from typing import Any

from contender import IGNORED, begin
from datasets import Dataset
from peft import LoraConfig
from rivals.peft_trl.train import Clock
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer


class Trainer(DPOTrainer):
    """Takes rows that are tokenised already, and times what is computed before the first step."""

    reference_seconds = 0.0

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, *args: Any, **named: Any) -> Any:
        begun = time.perf_counter()
        made = super()._precompute_ref_logps(*args, **named)
        self.reference_seconds += time.perf_counter() - begun
        return made


def pairs(rows: list[dict[str, list[int]]]) -> Dataset:
    made = []
    for chosen, rejected in zip(rows[::2], rows[1::2], strict=True):
        start = next(place for place, label in enumerate(chosen["labels"]) if label != IGNORED)
        made.append(
            {
                "prompt_ids": chosen["input_ids"][:start],
                "chosen_ids": chosen["input_ids"][start:],
                "rejected_ids": rejected["input_ids"][start:],
            }
        )
    return Dataset.from_list(made)


def main(path: str) -> None:
    job, meter = begin(path)
    variant = job.variant
    with tempfile.TemporaryDirectory() as output_dir:
        trainer = Trainer(
            model=job.model,
            args=DPOConfig(
                output_dir=output_dir,
                model_init_kwargs={"dtype": variant["weights"]},
                bf16=variant["autocast"],
                gradient_checkpointing=variant["checkpointing"],
                precompute_ref_log_probs=variant["precompute"],
                beta=0.1,
                use_cpu=True,
                per_device_train_batch_size=variant["micro_batch_pairs"],
                gradient_accumulation_steps=job.rows_per_step // 2 // variant["micro_batch_pairs"],
                max_steps=job.total_steps,
                max_length=None,
                train_sampling_strategy="sequential",
                dataloader_pin_memory=False,
                optim="adamw_torch",
                learning_rate=job.learning_rate,
                lr_scheduler_type="constant",
                warmup_steps=0,
                weight_decay=0.0,
                max_grad_norm=0.0,
                seed=job.seed,
                logging_steps=1,
                disable_tqdm=True,
                report_to=[],
                save_strategy="no",
            ),
            train_dataset=pairs(meter.rows),
            processing_class=AutoTokenizer.from_pretrained(job.model),
            peft_config=LoraConfig(
                r=job.rank,
                lora_alpha=job.alpha,
                lora_dropout=0.0,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            ),
            callbacks=[Clock(meter)],
        )
        trainer.train()
        meter.finish(
            sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
            ["torch", "transformers", "trl", "peft", "accelerate"],
            reference_seconds=trainer.reference_seconds,
        )


if __name__ == "__main__":
    main(sys.argv[1])

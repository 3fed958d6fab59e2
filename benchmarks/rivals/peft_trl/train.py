"""PEFT + TRL: `SFTTrainer` with LoRA on every linear of the blocks, on rows that are tokenised already.

Variants (`job.variant`):
  weights           "float32" (what TRL loads when nothing is said) or "bfloat16"
  autocast          TRL's `bf16` flag: True as TRL ships
  checkpointing     recompute activations in the backward pass: True as TRL ships
  micro_batch_rows  rows per forward pass; the rest of the step is accumulated. 1 needs no padding at all
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

from contender import Job, Meter, begin
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer


class Clock(TrainerCallback):
    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            self.meter.start()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "grad_norm" in logs:
            self.meter.step_done(logs["loss"], logs["grad_norm"])


def config(job: Job, output_dir: str) -> SFTConfig:
    micro = job.variant["micro_batch_rows"]
    return SFTConfig(
        output_dir=output_dir,
        model_init_kwargs={"dtype": job.variant["weights"]},
        bf16=job.variant["autocast"],
        gradient_checkpointing=job.variant["checkpointing"],
        use_cpu=True,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=job.rows_per_step // micro,
        max_steps=job.total_steps,
        max_length=None,
        packing=False,
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
    )


def main(path: str) -> None:
    job, meter = begin(path)
    with tempfile.TemporaryDirectory() as output_dir:
        trainer = SFTTrainer(
            model=job.model,
            args=config(job, output_dir),
            train_dataset=Dataset.from_list(meter.rows),
            processing_class=AutoTokenizer.from_pretrained(job.model),
            peft_config=LoraConfig(
                r=job.rank,
                lora_alpha=job.alpha,
                lora_dropout=0.0,
                use_dora=job.method == "dora",
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            ),
            callbacks=[Clock(meter)],
        )
        trainer.train()
        meter.finish(
            sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
            ["torch", "transformers", "trl", "peft", "accelerate"],
        )


if __name__ == "__main__":
    main(sys.argv[1])

"""PEFT + TRL: `GRPOTrainer` with LoRA on every linear; completions of one length, so that all do one work.

Variants (`job.variant`):
  weights           "float32" (what TRL loads when nothing is said) or "bfloat16"
  autocast          TRL's `bf16` flag: True as TRL ships
  checkpointing     recompute activations in the backward pass: True as TRL ships
  completions       sequences per forward and backward pass
  num_generations, new_tokens
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

from contender import begin
from datasets import Dataset
from peft import LoraConfig
from rivals.peft_trl.train import Clock
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer


def vowels(completions: list[Any], **_: Any) -> list[float]:
    """A reward that differs between completions, and costs nothing."""
    texts = [completion[-1]["content"] for completion in completions]
    return [sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in texts]


def main(path: str) -> None:
    job, meter = begin(path)
    variant = job.variant
    sequences = job.rows_per_step * variant["num_generations"]
    with tempfile.TemporaryDirectory() as output_dir:
        trainer = GRPOTrainer(
            model=job.model,
            reward_funcs=vowels,
            args=GRPOConfig(
                output_dir=output_dir,
                model_init_kwargs={"dtype": variant["weights"]},
                bf16=variant["autocast"],
                gradient_checkpointing=variant["checkpointing"],
                use_cpu=True,
                num_generations=variant["num_generations"],
                max_completion_length=variant["new_tokens"],
                generation_kwargs={"min_new_tokens": variant["new_tokens"]},
                per_device_train_batch_size=variant["completions"],
                gradient_accumulation_steps=sequences // variant["completions"],
                loss_type="grpo",
                beta=0.0,
                max_steps=job.total_steps,
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
                shuffle_dataset=False,
            ),
            train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": r["text"]}]} for r in meter.rows]),
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
        )


if __name__ == "__main__":
    main(sys.argv[1])

"""LitGPT: its LoRA GPT, Fabric, optimizer and chunked loss, driven as `litgpt/finetune/lora.py` drives them.

The script itself cannot be called: its learning rate must warm up and anneal, and it renders and shuffles its own
data. What is kept from it: `fabric.init_module` under the precision, `mark_only_lora_as_trainable`, the head in
chunks of 128 tokens, right padding within a micro-batch, `fabric.backward`. What differs, so that all contenders
optimise the same thing: a constant rate, no weight decay, and each micro-batch weighted by its share of the step's
learned tokens (the script averages the means of micro-batches).

Variants (`job.variant`):
  precision         "bf16-true" (weights, adapters and products in bf16) or "bf16-mixed"
  micro_batch_rows  rows per forward pass: 1 as the script ships, which needs no padding
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import lightning as L
import torch
from contender import Job, begin, num_learned
from litgpt.data.base import get_sft_collate_fn
from litgpt.lora import GPT, Config, mark_only_lora_as_trainable
from litgpt.utils import chunked_cross_entropy, instantiate_torch_optimizer, load_checkpoint, num_parameters

NAME = "SmolLM2-135M-Instruct"
"""LitGPT's own name for the model's shape."""


def converted(job: Job) -> Path:
    """The checkpoint in LitGPT's layout, converted once by LitGPT's own converter."""
    digest = hashlib.sha256()
    for weights in sorted(Path(job.model).glob("*.safetensors")):
        with weights.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    folder = Path(job.cache).resolve() / "litgpt" / digest.hexdigest()[:12] / NAME
    if not (folder / "lit_model.pth").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for source in Path(job.model).iterdir():
            shutil.copy(source, folder / source.name)
        # In a process of its own, so that what converting takes is not charged to this one's memory.
        subprocess.run(
            [sys.executable, "-m", "litgpt", "convert_to_litgpt", str(folder), "--model_name", NAME], check=True
        )
    return folder


def lora_config(job: Job, folder: Path) -> Config:
    return Config.from_file(
        folder / "model_config.yaml",
        lora_r=job.rank,
        lora_alpha=job.alpha,
        lora_dropout=0.0,
        lora_query=True,
        lora_key=True,
        lora_value=True,
        lora_projection=True,
        lora_mlp=True,
        lora_head=False,
    )


def main(path: str) -> None:
    job, meter = begin(path)
    folder = converted(job)
    fabric = L.Fabric(accelerator="cpu", devices=1, precision=job.variant["precision"])
    fabric.seed_everything(job.seed)
    with fabric.init_module(empty_init=False):
        model = GPT(lora_config(job, folder))
    mark_only_lora_as_trainable(model)
    model = fabric.setup_module(model)
    optimizer = instantiate_torch_optimizer(
        {"class_path": "torch.optim.AdamW", "init_args": {"lr": job.learning_rate, "weight_decay": 0.0}},
        [p for p in model.parameters() if p.requires_grad],
    )
    optimizer = fabric.setup_optimizers(optimizer)
    load_checkpoint(fabric, model, folder / "lit_model.pth", strict=False)
    model.max_seq_length = max(len(row["input_ids"]) for row in meter.rows)
    model.train()

    collate = get_sft_collate_fn()
    micro = job.variant["micro_batch_rows"]
    trained = [p for p in model.parameters() if p.requires_grad]
    meter.start()
    for step in range(job.total_steps):
        rows = meter.rows[step * job.rows_per_step : (step + 1) * job.rows_per_step]
        learned_in_step = sum(num_learned(row) for row in rows)
        step_loss = 0.0
        for first in range(0, len(rows), micro):
            part = rows[first : first + micro]
            batch = collate(
                [
                    {
                        "input_ids": torch.tensor(row["input_ids"]),
                        "labels": torch.tensor(row["labels"]),
                        "token_counts": {"raw": 0, "raw_plus_prompt_template": len(row["input_ids"])},
                    }
                    for row in part
                ]
            )
            share = sum(num_learned(row) for row in part) / learned_in_step
            with fabric.no_backward_sync(model, enabled=first + micro < len(rows)):
                logits = model(batch["input_ids"], lm_head_chunk_size=128)
                logits[-1] = logits[-1][..., :-1, :]
                loss = chunked_cross_entropy(logits, batch["labels"][..., 1:]) * share
                fabric.backward(loss)
            step_loss += float(loss.detach())
        grad_norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        optimizer.step()
        optimizer.zero_grad()
        meter.step_done(step_loss, float(grad_norm))
    meter.finish(num_parameters(model, requires_grad=True), ["torch", "litgpt", "lightning"])


if __name__ == "__main__":
    main(sys.argv[1])

"""The keys of the train section."""

from __future__ import annotations

from observed import Case, cramped, events, files, first, micro_batch, moments, order, planned, rows, steps

BY_PASSES = {"train.steps": None, "train.epochs": 1.0}
WORSE = {
    "data.train": "@/a.jsonl",
    "data.held_out": "@/z.jsonl",
    "data.learn_ends": "none",
    "train.steps": 3,
    "train.evaluate_every": 1,
    "train.schedule": "constant",
    "train.warmup": 0,
}
"""What is learned makes the held-out rows less likely with every step."""
HIGH = {"train.steps": 3, "train.stop_above": 1e-3, "train.stop_above_steps": 1}
LAST = {"adapter.last_blocks": 1, "train.cache_frozen": False}

CASES = {
    "train.steps": Case(3, planned),
    "train.epochs": Case(2.0, planned, BY_PASSES),
    "train.tokens": Case(2000, planned, {"train.steps": None, "train.tokens": 60}),
    "train.minutes": Case(2.0, planned, {"train.steps": None, "train.minutes": 1.0}),
    "train.batch_size": Case(3, order),
    "train.batch_tokens": Case(200, order, {"train.batch_size": None, "train.batch_tokens": 60}),
    "train.micro_batch_tokens": Case(48, micro_batch),
    "train.learning_rate": Case(0.02, steps),
    "train.schedule": Case("constant", steps),
    "train.warmup": Case(2, steps),
    "train.min_learning_rate": Case(0.04, steps),
    "train.optimizer": Case("adamw-8bit", moments, needs="bitsandbytes"),
    "train.weight_decay": Case(0.5, steps),
    "train.betas": Case([0.5, 0.9], steps),
    "train.eps": Case(0.1, steps),
    "train.max_grad_norm": Case(1e-6, steps),
    "train.neftune_alpha": Case(5.0, first),
    "train.recompute": Case(True, first),
    "train.memory_forecast": Case("refuse", cramped),
    "train.cache_frozen": Case(True, files, LAST),
    "train.evaluate_every": Case(1, events, {"train.steps": 2, "train.evaluate_every": 2}),
    "train.save_every": Case(1, events, {"train.evaluate_every": 2}),
    "train.keep_checkpoints": Case(1, files, {"train.steps": 4, "train.save_every": 1, "data.held_out": None}),
    "train.publish": Case("last", steps, WORSE),
    "train.stop_after_no_gain": Case(1, events, WORSE),
    "train.stop_above": Case(1e-3, events, {**HIGH, "train.stop_above": 1e6}),
    "train.stop_above_steps": Case(2, events, HIGH),
    "train.seed": Case(7, rows),
}

"""The keys of every adapter method: by the name that methods share, and by method where one needs something else."""

from __future__ import annotations

from observed import Case, first, steps
from records import is_fixed

from tunesmith.adapters import METHODS

BESIDE_EMBEDDINGS = {"adapter.targets": ["all-linear", "embed_tokens"]}
RELORA = {"train.steps": 5, "adapter.restart_every": 3, "adapter.rewarm": 0}
DELTA = {"train.steps": 4, "adapter.start_step": 1}

SHARED = {
    "targets": Case("attention", first),
    "last_blocks": Case(1, first),
    "train_in_full": Case(["norms"], first),
    "r": Case(3, first),
    "alpha": Case(5.0, first),
    "rank_stabilised": Case(True, first),
    "lr_ratio": Case(4.0, first),
    "embedding_lr_ratio": Case(4.0, first, BESIDE_EMBEDDINGS),
    "dropout": Case(0.5, first),
    "num_tokens": Case(3, first),
    "init_text": Case("what is it", first),
}

OWN = {
    "lora.start": Case("pissa", first),
    "lora.svd_iterations": Case(0, first, {"adapter.start": "pissa"}),
    "vera.d_initial": Case(0.3, first),
    "ia3.feedforward": Case("key-value", first),
    "delta-lora.update_ratio": Case(1.5, steps, DELTA),
    "delta-lora.start_step": Case(2, steps, DELTA),
    "relora.restart_every": Case(2, steps, RELORA),
    "relora.rewarm": Case(2, steps, RELORA),
    "relora.moments_kept": Case(0.5, steps, RELORA),
    "bottleneck.activation": Case("relu", first),
    "prefix.projection": Case(8, first),
    "full.train_in_full": Case(["norms"], first, {"adapter.targets": "attention"}),
}

CASES = {
    f"adapter.{method}.{name}": OWN.get(f"{method}.{name}") or SHARED[name]
    for method, module in METHODS.items()
    for name, field in module.Settings.model_fields.items()
    if (f"{method}.{name}" in OWN or name in SHARED) and not is_fixed(field.annotation)
}

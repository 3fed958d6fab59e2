"""The `train` section of a recipe."""

from __future__ import annotations

from typing import Literal

from tunesmith.settings import Settings


class TrainSettings(Settings):
    steps: int | None = None
    """Budget in optimizer steps. Give exactly one of steps, epochs, minutes (none: 3 epochs)."""
    epochs: float | None = None
    """Budget in passes over the rows."""
    minutes: float | None = None
    """Budget in minutes of training; evaluation is counted apart. Stops in time and keeps the best checkpoint."""
    batch_size: int = 8
    """Rows per optimizer step. How a step is cut into micro-batches never changes the result."""
    micro_batch_tokens: int | None = None
    """Most tokens in one forward pass; lowered by itself when memory runs out. None: chosen for the device."""
    learning_rate: float = 2e-4
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the learning rate falls after warm-up."""
    warmup: float = 0.03
    """Share of the budget (below 1) or number of steps (1 and more)."""
    min_learning_rate: float = 0.0
    """Where linear and cosine end."""
    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    max_grad_norm: float | None = 1.0
    """Clip the gradient's norm; null: never."""
    recompute: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    evaluate_every: int | None = None
    """Steps between evaluations on the held-out rows; null: ten times over the budget, and at the end."""
    save_every: int | None = None
    """Steps between checkpoints; null: at each evaluation."""
    keep_checkpoints: int = 2
    """How many of the last checkpoints stay on disk, beside the best."""
    stop_after_no_gain: int | None = None
    """Early stopping: evaluations in a row without a lower held-out loss; null: never."""
    seed: int = 0

"""The `train` section of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from tunesmith.settings import Contradiction, Settings
from tunesmith.train.every import Every, passes

BUDGETS = ("steps", "epochs", "tokens", "minutes")
"""Settings of which a run has one."""
DEFAULT_EPOCHS = 3.0
DEFAULT_BATCH_SIZE = 8
Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainSettings(Settings):
    steps: PositiveInt | None = None
    """Budget in optimizer steps. Give exactly one of steps, epochs, tokens, minutes (none: 3 epochs)."""
    epochs: PositiveFloat | None = None
    """Budget in passes over the rows."""
    tokens: PositiveInt | None = None
    """Budget in tokens of whole rows, learned or not, each time they come: ends with the first step by which so many
    have been read. For rows that are there beforehand, not written while training."""
    minutes: PositiveFloat | None = None
    """Budget in minutes of training; evaluation is counted apart. Stops in time and keeps the best checkpoint."""
    batch_size: PositiveInt | None = DEFAULT_BATCH_SIZE
    """Rows per optimizer step; null: batch_tokens says how much. How a step is cut into micro-batches never changes the
    result."""
    batch_tokens: PositiveInt | None = None
    """In place of batch_size: about so many tokens of whole rows per optimizer step, learned or not. Every pass over
    the rows has the same number of steps."""
    micro_batch_tokens: PositiveInt | None = None
    """Most tokens in one forward pass; lowered by itself when memory runs out. None: chosen for the device."""
    learning_rate: PositiveFloat = 2e-4
    """Its highest value, reached after warm-up. Where none is given: of preference and policy 1e-5, of reward
    and distill 1e-4."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the learning rate falls after warm-up."""
    warmup: NonNegativeFloat = 0.03
    """Share of the budget (below 1) or number of steps (1 and more)."""
    min_learning_rate: NonNegativeFloat = 0.0
    """Where linear and cosine end."""
    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"
    """adamw-8bit needs bitsandbytes."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's, decoupled from the gradient."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """AdamW's two rates of forgetting."""
    eps: PositiveFloat = 1e-8
    """AdamW's guard against division by zero."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Clip the gradient's norm; null: never."""
    neftune_alpha: PositiveFloat | None = None
    """NEFTune: uniform noise of alpha / sqrt(length x width) on the embeddings while training; null: none. Often 5."""
    recompute: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    memory_forecast: Literal["refuse", "tell", "off"] = "refuse"
    """What is done where a run is forecast to need more memory than is free: refuse it before any weight is read, tell
    and begin all the same; off: nothing is forecast."""
    cache_frozen: bool | None = None
    """Store on disk, once, what the blocks below adapter.last_blocks give for each row, and begin each pass there.
    null: where rows come more than once and the disk has room."""
    evaluate_every: Every | None = None
    """Steps between evaluations on the held-out rows, or passes over the rows: "0.25 epochs"; null: ten times over the
    budget, and at the end."""
    save_every: Every | None = None
    """Steps between checkpoints, or passes: "1 epoch"; null: at each evaluation."""
    keep_checkpoints: PositiveInt = 2
    """How many of the last checkpoints stay on disk, beside the best."""
    publish: Literal["best", "last"] = "best"
    """Which checkpoint becomes the run's adapter: that of the lowest held-out loss, or the last."""
    stop_after_no_gain: PositiveInt | None = None
    """Early stopping: evaluations in a row without a lower held-out loss; null: never."""
    stop_above: PositiveFloat | None = None
    """End the run where the loss has been above this for stop_above_steps in a row; null: never."""
    stop_above_steps: PositiveInt = 3
    """See stop_above."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of the start, the order of the rows, the split, dropout and noise."""

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise Contradiction(
                given[1],
                f"stands beside {given[0]}: a budget is given once, in {', '.join(BUDGETS[:-1])} or {BUDGETS[-1]}",
                f"take one of {', '.join(given)} out, or unset it on the command line: train.{given[1]}=",
            )
        if not given:  # frozen, and not counted among the settings that a person gave
            object.__setattr__(self, "epochs", DEFAULT_EPOCHS)
        return self

    @model_validator(mode="after")
    def _one_batch(self) -> Self:
        if self.batch_tokens is None and self.batch_size is None:
            object.__setattr__(self, "batch_size", DEFAULT_BATCH_SIZE)
        if self.batch_tokens is not None and self.batch_size is not None:
            if "batch_size" in self.model_fields_set:
                raise Contradiction(
                    "batch_tokens",
                    "stands beside batch_size: how much a step takes is given once",
                    "take one of them out, or unset it on the command line: train.batch_size=",
                )
            object.__setattr__(self, "batch_size", None)
        return self

    @field_validator("evaluate_every", "save_every")
    @classmethod
    def _steps_or_passes(cls, every: Every | None, info: ValidationInfo) -> Every | None:
        if isinstance(every, str) and passes(every) is None:
            raise Contradiction(
                info.field_name or "", f"is {every!r}", 'give a number of steps, or a text such as "0.25 epochs"'
            )
        return every

    @model_validator(mode="after")
    def _cache_holds(self) -> Self:
        if self.cache_frozen and self.neftune_alpha is not None:
            raise Contradiction(
                "cache_frozen",
                "has nothing that stays the same: neftune_alpha puts other noise below the frozen blocks each time",
                "take one of them out",
            )
        return self

    @model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        if self.warmup >= 1 and not self.warmup.is_integer():
            raise Contradiction("warmup", "from 1 on counts whole steps", "give a share below 1, or a whole number")
        if self.min_learning_rate > self.learning_rate:
            raise Contradiction("min_learning_rate", f"is above learning_rate ({self.learning_rate:g})")
        return self

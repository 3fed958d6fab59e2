"""Supervised fine-tuning: cross entropy on the learned tokens.

Maths   loss = sum over learned tokens of w_t * -log p(x_t | x_<t), divided by the sum of w over the whole step
Denominator  "tokens": every learned token of the step weighs the same, however the step is cut
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from tunesmith.data.formats import LEARNABLE
from tunesmith.data.pack import micro_batches
from tunesmith.data.render import Renderer
from tunesmith.data.types import Batch, Example, Row
from tunesmith.kernels.linear_ce import linear_ce
from tunesmith.models.policy import Policy
from tunesmith.objectives.base import Foreseen, Loss, Stage, Step
from tunesmith.objectives.logprobs import targets_of
from tunesmith.objectives.order import Order
from tunesmith.objectives.settings import ObjectiveSettings


class SFTSettings(ObjectiveSettings):
    kind: Literal["sft"] = "sft"
    """Supervised fine-tuning: cross entropy on the learned tokens."""


Settings = SFTSettings
LEARNING_RATE = 2e-4


def takes(settings: Settings) -> tuple[type[Row], ...]:
    return LEARNABLE


def num_targets(example: Example) -> float:
    """Sum of the weights of what can be learned in one row."""
    return float(example.loss_weights[1:].sum())


class SFT:
    """Rows in a seeded order, `batch_size` to an optimizer step, or about `batch_tokens` tokens (`order.py`)."""

    head = None

    def __init__(
        self,
        train: Sequence[Example],
        held_out: Sequence[Example],
        *,
        batch_size: int | None,
        seed: int,
        shuffle: bool = True,
        share: bool = False,
        batch_tokens: int | None = None,
    ) -> None:
        """`share`: what rows of a micro-batch begin with in common is computed once; same numbers but for rounding."""
        self.train, self.held_out, self.share = train, held_out, share
        self._order = Order(
            [row.group for row in train],
            batch_size=batch_size,
            seed=seed,
            shuffle=shuffle,
            lengths=[len(row) for row in train],
            batch_tokens=batch_tokens,
        )
        self.steps_per_epoch = self._order.steps_per_epoch

    def begin(
        self,
        policy: Policy,
        *,
        num_steps: int | None,
        max_tokens: int,
        cache: Path,
        stage: Stage,
    ) -> list[str]:
        if all(row.group is None for row in self.train):
            return []
        self.share = policy.flat
        how = "is computed once" if policy.flat else "is computed for each of them, since batches run padded"
        return [f"what rows of one group begin with {how}"]

    def steps_until(self, tokens: int) -> int:
        return self._order.steps_until(tokens)

    def foreseen(self, flat: bool) -> Foreseen:
        made = copy.copy(self)
        made.share = self.share or (flat and any(row.group is not None for row in self.train))
        return Foreseen(made, self.train)

    def order(self, epoch: int) -> np.ndarray:
        """The order of rows in one epoch: a function of seed and epoch alone. Groups stay together."""
        return self._order.of(epoch)

    def steps(self, policy: Policy) -> Iterator[Step]:
        for rows, epoch in self._order.steps():
            examples = [self.train[row] for row in rows]
            yield Step(examples, {"loss": sum(map(num_targets, examples))}, epoch)

    def micro_batches(self, step: Step, max_tokens: int) -> list[Batch]:
        return micro_batches(step.examples, max_tokens, share=self.share)

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        hidden = policy.hidden(batch)
        where, targets, weights = targets_of(batch)
        head = policy.head()
        total = linear_ce(hidden[where], head.weight, head.bias, targets, weights, head.scale, head.softcap)
        return Loss({"loss": total}, {})

    @torch.no_grad()
    def evaluate(self, policy: Policy, max_tokens: int) -> dict[str, float]:
        """Mean loss per learned token on the held-out rows, and its perplexity."""
        if not self.held_out:
            return {}
        total, weight = 0.0, sum(map(num_targets, self.held_out))
        for batch in micro_batches(self.held_out, max_tokens, share=self.share):
            total += self.loss(policy, batch.to(policy.device)).sums["loss"].item()
        loss = total / weight
        return {"loss": loss, "perplexity": math.exp(min(loss, 50.0))}

    def held_out_lengths(self) -> list[int]:
        return [len(example) for example in self.held_out]

    def conclude(self, policy: Policy, max_tokens: int, folder: Path) -> list[str]:
        return []

    def state_dict(self) -> dict[str, Any]:
        return {"steps_done": self._order.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._order.done = int(state["steps_done"])


def build(
    settings: Settings,
    train: Sequence[Example],
    held_out: Sequence[Example],
    *,
    batch_size: int | None,
    seed: int,
    shuffle: bool = True,
    renderer: Renderer | None = None,
    batch_tokens: int | None = None,
) -> SFT:
    return SFT(train, held_out, batch_size=batch_size, seed=seed, shuffle=shuffle, batch_tokens=batch_tokens)


def needs_reference(settings: Settings) -> bool:
    return False

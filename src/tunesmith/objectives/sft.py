"""Supervised fine-tuning: cross entropy on the learned tokens.

Maths   loss = sum over learned tokens of w_t * -log p(x_t | x_<t), divided by the sum of w over the whole step
Denominator  "tokens": every learned token of the step weighs the same, however the step is cut
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunesmith.data.pack import micro_batches
from tunesmith.data.types import Batch, Example
from tunesmith.kernels.linear_ce import linear_ce
from tunesmith.models.policy import Policy
from tunesmith.objectives.base import Loss, Step


def targets_of(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The shift by one: (positions [n] whose hidden states predict, target ids [n], weights [n])."""
    weights = batch.loss_weights.clone()
    weights[[segment.start for segment in batch.segments if segment.parent is None]] = 0
    learned = weights.nonzero().squeeze(-1)
    before = learned - 1
    branches = [segment for segment in batch.segments if segment.parent is not None]
    if branches:  # the first token of a branch is foretold where what it shares ends
        place = torch.arange(-1, len(weights) - 1, device=weights.device)
        ends = [batch.segments[segment.parent].end - 1 for segment in branches if segment.parent is not None]
        place[[segment.start for segment in branches]] = torch.tensor(ends, device=weights.device)
        before = place[learned]
    return before, batch.token_ids[learned], weights[learned]


def num_targets(example: Example) -> float:
    """Sum of the weights of what can be learned in one row."""
    return float(example.loss_weights[1:].sum())


class SFT:
    """Rows in a seeded order, `batch_size` to an optimizer step; the last step of an epoch may be short."""

    def __init__(
        self,
        train: Sequence[Example],
        held_out: Sequence[Example],
        *,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        share: bool = False,
    ) -> None:
        """`share`: what rows of a micro-batch begin with in common is computed once; same numbers but for rounding."""
        self.train, self.held_out, self.share = train, held_out, share
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.steps_per_epoch = math.ceil(len(train) / batch_size)
        self._done = 0

    def order(self, epoch: int) -> np.ndarray:
        """The order of rows in one epoch: a function of seed and epoch alone. Groups stay together."""
        if not self.shuffle:
            return np.arange(len(self.train))
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.train))
        groups: dict[str, int] = {}
        for row in order:
            groups.setdefault(self._group(row), len(groups))
        return np.array(sorted(order, key=lambda row: groups[self._group(row)]), dtype=order.dtype)

    def _group(self, row: int) -> str:
        group = self.train[row].group
        return f"alone {row}" if group is None else f"group {group}"

    def steps(self, policy: Policy) -> Iterator[Step]:
        while True:
            epoch, within = divmod(self._done, self.steps_per_epoch)
            order = self.order(epoch)
            for index in range(within, self.steps_per_epoch):
                rows = order[index * self.batch_size : (index + 1) * self.batch_size]
                examples = [self.train[row] for row in rows]
                self._done += 1
                yield Step(examples, {"loss": sum(map(num_targets, examples))}, self._done / self.steps_per_epoch)

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

    def state_dict(self) -> dict[str, Any]:
        return {"steps_done": self._done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._done = int(state["steps_done"])

"""Reward modelling: a head that gives a preferred answer a higher number than another to the same prompt.

Paper        Bradley and Terry 1952; for language models Ouyang et al. 2022, arXiv:2203.02155, eq. 1; a margin:
             Touvron et al. 2023, arXiv:2307.09288, eq. 2; centring: Eisenstein et al. 2023, arXiv:2312.09244
Maths        loss = -log σ(r_c - r_r - m) + λ (r_c + r_r)²
Denominator  the pairs of the step
Head         one number, read from the state of the row's last token; what a pair begins with is computed once
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor

from tunesmith.adapters.heads import ClassHead
from tunesmith.data.pack import micro_batches_of
from tunesmith.data.problems import Problems
from tunesmith.data.render import Renderer
from tunesmith.data.types import CHOSEN, Answer, Batch, Example, Preference, Row
from tunesmith.errors import DataError
from tunesmith.models.policy import Policy
from tunesmith.objectives.base import Foreseen, Loss, Stage, Step
from tunesmith.objectives.order import Order
from tunesmith.objectives.settings import ObjectiveSettings


class RewardSettings(ObjectiveSettings):
    kind: Literal["reward"] = "reward"
    """A reward model: a number for an answer, learned from pairs of which one is preferred."""
    margin: NonNegativeFloat = 0.0
    """How much higher the preferred answer should be, in units of the reward. A row's column `margin` goes before."""
    centring: NonNegativeFloat = 0.0
    """λ: holds the rewards of a pair around 0, for example 0.01 (TRL's center_rewards_coefficient)."""


Settings = RewardSettings
LEARNING_RATE = 1e-4


def takes(settings: Settings) -> tuple[type[Row], ...]:
    return (Preference,)


def needs_reference(settings: Settings) -> bool:
    return False


def bradley_terry(chosen: Tensor, rejected: Tensor, margins: Tensor, centring: float) -> Tensor:
    """Rewards [n] and margins [n] -> losses [n]."""
    return -F.logsigmoid(chosen - rejected - margins) + centring * (chosen + rejected) ** 2


class RewardModelling:
    """Pairs in a seeded order, `batch_size` to an optimizer step."""

    def __init__(
        self,
        train: Sequence[Example],
        held_out: Sequence[Example],
        settings: RewardSettings,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        share: bool | None = None,
    ) -> None:
        """`train`, `held_out`: `Answer`s, of a pair the chosen one right before the rejected one.

        `share`: what a pair begins with is computed once; None: where batches run without padding.
        """
        self.settings, self.head = settings, ClassHead("reward")
        self.train, self.held_out = _pairs(train), _pairs(held_out)
        problems = Problems("rows have a margin that is no finite number")
        for answer in (pair[0] for pair in (*self.train, *self.held_out)):
            if isinstance(answer.margin, str) or not math.isfinite(answer.margin or 0.0):
                what = "the margin is no finite number"
                problems.add(DataError(what, where=str(answer.origin), found=str(answer.margin)))
        problems.raise_if_any()
        self.share, self._may_share = bool(share), share is not False
        self._order = Order(
            [None] * len(self.train),
            batch_size=batch_size,
            seed=seed,
            shuffle=shuffle,
            lengths=[sum(map(len, pair)) for pair in self.train],
        )
        self.steps_per_epoch = self._order.steps_per_epoch

    def begin(self, policy: Policy, *, num_steps: int | None, max_tokens: int, cache: Path, stage: Stage) -> list[str]:
        self.share = policy.flat and self._may_share
        return []

    def steps_until(self, tokens: int) -> int:
        return self._order.steps_until(tokens)

    def foreseen(self, flat: bool) -> Foreseen:
        made = copy.copy(self)
        made.share = flat and self._may_share
        return Foreseen(made, [answer for pair in self.train for answer in pair], sides=2)

    def steps(self, policy: Policy) -> Iterator[Step]:
        for rows, epoch in self._order.steps():
            examples = [example for row in rows for example in self.train[row]]
            yield Step(examples, self._denominators(len(rows)), epoch)

    def micro_batches(self, step: Step, max_tokens: int) -> list[Batch]:
        return micro_batches_of(_pairs(step.examples), max_tokens, share=self.share)

    def loss(self, policy: Policy, batch: Batch) -> Loss:
        rewards = policy.scores(batch).squeeze(-1)
        answers = [cast(Answer, batch.examples[leaf]) for leaf in batch.leaves]
        wanted = torch.tensor([answer.side == CHOSEN for answer in answers], device=rewards.device)
        chosen, rejected = rewards[wanted], rewards[~wanted]
        margins = torch.tensor(
            [self._margin(answer) for answer in answers if answer.side == CHOSEN],
            dtype=rewards.dtype,
            device=rewards.device,
        )
        losses = bradley_terry(chosen, rejected, margins, self.settings.centring)
        apart = (chosen - rejected).detach()
        metrics = {
            "rewards/chosen": chosen.detach().sum(),
            "rewards/rejected": rejected.detach().sum(),
            "rewards/margins": apart.sum(),
            "rewards/accuracies": (apart > 0).sum(),
        }
        return Loss({"loss": losses.sum()}, metrics)

    @torch.no_grad()
    def evaluate(self, policy: Policy, max_tokens: int) -> dict[str, float]:
        """The loss and the metrics of training, over the held-out pairs."""
        totals = dict[str, float]()
        for batch in micro_batches_of(self.held_out, max_tokens, share=self.share):
            found = self.loss(policy, batch.to(policy.device))
            for name, value in (found.sums | found.metrics).items():
                totals[name] = totals.get(name, 0.0) + value.item() / len(self.held_out)
        return totals

    def held_out_lengths(self) -> list[int]:
        return [len(example) for unit in self.held_out for example in unit]

    def conclude(self, policy: Policy, max_tokens: int, folder: Path) -> list[str]:
        return []

    def state_dict(self) -> dict[str, Any]:
        return {"steps_done": self._order.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._order.done = int(state["steps_done"])

    def _margin(self, answer: Answer) -> float:
        return self.settings.margin if answer.margin is None else float(answer.margin)

    def _denominators(self, num_pairs: int) -> dict[str, float]:
        names = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
        return dict.fromkeys(names, float(num_pairs))


def _pairs(examples: Sequence[Example]) -> list[list[Answer]]:
    answers = cast(Sequence[Answer], examples)
    return [list(pair) for pair in zip(answers[::2], answers[1::2], strict=True)]


def build(
    settings: Settings,
    train: Sequence[Example],
    held_out: Sequence[Example],
    *,
    batch_size: int,
    seed: int,
    shuffle: bool = True,
    renderer: Renderer | None = None,
) -> RewardModelling:
    return RewardModelling(train, held_out, settings, batch_size=batch_size, seed=seed, shuffle=shuffle)

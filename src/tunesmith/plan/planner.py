"""What a recipe needs on this machine: a trial of its step, turned into bytes and seconds.

Many recipes side by side are tried on a model of few blocks, and what a block more adds is taken to be the same for
each: exact where blocks are alike, and a small part of the work.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from tunesmith.adapters import store
from tunesmith.adapters.targets import anatomy
from tunesmith.data.prepare import Prepared
from tunesmith.data.types import Example
from tunesmith.models.load import pick_device, without_weights
from tunesmith.objectives import sft
from tunesmith.objectives.base import Objective
from tunesmith.plan.memory import Memory, needed
from tunesmith.plan.speed import Pace
from tunesmith.plan.step import Parts, Trial, Work, try_step
from tunesmith.recipe import Recipe
from tunesmith.session import adapter_folder
from tunesmith.train.budget import Budget
from tunesmith.train.every import passes
from tunesmith.train.memory import default_micro_batch_tokens

FEW, MORE = 2, 4
"""Blocks of the two models that stand in for a deep one."""
EVALUATING = 0.35
"""Time of a forward pass as a share of a whole step's."""
WIDE = 4
"""Bytes of a number in fp32, in which a merge is proved."""


@dataclass(frozen=True)
class Need:
    """What one recipe takes."""

    trial: Trial
    memory: int
    """Bytes at the peak of training, the process counted in."""
    serving: int
    """Bytes at the peak of answering a row of the longest length."""
    merging: int | None
    """Bytes at the peak of `tunesmith merge`, proof included; None: its method cannot be merged."""
    num_steps: int | None
    """None: the clock ends the run."""
    step_tokens: float
    """Of an optimizer step of mean size."""
    step_seconds: float | None
    """Of such a step; None: not measured."""
    seconds: float | None
    """Of the whole run, evaluations too."""


class Planner:
    """One recipe's rows and model, and what others that differ from it need."""

    def __init__(
        self,
        recipe: Recipe,
        tokenizer: PreTrainedTokenizerBase,
        prepared: Prepared,
        objective: Objective,
        memory: Memory,
        *,
        pace: Pace | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.tokenizer, self.prepared, self.memory, self.pace = tokenizer, prepared, memory, pace
        self.trust_remote_code = trust_remote_code
        hollow = without_weights(recipe.model, trust_remote_code=trust_remote_code, head=objective.head)
        self.num_blocks = 0 if hollow is None else len(anatomy(hollow).blocks)
        if recipe.model.adapter is not None and hollow is not None:
            own = store.settings_of(adapter_folder(Path(recipe.model.adapter).expanduser()), hollow)
            recipe = recipe.model_copy(update={"adapter": own})
        self.recipe = recipe
        self.rows: Sequence[Example] = prepared.train
        self.objective = objective
        self.is_stand_in = bool(recipe.objective.answer_tokens) or hasattr(objective, "teacher")
        self.budget = Budget(recipe.train, objective.steps_per_epoch)
        lengths = [len(row) for row in prepared.train]
        tokens = sum(lengths) / max(1, objective.steps_per_epoch)
        if self.is_stand_in:
            more = recipe.objective.answer_tokens
            each = getattr(recipe.objective, "num_generations", 1)
            batch = (recipe.train.batch_size or 1) * each
            self.rows = lengthened(prepared.train, more)
            stand_in: Any = sft.build(sft.Settings(), self.rows, [], batch_size=batch, seed=recipe.train.seed)
            self.objective = stand_in
            tokens = batch * (sum(lengths) / max(1, len(lengths)) + more)
        self.step_tokens = tokens
        """Of an optimizer step of mean size."""
        self.longest = max(map(len, self.rows), default=1)
        self.num_held_out = sum(map(len, prepared.held_out))

    def micro_tokens(self, recipe: Recipe) -> int:
        return recipe.train.micro_batch_tokens or default_micro_batch_tokens(pick_device(recipe.model.device))

    def trial(self, recipe: Recipe, *, quick: bool = False, longest: int | None = None) -> Trial:
        """One step of `recipe`, whose rows are those of the planner's own. `quick`: by two models of few blocks."""

        def tried(blocks: int | None) -> Trial:
            return try_step(
                recipe,
                self.tokenizer,
                self.objective,
                self.micro_tokens(recipe),
                self.rows,
                trust_remote_code=self.trust_remote_code,
                blocks=blocks,
                longest=longest,
            )

        if not quick or self.num_blocks <= MORE + FEW or recipe.adapter.last_blocks is not None:
            return tried(None)
        return deeper(tried(FEW), tried(MORE), self.num_blocks)

    def need(self, recipe: Recipe, *, quick: bool = False, longest: int | None = None) -> Need:
        trial = self.trial(recipe, quick=quick, longest=longest)
        kind, base = self.memory.kind, self.memory.held
        parts = trial.parts
        answering = replace(parts, gradients=0, optimizer=0, peak=parts.answering)
        merging = None
        if trial.mergeable:
            merging = needed(replace(answering, peak=parts.weights + 2 * WIDE * trial.counts.total), kind, base)
        tokens = self.step_tokens
        step_seconds = total = None
        if self.pace is not None:
            batches = max(1, math.ceil(tokens / self.micro_tokens(recipe)))
            share, work = tokens / trial.tokens, trial.work
            step_seconds = self.pace.seconds(Work(work.flops * share, work.moved * share, work.operations * batches))
            if self.budget.num_steps is not None:
                held_out = self.num_held_out / max(tokens, 1)
                total = step_seconds * (self.budget.num_steps + EVALUATING * self.evaluations() * held_out)
        return Need(
            trial,
            needed(parts, kind, base),
            needed(answering, kind, base),
            merging,
            self.budget.num_steps,
            tokens,
            step_seconds,
            total,
        )

    def evaluations(self) -> float:
        """How often the held-out rows are looked at."""
        every, steps = self.recipe.train.evaluate_every, self.budget.num_steps or 0
        if not self.prepared.held_out:
            return 0.0
        if isinstance(every, str):
            return float(steps / max(1, self.objective.steps_per_epoch) / (passes(every) or 1))
        return 10.0 if every is None else steps / every


def deeper(few: Trial, more: Trial, blocks: int) -> Trial:
    """What a model of `blocks` blocks does, from one of `FEW` and one of `MORE`."""
    times = (blocks - FEW) / (MORE - FEW)

    def at(one: float, other: float) -> int:
        return round(one + (other - one) * times)

    parts = Parts(**{name: at(value, getattr(more.parts, name)) for name, value in vars(few.parts).items()})
    counts = replace(
        few.counts,
        trained=at(few.counts.trained, more.counts.trained),
        total=at(few.counts.total, more.counts.total),
    )
    work = Work(**{name: at(value, getattr(more.work, name)) for name, value in vars(few.work).items()})
    return replace(few, parts=parts, counts=counts, work=work)


LOOKED_AT_ROWS = 500
"""Of rows that others stand in for: the longest of all, so many."""


def lengthened(rows: Sequence[Example], more: int) -> list[Example]:
    """The longest rows, each with an answer of `more` learned tokens behind it; 0: as they are, all learned."""
    chosen = sorted(rows, key=len, reverse=True)[:LOOKED_AT_ROWS]
    made = []
    for row in chosen:
        ids = np.concatenate([row.token_ids, np.zeros(more, dtype=np.int64)])
        weights = np.ones(len(ids), dtype=np.float32)
        weights[: len(row) if more else 0] = 0.0
        made.append(Example(ids, weights, row.origin))
    return made

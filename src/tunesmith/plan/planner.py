"""What a recipe needs on this machine: a trial of its step, turned into bytes and seconds.

Many recipes side by side are tried on a model of few blocks, where blocks are alike: what a block more adds is the same
for each then, and a small part of the work. Where they are not, each is tried on the whole model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from tunesmith.adapters import store
from tunesmith.adapters.adapter_set import Counts
from tunesmith.adapters.targets import anatomy
from tunesmith.data.prepare import Prepared
from tunesmith.models.generate import CACHE_BYTES, MAX_ROWS, bytes_per_token
from tunesmith.models.load import pick_device, pick_dtype
from tunesmith.objectives.base import Foreseen, Objective
from tunesmith.plan.bench import Bench, Cut, Work
from tunesmith.plan.memory import Memory, needed
from tunesmith.plan.speed import Pace
from tunesmith.plan.step import Parts, Trial, try_step
from tunesmith.recipe import Recipe
from tunesmith.session import adapter_folder
from tunesmith.train.budget import Budget
from tunesmith.train.every import passes
from tunesmith.train.memory import default_micro_batch_tokens

FEW, MORE = 2, 4
"""Blocks of the two models that stand in for a deep one."""
EVALUATING = 0.35
"""Time of a forward pass as a share of a whole step's."""


@dataclass(frozen=True)
class Need:
    """What one recipe takes."""

    trial: Trial
    memory: int
    """Bytes at the peak of training, the process counted in."""
    teacher: int
    """Bytes of a teacher, and of its reading a batch, among them."""
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
        self.bench = Bench(recipe.model, tokenizer, objective, trust_remote_code=trust_remote_code)
        bare = self.bench.bare
        self.num_blocks = 0 if bare is None else len(anatomy(bare).blocks)
        if recipe.model.adapter is not None and bare is not None:
            own = store.settings_of(adapter_folder(Path(recipe.model.adapter).expanduser()), bare)
            recipe = recipe.model_copy(update={"adapter": own})
        self.recipe, self.objective = recipe, objective
        self.budget = Budget.of(recipe.train, objective)
        self.num_held_out = sum(map(len, prepared.held_out))
        self._teachers: dict[tuple[int, int], tuple[int, Work]] = {}
        """By the rows and tokens of a batch."""

    @property
    def foreseen(self) -> Foreseen:
        return self.bench.foreseen

    @cached_property
    def longest(self) -> int:
        return max(map(len, self.foreseen.rows), default=1)

    @cached_property
    def step_tokens(self) -> float:
        """Of the rows of an optimizer step of mean size, each counted whole."""
        return sum(map(len, self.foreseen.rows)) / max(1, self.foreseen.objective.steps_per_epoch)

    @cached_property
    def step_squares(self) -> float:
        """Of their lengths, summed."""
        return sum(len(row) ** 2 for row in self.foreseen.rows) / max(1, self.foreseen.objective.steps_per_epoch)

    def micro_tokens(self, recipe: Recipe) -> int:
        return recipe.train.micro_batch_tokens or default_micro_batch_tokens(pick_device(recipe.model.device))

    def trial(self, recipe: Recipe, *, quick: bool = False, cut: Cut | None = None) -> Trial:
        """One step of `recipe`, whose rows are those of the planner's own. `quick`: by models of few blocks, where that
        tells the same."""

        blocks, last = self.num_blocks, recipe.adapter.last_blocks

        def tried(blocks: int | None, last: int | None = None) -> Trial:
            one = recipe
            if last is not None:
                one = recipe.model_copy(update={"adapter": recipe.adapter.model_copy(update={"last_blocks": last})})
            return try_step(one, self.bench, self.micro_tokens(recipe), blocks=blocks, cut=cut)

        if not quick or blocks <= MORE + FEW or not self.bench.blocks_are_alike:
            return tried(None)
        if last is None:
            return deeper(tried(FEW), (tried(MORE), blocks))
        if min(last, blocks - last) < FEW:
            return tried(None)
        few, frozen, learning = tried(2 * FEW, FEW), tried(MORE + FEW, FEW), tried(MORE + FEW, MORE)
        return deeper(few, (frozen, blocks - last), (learning, last))

    def need(self, recipe: Recipe, *, quick: bool = False, cut: Cut | None = None) -> Need:
        trial = self.trial(recipe, quick=quick, cut=cut)
        kind, base = self.memory.kind, self.memory.held
        parts = trial.parts
        teacher, its_work = self._teacher(trial.rows, trial.tokens)
        answering = replace(parts, gradients=0, optimizer=0, peak=parts.answering)
        merging = None
        if trial.mergeable:
            merging = needed(replace(answering, peak=parts.merging), kind, base)
        tokens = self.step_tokens * trial.share
        step_seconds = total = None
        if self.pace is not None:
            batches = max(1, math.ceil(tokens / self.micro_tokens(recipe)))
            work = _of_a_step(replace(trial, work=trial.work + its_work), tokens, self.step_squares, batches)
            step_seconds = self.pace.seconds(work)
            if self.budget.num_steps is not None:
                held_out = self.num_held_out / max(tokens, 1)
                total = step_seconds * (self.budget.num_steps + EVALUATING * self.evaluations() * held_out)
        return Need(
            trial,
            needed(parts, kind, base, beside=teacher, written=self.written),
            teacher,
            needed(answering, kind, base),
            merging,
            self.budget.num_steps,
            tokens,
            step_seconds,
            total,
        )

    @cached_property
    def written(self) -> int:
        """Bytes of the keys and values of the answers that are written at a time, as long as they can become."""
        rows, model = min(self.foreseen.written, MAX_ROWS), self.bench.bare
        if not rows or model is None:
            return 0
        dtype = pick_dtype(self.recipe.model.dtype, pick_device(self.recipe.model.device))
        one = self.longest * bytes_per_token(model.config, dtype)
        return min(rows * one, max(one, CACHE_BYTES))

    def _teacher(self, rows: int, tokens: int) -> tuple[int, Work]:
        if (rows, tokens) not in self._teachers:
            self._teachers[rows, tokens] = self.bench.teacher(rows, tokens)
        return self._teachers[rows, tokens]

    def evaluations(self) -> float:
        """How often the held-out rows are looked at."""
        every, steps = self.recipe.train.evaluate_every, self.budget.num_steps or 0
        if not self.prepared.held_out:
            return 0.0
        if isinstance(every, str):
            return float(steps / max(1, self.objective.steps_per_epoch) / (passes(every) or 1))
        return 10.0 if every is None else steps / every


def deeper(few: Trial, *more: tuple[Trial, int]) -> Trial:
    """What a deep model does, from one of `FEW` blocks of each kind, frozen or not, and for each kind one of `MORE` of
    it, with how many there are in the deep one."""

    def at(one: float, others: Sequence[float]) -> int:
        grown = [(other - one) * (blocks - FEW) / (MORE - FEW) for other, (_, blocks) in zip(others, more, strict=True)]
        return round(one + sum(grown))

    def all_of(name: str) -> dict[str, Any]:
        others = [vars(getattr(trial, name)) for trial, _ in more]
        return {key: at(value, [other[key] for other in others]) for key, value in vars(getattr(few, name)).items()}

    return replace(few, parts=Parts(**all_of("parts")), counts=Counts(**all_of("counts")), work=Work(**all_of("work")))


def _of_a_step(trial: Trial, tokens: float, squares: float, batches: int) -> Work:
    """What a step of `tokens` does, the lengths of whose rows have the sum of squares `squares`: most grows with the
    tokens, attention between them with the squares."""
    share, work = tokens / trial.tokens, trial.work
    attended = work.attended * squares / max(1, trial.squares)
    flops = (work.flops - work.attended) * share + attended
    return Work(flops, work.moved * share, work.operations * batches, attended)

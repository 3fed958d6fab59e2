"""Where a run stands, how much of its budget is spent, and the learning rate that follows from it.

A budget is steps, passes over the rows, tokens of them, or minutes of training. Schedules and warm-up run over its
share that is spent, whatever its unit, so nothing else asks which it is. All but minutes come to a number of steps that
is known beforehand: of tokens it follows from the rows' lengths and their order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

from tunesmith.errors import RecipeError
from tunesmith.objectives.base import Objective
from tunesmith.train.schedule import multiplier
from tunesmith.train.settings import TrainSettings


@dataclass
class Progress:
    """Where a run stands; goes into every checkpoint as it is. Seconds are of training, evaluating or saving alone."""

    step: int = 0
    train_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    saving_seconds: float = 0.0
    num_tokens: int = 0
    num_learned: int = 0
    micro_tokens: int = 0
    loss_scale: float = 1.0
    last_step_seconds: float = 0.0
    evaluated_step: int = -1
    evaluated_share: float = 0.0
    no_gain: int = 0
    high_losses: int = 0
    """Steps in a row whose loss was above `train.stop_above`."""
    best_step: int | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)
    rewarm_from: int = 0
    """Step after which the learning rate began to rise anew."""
    rewarm_steps: int = 0
    """Over how many steps it does; 0: it never did."""

    @property
    def rewarmed(self) -> float:
        """What a renewed warm-up multiplies the learning rate of the step to come by."""
        if not self.rewarm_steps:
            return 1.0
        return min(1.0, (self.step + 1 - self.rewarm_from) / self.rewarm_steps)


class Budget:
    """`at` is always the run's own `Progress`."""

    def __init__(
        self,
        settings: TrainSettings,
        steps_per_epoch: int,
        steps_until: Callable[[int], int | None] | None = None,
    ) -> None:
        """`steps_until`: the objective's; without it a budget in tokens has no number of steps."""
        self.settings, self.steps_per_epoch, self._steps_until = settings, steps_per_epoch, steps_until
        for name in ("evaluate_every", "save_every"):
            every = getattr(settings, name)
            if isinstance(every, str) and steps_per_epoch == 0:
                raise RecipeError(
                    f"train.{name} counts passes over the rows, and this objective learns without any",
                    found=every,
                    fix="leave it out",
                )

    @classmethod
    def of(cls, settings: TrainSettings, objective: Objective) -> Self:
        return cls(settings, objective.steps_per_epoch, objective.steps_until)

    @cached_property
    def num_steps(self) -> int | None:
        """Of the whole run; None where the clock ends it."""
        settings = self.settings
        if self.steps_per_epoch == 0:
            return 0
        if settings.minutes is not None:
            return None
        if settings.steps is not None:
            return settings.steps
        if settings.tokens is not None:
            return self._steps_of(settings.tokens)
        return max(1, math.ceil(self.steps_per_epoch * (settings.epochs or 1.0) - 1e-9))

    def _steps_of(self, tokens: int) -> int:
        steps = None if self._steps_until is None else self._steps_until(tokens)
        if steps is None:
            raise RecipeError(
                "train.tokens does not say how many steps there are: the rows and their order are not known beforehand",
                found=f"{tokens:,} tokens",
                fix="give train.steps, train.epochs or train.minutes",
            )
        return steps

    @property
    def note(self) -> str | None:
        """What a person should know of the learning rate before the run, if anything."""
        if not self.num_steps or self.settings.warmup < 1 or self.settings.warmup <= self.num_steps:
            return None
        return (
            f"the warm-up of {self.settings.warmup:g} steps is longer than the budget of {self.num_steps} steps: the "
            f"learning rate rises to {self.num_steps / self.settings.warmup:.0%} of train.learning_rate and no further "
            "(train.warmup=0.1 makes it a tenth of the budget)"
        )

    @property
    def repeats(self) -> bool:
        """Whether rows are known to come more than once."""
        return self.num_steps is not None and self.num_steps > self.steps_per_epoch

    def share(self, *, step: int, seconds: float) -> float:
        """Share of the budget that these make up."""
        if self.num_steps is not None:
            return step / self.num_steps if self.num_steps else 1.0
        return seconds / (60.0 * (self.settings.minutes or 1.0))

    def spent(self, at: Progress) -> float:
        return self.share(step=at.step, seconds=at.train_seconds)

    def over(self, at: Progress) -> bool:
        """Whether another step does not fit; one in minutes is not begun where the last one would end late."""
        if self.num_steps is not None:
            return at.step >= self.num_steps
        return self.share(step=0, seconds=at.train_seconds + at.last_step_seconds) > 1.0

    def stops(self, at: Progress) -> str | None:
        """Why to end before the budget is spent, as the settings ask for it."""
        settings = self.settings
        if settings.stop_after_no_gain is not None and at.no_gain >= settings.stop_after_no_gain:
            return f"no gain in {at.no_gain} evaluation{'s' if at.no_gain != 1 else ''}"
        if settings.stop_above is not None and at.high_losses >= settings.stop_above_steps:
            return f"the loss was above {settings.stop_above:g} for {at.high_losses} steps in a row"
        return None

    def watch(self, at: Progress, loss: float) -> None:
        """Note the loss of a step."""
        above = self.settings.stop_above is not None and loss > self.settings.stop_above
        at.high_losses = at.high_losses + 1 if above else 0

    def seconds_left(self, at: Progress) -> float:
        if self.num_steps is None:
            return max(0.0, 60.0 * (self.settings.minutes or 0.0) - at.train_seconds)
        return (self.num_steps - at.step) * at.train_seconds / max(1, at.step)

    def learning_rate(self, at: Progress) -> float:
        """Of the step to come."""
        settings = self.settings
        if self.still_warming(at):
            return settings.learning_rate * at.rewarmed * (at.step + 1) / math.ceil(settings.warmup)
        floor = settings.min_learning_rate / settings.learning_rate
        factor = multiplier(settings.schedule, self.spent(at), self._step_share(at), self._warmup(at), floor)
        return settings.learning_rate * at.rewarmed * factor

    def still_warming(self, at: Progress) -> bool:
        """Whether a warm-up that counts steps is not over."""
        return self.settings.warmup >= 1 and at.step < self.settings.warmup

    def _step_share(self, at: Progress) -> float:
        if self.num_steps is not None:
            return 1.0 / self.num_steps
        return max(self.share(step=0, seconds=at.last_step_seconds), 0.01 * self._warmup(at))

    def _warmup(self, at: Progress) -> float:
        """As a share of the budget."""
        warmup = self.settings.warmup
        if warmup < 1:
            return warmup
        if self.num_steps is not None:
            return min(warmup / self.num_steps, 0.999)
        per_step = self.share(step=0, seconds=at.train_seconds / max(1, at.step))
        return min(0.999, warmup * per_step) if at.step >= warmup else 0.999

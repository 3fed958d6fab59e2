"""The trials of a search, each an ordinary run folder that is left and gone on with.

folder/cells/…      a run for each trial, stopped where it fell behind; `tunesmith train FOLDER --resume` goes on
folder/data/…       the rows that trials read, and those that are kept to confirm what is found
folder/logs/…       what each process printed
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tunesmith.compare.grid import Arm, Cell, cell
from tunesmith.compare.process import Runner, alone_in, in_process, interruptible, shown
from tunesmith.compare.worker import Order, reached
from tunesmith.errors import Interrupted
from tunesmith.notation import write_inline
from tunesmith.plot import read_metrics
from tunesmith.progress import Progress, seconds
from tunesmith.search.checks import Plan, impossible, plan
from tunesmith.search.confirm import confirming
from tunesmith.search.rungs import steps_of
from tunesmith.search.settings import Search
from tunesmith.search.space import Seen, Values, propose
from tunesmith.train.signals import Signals


@dataclass
class Trial:
    """One way of setting the recipe, and how far it came."""

    number: int
    values: Values
    cell: Cell
    is_own: bool
    """Whether these are the recipe's own settings."""
    failed: str | None = None
    rungs: list[tuple[int, float]] = field(default_factory=list)
    """(step, held-out loss there) of each rung."""

    @property
    def title(self) -> str:
        return said(self.values)

    @property
    def step(self) -> int:
        return reached(self.cell.folder)

    @property
    def losses(self) -> dict[int, float]:
        """Held-out losses by step."""
        _, evaluations = read_metrics(self.cell.folder / "metrics.jsonl")
        return {line["step"]: line["metrics"]["loss"] for line in evaluations}

    def loss_at(self, step: int) -> float:
        """Held-out loss at a step; between two evaluations of a run that was beyond it already, on the line between
        them. Infinite where the trial failed or never came so far."""
        losses = self.losses
        if step in losses:
            return losses[step]
        before, after = [s for s in losses if s < step], [s for s in losses if s > step]
        if not before or not after:
            return math.inf
        low, high = max(before), min(after)
        return losses[low] + (losses[high] - losses[low]) * (step - low) / (high - low)

    @property
    def order(self) -> tuple[float, float]:
        """Sorts by how far it came, then by its loss there."""
        return (math.inf, math.inf) if not self.rungs else (-self.rungs[-1][0], self.rungs[-1][1])


@dataclass
class Searched:
    """A search after its trials."""

    search: Search
    plan: Plan
    trials: list[Trial]
    study: str | None = None
    """As YAML, what asks whether the best is more than noise."""
    unconfirmed: str | None = None
    """Why there is no such study, where something else than the recipe's own settings was found."""

    @property
    def best(self) -> Trial | None:
        """The trial with the lowest loss of those that came furthest; None: all failed."""
        trial = min(self.trials, key=lambda trial: trial.order)
        return trial if trial.rungs and math.isfinite(trial.rungs[-1][1]) else None

    @property
    def steps(self) -> int:
        """Updates of all trials."""
        return sum(trial.step for trial in self.trials)


def said(values: Mapping[str, Any]) -> str:
    """adapter.lr_ratio: 4 is "lr_ratio 4"."""
    return ", ".join(f"{key.rpartition('.')[2]} {write_inline(value)}" for key, value in values.items())


def run_trials(
    search: Search,
    *,
    trust_remote_code: bool = False,
    runner: Runner = in_process,
    progress: Progress | None = None,
    command: str = "",
) -> Searched:
    """The search, or what is missing of it; `Interrupted` says what to type to go on."""
    progress = progress or Progress()
    with alone_in(search.folder):
        with progress.stage("checking the search"):
            planned = plan(search, trust_remote_code=trust_remote_code)
        for line in planned.lines():
            progress.say(line)
        with interruptible(command or f"tunesmith search {shlex.quote(search.source)}") as signals:
            searched = _Hunt(search, planned, runner, progress, signals, trust_remote_code).run()
        return _to_be_confirmed(searched, trust_remote_code)


def _to_be_confirmed(searched: Searched, trust_remote_code: bool) -> Searched:
    """With the study of what was found; of the recipe's own settings there is nothing to ask."""
    plan, best = searched.plan, searched.best
    if best is None or best.is_own:
        return searched
    study, missing = confirming(
        searched.search, plan.recipe, plan.kept, best.values, plan.seed, trust_remote_code=trust_remote_code
    )
    return replace(searched, study=study, unconfirmed=missing)


class _Hunt:
    def __init__(
        self,
        search: Search,
        planned: Plan,
        runner: Runner,
        progress: Progress,
        signals: Signals,
        trust_remote_code: bool,
    ) -> None:
        self.search, self.plan, self.runner, self.progress = search, planned, runner, progress
        self.signals, self.trust_remote_code = signals, trust_remote_code
        self.trials: list[Trial] = []
        self.steps_done, self.seconds_done = 0, 0.0
        self.steps_left = steps_of(planned.rungs) or planned.budget

    def run(self) -> Searched:
        self._halve() if self.plan.rungs else self._one_after_the_other()
        return Searched(self.search, self.plan, self.trials)

    def _halve(self) -> None:
        first = self.plan.rungs[0]
        while len(self.trials) < first.trials:
            trial = self._next(lambda trial: trial.loss_at(first.step))
            if trial is None:
                break
            self._train(trial, first.step, f"[{trial.number}/{first.trials}] {trial.title}")
        left = self.trials
        for index, rung in enumerate(self.plan.rungs):
            if index:
                left = sorted(left, key=lambda trial: trial.rungs[-1][1])[: rung.trials]
                for place, trial in enumerate(sorted(left, key=lambda trial: trial.number), start=1):
                    self._train(trial, rung.step, f"[round {index + 1}, {place}/{len(left)}] {trial.title}")
            left = [trial for trial in left if trial.failed is None]
            for trial in left:
                trial.rungs.append((rung.step, trial.loss_at(rung.step)))

    def _one_after_the_other(self) -> None:
        """Each until the end of the recipe's run, of the budget, or until it falls behind the median."""
        spent = 0
        while len(self.trials) < self.plan.trials:
            room = min(self.plan.num_steps, self.plan.budget - spent)
            if room < self.plan.first_evaluation:
                break
            trial = self._next(lambda trial: trial.loss_at(trial.step))
            if trial is None:
                break
            rivals = [other.losses for other in self.trials[:-1] if other.failed is None]
            self._train(trial, room, f"[{trial.number}] {trial.title}", rivals)
            if trial.failed is None:
                trial.rungs.append((trial.step, trial.loss_at(trial.step)))
            spent += trial.step

    def _next(self, loss: Callable[[Trial], float]) -> Trial | None:
        """The next trial: the recipe's own settings, those given to start with, then what optuna proposes."""
        number = len(self.trials)
        seen = [Seen(trial.values, loss(trial)) for trial in self.trials]
        if number < len(self.plan.first):
            values: Values | None = self.plan.first[number]
        else:
            settings = self.search.settings
            values = propose(
                self.plan.space,
                seen,
                seed=settings.sampler_seed,
                trials=self.plan.trials,
                possible=lambda values: impossible(self.search, values) is None,
            )
        if values is None:
            return None
        changes = [(key, value, self.search.where("shared", key)) for key, value in self.search.settings.shared.items()]
        changes += [(key, value, self.search.where("space", key)) for key, value in values.items()]
        arm = Arm(said(values), tuple(changes))
        one = cell(self.search, arm, self.plan.seed, train_rows=self.plan.kept.train)
        trial = Trial(number + 1, values, one, values == self.plan.own)
        self.trials.append(trial)
        return trial

    def _train(self, trial: Trial, until: int, title: str, rivals: list[dict[int, float]] | None = None) -> None:
        """The trial until so many steps are done, in a process of its own."""
        self._stop_if_asked()
        before = trial.step
        self.steps_left -= max(0, until - before)
        if before >= until or (rivals and before and self._fell_behind(trial, rivals)):
            self.progress.say(f"{title}: done before, held-out loss {trial.loss_at(min(before, until)):.4f}")
            return
        left = (self.steps_left + until - before) * self.seconds_done / max(1, self.steps_done)
        soon = f"  (about {seconds(left)} left in all)" if self.steps_done else ""
        self.progress.say(f"{title}: steps {before + 1} to {until} …{soon}")
        begun = time.monotonic()
        outcome = shown(
            Order(
                name=trial.cell.folder.name,
                folder=str(trial.cell.folder),
                shared=str(self.search.folder / "shared"),
                recipe=trial.cell.resolved.recipe.explicit(),
                provenance=trial.cell.resolved.provenance,
                source=trial.cell.resolved.source,
                until=until,
                rivals=[{str(step): loss for step, loss in rival.items()} for rival in rivals or []],
                trust_remote_code=self.trust_remote_code,
            ),
            self.runner,
            self.progress,
            lambda: self.signals.received,
        )
        if outcome.stopped:
            self._stop_if_asked()
        self.seconds_done += time.monotonic() - begun
        self.steps_done += max(0, trial.step - before)
        trial.failed = outcome.failed
        if trial.failed is not None:
            self.progress.say(f"  failed, the search goes on: {trial.failed.splitlines()[0]}")

    def _fell_behind(self, trial: Trial, rivals: list[dict[int, float]]) -> bool:
        """Whether the run was stopped by its rivals when it was trained before."""
        from tunesmith.compare.pause import Pause
        from tunesmith.events import Evaluated

        pause = Pause(self.plan.num_steps + 1, rivals)
        told = [pause(Evaluated(step, {"loss": loss}, 0.0, False)) for step, loss in sorted(trial.losses.items())]
        return told[-1:] == ["stop"]

    def _stop_if_asked(self) -> None:
        number = self.signals.received
        if number is not None:
            raise Interrupted(f"the search was stopped in its trial {len(self.trials)}", signal_number=number)

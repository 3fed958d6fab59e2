"""Runs a study: trials of learning rates, cells, measures, and the report. What is finished is never done again.

folder/cells/…       an ordinary run folder for each cell, with measures.json and answers.jsonl in it; checkpoints go
                     once it is measured, and of a trial all but its recipe, summary and metrics
folder/bases/…       what was measured of the base without tuning
folder/logs/…        what each process printed
results.json, report.md, report.html, *.png
"""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from tunesmith.adapters.identity import public_name
from tunesmith.atomic import write_file, write_json
from tunesmith.compare.checks import Plan, plan
from tunesmith.compare.contents import content, digest, placeless
from tunesmith.compare.disk import finished, tidy, tidy_all
from tunesmith.compare.grid import Arm, Cell, cell, deciding, prompted, resolve
from tunesmith.compare.halving import Chosen, cost, halve, rounds
from tunesmith.compare.kinds import is_base_measured
from tunesmith.compare.process import Runner, alone_in, in_process, interruptible, shown
from tunesmith.compare.settings import Study
from tunesmith.compare.worker import Order, measured, trained
from tunesmith.errors import Interrupted
from tunesmith.progress import Progress, seconds
from tunesmith.train.signals import Signals


@dataclass(frozen=True)
class Done:
    """One row of the grid as it was left: a cell of an arm, or the base with so many shots."""

    arm: str
    seed: int | None
    """None: the base asked plainly, which no seed changes."""
    folder: Path
    failed: str | None = None
    model: str | None = None
    """Of the base: which it is."""


@dataclass
class Ran:
    """A study after its cells were run."""

    study: Study
    plan: Plan
    done: list[Done] = field(default_factory=list)
    chosen: dict[str, Chosen | None] = field(default_factory=dict)
    recipes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Each arm's resolved recipe (of its first seed), as plain values."""


def run_cells(
    study: Study,
    *,
    trust_remote_code: bool = False,
    runner: Runner = in_process,
    progress: Progress | None = None,
    command: str = "",
) -> Ran:
    """All that the study asks for, or what is missing of it; `Interrupted` says what to type to go on."""
    progress = progress or Progress()
    with alone_in(study.folder):
        tidy_all(study.folder / "cells")
        with progress.stage("checking the study"):
            planned = plan(study, trust_remote_code=trust_remote_code, say=progress.say)
        with interruptible(command or f"tunesmith compare {shlex.quote(study.source)}") as signals:
            return _Grid(study, planned, runner, progress, signals, trust_remote_code).run()


def bases_of(study: Study, planned: Plan) -> dict[str, Arm]:
    """What names a base in its row -> the arm that it is of: each model that answers in words, the baseline's first,
    with the adapter that training goes on from; one alone needs no name."""
    found: dict[tuple[str | None, ...], Arm] = {}
    for arm in sorted(planned.arms, key=lambda arm: arm.name != planned.baseline):
        recipe = resolve(study, arm).recipe
        if is_base_measured(recipe, planned.wanted.scores):
            adapter = recipe.model.adapter and content(recipe.model.adapter)
            found.setdefault((content(recipe.model.name), recipe.model.revision, adapter), arm)
    if len(found) == 1:
        return dict(zip([""], found.values(), strict=True))
    named: dict[str, Arm] = {}
    for arm in found.values():
        name = f", {public_name(resolve(study, arm).recipe.model.name)}"
        named[name if name not in named else f"{name} of {arm.name}"] = arm
    return named


class _Grid:
    def __init__(
        self,
        study: Study,
        planned: Plan,
        runner: Runner,
        progress: Progress,
        signals: Signals,
        trust_remote_code: bool,
    ) -> None:
        self.study, self.plan, self.runner, self.progress = study, planned, runner, progress
        self.signals, self.trust_remote_code = signals, trust_remote_code
        self.ran = Ran(study, planned)
        settings = study.settings
        self.rates: Sequence[float] = () if settings.learning_rates == "fixed" else settings.learning_rates
        self.seeds = settings.seeds
        trials = sum(count for count, _ in rounds(len(set(self.rates)))) if self.rates else 0
        self.bases = bases_of(study, planned)
        asked = len(self.bases) * sum(1 if shots == 0 else len(self.seeds) for shots in settings.prompting)
        self.total = len(planned.arms) * (len(self.seeds) + trials) + asked
        self.number = 0
        self.work_left = len(planned.arms) * (len(self.seeds) + (cost(len(set(self.rates))) if self.rates else 0))
        self.work_done, self.seconds_done = 0.0, 0.0

    def run(self) -> Ran:
        """Seed by seed, so that a study that is broken off has whole comparisons."""
        settings = self.study.settings
        for shots in settings.prompting:
            for of, arm in self.bases.items():
                for seed in [None] if shots == 0 else list(self.seeds):
                    self._base(arm, prompted(shots) + of, shots, seed)
        rates: dict[str, float | None] = {arm.name: None for arm in self.plan.arms}
        if self.rates:
            for arm in self.plan.arms:
                found = halve(self.rates, partial(self._trial, arm))
                self.ran.chosen[arm.name] = found
                rates[arm.name] = None if found is None else found.learning_rate
                if found is not None:
                    self.progress.say(f"{arm.name}: learning rate {found.learning_rate:g}")
        for seed in self.seeds:
            for arm in self.plan.arms:
                one = cell(self.study, arm, seed, learning_rate=rates[arm.name], train_rows=self.plan.train_rows)
                self.ran.recipes.setdefault(arm.name, one.resolved.plain)
                if self.rates and self.ran.chosen[arm.name] is None:
                    self._next(one.title, "every trial of a learning rate failed")
                    self.ran.done.append(Done(arm.name, seed, one.folder, "every trial of a learning rate failed"))
                    continue
                failed = self._do(self._order(one, measure=True), one.title, 1.0)
                self.ran.done.append(Done(arm.name, seed, one.folder, failed))
        return self.ran

    def _trial(self, arm: Arm, rate: float, number: int, share: float) -> float:
        one = cell(
            self.study,
            arm,
            self.study.settings.tuning_seed,
            learning_rate=rate,
            rung=number,
            share=share,
            train_rows=self.plan.train_rows,
        )
        if self._do(self._order(one, measure=False), one.title, share) is not None:
            return math.inf
        summary = json.loads((one.folder / "summary.json").read_text())
        loss = (summary.get("best_metrics") or {}).get("loss")
        return math.inf if loss is None else float(loss)

    def _base(self, arm: Arm, of: str, shots: int, seed: int | None) -> None:
        """The base of an arm, asked plainly or with examples. `of`: its row's name."""
        own = self.seeds[0] if seed is None else seed
        one = cell(self.study, arm, own, train_rows=self.plan.train_rows)
        recipe = one.resolved.recipe
        model, data = recipe.model.model_dump(mode="json"), recipe.data.model_dump(mode="json")
        if not shots:  # rows of training are read for the examples alone
            several = [] if isinstance(data["train"], str) else data["train"]
            data["train"] = [{**part, "path": None} for part in several]
        mark = digest([placeless([model, data]), shots, seed])
        name = f"{shots}-shot" + ("" if seed is None else f"-seed{seed}") + f"-{mark[:10]}"
        folder = self.study.folder / "bases" / name
        order = self._order(one, measure=True)
        order = replace(order, name=f"base-{name}", folder=str(folder), train=False, shots=shots)
        title = of + ("" if seed is None else f", seed {seed}")
        failed = self._do(order, title, 0.0)
        self.ran.done.append(Done(of, seed, folder, failed, public_name(recipe.model.name)))

    def _order(self, one: Cell, *, measure: bool) -> Order:
        _bring_home(one)
        return Order(
            name=one.folder.name,
            folder=str(one.folder),
            shared=str(self.study.folder / "forget"),
            recipe=one.resolved.recipe.explicit(),
            provenance=one.resolved.provenance,
            source=one.resolved.source,
            measure=asdict(self.plan.wanted) if measure else None,
            trust_remote_code=self.trust_remote_code,
        )

    def _next(self, title: str, what: str) -> None:
        self.number += 1
        self.progress.say(f"[{self.number}/{self.total}] {title}: {what}")

    def _do(self, order: Order, title: str, work: float) -> str | None:
        """Why the order failed, or None; `work` in budgets."""
        self._stop_if_asked()
        self.work_left -= work
        if self._is_done(order):
            self._next(title, "done before")
            return None
        self._next(title, "…" + (f"  ({self._left(work)})" if self.work_done else ""))
        begun = time.monotonic()
        outcome = shown(order, self.runner, self.progress, lambda: self.signals.received)
        taken = time.monotonic() - begun
        if outcome.stopped:
            self._stop_if_asked()
        if outcome.failed is not None:
            self.progress.say(f"  failed, the study goes on: {outcome.failed.splitlines()[0]}")
        elif work:
            self.work_done += work
            self.seconds_done += taken
        if outcome.failed is None and order.train and self._is_done(order):
            tidy(Path(order.folder), is_trial=order.measure is None)
        return outcome.failed

    def _is_done(self, order: Order) -> bool:
        """Of a trial what it learned may be gone: its loss is all that is asked for."""
        folder = Path(order.folder)
        if order.measure is None:
            return finished(folder)
        return (trained(folder) or not order.train) and measured(folder, self.plan.wanted.fingerprint)

    def _left(self, work: float) -> str:
        return f"about {seconds((self.work_left + work) * self.seconds_done / self.work_done)} left in all"

    def _stop_if_asked(self) -> None:
        number = self.signals.received
        if number is not None:
            done = max(0, self.number - 1)
            raise Interrupted(f"the study was stopped after {done} of {self.total} cells", signal_number=number)


def _bring_home(one: Cell) -> None:
    """A cell whose study, data or model was moved says where they are now: it is the same by their bytes."""
    record = one.folder / "provenance.json"
    now = json.loads(json.dumps(one.resolved.plain))
    try:
        then = json.loads(record.read_text())["recipe"]
        is_moved = deciding(then) != deciding(now) or then["output"]["folder"] != now["output"]["folder"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    if is_moved:
        write_json(record, {"recipe": now, "provenance": one.resolved.provenance})
        write_file(one.folder / "recipe.yaml", one.resolved.yaml)

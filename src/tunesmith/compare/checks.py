"""Everything that can be wrong with a study, said before its first model loads."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tunesmith.adapters.adapter_set import check as check_method
from tunesmith.assemble import refuse_unknown_targets
from tunesmith.atomic import write_file
from tunesmith.compare.contents import digest
from tunesmith.compare.disk import Sizes, refuse_full, sizes
from tunesmith.compare.grid import Arm, arms_of, cell, resolve, shorter, taken_out
from tunesmith.compare.halving import rounds
from tunesmith.compare.kinds import OF_ANSWERS, OF_PAIRS, kind_of, measures, refuse_odd, speaks
from tunesmith.compare.measure import Wanted, has_figures, shots_of, test_items
from tunesmith.compare.settings import Study, baseline_of
from tunesmith.compare.verdict import Measure
from tunesmith.data.prepare import Prepared
from tunesmith.data.reading.sources import read
from tunesmith.data.split import as_held_out, split
from tunesmith.errors import DataError, RecipeError, TunesmithError, together
from tunesmith.evaluate import scorers_named
from tunesmith.objectives.base import Objective
from tunesmith.progress import Progress
from tunesmith.recipe import Change, Resolved
from tunesmith.recipe_paths import DATA_SUFFIXES
from tunesmith.run import built, read_rows
from tunesmith.train.budget import Budget
from tunesmith.train.optim import check_optimizer

Say = Callable[[str], object]


@dataclass(frozen=True)
class Plan:
    """A study that can be run."""

    arms: tuple[Arm, ...]
    baseline: str
    wanted: Wanted
    measures: tuple[Measure, ...]
    """What arms are compared by; what decides comes first."""
    train_rows: str | None
    """In place of the recipe's file, where the test's rows were taken out of that."""


def plan(study: Study, *, trust_remote_code: bool = False, say: Say = lambda text: None) -> Plan:
    """The study's arms and measures, all of it checked; or every fault of a kind in one error."""
    settings = study.settings
    arms = arms_of(study)
    baseline = baseline_of(study, [arm.name for arm in arms])
    resolved = _resolved(study, arms)
    try:
        scorers_named(settings.test.scores)
    except RecipeError as error:
        raise error.at(study.where("test", "score")) from None
    _refuse_rates_without_rows(study, resolved)
    kinds = {kind_of(one.recipe) for one in resolved}
    refuse_odd(study, kinds)
    train_rows, test = _test_rows(study, arms, resolved)
    forget = settings.forget
    wanted = Wanted(
        test=test,
        limit=settings.test.limit,
        scores=settings.test.scores,
        gold=settings.test.gold,
        max_new_tokens=settings.test.max_new_tokens,
        batch_size=settings.test.batch_size,
        forget=None if forget is None else located(study, forget.text, "forget", "text"),
        forget_limit=50 if forget is None else forget.limit,
        forget_max_length=512 if forget is None else forget.max_length,
    )
    if wanted.forget is not None:
        read(wanted.forget, limit=1)
    own: list[Change] = [] if train_rows is None else taken_out(study, train_rows)
    own.append(("train.seed", settings.seeds[0], f"{study.source}, seeds"))
    ready = {arm.name: resolve(study, arm, own) for arm in arms}
    objectives = _read_all(ready, wanted, max(settings.prompting, default=0), trust_remote_code)
    _refuse_methods(study, arms, own, objectives)
    _refuse_full_disk(study, arms, ready, objectives, train_rows, trust_remote_code)
    wanted = _with_figures(study, resolved, wanted, say)
    if train_rows is not None:
        say(f"the test's rows are out of the training's: {test}")
    return Plan(tuple(arms), baseline, wanted, tuple(measures(kinds, wanted.scores)), train_rows)


def _with_figures(study: Study, resolved: Sequence[Resolved], wanted: Wanted, say: Say) -> Wanted:
    """`wanted`, without the loss where the test's rows have none; an error where nothing is left to measure."""
    kinds = {kind_of(one.recipe) for one in resolved}
    if not (kinds <= OF_ANSWERS or kinds <= OF_PAIRS):
        return replace(wanted, loss=False)
    if has_figures(resolved[0].recipe, wanted):
        return wanted
    if not wanted.scores:
        what = "answer" if kinds <= OF_ANSWERS else "pair of a preferred answer and another"
        raise RecipeError(
            f"the test's rows hold no {what}, and no score is asked for: nothing would be measured",
            where=study.where("test"),
            fix="give test.score, and test.gold with the column of the right answers",
        )
    told = "answers of their own: their loss is" if kinds <= OF_ANSWERS else "pairs: their order is"
    say(f"the test's rows hold no {told} not measured")
    return replace(wanted, loss=False)


def located(study: Study, text: str, *where: str) -> str:
    """A file's absolute path, looked for beside the study, then in the current folder; a hub id as it is."""
    if "://" in text:
        return text
    tried = [study.beside / Path(text).expanduser(), Path.cwd() / Path(text).expanduser()]
    for path in tried:
        if path.exists():
            return os.path.normpath(path)
    if text.startswith((".", "/", "~")) or text.lower().endswith((*DATA_SUFFIXES, ".txt")) or text.count("/") > 1:
        raise RecipeError(
            f"{'.'.join(where)}: there is no {text}",
            where=study.where(*where),
            notes={"looked for": " and ".join(dict.fromkeys(map(os.path.normpath, tried)))},
            fix="give its path from the study's folder or the current one",
        )
    return text


def _resolved(study: Study, arms: Sequence[Arm]) -> list[Resolved]:
    """Every arm's recipe; what is wrong with any of them is said at once."""
    found, errors, seen = [], list[TunesmithError](), set[str]()
    for arm in arms:
        try:
            found.append(resolve(study, arm))
        except RecipeError as error:
            if str(error) not in seen:  # what is wrong with the shared recipe is wrong with every arm
                seen.add(str(error))
                errors.append(error.noted("arm", arm.name))
    if errors:
        raise together(errors)
    return found


def _refuse_rates_without_rows(study: Study, resolved: Sequence[Resolved]) -> None:
    if study.settings.learning_rates == "fixed":
        return
    if any(one.recipe.data.held_out is None for one in resolved):
        raise RecipeError(
            "learning_rates has no rows to choose by",
            where=study.where("learning_rates"),
            fix="hold rows out in the recipe (data.held_out: 0.05); the test's rows choose nothing",
        )


def _test_rows(study: Study, arms: Sequence[Arm], resolved: Sequence[Resolved]) -> tuple[str | None, str]:
    """(training rows in place of the recipe's file or None, test rows), as files."""
    wanted = as_held_out(study.settings.test.rows)
    assert wanted is not None
    if wanted.file is not None:
        return None, located(study, wanted.file, "test", "rows")
    if any(not isinstance(one.recipe.data.train, str) for one in resolved):
        raise RecipeError(
            "test.rows takes rows away from the recipe's file, and data.train is a list of sources",
            where=study.where("test", "rows"),
            fix="give the test a file of its own",
        )
    sources = {digest(one.recipe.data.model_dump(mode="json")) for one in resolved}
    data = resolved[0].recipe.data
    if len(sources) > 1 and len({one.recipe.data.named for one in resolved}) > 1:
        raise RecipeError(
            "test.rows takes rows away from the recipe's file, and the arms have different ones",
            where=study.where("test", "rows"),
            fix="give the test a file of its own",
        )
    raw = read(data.named, split=data.split, subset=data.subset, limit=data.limit)
    try:
        parted = split(raw, data.model_copy(update={"held_out": wanted}), seed=0)
    except DataError as error:
        error.where = study.where("test", "rows")
        raise error.at(error.where) from None
    files = []
    for name, rows in (("train", parted.train), ("test", parted.held_out)):
        path = study.folder / "data" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(dict(row), ensure_ascii=False, default=str) + "\n" for _, row in rows)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_file(path, text)
        files.append(str(path))
    return files[0], files[1]


def _read_all(
    resolved: Mapping[str, Resolved], wanted: Wanted, shots: int, trust_remote_code: bool
) -> dict[str, Objective]:
    """Reads training and test rows once for each way in which arms read them, and tries the scores on them. Returns
    each arm's objective."""
    known: dict[str, Prepared] = {}
    shapes: set[str] = set()
    objectives: dict[str, Objective] = {}
    for name, one in resolved.items():
        recipe = one.recipe
        takes = [row.__name__ for row in recipe.takes]
        read_as = [recipe.model.model_dump(mode="json"), recipe.data.model_dump(mode="json"), takes]
        key = digest(read_as)
        if key not in known:
            with Progress(quiet=True) as quiet:
                _, known[key] = read_rows(recipe, trust_remote_code, quiet)
            if wanted.scores:
                try:
                    test_items(recipe, wanted, lambda text: None)
                except TunesmithError as error:
                    raise error.noted("arm", name) from None
            if speaks(recipe):
                shots_of(recipe, shots)
        try:
            objectives[name] = built(recipe, known[key])
            check_optimizer(recipe.train)
        except TunesmithError as error:
            raise error.noted("arm", name) from None
        served = getattr(recipe.objective, "sampler", None) is not None
        own = [one.model_dump(mode="json") for one in (recipe.model, recipe.adapter)]
        shape = digest([*own, speaks(recipe), served])
        if shape not in shapes:
            shapes.add(shape)
            try:
                refuse_unknown_targets(recipe, trust_remote_code, objectives[name].head)
            except TunesmithError as error:
                raise error.noted("arm", name) from None
    return objectives


def _refuse_full_disk(
    study: Study,
    arms: Sequence[Arm],
    resolved: Mapping[str, Resolved],
    objectives: Mapping[str, Objective],
    train_rows: str | None,
    trust_remote_code: bool,
) -> None:
    known: dict[str, Sizes | None] = {}
    found: list[tuple[Sizes, list[list[Path]]]] = []
    tried = study.settings.learning_rates
    rates: Sequence[float | None] = (None,) if isinstance(tried, str) else tried
    for arm in arms:
        recipe, head = resolved[arm.name].recipe, objectives[arm.name].head
        sections = [one.model_dump(mode="json") for one in (recipe.model, recipe.adapter)]
        key = digest([sections, recipe.train.keep_checkpoints, None if head is None else head.num_outputs])
        if key not in known:
            known[key] = sizes(recipe, head, trust_remote_code=trust_remote_code)
        if (made := known[key]) is not None:
            places = [
                [cell(study, arm, seed, learning_rate=rate, train_rows=train_rows).folder for rate in rates]
                for seed in study.settings.seeds
            ]
            found.append((made, places))
    refuse_full(study.folder, found, has_trials=not isinstance(tried, str))


def _refuse_methods(
    study: Study, arms: Sequence[Arm], own: Sequence[Change], objectives: Mapping[str, Objective]
) -> None:
    """What no run of an arm could do in its steps: whole, with every learning rate, and in every round of trials."""
    rates = [] if study.settings.learning_rates == "fixed" else sorted(set(study.settings.learning_rates))
    shares = [1.0, *(share for _, share in rounds(len(rates)))] if rates else [1.0]
    errors = list[TunesmithError]()
    for arm in arms:
        share = 1.0
        try:
            for share in shares:
                less = shorter(resolve(study, arm).recipe, share, study.source) if share < 1.0 else []
                for rate in rates:
                    said = study.where("learning_rates")
                    resolve(study, arm, [*own, *less, ("train.learning_rate", rate, said)])
                recipe = resolve(study, arm, [*own, *less]).recipe
                num_steps = Budget.of(recipe.train, objectives[arm.name]).num_steps
                if recipe.model.adapter is None:
                    check_method(recipe.adapter, num_steps, recipe.train.optimizer)
        except TunesmithError as error:
            errors.append(error.noted("arm", arm.name))
            if share < 1.0:
                error.noted("in", f"a trial of a learning rate, which has {share:g} of a run's budget")
    if errors:
        raise together(errors)

"""The assembler: a recipe into objects, objects into the loop. Nothing above or beside it builds a run."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from tunesmith.adapters import identity, store
from tunesmith.adapters.adapter_set import AdapterSet, refusal, unload
from tunesmith.adapters.adapter_set import check as check_method
from tunesmith.assemble import NAME, has_own_words, model_of, origin, refuse_unknown_targets
from tunesmith.data.cache.kept import prepare_once as prepare
from tunesmith.data.check.report import summary
from tunesmith.data.mixture import FROM_PYTHON
from tunesmith.data.prepare import Prepared
from tunesmith.data.templating.templates import install
from tunesmith.errors import CheckpointError, Interrupted, RecipeError, TunesmithError
from tunesmith.events import Ended, Listener
from tunesmith.machine import cache_folder
from tunesmith.models.load import (
    load_config,
    load_tokenizer,
    made_for,
    most_tokens,
    settle,
)
from tunesmith.models.policy import Policy
from tunesmith.models.room import is_out_of_memory
from tunesmith.objectives.base import Objective
from tunesmith.plan.advice import changed
from tunesmith.plan.main import plan as planned
from tunesmith.plan.main import what_fits
from tunesmith.plan.report import lines as plan_lines
from tunesmith.progress import Progress
from tunesmith.recipe import Recipe, Resolved
from tunesmith.record import Run, finished
from tunesmith.reporters import reporters
from tunesmith.reward_model import offer
from tunesmith.session import Session
from tunesmith.train.budget import Budget
from tunesmith.train.checkpoint import Checkpoints, Restored
from tunesmith.train.frozen import store_frozen
from tunesmith.train.loop import Job, Loop
from tunesmith.train.memory import default_micro_batch_tokens
from tunesmith.train.optim import check_optimizer
from tunesmith.train.publish import Publisher, published_step, take
from tunesmith.train.signals import Signals, watched

offer()


@dataclass
class Trained:
    """What a run made: its folder, how it ended, and the model with the trained adapter on."""

    folder: Path
    ended: Ended
    session: Session

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"


def train(
    resolved: Resolved,
    *,
    resume: bool = False,
    trust_remote_code: bool = False,
    listeners: Sequence[Listener] = (),
    rows: Iterable[Mapping[str, Any]] | None = None,
    quiet: bool = False,
    choose: Callable[[Prepared], Prepared] | None = None,
) -> Trained:
    """Train by a recipe; `rows` stand in for the recipe's file. Returns when the budget is spent.

    `choose` takes some of the prepared rows, for a rehearsal.
    """
    recipe = resolved.recipe
    if rows is None and recipe.data.train == FROM_PYTHON and not Path(FROM_PYTHON).exists():
        raise RecipeError(
            "the run's rows came from Python and are in no file",
            where=resolved.source,
            fix=f"give them again: tunesmith.train(tunesmith.load({str(resolved.folder)!r}), rows=rows, resume=True)",
        )
    with (
        Run.create(resolved.folder, resolved, resume) as run,
        watched() as signals,
        Progress(quiet=quiet, picture=run.picture) as progress,
        ExitStack() as on_exit,
        _told_how_to_go_on(run.folder, rows is not None),
        _said_where(resolved),
    ):
        for line in resolved.notes:
            progress.say(line)
        check_optimizer(recipe.train)
        earlier = run.trackers() if resume else {}
        output = recipe.output
        sinks = reporters(output.report_to, output.name or resolved.name, run.folder, earlier, output.project)
        for sink in sinks:
            on_exit.enter_context(closing(sink))
        run.remember_trackers(earlier | {sink.name: sink.run_id for sink in sinks if sink.run_id is not None})
        saved = _last_checkpoint(run, recipe, resume, progress)
        tokenizer, prepared = read_rows(recipe, trust_remote_code, progress, rows)
        for line in summary(prepared):
            progress.say(line)
        prepared = prepared if choose is None else choose(prepared)
        objective = built(recipe, prepared)
        budget = Budget.of(recipe.train, objective)  # what is wrong shows before any weight is loaded
        if budget.note is not None:
            progress.say(budget.note)
        refuse_unknown_targets(recipe, trust_remote_code, objective.head)
        if recipe.model.adapter is None:
            check_method(recipe.adapter, budget.num_steps, recipe.train.optimizer)
        if saved is None:  # a run that goes on has shown what it needs
            fits = what_fits(recipe, tokenizer, prepared, objective, progress, trust_remote_code=trust_remote_code)
            recipe = recipe if fits is None else changed(recipe, {"train.micro_batch_tokens": fits})
        loaded, policy, adapter_set = model_of(recipe, tokenizer, trust_remote_code, saved, progress, objective.head)
        before, begun = None if saved is None else bool(saved.state.get("frozen")), time.perf_counter()
        root = cache_folder() / "frozen"
        kept = store_frozen(policy, adapter_set, prepared, recipe.train, budget, root, before, progress)
        preparing = time.perf_counter() - begun + kept
        base = identity.identify(loaded.model, recipe.model.name, recipe.model.revision)
        is_own = has_own_words(recipe, trust_remote_code)
        write = policy.write = writer(adapter_set, tokenizer if is_own else None, base)
        begun = time.perf_counter()
        for line in _begin(objective, policy, budget, recipe.train.micro_batch_tokens, progress):
            progress.say(line)
        preparing += time.perf_counter() - begun + getattr(objective, "kept_seconds", 0.0)
        everyone: list[Listener] = [progress, run, *sinks, *listeners]
        loop = _loop(recipe, policy, adapter_set, write, objective, prepared, base, run, signals, everyone)
        if saved is not None:
            _same_run(saved, prepared, base.fingerprint, policy.reference_digest)
            if saved.state["threads"] != torch.get_num_threads():
                progress.say(
                    f"begun on {saved.state['threads']} threads, going on with {torch.get_num_threads()}: "
                    "sums may differ in their last bits"
                )
            loop.restore(saved)
        run.describe(**_facts(recipe, base, prepared, adapter_set), preparing_seconds=preparing)
        ended = loop.run()
        take(adapter_set, run.folder / "checkpoints", ended, published_step(ended, recipe.train.publish))
        for line in objective.conclude(policy, loop.at.micro_tokens, run.folder):
            progress.say(line)
        if objective.head is not None:
            store.note_head(run.folder / "adapter", objective.head)
            adapter_set.head = objective.head
        progress.say(f"adapter: {run.folder / 'adapter'}")
    session = Session(loaded.model, tokenizer, prepared.renderer, policy.switch, name=recipe.model.name, adapter=NAME)
    if is_own:
        session.base_tokenizer = partial(load_tokenizer, recipe.model.bare, trust_remote_code=trust_remote_code)
    session.stand(adapter_set)
    policy.switch.name = None
    if policy.reference_name is not None:
        unload(loaded.model, policy.reference_name)
    loaded.model.eval()
    return Trained(resolved.folder, ended, session)


@contextmanager
def _told_how_to_go_on(folder: Path, in_python: bool) -> Iterator[None]:
    """An interruption says what to type next; rows that came from Python have to come from there again."""
    try:
        yield
    except Interrupted as error:
        if not any((folder / "checkpoints").glob("step-*")):
            raise error.to_do("nothing was saved yet: start again") from None
        if in_python:
            call = f"tunesmith.train(tunesmith.load({str(folder)!r}), rows=rows, resume=True)"
            raise error.to_do(f"{call} goes on with the same rows") from None
        raise error.to_do(f"tunesmith train {shlex.quote(str(folder))} --resume") from None


@contextmanager
def _said_where(resolved: Resolved) -> Iterator[None]:
    """An error that names a setting says in which file and line it was given, too."""
    try:
        yield
    except TunesmithError as error:
        named = error.where or ""
        setting = max((key for key in resolved.provenance if named.startswith(key)), key=len, default=None)
        given = "default" if setting is None else resolved.provenance[setting]
        raise (error if given == "default" else error.noted("given in", given)) from None


def _last_checkpoint(run: Run, recipe: Recipe, resume: bool, progress: Progress) -> Restored | None:
    if not resume:
        return None
    saved = Checkpoints(run.checkpoints, recipe.train.keep_checkpoints).latest(progress.say)
    if saved is None and finished(run.folder) and (run.folder / "adapter").is_dir():
        raise RecipeError(
            "this run is finished, and it has no checkpoint to go on from",
            where=str(run.folder),
            fix="another output.folder, to train it again",
        )
    if saved is None:
        progress.say("no checkpoint yet: starting from the beginning")
    return saved


def read_rows(
    recipe: Recipe, trust_remote_code: bool, progress: Progress, rows: Iterable[Mapping[str, Any]] | None = None
) -> tuple[PreTrainedTokenizerBase, Prepared]:
    """Tokenizer and rows: everything that can be wrong with the data shows before any weight is loaded."""
    with progress.stage("loading the tokenizer"):
        config = load_config(recipe.model, trust_remote_code=trust_remote_code)
        _refuse_pair(recipe, settle(recipe.model, config, trust_remote_code=trust_remote_code))
        tokenizer = load_tokenizer(recipe.model, trust_remote_code=trust_remote_code, folder=origin(recipe))
        own = tokenizer.chat_template
        note = install(recipe.model.template, tokenizer) if recipe.model.template else None
    with progress.stage("reading the data"):
        prepared = prepare(
            recipe.data,
            tokenizer,
            seed=recipe.train.seed,
            root=cache_folder() / "prepared",
            say=progress.say,
            rows=rows,
            most_tokens=_room(recipe, config),
            made_for=made_for(config),
            takes=recipe.takes,
            replaced=own if own != tokenizer.chat_template else None,
        )
    return tokenizer, prepared if note is None else replace(prepared, notes=(*prepared.notes, note))


def _room(recipe: Recipe, config: Any) -> int | None:
    """Positions for a row between the adapter's virtual tokens and what the model may write; None: no limit."""
    most, folder = most_tokens(config), origin(recipe)
    before = recipe.adapter.virtual_tokens if folder is None else store.virtual_tokens(folder)
    return most if most is None else max(1, most - before - recipe.objective.answer_tokens)


def _refuse_pair(recipe: Recipe, storage: str) -> None:
    """A method that cannot stand beside the base's storage is refused before any weight is read."""
    reason = refusal(recipe.adapter, storage)
    if reason is not None:
        raise RecipeError(
            f"adapter.method {recipe.adapter.method} does not go with a base in {storage}: {reason}",  # type: ignore[attr-defined]
            fix="model.storage=plain, or another method (docs/storages.md has the table)",
        )


def built(recipe: Recipe, prepared: Prepared) -> Objective:
    """The objective of a recipe over its rows; what it cannot be built of is an error before any weight is loaded."""
    tokens = recipe.train.batch_tokens
    in_tokens = {} if tokens is None else {"batch_tokens": tokens}  # known to those that recipe_rules lets have it
    objective: Objective = recipe.offered.build(
        recipe.objective,
        prepared.train,
        prepared.held_out,
        batch_size=recipe.train.batch_size,
        seed=recipe.train.seed,
        shuffle=recipe.data.shuffle,
        renderer=prepared.renderer,
        **in_tokens,
    )
    return objective


def _begin(objective: Objective, policy: Policy, budget: Budget, most: int | None, progress: Progress) -> list[str]:
    """What the objective computes beforehand, in smaller batches where memory runs out."""
    max_tokens = most or default_micro_batch_tokens(policy.device)
    while True:
        try:
            return objective.begin(
                policy,
                num_steps=budget.num_steps,
                max_tokens=max_tokens,
                cache=cache_folder(),
                stage=progress.stage,
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or max_tokens < 2:
                raise
            max_tokens //= 2


def writer(
    adapter_set: AdapterSet, tokenizer: PreTrainedTokenizerBase | None, base: identity.BaseIdentity
) -> Callable[[Path], None]:
    """What writes the adapter into a folder, with the tokenizer where it has words of its own."""

    def write(folder: Path) -> None:
        store.save(folder, adapter_set, base)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)

    return write


def _loop(
    recipe: Recipe,
    policy: Policy,
    adapter_set: AdapterSet,
    write: Callable[[Path], None],
    objective: Objective,
    prepared: Prepared,
    base: identity.BaseIdentity,
    run: Run,
    signals: Signals,
    listeners: Sequence[Listener],
) -> Loop:
    extra = {
        "data": prepared.fingerprint,
        "base": base.fingerprint,
        "dtype": str(policy.model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "frozen": policy.stored is not None,
        "reference": policy.reference_digest,
    }
    publish = Publisher(run.folder, recipe.train.publish)
    return Loop(
        policy,
        objective,
        Job.of(adapter_set, write),
        recipe.train,
        Checkpoints(run.checkpoints, recipe.train.keep_checkpoints),
        signals,
        [publish, *listeners],
        extra,
    )


def _same_run(saved: Restored, prepared: Prepared, base: str, reference: str | None) -> None:
    """A checkpoint continues the same tokens on the same base, held against the same reference, or not at all."""
    now_of = {"data": prepared.fingerprint, "base": base, "reference": reference}
    for what, now in now_of.items():
        then = saved.state.get(what)
        if then != now:
            raise CheckpointError(
                f"the {what} is not what the run began with",
                where=str(saved.folder),
                found=now or "none",
                expected=then or "none",
                fix="put the old file back, or start a run in another folder",
            )


def _facts(recipe: Recipe, base: identity.BaseIdentity, prepared: Prepared, adapter_set: AdapterSet) -> dict[str, Any]:
    counts, rows = adapter_set.counts(), prepared.counts
    return {
        "base_model": base.name,
        "base_digest": base.fingerprint,
        "published": recipe.train.publish,
        "base_storage": base.storage,
        "trained_parameters": counts.trained,
        "outputs": None if adapter_set.head is None else adapter_set.head.num_outputs,
        "total_parameters": counts.total,
        "rows": rows.kept,
        "held_out_rows": prepared.held_out_counts.kept,
        "dropped_rows": rows.read - rows.kept,
        "truncated_rows": rows["truncated"],
        "learned_tokens_per_epoch": rows.learned,
        "data_digest": prepared.fingerprint,
    }


def check(
    resolved: Resolved,
    *,
    rows: int = 3,
    as_json: bool = False,
    html: Path | None = None,
    trust_remote_code: bool = False,
) -> None:
    """What the model will see: counts, lengths, what is odd, and rows with their learned tokens. Loads no weight.

    `html`: a page of it, in place of the terminal. What the objective cannot make of the rows is raised after that.
    """
    import json

    from rich.console import Console

    from tunesmith.data.check.report import as_json as as_dict
    from tunesmith.data.check.report import print_report

    with Progress(quiet=as_json) as progress, _said_where(resolved):
        for line in resolved.notes:
            progress.say(line)
        tokenizer, prepared = read_rows(resolved.recipe, trust_remote_code, progress)
    if html is not None:
        from tunesmith.atomic import write_file
        from tunesmith.data.check.check_page import check_page

        write_file(html, check_page(f"Rows of {resolved.name}", prepared, tokenizer, rows).encode())
        print(f"page: {html}")
    elif as_json:
        print(json.dumps({**as_dict(prepared), "of_the_file": resolved.notes}, indent=2, ensure_ascii=False))
    else:
        print_report(prepared, tokenizer, Console(), rows)
    built(resolved.recipe, prepared)


def plan(
    resolved: Resolved,
    *,
    memory: int | None = None,
    price: float | None = None,
    methods: bool = True,
    as_json: bool = False,
    trust_remote_code: bool = False,
) -> bool | None:
    """What a recipe will need, printed; loads no weight. Returns whether it fits (None: nobody says how much there
    is).

    `memory`: bytes to plan for, in place of what is free here. `price`: of an hour, in any currency.
    """
    import json

    recipe = resolved.recipe
    with Progress(quiet=as_json) as progress, _said_where(resolved):
        tokenizer, prepared = read_rows(recipe, trust_remote_code, progress)
        objective = built(recipe, prepared)
        budget = Budget.of(recipe.train, objective)
        check_optimizer(recipe.train)
        refuse_unknown_targets(recipe, trust_remote_code, objective.head)
        if recipe.model.adapter is None:
            check_method(recipe.adapter, budget.num_steps, recipe.train.optimizer)
        made = planned(
            resolved,
            tokenizer,
            prepared,
            objective,
            progress,
            memory=memory,
            price=price,
            methods=methods,
            trust_remote_code=trust_remote_code,
        )
    print(json.dumps(made.as_json(), indent=2) if as_json else "\n".join(plan_lines(made)))
    return made.fits

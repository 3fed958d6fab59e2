"""The assembler: a recipe into objects, objects into the loop. Nothing above or beside it builds a run."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from tunesmith.adapters import identity, peft_config, store
from tunesmith.adapters.adapter_set import AdapterSet, add, refusal, unload
from tunesmith.adapters.adapter_set import check as check_method
from tunesmith.adapters.attach import Switch
from tunesmith.adapters.virtual import VirtualSettings
from tunesmith.data.prepare import Prepared, prepare
from tunesmith.data.problems import counted
from tunesmith.data.report import summary
from tunesmith.data.templates import install
from tunesmith.errors import CheckpointError, Interrupted, RecipeError
from tunesmith.events import Ended, Listener
from tunesmith.machine import cache_folder
from tunesmith.models.load import (
    Loaded,
    has_tokenizer,
    load_config,
    load_model,
    load_tokenizer,
    made_for,
    most_tokens,
    settle,
)
from tunesmith.models.policy import Policy, probe
from tunesmith.models.stored import described
from tunesmith.objectives.base import Objective
from tunesmith.progress import Progress
from tunesmith.recipe import Recipe, Resolved
from tunesmith.recipe_rules import refuse_dropout
from tunesmith.record import Run
from tunesmith.reporters import reporters
from tunesmith.session import Session, adapter_folder
from tunesmith.train.budget import Budget
from tunesmith.train.checkpoint import Checkpoints, Restored
from tunesmith.train.frozen import store_frozen
from tunesmith.train.loop import Job, Loop, train_mode
from tunesmith.train.memory import default_micro_batch_tokens, is_out_of_memory
from tunesmith.train.noise import NEFTune
from tunesmith.train.optim import check_optimizer
from tunesmith.train.publish import Publisher, published_step, take
from tunesmith.train.signals import Signals, watched

FROM_PYTHON = "rows"
"""What stands for the file where rows came from Python."""
NAME = "trained"
"""What the adapter in training is called inside the process."""
REFERENCE = "reference"
"""And the copy of the adapter that it goes on from, where an objective compares with that."""


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
) -> Trained:
    """Train by a recipe; `rows` stand in for the recipe's file. Returns when the budget is spent."""
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
    ):
        check_optimizer(recipe.train)
        earlier = run.trackers() if resume else {}
        sinks = reporters(recipe.output.report_to, recipe.output.name or resolved.name, run.folder, earlier)
        for sink in sinks:
            on_exit.enter_context(closing(sink))
        run.remember_trackers(earlier | {sink.name: sink.run_id for sink in sinks if sink.run_id is not None})
        saved = _last_checkpoint(run, recipe, resume, progress)
        tokenizer, prepared = read_rows(recipe, trust_remote_code, progress, rows)
        for line in summary(prepared):
            progress.say(line)
        objective = built(recipe, prepared)
        budget = Budget(recipe.train, objective.steps_per_epoch)  # what is wrong shows before any weight is loaded
        if recipe.model.adapter is None:
            check_method(recipe.adapter, budget.num_steps, recipe.train.optimizer)
        loaded, policy, adapter_set = _model(recipe, tokenizer, trust_remote_code, saved, progress)
        before = None if saved is None else bool(saved.state.get("frozen"))
        store_frozen(policy, adapter_set, prepared, recipe.train, budget, cache_folder() / "frozen", before, progress)
        for line in _begin(objective, policy, budget, recipe.train.micro_batch_tokens, progress):
            progress.say(line)
        base = identity.identify(loaded.model, recipe.model.name, recipe.model.revision)
        everyone: list[Listener] = [progress, run, *sinks, *listeners]
        loop = _loop(recipe, policy, adapter_set, tokenizer, objective, prepared, base, run, signals, everyone)
        if saved is not None:
            _same_run(saved, prepared, base.fingerprint, policy.reference_digest)
            if saved.state["threads"] != torch.get_num_threads():
                progress.say(
                    f"begun on {saved.state['threads']} threads, going on with {torch.get_num_threads()}: "
                    "sums may differ in their last bits"
                )
            loop.restore(saved)
        run.describe(**_facts(recipe, base, prepared, adapter_set))
        ended = loop.run()
        for line in objective.remarks():
            progress.say(line)
        progress.say(f"adapter: {run.folder / 'adapter'}")
    session = Session(loaded.model, tokenizer, prepared.renderer, policy.switch, name=recipe.model.name, adapter=NAME)
    if _has_own_words(recipe):
        bare = recipe.model.model_copy(update={"template": None, "add_tokens": ()})
        session.base_tokenizer = partial(load_tokenizer, bare, trust_remote_code=trust_remote_code)
    session.stand(adapter_set)
    policy.switch.name = None
    if policy.reference_name is not None:
        unload(loaded.model, policy.reference_name)
    take(adapter_set, run.folder / "checkpoints", ended, published_step(ended, recipe.train.publish))
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


def _last_checkpoint(run: Run, recipe: Recipe, resume: bool, progress: Progress) -> Restored | None:
    if not resume:
        return None
    saved = Checkpoints(run.checkpoints, recipe.train.keep_checkpoints).latest(progress.say)
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
        tokenizer = load_tokenizer(recipe.model, trust_remote_code=trust_remote_code, folder=_origin(recipe))
        if recipe.model.template:
            install(recipe.model.template, tokenizer)
    with progress.stage("reading the data"):
        prepared = prepare(
            recipe.data,
            tokenizer,
            seed=recipe.train.seed,
            rows=rows,
            most_tokens=_room(recipe, config),
            made_for=made_for(config),
            takes=recipe.takes,
        )
    return tokenizer, prepared


def _room(recipe: Recipe, config: Any) -> int | None:
    """Positions for a row between the adapter's virtual tokens and what the model may write; None: no limit."""
    most, origin = most_tokens(config), _origin(recipe)
    before = recipe.adapter.virtual_tokens if origin is None else store.virtual_tokens(origin)
    return most if most is None else max(1, most - before - recipe.objective.answer_tokens)


def _refuse_pair(recipe: Recipe, storage: str) -> None:
    """A method that cannot stand beside the base's storage is refused before any weight is read."""
    reason = refusal(recipe.adapter, storage)
    if reason is not None:
        raise RecipeError(
            f"adapter.method {recipe.adapter.method} does not go with a base in {storage}: {reason}",  # type: ignore[attr-defined]
            fix="model.storage=plain, or another method (docs/storages.md has the table)",
        )


def _model(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    trust_remote_code: bool,
    saved: Restored | None,
    progress: Progress,
) -> tuple[Loaded, Policy, AdapterSet]:
    """The frozen model, how it runs batches, and the adapter that will learn."""
    dtype = getattr(torch, saved.state["dtype"]) if saved is not None else None
    with progress.stage("loading the model"):
        loaded = load_model(recipe.model, tokenizer, trust_remote_code=trust_remote_code, dtype=dtype)
    switch = Switch()
    adapter_set = _adapter(recipe, loaded, tokenizer, switch, progress.say)
    counts = adapter_set.counts()
    policy, reason = probe(loaded.model, switch)
    switch.name = NAME
    folder = _origin(recipe)
    if folder is not None and recipe.offered.needs_reference(recipe.objective):
        policy.refer_to(store.load(folder, loaded.model, switch, REFERENCE, say=progress.say))
    how = "without padding" if policy.flat else f"padded, since {reason}"
    progress.say(
        f"{type(loaded.model).__name__} in {str(loaded.dtype).removeprefix('torch.')} on {loaded.model.device}, {how}"
    )
    if few_bits := described(loaded.model):
        progress.say(few_bits)
    progress.say(f"training {counts.trained:,} of {counts.total:,} parameters ({counts.share:.2%})")
    for line in _reached(adapter_set):
        progress.say(f"  {line}")
    if recipe.train.neftune_alpha is not None:
        policy.noise = NEFTune(recipe.train.neftune_alpha)
    if recipe.train.recompute:
        loaded.model.gradient_checkpointing_enable({"use_reentrant": False})
    train_mode(policy, recipe.train.recompute)
    policy.refuse_lead()
    return loaded, policy, adapter_set


def _reached(adapter_set: AdapterSet) -> list[str]:
    """What is trained and what is not, a line each."""
    targets = adapter_set.targets
    if isinstance(adapter_set.settings, VirtualSettings):
        return [f"{adapter_set.settings.method}: {counted(adapter_set.settings.num_tokens, 'virtual token')}"]  # type: ignore[attr-defined]
    names = dict.fromkeys(path.rpartition(".")[2] for path in targets.adapted)
    lines = [f"{adapter_set.settings.method} on {counted(len(targets.adapted), 'layer')}: {', '.join(names)}"]  # type: ignore[attr-defined]
    if targets.in_full:
        full = dict.fromkeys(path.rpartition(".")[2] for path in targets.in_full)
        lines.append(f"in full, {counted(len(targets.in_full), 'module')}: {', '.join(full)}")
    if adapter_set.added_tokens:
        lines.append(f"rows of {counted(len(adapter_set.added_tokens), 'added token')}")
    lines += peft_config.left_out_by_peft(adapter_set)
    if targets.missed:
        lines.append(f"not reached: {', '.join(targets.summary())}")
    return lines


def _origin(recipe: Recipe) -> Path | None:
    """The adapter that training goes on from."""
    return None if recipe.model.adapter is None else adapter_folder(Path(recipe.model.adapter).expanduser())


def _has_own_words(recipe: Recipe) -> bool:
    """Whether the adapter has a template or tokens that the base has not."""
    origin = _origin(recipe)
    return bool(recipe.model.add_tokens or recipe.model.template or (origin and has_tokenizer(origin)))


def _adapter(
    recipe: Recipe,
    loaded: Loaded,
    tokenizer: PreTrainedTokenizerBase,
    switch: Switch,
    say: Callable[[str], object],
) -> AdapterSet:
    """A fresh adapter, or the one that training goes on from."""
    folder = _origin(recipe)
    if folder is None:
        fresh = add(
            loaded.model, switch, recipe.adapter,
            name=NAME, seed=recipe.train.seed, added_tokens=loaded.added_token_ids,
            encode=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        )  # fmt: skip
        fresh.added_tokens = recipe.model.add_tokens
        return fresh
    adapter_set = store.load(folder, loaded.model, switch, NAME, trainable=True, say=say)
    check_method(adapter_set.settings, None, recipe.train.optimizer)  # another budget than its own is no matter
    _refuse_untrained_tokens(recipe, loaded, adapter_set)
    refuse_dropout(recipe.objective, adapter_set.settings)
    given = recipe.explicit().get("adapter", {})
    held = adapter_set.settings.model_dump(mode="json")
    clashes = [f"{key}={value} (the adapter has {held[key]})" for key, value in given.items() if held[key] != value]
    if clashes:
        raise RecipeError(
            "the adapter that training goes on from has other settings",
            where="adapter",
            found=", ".join(clashes),
            fix="leave these settings out, or start a fresh adapter without model.adapter",
        )
    return adapter_set


def _refuse_untrained_tokens(recipe: Recipe, loaded: Loaded, adapter_set: AdapterSet) -> None:
    """Tokens that the recipe adds are among those whose rows the adapter trains: it gets no new rows."""
    embedding = adapter_set.body.embedding or ""
    trained = adapter_set.token_rows.get(embedding, ())
    pairs = zip(recipe.model.add_tokens, loaded.added_token_ids, strict=True)
    untrained = [token for token, token_id in pairs if token_id not in trained]
    if untrained and embedding not in adapter_set.targets.in_full:
        raise RecipeError(
            "the adapter that training goes on from has no rows for tokens that the recipe adds",
            where="model.add_tokens",
            found=", ".join(untrained),
            expected=", ".join(adapter_set.added_tokens) or "no added tokens",
            fix="leave them out, or start a fresh adapter without model.adapter",
        )


def built(recipe: Recipe, prepared: Prepared) -> Objective:
    """The objective of a recipe over its rows; what it cannot be built of is an error before any weight is loaded."""
    objective: Objective = recipe.offered.build(
        recipe.objective,
        prepared.train,
        prepared.held_out,
        batch_size=recipe.train.batch_size,
        seed=recipe.train.seed,
        shuffle=recipe.data.shuffle,
        renderer=prepared.renderer,
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


def _loop(
    recipe: Recipe,
    policy: Policy,
    adapter_set: AdapterSet,
    tokenizer: PreTrainedTokenizerBase,
    objective: Objective,
    prepared: Prepared,
    base: identity.BaseIdentity,
    run: Run,
    signals: Signals,
    listeners: Sequence[Listener],
) -> Loop:
    is_own = _has_own_words(recipe)

    def write(folder: Path) -> None:
        store.save(folder, adapter_set, base)
        if is_own:
            tokenizer.save_pretrained(folder)

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
        "total_parameters": counts.total,
        "rows": rows.kept,
        "held_out_rows": prepared.held_out_counts.kept,
        "dropped_rows": rows.read - rows.kept,
        "truncated_rows": rows["truncated"],
        "learned_tokens_per_epoch": rows.learned,
        "data_digest": prepared.fingerprint,
    }


def check(resolved: Resolved, *, rows: int = 3, as_json: bool = False, trust_remote_code: bool = False) -> None:
    """What the model will see: counts, lengths and rows with their learned tokens. Loads no weight."""
    import json

    from rich.console import Console

    from tunesmith.data.report import as_json as as_dict
    from tunesmith.data.report import print_report

    with Progress(quiet=as_json) as progress:
        tokenizer, prepared = read_rows(resolved.recipe, trust_remote_code, progress)
    if as_json:
        print(json.dumps(as_dict(prepared), indent=2, ensure_ascii=False))
    else:
        print_report(prepared, tokenizer, Console(), rows)

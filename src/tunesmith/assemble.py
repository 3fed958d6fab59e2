"""The model of a run: the frozen base, how it runs batches, and the adapter that will learn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from tunesmith.adapters import peft_config, store
from tunesmith.adapters.adapter_set import AdapterSet, add
from tunesmith.adapters.adapter_set import check as check_method
from tunesmith.adapters.attach import Switch
from tunesmith.adapters.heads import ClassHead
from tunesmith.adapters.settings import NONE
from tunesmith.adapters.targets import choose
from tunesmith.adapters.virtual import VirtualSettings
from tunesmith.data.problems import counted
from tunesmith.errors import RecipeError
from tunesmith.models.load import Loaded, has_other_special_tokens, has_tokenizer, load_model, without_weights
from tunesmith.models.policy import Policy, probe
from tunesmith.models.stored import described
from tunesmith.progress import Progress
from tunesmith.recipe import Recipe
from tunesmith.recipe_rules import refuse_dropout, refuse_unserved
from tunesmith.session import adapter_folder
from tunesmith.train.checkpoint import Restored
from tunesmith.train.mode import recompute_blocks, train_mode
from tunesmith.train.noise import NEFTune

NAME = "trained"
"""What the adapter in training is called inside the process."""
REFERENCE = "reference"
"""And the copy of the adapter that it goes on from, where an objective compares with that."""


def model_of(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    trust_remote_code: bool,
    saved: Restored | None,
    progress: Progress,
    head: ClassHead | None,
) -> tuple[Loaded, Policy, AdapterSet]:
    """The frozen model, how it runs batches, and the adapter that will learn."""
    dtype = getattr(torch, saved.state["dtype"]) if saved is not None else None
    with progress.stage("loading the model"):
        loaded = load_model(
            recipe.model,
            tokenizer,
            trust_remote_code=trust_remote_code,
            dtype=dtype,
            head=head,
            seed=recipe.train.seed,
            say=progress.say,
        )
    switch = Switch()
    adapter_set = _adapter(recipe, loaded, tokenizer, switch, progress.say)
    adapter_set.head = _same_head(adapter_set.head, head)
    counts = adapter_set.counts()
    policy, reason = probe(loaded.model, switch)
    switch.name = NAME
    folder = origin(recipe)
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
        recompute_blocks(loaded.model)
    train_mode(policy, recipe.train.recompute)
    policy.refuse_lead()
    return loaded, policy, adapter_set


def refuse_unknown_targets(recipe: Recipe, trust_remote_code: bool, head: ClassHead | None) -> None:
    """Names of layers and modules that mean nothing in the model, and an adapter to go on from that the sampler would
    not load, said before any weight is read."""
    folder = origin(recipe)
    if folder is not None:
        refuse_unserved(recipe.objective, store.config_of(folder))
        return
    model = without_weights(recipe.model, trust_remote_code=trust_remote_code, head=head)
    if model is not None:
        choose(model, recipe.adapter)


def _same_head(there: ClassHead | None, wanted: ClassHead | None) -> ClassHead | None:
    """The head that is learned; an adapter that training goes on from tells the same classes apart."""
    if there is not None and wanted is not None and (there.labels, there.meaning) != (wanted.labels, wanted.meaning):
        raise RecipeError(
            "the adapter that training goes on from tells other classes apart",
            where="model.adapter",
            found=f"{there.meaning}: {', '.join(there.labels)}",
            expected=f"{wanted.meaning}: {', '.join(wanted.labels)}",
            fix="name its classes in objective.labels, in its order, or start a fresh adapter",
        )
    return wanted


def _reached(adapter_set: AdapterSet) -> list[str]:
    """What is trained and what is not, a line each."""
    targets = adapter_set.targets
    if isinstance(adapter_set.settings, VirtualSettings):
        return [f"{adapter_set.settings.method}: {counted(adapter_set.settings.num_tokens, 'virtual token')}"]  # type: ignore[attr-defined]
    names = dict.fromkeys(path.rpartition(".")[2] for path in targets.adapted)
    method = adapter_set.settings.method  # type: ignore[attr-defined]
    lines = [f"{method} on {counted(len(targets.adapted), 'layer')}: {', '.join(names)}"] if names else []
    if targets.in_full:
        full = dict.fromkeys(path.rpartition(".")[2] for path in targets.in_full)
        lines.append(f"in full, {counted(len(targets.in_full), 'module')}: {', '.join(full)}")
    if adapter_set.added_tokens:
        lines.append(f"rows of {counted(len(adapter_set.added_tokens), 'added token')}")
    lines += peft_config.left_out_by_peft(adapter_set)
    if adapter_set.settings.targets == NONE:
        lines.append("frozen: everything else")
    elif targets.missed:
        lines.append(f"not reached: {', '.join(targets.summary())}")
    return lines


def origin(recipe: Recipe) -> Path | None:
    """The adapter that training goes on from."""
    return None if recipe.model.adapter is None else adapter_folder(Path(recipe.model.adapter).expanduser())


def has_own_words(recipe: Recipe, trust_remote_code: bool) -> bool:
    """Whether the adapter has a template, tokens or special tokens that the base has not."""
    folder = origin(recipe)
    if recipe.model.add_tokens or recipe.model.template or (folder is not None and has_tokenizer(folder)):
        return True
    return has_other_special_tokens(recipe.model, trust_remote_code=trust_remote_code)


def _adapter(
    recipe: Recipe,
    loaded: Loaded,
    tokenizer: PreTrainedTokenizerBase,
    switch: Switch,
    say: Callable[[str], object],
) -> AdapterSet:
    """A fresh adapter, or the one that training goes on from."""
    folder = origin(recipe)
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

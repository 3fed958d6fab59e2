"""Rules between the sections of a recipe; a broken one is a `Contradiction` that names the setting to point at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from tunesmith.adapters import METHODS
from tunesmith.adapters.settings import KINDS, NONE
from tunesmith.adapters.virtual import VirtualSettings
from tunesmith.data.settings import DataSettings
from tunesmith.errors import RecipeError
from tunesmith.models.settings import ModelSettings
from tunesmith.objectives.classify_losses import ClassifySettings
from tunesmith.objectives.distill import DistillSettings
from tunesmith.objectives.policy_losses import PolicySettings
from tunesmith.objectives.reward import RewardSettings
from tunesmith.objectives.sft import SFTSettings
from tunesmith.settings import Contradiction
from tunesmith.train.settings import TrainSettings


class Sections(Protocol):
    @property
    def model(self) -> ModelSettings: ...

    @property
    def data(self) -> DataSettings: ...

    @property
    def adapter(self) -> Any: ...

    @property
    def objective(self) -> Any: ...

    @property
    def train(self) -> TrainSettings: ...


def something_held_out(recipe: Sections) -> None:
    for name in ("stop_after_no_gain", "evaluate_every"):
        if getattr(recipe.train, name) is not None and recipe.data.held_out is None:
            raise Contradiction(
                f"train.{name}", "has nothing to evaluate on", "hold rows out, for example data.held_out: 0.05"
            )


def pairs_or_groups(recipe: Sections) -> None:
    if recipe.data.group_by is not None and not isinstance(recipe.objective, SFTSettings):
        raise Contradiction(
            "data.group_by",
            "is for supervised rows that begin alike (objective.kind sft)",
            "take it out: of pairs, what both answers begin with is computed once anyway",
        )


def whole_rows(recipe: Sections) -> None:
    """Steps that are counted in tokens need rows of which all tokens are known."""
    objective = recipe.objective
    given = isinstance(objective, DistillSettings) and objective.answers == "given"
    if recipe.train.batch_tokens is not None and not isinstance(objective, SFTSettings) and not given:
        raise Contradiction(
            "train.batch_tokens",
            "is for rows that are learned as they stand (objective.kind sft, or distill of given answers)",
            f"say with train.batch_size how many a step of objective.kind {objective.kind} takes",
        )


def one_policy(recipe: Sections) -> None:
    if not isinstance(recipe.objective, PolicySettings):
        return
    if recipe.train.cache_frozen:
        raise Contradiction("train.cache_frozen", "has nothing to store: what is trained is sampled", "leave it out")
    for section, name in (("adapter", "dropout"), ("train", "neftune_alpha")):
        if getattr(getattr(recipe, section), name, None):
            text = "would make the model that is trained another one than the model that answered"
            raise Contradiction(f"{section}.{name}", text, "leave it out with objective.kind policy")


def a_sampler(recipe: Sections) -> None:
    """What a server outside the process cannot do."""
    if not isinstance(recipe.objective, PolicySettings) or recipe.objective.sampler is None:
        return
    for name in ("top_p", "top_k"):
        if getattr(recipe.objective, name) not in (None, 1.0):
            text = "has the server draw from fewer tokens than the trainer reckons with"
            raise Contradiction(f"objective.{name}", text, "leave it out beside objective.sampler")
    if recipe.model.adapter is not None:
        return
    written = METHODS[recipe.adapter.method].to_peft(recipe.adapter)  # type: ignore[attr-defined]
    if written["peft_type"] != "LORA" or written.get("use_dora"):
        text = f"{recipe.adapter.method} is not what servers load: they take plain LoRA"
        raise Contradiction("adapter.method", text, "take lora, or leave objective.sampler out")
    if recipe.adapter.train_in_full or recipe.model.add_tokens:
        key = "adapter.train_in_full" if recipe.adapter.train_in_full else "model.add_tokens"
        raise Contradiction(key, "is not what servers load beside a LoRA", "leave it out, or objective.sampler")


def a_student(recipe: Sections) -> None:
    """What a student that learns from its own answers has no use for."""
    sampled = isinstance(recipe.objective, DistillSettings) and recipe.objective.answers == "sampled"
    if sampled and recipe.train.cache_frozen:
        raise Contradiction("train.cache_frozen", "has nothing to store: the rows are sampled", "leave it out")


def a_head(recipe: Sections) -> None:
    """What a classification head goes with."""
    if not isinstance(recipe.objective, ClassifySettings | RewardSettings):
        return
    if isinstance(recipe.adapter, VirtualSettings):
        raise Contradiction(
            "adapter.method", "puts tokens before documents, and trains no head", "choose lora, full or another method"
        )
    way = getattr(recipe.objective, "way", "all")
    if way != "all" and recipe.adapter.method != "full":
        raise Contradiction(
            "adapter.method",
            f"adapts what objective.way {way} leaves as it is",
            "leave it out, or set objective.way=all",
        )
    if way == "features" and recipe.adapter.targets != NONE:
        raise Contradiction(
            "objective.way",
            "features trains no block",
            "leave out adapter.last_blocks and adapter.targets, or way=head",
        )
    if way == "all" and recipe.adapter.targets == NONE and recipe.model.adapter is None:
        raise Contradiction(
            "adapter.targets",
            "is none: nothing but the head would learn",
            "say what is adapted, or set objective.way=head",
        )
    if way == "features" and (set(recipe.adapter.train_in_full) - {"head"} or recipe.model.add_tokens):
        key = "model.add_tokens" if recipe.model.add_tokens else "adapter.train_in_full"
        raise Contradiction(key, "would not be trained: objective.way features fits the head alone", "leave it out")
    if way == "features" and recipe.model.adapter is not None:
        raise Contradiction("objective.way", "features begins at a base", "leave out model.adapter, or take way all")


def virtual_or_added_tokens(recipe: Sections) -> None:
    if recipe.model.add_tokens and isinstance(recipe.adapter, VirtualSettings) and recipe.model.adapter is None:
        raise Contradiction("model.add_tokens", "cannot be trained beside virtual tokens", "leave out either")


def something_frozen(recipe: Sections) -> None:
    fresh = recipe.train.cache_frozen and recipe.model.adapter is None
    if fresh and isinstance(recipe.adapter, VirtualSettings):
        raise Contradiction(
            "train.cache_frozen",
            "has no block to store: virtual tokens change what every block gives",
            "leave it out, or choose a method that stands beside layers",
        )
    if fresh and recipe.adapter.targets in KINDS and recipe.adapter.last_blocks is None:
        raise Contradiction(
            "train.cache_frozen",
            "has no frozen block to store: all of them are adapted",
            "set adapter.last_blocks, for example to 4",
        )


def refuse_dropout(objective: Any, adapter: Any) -> None:
    """Of an adapter that training goes on from."""
    if isinstance(objective, PolicySettings) and getattr(adapter, "dropout", None):
        raise RecipeError(
            "the adapter that training goes on from has dropout: it would be trained as another than it answers",
            where="model.adapter",
            found=f"dropout {adapter.dropout:g}",
            fix="train the adapter without dropout, or start a fresh one",
        )


RULES: tuple[Callable[[Sections], None], ...] = (
    something_held_out,
    pairs_or_groups,
    whole_rows,
    one_policy,
    a_sampler,
    a_student,
    a_head,
    virtual_or_added_tokens,
    something_frozen,
)

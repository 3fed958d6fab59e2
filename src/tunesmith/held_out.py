"""What an objective says of rows that were not trained on: the loss of a model or adapter, and its metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tunesmith.adapters.heads import ClassHead, is_classifier
from tunesmith.data.check.counts import told
from tunesmith.data.prepare import prepare
from tunesmith.data.settings import DataSettings
from tunesmith.errors import RecipeError
from tunesmith.machine import cache_folder
from tunesmith.models.policy import Policy, probe
from tunesmith.objectives import classify, reward, sft
from tunesmith.objectives.classify import Classification
from tunesmith.objectives.classify_losses import ClassifySettings
from tunesmith.objectives.reward import RewardSettings
from tunesmith.objectives.settings import ObjectiveSettings
from tunesmith.progress import Progress
from tunesmith.recipe import Recipe
from tunesmith.reward_model import offer
from tunesmith.session import Session
from tunesmith.train.memory import default_micro_batch_tokens

offer()


def held_out_loss(
    session: Session,
    settings: DataSettings,
    recipe: Recipe | None,
    all_rows: bool,
    limit: int | None,
    say: Callable[[str], object],
) -> dict[str, Any]:
    """What the recipe's objective says of all rows, or of what the run held out; what befell rows is said.

    Without a recipe: the loss per learned token.
    """
    offered, record = (sft, sft.Settings()) if recipe is None else (recipe.offered, recipe.objective)
    if recipe is None and is_classifier(session.model):
        offered, record = _of_head(session.head)
    record = asked_here(record)
    if isinstance(record, ClassifySettings | RewardSettings) and session.head is None:
        raise RecipeError(
            "there is nothing to score: the base has no classification head of its own",
            fix="score the run, or a model that was merged",
        )
    if isinstance(record, ClassifySettings) and session.head is not None:
        weights = dict(zip(session.head.labels, session.head.weights, strict=True)) if session.head.weights else None
        asked = {"labels": session.head.labels, "way": "all", "class_weights": weights}  # nothing is fitted here
        record = record.model_copy(update=asked)
    prepared = prepare(
        settings,
        session.words_of(session.adapter).tokenizer,
        seed=0 if recipe is None else recipe.train.seed,
        most_tokens=room(session, record),
        takes=offered.takes(record),
    )
    for line in told(prepared.counts if all_rows else prepared.held_out_counts):
        say(line)
    examples = prepared.train if all_rows else prepared.held_out
    if limit is not None:
        kept = set(list(dict.fromkeys(example.origin for example in examples))[:limit])
        examples = [example for example in examples if example.origin in kept]
    policy, _ = probe(session.model, session.switch)
    refers = recipe is not None and refer(policy, session, recipe)
    if not refers and session.adapter is None and offered.needs_reference(record):
        say("no adapter is on, so the reference is the model itself: its rewards are 0, whatever it has learned")
    objective = offered.build(record, examples, examples, batch_size=2, seed=0, renderer=prepared.renderer)
    most = default_micro_batch_tokens(policy.device)
    with session.switch.set_to(session.adapter), Progress(quiet=True) as silent:
        objective.begin(policy, num_steps=None, max_tokens=most, cache=cache_folder(), stage=silent.stage)
        metrics = objective.evaluate(policy, most)
        if isinstance(objective, Classification):
            metrics |= objective.detail(policy, most, session.head)
    return {
        **metrics,
        "rows": len({example.origin for example in examples}),
        **({"learned_tokens": learned} if (learned := sum(example.num_learned for example in examples)) else {}),
    }


def asked_here(record: ObjectiveSettings) -> ObjectiveSettings:
    """The settings of an objective whose model is at hand: nobody else is asked for completions."""
    return record if getattr(record, "sampler", None) is None else record.model_copy(update={"sampler": None})


def refer(policy: Policy, session: Session, recipe: Recipe) -> bool:
    """Makes the adapter that training went on from the reference, where there is one and the objective wants it."""
    wanted = recipe.model.adapter is not None and recipe.offered.needs_reference(recipe.objective)
    if wanted and recipe.model.adapter is not None:
        policy.refer_to(session.sets[session.load_adapter(recipe.model.adapter)])
    return wanted


def _of_head(head: ClassHead | None) -> tuple[Any, Any]:
    """The objective that a classification head is for."""
    if head is None or head.meaning == "reward":
        return reward, reward.Settings()
    return classify, ClassifySettings(classes=head.meaning, labels=head.labels)


def room(session: Session, record: ObjectiveSettings) -> int | None:
    """Positions for a row, where the objective has the model write behind it."""
    most = session.positions(session.adapter)
    return most if most is None else max(1, most - record.answer_tokens)

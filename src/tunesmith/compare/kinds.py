"""By what arms are measured, which depends on what they learn: a model answers in words, or a head says a number.

Of arms of one kind the objective's own figures, by row of the test; of arms of several kinds what all of them have. A
score of answers (`test.score`) stands for every model that answers in words.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from tunesmith.compare.settings import Study
from tunesmith.compare.verdict import HELD_OUT, LOSS, PAIRS, REWARD, Measure, score
from tunesmith.errors import RecipeError
from tunesmith.recipe import Recipe

IN_WORDS = {"sft", "distill", "preference", "policy"}
"""Objectives whose models answer in words; the others' have a head."""
OF_ANSWERS = {"sft", "distill"}
"""Whose test loss is that of the rows' own answers, per token: the same thing, whatever was learned."""
OF_PAIRS = {"preference", "reward"}


def kind_of(recipe: Recipe) -> str:
    return str(recipe.objective.kind)  # type: ignore[attr-defined]


def speaks(recipe: Recipe) -> bool:
    """Whether its model answers in words; else a head says a class or a number."""
    return kind_of(recipe) in IN_WORDS


def is_base_measured(recipe: Recipe, scores: Collection[str]) -> bool:
    """Whether the model without tuning has any figure: of pairs it has none, as rewards are told from it."""
    return speaks(recipe) and (bool(scores) or kind_of(recipe) != "preference")


def measures(kinds: Collection[str], scores: Iterable[str]) -> list[Measure]:
    """What arms of these kinds are compared by, what decides first."""
    kinds, found = set(kinds), [score(name) for name in scores]
    if kinds <= OF_PAIRS:
        found.append(PAIRS)
    if kinds == {"policy"}:
        found.append(REWARD)
    elif kinds <= OF_ANSWERS or len(kinds) == 1:
        found.append(LOSS)
    if len(kinds) == 1 and kinds != {"policy"}:
        found.append(HELD_OUT)
    return found


def refuse_odd(study: Study, kinds: set[str]) -> None:
    """Arms that no figure could compare, and figures that no arm could have."""
    settings = study.settings
    heads, words = kinds - IN_WORDS, kinds & IN_WORDS
    _refuse_strangers(study, kinds)
    if "classify" in kinds:
        odd = sorted(set(settings.test.scores) - {"label", "exact"})
        if odd or not settings.test.scores:
            raise RecipeError(
                "a class is right or wrong: of arms with objective.kind classify that is what is scored",
                where=study.where("test", "score"),
                found=", ".join(odd) or "no score",
                expected="label",
            )
    elif heads and settings.test.scores:
        raise RecipeError(
            "a reward model writes no answers that could be scored",
            where=study.where("test", "score"),
            found=", ".join(settings.test.scores),
            fix="leave test.score out: how many pairs of the test are in order is told",
        )
    if heads and settings.forget is not None:
        what = "classifier" if "classify" in heads else "reward model"
        raise RecipeError(f"a {what} has no loss on general text", where=study.where("forget"), fix="leave it out")
    if not measures(kinds, settings.test.scores):
        raise RecipeError(
            f"nothing measures arms of objective.kind {', '.join(sorted(kinds))} alike",
            where=study.where("test"),
            fix="give a score of answers, test.score, and test.gold where a column holds the right ones",
        )
    if settings.prompting and not words and (heads == {"classify"} or "prompting" in settings.model_fields_set):
        raise RecipeError(
            "the base is asked in words, and no arm of the study learns any",
            where=study.where("prompting"),
            fix="leave prompting out" if heads == {"reward"} else "set prompting: []",
        )
    if any(settings.prompting) and not settings.test.scores:
        raise RecipeError(
            "examples are shown before a question that is answered, and no answer of the test is scored",
            where=study.where("prompting"),
            found=f"prompting {list(settings.prompting)}",
            fix="give test.score, or prompting: [0]",
        )


def _refuse_strangers(study: Study, kinds: set[str]) -> None:
    """A head beside arms that it has nothing in common with."""
    for head, beside in (("classify", {"sft"}), ("reward", {"preference"})):
        others = sorted(kinds - {head} - beside)
        if head in kinds and others:
            raise RecipeError(
                f"arms of objective.kind {head} and {', '.join(others)} have no figure in common",
                where=study.source,
                expected=f"beside {head}: {', '.join(sorted(beside))}",
                fix="make a study of each",
            )

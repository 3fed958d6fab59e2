"""What is measured of a model once it is trained (or of the base): loss by row, answers and scores, what it forgot.

Everything is kept by row, so that arms can be compared on the same rows. The adapter is read back from its folder: what
is measured is what anyone would load.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from tunesmith.atomic import write_json
from tunesmith.compare.contents import digest, placeless
from tunesmith.compare.judged import pairs, refuse_no_number, rewarded
from tunesmith.compare.kinds import OF_ANSWERS, OF_PAIRS, kind_of, speaks
from tunesmith.data.formats import LEARNABLE
from tunesmith.data.mixture import part_rows, read_parts
from tunesmith.data.prepare import answered, prepare
from tunesmith.data.settings import DataSettings
from tunesmith.data.types import Conversation, Example, Message, Preference
from tunesmith.errors import DataError
from tunesmith.evaluate import Item, evaluate, scorers_named, write_answers
from tunesmith.models.policy import Policy, probe
from tunesmith.models.session import Params
from tunesmith.objectives.classify import Classification
from tunesmith.objectives.classify_losses import ClassifySettings
from tunesmith.objectives.sft import SFT, num_targets
from tunesmith.questions import LAST, questions, refuse_unscorable
from tunesmith.recipe import Recipe
from tunesmith.session import Session
from tunesmith.train.memory import default_micro_batch_tokens

Say = Callable[[str], object]


@dataclass(frozen=True)
class Wanted:
    """What to measure: plain values, since they travel to another process."""

    test: str
    loss: bool = True
    """Rows that are questions alone, with the right answer in a column, have no loss."""
    limit: int | None = None
    scores: tuple[str, ...] = ()
    gold: str | None = None
    max_new_tokens: int = 128
    batch_size: int = 16
    forget: str | None = None
    forget_limit: int = 50
    forget_max_length: int = 512

    @property
    def fingerprint(self) -> str:
        return digest(placeless(vars(self)))


def test_items(recipe: Recipe, wanted: Wanted, say: Say) -> list[Item]:
    """The test's questions, each with its right answer; what no scorer could compare with is an error."""
    if not speaks(recipe):
        return []
    settings = test_data(recipe, wanted)
    items = questions(settings, recipe.train.seed, True, wanted.limit, wanted.gold, LAST, say, recipe.takes)
    for score, scorer in scorers_named(wanted.scores).items():
        refuse_unscorable(items, [score], wanted.test)
        for number, item in enumerate(items, 1):
            try:
                scorer("", item.gold, item.row)
            except DataError as error:
                raise error.at(f"{wanted.test}, question {number}").noted("score", score) from None
    return items


def has_figures(recipe: Recipe, wanted: Wanted) -> bool:
    """Whether any row of the test holds what its own figures are taken of: an answer that a loss could be taken of, two
    sides of a pair, a prompt."""
    data = test_data(recipe, wanted)
    rows = [row for part in read_parts(data) for row in part.converted(recipe.takes, learn=data.learn).rows]
    if kind_of(recipe) in OF_PAIRS:
        return any(isinstance(row, Preference) for row in rows)
    return any(not isinstance(row, Conversation) or any(turn.is_learned for turn in row.messages) for row in rows)


def test_data(recipe: Recipe, wanted: Wanted) -> DataSettings:
    """The test's rows, read as the recipe reads its own."""
    changes = {"train": wanted.test, "held_out": None, "limit": wanted.limit, "group_by": None}
    return recipe.data.of_other_files.model_copy(update=changes)


def measure(
    session: Session,
    recipe: Recipe,
    wanted: Wanted,
    folder: Path,
    forgets: Path,
    *,
    shots: int = 0,
    is_tuned: bool = True,
    say: Say = lambda text: None,
) -> None:
    """Measures `session` as it answers now into `folder`: measures.json, and answers.jsonl where there are scores.

    `shots` rows of training stand before each question (the loss is then not measured). `forgets` is a folder that
    cells share: the base's loss on general text is measured once for all of them. Of a base that is not tuned
    (`is_tuned`) nothing is known of pairs: rewards are told from it.
    """
    found: dict[str, Any] = {"fingerprint": wanted.fingerprint, "shots": shots, "seconds": {}}
    if shots == 0:
        policy, _ = probe(session.model, session.switch)
    kind = kind_of(recipe)
    if kind == "classify":
        found |= classified(session, policy, recipe, wanted, say)
        found["seconds"] = {"loss": found.pop("loss_seconds")}
    elif (kind in OF_PAIRS and is_tuned) or (kind == "policy" and shots == 0):
        of_rows = pairs if kind in OF_PAIRS else rewarded
        found |= of_rows(session, policy, recipe, test_data(recipe, wanted), say)
        found["seconds"] = {"judged": found.pop("judged_seconds")}
    elif kind in OF_ANSWERS and shots == 0 and wanted.loss:
        most = session.positions(session.adapter)
        say("loss on the test rows")
        prepared = prepare(test_data(recipe, wanted), session.tokenizer, seed=recipe.train.seed, most_tokens=most)
        begun = time.perf_counter()
        found["loss"] = loss_by_row(session, policy, prepared.train, session.adapter, "test row")
        found["left_out"] = prepared.counts.read - prepared.counts.kept
        found["seconds"]["loss"] = time.perf_counter() - begun
    if shots == 0 and wanted.forget is not None:
        say("loss on general text")
        found["forget"] = forgetting(session, policy, recipe, wanted, forgets)
    if wanted.scores and speaks(recipe):
        items = test_items(recipe, wanted, say)
        shown = shots_of(recipe, shots)
        items = [replace(item, messages=_with_shots(item.messages, shown)) for item in items]
        say(f"{len(items)} answers")
        made = evaluate(
            session,
            items,
            list(wanted.scores),
            adapter=session.adapter,
            params=Params(wanted.max_new_tokens),
            max_rows=wanted.batch_size,
        )
        found["scores"], found["seconds"]["answers"] = made.scores, made.seconds
        found["answers_cut"] = made.num_cut
        found["answer_tokens"] = sum(answer.num_tokens for answer in made.answers)
        write_answers(folder / "answers.jsonl", items, made)
    write_json(folder / "measures.json", found)  # last: by now all of it is there


@torch.no_grad()
def classified(session: Session, policy: Policy, recipe: Recipe, wanted: Wanted, say: Say) -> dict[str, Any]:
    """Loss and 0 or 1 of each row of the test, in the file's order, under the name of every score that is asked for.

    A row that is too long to be read is not right; its loss is left out.
    """
    assert session.head is not None
    say("classes of the test rows")
    data, settings = test_data(recipe, wanted), cast(ClassifySettings, recipe.objective)
    most = session.positions(session.adapter)
    prepared = prepare(data, session.tokenizer, seed=recipe.train.seed, most_tokens=most, takes=recipe.takes)
    record = settings.model_copy(update={"labels": session.head.labels, "way": "all", "class_weights": None})
    part = Classification(prepared.train, [], record, batch_size=1, seed=0)
    begun = time.perf_counter()
    with session.switch.set_to(session.adapter), policy.answering():
        rows, outputs = part.outputs(policy, prepared.train, default_micro_batch_tokens(policy.device))
    losses, right = part.by_row(outputs, rows, session.head)
    for row, loss in zip(rows, losses, strict=True):
        refuse_no_number(loss, "test row", row.origin)
    places = {row.origin.row: index for index, row in enumerate(rows)}
    numbers = sorted(places)
    every = [origin.row for part in read_parts(data) for origin, _ in part.raw]
    return {
        "loss": {
            "rows": [float(number) for number in numbers],
            "sum": [losses[places[number]] for number in numbers],
            "weight": [1.0] * len(numbers),
        },
        "left_out": prepared.counts.read - prepared.counts.kept,
        "scores": {
            name: [right[places[number]] if number in places else 0.0 for number in every] for name in wanted.scores
        },
        "loss_seconds": time.perf_counter() - begun,
    }


@torch.no_grad()
def loss_by_row(
    session: Session, policy: Policy, examples: Sequence[Example], adapter: str | None, called: str
) -> dict[str, list[float]]:
    """{"rows": number in the file, "sum": loss over the row's learned tokens, "weight": how many those are}.

    A loss that is not finite is an error that names the row, `called` "test row".
    """
    most = default_micro_batch_tokens(policy.device)
    totals: dict[int, list[float]] = {}
    with session.switch.set_to(adapter):
        for example in examples:
            weight = num_targets(example)
            if not weight:
                continue
            part = SFT([example], [example], batch_size=1, seed=0)
            loss = part.evaluate(policy, max(most, len(example)))["loss"]
            refuse_no_number(loss, called, example.origin)
            row = totals.setdefault(example.origin.row, [0.0, 0.0])
            row[0] += loss * weight
            row[1] += weight
    rows = sorted(totals)
    return {
        "rows": [float(row) for row in rows],
        "sum": [totals[row][0] for row in rows],
        "weight": [totals[row][1] for row in rows],
    }


def forgetting(session: Session, policy: Policy, recipe: Recipe, wanted: Wanted, shared: Path) -> dict[str, Any]:
    """Loss per token on general text of the base (before) and of the model as it answers now (after), by text."""
    assert wanted.forget is not None
    data = DataSettings(
        train=wanted.forget,
        format="text",
        limit=wanted.forget_limit,
        max_length=wanted.forget_max_length,
        overlong="split",
    )
    most = session.positions(session.adapter)
    examples = prepare(data, session.tokenizer, seed=0, most_tokens=most).train
    model = recipe.model.model_dump(mode="json")
    key = digest(placeless([model, data.model_dump(mode="json")]))
    kept = shared / f"{key}.json"
    before = json.loads(kept.read_text()) if kept.is_file() else None
    if before is None or None in before["sum"]:
        before = loss_by_row(session, policy, examples, None, "general text")
        shared.mkdir(parents=True, exist_ok=True)
        write_json(kept, before)
    if session.adapter is None:
        return {"before": before, "after": before}
    return {"before": before, "after": loss_by_row(session, policy, examples, session.adapter, "general text")}


def shots_of(recipe: Recipe, count: int) -> list[Message]:
    """Questions and answers of `count` rows of training, drawn by the recipe's seed; each row's first answer."""
    if not count:
        return []
    data = recipe.data
    parts = part_rows(read_parts(data), data, seed=recipe.train.seed).train
    rows = [replace(part, raw=[row]) for part in parts for row in part.raw]
    chosen = np.random.default_rng((recipe.train.seed, count)).permutation(len(rows))
    turns: list[Message] = []
    for index in chosen:
        if len(turns) >= 2 * count:
            break
        row = answered(rows[index].converted(recipe.takes, LEARNABLE).rows[0])
        if isinstance(row, Conversation):
            turns += _first_exchange(row)
    if len(turns) < 2 * count:
        raise DataError(
            f"there are no {count} rows of training to show as examples",
            where=data.named,
            found=f"{len(turns) // 2} with a question and an answer",
            fix="ask for fewer: prompting",
        )
    return turns


def _first_exchange(row: Conversation) -> list[Message]:
    """The first question and its answer, without a system turn; nothing where a row does not begin so."""
    turns = [turn for turn in row.messages if turn.role != "system"][:2]
    fits = [turn.role for turn in turns] == ["user", "assistant"] and not turns[1].tool_calls and turns[1].content
    return turns if fits else []


def _with_shots(messages: Sequence[Message], shots: Sequence[Message]) -> tuple[Message, ...]:
    system = [turn for turn in messages if turn.role == "system"]
    return (*system, *shots, *(turn for turn in messages if turn.role != "system"))

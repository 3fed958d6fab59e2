"""Evaluation by answering: prompts -> answers -> scores, each item's score kept so that differences can be paired.

Held-out loss is the objective's own; here the model speaks. Scores of 0 and 1 get Wilson's interval, others a bootstrap
one. Before and after are compared on the same items, the difference with a paired interval.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunesmith.data.types import Conversation, Message
from tunesmith.errors import ELSEWHERE, DataError, MachineError, RecipeError
from tunesmith.models.generate import Generated
from tunesmith.models.session import Params, Session
from tunesmith.score import SCORERS, Scorer
from tunesmith.score.intervals import Change, clustered, paired_change, wilson


@dataclass(frozen=True)
class Item:
    """One question. `part` groups items that are reported apart ("answerable", "unanswerable").

    `conversation` and `turn` count from 1: which row it is of, and which of its answers, where that is not the last.
    """

    messages: tuple[Message, ...]
    gold: Any
    row: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[dict[str, Any], ...] = ()
    part: str | None = None
    conversation: int | None = None
    turn: int | None = None


@dataclass(frozen=True)
class Mean:
    """With a 95 % interval."""

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}] of {self.count}"


@dataclass(frozen=True)
class Answer:
    text: str
    finish_reason: str
    num_tokens: int


@dataclass(frozen=True)
class Evaluation:
    """`scores[scorer][i]` belongs to `answers[i]` and to the i-th item."""

    answers: list[Answer]
    scores: dict[str, list[float]]
    parts: list[str | None]
    seconds: float
    conversations: list[int] | None = None
    """Which items are of one conversation, where several may be: intervals then draw whole conversations."""

    def mean(self, scorer: str | None = None, part: str | None = None) -> Mean:
        """Of `scorer` (the first if not named), over the items of `part` (all if not named)."""
        values = self.scores[scorer or next(iter(self.scores))]
        kept = [i for i, own in enumerate(self.parts) if part is None or own == part]
        together = self.conversations and [self.conversations[i] for i in kept]
        return mean_of([values[i] for i in kept], together)

    def by_part(self, scorer: str | None = None) -> dict[str, Mean]:
        names = dict.fromkeys(part for part in self.parts if part is not None)
        return {name: self.mean(scorer, name) for name in names}

    @property
    def num_cut(self) -> int:
        """Answers that met the limit of tokens."""
        return sum(answer.finish_reason == "length" for answer in self.answers)


def mean_of(values: Sequence[float], conversations: Sequence[int] | None = None) -> Mean:
    """`conversations` says which values hang together: those of one are no further evidence, as one goes, so do all."""
    if not values:
        return Mean(float("nan"), 0.0, 1.0, 0)
    if conversations and len(set(conversations)) < len(conversations):
        groups: dict[int, list[float]] = {}
        for value, conversation in zip(values, conversations, strict=True):
            groups.setdefault(conversation, []).append(value)
        return Mean(sum(values) / len(values), *clustered(list(groups.values())), len(values))
    if set(values) <= {0.0, 1.0}:
        share = wilson(round(sum(values)), len(values))
        return Mean(share.value, share.low, share.high, len(values))
    change = paired_change([0.0] * len(values), values)
    return Mean(change.difference, change.low, change.high, len(values))


def item_of(conversation: Conversation, row: Mapping[str, Any] | None = None, gold: Any = None) -> Item:
    """The conversation up to its last answer; that answer is the gold one unless another is given.

    A `row` with `is_impossible` (SQuAD 2.0) is put into its part.
    """
    last = conversation.messages[-1] if conversation.messages else None
    if last is None or last.role != "assistant":
        if gold is None:
            raise DataError(
                "a row without an answer cannot be scored",
                where=str(conversation.origin),
                found=f"a last turn of the {last.role}" if last else "no turn",
                expected="a last turn of the assistant, or a gold answer",
            )
        messages = conversation.messages
    else:
        messages = conversation.messages[:-1]
        gold = gold if gold is not None else (list(last.tool_calls) or last.content)
    row = row or {}
    part = None
    if "is_impossible" in row:
        part = "unanswerable" if row["is_impossible"] else "answerable"
    return Item(tuple(messages), gold, {"tools": list(conversation.tools), **row}, tuple(conversation.tools), part)


def items_of(conversation: Conversation, row: Mapping[str, Any], number: int) -> list[Item]:
    """One item for each answer of a conversation that says anything, with the true turns before it; `number` is its."""
    said = [
        i
        for i, turn in enumerate(conversation.messages)
        if turn.role == "assistant" and (turn.content.strip() or turn.tool_calls)
    ]
    upto = [replace(conversation, messages=conversation.messages[: i + 1]) for i in said]
    return [replace(item_of(cut, row), conversation=number, turn=n) for n, cut in enumerate(upto, 1)]


def scorers_named(names: str | Sequence[str]) -> dict[str, Scorer]:
    """The scorers of these names, or an error that lists those there are."""
    wanted = [names] if isinstance(names, str) else list(names)
    if unknown := [name for name in wanted if name not in SCORERS]:
        raise RecipeError(f"no scorer is called {', '.join(unknown)}", expected=", ".join(SCORERS))
    return {name: SCORERS[name] for name in wanted}


def evaluate(
    session: Session,
    items: Sequence[Item],
    scorers: str | Sequence[str] | Mapping[str, Scorer],
    *,
    adapter: str | None = None,
    params: Params | None = None,
    on_progress: Callable[[int, int], object] | None = None,
    cancelled: Callable[[], bool] | None = None,
    **options: Any,
) -> Evaluation:
    """Answer every item with `adapter` (None: the base) and score the answers.

    on_progress (items answered, items in all); options as in `models.generate.generate` (max_rows …).
    """
    chosen = dict(scorers) if isinstance(scorers, Mapping) else scorers_named(scorers)
    params = params or Params()
    started, done = time.perf_counter(), 0

    def count(_: int, __: Generated) -> None:
        nonlocal done
        done += 1
        if on_progress:
            on_progress(done, len(items))

    prompts = [session.prompt_ids(item.messages, item.tools, adapter) for item in items]
    generated = session.generate(
        prompts, params, adapters=[adapter] * len(items), on_answer=count, cancelled=cancelled, **options
    )
    answers = [
        Answer(session.text(made, params, adapter), made.finish_reason, len(made.token_ids)) for made in generated
    ]
    scores = {
        name: [float(score(answer.text, item.gold, item.row)) for answer, item in zip(answers, items, strict=True)]
        for name, score in chosen.items()
    }
    of_rows = [item.conversation for item in items if item.conversation is not None]
    together = of_rows if len(of_rows) == len(items) else None
    return Evaluation(answers, scores, [item.part for item in items], time.perf_counter() - started, together)


@dataclass(frozen=True)
class BeforeAfter:
    before: Evaluation
    after: Evaluation

    def change(self, scorer: str | None = None, part: str | None = None) -> Change:
        """The paired difference on the same items, over those of `part` (all if not named)."""
        name = scorer or next(iter(self.before.scores))
        kept = [i for i, own in enumerate(self.before.parts) if part is None or own == part]
        before, after = self.before.scores[name], self.after.scores[name]
        return paired_change([before[i] for i in kept], [after[i] for i in kept])


def before_after(
    session: Session,
    items: Sequence[Item],
    scorers: str | Sequence[str] | Mapping[str, Scorer],
    *,
    adapter: str,
    **options: Any,
) -> BeforeAfter:
    """The base and `adapter` on the same items; `options` as in `evaluate`."""
    return BeforeAfter(
        evaluate(session, items, scorers, adapter=None, **options),
        evaluate(session, items, scorers, adapter=adapter, **options),
    )


def write_answers(path: Path | str, items: Sequence[Item], evaluation: Evaluation) -> None:
    """One JSON object per item: its question, gold answer, the model's answer and scores."""
    path = Path(path)
    rows = []
    for i, (item, answer) in enumerate(zip(items, evaluation.answers, strict=True)):
        row = {
            "row": item.conversation or i + 1,
            "question": item.messages[-1].content if item.messages else "",
            "gold": item.gold,
            "answer": answer.text,
            "finish_reason": answer.finish_reason,
            "num_tokens": answer.num_tokens,
            "scores": {name: values[i] for name, values in evaluation.scores.items()},
        }
        row |= {key: value for key, value in (("part", item.part), ("turn", item.turn)) if value is not None}
        rows.append(json.dumps(row, ensure_ascii=False))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(row + "\n" for row in rows), encoding="utf-8")
    except OSError as error:
        raise MachineError(
            f"the answers cannot be written: {error.strerror}", where=str(path), fix=ELSEWHERE
        ) from error

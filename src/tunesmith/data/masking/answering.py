"""Where the answers of a row stand among its tokens: the turns of the assistant of which anything is learned.

Of most rows these are the runs of learned tokens, and nothing need be kept. Others keep them (`Example.answers`): rows
that are learned whole, or learn turns of others, or parts of turns, or begin with an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tunesmith.data.masking.mask import MaskUnknown, Span, learned_spans
from tunesmith.data.masking.places import answer_places
from tunesmith.data.settings import Ends
from tunesmith.data.templating.chat import ChatTemplate, TemplateFailed, Turn
from tunesmith.data.types import Conversation, Example, Marked, Message, Runs


def learned_runs(example: Example) -> list[tuple[int, int]]:
    """[start, end) of each run of learned tokens."""
    edges = np.diff(np.concatenate([[0], example.loss_weights > 0, [0]]).astype(np.int8))
    return list(zip(np.flatnonzero(edges == 1).tolist(), np.flatnonzero(edges == -1).tolist(), strict=True))


def answer_spans(
    row: Conversation,
    messages: Sequence[Message],
    turns: Sequence[Turn],
    tools: Sequence[dict[str, Any]],
    chat: ChatTemplate,
    text: str,
    spans: Sequence[Span],
    learn_ends: Ends,
) -> list[Span] | None:
    """The turns of the assistant of which anything is learned, ends and all; None where they are what is learned, and
    nothing else is. Of a row that is learned whole, whose template may hide its turns, there are none then.

    messages, turns, tools   what the template is given of `row`
    text                     what it writes of them
    spans                    what of them is learned, before `data.learn_ends` changes it
    """
    if row.is_whole or any(isinstance(turn, Marked) for turn in messages):
        answers = [turn.role == "assistant" and turn.is_learned for turn in messages]
        found = answer_places(chat, text, turns, answers, tools)
        if found is not None:
            return found
        try:
            return learned_spans(chat, turns, answers, tools)[1]
        except (MaskUnknown, TemplateFailed):
            return []
    if learn_ends in ("all", "learned") or any(turn.is_learned and turn.role != "assistant" for turn in messages):
        return [span for span in spans if span.is_answer]
    return None


def answers_of(example: Example) -> Runs:
    """The answers in a row, of which something is learned; of plain text, which is learned from its second token on,
    none."""
    if example.answers is None:
        runs = learned_runs(example)
        return () if not runs or runs[0][0] <= 1 else tuple(runs)
    weights = example.loss_weights
    return tuple((start, end) for start, end in example.answers if weights[start:end].any())


def cut(answers: Runs | None, start: int, end: int) -> Runs | None:
    """The answers in the tokens [start, end) of a row."""
    if answers is None:
        return None
    inside = ((max(first, start), min(last, end)) for first, last in answers)
    return tuple((first - start, last - start) for first, last in inside if first < last)

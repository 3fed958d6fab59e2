"""Which of the learned runs of a row's tokens are answers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from tunesmith.data.render import Renderer
from tunesmith.data.types import Answer, Conversation, Document, Example, Marked, Message, Origin, Pieces, Text

Place = tuple[Origin, str]
"""A row; of a pair, one of its sides."""


def learned_runs(example: Example) -> list[tuple[int, int]]:
    """[start, end) of each run of learned tokens."""
    edges = np.diff(np.concatenate([[0], example.loss_weights > 0, [0]]).astype(np.int8))
    return list(zip(np.flatnonzero(edges == 1).tolist(), np.flatnonzero(edges == -1).tolist(), strict=True))


def place_of(example: Example) -> Place:
    return example.origin, example.side if isinstance(example, Answer) else ""


def answering(rows: Sequence[Text], examples: Sequence[Example], renderer: Renderer) -> dict[Place, tuple[bool, ...]]:
    """Which learned runs are answers, of rows of which not all are. The end of an answer whose last words are not
    learned is none by itself."""
    made: dict[Place, tuple[bool, ...]] = {}
    for row, example in zip(rows, examples, strict=True):
        turns = _are_answers(row)
        if all(turns) and not _is_marked(row):
            continue
        runs = learned_runs(example)
        in_part = _in_part(row)
        if len(runs) != len(turns):  # the template joined or dropped some: of the last one alone it is known
            before = [False] * (len(runs) - 1)
            turns, in_part = before + turns[-1:], before + in_part[-1:]
        ends = [
            is_part and not renderer.tokenizer.decode(example.token_ids[slice(*run)], skip_special_tokens=True).strip()
            for run, is_part in zip(runs, in_part, strict=False)
        ]
        made[place_of(example)] = tuple(answers and not end for answers, end in zip(turns, ends, strict=False))
    return made


def _is_marked(row: Text) -> bool:
    """Whether a turn may be several learned runs."""
    return isinstance(row, Conversation) and any(isinstance(turn, Marked) for turn in row.messages)


def _are_answers(row: Text) -> list[bool]:
    """Of each turn that is learned, whether it is the assistant's. Of pieces, which know no turns, the last one is."""
    if isinstance(row, Pieces):
        pieces = [is_learned for is_learned, _ in groupby(row.pieces, key=lambda piece: piece.is_learned) if is_learned]
        return [False] * (len(pieces) - 1) + pieces[-1:]
    if isinstance(row, Document) or row.is_whole:
        return []
    return [turn.role == "assistant" for turn in _said(row)]


def _in_part(row: Text) -> list[bool]:
    """Of each turn that is learned, whether it says something that need not be learned whole."""
    if isinstance(row, Document):
        return []
    return [isinstance(turn, Marked) and bool(turn.content.strip()) for turn in _said(row)]


def _said(row: Conversation) -> list[Message]:
    """The turns that are learned, in any part."""
    return [turn for turn in row.messages if turn.is_learned and (turn.content or turn.role == "assistant")]

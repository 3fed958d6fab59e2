"""Which turns of a conversation are learned, by `data.learn`: what a message itself says goes before."""

from __future__ import annotations

from dataclasses import replace

from tunesmith.data.messages import Unreadable
from tunesmith.data.settings import Learn
from tunesmith.data.types import Conversation


def learned(row: Conversation, learn: Learn) -> Conversation:
    """`row` with every turn saying whether it is learned, where that is not by its role alone."""
    if learn == "everything":
        _refuse_left_out(row)
        turns = tuple(replace(turn, learn=True) for turn in row.messages)
        return Conversation(turns, row.origin, row.tools, is_whole=True)
    if learn == "answers":
        if not row.num_asked:
            return row
        asked = tuple(replace(turn, learn=False) for turn in row.messages[: row.num_asked])
        return Conversation(asked + row.messages[row.num_asked :], row.origin, row.tools)
    turns = tuple(turn if turn.learn is not None else replace(turn, learn=turn.role in learn) for turn in row.messages)
    return Conversation(turns, row.origin, row.tools)


def _refuse_left_out(row: Conversation) -> None:
    marked = [str(number) for number, turn in enumerate(row.messages, 1) if turn.learn is False]
    if marked:
        raise Unreadable(
            f"message {', '.join(marked)} is marked as not to be learned, and data.learn is everything",
            found="learn, train or weight that says no",
            fix="take the marks out of the rows, or set data.learn to answers",
        )

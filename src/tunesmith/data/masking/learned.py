"""Which turns of a conversation are learned, by `data.learn`: what a message itself says goes before.

What a span of a message says goes before the message, as a message goes before its role; but a turn that is marked as
not to be learned is left out whole.
"""

from __future__ import annotations

from dataclasses import replace

from tunesmith.data.rows.messages import Unreadable
from tunesmith.data.settings import Learn
from tunesmith.data.types import Conversation, Marked, Message


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
    roles = learn if isinstance(learn, tuple) else ()
    return Conversation(tuple(_by_role(turn, turn.role in roles) for turn in row.messages), row.origin, row.tools)


def _by_role(turn: Message, is_wanted: bool) -> Message:
    if isinstance(turn, Marked):
        return turn if turn.rest is not None else replace(turn, rest=is_wanted)
    return turn if turn.learn is not None else replace(turn, learn=is_wanted)


def _says_no(turn: Message) -> bool:
    spans = turn.spans if isinstance(turn, Marked) else ()
    rest = turn.rest if isinstance(turn, Marked) else None
    return turn.learn is False or rest is False or not all(learn for _, _, learn in spans)


def _refuse_left_out(row: Conversation) -> None:
    marked = [str(number) for number, turn in enumerate(row.messages, 1) if _says_no(turn)]
    if marked:
        raise Unreadable(
            f"message {', '.join(marked)} is marked as not to be learned, and data.learn is everything",
            found="learn, train or weight that says no",
            fix="take the marks out of the rows, or set data.learn to answers",
        )

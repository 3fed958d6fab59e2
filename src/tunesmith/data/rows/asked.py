"""What a model is asked from Python, as the turns that it means; and how one is asked that learned plain text alone."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from tunesmith.data.problems import shown
from tunesmith.data.render import Renderer
from tunesmith.data.rows.messages import Unreadable, read_messages
from tunesmith.data.templating.templates import install
from tunesmith.data.types import Message
from tunesmith.errors import DataError


def conversations_to_answer(given: Any) -> list[list[Message]]:
    """Every conversation by its turns. A single one is no list of them: its letters or turns would each be answered.
    DataError for it, and for what is no conversation."""
    alone = isinstance(given, str) or (
        isinstance(given, list | tuple) and any(isinstance(item, Message | Mapping) for item in given)
    )
    if alone or not isinstance(given, Sequence):
        raise DataError(
            "answer takes a list of conversations",
            where="conversations",
            found=("one alone: " if alone else f"{type(given).__name__} ") + shown(given, 40),
            expected='["…", …], or [[{"role": "user", "content": "…"}], …]',
            fix="put it into a list, and take the first of the answers: answer([…])[0]" if alone else "give a list",
        )
    return [turns_to_answer(item, f"conversation {number}") for number, item in enumerate(given, 1)]


def turns_to_answer(given: Any, where: str) -> list[Message]:
    """The turns that a model is asked with from Python: text, which is one turn of the user, or a list of messages,
    each a `Message` or a dictionary as rows have them. DataError where it is anything else."""
    if isinstance(given, str):
        return [Message("user", given)]
    try:
        if not isinstance(given, (list, tuple)):
            said = f"{type(given).__name__} {shown(given, 40)}"
            what = "a conversation is text, or a list of messages"
            raise Unreadable(what, said, "give one or the other for each conversation")
        if not given:
            raise Unreadable("a conversation has no turn", "an empty list", "give the turn to answer")
        odd = next((item for item in given if not isinstance(item, (Message, Mapping))), None)
        if odd is not None:
            said = f"{type(odd).__name__} {shown(odd, 40)}"
            raise Unreadable("a conversation holds what is neither a Message nor a dictionary", said)
        return [turn for own in _alike(given) for turn in own]
    except Unreadable as error:
        expected = 'text, or a list of messages: [{"role": "user", "content": "…"}, …]'
        fix = None if error.fix and "data." in error.fix else error.fix  # no recipe reads these
        raise DataError(error.what, where=where, found=error.found, expected=expected, fix=fix) from None


def _alike(given: Sequence[Message | Mapping[str, Any]]) -> Iterator[Sequence[Message]]:
    """Runs of messages as they are, and of dictionaries as they are read: together, as a call joins the turn before."""
    for is_read, run in groupby(given, key=lambda item: isinstance(item, Message)):
        alike: list[Any] = list(run)
        yield alike if is_read else read_messages(alike, "the conversation")


class GoesOn(Renderer):
    """Writes what is asked as plain text, for a model that learned nothing else to go on from.

    The tokenizer is a copy: what is saved of the session's own stays without a template.
    """

    is_said = False

    def __init__(self, tokenizer: Any) -> None:
        own = copy.deepcopy(tokenizer)
        install("plain", own)
        super().__init__(own)

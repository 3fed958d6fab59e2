"""Where the answers of a conversation stand in its text, in one walk over it.

`learned_spans` asks the template anew for every turn, which takes time by the square of their number. Here it is asked
once, with another word for every content: what stands between those words stands between the contents too, if they
put in their places make up the text. Mostly that is known from an earlier conversation, and the template need not be
asked at all. Where they do not make up the text, or something is left to guess, nothing is said.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tunesmith.data.masking.mask import Span, end_behind, last_end
from tunesmith.data.templating.chat import ChatTemplate, Turn

_WORD = "\ue000{}\ue001"
_WORDS = re.compile("\ue000([0-9]+)\ue001")


def answer_places(
    chat: ChatTemplate, text: str, turns: Sequence[Turn], wanted: Sequence[bool], tools: Sequence[dict[str, Any]]
) -> list[Span] | None:
    """The turns that are wanted, all of them the assistant's, ends and all, as `learned_spans` finds them but for
    whether they are prompted, which is not looked for; None where that is not plain from `text`, which the template
    writes of `turns`."""
    contents = _contents(chat, text, turns, tools) if any(wanted) else []
    if contents is None:
        return None
    found = []
    for index in (index for index, is_wanted in enumerate(wanted) if is_wanted):
        before = contents[index - 1][1] if index else 0
        behind = contents[index + 1][0] if index + 1 < len(turns) else len(text)
        start = _start(chat, text, before, contents[index][0])
        end = None if start is None else _end(chat, text, turns[index], start, contents[index][1], behind)
        if start is None or end is None:
            return None
        found.append(Span(start, end, is_prompted=False, is_answer=True))
    return found


def _contents(
    chat: ChatTemplate, text: str, turns: Sequence[Turn], tools: Sequence[dict[str, Any]]
) -> list[tuple[int, int]] | None:
    """[start, end) of each content, which may have lost the white space around it."""
    roles = ["", *(turn["role"] for turn in turns), ""]
    kinds = [(*roles[place : place + 2], place == len(turns) - 1) for place in range(len(turns) + 1)]
    known = [chat.between.get(kind) for kind in kinds]
    found = _placed(text, turns, [gap for gap in known if gap is not None])
    if found is None:
        worded = chat.tried([turn | {"content": _WORD.format(index)} for index, turn in enumerate(turns)], tools)
        parts = _WORDS.split(worded)
        if parts[1::2] == [str(index) for index in range(len(turns))]:
            found = _placed(text, turns, parts[::2])
            chat.between.update({} if found is None else zip(kinds, parts[::2], strict=True))
    return found


def _placed(text: str, turns: Sequence[Turn], between: Sequence[str]) -> list[tuple[int, int]] | None:
    """[start, end) of each content, where `text` is these with `between` before the first, between any two, and behind
    the last."""
    if len(between) != len(turns) + 1 or not text.startswith(between[0]):
        return None
    places, at = [], len(between[0])
    for turn, behind in zip(turns, between[1:], strict=True):
        said = (turn["content"], turn["content"].strip())
        written = next((one for one in said if text.startswith(one + behind, at)), None)
        if not written:
            return None
        places.append((at, at + len(written)))
        at += len(written + behind)
    return places if at == len(text) else None


def _start(chat: ChatTemplate, text: str, before: int, content: int) -> int | None:
    """Where an answer begins whose content does at `content`, and that of the turn before it ends at `before`."""
    *longer, shortest = chat.traits.headers
    if not shortest:
        lead = chat.traits.lead
        return content - len(lead) if lead and text.endswith(lead, before, content) else None
    if text.count(shortest, before, content) != 1:
        return None
    at = text.index(shortest, before, content)
    header = next((header for header in longer if text.startswith(header, at)), shortest)
    return at + len(header) if at + len(header) <= content else None


def _end(chat: ChatTemplate, text: str, turn: Turn, start: int, content: int, limit: int) -> int | None:
    """Where an answer ends whose content does at `content`, and the next turn's begins at `limit`."""
    ends, calls = chat.traits.ends, repr(turn.get("tool_calls", ""))
    if not ends:
        return None if "tool_calls" in turn else content
    if any(end in calls for end in ends):
        return None
    end = end_behind(chat, text, turn["content"], start)
    return last_end(chat, text, start if "tool_calls" not in turn else content, limit) if end is None else end

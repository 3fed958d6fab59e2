"""Ids of tool calls, for templates that refuse calls without one of nine letters or digits (Mistral's).

Rows bring other ids (OpenAI's are longer) or none (ShareGPT). Calls are counted through the conversation, so that a
prompt and the row that goes on from it have the same ids.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from tunesmith.data.types import Message

_FITTING = re.compile(r"[A-Za-z0-9]{9}")


def all_fit(turns: Sequence[Message]) -> bool:
    """Whether every call and every reply has an id that such a template takes."""
    ids = [call.get("id") for turn in turns for call in turn.tool_calls]
    ids += [turn.tool_call_id for turn in turns if turn.role == "tool"]
    return all(isinstance(given, str) and _FITTING.fullmatch(given) for given in ids)


def counted(turns: Sequence[Message]) -> list[Message]:
    """The turns with ids 000000001, 000000002 …; a reply has that of its call, or of the first not yet replied to."""
    number = 0
    by_old: dict[str, str] = {}
    waiting: list[str] = []
    result: list[Message] = []
    for turn in turns:
        if turn.tool_calls:
            calls = []
            for call in turn.tool_calls:
                number += 1
                calls.append({**call, "id": f"{number:09d}"})
                waiting.append(f"{number:09d}")
                if isinstance(call.get("id"), str):
                    by_old[call["id"]] = f"{number:09d}"
            result.append(replace(turn, tool_calls=tuple(calls)))
        elif turn.role == "tool":
            own = by_old.get(turn.tool_call_id or "") or (waiting[0] if waiting else f"{number:09d}")
            if own in waiting:
                waiting.remove(own)
            result.append(replace(turn, tool_call_id=own))
        else:
            result.append(turn)
    return result

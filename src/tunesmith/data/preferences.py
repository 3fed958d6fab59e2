"""Rows that hold answers under judgement: TRL's columns, and those of its neighbours.

preference          {"prompt": …, "chosen": …, "rejected": …}, text or message lists; or whole conversations that
                    begin alike in chosen and rejected, without a prompt; or ShareGPT's {"conversations": […],
                    "chosen": {…}, "rejected": {…}}; or Alpaca's {"instruction": …, "chosen": …, "rejected": …}
openai-preference   {"input": {"messages": […]}, "preferred_output": […], "non_preferred_output": […]}
unpaired            {"prompt": …, "completion": …, "label": true}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tunesmith.data.messages import Unreadable, need, parsed, read_messages, read_tools, text_of
from tunesmith.data.problems import shown
from tunesmith.data.types import Judged, Message, Origin, Preference

RawColumns = Mapping[str, Any]
_PROMPTS = ("prompt", "messages", "conversations", "instruction")


def preference(row: RawColumns, origin: Origin) -> Preference:
    prompt = _prompt(row)
    chosen, rejected = _answer(row, "chosen"), _answer(row, "rejected")
    if prompt:
        chosen, rejected = _behind(prompt, chosen), _behind(prompt, rejected)
    else:
        count = _alike(chosen, rejected)
        prompt, chosen, rejected = chosen[:count], chosen[count:], rejected[count:]
    if row.get("system") not in (None, "") and (not prompt or prompt[0].role != "system"):
        prompt = (Message("system", text_of(row, "system")), *prompt)
    return _pair(prompt, chosen, rejected, origin, row.get("tools"), _margin(row))


def openai_preference(row: RawColumns, origin: Origin) -> Preference:
    given = parsed(need(row, "input"), "'input'")
    if not isinstance(given, Mapping):
        raise Unreadable("the column 'input' must be an object with messages", found=shown(given, 40))
    prompt = read_messages(need(given, "messages"), "messages")
    chosen = read_messages(need(row, "preferred_output"), "preferred_output")
    rejected = read_messages(need(row, "non_preferred_output"), "non_preferred_output")
    return _pair(prompt, chosen, rejected, origin, given.get("tools"), None)


def unpaired(row: RawColumns, origin: Origin) -> Judged:
    prompt, completion = _side(need(row, "prompt"), "prompt", "user"), _answer(row, "completion")
    label = need(row, "label")
    if label not in (0, 1, False, True):
        raise Unreadable("the column 'label' must say whether the answer is wanted: true or false", found=shown(label))
    _refuse_no_answer(completion, "completion")
    return Judged(prompt, completion, bool(label), origin, read_tools(row.get("tools")))


def _prompt(row: RawColumns) -> tuple[Message, ...]:
    """What stands before both answers; nothing where they are whole conversations."""
    keys = [key for key in _PROMPTS if row.get(key) not in (None, "")]
    if len(keys) > 1:
        raise Unreadable(f"the row has several prompts: {' and '.join(keys)}")
    if not keys:
        return ()
    if keys[0] == "instruction":
        more = f"\n\n{text_of(row, 'input')}" if row.get("input") not in (None, "") else ""
        return (Message("user", text_of(row, "instruction") + more),)
    return _side(row[keys[0]], keys[0], "user")


def _answer(row: RawColumns, key: str) -> tuple[Message, ...]:
    return _side(need(row, key), key, "assistant")


def _side(value: Any, key: str, role: str) -> tuple[Message, ...]:
    """Text is one turn of `role`; a message or a list of them is what it says."""
    if isinstance(value, str):
        return (Message(role, value),)
    if isinstance(value, Mapping):
        return read_messages([value], key)
    if isinstance(value, list | tuple):
        return read_messages(value, key)
    raise Unreadable(f"the column {key!r} must be text, a message or a list of messages", found=shown(value, 40))


def _behind(prompt: tuple[Message, ...], answer: tuple[Message, ...]) -> tuple[Message, ...]:
    """`answer` without the prompt, where it repeats it."""
    said = [(turn.role, turn.content) for turn in answer[: len(prompt)]]
    repeats = len(answer) > len(prompt) and said == [(turn.role, turn.content) for turn in prompt]
    return answer[len(prompt) :] if repeats else answer


def _alike(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> int:
    """How many turns two conversations share before their answers part."""
    most = min(len(chosen), len(rejected)) - 1
    count = next((i for i in range(most) if chosen[i] != rejected[i]), most)
    if count < 1:
        raise Unreadable(
            "chosen and rejected have no prompt in common",
            found="two texts" if most == 0 else "conversations that differ in their first turn",
        )
    return count


def _pair(
    prompt: tuple[Message, ...],
    chosen: tuple[Message, ...],
    rejected: tuple[Message, ...],
    origin: Origin,
    tools: Any,
    margin: float | None,
) -> Preference:
    if not prompt:
        raise Unreadable("the prompt is empty")
    for key, answer in (("chosen", chosen), ("rejected", rejected)):
        _refuse_no_answer(answer, key)
    return Preference(prompt, chosen, rejected, origin, read_tools(tools), margin)


def _refuse_no_answer(turns: tuple[Message, ...], key: str) -> None:
    if not any(turn.is_learned for turn in turns):
        roles = ", ".join(turn.role for turn in turns) or "no turn"
        raise Unreadable(f"the column {key!r} holds no turn of the assistant", found=roles)


def _margin(row: RawColumns) -> float | None:
    value = row.get("margin")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Unreadable("the column 'margin' must be a number", found=shown(value, 40))
    return float(value)

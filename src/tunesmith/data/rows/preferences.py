"""Rows that hold answers under judgement: TRL's columns, and those of its neighbours.

preference          {"prompt": …, "chosen": …, "rejected": …}, text or message lists. Or whole conversations that begin
                    alike in chosen and rejected, as lists or as text ("Human: … Assistant: …"), or two texts, of which
                    the words that they begin with in common are the prompt. The prompt may be ShareGPT's
                    conversations, Alpaca's instruction and input, a question or a query; the answers may be Argilla's
                    chosen_response and rejected_response, or ms-swift's response and rejected_response
openai-preference   {"input": {"messages": […]}, "preferred_output": […], "non_preferred_output": […]}
unpaired            {"prompt": …, "completion": …, "label": true}, the prompt under any name as above, or {"messages":
                    […], "label": true}, of which the last answer is judged

A column `system` or `system_prompt` stands before the prompt of the first and the last.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from tunesmith.data.problems import shown
from tunesmith.data.reading.empty_cells import is_filled
from tunesmith.data.rows.beside import Tools, tools_of, with_system
from tunesmith.data.rows.cells import turns_in
from tunesmith.data.rows.messages import Names, Unreadable, need, parsed, read_messages, read_tools, text_of
from tunesmith.data.rows.unwanted import LABELS, judgement
from tunesmith.data.types import Judged, Message, Origin, Preference

RawColumns = Mapping[str, Any]
_PROMPTS = ("prompt", "conversations", "instruction", "question", "messages", "query", "input")
"""Columns that may hold the prompt, the first of them that is there."""
ANSWERS = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("response", "rejected"),
    ("response", "rejected_response"),
)
"""Columns that may hold the better and the worse answer, the first two of them that are there."""
_IN_WORD = re.compile(r"[^\W\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]{2}")
"""Two letters of a word; of Thai, Lao, Japanese and Chinese, which write none between words, none are."""
_SPEAKERS = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def preference(row: RawColumns, origin: Origin, names: Names | None = None) -> Preference:
    prompt, keys = _prompt(row, names), _answers(row)
    chosen, rejected = (_parted(_side(need(row, key), key, "assistant", names)) for key in keys)
    if chosen and rejected and chosen[0].role != "assistant" and rejected[0].role != "assistant":
        count = _alike(chosen, rejected)
        if prompt and not _is_in(_last_question(prompt), chosen[:count]):
            raise Unreadable("the prompt is not what chosen and rejected begin with", found=shown(prompt[-1].content))
        prompt, chosen, rejected = chosen[:count], chosen[count:], rejected[count:]
    elif not prompt:
        prompt, chosen, rejected = _said_in_common(chosen, rejected)
    if prompt[-1].role == "assistant":
        raise Unreadable("the prompt ends in an answer", found=shown(prompt[-1].content))
    return pair(with_system(prompt, row), chosen, rejected, origin, tools_of(row), row.get("margin"))


def passed_over(row: RawColumns) -> set[str]:
    """Columns that could be a prompt or an answer, and are not looked at since another one is."""
    others = {name for names in ANSWERS for name in names}.difference(_answers(row))
    return _other_prompts(row, _PROMPTS) | {name for name in others if is_filled(row.get(name))}


def _other_prompts(row: RawColumns, names: Sequence[str]) -> set[str]:
    """Of the columns that may hold a prompt, in their order, those that are not looked at."""
    there = [key for key in names if row.get(key) not in (None, "")]
    used = {"instruction", "input"} if there[:1] == ["instruction"] else set(there[:1])
    return set(there) - used


def passed_over_of_one(row: RawColumns) -> set[str]:
    """The same of a single answer, which messages hold whole, prompt and all."""
    return _other_prompts(row, ("messages", "conversations", *_PROMPTS, "completion") if _whole(row) else _PROMPTS)


def _whole(row: RawColumns) -> list[str]:
    """The columns that hold a conversation with its answer."""
    return [key for key in ("messages", "conversations") if is_filled(row.get(key))]


def _answers(row: RawColumns) -> tuple[str, str]:
    """The columns of the two answers: the first two that the row fills; else of which it fills one; else has."""
    there = [names for names in ANSWERS if row.keys() >= set(names)]
    filled = [names for most in (all, any) for names in there if most(is_filled(row[name]) for name in names)]
    return next(iter(filled), None) or next(
        (names for names in ANSWERS if names in there or names[0] in row), ANSWERS[0]
    )


def _said_in_common(
    chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
    """Two texts as the words that both begin with, and what each goes on with; each is the two put together again.

    TRL parts them at the letter; here no word is cut in two, and white space goes to what stands behind it.
    """
    if any(len(turns) != 1 or turns[0].role != "assistant" for turns in (chosen, rejected)):
        raise Unreadable(
            "chosen and rejected have no prompt in common",
            found="two answers, and no column prompt, messages, conversations, instruction or question",
        )
    better, worse = chosen[0].content, rejected[0].content
    end = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(better, worse, strict=False)))
    while end and any(_IN_WORD.fullmatch(text, end - 1, end + 1) for text in (better, worse)):
        end -= 1
    asked = better[:end].rstrip()
    if not asked:
        raise Unreadable(
            "chosen and rejected have no prompt in common",
            found=f"two texts that begin otherwise ({shown(better, 30)}; {shown(worse, 30)}), and no column prompt, "
            "messages, conversations, instruction or question",
            fix="name the column of the prompt: data.columns={prompt: yours}",
        )
    rest = slice(len(asked), None)
    return (Message("user", asked),), (Message("assistant", better[rest]),), (Message("assistant", worse[rest]),)


def _last_question(turns: tuple[Message, ...]) -> Message:
    return next((turn for turn in reversed(turns) if turn.role != "assistant"), turns[-1])


def _is_in(turn: Message, turns: tuple[Message, ...]) -> bool:
    return any((turn.role, turn.content.strip()) == (other.role, other.content.strip()) for other in turns)


def openai_preference(row: RawColumns, origin: Origin, names: Names | None = None) -> Preference:
    given = parsed(need(row, "input"), "'input'")
    if not isinstance(given, Mapping):
        raise Unreadable("the column 'input' must be an object with messages", found=shown(given, 40))
    prompt = read_messages(need(given, "messages"), "messages", names)
    chosen = read_messages(need(row, "preferred_output"), "preferred_output", names)
    rejected = read_messages(need(row, "non_preferred_output"), "non_preferred_output", names)
    return pair(prompt, chosen, rejected, origin, read_tools(given.get("tools")))


def unpaired(row: RawColumns, origin: Origin, names: Names | None = None) -> Judged:
    name = next((name for name in LABELS if is_filled(row.get(name))), "label")
    label, wanted = need(row, name), judgement(row.get(name))
    keys = _whole(row)
    if len(keys) > 1:
        raise Unreadable("the row has both messages and conversations")
    if keys:
        turns = read_messages(row[keys[0]], keys[0], names)
        last = max((place for place, turn in enumerate(turns) if turn.role == "assistant"), default=len(turns))
        prompt, completion = turns[:last], turns[last:]
    else:
        prompt = _prompt(row, names) or _side(need(row, "prompt"), "prompt", "user", names)
        completion = _side(need(row, "completion"), "completion", "assistant", names)
    if wanted is None:
        what = f"the column {name!r} must say whether the answer is wanted: true or false"
        raise Unreadable(what, found=shown(label), fix="write true or false, or 1 or 0")
    _refuse_no_answer(completion, keys[0] if keys else "completion")
    if not prompt:
        raise Unreadable("the prompt is empty")
    return Judged(with_system(prompt, row), completion, wanted, origin, tools_of(row))


def _prompt(row: RawColumns, names: Names | None) -> tuple[Message, ...]:
    """What stands before both answers, by the first column of `_PROMPTS` that the row has; nothing where they are whole
    conversations."""
    key = next((key for key in _PROMPTS if row.get(key) not in (None, "")), None)
    if key is None:
        return ()
    if key == "instruction":
        more = f"\n\n{text_of(row, 'input')}" if row.get("input") not in (None, "") else ""
        return (Message("user", text_of(row, "instruction") + more),)
    turns = _parted(_side(row[key], key, "user", names))
    return turns[:-1] if len(turns) > 1 and turns[-1] == Message("assistant", "") else turns


def _parted(turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """A conversation that was written into one text, "Human: …" and "Assistant: …" in turn, as its turns."""
    if len(turns) != 1 or not _SPEAKERS.match(turns[0].content):
        return turns
    _, *pieces = _SPEAKERS.split(turns[0].content)
    roles = {"Human": "user", "Assistant": "assistant"}
    return tuple(Message(roles[who], said.strip()) for who, said in zip(pieces[::2], pieces[1::2], strict=True))


def _side(value: Any, key: str, role: str, names: Names | None) -> tuple[Message, ...]:
    """Text is one turn of `role`; a message or a list of them is what it says."""
    value = turns_in(value, key, names)
    if isinstance(value, str):
        return (Message(role, value),)
    if isinstance(value, Mapping):
        return read_messages([value], key, names)
    if isinstance(value, list | tuple):
        return read_messages(value, key, names)
    raise Unreadable(f"the column {key!r} must be text, a message or a list of messages", found=shown(value, 40))


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


def pair(
    prompt: tuple[Message, ...],
    chosen: tuple[Message, ...],
    rejected: tuple[Message, ...],
    origin: Origin,
    tools: Tools,
    margin: Any = None,
) -> Preference:
    """Two answers to one prompt; an empty prompt or an answer without a turn of the assistant is refused."""
    if not prompt:
        raise Unreadable("the prompt is empty")
    for key, answer in (("chosen", chosen), ("rejected", rejected)):
        _refuse_no_answer(answer, key)
    return Preference(prompt, chosen, rejected, origin, tools, _number(margin))


def _number(margin: Any) -> float | str | None:
    """A margin as a number, also one that a table wrote as text; what is none stays as it is, for who reads it."""
    try:
        return None if margin in (None, "") else float(margin)
    except (TypeError, ValueError):
        return str(margin)


def _refuse_no_answer(turns: tuple[Message, ...], key: str) -> None:
    if not any(turn.is_learned for turn in turns):
        roles = ", ".join(turn.role for turn in turns) or "no turn"
        raise Unreadable(f"the column {key!r} holds no turn of the assistant", found=roles)

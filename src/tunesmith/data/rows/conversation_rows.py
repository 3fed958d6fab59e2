"""Rows that hold one conversation, a text, or a prompt alone, by the columns that most data sets have.

text                {"text": …}
messages            {"messages": [{"role", "content", …}], "tools": […]},
                    or ShareGPT's {"conversations": [{"from", "value"}], …}
prompt-completion   {"prompt": …, "completion": …}, both strings or both message lists
alpaca              {"instruction": …, "output": …}, with or without input, history
prompt              {"prompt": …}, or messages, conversations or a question

A system turn (system, system_prompt) may stand in a column of its own beside the second, the third and the fourth.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.data.problems import shown
from tunesmith.data.reading.empty_cells import is_filled
from tunesmith.data.rows.beside import tools_of, with_system
from tunesmith.data.rows.cells import turns_in
from tunesmith.data.rows.messages import Names, Unreadable, need, parsed, read_messages, read_tools, text_of
from tunesmith.data.types import Conversation, Document, Message, Origin, Prompt

RawColumns = Mapping[str, Any]


def text(row: RawColumns, origin: Origin) -> Document:
    return Document(text_of(row, "text"), origin)


def messages(row: RawColumns, origin: Origin, names: Names | None = None) -> Conversation:
    keys = [key for key in ("messages", "conversations") if is_filled(row.get(key))]
    if len(keys) > 1:
        raise Unreadable("the row has both messages and conversations")
    key = keys[0] if keys else "conversations" if "conversations" in row else "messages"
    turns = read_messages(turns_in(need(row, key), key, names), key, names)
    return Conversation(with_system(turns, row), origin, tools_of(row))


def prompt_completion(row: RawColumns, origin: Origin, names: Names | None = None) -> Conversation:
    prompt, completion = (turns_in(need(row, key), key, names) for key in ("prompt", "completion"))
    for key, value in (("prompt", prompt), ("completion", completion)):
        if not isinstance(value, (str, list, tuple)):
            said = f"{type(value).__name__} {shown(value, 40)}"
            raise Unreadable(f"the column {key!r} must be text or a list of messages", found=said)
    tools = tools_of(row)
    if isinstance(prompt, str) and isinstance(completion, str):
        both = (Message("user", prompt), Message("assistant", completion))
        return Conversation(with_system(both, row), origin, tools)
    if isinstance(prompt, str) or isinstance(completion, str):
        raise Unreadable(
            "prompt and completion must both be text or both be message lists",
            found=" and ".join(
                f"{key}: {'text' if isinstance(value, str) else 'messages'}"
                for key, value in (("prompt", prompt), ("completion", completion))
            ),
            fix="write both alike; where JSON is meant as text, word the rows: "
            'data.format={prompt: "{{ prompt }}", answer: "{{ completion }}"}',
        )
    asked, answer = read_messages(prompt, "prompt", names), read_messages(completion, "completion", names)
    turns = with_system(asked + answer, row)
    return Conversation(turns, origin, tools, num_asked=len(turns) - len(answer))


def _has(row: RawColumns, key: str) -> bool:
    """Whether a column that may be left out holds anything; in a CSV, empty text stands for nothing."""
    return row.get(key) not in (None, "")


def alpaca(row: RawColumns, origin: Origin) -> Conversation:
    turns = list[Message]()
    history = parsed(row["history"], "history") if _has(row, "history") else []
    if not isinstance(history, list):
        raise Unreadable("history must be a list of [question, answer] pairs", found=shown(history))
    for pair in history:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(side, str) for side in pair):
            raise Unreadable("history must hold [question, answer] pairs of text", found=shown(pair))
        turns += [Message("user", pair[0]), Message("assistant", pair[1])]
    question = text_of(row, "instruction")
    if _has(row, "input"):
        question += "\n\n" + text_of(row, "input")
    turns += [Message("user", question), Message("assistant", text_of(row, "output"))]
    return Conversation(with_system(tuple(turns), row), origin)


def prompt(row: RawColumns, origin: Origin, names: Names | None = None) -> Prompt:
    """A question alone: text or messages, of which an answer at the end is left off.

    All columns beside it are the rewards', so few are read: `tools`, and `functions` beside a conversation alone, where
    hardly anything else can be meant. A system turn stands among the messages.
    """
    there = [key for key in ("prompt", "messages", "conversations", "question") if key in row]
    key = next((key for key in there if is_filled(row[key])), there[0] if there else "prompt")
    given = turns_in(need(row, key), key, names)
    turns = (Message("user", given),) if isinstance(given, str) else read_messages(given, key, names)
    if turns and turns[-1].role == "assistant":
        turns = turns[:-1]
    if not isinstance(given, str):
        given = [{"role": turn.role, "content": turn.content} for turn in turns]
    if not turns:
        raise Unreadable(f"the column {key!r} holds no turn to answer")
    tools = tools_of(row) if key in ("messages", "conversations") else read_tools(row.get("tools"))
    return Prompt(turns, given, {k: v for k, v in row.items() if k != key}, origin, tools)

"""Message lists as people write them: OpenAI's `messages` and ShareGPT's `conversations`, with tools and tool calls."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from tunesmith.data.problems import listed, shown
from tunesmith.data.reading.empty_cells import EmptyCell
from tunesmith.data.reading.strict_json import strict_value
from tunesmith.data.settings import MessageKey
from tunesmith.data.types import Document, Labelled, LearnedSpan, Marked, Message, Row, turns_of

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
}
_CALLS = ("function_call", "tool_call")
_REASONING = ("reasoning_content", "reasoning", "thinking")
_LEARN = ("learn", "train", "weight")
KNOWN_KEYS = {
    *("role", "from", "content", "value", "tool_calls", "function_call", "name", "tool_call_id"),
    *_REASONING,
    *_LEARN,
    "learn_spans",
}
_NAMES: dict[MessageKey, tuple[str, ...]] = {
    "role": ("role", "from"),
    "content": ("content", "value"),
    "learn": _LEARN,
    "reasoning": _REASONING,
    "tool_calls": ("tool_calls", "function_call"),
}
"""What a key may be called, where that is not our word alone."""
_KEYS = {"reasoning": "reasoning_content"}
"""Where our word for a key is not the first of those that are looked for."""


class Unreadable(Exception):
    """This row is not of its format; `convert` adds the file and the row."""

    def __init__(self, what: str, found: str | None = None, fix: str | None = None) -> None:
        super().__init__(what)
        self.what, self.found, self.fix = what, found, fix


def framed(turn: Message, before: str, after: str = "", **changes: Any) -> Message:
    """`turn` with words around its content; what is learned of it stays the same words."""
    if isinstance(turn, Marked):
        width = len(before)
        changes["spans"] = tuple((start + width, end + width, learn) for start, end, learn in turn.spans)
    return replace(turn, content=f"{before}{turn.content}{after}", **changes)


@dataclass(frozen=True)
class Names:
    """What rows call the keys {ours: theirs} and roles {theirs: ours} of messages, beside the names known anyway; a key
    that is called null is not read.

    `seen` gathers all keys that stood in a message, `said` all roles, where some are renamed.
    """

    keys: Mapping[MessageKey, str | None] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set, compare=False)
    said: set[str] = field(default_factory=set, compare=False)

    @property
    def unread(self) -> frozenset[str]:
        """All names of the keys that are not read."""
        left_out = (_NAMES.get(our, (our,)) for our, their in self.keys.items() if their is None)
        return frozenset(name for names in left_out for name in names)

    def in_our_words(self, item: Mapping[str, Any]) -> Mapping[str, Any]:
        """A message with its keys renamed; null is nothing."""
        if not self.keys:
            return item
        self.seen.update(item)
        theirs = self.unread.union(their for their in self.keys.values() if their is not None)
        said = {our: item.get(their) for our, their in self.keys.items() if their is not None}
        named = {_KEYS.get(our, our): value for our, value in said.items() if value is not None}
        passed_over = (
            theirs.union(_LEARN) if "learn" in named else theirs
        )  # their word for it counts, and none beside it
        return {key: value for key, value in item.items() if key not in passed_over} | named


def need(row: Mapping[str, Any], key: str) -> Any:
    if key not in row:
        raise Unreadable(f"the column {key!r} is missing")
    if row[key] is None:
        raise Unreadable(f"the column {key!r} is null")
    return "" if isinstance(row[key], EmptyCell) else row[key]


def text_of(row: Mapping[str, Any], key: str) -> str:
    value = need(row, key)
    if not isinstance(value, str):
        raise Unreadable(f"the column {key!r} must be text", found=f"{type(value).__name__} {shown(value, 40)}")
    return value


def read_messages(value: Any, key: str, names: Names | None = None) -> tuple[Message, ...]:
    value, names = parsed(value, key), names or Names()
    if not isinstance(value, (list, tuple)):
        raise Unreadable(f"{key!r} must be a list of messages", found=f"{type(value).__name__} {shown(value, 40)}")
    turns: list[Message] = []
    for index, item in enumerate(value, start=1):
        place = f"message {index} of {key!r}"
        if not isinstance(item, Mapping):
            raise Unreadable(f"{place} must be an object", found=f"{type(item).__name__} {shown(item, 40)}")
        item = names.in_our_words(item)
        turn = _read_message(item, place, names.roles)
        if names.roles:
            names.said.add(item["role"] if item.get("role") is not None else item["from"])
        if turns and _joins(turns[-1], turn, item):
            # ShareGPT writes a call as a turn of its own; it belongs to the assistant's turn before it.
            turns[-1] = replace(turns[-1], tool_calls=turns[-1].tool_calls + turn.tool_calls)
        else:
            turns.append(turn)
    return tuple(turns)


def _joins(before: Message, turn: Message, item: Mapping[str, Any]) -> bool:
    is_call = (item.get("role") or item.get("from")) in _CALLS and turn.role == "assistant"
    return is_call and before.role == "assistant" and before.is_learned == turn.is_learned


def _read_message(item: Mapping[str, Any], place: str, roles: Mapping[str, str]) -> Message:
    role = item.get("role") if item.get("role") is not None else item.get("from")
    known = {**ROLES, **roles} if roles else ROLES
    if role is None:
        raise Unreadable(f"{place} has no 'role'", found=f"keys {listed(item)}")
    if not isinstance(role, str) or role not in known:
        found = f"{shown(role, 40)}; known: {listed(known)}"
        raise Unreadable(f"{place} has a role nobody knows", found=found, fix="name it in data.roles: {theirs: ours}")
    content = item.get("content") if item.get("content") is not None else item.get("value")
    calls = item.get("tool_calls")
    if role in _CALLS and known[role] == "assistant":
        content, calls = None, content
    elif calls is None and item.get("function_call") is not None:
        calls = [item["function_call"]]
    tool_calls = _read_calls(calls, place)
    if content is None and not tool_calls:
        raise Unreadable(f"{place} has no content", found=f"keys {listed(item)}")
    reasoning = next((item[name] for name in _REASONING if item.get(name) is not None), None)
    said: dict[str, Any] = {
        "role": known[role],
        "content": _read_reply(content, place) if known[role] == "tool" else _read_content(content, place),
        "tool_calls": tool_calls,
        "name": _optional_text(item, "name", place),
        "tool_call_id": _optional_text(item, "tool_call_id", place),
        "reasoning": None if reasoning is None else _read_content(reasoning, place),
    }
    learn, spans, rest = _read_learn(item, said["content"], content, place)
    if not spans:
        return Message(**said, learn=learn)
    return Marked(**said, learn=learn is not False, spans=spans, rest=rest)


def _optional_text(item: Mapping[str, Any], key: str, place: str) -> str | None:
    value = item.get(key)
    if value is not None and not isinstance(value, str):
        raise Unreadable(f"{key!r} of {place} must be text", found=shown(value, 40))
    return value


def _read_learn(
    item: Mapping[str, Any], text: str, content: Any, place: str
) -> tuple[bool | None, tuple[LearnedSpan, ...], bool | None]:
    """(whether the turn is learned, the spans of its content that say otherwise, whether what they leave is learned).

    OpenAI writes the flag as `weight` 0 or 1, others as `train` or `learn`. Spans stand in place of one of these, or in
    `learn_spans`, beside a flag or alone; or the parts of a content have flags of their own.
    """
    lists = [name for name in _LEARN if isinstance(item.get(name), (list, tuple))]
    parts = _spans_of_parts(content, place)
    if len(lists) + (item.get("learn_spans") is not None) + bool(parts) > 1:
        raise Unreadable(f"{place} says twice which part of it is learned", found=shown(dict(item)))
    called = lists[0] if lists else "learn_spans"
    given, learn = item.get(called), _flag({name: item.get(name) for name in _LEARN if name not in lists}, place)
    if given is None:
        return learn, parts, learn
    spans, is_all = _read_spans(given, text, f"{called!r} of {place}")
    if not spans:  # nothing is learned, unless the flag says that all is
        return bool(learn), (), None
    return learn, spans, False if is_all else learn


def _flag(item: Mapping[str, Any], place: str) -> bool | None:
    """Whether a message, or a part of one, says that it is learned: by any of our words for it, and by all alike."""
    flags = {name: item[name] for name in _LEARN if item.get(name) is not None}
    for name, flag in flags.items():
        if flag not in (0, 1, False, True):
            what = f"{name!r} of {place} must be 0, 1, true or false, or of a whole message a list of spans"
            raise Unreadable(what, found=shown(flag, 40))
    if len(set(map(bool, flags.values()))) > 1:
        said = listed(f"{name}: {json.dumps(flag)}" for name, flag in flags.items())
        raise Unreadable(f"{place} says both that it is learned and that it is not", said, "leave one of them")
    return bool(next(iter(flags.values()))) if flags else None


_OURS, _AXOLOTL = ("start", "end", "learn"), ("begin_offset", "end_offset", "train")


def _read_spans(given: Any, text: str, called: str) -> tuple[tuple[LearnedSpan, ...], bool]:
    """Spans of `text`, in order, and whether nothing else is learned.

    Ours are {start, end, learn}, the end behind the last character; Axolotl's {begin_offset, end_offset, train}, the
    end being the last character, and what they do not name is not learned.
    """
    given = parsed(given, called)
    if not isinstance(given, (list, tuple)):
        raise Unreadable(f"{called} must be a list of spans", found=f"{type(given).__name__} {shown(given, 40)}")
    spans: list[tuple[LearnedSpan, int]] = []
    forms = set()
    for number, item in enumerate(given, 1):
        said = {key: value for key, value in item.items() if value is not None} if isinstance(item, Mapping) else {}
        form = _AXOLOTL if any(key in said for key in _AXOLOTL) else _OURS
        first, last, learn = said.get(form[0]), said.get(form[1]), said.get(form[2], form is _OURS or None)
        if type(first) is not int or type(last) is not int or learn not in (0, 1) or not said.keys() <= set(form):
            expected = "{start, end, learn} or {begin_offset, end_offset, train}, the first two whole numbers"
            raise Unreadable(f"span {number} of {called} must be {expected}", found=shown(item))
        end = last + (form is _AXOLOTL)
        if not 0 <= first < end <= len(text):
            what = "is empty" if first >= end else "reaches beyond the content"
            found = f"{form[0]} {first}, {form[1]} {last}, of {len(text)} characters"
            raise Unreadable(f"span {number} of {called} {what}", found=found)
        spans.append(((first, end, bool(learn)), number))
        forms.add(form)
    if len(forms) > 1:
        raise Unreadable(f"{called} mixes two ways to write spans", found=shown(given))
    spans.sort()
    for ((_, end, _), number), ((start, _, _), other) in pairwise(spans):
        if start < end:
            one, two = sorted((number, other))
            raise Unreadable(f"span {one} and span {two} of {called} overlap", found=shown(given))
    return tuple(span for span, _ in spans), _AXOLOTL in forms


def _spans_of_parts(content: Any, place: str) -> tuple[LearnedSpan, ...]:
    """Of a content in parts, those that say themselves whether they are learned."""
    spans: list[LearnedSpan] = []
    at = 0
    for part in content if isinstance(content, (list, tuple)) else ():
        text = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            return ()  # no part of a text; where it may not be, that is told
        flag = _flag(part, f"a part of {place}") if part is not text else None
        if flag is not None and text:
            spans.append((at, at + len(text), flag))
        at += len(text)
    return tuple(spans)


def _read_content(content: Any, place: str) -> str:
    """Text, or a list of text parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, (list, tuple)):
        parts = []
        for part in content:
            piece = part.get("text") if isinstance(part, Mapping) else part
            if not isinstance(piece, str):
                raise Unreadable(f"{place} has a part that is not text", found=shown(part))
            parts.append(piece)
        return "".join(parts)
    raise Unreadable(f"the content of {place} must be text", found=f"{type(content).__name__} {shown(content, 40)}")


def _read_reply(content: Any, place: str) -> str:
    """What a tool gave back: text, or any JSON value."""
    is_text = isinstance(content, str) or content is None
    in_parts = isinstance(content, list) and all(isinstance(part, Mapping) and "text" in part for part in content)
    if is_text or in_parts:
        return _read_content(content, place)
    try:
        return json.dumps(content, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise Unreadable(f"the content of {place} is neither text nor JSON", found=shown(content, 40)) from None


def parsed(value: Any, what: str) -> Any:
    """`value` itself, or what the JSON text in it says."""
    if not isinstance(value, str):
        return value
    try:
        return strict_value(value)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{what} is text that is not JSON: {error}", found=shown(value)) from None


def _read_calls(calls: Any, place: str) -> tuple[dict[str, Any], ...]:
    """Calls as transformers' templates want them: the arguments an object, not text."""
    if calls is None:
        return ()
    calls = parsed(calls, f"the tool call of {place}")
    calls = [calls] if isinstance(calls, Mapping) else calls
    if not isinstance(calls, (list, tuple)):
        raise Unreadable(f"the tool calls of {place} must be a list", found=shown(calls))
    result = []
    for call in calls:
        function = (call.get("function") or call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise Unreadable(f"a tool call of {place} has no function name", found=shown(call))
        arguments = function.get("arguments")
        arguments = function.get("parameters") if arguments is None else arguments
        arguments = parsed(arguments, f"the arguments of {function['name']} in {place}") if arguments else {}
        if not isinstance(arguments, Mapping):
            raise Unreadable(
                f"the arguments of {function['name']} in {place} must be an object", found=shown(arguments)
            )
        read: dict[str, Any] = {
            "type": "function",
            "function": {"name": function["name"], "arguments": dict(arguments)},
        }
        result.append({"id": call["id"], **read} if isinstance(call.get("id"), str) else read)
    return tuple(result)


def read_tools(tools: Any) -> tuple[dict[str, Any], ...]:
    """Tool descriptions, each wrapped as {"type": "function", "function": {…}}."""
    if tools is None or (isinstance(tools, str) and not tools.strip()):
        return ()
    tools = parsed(tools, "'tools'")
    if tools is None:
        return ()
    tools = [tools] if isinstance(tools, Mapping) else tools
    if not isinstance(tools, (list, tuple)):
        raise Unreadable("'tools' must be a list of objects", found=shown(tools))
    result = []
    for tool in tools:
        tool = parsed(tool, "an entry of 'tools'")
        function = (tool.get("function") or tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise Unreadable("an entry of 'tools' has no name", found=shown(tool))
        try:
            result.append({"type": "function", "function": _without_nulls(function)})
        except RecursionError:
            raise Unreadable("an entry of 'tools' is nested too deeply", fix="mend or remove the row") from None
    return tuple(result)


def _without_nulls(value: Any) -> Any:
    """Arrow gives every object the keys of all others, filled with null; a schema has no use for them."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_without_nulls(item) for item in value]
    return value


def refuse_surrogates(row: Row) -> None:
    """Half of a UTF-16 pair is not text: no tokenizer can encode it."""
    row = row.text if isinstance(row, Labelled) else row
    turns = turns_of(row)
    parts = (
        [row.text]
        if isinstance(row, Document)
        else [part for turn in turns for part in (turn.role, turn.content, turn.reasoning, turn.name) if part]
        + [json.dumps(call, ensure_ascii=False, default=str) for turn in turns for call in turn.tool_calls]
        + [json.dumps(tool, ensure_ascii=False, default=str) for tool in row.tools]
    )
    for part in parts:
        if not part.isascii():
            try:
                part.encode("utf-8")
            except UnicodeEncodeError as error:
                raise Unreadable(
                    "the text holds half of a UTF-16 pair, which is no character",
                    found=repr(part[max(error.start - 10, 0) : error.end + 10]),
                ) from None

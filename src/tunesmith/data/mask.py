"""Which characters of a rendered conversation are learned.

A learned answer runs from the end of what the model is given (the prompt as generation would show it) to the end of
the turn's end token; the line break behind that token is the template's, not the model's, and is not learned. Of the
end tokens, `data.learn_ends` may leave out all, or all but the last learned one, or add those of all other turns.

The start is where the prompt of generation ends: `render(turns before, open_answer=True)` must be a beginning of the
whole text. Templates that rewrite earlier turns, or open an answer otherwise than they show it, break that; then the
answer's place is found by rendering once more with another content and looking where the two texts part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.data.chat import ChatTemplate, Turn, common_prefix, common_suffix
from tunesmith.data.settings import Ends

_OTHER = "\ue000zq\ue001"


class MaskUnknown(Exception):
    """The template hides where an answer begins or ends."""


@dataclass(frozen=True)
class Span:
    """Characters [start, end) of a learned turn. `is_prompted`: the text before it is what generation would show.
    `is_answer`: it is the model's own turn, and ends as such turns do."""

    start: int
    end: int
    is_prompted: bool
    is_answer: bool = False


def learned_spans(
    chat: ChatTemplate, turns: Sequence[Turn], learned: Sequence[bool], tools: Sequence[dict[str, Any]]
) -> tuple[str, list[Span]]:
    """The rendered text and the learned spans in it, in order."""
    text = chat.render(turns, tools)
    spans: list[Span] = []
    for index, turn in enumerate(turns):
        if not learned[index]:
            continue
        if turn["role"] == "assistant":
            start, is_prompted = _start(chat, text, turns, index, tools)
            spans.append(Span(start, _end(chat, text, turns, index, tools, start), is_prompted, is_answer=True))
        elif turn["content"]:
            spans.append(_content_span(chat, text, turns, index, tools))
    return text, spans


def with_ends(chat: ChatTemplate, text: str, spans: Sequence[Span], which: Ends) -> list[Span]:
    """The spans less what ends an answer, where that is not learned; what then says nothing is left out."""
    if which in ("turn", "all"):
        return list(spans)
    answers = [index for index, span in enumerate(spans) if span.is_answer]
    kept = answers[-1:] if which == "last" else []
    cut = [
        replace(span, end=_before_end(chat, text, span)) if index in answers and index not in kept else span
        for index, span in enumerate(spans)
    ]
    return [span for span in cut if span.start < span.end]


def ends_of_others(
    chat: ChatTemplate, text: str, turns: Sequence[Turn], learned: Sequence[bool], tools: Sequence[dict[str, Any]]
) -> list[Span]:
    """The end tokens of all turns but learned answers, whose spans hold them. Turns that no token ends have none."""
    if not chat.traits.stops:
        return []
    starts = [_shown_at(chat, text, turns, index, tools) for index in range(len(turns))]
    found = []
    for index, turn in enumerate(turns):
        if turn["role"] != "assistant":
            limit = next((start for start in starts[index + 1 :] if start is not None), len(text))
            found.append(_first_end(chat, text, turn["content"], starts[index], limit))
        elif not learned[index]:
            start, _ = _start(chat, text, turns, index, tools)
            whole = Span(start, _end(chat, text, turns, index, tools, start), True)
            found.append(replace(whole, start=_before_end(chat, text, whole)))
    return [span for span in found if span is not None and span.start < span.end]


def _shown_at(
    chat: ChatTemplate, text: str, turns: Sequence[Turn], index: int, tools: Sequence[dict[str, Any]]
) -> int | None:
    """Where the content of a turn begins; None where the template does not show it."""
    try:
        return _content_start(chat, text, turns, index, tools)
    except MaskUnknown:
        return None


def _first_end(chat: ChatTemplate, text: str, content: str, start: int | None, limit: int) -> Span | None:
    """The end token behind a content that begins at `start`, before the next one does at `limit`."""
    if start is None:
        return None
    said = next((written for written in (content, content.strip()) if text.startswith(written, start)), "")
    places = [(text.find(end, start + len(said), limit), end) for end in chat.traits.ends]
    at, end = min(((at, end) for at, end in places if at >= 0), default=(0, ""))
    return Span(at, at + len(end), True) if end else None


def _before_end(chat: ChatTemplate, text: str, span: Span) -> int:
    """Where what ends a turn begins: one of the template's ends, or tokens of the turn's own, as calls have."""
    said = text[span.start : span.end]
    known = [end for end in chat.traits.ends if said.endswith(end)]
    if known or not chat.traits.ends:
        return span.end - len(max(known, key=len, default=""))
    start = len(said)
    for token in reversed(list(chat.token_pattern.finditer(said))):
        if token.end() < start:
            break
        start = token.start()
    return span.start + start


def _start(
    chat: ChatTemplate, text: str, turns: Sequence[Turn], index: int, tools: Sequence[dict[str, Any]]
) -> tuple[int, bool]:
    headers = chat.traits.headers
    if index:
        prompt = chat.tried(turns[:index], tools, open_answer=True)
        if prompt and text.startswith(prompt):
            return len(prompt), True
        bare = chat.tried(turns[:index], tools)
        for header in headers:
            if bare and text.startswith(bare + header):
                return len(bare + header), False
        behind = _behind_previous(chat, text, turns, index, tools, prompt)
        if behind is not None:
            return behind, False
    limit = _content_start(chat, text, turns, index, tools)
    for header in headers:
        at = text.rfind(header, 0, limit)
        gap = text[at + len(header) : limit]
        if at >= 0 and (header or not gap) and not any(end in gap for end in chat.traits.ends):
            return at + len(header), False
    raise MaskUnknown(f"where turn {index + 1} begins")


def _behind_previous(
    chat: ChatTemplate, text: str, turns: Sequence[Turn], index: int, tools: Sequence[dict[str, Any]], prompt: str
) -> int | None:
    """The start as what follows the content of the turn before: in `prompt` that is all there is up to the answer."""
    before = turns[index - 1] | {"content": turns[index - 1]["content"] + _OTHER}
    other_prompt = chat.tried([*turns[: index - 1], before], tools, open_answer=True)
    other_text = chat.tried([*turns[: index - 1], before, *turns[index:]], tools)
    tail, rest = common_suffix(prompt, other_prompt), common_suffix(text, other_text)
    if not prompt or not other_prompt or not other_text or prompt == other_prompt or not rest.startswith(tail):
        return None
    return len(text) - len(rest) + len(tail)


def _content_start(
    chat: ChatTemplate, text: str, turns: Sequence[Turn], index: int, tools: Sequence[dict[str, Any]]
) -> int:
    """Where the content of a turn begins: the place from which another content gives another text."""
    other = chat.render([*turns[:index], turns[index] | {"content": _OTHER}, *turns[index + 1 :]], tools)
    if other == text:
        raise MaskUnknown(f"where turn {index + 1} stands: the text does not depend on what it says")
    return len(common_prefix(text, other))


def _end(
    chat: ChatTemplate, text: str, turns: Sequence[Turn], index: int, tools: Sequence[dict[str, Any]], start: int
) -> int:
    """The end of the turn's end token."""
    ends = chat.traits.ends
    is_last = index == len(turns) - 1
    content = turns[index]["content"].strip()
    at = _past_spaces(text, start)
    if text.startswith(content, at):
        at += len(content)
        behind = _past_spaces(text, at)
        for end in ends:
            if text.startswith(end, behind):
                return behind + len(end)
        if not ends and not turns[index].get("tool_calls"):
            return at
    limit = len(text) if is_last else _content_start(chat, text, turns, index + 1, tools)
    found = max((text.rfind(end, start, limit) + len(end) for end in ends if end in text[start:limit]), default=0)
    if found:
        return found
    if is_last:
        return len(text.rstrip())
    # A turn that ends in a way of its own, as calls do: where it ends when nothing follows.
    whole = chat.tried(turns[: index + 1], tools).rstrip()
    if len(whole) > start and text.startswith(whole):
        return len(whole)
    raise MaskUnknown(f"where turn {index + 1} ends")


def _past_spaces(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _content_span(
    chat: ChatTemplate, text: str, turns: Sequence[Turn], index: int, tools: Sequence[dict[str, Any]]
) -> Span:
    """The content alone of a turn that is not the model's own but learned on request."""
    start = _content_start(chat, text, turns, index, tools)
    content = turns[index]["content"]
    for written in (content, content.strip()):
        if written and text.startswith(written, start):
            return Span(start, start + len(written), True)
    raise MaskUnknown(f"what of turn {index + 1} is written out")

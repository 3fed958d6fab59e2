"""Which characters of a rendered conversation are learned.

A learned answer runs from the end of what the model is given (the prompt as generation would show it) to the end of
the turn's end token; the line break behind that token is the template's, not the model's, and is not learned. Of the
end tokens, `data.learn_ends` may leave out all, or all but the last learned one, or add those of other turns, of all
or of the learned ones.
A turn may be learned in part (`Marks`); it ends as any learned turn does.

The start is where the prompt of generation ends: `render(turns before, open_answer=True)` must be a beginning of the
whole text. Templates that rewrite earlier turns, or open an answer otherwise than they show it, break that; then the
answer's place is found by rendering once more with another content and looking where the two texts part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from tunesmith.data.settings import Ends
from tunesmith.data.templating.chat import ChatTemplate, Turn, common_prefix, common_suffix

_OTHER = "\ue000zq\ue001"


class MaskUnknown(Exception):
    """The template hides where an answer begins or ends."""


@dataclass(frozen=True)
class Span:
    """Characters [start, end) of a learned turn. `is_prompted`: the text before it is what generation would show.
    `is_answer`: it is the model's own turn, and ends as such turns do. `is_inner`: it begins within a turn's words,
    where generation has no border."""

    start: int
    end: int
    is_prompted: bool
    is_answer: bool = False
    is_inner: bool = False


@dataclass(frozen=True)
class Marks:
    """What of a turn is learned: (start, end, whether it is) of its content, and whether the rest of the turn is."""

    spans: Sequence[tuple[int, int, bool]]
    rest: bool


def learned_spans(
    chat: ChatTemplate,
    turns: Sequence[Turn],
    learned: Sequence[bool],
    tools: Sequence[dict[str, Any]],
    marks: Mapping[int, Marks] | None = None,
) -> tuple[str, list[Span]]:
    """The rendered text and the learned spans in it, in order; `marks`: what of single turns is learned."""
    text, marks = chat.render(turns, tools), marks or {}
    spans: list[Span] = []
    for index, turn in enumerate(turns):
        if not learned[index]:
            continue
        if turn["role"] == "assistant":
            start, is_prompted = _start(chat, text, turns, index, tools)
            said = Span(start, _end(chat, text, turns, index, tools, start), is_prompted, is_answer=True)
        elif turn["content"]:
            said = _content_span(chat, text, turns, index, tools)
            if said.start == said.end:
                continue
        else:
            continue
        spans += _parts(chat, text, turns, index, tools, said, marks[index]) if index in marks else [said]
    return text, spans


def _parts(
    chat: ChatTemplate,
    text: str,
    turns: Sequence[Turn],
    index: int,
    tools: Sequence[dict[str, Any]],
    whole: Span,
    marks: Marks,
) -> list[Span]:
    """What of a turn its marks learn. Of an answer the end comes last, even an empty one: `with_ends` looks for it."""
    start, end = _content_place(chat, text, turns, index, tools)
    shift = start - _first_written(turns[index]["content"], text[start:end], index)
    words_end = _before_end(chat, text, whole) if whole.is_answer else whole.end
    learned = [marks.rest] * (words_end - whole.start)
    for first, last, is_learned in marks.spans:
        first, last = max(first + shift, start, whole.start), min(last + shift, end, words_end)
        if first < last:
            learned[first - whole.start : last - whole.start] = [is_learned] * (last - first)
    parts, at = [], whole.start
    for is_learned, run in groupby(learned):
        begun, at = at, at + len(list(run))
        if is_learned:
            parts.append(Span(begun, at, whole.is_prompted, is_inner=begun > whole.start))
    if whole.is_answer:
        parts.append(replace(whole, start=words_end, is_inner=words_end > whole.start))
    return parts


def _first_written(content: str, written: str, index: int) -> int:
    """Which character of a content is the first that is written: white space around it may go, a thought before it."""
    if written == content.strip():
        return len(content) - len(content.lstrip())
    if content.endswith(written):
        return len(content) - len(written)
    if content.startswith(written):
        return 0
    raise MaskUnknown(f"which characters of turn {index + 1} are written out")


def with_ends(chat: ChatTemplate, text: str, spans: Sequence[Span], which: Ends) -> list[Span]:
    """The spans less what ends an answer, where that is not learned; what then says nothing is left out. Where the last
    learned turn is no answer, the last end is that turn's, which `ends_of_others` finds."""
    if which in ("turn", "learned", "all"):
        return list(spans)
    answers = [index for index, span in enumerate(spans) if span.is_answer]
    kept = answers[-1:] if which == "last" and answers[-1:] == [len(spans) - 1] else []
    cut = [
        replace(span, end=_before_end(chat, text, span)) if index in answers and index not in kept else span
        for index, span in enumerate(spans)
    ]
    return [span for span in cut if span.start < span.end]


def ends_of_others(
    chat: ChatTemplate,
    text: str,
    turns: Sequence[Turn],
    learned: Sequence[bool],
    tools: Sequence[dict[str, Any]],
    which: Ends,
) -> list[Span]:
    """The end tokens of turns that are no learned answers, whose spans hold them: of all, of the learned ones, or of
    the last learned one. Turns that no token ends have none."""
    if not chat.traits.stops:
        return []
    told = [index for index, is_learned in enumerate(learned) if is_learned]
    places = {"learned": set(told), "last": set(told[-1:])}
    wanted = places.get(which, range(len(turns)))
    starts = [_shown_at(chat, text, turns, index, tools) for index in range(len(turns))]
    found = []
    for index, turn in enumerate(turns):
        if index not in wanted:
            continue
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
    """Where the words of a turn begin; None where the template does not show them."""
    try:
        return _words_start(chat, text, turns, index, tools)
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
    known = [(len(end), gap) for end, gap in chat.traits.gaps.items() if said.endswith(end)]
    if known or not chat.traits.ends:
        length, gap = max(known, default=(0, ""))
        at = span.end - length
        return at - len(gap) if text.endswith(gap, span.start, at) else at
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
    # Where nothing opens an answer, and a call shows no words, no one knows where the call begins.
    limit = (_content_start if headers == ("",) else _words_start)(chat, text, turns, index, tools)
    for header in headers:
        at = text.rfind(header, 0, limit) if header else limit - len(chat.traits.lead)
        gap = text[max(at, 0) + len(header) : limit]
        if at >= 0 and (header or gap == chat.traits.lead) and not any(end in gap for end in chat.traits.ends):
            return at + len(header), False
    if headers == ("",):
        return limit, False
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
    """Where the content of a turn begins."""
    return _content_place(chat, text, turns, index, tools)[0]


def _words_start(
    chat: ChatTemplate, text: str, turns: Sequence[Turn], index: int, tools: Sequence[dict[str, Any]]
) -> int:
    """Where the words of a turn begin, or its calls where the template shows no words beside them."""
    try:
        return _content_start(chat, text, turns, index, tools)
    except MaskUnknown:
        other = _calling_otherwise(chat, turns, index, tools)
        if not other or other == text:
            raise
        return len(common_prefix(text, other))


def _content_place(
    chat: ChatTemplate, text: str, turns: Sequence[Turn], index: int, tools: Sequence[dict[str, Any]]
) -> tuple[int, int]:
    """[start, end) of what is written of a turn's content: the part from which another content makes another text."""
    other = chat.render([*turns[:index], turns[index] | {"content": _OTHER}, *turns[index + 1 :]], tools)
    if other == text:
        raise MaskUnknown(f"where turn {index + 1} stands: the text does not depend on what it says")
    start = len(common_prefix(text, other))
    return start, len(text) - len(common_suffix(text[start:], other[start:]))


def _end(
    chat: ChatTemplate, text: str, turns: Sequence[Turn], index: int, tools: Sequence[dict[str, Any]], start: int
) -> int:
    """The end of the turn's end token."""
    ends = chat.traits.ends
    if not ends and not turns[index].get("tool_calls"):
        return max(start, _content_place(chat, text, turns, index, tools)[1])
    behind = end_behind(chat, text, turns[index]["content"], start)
    if behind is not None:
        return behind
    is_last = index == len(turns) - 1
    limit = len(text) if is_last else _words_start(chat, text, turns, index + 1, tools)
    start = max(start, min(limit, _behind_calls(chat, text, turns, index, tools)))
    found = last_end(chat, text, start, limit)
    if found is not None:
        return found
    if is_last:
        return len(text.rstrip())
    # A turn that ends in a way of its own, as calls do: where it ends when nothing follows.
    whole = chat.tried(turns[: index + 1], tools).rstrip()
    if len(whole) > start and text.startswith(whole):
        return len(whole)
    raise MaskUnknown(f"where turn {index + 1} ends")


def end_behind(chat: ChatTemplate, text: str, content: str, start: int) -> int | None:
    """The end of the end token right behind a content that begins at `start`; white space around it may go."""
    content, at = content.strip(), _past_spaces(text, start)
    if not text.startswith(content, at):
        return None
    behind = _past_spaces(text, at + len(content))
    return next((behind + len(end) for end in chat.traits.ends if text.startswith(end, behind)), None)


def last_end(chat: ChatTemplate, text: str, start: int, limit: int) -> int | None:
    """The end of the last end token within [start, limit)."""
    ends = [end for end in chat.traits.ends if end in text[start:limit]]
    return max((text.rfind(end, start, limit) + len(end) for end in ends), default=None)


def _behind_calls(
    chat: ChatTemplate, text: str, turns: Sequence[Turn], index: int, tools: Sequence[dict[str, Any]]
) -> int:
    """Where nothing more depends on what a turn calls, so that a mark in its arguments is not taken for its end."""
    other = _calling_otherwise(chat, turns, index, tools)
    return len(text) - len(common_suffix(text, other)) if other else 0


def _calling_otherwise(chat: ChatTemplate, turns: Sequence[Turn], index: int, tools: Sequence[dict[str, Any]]) -> str:
    """The text with other arguments in the calls of a turn; nothing where it has none, or the template refuses."""
    calls = turns[index].get("tool_calls")
    if not calls:
        return ""
    others = [call | {"function": {"name": call["function"]["name"], "arguments": {_OTHER: _OTHER}}} for call in calls]
    return chat.tried([*turns[:index], turns[index] | {"tool_calls": others}, *turns[index + 1 :]], tools)


def _past_spaces(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _content_span(
    chat: ChatTemplate, text: str, turns: Sequence[Turn], index: int, tools: Sequence[dict[str, Any]]
) -> Span:
    """The content alone of a turn that is not the model's own but learned on request; white space around it may go."""
    start, end = _content_place(chat, text, turns, index, tools)
    if text[start:end].strip() != turns[index]["content"].strip():
        raise MaskUnknown(f"what of turn {index + 1} is written out")
    return Span(start, end, True)

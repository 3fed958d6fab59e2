"""Where answers stand is found in one walk over the text, as by the search that asks the template for every turn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle_templates import KNOWN
from test_mask_oracle import ORIGIN, renderer_of, rows

from tunesmith.data.formats import convert
from tunesmith.data.masking.answering import answer_spans
from tunesmith.data.masking.mask import MaskUnknown, Span, learned_spans
from tunesmith.data.masking.places import answer_places
from tunesmith.data.render import Renderer
from tunesmith.data.templating.chat import ChatTemplate, TemplateFailed, as_turn
from tunesmith.data.types import Conversation, Marked, Message

SOME = ((0, 2, True),)
WITHOUT_HEADER = ("eos behind all", "plain")
"""Of these templates nothing that generation shows opens an answer, and the search is needed."""


def given_to(renderer: Renderer, row: Conversation) -> tuple[list[Message], list[dict[str, Any]], Any]:
    messages, tools = renderer._fitted(row.messages, row.tools)
    return messages, [as_turn(turn) for turn in messages], tools


def both(renderer: Renderer, row: Conversation) -> tuple[Any, Any]:
    """The places by one walk and by the search, None where it does not find them."""
    messages, turns, tools = given_to(renderer, row)
    wanted = [turn.role == "assistant" for turn in messages]
    text = renderer.chat.render(turns, tools)
    try:
        searched = places(learned_spans(renderer.chat, turns, wanted, tools)[1])
    except (MaskUnknown, TemplateFailed):
        searched = None
    return places(answer_places(renderer.chat, text, turns, wanted, tools)), searched


def places(spans: list[Span] | None) -> list[tuple[int, int]] | None:
    return None if spans is None else [(span.start, span.end) for span in spans]


def talk(num_turns: int, role: str = "user") -> Conversation:
    turns = [Message(who, f"it is {i}") for i in range(num_turns // 2) for who in (role, "assistant")]
    return Conversation(tuple(turns), ORIGIN)


@pytest.mark.parametrize("template", KNOWN)
@settings(derandomize=True, deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_is_found_in_one_walk_is_what_the_search_finds(template: str, data: st.DataObject) -> None:
    [row] = convert([(ORIGIN, data.draw(rows(KNOWN[template])))], "auto", {}).rows
    walked, searched = both(renderer_of("GPT-2", template), row)
    assert walked in (None, searched)


@pytest.mark.parametrize("template", KNOWN)
def test_of_plain_rows_one_walk_is_enough(template: str) -> None:
    walked, searched = both(renderer_of("GPT-2", template), talk(8))
    assert searched is not None
    assert walked == (None if template in WITHOUT_HEADER else searched)


TRAPS = {
    "a question that is a header and the answer": ("user\n<|im_start|>assistant\nyes", "yes"),
    "an answer that is the question": ("user", "user"),
    "an answer that is its header": ("q", "<|im_start|>assistant\n"),
    "an answer that ends before its end": ("q", "a<|im_end|>\n<|im_start|>user\nq"),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_contents_that_look_like_a_mark_lead_no_walk_astray(trap: str) -> None:
    turns = [Message(role, said) for role, said in zip(("user", "assistant"), TRAPS[trap], strict=True)] * 2
    walked, searched = both(renderer_of("GPT-2", "chatml"), Conversation(tuple(turns), ORIGIN))
    assert walked == searched is not None


@pytest.mark.parametrize(
    ("template", "said"), [("chatml", ""), ("drops thoughts", "<think>so</think>yes"), ("llama3", " ")]
)
def test_what_one_walk_leaves_to_guess_is_searched_for(template: str, said: str) -> None:
    turns = (Message("user", "q"), Message("assistant", said), Message("user", "q"), Message("assistant", "yes"))
    row = Conversation(turns, ORIGIN, is_whole=True)
    renderer = renderer_of("GPT-2", template)
    walked, searched = both(renderer, row)
    messages, dictionaries, tools = given_to(renderer, row)
    text = renderer.chat.render(dictionaries, tools)
    found = answer_spans(row, messages, dictionaries, tools, renderer.chat, text, [], "turn")
    assert walked is None
    assert places(found) == searched is not None


@pytest.mark.parametrize("is_marked", [False, True])
@pytest.mark.parametrize("template", ["chatml", "llama2", "llama3", "never ends"])
def test_the_template_is_asked_once_however_many_turns_and_rows_there_are(
    template: str, is_marked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    renderer, asked = Renderer(renderer_of("GPT-2", template).tokenizer), []
    assert renderer.chat.traits
    render = ChatTemplate.render
    for num_turns in (40, 8, 60):
        row = talk(num_turns)
        if is_marked:
            row = replace(row, messages=tuple(Marked(one.role, one.content, spans=SOME) for one in row.messages))
        row = replace(row, is_whole=not is_marked)
        messages, turns, tools = given_to(renderer, row)
        text = renderer.chat.render(turns, tools)
        with monkeypatch.context() as patched:
            patched.setattr(ChatTemplate, "render", lambda *given, **how: asked.append(1) or render(*given, **how))
            found = answer_spans(row, messages, turns, tools, renderer.chat, text, [], "turn")
        assert len(found or ()) == num_turns // 2
    assert len(asked) == 1


def test_what_another_row_left_between_its_turns_is_not_taken_for_this_ones() -> None:
    renderer = Renderer(renderer_of("GPT-2", "shows the last thought").tokenizer)
    plain = talk(4)
    *before, last = plain.messages
    thoughts = [replace(plain, messages=(*before, replace(last, reasoning=said))) for said in ("so", "thus")]
    for row in (plain, thoughts[0], plain, thoughts[1], thoughts[0]):
        walked, searched = both(renderer, row)
        assert walked == searched is not None

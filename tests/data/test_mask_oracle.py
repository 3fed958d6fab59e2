"""The mask against an oracle that is made of characters, for tokenizers × templates × conversations.

The oracle writes a conversation in pieces (`oracle_templates.py`), says of each character whether it is learned,
tokenises the text that the tokenizer's own template gives, and goes from token to token. The law at an edge: **a token
is learned if any of its characters is**, but for white space at its beginning, which goes with what stands behind it;
a token that has no characters (a word mark) goes with the one that it stands before. BOS stands once at the start of a
text where tokenizer or template use it, and the first token is never learned.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle_templates import KNOWN, Known, Turn
from oracle_tokenizers import MARKS, TOKENIZERS, placed

from tunesmith.data.formats import convert
from tunesmith.data.render import Renderer
from tunesmith.data.types import Origin
from tunesmith.errors import DataError

ORIGIN = Origin("test", 1)
ENDS = ("turn", "last", "none", "all")
SAID = ("learn", "learn_spans")


@cache
def bare_tokenizer(name: str) -> Any:
    return TOKENIZERS[name]()


@cache
def renderer_of(name: str, template: str) -> Renderer:
    tokenizer = copy.deepcopy(bare_tokenizer(name))
    tokenizer.chat_template = KNOWN[template].jinja
    return Renderer(tokenizer)


# --- the oracle ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wish:
    """What is wanted of a turn: whether it is learned at all, each character of its content, and all else of it."""

    turn: bool
    words: list[bool]
    rest: bool


def wish(turn: Turn, by_role: bool, is_asked: bool) -> Wish:
    """`by_role`: whether it is learned where it says nothing itself."""
    flag, spans = turn.get("learn"), turn.get("learn_spans")
    if isinstance(flag, list):
        flag, spans = None, flag
    if spans == []:
        flag = bool(flag)
    length = len(turn["content"])
    if is_asked or flag is False or not spans:
        learned = (by_role if flag is None else flag) and not is_asked
        return Wish(learned, [learned] * length, learned)
    rest = by_role if flag is None else flag
    if "begin_offset" in spans[0]:
        told = [(span["begin_offset"], span["end_offset"] + 1, span["train"]) for span in spans]
        rest = False
    else:
        told = [(span["start"], span["end"], span.get("learn", True)) for span in spans]
    words = [rest] * length
    for start, end, learned in told:
        words[start:end] = [learned] * (end - start)
    return Wish(True, words, rest)


def wishes(row: dict[str, Any], learn: Any) -> list[Wish] | None:
    """Of each turn; None: every token of the row is learned."""
    asked = row.get("prompt", [])
    turns = row["messages"] if "messages" in row else asked + row["completion"]
    if learn == "everything" or (learn == "completions" and not asked):
        return None
    if learn in ("answers", "completions"):
        return [wish(turn, turn["role"] == "assistant", n < len(asked)) for n, turn in enumerate(turns)]
    return [wish(turn, learn != "marked" and turn["role"] in learn, False) for turn in turns]


def says_no(turn: Turn) -> bool:
    made = wish(turn, True, False)
    return not made.turn or not made.rest or not all(made.words)


@dataclass
class Characters:
    """The text, whether each of its characters is learned, where learned answers begin, and whether EOS is added."""

    text: str
    mask: list[bool]
    borders: list[int]
    adds_eos: bool


def characters(known: Known, turns: Sequence[Turn], wanted: Sequence[Wish], ends: str) -> Characters:
    answers = [n for n, turn in enumerate(turns) if turn["role"] == "assistant" and wanted[n].turn]
    others = [n for n, turn in enumerate(turns) if n not in answers and any(wanted[n].words)]
    final, last = max(answers, default=-1), max([*answers, *others], default=-1)
    made = Characters("", [], [], not known.ends and final == len(turns) - 1)
    begun: set[int] = set()
    for piece, kind, n in known.write(turns):
        if made.adds_eos and kind == "mark" and n == final and n in begun:
            break
        if n in answers and kind != "mark" and n not in begun:
            begun.add(n)
            made.borders.append(len(made.text))
        made.text += piece
        made.mask += _of_piece(piece, turns[n]["content"], wanted[n], kind, n in answers, known, ends, n == last)
    return made


def _of_piece(
    piece: str, content: str, own: Wish, kind: str, is_answer: bool, known: Known, ends: str, is_last: bool
) -> list[bool]:
    """White space around a content may go, and what stands before the rest of it."""
    if kind == "words":
        first = len(content) - len(content.lstrip()) if piece == content.strip() else len(content) - len(piece)
        return own.words[first : first + len(piece)]
    if kind == "lead":
        return [is_answer and own.rest] * len(piece)
    if kind == "end" and not is_answer:
        return [known.ends and (ends == "all" or (ends == "last" and is_last))] * len(piece)
    return [kind == "end" and (ends in ("turn", "all") or (ends == "last" and is_last))] * len(piece)


def tokens(tokenizer: Any, made: Characters, learns_eos: bool) -> tuple[list[int], list[float]]:
    ids, places = placed(tokenizer, made.text)
    mask = [*made.mask, False]
    learned = [any(mask[_begins(made.text, start, end) : max(end, start + 1)]) for start, end in places]
    bos = tokenizer.bos_token_id
    while ids[:2] == [bos, bos]:
        ids, learned = ids[1:], learned[1:]
    if ids[:1] != [bos] and tokenizer("a").input_ids[0] == bos:
        ids, learned = [bos, *ids], [False, *learned]
    if made.adds_eos and ids[-1] != tokenizer.eos_token_id:
        ids, learned = [*ids, tokenizer.eos_token_id], [*learned, learns_eos]
    return ids, [0.0, *map(float, learned[1:])]


def _begins(text: str, start: int, end: int) -> int:
    said = text[start:end]
    return start if said.isspace() else end - len(said.lstrip())


def check(name: str, template: str, row: dict[str, Any], learn: Any = "answers", ends: str = "turn") -> None:
    """The tokens and weights of a row are those of the oracle."""
    known, renderer = KNOWN[template], renderer_of(name, template)
    renderer.learn_ends = ends  # type: ignore[assignment]
    marked = row["messages"] if "messages" in row else row["prompt"] + row["completion"]
    turns = [{key: value for key, value in turn.items() if key not in SAID} for turn in marked]
    asked = [turn["content"] for turn in turns if turn["role"] == "user"]
    if template == "tools move" and (len(asked) > len(set(asked)) or turns[0]["role"] == "assistant"):
        return  # it writes the tools before each question that is as the last, and nothing opens the first turn
    wanted = wishes(row, learn)
    raw = [(ORIGIN, row)]
    if wanted is None and any(map(says_no, marked)):
        with pytest.raises(DataError, match="marked as not to be learned"):
            convert(raw, "auto", {}, learn=learn)
        return
    [conversation] = convert(raw, "auto", {}, learn=learn).rows
    if wanted is not None and _hides(known, turns, wanted):
        with pytest.raises(DataError, match="the chat template hides"):
            renderer.render(conversation)
        return
    is_open = [n == len(turns) - 1 and turn["role"] == "assistant" for n, turn in enumerate(turns)]
    whole = [Wish(one, [one] * len(turn["content"]), one) for one, turn in zip(is_open, turns, strict=True)]
    made = characters(known, turns, whole if wanted is None else wanted, ends)
    if wanted is None:
        made.mask, made.borders = [True] * len(made.text), []
    text = renderer.tokenizer.apply_chat_template(turns, tools=list(known.tools) or None, tokenize=False)
    assert text.startswith(made.text)
    assert made.adds_eos or text == made.text
    ids, weights = tokens(renderer.tokenizer, made, ends != "none")
    rendering = renderer.render_all([conversation])
    [example] = rendering.examples
    assert example.token_ids.tolist() == ids
    assert example.loss_weights.tolist() == weights
    _, places = placed(renderer.tokenizer, made.text)
    learned_borders = [border for border in made.borders if made.mask[border : border + 1] == [True]]
    is_straddled = any(start < border < end for border in learned_borders for start, end in places)
    assert not is_straddled or rendering.straddled


def _hides(known: Known, turns: Sequence[Turn], wanted: Sequence[Wish]) -> bool:
    """Whether a turn that is to be learned is nowhere in the text, or its marked words are not."""
    shown = {n for _, kind, n in known.write(turns) if kind == "words"}
    is_marked = [not all([*one.words, one.rest]) for one in wanted]
    return any(
        wanted[n].turn and n not in shown and turn["content"] and (turn["role"] != "assistant" or is_marked[n])
        for n, turn in enumerate(turns)
    )


# --- conversations -------------------------------------------------------------------------------------------------

WORDS = st.text(
    alphabet=st.one_of(
        st.sampled_from("abc the zq.,:;!?#\n \t"),
        st.characters(exclude_categories=("Cs", "Co", "Cn"), exclude_characters="\x00"),
    ),
    max_size=12,
)
OPENERS = [
    "[INST] ",
    " [/INST]",
    "<|im_start|>assistant\n",
    "### Response:\n",
    "### assistant\n",
    "USER: ",
    "<s>",
    "</s>",
]
THOUGHTS = ["<think>", "<think>\n", "\n</think>\n\n", "<think>\n\n</think>\n\n", "<|assistant|>\n", "ASSISTANT:", "the"]
LETTERS = [" ", "  ", "\n", "\n\n", "\t", "\u00a0", "\u3000", "😀", "👩\u200d👧", "e\u0301", "ﬁ", "ÅÄ", "你好", "."]
PARTS = st.sampled_from([*MARKS, *OPENERS, *THOUGHTS, *LETTERS])
CONTENTS = st.one_of(
    WORDS, st.lists(st.one_of(WORDS, PARTS), max_size=4).map("".join), st.just(""), PARTS, st.just("the dog")
)
ARGUMENTS = st.dictionaries(st.sampled_from(["city", "day"]), st.sampled_from(["Bonn", "x y", "<|im_end|>", "</s>"]))


@st.composite
def marks(draw: st.DrawFn, content: str) -> dict[str, Any]:
    """What a message says of its being learned: a flag, spans, or both."""
    if not draw(st.integers(0, 1)):
        return {"learn": draw(st.booleans())}
    places = st.lists(st.integers(0, len(content)), max_size=6, unique=True).map(sorted)
    edges = draw(places)
    pairs = [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=False)]
    flags = [draw(st.booleans()) for _ in pairs]
    form = draw(st.sampled_from(["ours", "flags left out", "theirs"]))
    spans: list[dict[str, Any]] = [
        {"begin_offset": start, "end_offset": end - 1, "train": flag}
        if form == "theirs"
        else {"start": start, "end": end} | ({} if form == "flags left out" and flag else {"learn": flag})
        for (start, end), flag in zip(pairs, flags, strict=True)
    ]
    flag = draw(st.sampled_from([None, None, True, False]))
    spans = draw(st.permutations(spans))
    if flag is None and draw(st.booleans()):
        return {"learn": spans}
    return {"learn_spans": spans} | ({} if flag is None else {"learn": flag})


@st.composite
def rows(draw: st.DrawFn, known: Known) -> dict[str, Any]:
    spoken = [role for role in known.roles if role != "system"]
    roles = draw(st.lists(st.sampled_from(spoken), min_size=1, max_size=5))
    if draw(st.booleans()):
        roles = ["user", "assistant"] * draw(st.integers(1, 3))
    elif "user" not in roles or "assistant" not in roles:
        roles = ["user", *roles, "assistant"]
    if "system" in known.roles and draw(st.booleans()):
        roles = ["system", *roles]
    turns: list[Turn] = []
    for role in roles:
        said = draw(CONTENTS)
        if turns and draw(st.integers(0, 5)) == 0:
            said = draw(st.sampled_from(turns))["content"] + draw(st.sampled_from(["", " ", said]))
        turn: Turn = {"role": role, "content": said}
        if known.tools and role == "assistant" and draw(st.booleans()):
            call = {"type": "function", "function": {"name": "weather", "arguments": draw(ARGUMENTS)}}
            turn["tool_calls"] = [call]
        if known.thinks and role == "assistant" and draw(st.booleans()):
            turn["reasoning_content"] = draw(CONTENTS)
        turns.append(turn | (draw(marks(said)) if draw(st.integers(0, 2)) == 0 else {}))
    more = {"tools": list(known.tools)} if known.tools else {}
    if draw(st.integers(0, 3)):
        return {"messages": turns, **more}
    place = draw(st.integers(1, len(turns) - 1))
    return {"prompt": turns[:place], "completion": turns[place:], **more}


LEARN = st.one_of(
    st.sampled_from(["answers", "answers", "marked", "everything", "completions"]),
    st.lists(st.sampled_from(["system", "user", "assistant", "tool"]), min_size=1, unique=True).map(tuple),
)


@pytest.mark.parametrize("template", KNOWN)
@settings(derandomize=True, deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_mask_is_that_of_the_characters(template: str, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(list(TOKENIZERS)))
    row, learn = data.draw(rows(KNOWN[template])), data.draw(LEARN)
    check(name, template, row, learn, data.draw(st.sampled_from(ENDS)))


# --- what the oracle has found, each as small as it can be ----------------------------------------------------------


def talk(*turns: tuple[str, str] | tuple[str, str, bool]) -> dict[str, Any]:
    names = ("role", "content", "learn")
    return {"messages": [dict(zip(names, turn, strict=False)) for turn in turns]}


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "<|im_end|>"}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
TOOLS = {"tools": list(KNOWN["tools"].tools)}
FOUND: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "an empty answer that nothing ends has learned the line breaks behind it": (
        *("GPT-2", "never ends", talk(("user", "q"), ("assistant", "")), {}),
    ),
    "nor does a token that reaches over an empty answer belong to it": (
        *("tokens over any border", "never ends", talk(("user", "q"), ("assistant", ""), ("user", "q")), {}),
    ),
    "white space at the end of an answer that nothing ends was cut off": (
        *("GPT-2", "never ends", talk(("user", "q"), ("assistant", "a \t")), {}),
    ),
    "and was not learned where another turn follows": (
        *("GPT-2", "never ends", talk(("user", "q"), ("assistant", "a \t"), ("user", "q")), {}),
    ),
    "a space that the template writes before the end was learned without the end": (
        *("GPT-2", "llama2", talk(("user", "q"), ("assistant", "a!")), {"ends": "none"}),
    ),
    "the space before an answer that comes first was not learned, before others it is": (
        *("Llama 2", "llama2, bare", talk(("assistant", "!"), ("user", "q")), {}),
    ),
    "a question of white space alone, trimmed and to be learned, was refused": (
        *("GPT-2", "gemma", talk(("user", " "), ("assistant", "a")), {"learn": ("user",)}),
    ),
    "of a trimmed question that is learned, the template's space was learned too": (
        *("GPT-2", "vicuna", talk(("user", "a! "), ("assistant", "a")), {"learn": ("user",)}),
    ),
    "a call ended at a mark in its arguments": (
        *("GPT-2", "calls end otherwise", {"messages": [{"role": "user", "content": "q"}, CALLING], **TOOLS}, {}),
    ),
    "calls without a reply between them were refused": (
        "GPT-2",
        "calls end otherwise",
        {"messages": [{"role": "user", "content": "q"}, CALLING, CALLING], **TOOLS},
        {},
    ),
    "as was a call that comes first": (
        *("GPT-2", "calls end otherwise", {"messages": [CALLING, {"role": "user", "content": "q"}], **TOOLS}, {}),
    ),
}


@pytest.mark.parametrize("found", FOUND)
def test_what_the_oracle_has_found(found: str) -> None:
    name, template, row, how = FOUND[found]
    check(name, template, row, **how)


# --- the law at an edge ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("learn", [True, False])
def test_a_token_is_learned_if_any_of_its_characters_is_but_for_space_before_them(name: str, learn: bool) -> None:
    """At every place where a span may begin and end within one long word."""
    said = "the thethe ünï 😀 42"
    for start in range(len(said)):
        for end in range(start + 1, len(said) + 1):
            span = {"start": start, "end": end, "learn": learn}
            row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": said}]}
            row["messages"][1]["learn_spans"] = [span]
            check(name, "chatml", row)


@pytest.mark.parametrize("template", ["llama3", "llama2", "vicuna", "gemma"])
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_white_space_that_a_template_takes_away_does_not_move_a_span(template: str, role: str) -> None:
    said = " \n the fox 42 "
    for start in range(len(said)):
        for end in range(start + 1, len(said) + 1):
            spans = [{"start": start, "end": end}]
            turns = [{"role": "user", "content": "q"}, {"role": role, "content": said, "learn_spans": spans}]
            check("GPT-2", template, {"messages": [*turns, {"role": "assistant", "content": "a"}]}, ("user",))

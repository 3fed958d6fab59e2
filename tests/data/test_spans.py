"""Which part of a message is learned, to the character: how rows say it, and what becomes of it on the way."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import pytest
import tiny_tokenizers as tiny

from tunesmith.data.check.findings import findings
from tunesmith.data.check.report import pieces
from tunesmith.data.formats import convert
from tunesmith.data.prepare import prepare
from tunesmith.data.render import Renderer
from tunesmith.data.settings import DataSettings
from tunesmith.data.types import Conversation, Marked, Origin, Preference
from tunesmith.errors import DataError

SAID = "the fox jumps"
FOX = [{"start": 4, "end": 7}]
WORDS = ("learn", "train", "weight")
NOT_FOX = [{"start": 4, "end": 7, "learn": False}]


def row(**said: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "what?"}, {"role": "assistant", "content": SAID, **said}]}


def read(row: dict[str, Any], learn: Any = "answers") -> Any:
    return convert([(Origin("rows.jsonl", 7), row)], "auto", {}, (Conversation, Preference), learn=learn).rows[0]


def learned(row: dict[str, Any], template: str = tiny.CHATML, learn: Any = "answers", **how: Any) -> list[str]:
    tokenizer = tiny.byte_level(template)
    [made] = Renderer(tokenizer, **how).render_all([read(row, learn)]).examples
    runs = groupby(zip(made.token_ids, made.loss_weights, strict=True), key=lambda pair: pair[1] > 0)
    return [tokenizer.decode([int(token) for token, _ in run]) for is_learned, run in runs if is_learned]


@pytest.mark.parametrize(
    "said",
    [
        {"learn": NOT_FOX},
        {"learn_spans": NOT_FOX},
        {"learn_spans": NOT_FOX, "learn": True},
        {"train": [{"start": 0, "end": 4, "learn": True}, *NOT_FOX]},
        {"content": [{"text": "the "}, {"type": "text", "text": "fox", "train": False}, {"text": " jumps"}]},
        {"content": [{"text": "the ", "weight": 1}, {"text": "fox", "weight": 0}, " jumps"]},
    ],
)
def test_what_a_span_says_goes_before_the_message_and_the_rest_is_as_the_message_says(said: dict[str, Any]) -> None:
    assert learned(row(**said)) == ["the", " jumps<|im_end|>"]


def test_the_same_words_by_any_way_of_writing_are_the_same_tokens() -> None:
    theirs = [{"begin_offset": 4, "end_offset": 6, "train": True}]
    whole = [{"start": 0, "end": 4, "learn": False}, *FOX, {"start": 7, "end": 13, "learn": False}]
    assert learned(row(learn_spans=theirs)) == learned(row(learn=whole))


def test_a_turn_marked_as_not_to_be_learned_is_left_out_spans_or_not() -> None:
    assert learned({"messages": [*row(learn_spans=FOX, learn=False)["messages"], *row()["messages"]]}) == [
        f"{SAID}<|im_end|>"
    ]
    asked = row(learn=NOT_FOX)["messages"]
    assert learned({"prompt": asked, "completion": row()["messages"][1:]}) == [f"{SAID}<|im_end|>"]
    pair = read({"prompt": asked[:1] + asked[1:] + asked[:1], "chosen": asked[1:], "rejected": row()["messages"][1:]})
    assert [turn.is_learned for turn in pair.sides["chosen"].messages] == [False, False, False, True]


def test_other_roles_and_what_data_learn_says_of_the_rest() -> None:
    asked = {"messages": [{"role": "user", "content": SAID, "learn_spans": FOX}, *row()["messages"][1:]]}
    assert learned(asked)[0] == " fox"
    assert learned(asked, learn=("user",))[0] == SAID
    assert learned(row(learn_spans=FOX), learn=("user",))[1:] == learned(row(learn_spans=FOX), learn="marked")
    assert learned({"messages": [*row(learn=True)["messages"], *row()["messages"]]}, learn="marked") == [
        f"{SAID}<|im_end|>"
    ]


def test_the_end_is_learned_as_of_any_learned_turn() -> None:
    rows = row(learn_spans=NOT_FOX)
    for ends, last in (("turn", "<|im_end|>"), ("last", "<|im_end|>"), ("none", "")):
        assert learned(rows, learn_ends=ends)[-1].endswith(f"jumps{last}")
    nothing = row(learn_spans=[{"start": 0, "end": len(SAID), "learn": False}])
    assert learned(nothing) == ["<|im_end|>"]
    two = {"messages": [*rows["messages"], *nothing["messages"]]}
    assert learned(two, learn_ends="last")[-2:] == [" jumps", "<|im_end|>"]


def test_thoughts_and_calls_are_the_rest_of_a_turn_unless_offsets_are_theirs() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    ours = learned(row(learn_spans=NOT_FOX, tool_calls=[call]), tiny.WITH_TOOLS)
    theirs = [{"begin_offset": 4, "end_offset": 6, "train": True}]
    assert ours[-1] == " jumps<call>f x=1</call><|im_end|>"
    assert learned(row(learn_spans=theirs, tool_calls=[call]), tiny.WITH_TOOLS)[-1] == "<|im_end|>"


def test_words_that_are_put_around_a_content_move_its_spans() -> None:
    system = {"role": "system", "content": "be brief"}
    asked = [
        {"role": "user", "content": SAID, "learn_spans": FOX},
        {"role": "assistant", "content": "a", "learn": False},
    ]
    alone, joined = learned({"messages": asked}), [system, *asked]
    moved = learned({"messages": joined}, tiny.NO_SYSTEM, system_turn="into-user")
    assert moved == alone
    reply = [
        {"role": "tool", "content": SAID, "learn_spans": FOX},
        {"role": "assistant", "content": "a", "learn": False},
    ]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    for template in (tiny.CHATML, tiny.DROPS_SYSTEM.replace("!= 'system'", "in ('user', 'assistant')")):
        told = learned(
            {"messages": [asked[0] | {"learn": False}, *reply], "tools": tools}, template, system_turn="into-user"
        )
        assert told == alone
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    assert learned(row(learn_spans=NOT_FOX, tool_calls=[call]))[-1].startswith(" jumps\n<tool_call>")


def test_a_thought_that_is_dropped_takes_its_spans_with_it() -> None:
    said = "<think>hm</think>the fox"
    spans = [{"start": 7, "end": 9}, {"start": len(said) - 3, "end": len(said), "learn": False}]
    turn = {"role": "assistant", "content": said, "learn_spans": spans}
    asked = {"role": "user", "content": "?"}
    text = {"messages": [asked, turn, asked, {"role": "assistant", "content": "no", "learn": False}]}
    assert learned(text, tiny.DROPS_THOUGHT) == ["the", "<|im_end|>"]


def test_words_that_a_template_rewrites_cannot_be_learned_in_part() -> None:
    other = tiny.CHATML.replace("m['content']", "(m['content'] | replace('fox', 'dog'))")
    assert learned(row(), other) == ["the dog jumps<|im_end|>"]
    with pytest.raises(DataError, match=r"rows\.jsonl, row 7: .* which characters of turn 2 are written out"):
        learned(row(learn_spans=NOT_FOX), other)


WRONG: list[tuple[Any, str]] = [
    ([{"start": 4, "end": 99}], "span 1 of {} reaches beyond the content"),
    ([{"start": -1, "end": 3}], "span 1 of {} reaches beyond the content"),
    ([*FOX, {"start": 5, "end": 5}], "span 2 of {} is empty"),
    ([*FOX, {"start": 0, "end": 5}], "span 1 and span 2 of {} overlap"),
    ([{"start": 0, "end": 3}, {"start": 5, "end": 9}, {"start": 6, "end": 7}], "span 2 and span 3 of {} overlap"),
    ([{"begin_offset": 0, "end_offset": 4, "train": True}] * 2, "span 1 and span 2 of {} overlap"),
    ([{"begin_offset": 0, "end_offset": 13, "train": True}], "span 1 of {} reaches beyond the content"),
    ([{"begin_offset": 0, "end_offset": 4}], "span 1 of {} must be"),
    ([{"start": 0, "end": 4, "train": False}], "span 1 of {} must be"),
    ([{"start": 0, "end": 4.0}], "span 1 of {} must be"),
    ([{"start": 0}], "span 1 of {} must be"),
    ([{"start": 0, "end": 4, "learn": "no"}], "span 1 of {} must be"),
    ([{"start": True, "end": 4}], "span 1 of {} must be"),
    (["fox"], "span 1 of {} must be"),
    ({"start": 0, "end": 4}, "{} must be a list of spans"),
    ([*FOX, {"begin_offset": 9, "end_offset": 9, "train": True}], "{} mixes two ways to write spans"),
]


@pytest.mark.parametrize(("spans", "told"), WRONG)
def test_spans_that_cannot_be_name_the_file_the_row_and_the_message(spans: Any, told: str) -> None:
    with pytest.raises(DataError) as caught:
        read(row(learn_spans=spans))
    said = str(caught.value)
    assert said.startswith("rows.jsonl, row 7: " + told.format("'learn_spans' of message 2 of 'messages'"))


def test_a_flag_beside_spans_counts_whatever_both_are_called() -> None:
    for flag in (True, False):
        beside = [read(row(**{key: FOX, other: flag})) for key in WORDS for other in WORDS if other != key]
        assert beside == [read(row(learn_spans=FOX, learn=flag))] * 6


def test_two_flags_that_differ_are_an_error_that_names_both() -> None:
    assert read(row(learn=True, train=1)) == read(row(learn=True))
    for said in ({"learn": True, "train": False}, {"content": [{"text": SAID, "learn": True, "train": False}]}):
        with pytest.raises(DataError, match=r"(?s)message 2 of 'messages' says both.*learn: true, train: false"):
            read(row(**said))
    with pytest.raises(DataError, match="train: true, weight: 0"):
        read(row(learn_spans=FOX, train=True, weight=0))


def test_a_message_says_once_which_part_is_learned() -> None:
    for said in (
        {"learn": FOX, "learn_spans": FOX},
        {"learn_spans": FOX, "content": [{"text": SAID, "train": False}]},
    ):
        with pytest.raises(DataError, match="message 2 of 'messages' says twice which part of it is learned"):
            read(row(**said))
    with pytest.raises(DataError, match="'train' of a part of message 2 of 'messages' must be 0, 1"):
        read(row(content=[{"text": SAID, "train": "yes"}]))


@pytest.mark.parametrize("said", [{"learn": NOT_FOX}, {"learn_spans": [], "learn": False}, {"learn": []}])
def test_everything_beside_spans_that_say_no_is_refused(said: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="message 2 is marked as not to be learned"):
        read(row(**said), "everything")
    whole = read(row(learn=FOX), "everything")
    made = Renderer(tiny.byte_level(tiny.CHATML)).render(whole)
    assert made.num_learned == len(made) - 1


def test_spans_are_seen_in_what_check_colours_and_in_any_order() -> None:
    tokenizer = tiny.byte_level(tiny.CHATML)
    spans = [{"start": 8, "end": 13, "learn": False}, {"start": 0, "end": 3, "learn": False}]
    prepared = prepare(DataSettings(train="rows"), tokenizer, seed=0, rows=[row(learn_spans=spans)])
    coloured = [words for is_learned, _, words in pieces(prepared.train[0], tokenizer) if is_learned]
    assert "".join(coloured).strip() == "fox<|im_end|>"
    [_, turn] = read(row(learn_spans=spans)).messages
    assert isinstance(turn, Marked)
    assert turn.spans == ((0, 3, False), (8, 13, False))


def test_keys_of_messages_are_renamed_for_spans_too() -> None:
    keys = {"learn": "keep", "learn_spans": "keep_parts"}
    settings = DataSettings(train="rows", message_keys=keys)  # type: ignore[arg-type]
    tokenizer = tiny.byte_level(tiny.CHATML)
    named = prepare(settings, tokenizer, seed=0, rows=[row(keep=True, keep_parts=NOT_FOX)])
    ours = prepare(DataSettings(train="rows"), tokenizer, seed=0, rows=[row(learn=True, learn_spans=NOT_FOX)])
    assert named.fingerprint == ours.fingerprint


SPANS: list[Any] = [
    [{"begin_offset": 0, "end_offset": 2, "train": True}],
    [{"start": 4, "end": 13, "learn": False}],
    [{"start": 0, "end": 13, "learn": False}],
]


@pytest.mark.parametrize("spans", SPANS)
@pytest.mark.parametrize("place", [1, 3])
def test_an_answer_whose_last_words_are_not_learned_is_not_called_empty(spans: Any, place: int) -> None:
    turns = [
        {"role": role, "content": text}
        for role, text in zip(("user", "assistant") * 2, ("a", "the fox jumps", "b", "the dog jumps"), strict=True)
    ]
    turns[place]["learn"] = spans

    def odd(turns: Any, **settings: Any) -> set[str]:
        data = DataSettings(train="rows", **settings)
        made = prepare(data, tiny.byte_level(tiny.CHATML), seed=0, rows=[{"messages": turns}])
        return {finding.kind for finding in findings(made)}

    assert odd(turns) == set()
    if place == 3:
        turns[place] = {"role": "assistant", "content": "", "learn": True}
        assert odd(turns) == {"empty_answer"}

"""Rows that hold answers under judgement: every shape people have, what is refused, and what befalls pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_tokenizers import CHATML, byte_level

from tunesmith.data.formats import LEARNABLE, convert
from tunesmith.data.prepare import fingerprint, prepare
from tunesmith.data.reading.files import read_file
from tunesmith.data.settings import DataSettings, TemplateFormat
from tunesmith.data.types import Answer, Conversation, Judged, Message, Origin, Preference
from tunesmith.errors import DataError

TOKENIZER = byte_level(CHATML)
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "preference"
USER, GOOD, BAD = Message("user", "q"), Message("assistant", "yes"), Message("assistant", "no")
PAIRS = (Preference,)


def one(row, takes=PAIRS, form="auto"):
    return convert([(Origin("file.jsonl", 1), row)], form, {}, takes).rows[0]


def said(role, content, key="role", value="content"):
    return {key: role, value: content}


SHAPES = {
    "text": {"prompt": "q", "chosen": "yes", "rejected": "no"},
    "messages": {
        "prompt": [said("user", "q")],
        "chosen": [said("assistant", "yes")],
        "rejected": [said("assistant", "no")],
    },
    "implicit": {
        "chosen": [said("user", "q"), said("assistant", "yes")],
        "rejected": [said("user", "q"), said("assistant", "no")],
    },
    "the prompt as text, the answers as whole conversations": {
        "prompt": "q",
        "chosen": [said("user", "q"), said("assistant", "yes")],
        "rejected": [said("user", "q"), said("assistant", "no")],
    },
    "sharegpt": {
        "conversations": [said("human", "q", "from", "value")],
        "chosen": said("gpt", "yes", "from", "value"),
        "rejected": said("gpt", "no", "from", "value"),
    },
    "alpaca": {"instruction": "q", "chosen": "yes", "rejected": "no"},
    "question": {"question": "q", "chosen": "yes", "rejected": "no"},
    "messages are the whole chosen conversation": {
        "messages": [said("user", "q"), said("assistant", "yes")],
        "chosen": [said("user", "q"), said("assistant", "yes")],
        "rejected": [said("user", "q"), said("assistant", "no")],
    },
    "one text for the prompt": {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " yes", "rejected": " no"},
    "one text each": {"chosen": "\n\nHuman: q\n\nAssistant: yes", "rejected": "\n\nHuman: q\n\nAssistant: no"},
    "the prompt beside the whole conversation": {
        "prompt": "q",
        "messages": [said("user", "q"), said("assistant", "yes")],
        "chosen": [said("user", "q"), said("assistant", "yes")],
        "rejected": [said("user", "q"), said("assistant", "no")],
        "score_chosen": 8.5,
    },
    "two texts": {"chosen": "q yes", "rejected": "q no"},
    "argilla": {"instruction": "q", "chosen_response": "yes", "rejected_response": "no"},
    "openai": {
        "input": {"messages": [said("user", "q")], "tools": []},
        "preferred_output": [said("assistant", "yes")],
        "non_preferred_output": [said("assistant", "no")],
    },
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_means_the_same_pair(shape):
    row = one(SHAPES[shape])
    assert row.prompt == (USER,)
    assert [turn.content.strip() for turn in (*row.chosen, *row.rejected)] == ["yes", "no"]
    sides = row.sides
    assert [turn.is_learned for turn in sides["chosen"].messages] == [False, True]
    assert sides["rejected"].messages[-1].role == "assistant"


def test_a_template_over_any_columns():
    form = TemplateFormat(prompt="{{ a }}", chosen="{{ b }}", rejected="{{ c }}", system="be {{ d }}")
    row = one({"a": "q", "b": "yes", "c": "no", "d": "brief"}, form=form)
    assert row.prompt == (Message("system", "be brief"), USER)
    assert (row.chosen, row.rejected) == ((GOOD,), (BAD,))


def test_earlier_answers_of_the_prompt_are_not_learned():
    turns = [said("user", "a"), said("assistant", "b"), said("user", "q")]
    row = one({"prompt": turns, "chosen": "yes", "rejected": "no"})
    assert [turn.is_learned for turn in row.sides["chosen"].messages] == [False, False, False, True]


def test_a_system_turn_before_both_and_a_prompt_that_is_the_last_question():
    whole = [said("system", "s"), said("user", "a"), said("assistant", "b"), said("user", "q")]
    chosen, rejected = [*whole, said("assistant", "yes")], [*whole, said("assistant", "no")]
    row = one({"prompt": "q", "chosen": chosen, "rejected": rejected})
    assert [turn.role for turn in row.prompt] == ["system", "user", "assistant", "user"]
    assert (row.chosen, row.rejected) == ((GOOD,), (BAD,))


def test_columns_that_are_passed_over_are_told():
    rows = [(Origin("file.jsonl", 1), SHAPES["text"] | {"input": "z", "question": "w", "label": 3})]
    assert convert(rows, "auto", {}, PAIRS).notes == ("columns not used: label, input, question",)


@pytest.mark.parametrize("left", [{"chosen": None}, {"chosen": "x", "rejected": None, "rejected_response": "no"}])
def test_two_answers_that_are_there_go_before_one_beside_a_null(left):
    row = one({"question": "q", "response": "yes", "rejected": "no", **left})
    assert (row.prompt, row.chosen, row.rejected) == ((USER,), (GOOD,), (BAD,))


def test_of_pairs_that_all_lack_an_answer_the_null_of_the_first_is_named():
    with pytest.raises(DataError, match="'chosen' is null"):
        one({"prompt": "q", "chosen": None, "rejected": "no", "response": None})


def test_answers_that_go_on_over_several_turns():
    chosen = [said("user", "q"), said("assistant", "a"), said("user", "more"), said("assistant", "yes")]
    rejected = [said("user", "q"), said("assistant", "a"), said("user", "more"), said("assistant", "no")]
    row = one({"chosen": chosen, "rejected": rejected})
    assert len(row.prompt) == 3
    assert (row.chosen, row.rejected) == ((GOOD,), (BAD,))


def test_a_system_turn_in_a_column():
    row = one(SHAPES["text"] | {"system": "be brief"})
    assert row.prompt[0] == Message("system", "be brief")


TEXTS = [
    ("The sky is blue.", "The sky is black.", "The sky is"),
    ("Q: why?\n\nA: so", "Q: why?\n\nA: no idea", "Q: why?\n\nA:"),
    ("Q: why?\n\nso", "Q: why?\n\nno", "Q: why?"),
    ("I don't", "I do", "I"),
    ("say: yes, yes", "say: yes, no", "say: yes,"),
    ("天空是蓝色", "天空是绿色", "天空是"),
]


@pytest.mark.parametrize(("chosen", "rejected", "asked"), TEXTS)
def test_two_texts_part_between_words_and_are_what_prompt_and_answer_make_together(chosen, rejected, asked):
    row = one({"chosen": chosen, "rejected": rejected})
    assert row.prompt == (Message("user", asked),)
    assert [asked + answer[0].content for answer in (row.chosen, row.rejected)] == [chosen, rejected]


@pytest.mark.parametrize("column", ["prompt", "instruction", "question", "input"])
def test_the_prompt_of_one_answer_has_the_names_that_it_has_of_pairs(column):
    row = {column: "q", "completion": "yes", "label": True}
    assert one(row, (Judged,)).prompt == (USER,)
    made = convert([(Origin("file.jsonl", 1), row | {"input": "more"})], "auto", {}, (Judged,))
    if column != "input":
        assert (made.notes == ()) is (column == "instruction")
        assert made.rows[0].prompt[0].content == ("q\n\nmore" if column == "instruction" else "q")


def test_what_messages_say_of_one_answer_goes_before_other_columns_and_that_is_told():
    row = {"messages": [said("user", "q"), said("assistant", "yes")], "prompt": "x", "completion": "y", "label": True}
    made = convert([(Origin("file.jsonl", 1), row)], "unpaired", {}, (Judged,))
    assert (made.rows[0].completion, made.notes) == ((GOOD,), ("columns not used: completion, prompt",))


def test_unpaired_answers():
    row = one({"prompt": "q", "completion": "yes", "label": True}, (Judged,))
    assert (row.prompt, row.completion, row.wanted) == ((USER,), (GOOD,), True)
    assert list(one({"prompt": "q", "completion": "no", "label": 0}, (Judged,)).sides) == ["rejected"]
    turns = [said("user", "a"), said("assistant", "b"), said("user", "q"), said("assistant", "yes")]
    row = one({"messages": turns, "label": True}, (Judged, Preference))
    assert len(row.prompt) == 3
    assert row.completion == (GOOD,)
    with pytest.raises(DataError, match="no turn of the assistant"):
        one({"messages": [said("user", "q")], "label": True}, (Judged,))


def test_a_system_turn_in_a_column_of_unpaired_answers():
    turns = [said("user", "q"), said("assistant", "yes")]
    for row in ({"prompt": "q", "completion": "yes"}, {"messages": turns}):
        row = {**row, "label": True, "system": "be brief"}
        assert one(row, (Judged,)).prompt == (Message("system", "be brief"), USER)
        assert convert([(Origin("file.jsonl", 1), row)], "unpaired", {}, (Judged,)).notes == ()
    with pytest.raises(DataError, match="two system turns"):
        one({"messages": [said("system", "s"), *turns], "label": True, "system": "other"}, (Judged,))


WRONG = [
    ({"prompt": "q", "chosen": "yes", "rejected": None}, "'rejected' is null"),
    ({"chosen": "yes", "rejected": "no"}, "no prompt in common"),
    ({"chosen": "I think", "rejected": "It was"}, "begin otherwise"),
    ({"chosen": "what now", "rejected": [said("user", "what now"), said("assistant", "x")]}, "no prompt in common"),
    ({"chosen": [said("user", "a")], "rejected": [said("user", "b")]}, "no prompt in common"),
    ({"prompt": "q", "chosen": [said("user", "x")], "rejected": "no"}, "no turn of the assistant"),
    ({"prompt": "q", "chosen": 3, "rejected": "no"}, "text, a message or a list"),
    ({"prompt": [said("user", "q"), said("assistant", "x")], "chosen": "a", "rejected": "b"}, "ends in an answer"),
    (
        {
            "prompt": "else",
            "chosen": [said("user", "q"), said("assistant", "a")],
            "rejected": [said("user", "q"), said("assistant", "b")],
        },
        "is not what chosen and rejected begin with",
    ),
    ({"prompt": [said("system", "x"), said("user", "q")], "system": "y", "chosen": "a", "rejected": "b"}, "two system"),
]


@pytest.mark.parametrize(("row", "says"), WRONG)
def test_what_is_no_pair_is_refused_with_its_row(row, says):
    with pytest.raises(DataError, match=says) as caught:
        one(row, form="preference")
    assert "file.jsonl, row 1" in str(caught.value)


def test_rows_of_another_objective_are_refused_by_what_they_are():
    with pytest.raises(DataError, match="these rows are pairs") as caught:
        one(SHAPES["text"], LEARNABLE)
    assert "objective.kind=preference" in str(caught.value)
    with pytest.raises(DataError, match="these rows are conversations"):
        one({"prompt": "q", "completion": "yes"})
    with pytest.raises(DataError, match="a label that says") as caught:
        one({"prompt": "q", "completion": "yes", "label": True})
    assert "objective.loss=kto" in str(caught.value)
    assert isinstance(one({"prompt": "q", "completion": "yes", "label": True}, LEARNABLE), Conversation)


def data(**keys):
    return DataSettings(**{"train": "rows", **keys})


def pair(chosen="yes", rejected="no", prompt="what"):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def prepared(rows, takes=PAIRS, **keys):
    return prepare(data(**keys), TOKENIZER, seed=0, rows=rows, takes=takes)


def test_both_sides_stand_side_by_side_and_the_prompt_is_masked():
    made = prepared([pair(), pair("yes indeed", "not at all")] * 3, held_out=2)
    assert [row.side for row in made.train] == ["chosen", "rejected"] * 4
    assert all(isinstance(row, Answer) for row in made.train)
    assert [a.origin == b.origin for a, b in zip(made.train[::2], made.train[1::2], strict=True)] == [True] * 4
    assert (made.counts.read, made.counts.kept, made.held_out_counts.kept) == (4, 4, 2)
    first = made.train[0]
    learned = TOKENIZER.decode(first.token_ids[first.loss_weights > 0])
    assert learned.startswith("yes")
    assert "<|im_end|>" in learned
    assert all(
        isinstance(row, Conversation) and row.messages[-1].content.startswith("yes") for row in made.held_out_rows
    )


def test_what_befalls_one_side_befalls_the_pair_and_is_counted_once():
    long = "very " * 60
    made = prepared([pair(), pair(long, "no"), pair("yes", long), pair(long, long + "x")], max_length=120)
    assert made.counts.kept == 1
    assert made.counts["overlong"] == 3
    assert len(made.train) == 2


def test_pairs_that_are_no_choice_are_left_out():
    made = prepared([pair(), pair("same", "same"), pair("", "no"), pair("yes", " ")])
    assert (made.counts["identical"], made.counts["empty"], made.counts.kept) == (1, 2, 1)
    start = "the same beginning " * 40
    cut = prepared([pair(), pair(start + "a", start + "b")], max_length=90, overlong="truncate")
    assert cut.counts["cut_alike"] == 1
    with pytest.raises(DataError, match="no row is left"):
        prepared([pair("same", "same")])


def test_the_fingerprint_knows_the_side():
    ids, weights = np.arange(4), np.ones(4, dtype=np.float32)
    good, bad = (Answer(ids, weights, Origin("rows", 1), side=side) for side in ("chosen", "rejected"))
    assert fingerprint([good]) != fingerprint([bad])


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not here")
@pytest.mark.parametrize(("name", "takes"), [("dpo_en_sharegpt.json", PAIRS), ("kto_en.json", (Judged,))])
def test_real_rows(name, takes):
    rows = convert(list(read_file(SHARED / name, None)), "auto", {}, takes).rows
    assert len(rows) > 100
    assert all(isinstance(row, takes) for row in rows)

"""Rows whose messages call their keys and roles otherwise (`data.message_keys`, `data.roles`)."""

from __future__ import annotations

import json

import pytest
import tiny_tokenizers as tiny

from tunesmith.answer_file import read_prompts
from tunesmith.classifier import texts_of
from tunesmith.data.check.report import summary
from tunesmith.data.formats import FORMATS, convert
from tunesmith.data.prepare import prepare
from tunesmith.data.settings import DataSettings
from tunesmith.data.types import Conversation, Origin
from tunesmith.errors import DataError

TOKENIZER = tiny.byte_level(tiny.WITH_TOOLS)
KEYS = {
    "role": "who",
    "content": "said",
    "learn": "train_me",
    "reasoning": "pondered",
    "tool_calls": "wants",
    "name": "called",
    "tool_call_id": "for_call",
}
ROLES = {"narrator": "system", "asker": "user", "helper": "assistant", "machine": "tool"}
CALL = {"function": {"name": "weather", "arguments": {"city": "Bonn"}}, "id": "abc"}
TURNS = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "rain?"},
    {"role": "assistant", "tool_calls": [CALL], "learn": False},
    {"role": "tool", "content": "yes", "name": "weather", "tool_call_id": "abc"},
    {"role": "assistant", "content": "it rains", "reasoning": "so it says"},
]
OURS = {ours: theirs for theirs, ours in ROLES.items()}


def theirs(turns: list) -> list:
    return [{KEYS[key]: OURS[value] if key == "role" else value for key, value in turn.items()} for turn in turns]


def data(**keys) -> DataSettings:
    return DataSettings(train="rows", message_keys=KEYS, roles=ROLES, **keys)


def read(row: dict, form: str, takes: tuple, **names):
    return convert([(Origin("rows", 1), row)], form, {}, takes, **names).rows


ASKED, SAID, OTHER = TURNS[:2], TURNS[4:], [{"role": "assistant", "content": "no"}]
ROWS = {
    "messages": lambda w: {"messages": w(TURNS)},
    "messages, conversations": lambda w: {"conversations": w(TURNS)},
    "messages, JSON": lambda w: {"messages": json.dumps(w(TURNS))},
    "prompt-completion": lambda w: {"prompt": w(ASKED), "completion": w(SAID)},
    "preference": lambda w: {"prompt": w(ASKED), "chosen": w(SAID), "rejected": w(OTHER)},
    "preference, one message": lambda w: {"prompt": w(ASKED), "chosen": w(SAID)[0], "rejected": w(OTHER)[0]},
    "openai-preference": lambda w: {
        "input": {"messages": w(ASKED)}, "preferred_output": w(SAID), "non_preferred_output": w(OTHER)
    },
    "unpaired": lambda w: {"prompt": w(ASKED), "completion": w(SAID), "label": True},
    "unpaired, messages": lambda w: {"messages": w(TURNS), "label": False},
    "labelled": lambda w: {"messages": w(ASKED), "label": "spam"},
    "prompt": lambda w: {"prompt": w(ASKED)},
    "openpipe": lambda w: {"messages": w(TURNS), "rejected_message": w(OTHER)[0]},
    "nemo": lambda w: {
        "context": w(ASKED), "completions": [{"rank": 1, "completion": w(OTHER)}, {"rank": 0, "completion": w(SAID)}]
    },
    "nectar": lambda w: {
        "prompt": w(ASKED), "answers": [{"rank": 2, "answer": w(OTHER)}, {"rank": 1, "answer": w(SAID)}]
    },
    "verl": lambda w: {"data_source": "x", "prompt": w(ASKED), "reward_model": {"ground_truth": "y"}},
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_renamed_messages_mean_the_same_in_every_format(name):
    form = name.split(",")[0]
    takes = (FORMATS[form].makes,)
    ours = read(ROWS[name](lambda turns: turns), form, takes)
    assert read(ROWS[name](theirs), form, takes, message_keys=KEYS, roles=ROLES) == ours
    assert read(ROWS[name](lambda turns: turns), form, takes, message_keys=KEYS, roles=ROLES) == ours
    with pytest.raises(DataError, match="role"):
        read(ROWS[name](theirs), form, takes)


def test_renamed_rows_have_the_fingerprint_of_rows_in_our_words_and_nothing_is_passed_over():
    rows = [{"messages": TURNS}, {"messages": TURNS[1:]}] * 4
    ours = prepare(DataSettings(train="rows", held_out=2), TOKENIZER, seed=0, rows=rows)
    named = [{"messages": theirs(row["messages"])} for row in rows]
    made = prepare(data(held_out=2), TOKENIZER, seed=0, rows=named)
    assert made.fingerprint == ours.fingerprint
    assert summary(made) == summary(ours)
    assert not any("not used" in line for line in summary(made))


def test_theirs_wins_over_the_usual_names_and_null_is_nothing():
    turns = [
        {"role": "system", "from": "human", "content": "not this", "value": "rain?"},
        {"role": "gpt", "from": None, "content": "it rains", "value": None},
        {"role": "user", "from": "narrator", "content": "x", "value": "really"},
    ]
    names = {"message_keys": {"role": "from", "content": "value"}, "roles": {"narrator": "assistant", "human": "tool"}}
    [row] = read({"messages": turns}, "messages", (Conversation,), **names)
    said = [(turn.role, turn.content) for turn in row.messages]
    assert said == [("tool", "rain?"), ("assistant", "it rains"), ("assistant", "really")]


def test_a_call_that_is_a_turn_of_its_own_stays_one_where_its_role_is_named_again():
    turns = [
        {"from": "human", "value": "rain?"},
        {"from": "function_call", "value": json.dumps(CALL["function"])},
        {"from": "observation", "value": "yes"},
        {"from": "gpt", "value": "it rains"},
    ]
    roles = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}
    assert read({"messages": turns}, "messages", (Conversation,), roles=roles) == read(
        {"messages": turns}, "messages", (Conversation,)
    )
    [row] = read({"messages": turns}, "messages", (Conversation,), roles={"function_call": "user"})
    assert [turn.role for turn in row.messages] == ["user", "user", "tool", "assistant"]
    assert not any(turn.tool_calls for turn in row.messages)


def test_a_key_that_no_message_has_is_refused_and_one_that_some_have_is_not():
    rows = [{"messages": theirs(TURNS[1:2] + TURNS[4:])} for _ in range(9)]
    with pytest.raises(DataError) as caught:
        prepare(data(), TOKENIZER, seed=0, rows=rows)
    said = str(caught.value)
    assert "data.message_keys names train_me, wants, called, for_call, which no message has" in said
    assert "found: keys pondered, said, who" in said
    assert "{ours: theirs}" in said
    # Held-out rows may lack what a row of training has, and the other way round.
    rows[3]["messages"] = theirs(TURNS)
    for seed in range(6):
        made = prepare(data(held_out=3), TOKENIZER, seed=seed, rows=rows)
        assert (made.counts.kept, made.held_out_counts.kept) == (6, 3)
    with pytest.raises(DataError, match=r"names who, .*\n  found: no message"):
        prepare(data(), TOKENIZER, seed=0, rows=[{"text": "plain"}])


def test_a_role_nobody_knows_is_told_with_all_that_are_known():
    with pytest.raises(DataError) as caught:
        read(
            {"messages": [{"role": "bard", "content": "x"}]}, "messages", (Conversation,), roles={"narrator": "system"}
        )
    assert "bard; known: system," in str(caught.value)
    assert ", narrator" in str(caught.value)
    assert "data.roles: {theirs: ours}" in str(caught.value)


def test_message_keys_of_other_names_are_still_told():
    rows = [{"messages": [turn | {"mood": "glad"} for turn in theirs(TURNS)]}]
    assert any("message keys not used: mood" in line for line in summary(prepare(data(), TOKENIZER, seed=0, rows=rows)))


def test_files_that_are_asked_of_a_run_are_read_in_its_words(tmp_path):
    path = tmp_path / "asked.jsonl"
    path.write_text(json.dumps({"messages": theirs(TURNS)}) + "\n" + json.dumps({"prompt": theirs(ASKED)}) + "\n")
    first, second = read_prompts(path, None, data())
    assert [turn.role for turn in first.messages] == ["system", "user", "assistant", "tool"]
    assert [turn.content for turn in second.messages] == ["be brief", "rain?"]
    path.write_text(json.dumps({"messages": theirs(ASKED)}) + "\n")
    [text] = texts_of(path, data())
    assert [turn.content for turn in text.messages] == ["be brief", "rain?"]


def test_every_format_with_messages_is_looked_at():
    assert {name.split(",")[0] for name in ROWS} == set(FORMATS) - {
        "text",
        "alpaca",
        "segments",
        "tokens",
        "input-output",
        "question-answer",
        "multiple-choice",
        "unanswerable",
    }

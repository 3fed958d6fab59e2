"""Rows as other tools write them are recognised by their columns, and mean what they mean there."""

from __future__ import annotations

from typing import Any

import pytest

from tunesmith.data.formats import FORMATS, LEARNABLE, convert, recognise
from tunesmith.data.types import Conversation, Message, Origin, Preference, Prompt, Row
from tunesmith.errors import DataError

USER, YES, NO = Message("user", "Hi"), Message("assistant", "yes"), Message("assistant", "no")
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "yes"}]
REJECTED = {"role": "assistant", "content": "no"}
PAIR = (Preference,)

ROWS: dict[str, tuple[dict[str, Any], tuple[type[Row], ...]]] = {
    "input-output": ({"input": "Hi", "output": "yes"}, LEARNABLE),
    "openpipe": ({"messages": TURNS, "rejected_message": REJECTED, "split": "TRAIN"}, PAIR),
    "nemo": (
        {
            "context": TURNS[:1],
            "completions": [{"rank": 1, "completion": [REJECTED]}, {"rank": 0, "completion": TURNS[1:]}],
        },
        PAIR,
    ),
    "verl": (
        {
            "data_source": "gsm8k",
            "prompt": TURNS[:1],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": "72"},
            "extra_info": {"index": 1},
        },
        (Prompt,),
    ),
}


def read(row: dict[str, Any], takes: tuple[type[Row], ...], name: str = "auto") -> Any:
    return convert([(Origin("rows", 1), row)], name, {}, takes).rows[0]


@pytest.mark.parametrize("name", ROWS)
def test_the_columns_tell(name: str) -> None:
    row, takes = ROWS[name]
    assert recognise([(Origin("rows", 1), row)], takes) == name


def test_what_they_mean() -> None:
    asked = read(*ROWS["input-output"])
    assert isinstance(asked, Conversation)
    assert asked.messages == (Message("user", "Hi", learn=False), YES)
    for name in ("openpipe", "nemo"):
        pair = read(*ROWS[name])
        assert (pair.prompt, pair.chosen, pair.rejected) == ((USER,), (YES,), (NO,))
    prompt = read(*ROWS["verl"])
    assert prompt.messages == (USER,)
    assert prompt.columns["answer"] == "72"
    assert prompt.columns["reward_model"]["style"] == "rule", "a reward written for verl finds what it knows"


def test_alpaca_with_an_input_is_alpaca() -> None:
    row = {"instruction": "Add.", "input": "1 2", "output": "3"}
    assert recognise([(Origin("rows", 1), row)]) == "alpaca"


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("openpipe", {"messages": TURNS[:1]}, "must end in the chosen answer"),
        ("openpipe", {"split": "TEST"}, r"rows, row 1: the row's column 'split' keeps it from training"),
        ("nemo", {"completions": [{"rank": 0, "completion": TURNS[1:]}]}, "must hold two"),
        ("nemo", {"completions": [{"rank": 0, "completion": TURNS[1:]}] * 2}, "the same rank"),
        ("verl", {"reward_model": {"style": "model"}}, "ground_truth"),
    ],
)
def test_what_is_wrong_is_named(name: str, change: dict[str, Any], said: str) -> None:
    row, takes = ROWS[name]
    with pytest.raises(DataError, match=said):
        read({**row, **change}, takes, name)


@pytest.mark.parametrize("split", [None, "", "TRAIN"])
def test_rows_that_no_split_keeps_from_training_are_read(split: str | None) -> None:
    row, takes = ROWS["openpipe"]
    assert read({**row, "split": split}, takes, "openpipe").chosen == (YES,)


@pytest.mark.parametrize("name", ["messages", "labelled", "prompt"])
def test_a_column_that_is_null_is_not_called_missing(name: str) -> None:
    kind = FORMATS[name].makes
    for row in ({"messages": None, "label": "x"}, {"conversations": None, "label": "x"}):
        with pytest.raises(DataError, match="null"):
            read(row, (kind,), name)

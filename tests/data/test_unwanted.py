"""Answers that their own row calls bad, or keeps for testing, are never learned as if they were good."""

from __future__ import annotations

from typing import Any

import pytest
from every_kind import TOKENIZER

from tunesmith.data.formats import LEARNABLE, convert
from tunesmith.data.prepare import prepare
from tunesmith.data.settings import DataSettings, TemplateFormat
from tunesmith.data.types import Conversation, Document, Judged, Origin, Preference
from tunesmith.errors import DataError

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SHAPES: dict[str, dict[str, Any]] = {
    "prompt-completion": {"prompt": "q", "completion": "a"},
    "messages": {"messages": TURNS},
    "alpaca": {"instruction": "q", "output": "a"},
}
BAD, GOOD = [False, 0, 0.0, "false", "False", "0", " FALSE "], [True, 1, 1.0, "true", "True", "1"]


def read(*rows: dict[str, Any], form: Any = "auto", takes: Any = LEARNABLE, **columns: Any) -> Any:
    return convert([(Origin("rows", i), row) for i, row in enumerate(rows, 1)], form, columns, takes)


@pytest.mark.parametrize("column", ["label", "kto_tag"])
@pytest.mark.parametrize("name", SHAPES)
def test_bad_answers_are_no_conversations_to_learn(name: str, column: str) -> None:
    good = SHAPES[name] | {column: True}
    for form in ("auto", name):
        with pytest.raises(DataError, match="2 rows") as caught:
            read(good, SHAPES[name] | {column: False}, good, SHAPES[name] | {column: 0}, form=form)
        for part in (f"rows, row 2: the column '{column}'", "row 4", "objective.loss=kto", f"{{{column}: null}}"):
            assert part in str(caught.value)
        assert len(read(good, good, form=form).rows) == 2


@pytest.mark.parametrize("value", BAD)
def test_a_label_may_be_written_in_any_way_that_means_no(value: Any) -> None:
    with pytest.raises(DataError, match="not wanted"):
        read(SHAPES["messages"] | {"label": value})
    assert not read(SHAPES["prompt-completion"] | {"label": value}, takes=(Judged,)).rows[0].wanted


@pytest.mark.parametrize("value", GOOD)
def test_a_label_may_be_written_in_any_way_that_means_yes(value: Any) -> None:
    assert read(SHAPES["prompt-completion"] | {"label": value}, takes=(Judged,)).rows[0].wanted


def test_a_label_that_says_neither_is_refused_where_answers_are_judged() -> None:
    with pytest.raises(DataError, match=r"(?s)row 1.*wanted.*found: maybe.*true or false"):
        read(SHAPES["prompt-completion"] | {"label": "maybe"}, takes=(Judged,))


def test_a_label_that_is_a_class_or_is_not_read_keeps_nothing_from_being_learned() -> None:
    for row in (SHAPES["messages"] | {"label": "spam"}, SHAPES["messages"] | {"label": 3}):
        assert isinstance(read(row).rows[0], Conversation)
    unread = read(SHAPES["messages"] | {"label": False}, label=None)
    assert (len(unread.rows), unread.notes) == (1, ("columns not used: label",))
    assert isinstance(read({"text": "a", "label": 0}, form="text").rows[0], Document)
    form = TemplateFormat(prompt="{{ text }}", answer="{{ ['ham', 'spam'][label] }}")
    assert len(read({"text": "a", "label": 0}, form=form).rows) == 1


def test_rows_kept_for_testing_are_not_learned_whatever_the_objective() -> None:
    row = {"messages": TURNS, "split": "TEST"}
    with pytest.raises(DataError, match="rows, row 2") as caught:
        read(row | {"split": "TRAIN"}, row)
    assert "data.held_out" in str(caught.value)
    pair = row | {"rejected_message": {"role": "assistant", "content": "b"}}
    for takes in (LEARNABLE, (Preference,)):
        with pytest.raises(DataError, match="keeps it from training"):
            read(pair, takes=takes)
        assert len(read(pair, takes=takes, split=None).rows) == 1
    for other in ("train_sft", "test_prefs", "x"):
        assert len(read(row | {"split": other}).rows) == 1


def test_bad_answers_are_refused_on_the_whole_way_too() -> None:
    rows = [SHAPES["prompt-completion"] | {"label": bool(i % 2)} for i in range(4)]
    with pytest.raises(DataError, match="2 rows cannot be read"):
        prepare(DataSettings(train="rows"), TOKENIZER, seed=0, rows=rows)

"""Labels as rows have them: text, numbers, lists, and what tables make of these."""

from __future__ import annotations

import pytest

from tunesmith.data.formats import convert, recognise
from tunesmith.data.types import Conversation, Document, Judged, Labelled, Origin
from tunesmith.errors import DataError


def labels_of(*rows):
    raw = [(Origin("rows", i + 1), row) for i, row in enumerate(rows)]
    return [row.labels for row in convert(raw, "auto", {}, (Labelled,)).rows]


@pytest.mark.parametrize(
    ("row", "labels"),
    [
        ({"label": "spam"}, ("spam",)),
        ({"label": " spam "}, ("spam",)),
        ({"label": 1}, ("1",)),
        ({"label": 1.0}, ("1",)),
        ({"label": "1.0"}, ("1",)),
        ({"label": 0}, ("0",)),
        ({"label": True}, ("true",)),
        ({"label": "False"}, ("false",)),
        ({"label": 2.5}, ("2.5",)),
        ({"labels": ["a", "b", "a"]}, ("a", "b")),
        ({"labels": []}, ()),
        ({"labels": "a, b"}, ("a", "b")),
        ({"labels": "a;b"}, ("a", "b")),
        ({"labels": '["a", "b"]'}, ("a", "b")),
        ({"labels": None}, ()),
        ({"labels": ""}, ()),
    ],
)
def test_a_label_is_its_name(row, labels):
    first = {"text": "x", "labels": ["z"]} if "labels" in row else {"text": "x", "label": "z"}
    assert labels_of(first, {"text": "x", **row})[1] == labels


def test_rows_are_texts_or_turns_and_a_kto_file_stays_one():
    raw = [(Origin("rows", 1), {"messages": [{"role": "user", "content": "hi"}], "label": "greeting"})]
    row = convert(raw, "auto", {}, (Labelled,)).rows[0]
    assert isinstance(row.text, Conversation)
    assert isinstance(
        convert([(Origin("r", 1), {"text": "a", "label": 1})], "auto", {}, (Labelled,)).rows[0].text, Document
    )
    judged = [(Origin("rows", 1), {"prompt": "q", "completion": "a", "label": True})]
    assert recognise(judged, (Judged,)) == "unpaired"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "x", "label": None}, "no label"),
        ({"text": "x", "label": " "}, "must hold text"),
        ({"text": "x", "label": {"a": 1}}, "must hold text"),
        ({"text": "x", "label": "a", "labels": ["b"]}, "both label and labels"),
        ({"text": "x", "labels": "[a"}, "begins like a list"),
    ],
)
def test_broken_labels_are_named(row, said):
    good = {"text": "x", "label": "a"}
    raw = [(Origin("rows", 1), good), (Origin("rows", 2), good), (Origin("rows", 3), row)]
    with pytest.raises(DataError, match=f"(?s)rows, row 3.*{said}|{said}.*rows, row 3"):
        convert(raw, "labelled", {}, (Labelled,))

"""Rows whose mask is given: pieces of text, and token ids with labels."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import CHATML, byte_level, word_mark

from tunesmith.data.prepare import prepare
from tunesmith.data.settings import DataSettings
from tunesmith.errors import DataError

TOKENIZERS = {"byte_level": byte_level(CHATML), "adds_bos": byte_level(CHATML, adds_bos=True), "word_mark": word_mark()}


def examples(rows: list[dict[str, Any]], tokenizer: Any, **settings: Any) -> list[tuple[list[int], list[float]]]:
    made = prepare(DataSettings(train="rows", **settings), tokenizer, seed=0, rows=rows)
    return [(example.token_ids.tolist(), example.loss_weights.tolist()) for example in made.train]


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_each_piece_has_its_own_tokens_and_nothing_is_added(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    words = st.sampled_from(["it is", " what it is", "<s>", "</s>", "\n", "the quick brown fox", "  ", "naïve"])
    segments = data.draw(st.lists(st.tuples(st.booleans(), words), min_size=1, max_size=6))
    expected, weights = [], []
    for learned, text in segments:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        expected += ids
        weights += [float(learned)] * len(ids)
    row = {"segments": [{"label": learned, "text": text} for learned, text in segments]}
    if not any(weights[1:]):
        return
    weights[0] = 0.0
    assert examples([row], tokenizer) == [(expected, weights)]


@pytest.mark.parametrize("form", ["auto", "tokens"])
def test_token_ids_are_taken_as_they_are(form: str) -> None:
    row = {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, 7, -100, 9], "attention_mask": [1, 1, 1, 1, 1]}
    assert examples([row], TOKENIZERS["byte_level"], format=form) == [([5, 6, 7, 8, 9], [0, 0, 1, 0, 1])]
    padded = {"input_ids": [5, 6, 7, 0, 0], "labels": [5, 6, 7, -100, -100], "attention_mask": [1, 1, 1, 0, 0]}
    assert examples([padded], TOKENIZERS["byte_level"], format=form) == [([5, 6, 7], [0, 1, 1])]
    assert examples([{"input_ids": [5, 6, 7]}], TOKENIZERS["byte_level"]) == [([5, 6, 7], [0, 1, 1])]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"input_ids": [5, 6], "labels": [6, -100]}, "neither its token nor -100"),
        ({"input_ids": [5, 6], "labels": [5]}, "differ in length"),
        ({"input_ids": [5, 99999], "labels": [5, 99999]}, "none of the tokenizer's"),
        ({"input_ids": [5, 6.5]}, "whole numbers"),
        ({"segments": [{"text": "no label"}]}, "segment 1 must be"),
        ({"segments": "not JSON"}, "not JSON"),
    ],
)
def test_what_is_wrong_is_named_with_its_row(row: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        examples([row], TOKENIZERS["byte_level"])
    assert "row 1" in str(caught.value)

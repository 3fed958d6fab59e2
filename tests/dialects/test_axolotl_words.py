"""Words that an Axolotl file gives itself: columns of any name, and texts that stand as they are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_axolotl_types import prepared, told
from their_files import AXOLOTL as BASE
from their_files import file, notes_of, refusal

from tunesmith.dialects.read import load_any


@pytest.mark.parametrize("name", ["Question Text", "question-text", "2nd", "is", "none"])
def test_a_column_of_any_name(name: str, tmp_path: Path) -> None:
    type_ = {"field_instruction": name, "field_output": f"{name} too", "no_input_format": "Q: {instruction} A:"}
    made, tokenizer = prepared(type_, [{name: "Why?", f"{name} too": "So."}], tmp_path)
    assert told(made, tokenizer)[0] == f"Q: Why? A:So.{tokenizer.eos_token}"


@pytest.mark.parametrize("text", ["Use {{name}}.", "{% if x %}", "{# no #}", "a brace {"])
def test_a_system_prompt_stands_as_it_is_written(text: str, tmp_path: Path) -> None:
    type_ = {"system_prompt": text, "system_format": "<{system}>\n", "field_instruction": "q", "field_output": "a"}
    made, tokenizer = prepared(type_, [{"q": "Why?", "a": "So."}], tmp_path)
    assert told(made, tokenizer)[0] == f"<{text}>\nWhy? So.{tokenizer.eos_token}"


OPENED = {"system_format": "<<{system}>> ", "no_input_format": "Q {instruction} A "}


@pytest.mark.parametrize(
    ("type_", "row", "text"),
    [
        ({"system_prompt": "Be kind.", "field_system": "sys"}, {}, "<<Be kind.>> Q hi A yo"),
        ({"system_prompt": "Be kind.", "field_system": "sys"}, {"sys": "Own."}, "<<Own.>> Q hi A yo"),
        ({"system_prompt": "Be kind.", "field_system": "sys"}, {"sys": ""}, "Q hi A yo"),
        ({"system_prompt": "Be kind."}, {"system": "Own."}, "<<Own.>> Q hi A yo"),
        ({}, {"system": "Own."}, "<<Own.>> Q hi A yo"),
        ({}, {"system": None}, "Q hi A yo"),
        ({"system_format": None}, {"system": "Own."}, "Own.Q hi A yo"),
        ({"format": "Q {instruction} I {input} A "}, {"input": "in"}, "Q hi I in A yo"),
        ({"format": "Q {instruction} I {input} A "}, {}, "Q hi A yo"),
        ({"format": "Q {instruction} I {input} A ", "no_input_format": None}, {}, "hi yo"),
        ({"no_input_format": None}, {"input": "in"}, "hi in yo"),
    ],
)
def test_a_row_opens_with_its_system_column_or_with_the_types_system_prompt(
    type_: dict[str, Any], row: dict[str, Any], text: str, tmp_path: Path
) -> None:
    made, tokenizer = prepared({**OPENED, **type_}, [{"instruction": "hi", "output": "yo", **row}], tmp_path)
    assert told(made, tokenizer)[0] == text + tokenizer.eos_token


def test_words_for_rows_without_an_input_that_are_axolotls_own_are_told(tmp_path: Path) -> None:
    def notes(**type_: str) -> str:
        return " ".join(notes_of(load_any(file(tmp_path, {**BASE, "datasets": [{"path": "a/b", "type": type_}]}))))

    assert '"{instruction} "' in notes(format="Q {instruction} I {input} A ")
    assert "no_input_format" not in notes(format="Q {instruction} I {input} A ", no_input_format="Q {instruction} A ")


@pytest.mark.parametrize(
    "type_", [{"no_input_format": "{input}"}, {"format": "{system}"}, {"system_format": "{input}"}]
)
def test_a_format_of_what_it_is_not_given_is_refused(type_: dict[str, str], tmp_path: Path) -> None:
    said = refusal(file(tmp_path, {**BASE, "datasets": [{"path": "a/b", "type": type_}]}))
    assert "a format that cannot be filled" in said


def test_roles_that_are_empty_say_nothing(tmp_path: Path) -> None:
    roles = {"system": None, "user": ["asker"], "assistant": [None, "answerer"]}
    entry = {"path": "a/b", "type": "chat_template", "roles": roles}
    made = load_any(file(tmp_path, {**BASE, "datasets": [entry]})).resolved.recipe.data
    assert made.roles == {"asker": "user", "answerer": "assistant"}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"special_tokens": "<pad>"}, ["special_tokens cannot be", "special_tokens: {bos_token: …}"]),
        ({"trl": True}, ["trl cannot be true", "a mapping"]),
    ],
)
def test_a_word_where_keys_belong_is_told_as_that(values: dict[str, Any], said: list[str], tmp_path: Path) -> None:
    told_ = refusal(file(tmp_path, {**BASE, **values}))
    assert all(part in told_ for part in said)
    assert "did you mean" not in told_


def test_a_list_of_names_is_wrong_once(tmp_path: Path) -> None:
    said = refusal(file(tmp_path, {**BASE, "datasets": ["rows.jsonl"]}))
    assert "datasets cannot be" in said
    assert "is missing" not in said

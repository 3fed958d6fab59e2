"""Columns that no one reads are named, whatever reads the rows; those that something else reads are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from every_kind import TOKENIZER

from tunesmith.data.cache.large import Survey
from tunesmith.data.formats import LEARNABLE, convert
from tunesmith.data.prepare import Task, prepare
from tunesmith.data.rows.template_rows import columns_named
from tunesmith.data.rows.unused import NAMED
from tunesmith.data.settings import DataSettings, TemplateFormat
from tunesmith.data.types import Conversation, Labelled, Origin, Preference, Prompt
from tunesmith.dialects.read import load_any
from tunesmith.notation import write

ROW = {"q": "x", "a": "y", "b": "z", "id": 7, "nothing": None}
FORMS: dict[str, tuple[dict[str, str], Any]] = {
    "an answer": ({"prompt": "{{ q }}{{ b }}", "answer": "{{ a }}"}, Conversation),
    "a system turn": ({"prompt": "{{ q }}", "answer": "{{ a }}", "system": "{{ b }}"}, Conversation),
    "two answers": ({"prompt": "{{ q }}", "chosen": "{{ a }}", "rejected": "{{ b }}"}, Preference),
    "a label": ({"text": "{{ q }}{{ b }}", "label": "{{ a }}"}, Labelled),
}


def noted(row: dict[str, Any], form: Any = "auto", takes: Any = LEARNABLE, **columns: Any) -> tuple[str, ...]:
    return convert([(Origin("rows", 1), row)], form, columns, takes).notes


@pytest.mark.parametrize("name", FORMS)
def test_columns_that_no_part_of_a_template_names_are_told(name: str) -> None:
    parts, makes = FORMS[name]
    assert noted(ROW, TemplateFormat(**parts), (makes,)) == ("columns not used: id",)


def test_of_a_prompt_every_column_is_for_the_rewards() -> None:
    assert noted(ROW, TemplateFormat(prompt="{{ q }}"), (Prompt,)) == ()


@pytest.mark.parametrize(
    "text",
    [
        "{% for item in c if item != d %}{{ item }}{% endfor %}",
        "{{ (c | sort(attribute='x'))[0] | default(d, true) }}",
        "{% if c is defined and d %}y{% else %}n{% endif %}",
        "{% set own = c %}{{ own ~ d }}",
        "{% macro m(x) %}{{ x }}{{ d }}{% endmacro %}{{ m(c) }}",
        "{{ c if d == 1 }}{# e #}{% raw %}{{ e }}{% endraw %}",
        "{{ c.e.f['g'] }}{{ {'e': d} | tojson }}",
    ],
)
def test_a_column_is_named_wherever_it_stands_and_nothing_else_is(text: str) -> None:
    assert columns_named(TemplateFormat(prompt=text, answer="a")) == {"c", "d"}


def test_a_column_called_as_a_function_of_jinja_is_read() -> None:
    form = TemplateFormat(prompt="{{ dict }}", answer="a")
    assert noted({"dict": "x", "range": "y"}, form) == ("columns not used: range",)


def test_of_many_columns_the_first_are_named_and_the_others_counted() -> None:
    row = {"text": "t"} | {f"c{i}": i for i in range(NAMED + 30)}
    (note,) = noted(row)
    assert note.endswith(f"c{NAMED - 1} and 30 more")
    assert noted({"text": "t"} | {f"c{i}": i for i in range(NAMED)})[0].endswith(f", c{NAMED - 1}")


@pytest.mark.parametrize("form", ["auto", TemplateFormat(prompt="{{ prompt }}", answer="{{ completion }}")])
def test_the_columns_that_group_and_part_the_rows_are_read(form: Any) -> None:
    rows = [{"prompt": f"q {i}", "completion": "a", "topic": i % 3, "page": i % 2, "id": i} for i in range(12)]
    settings = DataSettings(train="rows", format=form, group_by="topic", held_out={"key": "page", "share": 0.5})
    made = prepare(settings, TOKENIZER, seed=0, rows=rows)
    assert [note for note in made.notes if "not used" in note] == ["columns not used: id"]


REPLACED: list[tuple[dict[str, Any], dict[str, str], str]] = [
    ({"text": "old", "content": "new"}, {"text": "content"}, "text"),
    ({"messages": "old", "chat": [{"role": "user", "content": "new"}]}, {"messages": "chat"}, "messages"),
    ({"prompt": "new", "completion": "old", "mail": "new"}, {"completion": "mail"}, "completion"),
]


@pytest.mark.parametrize(("row", "columns", "name"), REPLACED)
def test_a_rename_replaces_a_column_of_our_name_and_that_is_told(row: Any, columns: Any, name: str) -> None:
    made = convert([(Origin("rows", 1), row)], "auto", columns)
    assert "new" in str(made.rows)
    assert "old" not in str(made.rows)
    assert made.notes == (f"columns not used: {name} ({columns[name]} is read in its place)",)
    survey = Survey(DataSettings(train="rows", columns=columns))
    survey.look([(Origin("rows", 1), row)])
    assert survey.recognised(Task.of(survey.settings, 0, None, None, LEARNABLE)) == made.format


def test_columns_that_change_places_are_both_read() -> None:
    row = {"prompt": "answer", "completion": "question"}
    made = convert([(Origin("rows", 1), row)], "auto", {"prompt": "completion", "completion": "prompt"})
    assert made.notes == ()
    assert [turn.content for turn in made.rows[0].messages] == ["question", "answer"]  # type: ignore[union-attr]


def test_a_column_taken_from_a_prompt_is_told_since_rewards_miss_it() -> None:
    row = {"prompt": "old", "question": "new", "gold": 1, "hint": "x"}
    assert noted(row, "auto", (Prompt,), prompt="question", hint=None) == (
        "columns not used: prompt (question is read in its place), hint",
    )


def test_what_words_of_another_tool_do_not_read_is_told(tmp_path: Path) -> None:
    entry = {"path": "some/rows", "type": "alpaca_chat.load_qa"}
    values = {"base_model": "m/x", "datasets": [entry], "adapter": "lora", "lora_r": 8, "lora_target_linear": True}
    file = tmp_path / "theirs.yml"
    file.write_text(write({**values, "micro_batch_size": 1, "learning_rate": 1e-4, "output_dir": "o"}))
    data = load_any(file).resolved.recipe.data
    assert isinstance(data.format, TemplateFormat)
    made = prepare(data, TOKENIZER, seed=0, rows=[{"question": "q", "answer": "a", "system": "s", "id": 1}])
    assert "columns not used: system, id" in made.notes

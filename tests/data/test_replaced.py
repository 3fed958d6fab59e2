"""What a template changes that stands in place of another is counted on real rows, and shown once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_tokenizers as tiny
from every_kind import lines, talk
from small_run import make_model, make_rows, recipe

from tunesmith import run
from tunesmith.data.check.replaced import LOOKED_AT
from tunesmith.data.prepare import Prepared, prepare
from tunesmith.data.settings import DataSettings
from tunesmith.progress import Progress
from tunesmith.recipe import from_dict

ROWS = [talk(i) for i in range(9)]  # of which each third has a system turn


def made(replaced: Any, rows: Any = ROWS, template: str = tiny.CHATML, **settings: Any) -> Prepared:
    data = DataSettings(**{"train": "rows", **settings})
    rows = None if "train" in settings else rows
    return prepare(data, tiny.byte_level(template, adds_bos=True), seed=0, rows=rows, replaced=replaced)


def told(prepared: Prepared) -> list[str]:
    return [note for note in prepared.notes if " words " in note]


def test_only_rows_that_it_words_otherwise_are_counted() -> None:
    boss = tiny.CHATML.replace("+ m['role']", "+ ('boss' if m['role'] == 'system' else m['role'])")
    [note] = told(made(boss))
    assert note == (
        "model.template words 3 of the first 9 conversations otherwise than the tokenizer's own chat template: rows, "
        r"row 1 has …'im_start|>system\nbe brief<|im_end|>\n<|im_start|>us'… where that one has "
        r"…'im_start|>boss\nbe brief<|im_end|>\n<|im_start|>user'…"
    )


def test_the_first_conversations_are_enough() -> None:
    [note] = told(made(tiny.LLAMA2, [talk(i) for i in range(LOOKED_AT + 8)]))
    assert f"{LOOKED_AT} of the first {LOOKED_AT} conversations" in note


@pytest.mark.parametrize("replaced", [None, tiny.CHATML, "{{ bos_token }}" + tiny.CHATML, {"rag": tiny.LLAMA2}])
def test_where_the_tokens_are_the_same_nothing_is_said(replaced: Any) -> None:
    assert told(made(replaced)) == []
    assert told(made(tiny.LLAMA2, [{"text": "the quick fox"}])) == [], "plain text is worded by no template"


def test_a_row_that_the_other_refuses_is_counted() -> None:
    [note] = told(made(tiny.NO_SYSTEM))
    assert "words 3 of the first 9 conversations otherwise" in note
    assert "rows, row 1 has no wording by that one (the chat template refuses the row" in note


def test_the_template_of_a_source_is_held_against_the_models(tmp_path: Path) -> None:
    path, other = (lines(tmp_path / f"{name}.jsonl", ROWS) for name in "ab")
    prepared = made(None, train=[{"path": path}, {"path": other, "template": tiny.LLAMA2}])
    [note] = told(prepared)
    assert note.startswith("data.train[1].template words 9 of the first 9 conversations otherwise than the model's")
    assert f"{other}, row 1" in note
    assert any(note.startswith("data.train[1].template replaces the model's chat template") for note in prepared.notes)


def test_what_it_makes_of_the_rows_leaves_no_note_of_its_own() -> None:
    plain = made(None).notes
    assert [note for note in made(tiny.NEVER_ENDS).notes if " words " not in note] == list(plain)


DATED = "{{ strftime_now('%H:%M:%S:%f') }}" + tiny.CHATML
DATES = {
    "a form": DATED,
    "a named form": DATED.replace("('%H", "(format='%H"),
    "a form that is kept": "{% set now = strftime_now('%H:%M:%S:%f') %}{{ now }}" + tiny.CHATML,
    "where there is a clock": (
        "{% if strftime_now is defined %}{{ strftime_now('%f') }}{% else %}{{ 'no' }}{% endif %}" + tiny.CHATML
    ),
}


@pytest.mark.parametrize("dated", DATES)
def test_the_date_that_either_writes_is_left_out(dated: str) -> None:
    [of_other] = told(made(DATES[dated]))
    [of_own] = told(made(tiny.CHATML, template=DATES[dated]))
    assert "(the date as %" in of_other.split("where that one has")[1]
    assert "(the date as %" in of_own.split("where that one has")[0]


@pytest.mark.parametrize("dated", DATES)
@pytest.mark.parametrize("added", ["{{ '' }}", "{% set none_reads = 1 %}", "\n{#- nothing #}"])
def test_a_copy_of_a_template_that_writes_the_date_words_nothing_otherwise(dated: str, added: str) -> None:
    assert told(made(DATES[dated], template=DATES[dated] + added)) == []


def test_a_copy_that_says_what_is_learned_words_nothing_otherwise() -> None:
    date = "{{ strftime_now(format='%f') }}"
    assert told(made(date + tiny.CHATML, template=date + tiny.GENERATION_TAG)) == []


@pytest.mark.parametrize("dated", DATES)
def test_a_difference_behind_the_date_is_shown(dated: str) -> None:
    boss = DATES[dated].replace("+ m['role']", "+ ('boss' if m['role'] == 'system' else m['role'])")
    [note] = told(made(DATES[dated], template=boss))
    assert "words 3 of the first 9 conversations otherwise" in note
    assert "boss" in note


def test_another_form_of_the_date_is_another_wording() -> None:
    [note] = told(made("{{ strftime_now('%d') }}" + tiny.CHATML, template="{{ strftime_now('%m') }}" + tiny.CHATML))
    assert "words 9 of the first 9 conversations otherwise" in note


def test_white_space_at_the_beginning_of_a_dated_template_is_kept() -> None:
    for space in (" ", "\n", "\n\n  "):
        [note] = told(made(space + DATED, template=DATED))
        assert "words 9 of the first 9 conversations otherwise" in note
        assert told(made(space + DATED, template=space + DATED + "{{ '' }}")) == []


def test_a_template_that_cannot_do_without_the_date_is_compared_with_it() -> None:
    months = ", ".join(f"'{month:02d}': 'month'" for month in range(1, 13))
    dated = "{{ {" + months + "}[strftime_now('%m')] + ' ' }}" + tiny.CHATML
    assert told(made(dated, template=dated + "{{ '' }}")) == []


def test_a_run_says_it_of_the_template_that_its_recipe_sets(tmp_path: Path) -> None:
    values = recipe(make_model(tmp_path / "model"), make_rows(tmp_path / "rows.jsonl", 10), tmp_path / "run")
    values["model"]["template"] = "plain"
    with Progress(quiet=True) as progress:
        notes = run.read_rows(from_dict(values).recipe, False, progress)[1].notes
    assert any(note.startswith("model.template words 10 of the first 10 conversations otherwise") for note in notes)
    assert any("model.template replaces the tokenizer's own chat template" in note for note in notes)

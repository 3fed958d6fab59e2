"""An empty cell of a table counts as null does in JSON; text that a table leaves empty stays text."""

from __future__ import annotations

import copy
import csv
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from every_kind import TOKENIZER

from tunesmith.data.cache.large import Survey
from tunesmith.data.check.findings import findings
from tunesmith.data.formats import LEARNABLE, convert, recognise
from tunesmith.data.prepare import Task, prepare
from tunesmith.data.reading.empty_cells import is_filled
from tunesmith.data.reading.sources import read
from tunesmith.data.settings import DataSettings, TemplateFormat
from tunesmith.data.types import Conversation, Document, Judged, Labelled, Origin, Preference, Row
from tunesmith.errors import DataError

TURNS = json.dumps([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}])
ROWS: dict[str, tuple[dict[str, str | None], str, tuple[type[Row], ...]]] = {
    "a text": ({"instruction": "q", "output": "a", "text": None}, "alpaca", LEARNABLE),
    "messages": ({"prompt": "q", "completion": "a", "messages": None}, "prompt-completion", LEARNABLE),
    "another answer": ({"question": "q", "answer": "a", "response": None}, "question-answer", LEARNABLE),
    "conversations": ({"messages": TURNS, "conversations": None, "tools": None}, "messages", LEARNABLE),
    "the other pair": (
        {"prompt": "q", "chosen": "a", "rejected": "b", "chosen_response": None, "rejected_response": None},
        "preference",
        (Preference,),
    ),
    "messages that are judged": (
        {"prompt": "q", "completion": "a", "label": "true", "messages": None, "kto_tag": None},
        "unpaired",
        (Judged,),
    ),
    "a label": ({"text": "t", "messages": None, "label": "x", "labels": None}, "labelled", (Labelled,)),
    "a mask": ({"input_ids": "[1, 2]", "labels": None, "attention_mask": None}, "tokens", (Document,)),
    "what nobody reads": ({"prompt": "q", "completion": "a", "id": None}, "prompt-completion", LEARNABLE),
}


def table(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_a_row_with_empty_cells_is_read_as_the_row_with_nulls(name: str, ending: str, tmp_path: Path) -> None:
    row, form, takes = ROWS[name]
    path = table(tmp_path / f"rows.{ending}", [row, row], "\t" if ending == "tsv" else ",")
    cells = convert(read(path), "auto", {}, takes)
    nulls = convert([(Origin("rows", number), row) for number in (2, 3)], "auto", {}, takes)
    assert cells.format == nulls.format == form
    assert cells.notes == nulls.notes == ()
    assert [str(one).replace(str(path), "rows") for one in cells.rows] == [str(one) for one in nulls.rows]


@pytest.mark.parametrize("name", [name for name in ROWS if ROWS[name][2] == LEARNABLE])
def test_rows_that_are_not_kept_are_recognised_alike(name: str, tmp_path: Path) -> None:
    row, form, _ = ROWS[name]
    survey = Survey(DataSettings(train="rows"))
    survey.look(read(table(tmp_path / "rows.csv", [row, row, row])))
    assert survey.recognised(Task.of(survey.settings, 0, None, None, LEARNABLE)) == form


def test_in_json_empty_text_is_a_value() -> None:
    with pytest.raises(DataError, match="any of text, alpaca"):
        recognise([(Origin("rows", 1), {"instruction": "q", "output": "a", "text": ""})])
    with pytest.raises(DataError, match="more than one pair"):
        convert([(Origin("rows", 1), {"question": "q", "answer": "a", "response": ""})], "auto", {})


def test_an_empty_cell_is_still_text_where_text_is_read(tmp_path: Path) -> None:
    rows = read(table(tmp_path / "rows.csv", [{"prompt": "q", "completion": "a", "x": ""}] * 3 + [
        {"prompt": "", "completion": "a", "x": ""}, {"prompt": "q", "completion": "", "x": ""}
    ]))  # fmt: skip
    made = convert(rows, "auto", {})
    said = [turn.content for row in made.rows for turn in row.messages]  # type: ignore[union-attr]
    assert said[-4:] == ["", "a", "q", ""]
    assert {type(text) for text in said} == {str}
    worded = convert(rows[:1], TemplateFormat(prompt="{{ prompt }}{{ x }}", answer="{{ completion }}"), {})
    assert isinstance(worded.rows[0], Conversation)
    assert [turn.content for turn in worded.rows[0].messages] == ["q", "a"]


def test_empty_cells_among_full_rows_are_found_as_nulls_are(tmp_path: Path) -> None:
    full = [{"prompt": f"q {i}", "completion": f"a {i}"} for i in range(6)]
    path = table(tmp_path / "rows.csv", [*full, {"prompt": "", "completion": "a"}, {"prompt": "q", "completion": ""}])
    made = prepare(DataSettings(train=str(path)), TOKENIZER, seed=0)
    assert {shape: tally.count for shape, tally in made.shapes[str(path)].items()} == {
        ("completion", "prompt"): 6, ("completion",): 1, ("prompt",): 1,
    }  # fmt: skip
    assert any(found.kind == "mixed_columns" for found in findings(made))


@pytest.mark.parametrize("rows", [
    [{"instruction": "q", "input": "", "output": "a"}, {"instruction": "q", "input": "x", "output": "a"}],
    [{"text": "t", "labels": ""}, {"text": "t", "labels": "x,y"}],
])  # fmt: skip
def test_what_a_row_may_do_without_is_no_finding(rows: list[dict[str, str]], tmp_path: Path) -> None:
    takes = (Labelled,) if "labels" in rows[0] else LEARNABLE
    path = table(tmp_path / "rows.csv", rows)
    assert prepare(DataSettings(train=str(path)), TOKENIZER, seed=0, takes=takes).shapes == {}


def test_all_empty_cells_are_one_object_and_their_copies_are_as_empty(tmp_path: Path) -> None:
    rows = read(table(tmp_path / "rows.csv", [{"a": "x", "b": "", "c": ""}] * 50))
    cells = {id(value): value for _, row in rows for name, value in row.items() if name != "a"}
    (cell,) = cells.values()
    for other in (copy.copy(cell), copy.deepcopy(rows)[0][1]["b"], pickle.loads(pickle.dumps(rows))[0][1]["b"]):
        assert other == ""
        assert not is_filled(other)

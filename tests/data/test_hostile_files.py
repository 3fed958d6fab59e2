"""Files that would fill memory or exhaust a stack are told by file and row."""

from __future__ import annotations

import gzip
import json
from contextlib import nullcontext, suppress

import pytest
import tiny_tokenizers as tiny

from tunesmith.data.formats import convert
from tunesmith.data.prepare import prepare
from tunesmith.data.reading import files, json_rows, opened
from tunesmith.data.reading.sources import read
from tunesmith.data.reading.streamed import ReadWhole, walked
from tunesmith.data.settings import DataSettings
from tunesmith.data.types import Labelled, Origin
from tunesmith.errors import DataError

TALK = '"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]'
DEEP_ROWS = {
    "unused": '{"prompt":"a","completion":"b","x":DEEP}',
    "not a number": '{"prompt":"a","completion":"b","x":DEEP,"y":NaN}',
    "tools": "{" + TALK + ',"tools":[{"name":"f","parameters":{"x":DEEP}}]}',
    "arguments": '{"messages":[{"role":"user","content":"a"},{"role":"assistant",'
    '"tool_calls":[{"function":{"name":"f","arguments":{"x":DEEP}}}]}]}',
    "content": '{"messages":[{"role":"user","content":"a"},{"role":"tool","content":DEEP},'
    '{"role":"assistant","content":"b"}]}',
}


@pytest.mark.parametrize("shape", ["[]", '{"a":}'])
@pytest.mark.parametrize("depth", [150, 300, 450, 600, 900, 3000, 100_000])
@pytest.mark.parametrize("name", DEEP_ROWS)
def test_what_is_nested_too_deeply_is_told_by_its_row(tmp_path, name, depth, shape):
    opens, closes = ("[", "]") if shape == "[]" else ('{"a":', "}")
    inner = "1" if shape != "[]" else ""
    row = DEEP_ROWS[name].replace("DEEP", opens * depth + inner + closes * depth)
    good = '{"prompt":"a","completion":"b"}'
    for file, text, place in (
        ("rows.jsonl", f"{good}\n{row}\n", "line 2"),
        ("rows.json", f"[{good},\n{row}]", "row 2"),
        ("rows.json", f'{{"data": [{good},\n{row}]}}', None if depth >= 900 else "row 2"),
    ):
        path = tmp_path / file
        path.write_text(text)
        if depth < 200 and name != "not a number":
            assert len(read(path)) == 2
            continue
        with pytest.raises(DataError, match="NaN" if depth < 200 else "nested too deeply") as told:
            read(path)
        assert place is None or f"{path}, {place}" in str(told.value)


@pytest.mark.parametrize("name", DEEP_ROWS)
def test_what_is_nested_less_deeply_gets_through_or_is_told(tmp_path, name):
    path = tmp_path / "rows.jsonl"
    path.write_text(DEEP_ROWS[name].replace("DEEP", "[" * 190 + "]" * 190) + "\n")
    with nullcontext() if name in ("unused", "arguments") else suppress(DataError):  # some roles need a call before
        prepare(DataSettings(train=str(path), max_length=10_000), tiny.byte_level(tiny.WITH_TOOLS), seed=0)


def test_text_and_dictionaries_that_are_nested_too_deeply_are_told_too():
    deep: list = []
    for _ in range(600):
        deep = [deep]
    tool = {"name": "f", "parameters": {"x": deep}}
    talk = json.loads("{" + TALK + "}")
    for row in ({**talk, "tools": [tool]}, {**talk, "tools": json.dumps([tool])}):
        with pytest.raises(DataError, match="nested too deeply") as told:
            prepare(DataSettings(train="rows"), tiny.byte_level(tiny.WITH_TOOLS), seed=0, rows=[row])
        assert "row 1" in str(told.value)


def test_a_cell_of_labels_that_is_nested_too_deeply_is_told(tmp_path):
    row = {"text": "a", "labels": "[" * 5000 + "]" * 5000}
    with pytest.raises(DataError, match="'labels' begins like a list"):
        convert([(Origin("rows", 1), row)], "labelled", {}, (Labelled,))


@pytest.fixture
def short(monkeypatch):
    """No line may be longer than a thousand bytes here."""
    for module in (opened, files, json_rows):
        monkeypatch.setattr(module, "LONGEST_BYTES", 1000)


LONG = "x" * 5000
LONG_FILES = {
    "rows.jsonl": ('{"text":"a"}\n{"text":"' + LONG + '"}\n{"text":"b"}\n', "line 2"),
    "rows.json": ('[{"text":"a"},\n{"text":"' + LONG + '"}]', "row 2"),
    "rows.csv": ('text\na\n"' + LONG + '"\n', "line 3"),
    "quote.csv": ('text\na\n"open\n' + "some words\n" * 500, "line 3"),
    "rows.txt": ("a\n\n" + LONG + "\n", "line 3"),
    "paragraph.txt": ("a\n\n" + "some words\n" * 500, "line 3"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", LONG_FILES)
def test_a_line_without_end_is_not_read_to_its_end(tmp_path, name, packed, short, monkeypatch):
    text, place = LONG_FILES[name]
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    monkeypatch.setattr("tunesmith.data.reading.json_list.SECTION_BYTES", 100)
    with pytest.raises(DataError) as told:
        read(path)
    assert f"{path}, {place}" in str(told.value)
    assert "1,000" in str(told.value) or "1000" in str(told.value)
    assert told.value.fix
    with pytest.raises(ReadWhole):
        list(walked(DataSettings(train=str(path))))


def test_a_json_text_that_is_no_list_is_read_up_to_a_limit(tmp_path, monkeypatch):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"data": [{"text": LONG}]}))
    assert len(read(path)) == 1
    monkeypatch.setattr(json_rows, "MOST_WHOLE_BYTES", 1000)
    with pytest.raises(DataError, match="too large to be read whole") as told:
        read(path)
    assert "jq -c" in str(told.value)
    path.write_text('{"text":"a"}\n' * 200)
    assert len(read(path)) == 200


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    "value", [{"train": [{"text": "a"}] * 3, "test": [{"text": "b"}]}, {"train": [{"a": 1}], "v": 1}]
)
def test_an_object_with_several_lists_of_rows_is_told_as_such(tmp_path, value, indent):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(value, indent=indent))
    with pytest.raises(DataError, match="object with lists in it") as told:
        read(path)
    assert f"'train': {len(value['train'])} item" in str(told.value)
    assert """jq -c '.["train"][]' rows.json > train.jsonl""" in told.value.fix
    path.write_text(json.dumps([value], indent=indent))
    assert [row for _, row in read(path)] == [value], "as a row, where it is said to be one"


def test_an_object_on_a_line_with_lists_of_messages_is_a_row(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("{" + TALK + ',"tools":[{"name":"f"}],"train":[]}')
    assert len(read(path)) == 1

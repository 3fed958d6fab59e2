"""Rows from files, folders and Python; broken ones are DataErrors that name the line, all of them at once."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.data.reading.files import INDEX
from tunesmith.data.reading.sources import read, read_held_out
from tunesmith.data.reading.streamed import ReadWhole, walked
from tunesmith.data.settings import DataSettings
from tunesmith.errors import DataError

ROWS = [{"text": "naïve, “quoted”"}, {"text": "two\nlines"}, {"text": "🙂"}]


def write(path, content: str | bytes):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def rows_of(source, **options) -> list[dict]:
    return [row for _, row in read(source, **options)]


def parquet(path):
    from datasets import Dataset

    Dataset.from_list(ROWS).to_parquet(str(path))


def arrow(path):
    import pyarrow as pa

    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


WRITERS = {
    "a.jsonl": lambda path: write(path, "\n".join(map(json.dumps, ROWS)) + "\n\n"),
    "bom.jsonl": lambda path: write(path, "\ufeff" + "\r\n".join(map(json.dumps, ROWS))),
    "list.jsonl": lambda path: write(path, json.dumps(ROWS)),
    "a.json": lambda path: write(path, json.dumps(ROWS, indent=1, ensure_ascii=False)),
    "data.json": lambda path: write(path, json.dumps({"data": ROWS})),
    "lines.json": lambda path: write(path, "\n".join(map(json.dumps, ROWS))),
    "a.csv": lambda path: write(path, 'text\n"naïve, “quoted”"\n"two\nlines"\n🙂\n'),
    "bom.csv": lambda path: write(path, '\ufefftext\r\n"naïve, “quoted”"\r\n"two\nlines"\r\n🙂\r\n'),
    "a.tsv": lambda path: write(path, 'text\nnaïve, “quoted”\n"two\nlines"\n🙂\n'),
    "a.parquet": parquet,
    "a.arrow": arrow,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    WRITERS[name](tmp_path / name)
    assert rows_of(tmp_path / name) == ROWS
    assert rows_of(str(tmp_path / name), limit=2) == ROWS[:2]


def test_arguments_that_arrow_filled_with_null_are_not_there(tmp_path):
    from datasets import Dataset

    calls = [{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {"y": {"z": "w"}}}]
    rows = [{"m": [{"role": "assistant", "tool_calls": [call]}], "n": None if i else 1} for i, call in enumerate(calls)]
    Dataset.from_list(rows).to_parquet(str(tmp_path / "a.parquet"))
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    for place in ("a.parquet", "saved"):
        found = rows_of(tmp_path / place)
        assert [row["m"][0]["tool_calls"][0]["arguments"] for row in found] == [{"x": 1}, {"y": {"z": "w"}}]
        assert [row["n"] for row in found] == [1, None]


@pytest.mark.parametrize(("content", "says"), [("empty", "no rows"), ("damaged", "not a readable parquet")])
def test_a_parquet_file_without_rows_is_told_from_a_damaged_one_and_nothing_else_is_printed(
    tmp_path, capfd, content, says
):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array([], type=pa.string())}), str(path))
    if content == "damaged":
        path.write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=says):
        read(path)
    assert capfd.readouterr() == ("", "")


def test_reading_columnar_files_leaves_no_copy_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    parquet(tmp_path / "a.parquet")
    before = sorted(tmp_path.rglob("*"))
    rows_of(tmp_path / "a.parquet")
    assert sorted(tmp_path.rglob("*")) == before


def test_python_rows_and_their_limit():
    assert rows_of(ROWS, limit=1) == ROWS[:1]
    assert rows_of(iter(ROWS)) == ROWS
    with pytest.raises(DataError, match="rows, row 2"):
        read([{"a": 1}, "no"])
    with pytest.raises(DataError, match="no rows"):
        read([])


def test_a_folder_is_read_whole_or_by_its_splits(tmp_path):
    (tmp_path / "plain").mkdir()
    for name in ("b.jsonl", "a.jsonl"):
        write(tmp_path / "plain" / name, json.dumps({"t": name}))
    assert [row["t"] for row in rows_of(tmp_path / "plain")] == ["a.jsonl", "b.jsonl"]
    (tmp_path / "split").mkdir()
    for name in ("train.jsonl", "test.jsonl"):
        write(tmp_path / "split" / name, json.dumps({"t": name}))
    assert rows_of(tmp_path / "split") == [{"t": "train.jsonl"}]
    assert rows_of(tmp_path / "split", split="test") == [{"t": "test.jsonl"}]
    with pytest.raises(DataError, match="validation"):
        read(str(tmp_path / "split"), split="validation")
    write(tmp_path / "split" / "more.jsonl", json.dumps({"t": "of no split"}))
    with pytest.raises(DataError, match=r"(?s)no split.*more\.jsonl"):
        read(tmp_path / "split")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no data files"):
        read(tmp_path / "none")


@pytest.mark.parametrize("split", ["validation", "test", "train[:10]"])
def test_what_has_no_splits_is_read_whole_as_train_alone(tmp_path, split):
    from datasets import Dataset, DatasetDict

    (tmp_path / "plain").mkdir()
    write(tmp_path / "plain" / "a.jsonl", "\n".join(map(json.dumps, ROWS)))
    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    for folder in ("plain", "plain/a.jsonl", "saved"):
        assert rows_of(tmp_path / folder) == rows_of(tmp_path / folder, split="train") == ROWS
        with pytest.raises((DataError, ReadWhole)):
            walked(DataSettings(train=str(tmp_path / folder), split=split))
        with pytest.raises(DataError, match=r"(?s)has no splits.*take data\.split out"):
            read(tmp_path / folder, split=split)
    file = str(tmp_path / "plain" / "a.jsonl")
    assert [row for _, row in read_held_out(file, split=split)] == ROWS, "data.split is that of the other rows"
    DatasetDict({"test": Dataset.from_list(ROWS)}).save_to_disk(str(tmp_path / "both"))
    assert rows_of(tmp_path / "both", split="test") == ROWS


def test_a_saved_part_is_that_split(tmp_path):
    from datasets import Dataset, NamedSplit

    Dataset.from_list(ROWS, split=NamedSplit("validation")).save_to_disk(str(tmp_path / "saved"))
    assert rows_of(tmp_path / "saved", split="validation") == rows_of(tmp_path / "saved") == ROWS


def test_what_tools_hide_in_a_folder_is_not_data(tmp_path):
    for hidden in (".ipynb_checkpoints", ".cache/hub"):
        (tmp_path / hidden).mkdir(parents=True)
        write(tmp_path / hidden / "a.jsonl", json.dumps({"t": "an old copy"}))
    write(tmp_path / "a.jsonl", json.dumps({"t": "data"}))
    write(tmp_path / "dataset_infos.json", "{}")
    assert rows_of(tmp_path) == [{"t": "data"}]


def test_a_saved_data_set_is_read(tmp_path, capfd):
    from datasets import Dataset, DatasetDict

    DatasetDict({"train": Dataset.from_list(ROWS)}).save_to_disk(str(tmp_path / "saved"))
    capfd.readouterr()
    assert rows_of(tmp_path / "saved") == ROWS
    assert capfd.readouterr() == ("", "")


BROKEN = {
    "not json": ("a.jsonl", '{"a": 1}\n{"a": }\n{"a": 2}', "line 2"),
    "not an object": ("a.jsonl", '{"a": 1}\n[1]\n', "line 2"),
    "nan": ("a.jsonl", '{"a": NaN}\n', "NaN is not JSON"),
    "infinity by a large exponent": ("a.jsonl", '{"a": 1}\n{"a": 1e999}\n', "line 2.*1e999"),
    "a key twice": ("a.jsonl", '{"a": 1, "a": 2}', "'a' stands twice"),
    "a key twice in a list": ("a.json", '[{"a": 1},\n {"a": 1, "a": 2}]', "row 2.*'a' stands twice"),
    "nan inside a row of a list": ("a.json", '{"data": [{"a": 1}, {"a": [NaN]}]}', "row 2.*NaN is not JSON"),
    "bad utf-8": ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}', "line 2.*not valid UTF-8"),
    "utf-16": ("a.jsonl", '{"a": 1}'.encode("utf-16"), "UTF-16"),
    "empty": ("a.jsonl", "", "no rows"),
    "blank": ("a.json", " \n ", "no rows"),
    "zero bytes": ("a.csv", b"a,b\n1,\x00\n", "binary"),
    "gzip": ("a.jsonl", b"\x1f\x8b\x08\x00rest", "gzip"),
    "nested too deeply": ("a.jsonl", "[" * 20000, "deep|not valid JSON"),
    "json object": ("a.json", '{"rows":\n []}', "list of objects"),
    "json cut off": ("a.json", '[{"a": 1},\n{"a": ', "line 2"),
    "json list of text": ("a.json", '[{"a": 1}, "b"]', "row 2"),
    "ragged csv": ("a.csv", "a,b\n1,2\n3\n", "line 3"),
    "open quote": ("a.csv", 'a,b\n1,"2\n3,4\n', "CSV"),
    "column twice": ("a.csv", "a,a\n1,2\n", "line 1"),
    "csv of semicolons": ("a.csv", "a;b\n1;2\n", "line 1.*';'"),
    "csv of tabs": ("a.csv", "a\tb\n1\t2\n", "line 1.*tab"),
    "tsv of commas": ("a.tsv", "a,b\n1,2\n", "line 1.*','"),
    "header alone": ("a.csv", "a,b\n", "no rows"),
    "bad utf-8 in csv": ("a.csv", b"a\nx\n\xff\n", "line 3"),
    "damaged parquet": ("a.parquet", b"PAR1 not really", "parquet"),
    "damaged arrow": ("a.arrow", b"ARROW1 not really", "arrow"),
    "empty parquet": ("a.parquet", b"", "no rows"),
    "unknown ending": ("a.xyz", "text", "xyz"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_say_where_and_what(tmp_path, case):
    name, content, says = BROKEN[case]
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=f"(?s){says}") as caught:
        read(path)
    assert name in str(caught.value)


def test_all_broken_rows_are_told_at_once_the_first_ten_by_line(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"a": 1}\n' + "{broken\n" * 25)
    with pytest.raises(DataError) as caught:
        read(path)
    text = str(caught.value)
    assert "25 broken rows" in text
    assert [f"line {line}:" in text for line in (2, 11, 12)] == [True, True, False]
    assert "15 more" in text


BROKEN_IN_MANY_PLACES = {
    "json": ("a.json", '[{"a": NaN}, {"a": 1}, {"b": 1, "b": 2}, 7]', ["row 1", "row 3", "row 4"]),
    "csv": ("a.csv", b'a,b\n1,2\n3\n\xff,1\n"x"y,2\n1,2,3\n', ["line 3", "line 4", "line 5", "line 6"]),
    "text": ("a.txt", b"one\n\xff\ntwo\n\xfe\n", ["line 2", "line 4"]),
}


@pytest.mark.parametrize("case", BROKEN_IN_MANY_PLACES)
def test_a_broken_row_does_not_hide_those_behind_it(tmp_path, case):
    name, content, places = BROKEN_IN_MANY_PLACES[case]
    with pytest.raises(DataError) as caught:
        read(write(tmp_path / name, content))
    assert type(caught.value) is DataError
    assert f"{len(places)} broken rows" in str(caught.value)
    assert all(f"{place}:" in str(caught.value) for place in places)


def test_a_missing_file_is_told_from_a_hub_id(tmp_path, monkeypatch):
    import huggingface_hub.constants as hub

    write(tmp_path / "near.jsonl", "{}")
    with pytest.raises(DataError, match=r"no such file.*\n.*near\.jsonl"):
        read(str(tmp_path / "far.jsonl"))
    with pytest.raises(DataError, match="no such file"):
        read("data/far.jsonl")
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="hub cannot be reached"):
        read("nobody-here/no-such-data")


def test_a_hub_that_is_out_of_reach_is_not_waited_for(monkeypatch):
    """Unless the rows were fetched before: then `datasets` has them."""
    monkeypatch.setattr("tunesmith.data.reading.hub.hub_answers", lambda: False)
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("asked"))
    for limit in (None, 3):
        with pytest.raises(DataError, match="hub cannot be reached"):
            read("nobody-here/no-such-data", limit=limit)
        with pytest.raises((DataError, ReadWhole)):
            walked(DataSettings(train="nobody-here/no-such-data", limit=limit))


def test_what_was_fetched_before_needs_no_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("tunesmith.data.reading.hub.hub_answers", lambda: False)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path))
    (tmp_path / "owner___my_rows").mkdir()
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: ROWS)
    assert rows_of("owner/MyRows") == ROWS


@pytest.mark.parametrize("count", [1, 3])
def test_pandas_index_is_told_from_a_column_of_rows(tmp_path, count):
    import pandas as pd

    table = pd.DataFrame({"prompt": ["a, b"] * count, "completion": ["c"] * count})
    for name, sep in (("a.csv", ","), ("a.tsv", "\t")):
        table.to_csv(tmp_path / name, sep=sep)
        rows = rows_of(tmp_path / name)
        assert [row.pop(INDEX) for row in rows] == [str(number) for number in range(count)]
        assert rows == table.to_dict("records")
    table.to_csv(tmp_path / "once.csv")
    pd.read_csv(tmp_path / "once.csv").to_csv(tmp_path / "twice.csv")
    assert list(rows_of(tmp_path / "twice.csv")[0]) == [INDEX, "Unnamed: 0", "prompt", "completion"]
    table.index = [f"id {number}" for number in range(count)]
    table.to_csv(tmp_path / "named.csv")
    with pytest.raises(DataError, match=r"(?s)line 2.*no name.*'id 0'.*index=False"):
        read(tmp_path / "named.csv")
    write(tmp_path / "own.csv", f"{INDEX},text\nx,a\n")
    assert rows_of(tmp_path / "own.csv") == [{INDEX: "x", "text": "a"}]
    write(tmp_path / "inner.csv", "a,,b\n1,2,3\n")
    with pytest.raises(DataError, match="name every column"):
        read(tmp_path / "inner.csv")


def test_long_csv_fields_are_read_and_the_module_left_as_it_was(tmp_path):
    import csv

    before = csv.field_size_limit()
    path = write(tmp_path / "a.csv", "text\n" + "x" * 300_000 + "\n")
    assert len(rows_of(path)[0]["text"]) == 300_000
    assert csv.field_size_limit() == before


def test_plain_text_is_a_row_a_paragraph_or_a_row_a_line(tmp_path):
    assert read(write(tmp_path / "a.txt", "one\ntwo\n\n\nthree\n"))[1][0].row == 5
    assert rows_of(str(tmp_path / "a.txt")) == [{"text": "one\ntwo"}, {"text": "three"}]
    assert rows_of(write(tmp_path / "w.txt", "one\r\ntwo\r\n\r\nthree\r\n")) == [
        {"text": "one\ntwo"},
        {"text": "three"},
    ]
    assert rows_of(write(tmp_path / "b.txt", "one\ntwo\n")) == [{"text": "one"}, {"text": "two"}]
    # A form feed or a Unicode line separator ends no line of a file.
    assert len(rows_of(write(tmp_path / "c.txt", "one\u2028\u2028x\ntwo\x0b\x0c\x0cx\nthree\n"))) == 3


def test_values_of_a_csv_stay_text_as_they_are_written(tmp_path):
    path = write(tmp_path / "a.csv", 'a,b\nNA,001\nnull,1e5\nnan,"x\ny"\n,"say ""hi"""\n')
    assert rows_of(path) == [
        {"a": "NA", "b": "001"}, {"a": "null", "b": "1e5"}, {"a": "nan", "b": "x\ny"}, {"a": "", "b": 'say "hi"'},
    ]  # fmt: skip


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_line_ends_inside_a_cell_do_not_depend_on_the_system_that_wrote_it(tmp_path, line_end):
    lines = ["a,b", 'one,"x', "y", "", 'z"', 'two,"a\rb"', ""]
    path = write(tmp_path / "a.csv", line_end.join(lines).encode())
    assert rows_of(path) == [{"a": "one", "b": "x\ny\n\nz"}, {"a": "two", "b": "a\rb"}]


PIECES = [
    b'{"a": 1}',
    b'{"a": "',
    b"\n",
    b"\r\n",
    b"[",
    b"]",
    b"}",
    b",",
    b'"',
    b"\xff",
    b"\xef\xbb\xbf",
    b"NaN",
    b"a,b",
    b"\\ud800",
]


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "txt", "csv.gz"])
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(st.binary(max_size=60), st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join)))
def test_no_bytes_give_anything_but_rows_or_a_data_error(tmp_path, ending, content):
    path = write(tmp_path / f"a.{ending}", content)
    try:
        rows = read(path)
    except DataError as error:
        told = str(error)
        rows = []
    assert all(isinstance(row, dict) for _, row in rows) if rows else f"a.{ending}" in told


@pytest.mark.parametrize("name", [name for name in WRITERS if not name.endswith((".parquet", ".arrow"))])
def test_a_packed_file_gives_the_rows_of_the_file(tmp_path, name):
    WRITERS[name](tmp_path / name)
    packed = tmp_path / f"{name.upper()}.gz"
    packed.write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    found = read(str(packed))
    assert [row for _, row in found] == rows_of(tmp_path / name)
    assert {origin.source for origin, _ in found} == {str(packed)}


def test_what_is_wrong_in_a_packed_file_is_told_of_its_own_lines(tmp_path):
    path = write(tmp_path / "a.jsonl.gz", gzip.compress(b'{"a": 1}\n{"a": \n'))
    with pytest.raises(DataError, match=r"a\.jsonl\.gz, line 2"):
        read(path)
    whole = gzip.compress(json.dumps(ROWS * 500).encode())
    for content in (whole[:-20], b"\x1f\x8b" + b"nonsense" * 9, b"text", whole[:40] + b"\0" * 40 + whole[80:]):
        with pytest.raises(DataError, match="not a whole gzip archive") as caught:
            read(write(tmp_path / "b.json.gz", content))
        assert caught.value.where == str(tmp_path / "b.json.gz")
    with pytest.raises(DataError, match=r"'\.gz'|\.parquet\.gz"):
        read(write(tmp_path / "c.parquet.gz", b""))
    with pytest.raises(DataError, match="has no rows"):
        read(write(tmp_path / "d.csv.gz", b""))

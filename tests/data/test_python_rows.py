"""Rows handed over in Python are the same rows, whatever holds them; what holds none is named."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from tunesmith.data.reading.sources import read
from tunesmith.data.reading.strict_json import DEEPEST, is_deep
from tunesmith.data.types import Origin
from tunesmith.errors import DataError

TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
ROWS = [{"prompt": "a", "n": 1, "talk": TALK}, {"prompt": "b", "n": 2, "talk": TALK[:1]}]


@pytest.mark.parametrize(
    "hold",
    [list, tuple, iter, pd.DataFrame, Dataset.from_list, lambda rows: Dataset.from_list(rows).to_pandas(),
     lambda rows: IterableDataset.from_generator(lambda: iter(rows))],
)  # fmt: skip
def test_rows_are_the_same_whatever_holds_them(hold):
    found = [row for _, row in read(hold(ROWS))]
    assert found == ROWS
    assert all(type(row["n"]) is int and type(row["talk"]) is list for row in found)
    assert [row for _, row in read(hold(ROWS), limit=1)] == ROWS[:1]


def test_what_pandas_has_nothing_for_is_null():
    table = pd.DataFrame({"a": ["x", np.nan, None], "b": [1.5, np.nan, 2], "c": [pd.NaT, pd.Timestamp(0), pd.NA], 0: 1})
    rows = [row for _, row in read(table)]
    assert [row["a"] for row in rows] == ["x", None, None]
    assert [row["b"] for row in rows] == [1.5, None, 2]
    assert [row["c"] is None for row in rows] == [True, False, True]
    assert all("0" in row for row in rows)


def test_what_arrow_fills_with_null_is_not_there_in_a_data_set_either():
    calls = [{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {"y": "w"}}]
    rows = Dataset.from_list([{"m": [{"role": "assistant", "tool_calls": [call]}]} for call in calls])
    found = [row["m"][0]["tool_calls"][0]["arguments"] for _, row in read(rows)]
    assert found == [{"x": 1}, {"y": "w"}]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (DatasetDict(first=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS)), r"first, test.*rows\['first'\]"),
        ({"prompt": ["a"], "completion": ["b"]}, "keys prompt, completion.*dict\\(zip"),
        (7, "int 7"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "one name.*a"),
        (["a row"], "rows, row 1: a row must be a dictionary"),
    ],
)
def test_what_holds_no_rows_is_named(source, says):
    with pytest.raises(DataError, match=f"(?s){says}"):
        read(source)


def test_neither_package_is_imported_for_dictionaries():
    script = (
        "import sys; from tunesmith.data.reading.sources import read; read([{'a': 1}]); print('pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    "wrap", [lambda v: [v], lambda v: (v,), lambda v: {"a": 1, "b": v}, lambda v: [1, "x", v, None]]
)
@pytest.mark.parametrize("inmost", [1, "x", None, [], {}, [1, 2.5, True, "x", None]])
def test_rows_may_be_as_deep_as_the_limit_and_no_deeper(wrap, inmost):
    value = inmost
    for _ in range(DEEPEST - 1 - isinstance(inmost, list | dict)):
        value = wrap(value)
    assert read([{"x": value}]) == [(Origin("rows", 1), {"x": value})]
    with pytest.raises(DataError, match="nested too deeply"):
        read([{"x": wrap(value)}])


def test_long_lists_of_plain_values_are_passed_over_without_a_look_at_each():
    def calls(count):
        """How many functions are called, Python's own among them."""
        row, seen = {"input_ids": list(range(count)), "words": ["x"] * count}, []
        before = sys.getprofile()
        sys.setprofile(lambda frame, event, arg: seen.append(event))
        try:
            assert not is_deep(row)
        finally:
            sys.setprofile(before)
        return len(seen)

    assert calls(4096) == calls(16)

"""A JSON list that is read item by item is what the whole text says, wherever its sections are cut."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.reading import json_list, json_rows
from tunesmith.data.reading.files import read_file
from tunesmith.data.reading.json_list import NoList, items
from tunesmith.data.reading.sources import read
from tunesmith.errors import DataError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60)
@given(value=st.lists(VALUES, max_size=5), indent=st.none() | st.integers(0, 3), is_ascii=st.booleans(), data=st.data())
def test_items_are_those_of_the_whole_text(value, indent, is_ascii, data):
    text = f" \n{json.dumps(value, indent=indent, ensure_ascii=is_ascii)}\r\n".encode()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(json_list, "SECTION_BYTES", data.draw(st.integers(1, 20)))
        assert repr([item.value for item in items(io.BytesIO(text))]) == repr(json.loads(text))
        cut = data.draw(st.integers(0, max(0, len(text.rstrip()) - 1)))
        with pytest.raises(NoList):
            list(items(io.BytesIO(text[:cut])))


@pytest.mark.parametrize("text", ["", "{}", "1", "[1", "[1,", "[1,]", "[,]", "[1 2]", "[1] 2", "[1]]", '["a]', "[tru]"])
def test_what_is_no_list_is_refused(text, monkeypatch):
    for size in (1, 3, 100):
        monkeypatch.setattr(json_list, "SECTION_BYTES", size)
        with pytest.raises(NoList):
            list(items(io.BytesIO(text.encode())))


def test_a_list_is_never_parsed_whole_and_its_broken_rows_are_told(tmp_path, monkeypatch):
    path = tmp_path / "rows.json"
    path.write_text('[{"a": 1},\n {"a": NaN}, {"a": "x"}, 7, {"b": 1, "b": 2}]')
    monkeypatch.setattr(json_rows, "_whole_list", lambda *_: pytest.fail("parsed whole"))
    assert [row for _, row in read_file(path, 1)] == [{"a": 1}]
    with pytest.raises(DataError, match="3 broken rows") as told:
        read(path)
    assert all(f"row {number}: " in str(told.value) for number in (2, 4, 5))

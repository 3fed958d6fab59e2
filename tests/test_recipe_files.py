"""The files that a recipe names: found from where it lies, and every ending that is known can be read."""

from __future__ import annotations

import pytest

from tunesmith.data.reading.files import READERS
from tunesmith.errors import RecipeError
from tunesmith.recipe import load
from tunesmith.recipe_paths import DATA_SUFFIXES


def test_held_out_rows_of_their_own_are_found_beside_the_recipe_with_their_split(tmp_path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "test.jsonl").write_text("{}\n")
    file = tmp_path / "r.yaml"
    for named, found in (("rows:test", f"{tmp_path}/rows:test"), ("rows", f"{tmp_path}/rows"), ("a/b:test", "a/b:test"),
                         (f"{tmp_path}/rows:test", f"{tmp_path}/rows:test")):  # fmt: skip
        for text in (named, "{file: '" + named + "'}"):
            file.write_text(f"model: {{name: a/b}}\ndata:\n  train: c/d\n  held_out: {text}\n")
            held_out = load(file).recipe.data.held_out
            assert (held_out if isinstance(held_out, str) else held_out.file) == found
    for text in ("./rowz:test", "{file: './rowz:test'}"):
        file.write_text(f"model: {{name: a/b}}\ndata:\n  train: c/d\n  held_out: {text}\n")
        with pytest.raises(RecipeError, match=r"there is no \./rowz"):
            load(file)


def test_every_ending_of_data_has_a_reader_and_every_reader_an_ending():
    assert all(name.endswith(DATA_SUFFIXES) for name in READERS)
    assert all(any(name.endswith(suffix) for name in READERS) for suffix in DATA_SUFFIXES)

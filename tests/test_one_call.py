"""Settings of the one call are those of a recipe, however they are written."""

from __future__ import annotations

import pytest

import tunesmith
from tunesmith.errors import DataError, RecipeError

ROWS = [{"prompt": "a", "completion": "b"}]


@pytest.fixture(autouse=True)
def _no_training(monkeypatch):
    monkeypatch.setattr("tunesmith.one_call.train", lambda resolved, **_: resolved.recipe)


def test_a_section_may_be_a_dictionary(tmp_path):
    for more in ({"adapter": {"r": 4}, "data": {"max_length": 9}}, {"adapter__r": 4, "data__max_length": 9}):
        recipe = tunesmith.tune("owner/model", ROWS, adapter__alpha=8, folder=tmp_path, **more)
        adapter, data = recipe.adapter, recipe.data
        assert (adapter.r, adapter.alpha, data.max_length, data.train) == (4, 8, 9, "rows")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"adapter": 4}, "adapter is not a mapping"),
        ({"steps": 3}, "did you mean: train.steps"),
        ({"steps": {"a": 3}}, "did you mean: train.steps"),
        ({"adapter": {"rank": 4}}, "adapter.rank is not a setting"),
    ],
)
def test_what_is_no_setting_is_named(wrong, says):
    with pytest.raises(RecipeError, match=says):
        tunesmith.tune("owner/model", ROWS, **wrong)


@pytest.mark.parametrize("rows", [None, 7, {"prompt": ["a"]}])
def test_what_holds_no_rows_is_named(rows):
    with pytest.raises(DataError, match="rows"):
        tunesmith.tune("owner/model", rows)

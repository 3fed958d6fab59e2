"""What counts as measured."""

from __future__ import annotations

import json

import pytest

from tunesmith.compare.worker import measured

WHOLE = {
    "fingerprint": "f",
    "loss": {"rows": [1, 2], "sum": [3.0, 4.0], "weight": [2, 2]},
    "scores": {"exact": [1.0, 0.0]},
    "forget": {"before": {"sum": [1.0]}, "after": {"sum": [2.0]}},
}


def test_measures_of_the_same_fingerprint_are_not_made_again(tmp_path):
    assert not measured(tmp_path, "f")
    assert measured(tmp_path, None)
    for found in (WHOLE, {"fingerprint": "f"}):
        (tmp_path / "measures.json").write_text(json.dumps(found))
        assert measured(tmp_path, "f")
        assert not measured(tmp_path, "g")


@pytest.mark.parametrize(
    "part",
    [
        {"loss": {"rows": [1, 2], "sum": [3.0, None], "weight": [2, 2]}},
        {"scores": {"exact": [1.0, None]}},
        {"forget": {"before": {"sum": [1.0]}, "after": {"sum": [None]}}},
    ],
)
def test_measures_in_which_a_number_is_missing_are_made_again(tmp_path, part):
    (tmp_path / "measures.json").write_text(json.dumps(WHOLE | part))
    assert not measured(tmp_path, "f")

"""What counts as measured."""

from __future__ import annotations

import json

import pytest

from tunesmith import session
from tunesmith.compare.worker import Order, measured, work

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


def test_a_base_is_asked_in_the_version_that_the_arms_train(tmp_path, monkeypatch):
    class Asked(Exception):
        pass

    def asked(settings, **_):
        raise Asked(settings.name, settings.revision)

    monkeypatch.setattr(session, "load_tokenizer", asked)
    recipe = {"model": {"name": "someone/something", "revision": "v2"}, "data": {"train": str(tmp_path / "rows.jsonl")}}
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    order = Order("base", str(tmp_path / "base"), str(tmp_path), recipe, {}, "here", train=False, measure={"test": "t"})
    with pytest.raises(Asked) as found:
        work(order, lambda said: None)
    assert found.value.args == ("someone/something", "v2")

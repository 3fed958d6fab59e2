"""What is computed before the first step is part of what an arm costs, also where it was in the cache."""

from __future__ import annotations

import json
import time

import pytest
import studies

import tunesmith
from tunesmith.models.policy import Policy
from tunesmith.recipe import from_dict

FEATURES, BLOCKS = 0.4, 0.6
"""Seconds that the frozen model is made to take for each."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    made = studies.make(tmp_path)
    rows = [{"text": f"{'win ' * (i % 3)}number {i}", "label": "spam" if i % 3 else "ham"} for i in range(40)]
    for name, part in (("texts", rows[:28]), ("test", rows[28:])):
        (made / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return made


def test_features_and_stored_states_are_charged_also_to_those_that_find_them(folder, monkeypatch):
    from tunesmith.objectives import features
    from tunesmith.train import frozen

    computed, filled = features._computed, frozen.fill
    calls = []

    def slowly(*arguments):
        calls.append("features")
        time.sleep(FEATURES)
        return computed(*arguments)

    def filling(*arguments):
        calls.append("blocks")
        time.sleep(BLOCKS)
        yield from filled(*arguments)

    monkeypatch.setattr(features, "_computed", slowly)
    monkeypatch.setattr(frozen, "fill", filling)
    values = studies.values(folder, prompting=[], forget=None, seeds=[0], price_per_hour=3600.0)
    values["recipe"]["data"] = {"train": str(folder / "texts.jsonl"), "held_out": str(folder / "test.jsonl")}
    values["recipe"]["objective"] = {"kind": "classify"}
    values["arms"] = {
        "features": {"objective.way": "features", "adapter": {}},
        "svm": {"objective.way": "features", "objective.fit": "svm", "adapter": {}},
        "blocks": {"objective.way": "head", "adapter": {"last_blocks": 1}, "train.cache_frozen": True},
        "lora": {},
    }
    values["arms"]["slower"] = {**values["arms"]["blocks"], "train.learning_rate": 0.001}
    values["test"] = {"rows": str(folder / "test.jsonl"), "score": "label", "gold": "label"}
    found = tunesmith.compare(values, runner=studies.here, quiet=True)
    assert sorted(calls) == ["blocks", "features"]
    arms = found.results["arms"]
    for name, least in (("features", FEATURES), ("svm", FEATURES), ("blocks", BLOCKS), ("slower", BLOCKS)):
        row = arms[name]
        assert row["failed"] == {}
        assert row["preparing_seconds"] >= least
        assert row["price"] == pytest.approx(row["train_seconds"])
        summary = json.loads((found.folder / row["folders"]["0"] / "summary.json").read_text())
        assert summary["preparing_seconds"] == row["preparing_seconds"]
        assert row["train_seconds"] == pytest.approx(summary["train_seconds"] + summary["preparing_seconds"])
    assert arms["lora"]["preparing_seconds"] < 0.1


def test_reference_log_probabilities_are_counted_and_remembered(folder, monkeypatch):
    original = Policy.reference
    rows = [{"prompt": f"what is {i}", "chosen": f"it is {i}", "rejected": "no"} for i in range(6)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = []

    def slowly(self):
        asked.append(1)
        time.sleep(0.3)
        return original(self)

    monkeypatch.setattr(Policy, "reference", slowly)
    for name in ("first", "second"):
        recipe = {
            "model": {"name": str(folder / "model"), "dtype": "float32", "device": "cpu"},
            "data": {"train": str(folder / "pairs.jsonl")},
            "objective": {"kind": "preference"},
            "train": {"steps": 2, "batch_size": 2},
            "output": {"folder": str(folder / name)},
        }
        before = len(asked)
        tunesmith.train(from_dict(recipe), quiet=True)
        assert (len(asked) > before) == (name == "first")
        assert json.loads((folder / name / "summary.json").read_text())["preparing_seconds"] >= 0.3

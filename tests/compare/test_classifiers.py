"""Studies in which a head says what a text is, beside a model that says it in words."""

from __future__ import annotations

import json

import pytest
import studies

import tunesmith
from tunesmith import inference
from tunesmith.errors import RecipeError, TunesmithError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = studies.make(tmp_path_factory.mktemp("studies"))
    rows = [{"text": f"{'win ' * (i % 3)}number {i}", "label": "spam" if i % 3 else "ham"} for i in range(40)]
    for name, part in (("texts", rows[:28]), ("test", rows[28:])):
        (made / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return made


def values(home, **changes):
    made = studies.values(home)
    made["recipe"]["data"] = {"train": str(home / "texts.jsonl"), "held_out": 6}
    made["recipe"]["objective"] = {"kind": "classify"}
    made["arms"] = {
        "lora": {},
        "features": {"objective.way": "features", "adapter": {}},
        "words": {
            "objective": {"kind": "sft"},
            "data.format": {"prompt": "{{ text }}", "answer": "{{ label }}"},
        },
    }
    made["test"] = {"rows": str(home / "test.jsonl"), "score": "label", "gold": "label", "max_new_tokens": 4}
    del made["forget"]
    return {**made, "prompting": [0], "folder": str(home / "study"), **changes}


def test_a_head_and_words_are_compared_on_the_same_rows(folder, capsys):
    found = tunesmith.compare(values(folder), runner=studies.here, quiet=True).results
    arms = found["arms"]
    assert list(arms) == ["lora", "features", "words", "no tuning, zero-shot"]
    for name, row in arms.items():
        assert row["failed"] == {}, name
        assert set(row["figures"]) == {"label"}, name  # losses of words and of classes are no one figure
        assert row["figures"]["label"]["items"] == 12
    run = folder / "study" / arms["lora"]["folders"]["0"]
    told = inference.evaluate(run, data=str(folder / "test.jsonl"))
    wanted = told.get("accuracy at the thresholds", told["accuracy"])
    assert arms["lora"]["figures"]["label"]["by_seed"]["0"] == pytest.approx(wanted)
    measured = json.loads((run / "measures.json").read_text())
    assert sum(measured["loss"]["sum"]) / 12 == pytest.approx(told["loss"], abs=1e-5)
    capsys.readouterr()


def test_classifiers_alone_have_losses(folder):
    arms = {"lora": {}, "dora": {"adapter.method": "dora"}}
    made = values(folder, arms=arms, prompting=[], folder=str(folder / "alone"), seeds=[0, 1])
    figures = tunesmith.compare(made, runner=studies.here, quiet=True).results["arms"]["dora"]["figures"]
    assert set(figures) == {"label", "loss", "held_out_loss"}


def test_what_a_head_cannot_be_asked_is_refused(folder):
    made = values(folder)
    for wrong, said in (
        ({"test": {**made["test"], "score": "f1"}}, "right or wrong"),
        ({"forget": {"text": str(folder / "text.txt")}}, "general text"),
        ({"arms": {"lora": {}}, "prompting": [0]}, "asked in words"),
        ({"arms": {"lora": {}, "pairs": {"objective.kind": "preference"}}, "prompting": []}, "no figure in common"),
    ):
        with pytest.raises(RecipeError, match=said):
            tunesmith.compare(values(folder, folder=str(folder / "never"), **wrong), runner=studies.here, quiet=True)


def test_an_arm_whose_rows_cannot_be_read_is_named_before_any_training(folder):
    made = values(folder, folder=str(folder / "never"))
    del made["arms"]["words"]["data.format"]
    with pytest.raises(TunesmithError, match=r"(?s)words|labels"):
        tunesmith.compare(made, runner=studies.here, quiet=True)
    assert not list((folder / "never").rglob("metrics.jsonl"))
    made = values(folder, folder=str(folder / "never"))
    made["arms"]["words"]["adapter.targets"] = "no_such_layer"
    with pytest.raises(TunesmithError, match="no_such_layer"):
        tunesmith.compare(made, runner=studies.here, quiet=True)

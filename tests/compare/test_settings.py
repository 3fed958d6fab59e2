"""A study is strict: every fault is said before any work, with its line and what was meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import studies

from tunesmith.compare import settings
from tunesmith.compare.checks import plan
from tunesmith.compare.grid import arms_of, cell, resolve
from tunesmith.errors import DataError, RecipeError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return studies.make(tmp_path_factory.mktemp("studies"))


def written(folder, text):
    path = folder / "study.yaml"
    path.write_text(text.replace("FOLDER", str(folder / "out")))
    return path


def fault(folder, old, new, kind=RecipeError):
    """What is said of the study with `old` replaced by `new`."""
    assert old in studies.YAML
    path = written(folder, studies.YAML.replace(old, new))
    with pytest.raises(kind) as raised:
        plan(settings.load(path))
    return str(raised.value)


def test_a_misspelt_key_is_refused_with_its_line_and_what_was_meant(folder):
    said = fault(folder, "seeds: [0]", "seed: [0]")
    assert "study.yaml, line 9: seed is not a setting of a study" in said
    assert "did you mean: seeds" in said


def test_a_misspelt_key_of_the_test(folder):
    said = fault(folder, "  rows: 10", "  rows: 10\n  scores: f1")
    assert "test.scores is not a setting of test" in said
    assert "did you mean: score" in said


@pytest.mark.parametrize(
    ("new", "said"),
    [
        ("adapter.method: doora", ["line 8: adapter.method: there is no method 'doora'", "did you mean: dora"]),
        ("adapter.rank: 4", ["line 8: adapter.rank is not a setting of lora", "did you mean: r"]),
        ("adapter.r: none", ["line 8: adapter.r cannot be"]),
        ("train.seed: 3", ["line 8: train.seed is not an arm's to choose", "the study's seeds"]),
        ("lerning_rate: 3", ["line 8: 'lerning_rate' does not name a setting"]),
        ("adapter: 3", ["line 8: adapter is a section"]),
        ("train.epochs: 1", ["train.epochs stands beside steps"]),
    ],
)
def test_what_is_wrong_with_an_arm_is_said_at_its_line(folder, new, said):
    told = fault(folder, "adapter.method: dora", new)
    assert all(words in told for words in said), told
    assert "arm: dora" in told or "an arm's" in told


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seeds: [0]", "seeds: [0, 0]", "seeds names one twice"),
        ("seeds: [0]", "seeds: []", "seeds cannot be []"),
        ("seeds: [0]", "seeds: [0]\nbaseline: lor", "did you mean: lora"),
        ("seeds: [0]", "seeds: [0]\nlearning_rates: [0.1]", "learning_rates is no choice"),
        ("seeds: [0]", "seeds: [0]\nlearning_rates: [0.1, 1]\ntuning_seed: 0", "tuning_seed is one of the seeds"),
        ("  rows: 10", "  rows: 10\n  score: f2", "no scorer is called f2"),
        ("  rows: 10", "  rows: nowhere.jsonl", "test.rows: there is no nowhere.jsonl"),
        ("prompting: []", "prompting: []\nforget: {text: gone.txt}", "forget.text: there is no gone.txt"),
        ("train: rows.jsonl", "train: gone.jsonl", "data.train: there is no gone.jsonl"),
        ("steps: 4", "stepps: 4", "did you mean: steps"),
        ("recipe:\n", "recipe: here.yaml\nold:\n", "old is not a setting of a study"),
    ],
)
def test_faults_of_a_study(folder, old, new, said):
    assert said in fault(folder, old, new)


def test_learning_rates_need_rows_to_choose_by(folder):
    given = ["recipe.data.held_out=", "recipe.train.evaluate_every=", "learning_rates=[0.1, 1]"]
    with pytest.raises(RecipeError, match="learning_rates has no rows to choose by"):
        plan(settings.load(written(folder, studies.YAML), given))


def test_a_rate_of_an_arm_s_own_beside_the_grid(folder):
    said = fault(
        folder, "adapter.method: dora", "train.learning_rate: 1}\nlearning_rates: [0.1, 1]\nforget: {text: text.txt"
    )
    assert "train.learning_rate is given beside learning_rates" in said


def test_a_score_that_the_rows_do_not_fit_is_said_before_any_model_loads(folder, monkeypatch):
    monkeypatch.setattr("tunesmith.assemble.load_model", None)
    (folder / "words.jsonl").write_text(json.dumps({"prompt": "how many", "completion": "many"}) + "\n")
    assert "no number to compare with" in fault(
        folder, "  rows: 10", "  rows: words.jsonl\n  score: number", kind=DataError
    )
    assert "databases" in fault(folder, "  rows: 10", "  rows: words.jsonl\n  score: sql", kind=DataError)
    assert "no column 'right'" in fault(folder, "  rows: 10", "  rows: 10\n  score: f1\n  gold: right", kind=DataError)


def test_more_rows_for_the_test_than_there_are(folder):
    assert "nothing is left to train on" in fault(folder, "  rows: 10", "  rows: 40", kind=DataError)


def test_overrides_reach_the_study(folder):
    study = settings.load(written(folder, studies.YAML), ["seeds=[4, 5]", "test.limit=3", "recipe.train.steps=7"])
    assert study.settings.seeds == (4, 5)
    assert study.settings.test.limit == 3
    assert resolve(study, arms_of(study)[0]).recipe.train.steps == 7
    with pytest.raises(RecipeError, match=r"did you mean: shared.train.steps"):
        settings.load(written(folder, studies.YAML), ["train.steps=3"])


def test_a_grid_is_every_combination(folder):
    values = studies.values(folder, vary={"adapter.r": [2, 4], "train.neftune_alpha": [None, 5]})
    names = [arm.name for arm in arms_of(settings.from_dict(values))]
    assert names[:4] == [f"lora, r {r}, neftune_alpha {a}" for r in (2, 4) for a in ("null", "5")]
    assert len(names) == 8
    alone = studies.values(folder, arms={}, vary={"adapter.method": ["lora", "vera"]})
    assert [arm.name for arm in arms_of(settings.from_dict(alone))] == ["lora", "vera"]


def test_a_section_in_whole_replaces_the_recipe_s(folder):
    values = studies.values(folder)
    values["recipe"]["adapter"]["alpha"] = 4
    values["arms"]["vera"] = {"adapter": {"method": "vera", "r": 8}}
    study = settings.from_dict(values)
    plain = resolve(study, arms_of(study)[2]).recipe.explicit()["adapter"]
    assert plain == {"method": "vera", "r": 8}


def test_a_cell_is_known_by_what_decides_its_weights(folder):
    study = settings.from_dict(studies.values(folder))
    lora, dora = arms_of(study)
    first = cell(study, lora, 0).fingerprint
    assert cell(study, lora, 0).fingerprint == first
    others = [
        cell(study, dora, 0).fingerprint,
        cell(study, lora, 1).fingerprint,
        cell(study, lora, 0, learning_rate=0.5).fingerprint,
    ]
    assert len({first, *others}) == 4
    changed = studies.values(folder)
    changed["recipe"]["train"]["save_every"] = 1
    changed["folder"] = str(folder / "elsewhere")
    assert cell(settings.from_dict(changed), lora, 0).fingerprint == first
    changed["recipe"]["train"]["steps"] = 5
    assert cell(settings.from_dict(changed), lora, 0).fingerprint != first
    rows = folder / "rows.jsonl"
    before = rows.read_text()
    rows.write_text(before + json.dumps({"prompt": "and", "completion": "so"}) + "\n")
    assert cell(study, lora, 0).fingerprint != first
    rows.write_text(before)
    assert cell(study, lora, 0).fingerprint == first


def test_a_budget_of_steps_in_tokens_is_known_before_any_model_loads(folder):
    values = studies.values(folder)
    values["recipe"]["train"] = {"epochs": 2, "batch_tokens": 100000, "evaluate_every": "1 epoch"}
    assert plan(settings.from_dict(values)).baseline == "lora"


def test_the_test_s_rows_are_taken_out_of_the_training(folder):
    planned = plan(settings.from_dict(studies.values(folder)))
    train, test = (Path(path).read_text().splitlines() for path in (planned.train_rows, planned.wanted.test))
    assert len(test) == 10
    assert sorted(train + test) == sorted((folder / "rows.jsonl").read_text().splitlines())


def test_a_study_of_several_sources_knows_them_all_and_wants_a_test_of_its_own(folder):
    values, more = studies.values(folder), folder / "more.jsonl"
    more.write_text(json.dumps({"prompt": "and", "completion": "so"}) + "\n")
    values["recipe"]["data"]["train"] = [{"path": str(folder / "rows.jsonl")}, {"path": str(more), "weight": 2}]
    study = settings.from_dict(values)
    with pytest.raises(
        RecipeError, match=r"test\.rows takes rows away from the recipe's file, and data\.train is a list"
    ):
        plan(study)
    lora = arms_of(study)[0]
    first = cell(study, lora, 0).fingerprint
    more.write_text(json.dumps({"prompt": "and", "completion": "other"}) + "\n")
    assert cell(study, lora, 0).fingerprint != first
    values["test"]["rows"] = str(more)
    assert plan(settings.from_dict(values)).train_rows is None


def test_the_schema_knows_every_setting_and_the_recipe():
    schema = settings.json_schema()
    assert set(schema["properties"]) == set(settings.StudySettings.model_fields)
    assert schema["additionalProperties"] is False
    assert {"model", "data", "adapter", "train"} <= set(schema["$defs"]["Recipe"]["properties"])

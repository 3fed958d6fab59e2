"""Studies of arms that learn from pairs, from rewards, from a teacher: what stands beside what, and what does not."""

from __future__ import annotations

import json

import pytest
import studies

import tunesmith
from tunesmith import inference
from tunesmith.errors import DataError, RecipeError

REWARD = """
def short(completions, **kwargs):
    return [-float(len(text)) for text in completions]


def long(completions, answer, **kwargs):
    return [float(len(text)) for text in completions]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = studies.make(tmp_path_factory.mktemp("studies"))
    pairs = [{"prompt": f"what is {i}", "chosen": f"it is {i * i}", "rejected": f"no {i} idea"} for i in range(30)]
    prompts = [{"prompt": f"what is {i}", "answer": str(i)} for i in range(24)]
    for name, rows in (("pairs", pairs), ("prompts", prompts)):
        (made / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (made / "mine.py").write_text(REWARD)
    return made


def values(home, rows, objective, **changes):
    made = studies.values(home, prompting=[], forget=None, test={"rows": 8}, folder=str(home / "study"))
    made["recipe"]["data"] = {"train": str(home / rows), "held_out": 5}
    made["recipe"]["objective"] = objective
    del made["price_per_hour"]
    return made | changes


def figures(found, name):
    row = found["arms"][name]
    assert row["failed"] == {}, row["failed"]
    return row["figures"]


def test_losses_of_pairs_stand_apart_and_their_order_side_by_side(folder, capsys):
    arms = {
        "dpo": {},
        "dpo, weaker": {"objective.beta": 0.01},
        "dpo, r 3": {"adapter.r": 3},
        "orpo": {"objective.loss": "orpo"},
        "kto": {"objective.loss": "kto"},
        "full": {"adapter": {"method": "full"}, "objective.loss": "simpo"},
        "reward": {"objective": {"kind": "reward"}},
    }
    made = values(folder, "pairs.jsonl", {"kind": "preference"}, arms=arms, folder=str(folder / "pairs"))
    found = tunesmith.compare(made, runner=studies.here, quiet=True).results
    assert list(found["arms"]) == list(arms)  # without tuning, no reward is anything but 0
    assert found["primary"] == "pairs"
    for name in arms:
        assert figures(found, name)["pairs"]["items"] == 8, name
    compared = {(one["arm"], one["measure"]) for one in found["comparisons"]}
    assert {arm for arm, measure in compared if measure == "pairs"} == set(arms) - {"dpo"}
    assert not {measure for _, measure in compared} - {"pairs"}  # of two kinds: only what both have
    run = folder / "pairs" / found["arms"]["dpo"]["folders"]["0"]
    told = inference.evaluate(run, data=str(folder / "pairs" / "data" / "test.jsonl"))
    assert figures(found, "dpo")["pairs"]["by_seed"]["0"] == pytest.approx(told["rewards/accuracies"])
    measured = json.loads((run / "measures.json").read_text())
    assert sum(measured["loss"]["sum"]) / 8 == pytest.approx(told["loss"], abs=1e-5)
    assert measured["left_out"] == 0
    capsys.readouterr()


def test_a_loss_is_compared_where_the_objective_is_the_same(folder):
    arms = {
        "dpo": {},
        "dpo, r 3": {"adapter.r": 3},
        "online": {"objective.reference": "online"},
        "weaker": {"objective.beta": 0.01},
        "sum": {"objective.loss": "cpo"},
    }
    made = values(folder, "pairs.jsonl", {"kind": "preference"}, arms=arms, seeds=[0], folder=str(folder / "alike"))
    found = tunesmith.compare(made, runner=studies.here, quiet=True).results
    by_loss = {one["arm"] for one in found["comparisons"] if one["measure"] == "loss"}
    assert by_loss == {"dpo, r 3", "online"}
    assert found["apart"] == {"loss": ["weaker", "sum"], "held_out_loss": ["weaker", "sum"]}
    assert any("settings of the objective" in note and "weaker, sum" in note for note in found["notes"])


def test_answers_of_pairs_are_scored_beside_the_base_and_beside_arms_that_learn_answers(folder):
    arms = {
        "dpo": {},
        "answers": {
            "objective": {"kind": "sft"},
            "data.format": {"prompt": "{{ prompt }}", "answer": "{{ chosen }}"},
        },
    }
    made = values(folder, "pairs.jsonl", {"kind": "preference"}, arms=arms, seeds=[0], prompting=[0, 2])
    made |= {"test": {"rows": 8, "score": "f1", "max_new_tokens": 4}, "folder": str(folder / "answers")}
    made["forget"] = {"text": str(folder / "text.txt")}
    found = tunesmith.compare(made, runner=studies.here, quiet=True).results
    assert list(found["arms"]) == ["dpo", "answers", "no tuning, zero-shot", "no tuning, 2-shot"]
    for name in found["arms"]:
        assert set(figures(found, name)) == {"f1"}, name
    assert found["arms"]["dpo"]["forgetting"]["change"]["value"] != 0


def test_what_completions_earn_is_compared_also_with_the_base_and_never_by_other_rewards(folder):
    mine = folder / "mine.py"
    policy = {"kind": "policy", "rewards": [f"{mine}:short"], "num_generations": 2, "max_completion_length": 5}
    arms = {"grpo": {}, "rloo": {"objective.preset": "rloo"}, "long": {"objective.rewards": [f"{mine}:long"]}}
    made = values(folder, "prompts.jsonl", policy, arms=arms, prompting=[0], folder=str(folder / "rewards"))
    made["learning_rates"] = [1e-3, 1e-2]
    found = tunesmith.compare(made, runner=studies.here, quiet=True).results
    assert found["primary"] == "reward"
    assert list(found["arms"]) == ["grpo", "rloo", "long", "no tuning, zero-shot"]
    for name, sign in (("grpo", -1), ("rloo", -1), ("long", 1), ("no tuning, zero-shot", -1)):
        own = figures(found, name)["reward"]
        assert own["items"] == 8, name
        assert sign * own["value"] >= 0, name
    assert {one["arm"] for one in found["comparisons"]} == {"rloo", "no tuning, zero-shot"}
    assert found["apart"] == {"reward": ["long"]}
    assert not any("Not the same rows" in note for note in found["notes"])  # their lengths are the models' own
    run = folder / "rewards" / found["arms"]["grpo"]["folders"]["1"]
    told = inference.evaluate(run, data=str(folder / "rewards" / "data" / "test.jsonl"))
    assert figures(found, "grpo")["reward"]["by_seed"]["1"] == pytest.approx(told["reward"])


def test_a_student_of_a_teacher_stands_beside_one_of_rows_by_the_same_loss(folder):
    arms = {"rows": {}, "teacher": {"objective": {"kind": "distill", "teacher": str(folder / "model")}}}
    made = values(folder, "rows.jsonl", {"kind": "sft"}, arms=arms, seeds=[0], folder=str(folder / "teacher"))
    found = tunesmith.compare(made, runner=studies.here, quiet=True).results
    for name in arms:
        assert set(figures(found, name)) == {"loss"}, name
    assert {one["arm"] for one in found["comparisons"]} == {"teacher"}


def test_a_base_that_goes_on_from_an_adapter_is_measured_with_it(folder):
    mine = folder / "mine.py"
    policy = {"kind": "policy", "rewards": [f"{mine}:long"], "num_generations": 2, "max_completion_length": 5}
    first = tunesmith.compare(
        values(folder, "rows.jsonl", {"kind": "sft"}, arms={"lora": {}}, seeds=[0], folder=str(folder / "first")),
        runner=studies.here,
        quiet=True,
    ).results
    adapter = folder / "first" / first["arms"]["lora"]["folders"]["0"] / "adapter"
    made = values(folder, "prompts.jsonl", policy, arms={"grpo": {}}, seeds=[0], prompting=[0])
    made["recipe"]["model"]["adapter"] = str(adapter)
    del made["recipe"]["adapter"]
    made["folder"] = str(folder / "goes on")
    found = tunesmith.compare(made, runner=studies.here, quiet=True).results
    told = inference.evaluate(
        folder / "model",
        adapter=str(adapter),
        recipe=folder / "goes on" / found["arms"]["grpo"]["folders"]["0"] / "recipe.yaml",
        data=str(folder / "goes on" / "data" / "test.jsonl"),
    )
    assert figures(found, "no tuning, zero-shot")["reward"]["value"] == pytest.approx(told["reward"])


PREFERENCE, REWARDS = {"kind": "preference"}, {"kind": "reward"}
SFT = {"objective": {"kind": "sft"}, "data.format": {"prompt": "{{ prompt }}", "answer": "{{ chosen }}"}}


@pytest.mark.parametrize(
    ("objective", "changes", "said"),
    [
        (REWARDS, {"test": {"rows": 8, "score": "f1"}}, "writes no answers"),
        (REWARDS, {"forget": {"text": "text.txt"}}, "general text"),
        (REWARDS, {"prompting": [0]}, "asked in words"),
        (PREFERENCE, {"prompting": [2]}, "no answer of the test is scored"),
        (PREFERENCE, {"arms": {"dpo": {}, "sft": SFT}}, "test.score"),
        (REWARDS, {"arms": {"reward": {}, "sft": SFT}}, "no figure in common"),
        (PREFERENCE, {"arms": {"dpo": {}, "classes": {"objective": {"kind": "classify"}}}}, "no figure in common"),
    ],
)
def test_what_no_figure_could_tell_is_refused(folder, objective, changes, said):
    made = values(folder, "pairs.jsonl", objective, arms={"one": {}}, folder=str(folder / "never"))
    with pytest.raises(RecipeError, match=said):
        tunesmith.compare(made | changes, runner=studies.here, quiet=True)


def test_a_test_without_pairs_is_refused_before_any_training(folder):
    single = [{"prompt": f"what is {i}", "completion": f"it is {i}", "label": i % 2 == 0} for i in range(20)]
    (folder / "single.jsonl").write_text("".join(json.dumps(row) + "\n" for row in single))
    kto = {"kind": "preference", "loss": "kto"}
    made = values(folder, "single.jsonl", kto, arms={"kto": {}}, folder=str(folder / "never"))
    with pytest.raises((RecipeError, DataError), match="pair"):
        tunesmith.compare(made, runner=studies.here, quiet=True)
    assert not (folder / "never" / "cells").exists()

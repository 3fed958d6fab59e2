"""Whole runs of online learning: rewards in a file, resumed bit for bit, and what a reward does wrong loses nothing."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from small_run import make_model, recipe

from tunesmith import inference
from tunesmith.errors import DataError, RecipeError
from tunesmith.events import StepDone
from tunesmith.recipe import from_dict
from tunesmith.run import train

REWARD = """
def spread(completions, answer, **kwargs):
    return [sum(map(ord, text)) % 11 / 11 for text in completions]


def late(completions, answer, **kwargs):  # half of the prompts have nothing to teach
    return [value * (int(row) % 2) for row, value in zip(answer, spread(completions, answer))]


def watching(completions, answer, trainer_state, **kwargs):
    with open(__file__ + ".seen", "a") as file:
        file.write(f"{trainer_state.global_step} ")
    return spread(completions, answer)


def nothing(completions, answer, **kwargs):
    return [None] * len(completions)


calls = 0


def breaks(completions, **kwargs):
    global calls
    calls += 1
    return [float("nan") if calls > 3 else float(len(text) % 3) for text in completions]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"what is {i}", "answer": str(i)}) + "\n" for i in range(9)))
    (tmp_path / "mine.py").write_text(REWARD)
    return path


def values(model, prompts, folder, **objective):
    made = recipe(model, prompts, folder)
    made["adapter"]["dropout"] = 0.0
    made["objective"] = {
        "kind": "policy",
        "rewards": [f"{prompts.parent / 'mine.py'}:spread"],
        "num_generations": 3,
        "max_completion_length": 6,
        **objective,
    }
    made["train"] |= {"steps": 5, "batch_size": 2, "evaluate_every": 2}
    del made["train"]["epochs"]
    return made


def steps_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "step"]


CASES = {
    "grpo": {},
    "several updates and a reference": {"num_iterations": 3, "beta": 0.1},
    "rloo": {"preset": "rloo"},
    "several draws": {"preset": "dapo", "num_iterations": 2, "rewards": ["mine.py:late"]},
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_stopped_and_resumed_is_the_unbroken_run(model, prompts, tmp_path, case):
    train(from_dict(values(model, prompts, tmp_path / "a", **CASES[case]), folder=tmp_path), quiet=True)
    stopped = from_dict(values(model, prompts, tmp_path / "b", **CASES[case]), folder=tmp_path)
    train(stopped, quiet=True, listeners=[lambda e: "stop" if isinstance(e, StepDone) and e.step == 2 else None])
    train(stopped, resume=True, quiet=True)
    told = [[(line["loss"], line["metrics"]) for line in steps_of(tmp_path / name)] for name in "ab"]
    assert told[0] == told[1]
    assert len(told[0]) == 5
    if case == "several draws":
        assert max(metrics["groups/draws"] for _, metrics in told[0]) > 1
    one, other = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in "ab")
    assert all(torch.equal(other[name], tensor) for name, tensor in one.items())


def test_rewards_are_told_of_updates_in_training_and_evaluation(model, prompts, tmp_path):
    seen = prompts.parent / "mine.py.seen"
    watching = {"rewards": [f"{prompts.parent / 'mine.py'}:watching"], "num_iterations": 2}
    train(from_dict(values(model, prompts, tmp_path / "a", **watching)), quiet=True)
    assert seen.read_text().split() == ["0", "2", "2", "4", "4", "5"]  # rollout, evaluation, and so on
    seen.unlink()
    broken = from_dict(values(model, prompts, tmp_path / "b", **watching))
    train(broken, quiet=True, listeners=[lambda e: "stop" if isinstance(e, StepDone) and e.step == 3 else None])
    seen.unlink()
    train(broken, resume=True, quiet=True)
    assert seen.read_text().split() == ["4", "4", "5"]


def test_what_is_told_of_a_step(model, prompts, tmp_path, capsys):
    trained = train(from_dict(values(model, prompts, tmp_path / "a")))
    metrics = steps_of(tmp_path / "a")[0]["metrics"]
    assert {
        "reward",
        "reward_std",
        "entropy",
        "sampling_gap",
        "completions/mean_length",
        "frac_reward_zero_std",
    } <= set(metrics)
    assert metrics["rewards/mine.py:spread"] == pytest.approx(metrics["reward"])
    assert metrics["sampling_gap"] < 1e-3
    said = capsys.readouterr().err
    assert "grpo: 2 prompts x 3 completions a step" in said
    lines = said.splitlines()
    header = next(place for place, line in enumerate(lines) if "prompt -> answer" in line)
    assert lines[header].split() == ["reward", "tokens", "prompt", "->", "answer"]
    table = lines[header + 1 : header + 6]
    earned = [float(line.split()[0]) for line in table]
    assert len(earned) == 5
    assert earned == sorted(earned, reverse=True)
    assert all(" -> " in line for line in table)
    found = inference.evaluate(tmp_path / "a")
    assert found["reward"] == pytest.approx(trained.ended.best_metrics["reward"], abs=1e-6)
    capsys.readouterr()


def test_a_reward_that_goes_wrong_is_named_and_loses_nothing(model, prompts, tmp_path):
    made = values(model, prompts, tmp_path / "a", rewards=[f"{prompts.parent / 'mine.py'}:breaks"])
    del made["train"]["evaluate_every"]
    made["data"]["held_out"] = None
    with pytest.raises(DataError, match="gave no finite number") as caught:
        train(from_dict(made), quiet=True)
    assert "prompts.jsonl, row" in str(caught.value)
    assert json.loads((tmp_path / "a" / "summary.json").read_text())["step"] == 3
    assert (tmp_path / "a" / "checkpoints" / "step-000003").is_dir()


def test_a_reward_that_is_mended_judges_on_and_that_is_told(model, prompts, tmp_path, capsys):
    made = values(model, prompts, tmp_path / "a", rewards=[f"{prompts.parent / 'mine.py'}:breaks"])
    del made["train"]["evaluate_every"]
    made["data"]["held_out"] = None
    with pytest.raises(DataError, match="gave no finite number"):
        train(from_dict(made), quiet=True)
    (prompts.parent / "mine.py").write_text(REWARD.replace("calls > 3", "False"))
    assert train(from_dict(made), resume=True, quiet=True).ended.step == 5
    assert (tmp_path / "a" / "metrics.jsonl").read_text().count("from this step on the new one judges") == 1


def test_a_column_that_no_row_has_is_refused_before_the_model_loads(model, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr("tunesmith.assemble.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(DataError, match=r"(?s)no row has the column 'gold'.*answer.*objective\.gold"):
        train(from_dict(values(model, prompts, tmp_path / "a", rewards=["exact"], gold="gold")), quiet=True)


def test_what_cannot_be_is_refused_before_the_model_loads(model, prompts, tmp_path):
    for rewards, says in ((["nothing.py:f"], "there is no file"), (["exakt"], "there is no reward")):
        with pytest.raises(RecipeError, match=says):
            train(from_dict(values(model, prompts, tmp_path / "a", rewards=rewards)), quiet=True)


def test_the_file_of_a_reward_is_found_from_the_recipes_folder(model, prompts, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    made = values(model, prompts, tmp_path / "a", rewards=["mine.py:spread"])
    resolved = from_dict(made, folder=tmp_path)
    assert resolved.recipe.objective.rewards == (f"{tmp_path / 'mine.py'}:spread",)
    assert train(resolved, quiet=True).ended.step == 5


def test_a_template_writes_the_prompt_and_rewards_get_the_columns(model, prompts, tmp_path):
    rows = [{"question": f"{i} + {i}", "answer": str(2 * i)} for i in range(6)]
    made = values(model, prompts, tmp_path / "a", rewards=["number"])
    made["data"] = {"train": "rows", "format": {"prompt": "Reckon {{ question }}"}}
    del made["train"]["evaluate_every"]
    assert train(from_dict(made), rows=rows, quiet=True).ended.step == 5


def test_a_run_that_no_reward_judges_ends_and_says_so(model, prompts, tmp_path, capsys):
    silent = [f"{prompts.parent / 'mine.py'}:nothing"]
    made = values(model, prompts, tmp_path / "a", rewards=silent)
    made["train"]["steps"] = 7
    with pytest.raises(DataError, match=r"(?s)no reward applied.*5 times in a row.*gave None"):
        train(from_dict(made), quiet=True)
    told = (tmp_path / "a" / "metrics.jsonl").read_text()
    assert "nothing is learned from it" in told
    short = values(model, prompts, tmp_path / "b", rewards=silent)
    short["train"]["steps"] = 3
    train(from_dict(short))
    assert "no reward applied to any held-out prompt" in "".join(capsys.readouterr())

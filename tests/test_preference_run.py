"""Whole runs of preference tuning: resumed bit for bit, from an adapter, and read back."""

from __future__ import annotations

import json
import math
from itertools import islice

import pytest
import torch
from safetensors.torch import load_file
from small_run import make_model, recipe

import tunesmith
from tunesmith import inference
from tunesmith.errors import DataError, RecipeError
from tunesmith.events import StepDone
from tunesmith.objectives.preference import PreferenceTuning
from tunesmith.progress import Progress
from tunesmith.recipe import from_dict
from tunesmith.run import built, read_rows, train


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [{"prompt": f"what is {i}", "chosen": f"it is {i * i}", "rejected": f"no {i} idea"} for i in range(11)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def values(model, pairs, folder, objective=None, **keys):
    made = recipe(model, pairs, folder)
    made["adapter"]["dropout"] = 0.0
    made["objective"] = {"kind": "preference", **(objective or {})}
    made["train"] |= {"steps": 6, "batch_size": 3} | keys
    del made["train"]["epochs"]
    return made


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder):
    return [line["loss"] for line in metrics(folder) if line["event"] == "step"]


@pytest.mark.parametrize("loss", ["sigmoid", "kto", "orpo", "simpo"])
def test_a_run_stopped_and_resumed_is_the_unbroken_run(model, pairs, tmp_path, loss):
    whole = train(from_dict(values(model, pairs, tmp_path / "a", {"loss": loss})), quiet=True)
    stopped = from_dict(values(model, pairs, tmp_path / "b", {"loss": loss}))
    train(stopped, quiet=True, listeners=[lambda e: "stop" if isinstance(e, StepDone) and e.step == 4 else None])
    train(stopped, resume=True, quiet=True)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert len(losses(tmp_path / "a")) == 6
    one, other = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in "ab")
    assert all(torch.equal(other[name], tensor) for name, tensor in one.items())
    assert whole.session.sets.keys() == {"trained"}


@pytest.mark.parametrize("loss", ["simpo", "cpo", "kto", "apo_down"])
def test_how_likely_the_chosen_answers_were_at_first_is_known_to_a_resumed_run(
    model, pairs, tmp_path, monkeypatch, loss
):
    """Where no reference is kept: what a stopped run says at its end is of its first step, not of where it went on."""
    objective = {"loss": loss} | ({"reference": "online"} if loss in ("kto", "apo_down") else {})
    at_the_end, conclude = [], PreferenceTuning.conclude

    def watched(self, *given):
        at_the_end.append((self._before, self._last["logps/chosen"], conclude(self, *given)))
        return at_the_end[-1][-1]

    monkeypatch.setattr(PreferenceTuning, "conclude", watched)
    resolved = {
        name: from_dict(values(model, pairs, tmp_path / name, objective, learning_rate=0.2, publish="last"))
        for name in "ab"
    }
    train(resolved["a"], quiet=True)
    stop = lambda e: "stop" if isinstance(e, StepDone) and e.step == 4 else None  # noqa: E731
    train(resolved["b"], quiet=True, listeners=[stop])
    train(resolved["b"], quiet=True, resume=True)
    whole, stopped, resumed = at_the_end
    assert whole == resumed
    assert whole[0] == stopped[0]
    assert whole[1] != stopped[1]
    assert abs(whole[0]["chosen"] - whole[1]) > 0.5
    assert bool(whole[2]) == (whole[1] < whole[0]["chosen"])


def test_the_first_step_is_ln_2_from_a_base_and_from_a_trained_adapter(model, pairs, tmp_path):
    train(from_dict(values(model, pairs, tmp_path / "a")), quiet=True)
    assert losses(tmp_path / "a")[0] == pytest.approx(math.log(2), abs=1e-6)
    for name, reference in (("b", "precomputed"), ("c", "online")):
        going_on = values(model, pairs, tmp_path / name, {"reference": reference})
        going_on["model"]["adapter"] = str(tmp_path / "a")
        del going_on["adapter"]
        trained = train(from_dict(going_on), quiet=True)
        assert losses(tmp_path / name)[0] == pytest.approx(math.log(2), abs=1e-6)
        assert trained.session.sets.keys() == {"trained"}
    assert losses(tmp_path / "b") == pytest.approx(losses(tmp_path / "c"), abs=1e-6)


def test_a_budget_in_tokens_is_known_to_what_is_computed_beforehand(model, pairs, tmp_path):
    """The reference is asked for the rows of the run's steps alone, of which there are as many as both sides fill."""
    events = []
    resolved = from_dict(values(model, pairs, tmp_path / "a", steps=None, tokens=200))
    train(resolved, quiet=True, listeners=[events.append])
    steps = [event for event in events if isinstance(event, StepDone)]
    with Progress(quiet=True) as progress:
        objective = built(resolved.recipe, read_rows(resolved.recipe, False, progress)[1])
    read = [sum(map(len, step.examples)) for step in islice(objective.steps(None), len(steps))]
    assert sum(read) >= 200 > sum(read[:-1])
    assert {event.num_steps for event in steps} == {len(steps)}
    train(from_dict(values(model, pairs, tmp_path / "b", steps=len(steps))), quiet=True)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_metrics_are_written_and_evaluation_gives_those_of_training(model, pairs, tmp_path, capsys):
    trained = train(from_dict(values(model, pairs, tmp_path / "a", {"beta": 0.5})), quiet=True)
    steps = [line for line in metrics(tmp_path / "a") if line["event"] == "step"]
    assert {"rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen"} <= set(
        steps[0]["metrics"]
    )
    assert steps[0]["metrics"]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert steps[-1]["metrics"]["rewards/margins"] > 0.01
    assert (tmp_path / "a" / "loss.png").stat().st_size > 10_000
    found = inference.evaluate(tmp_path / "a")
    for name, value in trained.ended.best_metrics.items():
        assert found[name] == pytest.approx(value, abs=1e-5), name
    assert found["rows"] == 3
    base = inference.evaluate(tmp_path / "a", adapter="none")
    assert base["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert capsys.readouterr().err.count("the reference is the model itself") == 1


def test_the_rows_of_a_pair_can_be_asked(model, pairs, tmp_path, capsys):
    train(from_dict(values(model, pairs, tmp_path / "a")), quiet=True)
    found = inference.evaluate(tmp_path / "a", score="exact", max_new_tokens=4)
    assert found["exact"]["count"] == 3
    capsys.readouterr()


def test_kto_takes_rows_with_labels(model, tmp_path):
    rows = [{"prompt": f"what is {i}", "completion": f"it is {i}", "label": i % 2 == 0} for i in range(8)]
    made = values(model, "rows", tmp_path / "a", {"loss": "kto"})
    made["data"] = {"train": "rows", "held_out": 2}
    train(from_dict(made), rows=rows, quiet=True)
    assert losses(tmp_path / "a")[0] == pytest.approx(0.5, abs=1e-5)


def test_what_cannot_be_is_refused_before_the_model_loads(model, pairs, tmp_path):
    plain = values(model, pairs, tmp_path / "a")
    plain["objective"] = {"kind": "sft"}
    with pytest.raises(DataError, match="pairs of a chosen and a rejected answer"):
        train(from_dict(plain), quiet=True)
    alone = values(model, pairs, tmp_path / "b", {"loss": "kto"}, batch_size=1)
    with pytest.raises(RecipeError, match="batch_size"):
        train(from_dict(alone), quiet=True)
    with pytest.raises(RecipeError, match="group_by"):
        from_dict({"model": plain["model"], "data": plain["data"] | {"group_by": "q"}, "objective": alone["objective"]})


def test_from_python(model, tmp_path):
    rows = [{"prompt": f"what is {i}", "chosen": f"it is {i}", "rejected": "no"} for i in range(6)]
    trained = tunesmith.tune(
        str(model), rows, folder=tmp_path / "a", quiet=True, objective__kind="preference", train__steps=2
    )
    assert trained.ended.step == 2

"""`tunesmith compare --quick`, whole, with a tiny model in place of the demo's and few questions."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tunesmith import cli
from tunesmith.compare import settings
from tunesmith.compare.process import Outcome
from tunesmith.demo import study
from tunesmith.demo.task import make_task
from tunesmith.errors import Interrupted, MachineError

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS / "compare")]

import studies  # noqa: E402
from small_run import make_model  # noqa: E402

NUM_ROWS, NUM_TEST = 20, 3
SHORT = ["shared.train.steps=2", "shared.train.evaluate_every=1", "test.max_new_tokens=3"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def small(model, monkeypatch):
    """What the demo would fetch and make, small."""
    monkeypatch.setattr(study, "small_model_folder", lambda say: model)
    monkeypatch.setattr(study, "NUM_ROWS", NUM_ROWS)
    monkeypatch.setattr(study, "NUM_TEST", NUM_TEST)
    monkeypatch.setattr(study, "make_task", lambda rows, num_test: make_task(rows, turns=1, num_test=num_test, seed=5))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_quick_study_runs_whole(small, model, tmp_path):
    folder = tmp_path / "quick-study"
    found = study.compare_quickly(SHORT, quiet=True, folder=folder, runner=studies.here)
    assert list(found.results["arms"]) == ["lora", "dora", "no tuning, zero-shot"]
    for arm in ("lora", "dora"):
        assert found.results["arms"][arm]["seeds"] == [0, 1]
        assert found.results["arms"][arm]["failed"] == {}
        assert set(found.results["arms"][arm]["figures"]) >= {"sql", "loss"}
    assert len(found.verdicts) == 2
    assert (found.folder, found.results["primary"]) == (folder, "sql")
    assert len(lines(folder / "data" / "train.jsonl")) == NUM_ROWS
    tests = lines(folder / "data" / "test.jsonl")
    assert len(tests) == NUM_TEST
    assert all(row["databases"] and row["messages"][-1]["content"] == row["sql"] for row in tests)
    written = settings.load(folder / "study.yaml")
    assert written.settings.recipe["model"] == {"name": str(model)}
    for name in ("report.md", "report.html", "results.json"):
        assert (folder / name).is_file()

    def never(order, tell, stop):
        pytest.fail(f"done before: {order.name}")

    again = study.compare_quickly(SHORT, quiet=True, folder=folder, runner=never)
    assert again.verdicts == found.verdicts


def test_as_it_stands_it_is_a_sound_study(small, tmp_path):
    """Nothing on top of it: every setting is one, and every cell is asked for."""
    asked = []

    def runner(order, tell, stop):
        asked.append(order)
        return Outcome(failed="not today") if order.train else studies.here(order, tell, stop)

    with pytest.raises(MachineError, match="only the base was measured"):
        study.compare_quickly(["test.max_new_tokens=2"], quiet=True, folder=tmp_path / "study", runner=runner)
    steps = [order.recipe["train"]["steps"] for order in asked if order.train]
    assert steps == [study.STUDY["recipe"]["train"]["steps"]] * 4


def test_broken_off_it_says_how_to_go_on_with_the_same_settings(small, tmp_path):
    def runner(order, tell, stop):
        os.kill(os.getpid(), signal.SIGINT)
        return Outcome(stopped=True)

    with pytest.raises(Interrupted, match=r"tunesmith compare --quick 'seeds=\[4\]' goes on"):
        study.compare_quickly(["seeds=[4]"], quiet=True, folder=tmp_path / "study", runner=runner)


def test_the_command_line_asks_for_it(monkeypatch):
    asked = []
    monkeypatch.setattr(study, "compare_quickly", lambda overrides, quiet: asked.append((overrides, quiet)))
    done = CliRunner().invoke(cli.app, ["compare", "--quick", "seeds=[0]", "price_per_hour=2"])
    assert done.exit_code == 0, done.output
    assert asked == [(["seeds=[0]", "price_per_hour=2"], False)]

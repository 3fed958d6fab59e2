"""The demo's training goes on wherever an earlier demo was struck down."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest
from small_run import make_model, make_rows, recipe

from tunesmith.demo import main
from tunesmith.errors import CheckpointError, Interrupted
from tunesmith.events import StepDone
from tunesmith.recipe import from_dict
from tunesmith.record import locked

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    make_model(folder / "model")
    make_rows(folder / "rows.jsonl", 10)
    return folder


@pytest.fixture
def demo(place, tmp_path, monkeypatch):
    """The demo's folder; its training is that of a tiny model on a few rows."""
    made = from_dict(recipe(place / "model", place / "rows.jsonl", tmp_path / "run"))
    monkeypatch.setattr(main, "resolved", lambda folder, model: made)
    return tmp_path


def steps(folder):
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if line["event"] == "step"]


def struck(demo, step, monkeypatch):
    """The training, stopped at a step."""
    from tunesmith import run as runs

    def strike(event):
        if isinstance(event, StepDone) and event.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    train = runs.train

    def told():
        with main._told_how_to_go_on(demo):
            main._train(demo, "model")

    with monkeypatch.context() as patch:
        patch.setattr(runs, "train", lambda *a, **k: train(*a, **k, listeners=[strike]))
        with pytest.raises(Interrupted, match=r"demo --folder .* goes on from here"):
            told()


def test_from_a_checkpoint_it_goes_on(demo, monkeypatch):
    struck(demo, 3, monkeypatch)
    main._train(demo, "model")
    assert steps(demo) == list(range(1, 9))


@pytest.mark.parametrize("left", [("provenance.json",), ("provenance.json", "metrics.jsonl", "lock")])
def test_killed_before_the_first_checkpoint_it_begins_anew(demo, monkeypatch, left):
    struck(demo, 2, monkeypatch)
    shutil.rmtree(demo / "run" / "checkpoints")
    for entry in (demo / "run").iterdir():
        if entry.name not in left:
            entry.unlink()
    main._train(demo, "model")
    assert steps(demo) == list(range(1, 9))


def test_what_another_process_is_at_work_on_is_left_alone(demo, monkeypatch):
    struck(demo, 2, monkeypatch)
    shutil.rmtree(demo / "run" / "checkpoints")
    lock = locked(demo / "run")
    try:
        with pytest.raises(CheckpointError):
            main._train(demo, "model")
    finally:
        os.close(lock)
    assert (demo / "run" / "metrics.jsonl").is_file()


def test_fresh_takes_what_a_demo_wrote_and_nothing_else(demo, monkeypatch):
    struck(demo, 2, monkeypatch)
    (demo / "mine.txt").write_text("mine")
    (demo / "scores.json").write_text("{}")
    main._throw_away(demo)
    assert sorted(entry.name for entry in demo.iterdir()) == ["mine.txt"]


def test_scores_of_an_older_demo_or_half_of_them_are_not_taken(tmp_path):
    whole = {"right": {test: {"base": [True] * main.NUM_TEST} for test in main.TESTS}, "facts": {}}
    path = tmp_path / "scores.json"
    assert main._kept(path) is None
    path.write_text(json.dumps(whole))
    assert main._kept(path) == whole
    path.write_text(json.dumps(whole)[:-9])
    assert main._kept(path) is None
    path.write_text(json.dumps({"right": {test: {"base": [True] * 50} for test in main.TESTS}}))
    assert main._kept(path) is None

"""The demo from end to end on a tiny model: struck down at any moment, it goes on by itself when it is run again."""

from __future__ import annotations

import json
import os
import signal

import pytest
from small_demo import NUM_TEST, Server
from small_run import make_model

from tunesmith.demo import main
from tunesmith.errors import CheckpointError
from tunesmith.record import locked

PER_WAY = 2 * NUM_TEST


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    model = make_model(tmp_path_factory.mktemp("demo") / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 16384}))  # a letter is a token
    server = Server(model)
    yield server
    server.close()


def begin_again(server, folder, log):
    """A demo that was broken off, run once more: it ends, with every question answered in every way."""
    assert server.run(folder, log) == 0, log.read_text()
    right = json.loads((folder / "scores.json").read_text())["right"]
    assert set(right) == {"tables", "combinations"}
    for ways in right.values():
        assert {way: len(of_test) for way, of_test in ways.items()} == dict.fromkeys(main.WAYS, NUM_TEST)
    assert (folder / "run" / "adapter" / "adapter_model.safetensors").is_file()
    assert json.loads((folder / "run" / "summary.json").read_text())["status"] == "finished"
    return log.read_text()


MOMENTS = {
    "the questions are written": ("tunesmith.demo.main:write_task", 1),
    "the base is scored": ("tunesmith.demo.main:judge", 2),
    "the base's scores are kept": ("tunesmith.demo.main:write_json", 1),
    "the run says what it is": ("tunesmith.record:write_json", 1),
    "the run has said it": ("tunesmith.record:write_file", 1),
    "the training begins": ("tunesmith.record:Run._cut_metrics", 1),
    "the first checkpoint is written": ("tunesmith.train.checkpoint:Checkpoints.write", 1),
    "the first checkpoint is put in place": ("tunesmith.train.checkpoint:_flush", 3),
    "a later checkpoint is written": ("tunesmith.train.checkpoint:Checkpoints.write", 3),
    "the training is over": ("tunesmith.run:take", 1),
    "the tuned model is scored": ("tunesmith.demo.main:judge", 2 * PER_WAY + 2),
    "the scores are kept": ("tunesmith.demo.main:write_json", 2),
}


SEEN_OFTEN = ("the run has said it", "the first checkpoint is written")


@pytest.mark.parametrize("moment", [m if m in SEEN_OFTEN else pytest.param(m, marks=pytest.mark.slow) for m in MOMENTS])
def test_killed_when(server, tmp_path, moment):
    target, call = MOMENTS[moment]
    folder, log = tmp_path / "demo", tmp_path / "log"
    strike = {"target": target, "call": call, "signal": int(signal.SIGKILL)}
    assert server.run(folder, log, strike) == 128 + signal.SIGKILL, log.read_text()
    assert not (folder / "scores.json").exists()
    had_scored, had_saved = (folder / "before.json").exists(), any((folder / "run").glob("checkpoints/step-*"))
    said = begin_again(server, folder, log)
    assert ("scoring the base" in said) is not had_scored
    assert ("going on" in said or "resum" in said) is had_saved
    assert "no checkpoint yet" not in said


def test_stopped_says_how_to_go_on_and_once_over_shows_what_it_found(server, tmp_path):
    folder, log = tmp_path / "demo", tmp_path / "log"
    at_a_checkpoint = "tunesmith.train.checkpoint:Checkpoints.write"
    strike = {"target": at_a_checkpoint, "call": 2, "signal": int(signal.SIGTERM)}
    assert server.run(folder, log, strike) == 128 + signal.SIGTERM
    assert f"demo --folder {folder} goes on from here" in log.read_text()
    assert "--resume" not in log.read_text()
    begin_again(server, folder, log)
    assert server.run(folder, log) == 0
    assert "was here already" in log.read_text()
    assert "tuning adds" in log.read_text()


def test_another_demos_checkpoint_says_fresh(server, tmp_path):
    """As an update of Tunesmith in between would find it."""
    folder, log = tmp_path / "demo", tmp_path / "log"
    strike = {"target": "tunesmith.train.checkpoint:Checkpoints.write", "call": 3, "signal": int(signal.SIGKILL)}
    server.run(folder, log, strike)
    written = folder / "run" / "provenance.json"
    record = json.loads(written.read_text())
    record["recipe"]["train"]["learning_rate"] = 0.5
    written.write_text(json.dumps(record))
    assert server.run(folder, log) == CheckpointError.exit_code
    assert "another recipe" in log.read_text()
    assert "--fresh" in log.read_text()
    assert "output.folder" not in log.read_text()


@pytest.fixture
def left(tmp_path):
    """What an earlier demo left, beside a file of somebody's."""
    for name in ("scores.json", "before.json", "data/train.jsonl", "data/tables.jsonl", "data/combinations.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / main.BEGUN).touch()
    (tmp_path / "data" / "mine.txt").touch()
    return tmp_path


def test_fresh_throws_away_what_a_demo_wrote_and_nothing_else(left):
    main._throw_away(left)
    assert [str(path.relative_to(left)) for path in left.rglob("*") if path.is_file()] == ["data/mine.txt"]
    assert not (left / "run").exists()
    (left / "run").mkdir()
    (left / "run" / "no-run-of-ours").touch()
    main._throw_away(left)
    assert (left / "run" / "no-run-of-ours").exists()


@pytest.mark.parametrize("act", [main._throw_away, lambda folder: main._train(folder, "model")])
def test_what_another_process_is_at_work_on_is_left_alone(left, act):
    lock = locked(left / "run")
    try:
        with pytest.raises(CheckpointError, match="another run is at work"):
            act(left)
    finally:
        os.close(lock)
    assert (left / "run" / "checkpoints").exists()


def test_scores_of_fewer_questions_or_torn_ones_do_not_count(tmp_path):
    def scores(count):
        return {"right": {test: {"base": [True] * count, "shots": [False] * count} for test in main.TESTS}}

    kept = tmp_path / "before.json"
    assert main._kept(kept) is None
    kept.write_text(json.dumps(scores(main.NUM_TEST)))
    assert main._kept(kept) == scores(main.NUM_TEST)
    for text in (json.dumps(scores(50)), '{"right": {', "[]", '{"right": {"tables": {"base": 3}}}', '{"right": {}}'):
        kept.write_text(text)
        assert main._kept(kept) is None


def test_what_tuning_adds_is_paired_over_every_question():
    half = [True] * 50 + [False] * 50
    ways = {"base": [False] * 100, "shots": half, "tuned": [True] * 100}
    assert main.NUM_TEST == 100
    scores = main.Scores({test: dict(ways) for test in main.TESTS})
    assert scores.gain("tables").startswith("+50 points")
    assert scores.share("tables", "shots").startswith("50 %  [40, 60]")

"""Whole runs, killed, stopped, damaged and resumed: what is unbroken and what was broken are the same, bit for bit."""

from __future__ import annotations

import errno
import json
import shutil
import signal

import pytest
from small_run import CANARY, Server, make_model, make_rows, recipe

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def server():
    made = Server()
    yield made
    made.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model and rows."""
    folder = tmp_path_factory.mktemp("place")
    make_model(folder / "model")
    make_rows(folder / "rows.jsonl", 10)
    return folder


def values_in(place, folder, **train):
    return recipe(place / "model", place / "rows.jsonl", folder, **train)


def result(folder):
    """(numbers of every step and evaluation, bytes of the adapter)."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [
        (e["step"], e["epoch"], e["loss"], e["grad_norm"], e["learning_rate"]) for e in lines if e["event"] == "step"
    ]
    evaluations = [(e["step"], e["metrics"], e["best"]) for e in lines if e["event"] == "evaluation"]
    return steps, evaluations, (folder / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def unbroken(server, place):
    folder = place / "unbroken"
    log = place / "unbroken.log"
    assert server.run(values_in(place, folder), log=log) == 0, log.read_text()
    steps, evaluations, _ = found = result(folder)
    assert [step for step, *_ in steps] == list(range(1, 9))
    assert [step for step, *_ in evaluations] == [3, 6, 8]
    return found


def broken_then_resumed(server, place, folder, strike, wanted_status, **train):
    values, log = values_in(place, folder, **train), folder.with_suffix(".log")
    assert server.run(values, strike=strike, log=log) == wanted_status, log.read_text()
    assert server.run(values, resume=True, log=log) == 0, log.read_text()
    return result(folder)


MOMENTS = {
    "loading the tokenizer": ("tunesmith.run:load_tokenizer", 1),
    "reading the data": ("tunesmith.run:prepare", 1),
    "loading the model": ("tunesmith.assemble:load_model", 1),
    "probing": ("tunesmith.assemble:probe", 1),
    "the first step": ("tunesmith.objectives.sft:SFT.loss", 1),
    "a step of epoch 0": ("tunesmith.train.loop:Loop._accumulate", 3),
    "a step of epoch 1": ("tunesmith.train.loop:Loop._accumulate", 7),
    "an update": ("tunesmith.train.loop:set_learning_rate", 5),
    "an evaluation": ("tunesmith.objectives.sft:SFT.evaluate", 2),
    "a save": ("tunesmith.train.checkpoint:save_file", 4),
    "a line of metrics": ("tunesmith.record:Run._write_line", 6),
    "the last evaluation": ("tunesmith.objectives.sft:SFT.evaluate", 3),
    "publishing": ("tunesmith.train.publish:Publisher.__call__", 21),
}
QUICK = ("reading the data", "a step of epoch 0", "a step of epoch 1", "an evaluation", "a save")
ASKED = ("a step of epoch 0", "a save")
"""Of these, the moments at which a signal that asks is tried too."""


def moments(numbers):
    return [
        pytest.param(
            name,
            number,
            marks=() if name in (QUICK if number == signal.SIGKILL else ASKED) else pytest.mark.slow,
            id=f"{name}-{number.name}",
        )
        for name in MOMENTS
        for number in numbers
    ]


@pytest.mark.parametrize(("moment", "number"), moments([signal.SIGKILL, signal.SIGINT, signal.SIGTERM]))
def test_struck_down_at_any_moment_and_resumed_it_is_the_unbroken_run(
    server, place, unbroken, tmp_path, moment, number
):
    target, call = MOMENTS[moment]
    strike = {"target": target, "call": call, "signal": int(number)}
    assert broken_then_resumed(server, place, tmp_path / "run", strike, 128 + number) == unbroken


def test_an_interrupted_run_says_how_to_go_on_and_can_be_looked_at(server, place, unbroken, tmp_path):
    values, log = values_in(place, tmp_path / "a run"), tmp_path / "log"
    strike = {"target": "tunesmith.train.loop:Loop._accumulate", "call": 5, "signal": int(signal.SIGTERM)}
    assert server.run(values, strike=strike, log=log) == 143
    assert f"to do: tunesmith train '{tmp_path}/a run' --resume" in log.read_text()
    assert "stopped by SIGTERM: 4 steps" in log.read_text()
    summary = json.loads((tmp_path / "a run" / "summary.json").read_text())
    assert (summary["status"], summary["step"], summary["best_step"]) == ("interrupted", 4, 3)
    assert summary["data_digest"]
    assert (tmp_path / "a run" / "loss.png").stat().st_size > 0
    assert not (tmp_path / "a run" / "adapter").exists()
    assert server.run(values, resume=True, log=log) == 0, log.read_text()
    assert result(tmp_path / "a run") == unbroken
    assert json.loads((tmp_path / "a run" / "summary.json").read_text())["status"] == "finished"


def test_a_closed_terminal_is_an_interruption(server, place, unbroken, tmp_path):
    strike = {"target": "tunesmith.train.loop:Loop._accumulate", "call": 5, "signal": int(signal.SIGHUP)}
    assert broken_then_resumed(server, place, tmp_path / "run", strike, 129) == unbroken


def test_interrupted_before_anything_is_trained_it_says_so(server, place, tmp_path):
    log = tmp_path / "log"
    strike = {"target": "tunesmith.assemble:load_model", "call": 1, "signal": int(signal.SIGINT)}
    assert server.run(values_in(place, tmp_path / "run"), strike=strike, log=log) == 130
    assert "nothing was saved yet: start again" in log.read_text()


def test_a_warm_up_longer_than_the_epochs_is_said_before_the_model_loads(server, place, tmp_path):
    log = tmp_path / "log"
    assert server.run(values_in(place, tmp_path / "run", warmup=50), log=log) == 0
    before, _, after = log.read_text().partition("loading the model")
    assert "longer than the budget of 8 steps" in before
    assert "adapter:" in after


@pytest.mark.slow
@pytest.mark.parametrize("target", ["os:replace", "os:fsync", "os:mkdir", "os:rmdir", "os:unlink", "os:open"])
def test_killed_at_every_file_operation(server, place, unbroken, tmp_path, target):
    """SIGKILL as the n-th such operation begins, until a run gets through without that many."""
    for call in range(1, 400, 7):
        folder = tmp_path / str(call)
        values, log = values_in(place, folder), tmp_path / "log"
        status = server.run(values, strike={"target": target, "call": call, "signal": 9}, log=log)
        if status == 0:
            break
        assert status == 137, log.read_text()
        assert server.run(values, resume=True, log=log) == 0, log.read_text()
        assert result(folder) == unbroken, (target, call)
        shutil.rmtree(folder)
    assert call > 1


@pytest.mark.parametrize("call", [2, pytest.param(6, marks=pytest.mark.slow)])
def test_a_full_disk_leaves_earlier_checkpoints(server, place, unbroken, tmp_path, call):
    strike = {"target": "tunesmith.train.checkpoint:save_file", "call": call, "errno": errno.ENOSPC}
    assert broken_then_resumed(server, place, tmp_path / "run", strike, 4) == unbroken


def test_a_damaged_checkpoint_is_passed_over_aloud(server, place, unbroken, tmp_path):
    values, log = values_in(place, tmp_path / "run"), tmp_path / "log"
    strike = {"target": "tunesmith.train.loop:Loop._accumulate", "call": 7, "signal": 9}
    assert server.run(values, strike=strike, log=log) == 137
    newest = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1]
    whole = (newest / "trainer.safetensors").read_bytes()
    (newest / "trainer.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert server.run(values, resume=True, log=log) == 0, log.read_text()
    assert newest.name in log.read_text()
    assert result(tmp_path / "run") == unbroken


RELORA = {"method": "relora", "r": 2, "restart_every": 3, "rewarm": 2, "dropout": 0.2}


@pytest.fixture(scope="module")
def unbroken_relora(server, place):
    """Restarts after steps 3 and 6 of 8."""
    folder, log = place / "relora", place / "relora.log"
    assert server.run(values_in(place, folder) | {"adapter": RELORA}, log=log) == 0, log.read_text()
    found = result(folder)
    rates = [step[-1] for step in found[0]]
    assert rates[3] < rates[2]
    assert rates[6] < rates[5]
    assert "after step 3: the optimizer's moments of 28 tensors are pruned to the largest 0.01" in log.read_text()
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    best = json.loads((folder / "summary.json").read_text())["best_step"]
    assert config["r"] == 2 * (1 + best // 3)
    return found


@pytest.mark.parametrize(("call", "number"), [(4, signal.SIGKILL), (5, signal.SIGTERM), (8, signal.SIGKILL)])
def test_a_run_of_relora_struck_down_around_its_restarts_is_the_unbroken_run(
    server, place, unbroken_relora, tmp_path, call, number
):
    values, log = values_in(place, tmp_path / "run") | {"adapter": RELORA}, tmp_path / "log"
    strike = {"target": "tunesmith.train.loop:Loop._accumulate", "call": call, "signal": int(number)}
    assert server.run(values, strike=strike, log=log) == 128 + number, log.read_text()
    assert server.run(values, resume=True, log=log) == 0, log.read_text()
    assert result(tmp_path / "run") == unbroken_relora


@pytest.mark.parametrize("method", ["relora", "delta-lora"])
def test_a_method_that_the_budget_cannot_serve_is_refused_before_the_model_loads(server, place, tmp_path, method):
    log = tmp_path / "log"
    assert server.run(values_in(place, tmp_path / "run") | {"adapter": {"method": method}}, log=log) == 2
    assert "is not reached" in log.read_text()
    assert "a budget of 8 steps" in log.read_text()
    assert "loading the model" not in log.read_text()


def test_what_a_run_refuses(server, place, unbroken, tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    values = values_in(place, folder)
    strike = {"target": "tunesmith.train.loop:Loop._accumulate", "call": 4, "signal": 15}
    assert server.run(values, strike=strike, log=log) == 143
    assert server.run(values, log=log) == 3, "a second run in the same folder"
    assert "--resume" in log.read_text()
    other = values | {"adapter": {"r": 3, "dropout": 0.2}}
    assert server.run(other, resume=True, log=log) == 3, "another recipe"
    assert "adapter.r" in log.read_text()
    rows = (place / "rows.jsonl").read_text()
    try:
        make_rows(place / "rows.jsonl", 10, answer="it is not")
        assert server.run(values, resume=True, log=log) == 3, "other data"
        assert "data" in log.read_text()
    finally:
        (place / "rows.jsonl").write_text(rows)
    weights = place / "model" / "model.safetensors"
    whole = weights.read_bytes()
    try:
        weights.write_bytes(whole[:-9] + bytes([whole[-9] ^ 0x10]) + whole[-8:])
        assert server.run(values, resume=True, log=log) == 3, "another base"
        assert "base" in log.read_text()
    finally:
        weights.write_bytes(whole)
    assert server.run(values, resume=True, log=log) == 0, log.read_text()
    assert result(folder) == unbroken, "nothing that was refused left a trace"


def test_a_secret_of_the_environment_is_written_nowhere_and_nothing_asks_for_the_network(server, place, unbroken):
    """Every child of the server has two tokens in its environment, and sockets that refuse."""
    files = [path for path in place.rglob("*") if path.is_file()]
    assert len(files) > 15
    for path in files:
        assert CANARY.encode() not in path.read_bytes(), path

"""Whole runs that store what their frozen blocks give: the same numbers, exact on resume, nothing half on the disk."""

from __future__ import annotations

import errno
import json
import shutil
import signal

import pytest
from small_run import Server, make_model, make_rows, recipe

from tunesmith.machine import cache_folder

pytestmark = pytest.mark.filterwarnings("ignore")
WRITE = "tunesmith.models.frozen_file:Folder._write"
STEP = "tunesmith.train.loop:Loop._accumulate"
METHODS = {
    "lora": {"r": 2, "dropout": 0.2, "last_blocks": 1},
    "full": {"method": "full", "last_blocks": 1},
}
QUICK_AND_SLOW = ["lora", pytest.param("full", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, rows and a cache of its own."""
    folder = tmp_path_factory.mktemp("place")
    make_model(folder / "model")
    make_rows(folder / "rows.jsonl", 10)
    kernels = cache_folder() / "kernels"
    if kernels.is_dir():
        shutil.copytree(kernels, folder / "cache" / "kernels")
    return folder


@pytest.fixture(scope="module")
def server(place):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_CACHE", str(place / "cache"))
        made = Server()
    yield made
    made.close()


@pytest.fixture
def stored(place):
    """The folder of stored states, empty."""
    folder = place / "cache" / "frozen"
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def values_in(place, folder, method="lora", **train):
    return recipe(place / "model", place / "rows.jsonl", folder, **train) | {"adapter": METHODS[method]}


def result(folder):
    """(numbers of every step and evaluation, bytes of the adapter)."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [(e["step"], e["loss"], e["grad_norm"]) for e in lines if e["event"] == "step"]
    evaluations = [(e["step"], e["metrics"]["loss"]) for e in lines if e["event"] == "evaluation"]
    return steps, evaluations, (folder / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("method", QUICK_AND_SLOW)
def test_a_run_with_stored_states_is_the_run_without_and_the_next_one_finds_them(
    server, place, stored, tmp_path, method
):
    log = tmp_path / "log"
    assert server.run(values_in(place, tmp_path / "without", method, cache_frozen=False), log=log) == 0, log.read_text()
    assert not stored.exists()
    assert server.run(values_in(place, tmp_path / "with", method), log=log) == 0, log.read_text()
    assert "no pass runs them again" in log.read_text()
    (folder,) = stored.iterdir()
    made = (folder / "states.bin").stat()
    without, with_ = result(tmp_path / "without"), result(tmp_path / "with")
    for (number, *mine), (other, *wanted) in zip(with_[0] + with_[1], without[0] + without[1], strict=True):
        assert number == other
        assert mine == pytest.approx(wanted, rel=1e-4)
    assert server.run(values_in(place, tmp_path / "again", method), log=log) == 0, log.read_text()
    assert result(tmp_path / "again") == with_
    assert (folder / "states.bin").stat() == made
    assert server.run(values_in(place, tmp_path / "otherwise", method, seed=5), log=log) == 0, log.read_text()
    assert list(stored.iterdir()) == [folder], "another split of the same rows"
    (folder / "states.bin").write_bytes(bytes(made.st_size))
    assert server.run(values_in(place, tmp_path / "mended", method), log=log) == 0, log.read_text()
    assert result(tmp_path / "mended") == with_


@pytest.mark.parametrize("method", QUICK_AND_SLOW)
def test_struck_down_and_resumed_it_is_the_unbroken_run(server, place, stored, tmp_path, method):
    log = tmp_path / "log"
    assert server.run(values_in(place, tmp_path / "unbroken", method), log=log) == 0, log.read_text()
    for call, gone in ((3, False), (7, True)):
        values = values_in(place, tmp_path / f"run-{call}", method)
        strike = {"target": STEP, "call": call, "signal": int(signal.SIGKILL)}
        assert server.run(values, strike=strike, log=log) == 137, log.read_text()
        if gone:
            shutil.rmtree(stored)
        assert server.run(values, resume=True, log=log) == 0, log.read_text()
        assert result(tmp_path / f"run-{call}") == result(tmp_path / "unbroken")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_they_are_made_nothing_is_left(server, place, stored, tmp_path, number):
    values, log = values_in(place, tmp_path / "run", micro_batch_tokens=30), tmp_path / "log"
    strike = {"target": WRITE, "call": 3, "signal": int(number)}
    assert server.run(values, strike=strike, log=log) == 128 + number, log.read_text()
    assert "nothing was saved yet" in log.read_text()
    assert not list(stored.iterdir())


def test_a_kill_while_they_are_made_leaves_nothing_under_a_name(server, place, stored, tmp_path):
    values, log = values_in(place, tmp_path / "run", micro_batch_tokens=30), tmp_path / "log"
    assert server.run(values, strike={"target": WRITE, "call": 3, "signal": 9}, log=log) == 137
    assert all(path.name.startswith(".making-") for path in stored.iterdir())
    assert server.run(values, resume=True, log=log) == 0, log.read_text()
    assert len([path for path in stored.iterdir() if not path.name.startswith(".")]) == 1


def test_a_disk_that_fills_up_says_how_to_do_without(server, place, stored, tmp_path):
    values, log = values_in(place, tmp_path / "run"), tmp_path / "log"
    strike = {"target": WRITE, "call": 2, "errno": errno.ENOSPC}
    assert server.run(values, strike=strike, log=log) == 4
    assert "train.cache_frozen=false" in log.read_text()
    assert not list(stored.iterdir())


def test_one_pass_stores_nothing_unless_it_is_asked_to(server, place, stored, tmp_path):
    log = tmp_path / "log"
    assert server.run(values_in(place, tmp_path / "run", epochs=1), log=log) == 0, log.read_text()
    assert not stored.exists()
    assert server.run(values_in(place, tmp_path / "asked", epochs=1, cache_frozen=True), log=log) == 0, log.read_text()
    assert len(list(stored.iterdir())) == 1


def test_what_cannot_be_stored_is_said_or_refused(server, place, stored, tmp_path):
    log = tmp_path / "log"
    values = values_in(place, tmp_path / "run")
    values["adapter"] = {**METHODS["lora"], "train_in_full": ["embeddings"]}
    assert server.run(values, log=log) == 0, log.read_text()
    assert "run in every pass: model.embed_tokens is trained" in log.read_text()
    values = values_in(place, tmp_path / "asked", cache_frozen=True) | {"adapter": values["adapter"]}
    assert server.run(values, log=log) == 2
    assert "embed_tokens is trained" in log.read_text()
    values["adapter"] = {"r": 2}
    assert server.run(values, log=log) == 2
    assert "adapter.last_blocks" in log.read_text()
    assert not stored.exists()

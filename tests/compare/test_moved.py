"""A study is known by the bytes of what it reads: moved or touched it redoes nothing, changed by a byte it does."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest
import studies

import tunesmith
from tunesmith.compare import contents
from tunesmith.compare.contents import content, placeless
from tunesmith.compare.process import Outcome
from tunesmith.errors import Interrupted


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    return studies.make(tmp_path / "home")


def values(home, folder, model="model"):
    made = studies.values(
        home, folder=str(folder), seeds=[0], arms={"lora": {}, "r 3": {"adapter.r": 3}}, prompting=[0]
    )
    made["test"] = {"rows": 10}
    made["recipe"]["model"]["name"] = str(home / model)
    return made


def compare(given):
    """The study's results, and the orders that were given for them."""
    asked = []

    def runner(order, tell, stop):
        asked.append(order.name)
        return studies.here(order, tell, stop)

    return tunesmith.compare(given, runner=runner, quiet=True).results, asked


def figures(results):
    return {name: row["figures"] for name, row in results["arms"].items()}


def turn_a_byte(path):
    held = bytearray(path.read_bytes())
    held[-1] ^= 1
    path.write_bytes(bytes(held))


@pytest.mark.slow
def test_what_moves_or_is_touched_is_done_and_what_changes_by_a_byte_is_not(home):
    first, asked = compare(values(home, home / "study"))
    assert len(asked) == 3
    (home / "study").rename(home / "renamed")
    again, asked = compare(values(home, home / "renamed"))
    assert asked == []
    assert figures(again) == figures(first)
    moved = home.parent / "moved"
    home.rename(moved)
    shutil.copytree(moved / "model", moved / "copy")
    assert compare(values(moved, moved / "renamed"))[1] == []
    assert compare(values(moved, moved / "renamed", "copy"))[1] == []
    for path in [*(moved / "model").iterdir(), moved / "rows.jsonl", moved / "text.txt"]:
        os.utime(path, (1, 1))
    assert compare(values(moved, moved / "renamed"))[1] == []
    turn_a_byte(moved / "copy" / "model.safetensors")
    _, asked = compare(values(moved, moved / "renamed", "copy"))
    assert len(asked) == 3
    rows = (moved / "rows.jsonl").read_text()
    (moved / "rows.jsonl").write_text(rows.replace("it is what", "it is that", 1))
    asked = compare(values(moved, moved / "renamed"))[1]
    assert [name.partition("-seed")[0] for name in asked[-2:]] == ["lora", "r-3"]


def test_a_cell_that_was_broken_off_goes_on_in_another_place(home):
    given = values(home, home / "study")
    given["prompting"] = []

    def struck(order, tell, stop):
        def listen(told):
            tell(told)
            if told.get("event") == "StepDone" and told["step"] == 2:
                raise KeyboardInterrupt

        try:
            return studies.here(order, listen, stop)
        except KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop() == signal.SIGINT
            return Outcome(stopped=True)

    with pytest.raises(Interrupted):
        tunesmith.compare(given, runner=struck, quiet=True)
    moved = home.parent / "moved"
    home.rename(moved)
    steps = []

    def watching(order, tell, stop):
        return studies.here(order, lambda told: steps.append((told.get("event"), told.get("first_step"))), stop)

    given = values(moved, moved / "study")
    given["prompting"] = []
    found = tunesmith.compare(given, runner=watching, quiet=True)
    assert [row["failed"] for row in found.results["arms"].values()] == [{}, {}]
    assert [step for event, step in steps if event == "Started"] == [2, 0]


def test_files_are_known_by_their_bytes_wherever_a_recipe_names_them(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for place in "ab":
        (tmp_path / place / "rows.jsonl").write_text("{}\n")
        (tmp_path / place / "judge.py").write_text("def right(): ...\n")
    one, other = (
        {
            "data": {"train": [{"path": f"{tmp_path / place}/rows.jsonl"}], "held_out": f"{tmp_path / place}:test"},
            "objective": {"rewards": [f"verl:{tmp_path / place}/judge.py:right", "exact", "/", "a: b"]},
        }
        for place in "ab"
    )
    assert placeless(one) == placeless(other) != one
    assert placeless(one)["objective"]["rewards"][1:] == ["exact", "/", "a: b"]
    with monkeypatch.context() as patch:
        patch.setattr(contents, "content", lambda path: f"the bytes of {path}")
        assert placeless({"name": "/tmp"}) == {"name": "the bytes of /tmp"}, "right under the root, as in a container"
    assert str(tmp_path) not in json.dumps(placeless(one))
    (tmp_path / "b" / "judge.py").write_text("def right(): ..!\n")
    assert placeless(one)["objective"] != placeless(other)["objective"]
    assert content("owner/name") == "owner/name"
    assert content(str(tmp_path / "a")) != content(str(tmp_path / "b"))


def test_a_large_file_is_read_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    weights = tmp_path / "model" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(bytes(1 << 17))
    read = []
    monkeypatch.setattr("tunesmith.data.cache.file_digests.LEFT_ALONE_NS", -(10**18))
    original = contents.FileDigests.of.__globals__["digest_of_file"]
    monkeypatch.setattr(
        "tunesmith.data.cache.file_digests.digest_of_file", lambda path: (read.append(path), original(path))[1]
    )
    known = content(str(weights.parent))
    assert content(str(weights.parent)) == known
    contents._read_once.cache_clear()  # as another process
    assert content(str(weights.parent)) == known
    assert len(read) == 1
    weights.write_bytes(bytes((1 << 17) - 1) + b"\1")
    assert content(str(weights.parent)) != known
    assert len(read) == 2

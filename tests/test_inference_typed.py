"""Evaluate and generate as typed: nothing that is typed is ignored, and what cannot be is known before the work."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from furnished import figures, furnish, invoke
from small_run import recipe

import tunesmith
from tunesmith import run
from tunesmith.errors import DataError
from tunesmith.recipe import from_dict

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, rows and a run that ended (`whole`)."""
    return furnish(tmp_path_factory.mktemp("place"))


def test_a_limit_holds_for_the_loss_too(place):
    assert [figures(place / "whole", "--limit", n)["rows"] for n in (1, 2, 99)] == [1, 2, 3]
    assert figures(place / "whole", "--data", place / "rows.jsonl", "--limit", 2)["rows"] == 2


@pytest.mark.parametrize("option", ["--out", "--gold"])
def test_what_belongs_to_answers_is_refused_for_the_loss(place, tmp_path, option):
    done = invoke("evaluate", place / "whole", option, tmp_path / "x", code=2)
    assert option in done.stderr
    assert "--score" in done.stderr


def test_what_has_no_rows_is_named():
    assert "/no/such/run, where no run or recipe is" in invoke("evaluate", "/no/such/run", code=2).stderr
    with pytest.raises(DataError, match="needs rows"):
        tunesmith.tune("model", None)


def test_rows_that_are_not_scored_are_counted(place, tmp_path):
    turns = (
        [{"role": "user", "content": "q"}],
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
    )
    (tmp_path / "r.jsonl").write_text("".join(json.dumps({"messages": m}) + "\n" for m in (*turns, [])))
    (tmp_path / "r.yaml").write_text("model: {name: x}\ndata: {train: r.jsonl}\n")
    asked = ("evaluate", place / "whole", "--recipe", tmp_path / "r.yaml", "--data", tmp_path / "r.jsonl", "--json")
    done = invoke(*asked)
    assert json.loads(done.stdout)["rows"] == 1
    assert "1 row with nothing to learn" in done.stderr
    assert "1 row empty" in done.stderr
    done = invoke(*asked, "--score", "exact", "--max-new-tokens", 2)
    assert json.loads(done.stdout)["exact"]["count"] == 1
    assert "2 rows without an answer, left out" in done.stderr


def test_talk_where_no_call_is_wanted_is_scored_apart(place, tmp_path):
    call = [{"name": "look", "arguments": {"at": "fox"}}]
    answers = [{"tool_calls": call}, {"content": "It is brown."}, {"content": "No."}]
    rows = [{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", **answer}]} for answer in answers]
    (tmp_path / "calls.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = (
        "evaluate",
        place / "whole",
        "--recipe",
        tmp_path / "r.yaml",
        "--score",
        "tool_call",
        "--max-new-tokens",
        2,
    )
    (tmp_path / "r.yaml").write_text("model: {name: x}\ndata: {train: calls.jsonl}\n")
    found = json.loads(invoke(*asked, "--data", tmp_path / "calls.jsonl", "--json").stdout)
    assert found["tool_call"]["count"] == 3
    assert found["tool_call, a call is wanted"]["value"] == 0
    assert found["tool_call, no call is wanted"]["count"] == 2
    (tmp_path / "calls.jsonl").write_text(json.dumps(rows[0]) + "\n")
    assert "no call" not in invoke(*asked, "--data", tmp_path / "calls.jsonl", "--json").stdout


def test_programs_get_numbers(place):
    made = figures(place / "whole", "--score", "f1", "--max-new-tokens", 4)
    assert set(made["f1"]) == {"value", "low", "high", "count"}
    assert made["f1"]["count"] == 3
    assert "% [" in invoke("evaluate", place / "whole", "--score", "f1", "--max-new-tokens", 4).stdout


def test_several_scores_come_of_one_pass_and_the_loss_with_them(place, monkeypatch):
    asked = ("--max-new-tokens", 4)
    alone = {name: figures(place / "whole", "--score", name, *asked)[name] for name in ("f1", "exact")}
    passes, generate = [], tunesmith.Session.generate

    def counted(self, prompts, *more, **options):
        passes.append(len(prompts))
        return generate(self, prompts, *more, **options)

    monkeypatch.setattr(tunesmith.Session, "generate", counted)
    made = figures(place / "whole", "--score", "f1", "--score", "exact", "--score", "loss", *asked)
    assert passes == [3]
    assert {name: made[name] for name in alone} == alone
    assert made["loss"] == figures(place / "whole")["loss"]
    assert made["turns"] == "last"
    text = invoke("evaluate", place / "whole", "--score", "f1", "--score", "exact", *asked).stdout
    assert text.index("f1: ") < text.index("exact: ") < text.index("turns: last")


def test_all_turns_of_conversations_are_scored_where_asked_for(place, tmp_path):
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, "qarb", strict=True)]
    rows = [{"messages": turns}, {"messages": turns[:2]}, {"messages": turns[:1]}]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "r.yaml").write_text("model: {name: x}\ndata: {train: r.jsonl}\n")
    asked = (place / "whole", "--recipe", tmp_path / "r.yaml", "--data", tmp_path / "r.jsonl", "--score", "exact")
    few = ("--max-new-tokens", 2)
    last, every = figures(*asked, *few), figures(*asked, *few, "--turns", "all")
    assert (last["turns"], last["exact"]["count"]) == ("last", 2)
    assert (every["turns"], every["exact"]["count"], every["conversations"]) == ("all", 3, 2)
    assert figures(*asked, *few, "--turns", "all", "--limit", 1)["exact"]["count"] == 2
    for wrong, told in ((("--turns", "first"), "last or all"), (("--turns", "all", "--gold", "x"), "--gold")):
        assert told in invoke("evaluate", *asked, *wrong, code=2).stderr
    assert "--turns" in invoke("evaluate", place / "whole", "--turns", "all", code=2).stderr


def test_missing_rows_are_known_before_the_model_loads(place):
    done = invoke("evaluate", place / "whole", "--data", place / "none.jsonl", code=2)
    assert "loading the model" not in done.stderr


def test_one_prompt_goes_into_a_file_where_one_is_named(place, tmp_path):
    out = tmp_path / "deep" / "answer.jsonl"
    said = invoke("generate", place / "whole", "hello", "--max-new-tokens", 3).stdout.rstrip("\n")
    done = invoke("generate", place / "whole", "hello", "--out", out, "--max-new-tokens", 3)
    assert done.stdout == ""
    assert json.loads(out.read_text())["answer"] == said


@pytest.mark.parametrize(("name", "content", "said"), [
    ("p.txt", b"\n \n", "no prompt in this file"),
    ("p.jsonl", b"", ""),
    ("p.txt", b"\xff\xfe\x00", "not text in UTF-8"),
    ("p.safetensors", b"\x00", "no file of prompts"),
    ("p", b"hello", "no file of prompts"),
])  # fmt: skip
def test_a_file_without_prompts_is_refused(place, tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    done = invoke("generate", place / "whole", "--file", tmp_path / name, code=2)
    assert said in done.stderr
    assert not list(tmp_path.glob("*answers*"))


def test_scores_are_told_when_the_answers_cannot_be_written(place, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    words = ("--score", "f1", "--max-new-tokens", 2, "--json", "--out", tmp_path / "x.jsonl")
    done = invoke("evaluate", place / "whole", *words, code=4)
    assert json.loads(done.stdout)["f1"]["count"] == 3
    assert "cannot be written" in done.stderr


@pytest.mark.parametrize("verb", ["generate", "evaluate"])
def test_a_folder_is_no_file_for_answers(place, tmp_path, verb):
    words = ["--file", place / "prompts.txt"] if verb == "generate" else ["--score", "f1"]
    done = invoke(verb, place / "whole", *words, "--out", tmp_path, code=2)
    assert "this is a folder" in done.stderr
    assert "loading the model" not in done.stderr


@pytest.mark.parametrize("verb", ["generate", "evaluate"])
def test_where_no_answer_can_be_written_is_known_before_the_model_is_loaded(place, tmp_path, verb):
    (tmp_path / "file").write_text("")
    words = ["--file", place / "prompts.txt"] if verb == "generate" else ["--score", "f1"]
    done = invoke(verb, place / "whole", *words, "--out", tmp_path / "file" / "a.jsonl", code=4)
    assert "cannot be written" in done.stderr
    assert "loading the model" not in done.stderr


@pytest.mark.parametrize("content", ["{", "[1]", '{"base_model_name_or_path": 5}'])
def test_an_adapter_whose_config_cannot_be_read_is_a_sentence(place, tmp_path, content):
    shutil.copytree(place / "whole" / "adapter", tmp_path / "a")
    (tmp_path / "a" / "adapter_config.json").write_text(content)
    done = invoke("generate", tmp_path / "a", "hello", code=2)
    assert "Error: " in done.stderr
    assert str(tmp_path / "a") in done.stderr


@pytest.mark.parametrize(("file", "content"), [("model.safetensors", "cut"), ("tokenizer_config.json", "[]")])
def test_a_damaged_model_is_a_sentence(place, tmp_path, file, content):
    shutil.copytree(place / "model", tmp_path / "m")
    (tmp_path / "m" / file).write_text(content)
    assert "cannot be loaded" in invoke("generate", tmp_path / "m", "hello", code=2).stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_file_of_prompts_between_answers_and_the_rest_comes_later(place, tmp_path, monkeypatch, number):
    from tunesmith import answer_file as module

    out, append = tmp_path / "a.jsonl", module._append
    words = ["--file", place / "prompts.txt", "--out", out, "--max-new-tokens", 3, "--batch-size", 1]

    def struck(*arguments):
        append(*arguments)
        os.kill(os.getpid(), number)

    with monkeypatch.context() as patched:
        patched.setattr(module, "_append", struck)
        done = invoke("generate", place / "whole", *words, code=128 + number)
    assert "the same command answers the 2 that are missing" in done.stderr
    assert len(out.read_text().splitlines()) == 1
    assert "2 answered, 1 were there already" in invoke("generate", place / "whole", *words).stderr
    assert [json.loads(line)["prompt"] for line in out.read_text().splitlines()] == ["first", "second", "third"]


@pytest.mark.parametrize(("system", "is_told"), [("Say it back.", True), ("Say it {{ 'back' }}.", False)])
def test_the_system_turn_that_every_row_had_is_asked_with(place, tmp_path, system, is_told):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"q": f"n{n}", "a": f"n{n}"}) + "\n" for n in range(8)))
    values = recipe(place / "model", tmp_path / "rows.jsonl", tmp_path / "run")
    values["data"] |= {"format": {"system": system, "prompt": "{{ q }}", "answer": "{{ a }}"}, "held_out": 2}
    values["train"] |= {"epochs": 1}
    run.train(from_dict(values), quiet=True)
    done = invoke("generate", tmp_path / "run", "n1", "--max-new-tokens", 3)
    given = invoke("generate", tmp_path / "run", "n1", "--max-new-tokens", 3, "--system", "Say it back.")
    assert ("system turn, as in training" in done.stderr) == is_told
    assert "system turn" not in given.stderr
    if is_told:
        assert done.stdout == given.stdout

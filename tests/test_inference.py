"""Chat, generate, evaluate and merge as typed: on runs that ended and runs that did not, with nothing ignored."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from small_run import make_model, make_rows, recipe
from transformers import AutoTokenizer
from typer.testing import CliRunner

import tunesmith
from tunesmith import cli, run
from tunesmith.data.types import Message
from tunesmith.errors import AdapterError, DataError, Interrupted, RecipeError
from tunesmith.events import StepDone
from tunesmith.recipe import from_dict

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, rows, a run that ended (`whole`) and one that SIGTERM ended after step 4 (`cut`)."""
    folder = tmp_path_factory.mktemp("place")
    make_model(folder / "model")
    make_rows(folder / "rows.jsonl", 10)

    def strike(event):
        if isinstance(event, StepDone) and event.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    values = [recipe(folder / "model", folder / "rows.jsonl", folder / name) for name in ("whole", "cut")]
    run.train(from_dict(values[0]), quiet=True)
    with pytest.raises(Interrupted):
        run.train(from_dict(values[1]), quiet=True, listeners=[strike])
    (folder / "prompts.txt").write_text("first\n\n  \nsecond\nthird\n")
    return folder


def invoke(*words, code=0, **options):
    done = CliRunner().invoke(cli.app, [str(word) for word in words], **options)
    assert done.exit_code == code, done.output
    return done


def figures(*words):
    return json.loads(invoke("evaluate", *words, "--json").stdout)


# ---- runs that have not ended


def test_a_run_that_has_not_ended_is_evaluated_at_its_best_checkpoint_and_that_is_said(place):
    done = invoke("evaluate", place / "cut", "--json")
    assert json.loads(done.stdout) == figures(place / "cut" / "checkpoints" / "step-000003")
    assert "has not ended: step-000003, its best checkpoint so far" in done.stderr
    assert "has not ended" not in invoke("evaluate", place / "whole", "--json").stderr
    assert figures(place / "cut", "--adapter", "none")["loss"] > json.loads(done.stdout)["loss"]


def test_a_run_that_has_not_ended_answers_too(place):
    done = invoke("generate", place / "cut", "hello", "--max-new-tokens", 3)
    assert "step-000003" in done.stderr
    assert "has not ended" not in done.stdout
    assert "step-000003 *" in invoke("chat", place / "cut", input="/adapters\n").stdout
    with pytest.warns(UserWarning, match="has not ended"):
        session = tunesmith.open_session(str(place / "cut"))
    assert session.adapter == "step-000003"


def test_a_damaged_best_checkpoint_does_not_stand_in(place, tmp_path):
    shutil.copytree(place / "cut", tmp_path / "cut")
    (tmp_path / "cut" / "checkpoints" / "step-000003" / "adapter_model.safetensors").write_bytes(b"torn")
    assert "step-000004" in invoke("evaluate", tmp_path / "cut", "--json").stderr


def test_what_a_run_that_has_not_ended_cannot_do_says_what_to_type(place, tmp_path):
    done = invoke("merge", place / "cut", tmp_path / "out", code=2)
    assert f"tunesmith train {place}/cut --resume" in done.stderr
    assert f"{place}/cut/checkpoints/step-000003" in done.stderr
    (tmp_path / "begun").mkdir()
    for name in ("recipe.yaml", "provenance.json"):
        shutil.copy(place / "cut" / name, tmp_path / "begun" / name)
    done = invoke("generate", tmp_path / "begun", "hello", code=2)
    assert "has saved nothing yet" in done.stderr
    assert f"tunesmith train {tmp_path}/begun --resume" in done.stderr


@pytest.mark.parametrize(("source", "said"), [
    ("nothing-here", "there is no folder"), ("rows.jsonl", "is a file"), ("", "there is no adapter in"),
])  # fmt: skip
def test_what_is_no_source_is_said_for_what_it_is(place, tmp_path, source, said):
    verb = (
        ("merge", place / source, tmp_path / "out") if source == "nothing-here" else ("generate", place / source, "x")
    )
    assert said in invoke(*verb, code=2).stderr


def test_training_goes_on_from_an_ended_run_only(place, tmp_path):
    values = recipe(place / "model", place / "rows.jsonl", tmp_path / "run")
    values = values | {"model": {**values["model"], "adapter": str(place / "cut")}, "adapter": {}}
    with pytest.raises(AdapterError, match="has not ended"):
        run.train(from_dict(values), quiet=True)


# ---- adapters with tokens and a template of their own


@pytest.fixture(scope="module")
def talker(place):
    """A run on a base without a chat template, which got one, and a token of its own. The base's files are fp32."""
    shutil.copytree(place / "model", place / "bare")
    (place / "bare" / "chat_template.jinja").unlink()
    values = recipe(place / "bare", place / "rows.jsonl", place / "talker", epochs=1)
    values["model"] |= {"template": "chatml", "add_tokens": ["<think>"], "dtype": "bfloat16"}
    run.train(from_dict(values), quiet=True)
    return place / "talker"


def test_training_goes_on_with_the_tokens_and_the_template_of_the_adapter(place, talker, tmp_path):
    values = recipe(place / "bare", place / "rows.jsonl", tmp_path / "on", epochs=1) | {"adapter": {}}
    values["model"]["adapter"] = str(talker)
    trained = run.train(from_dict(values), quiet=True)
    asked = [Message("user", "a <think> b")]
    wanted = tunesmith.open_session(str(talker)).prompt_ids(asked)
    assert trained.session.tokenizer.convert_tokens_to_ids("<think>") in wanted
    assert trained.session.prompt_ids(asked) == wanted
    assert tunesmith.open_session(str(tmp_path / "on")).prompt_ids(asked) == wanted

    values["model"]["add_tokens"] = ["<think>", "<more>"]
    values["output"]["folder"] = str(tmp_path / "more")
    with pytest.raises(RecipeError, match="no rows for tokens") as caught:
        run.train(from_dict(values), quiet=True)
    assert caught.value.found == "<more>"


def test_a_bare_base_is_asked_in_the_words_of_the_adapter_put_on_it(place, talker):
    direct = invoke("generate", talker, "hi <think>", "--max-new-tokens", 5).stdout
    assert invoke("generate", place / "bare", "hi <think>", "--max-new-tokens", 5, "--adapter", talker).stdout == direct
    scored = ("--data", place / "rows.jsonl", "--adapter", talker)
    assert figures(place / "bare", *scored)["loss"] == figures(talker, *scored[:2])["loss"]


def test_a_base_without_a_template_is_given_one(place, talker, tmp_path):
    """Base and run are asked in the same words, so that what tuning adds can be seen."""
    bare = invoke("generate", place / "bare", "hi", code=2)
    assert "--template" in bare.stderr
    direct = invoke("generate", talker, "hi", "--max-new-tokens", 5, "--adapter", "none").stdout
    assert invoke("generate", place / "bare", "hi", "--max-new-tokens", 5, "--template", "chatml").stdout
    invoke("chat", place / "bare", "--template", "chatml", "--max-new-tokens", 2, input="hi\n")
    assert direct
    scored = figures(place / "bare", "--recipe", talker, "--data", place / "rows.jsonl")
    assert scored == pytest.approx(figures(talker, "--data", place / "rows.jsonl", "--adapter", "none"), rel=0.02)


def test_an_adapter_that_knows_other_words_is_told_of(place, talker):
    said = "talker was trained with another chat template or other tokens: it is asked with its own"
    assert said in invoke("chat", place / "whole", "--adapter", talker, "--base", place / "bare", input="").stderr
    assert said not in invoke("chat", place / "bare", "--adapter", talker, input="").stderr


def test_each_adapter_is_asked_in_its_own_words_whichever_was_there_first(place, talker, tmp_path):
    """Each answer beside the others is that of the adapter alone: its template, its tokens, where it ends."""
    params = tunesmith.Params(max_new_tokens=6)
    question = "hi <think> there"
    other = run.train(
        from_dict(recipe(place / "model", place / "rows.jsonl", tmp_path / "other", epochs=1)), quiet=True
    ).folder
    wanted, prompts = {}, {}
    for folder in (talker, other):
        alone = tunesmith.open_session(str(folder), base=str(place / "model"), dtype="float32")
        prompts[folder] = alone.prompt_ids([Message("user", question)])
        wanted[folder] = alone.answer([question], params=params)[0]
    assert prompts[talker] != prompts[other]
    for first, second in ((talker, other), (other, talker)):
        session = tunesmith.open_session(str(first), base=str(place / "model"), dtype="float32")
        with pytest.warns(UserWarning, match="it is asked with its own"):
            called = session.load_adapter(second)
        assert session.prompt_ids([Message("user", question)], adapter=called) == prompts[second]
        assert session.prompt_ids([Message("user", question)], adapter=session.adapter) == prompts[first]
        both = session.answer([question] * 2, adapters=[session.adapter, called], params=params)
        assert both == [wanted[first], wanted[second]]
        session.unload_adapter(called)
        assert called not in session.words
    session = tunesmith.open_session(str(place / "model"), dtype="float32")
    with pytest.warns(UserWarning, match="it is asked with its own"):
        called = session.load_adapter(talker)
    assert session.answer([question], adapters=[called], params=params) == [wanted[talker]]
    with pytest.raises(AdapterError, match="1 for 2"):
        session.answer([question] * 2, adapters=[called])
    assert "<think>" not in session.tokenizer.get_vocab()


def test_a_template_that_is_named_goes_before_that_of_the_adapter(talker):
    asked = [Message("user", "hi")]
    named = tunesmith.open_session(str(talker), template="plain")
    assert named.prompt_ids(asked, adapter=named.adapter) != tunesmith.open_session(str(talker)).prompt_ids(asked)


def test_a_base_that_is_named_vouches_for_peft_s_folder(place, tmp_path):
    """PEFT notes a place that is on no other machine; shapes are all that can be checked."""
    shutil.copytree(place / "whole" / "adapter", tmp_path / "theirs")
    (tmp_path / "theirs" / "tunesmith.json").unlink()
    file = tmp_path / "theirs" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "/content/smol"}))
    assert "--base" in invoke("generate", tmp_path / "theirs", "hi", code=2).stderr
    assert invoke(
        "generate", tmp_path / "theirs", "hi", "--max-new-tokens", 4, "--base", place / "model"
    ).stdout.strip()
    answers = [
        tunesmith.open_session(str(folder), base=str(place / "model"), dtype="float32").answer(["hi"])
        for folder in (tmp_path / "theirs", place / "whole")
    ]
    assert answers[0] == answers[1]
    put_on = ("generate", place / "model", "hi", "--adapter", tmp_path / "theirs")
    assert "write model as base_model_name_or_path" in invoke(*put_on, code=2).stderr


def test_a_base_on_a_base_is_refused(place):
    assert (
        "is a model, and so is --base"
        in invoke("generate", place / "model", "hi", "--base", place / "bare", code=2).stderr
    )


def test_merged_weights_have_the_dtype_that_is_asked_for_or_that_of_the_base(talker, tmp_path):
    for dtype, name in ((None, "float32"), ("bfloat16", "bfloat16"), ("float16", "float16")):
        invoke("merge", talker, tmp_path / name, *(("--dtype", dtype) if dtype else ()))
        assert json.loads((tmp_path / name / "config.json").read_text())["dtype"] == name
    ends = json.loads((tmp_path / name / "generation_config.json").read_text())["eos_token_id"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
    assert tokenizer.convert_ids_to_tokens(ends) == ["</s>", "<|im_end|>"]
    assert "there is no dtype int8" in invoke("merge", talker, tmp_path / "no", "--dtype", "int8", code=2).stderr


def test_a_base_whose_sampling_contradicts_itself_is_merged(place, tmp_path):
    shutil.copytree(place / "model", tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text('{"eos_token_id": 2, "top_p": 0.6, "do_sample": false}')
    invoke("merge", place / "whole", tmp_path / "out", "--base", tmp_path / "model")
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (written["do_sample"], written["top_p"]) == (True, 0.6)


# ---- runs whose files are elsewhere


@pytest.fixture
def moved(place, tmp_path):
    """A run whose rows and base are not where they were."""
    make_rows(tmp_path / "rows.jsonl", 10)
    shutil.copytree(place / "model", tmp_path / "model")
    run.train(from_dict(recipe(tmp_path / "model", tmp_path / "rows.jsonl", tmp_path / "run", epochs=1)), quiet=True)
    (tmp_path / "rows.jsonl").rename(tmp_path / "elsewhere.jsonl")
    return tmp_path


def test_a_model_answers_when_the_rows_that_it_learned_from_are_gone(moved):
    invoke("generate", moved / "run", "hello", "--max-new-tokens", 2)
    invoke("chat", moved / "run" / "adapter", input="hello\n/quit\n")
    invoke("merge", moved / "run", moved / "merged")
    assert figures(moved / "run", "--data", moved / "elsewhere.jsonl")["rows"] == 10
    assert "rows.jsonl" in invoke("evaluate", moved / "run", code=2).stderr
    assert "rows.jsonl" in invoke("train", moved / "run", "--resume", code=2).stderr


def test_a_base_that_is_elsewhere_is_asked_for_and_taken(moved):
    (moved / "model").rename(moved / "base")
    for verb in (
        ("generate", moved / "run", "hello"),
        ("evaluate", moved / "run", "--data", moved / "elsewhere.jsonl"),
    ):
        done = invoke(*verb, code=2)
        assert "not where it was" in done.stderr
        assert "--base" in done.stderr
        invoke(*verb, "--base", moved / "base")


def test_rows_that_came_from_python_have_to_come_from_there_again(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"what is {i}", "completion": f"it is {i}"} for i in range(4)]

    def strike(event):
        if isinstance(event, StepDone) and event.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as caught:
        tunesmith.tune(str(place / "model"), rows, folder="run", quiet=True, train__steps=3, listeners=[strike])
    told = caught.value.fix.removesuffix(" goes on with the same rows")
    assert told == "tunesmith.train(tunesmith.load('run'), rows=rows, resume=True)"
    done = invoke("train", "run", "--resume", code=2)
    assert "came from Python" in done.stderr
    assert "resume=True" in done.stderr
    trained = eval(told, {"tunesmith": tunesmith, "rows": rows})
    assert trained.ended.step == 3


# ---- nothing that is typed is ignored


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


def test_answers_of_another_run_of_the_same_name_are_not_taken_for_its_own(place, tmp_path):
    out = tmp_path / "a.jsonl"
    words = ["--file", place / "prompts.txt", "--out", out, "--max-new-tokens", 3]
    (tmp_path / "other").mkdir()
    shutil.copytree(place / "cut" / "checkpoints" / "step-000003", tmp_path / "other" / "whole")
    invoke("generate", place / "whole", *words)
    assert "0 answered, 3 were there already" in invoke("generate", place / "whole", *words).stderr
    same_name = invoke("generate", tmp_path / "other" / "whole", *words, "--base", place / "model", code=2)
    assert "other settings or weights" in same_name.stderr


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

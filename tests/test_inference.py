"""Chat, generate, evaluate and merge as typed: on runs that ended and runs that did not, wherever their files lie."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest
from furnished import cut_short, figures, furnish, invoke
from small_run import make_rows, recipe
from transformers import AutoTokenizer

import tunesmith
from tunesmith import run
from tunesmith.data.types import Message
from tunesmith.errors import AdapterError, DataError, Interrupted, RecipeError
from tunesmith.events import StepDone
from tunesmith.recipe import from_dict

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, rows, a run that ended (`whole`) and one that SIGTERM ended after step 4 (`cut`)."""
    folder = furnish(tmp_path_factory.mktemp("place"))
    cut_short(folder)
    return folder


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


def test_answers_of_another_run_of_the_same_name_are_not_taken_for_its_own(place, tmp_path):
    out = tmp_path / "a.jsonl"
    words = ["--file", place / "prompts.txt", "--out", out, "--max-new-tokens", 3]
    (tmp_path / "other").mkdir()
    shutil.copytree(place / "cut" / "checkpoints" / "step-000003", tmp_path / "other" / "whole")
    invoke("generate", place / "whole", *words)
    assert "0 answered, 3 were there already" in invoke("generate", place / "whole", *words).stderr
    same_name = invoke("generate", tmp_path / "other" / "whole", *words, "--base", place / "model", code=2)
    assert "other settings or weights" in same_name.stderr


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


def test_a_run_that_learned_plain_text_is_asked_by_plain_text(place, tmp_path):
    """On a base without a template its rows can have been nothing else. Merged weights get no template from it."""
    (tmp_path / "text.txt").write_text("".join(f"it is what it is {i}\n\n" for i in range(9)))
    shutil.copytree(place / "model", tmp_path / "bare")
    (tmp_path / "bare" / "chat_template.jinja").unlink()
    run.train(from_dict(recipe(tmp_path / "bare", tmp_path / "text.txt", tmp_path / "text", epochs=1)), quiet=True)
    few = ("--max-new-tokens", 4)
    done = invoke("generate", tmp_path / "text", "it is", *few)
    assert done.stderr.count("goes on from the text") == 1
    named = invoke("generate", tmp_path / "text", "it is", *few, "--template", "plain")
    assert done.stdout == named.stdout
    assert "goes on" not in named.stderr
    assert invoke("generate", tmp_path / "bare", "it is", *few, "--adapter", tmp_path / "text").stdout == done.stdout
    assert invoke("chat", tmp_path / "text", *few, input="it is\n").stdout == done.stdout
    heard = []
    session = tunesmith.open_session(str(tmp_path / "bare"), dtype="float32", say=heard.append)
    with pytest.raises(DataError, match=r"(?s)no chat template.*--template.*plain"):
        session.answer(["it is"])
    called = session.load_adapter(tmp_path / "text")
    assert (
        session.answer(["it is"], adapters=[called], params=tunesmith.Params(max_new_tokens=4))[0] + "\n" == done.stdout
    )
    assert len(heard) == 1
    session.unload_adapter(called)
    assert "goes on" not in invoke("merge", tmp_path / "text", tmp_path / "merged").stderr
    assert not AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template


def test_a_run_on_a_base_with_a_template_is_asked_by_it(place, tmp_path):
    (tmp_path / "text.txt").write_text("".join(f"it is what it is {i}\n\n" for i in range(9)))
    run.train(from_dict(recipe(place / "model", tmp_path / "text.txt", tmp_path / "text", epochs=1)), quiet=True)
    asked = [Message("user", "hi")]
    whole = tunesmith.open_session(str(place / "whole"))
    assert tunesmith.open_session(str(tmp_path / "text")).prompt_ids(asked) == whole.prompt_ids(asked)


# ---- a template without a system turn


def test_a_system_turn_that_a_template_refuses_goes_into_the_users(place, tmp_path):
    shutil.copytree(place / "model", tmp_path / "strict")
    file = tmp_path / "strict" / "chat_template.jinja"
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    file.write_text(refuses + file.read_text())
    row = {"messages": [{"role": role, "content": "hi"} for role in ("system", "user", "assistant")]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    into = ("--system-turn", "into-user")
    evaluated = ("evaluate", tmp_path / "strict", "--data", tmp_path / "rows.jsonl")
    for verb in (
        ("generate", tmp_path / "strict", "hi", "--system", "be brief", "--max-new-tokens", 2),
        evaluated,
        (*evaluated, "--score", "exact", "--max-new-tokens", 2),
    ):
        refused = invoke(*verb, code=2).stderr
        assert " ".join(into) in refused or "data.system_turn=into-user" in refused
        assert invoke(*verb, *into).stdout
    talk = ("chat", tmp_path / "strict", "--system", "be brief", "--max-new-tokens", 2)
    assert "it has no system turn" in invoke(*talk, input="hi\n").stdout
    assert "it has no system turn" not in invoke(*talk, *into, input="hi\n").stdout
    assert "neither keep nor into-user" in invoke(*talk, "--system-turn", "away", code=2).stderr
    with pytest.raises(RecipeError, match="no system_turn away"):
        tunesmith.open_session(str(tmp_path / "strict"), system_turn="away")


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

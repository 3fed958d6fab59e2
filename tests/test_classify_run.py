"""Whole runs that end in a head: resumed bit for bit, asked, scored, merged, and read back in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from small_run import make_model, recipe
from thinned import thinned
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from tunesmith import inference
from tunesmith.classifier import Classifier
from tunesmith.data.types import Message
from tunesmith.errors import AdapterError, DataError, ModelError, RecipeError
from tunesmith.events import StepDone
from tunesmith.machine import cache_folder
from tunesmith.models.session import Params
from tunesmith.objectives import rewards, rewards_built_in
from tunesmith.recipe import from_dict
from tunesmith.run import check, train
from tunesmith.session import open_session


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    rows = [{"text": f"{'win win ' * (i % 3)}number {i}", "label": "spam" if i % 3 else "ham"} for i in range(24)]
    return write(tmp_path_factory.mktemp("texts") / "texts.jsonl", rows)


def values(model, rows, folder, objective=None, adapter=None, **keys):
    made = recipe(model, rows, folder)
    made["data"]["held_out"] = 6
    made["objective"] = {"kind": "classify", **(objective or {})}
    made["adapter"] = {"r": 2, "dropout": 0.2} if adapter is None else adapter
    made["train"] |= {"steps": 6, "batch_size": 4} | keys
    del made["train"]["epochs"]
    return made


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["event"] == "step"]


WAYS = {
    "lora": ({}, None),
    "head": ({"way": "head"}, {}),
    "last block": ({"way": "head"}, {"last_blocks": 1}),
    "full": ({}, {"method": "full"}),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_run_stopped_and_resumed_is_the_unbroken_run(model, texts, tmp_path, way):
    objective, adapter = WAYS[way]
    train(from_dict(values(model, texts, tmp_path / "a", objective, adapter)), quiet=True)
    stopped = from_dict(values(model, texts, tmp_path / "b", objective, adapter))
    train(stopped, quiet=True, listeners=[lambda e: "stop" if isinstance(e, StepDone) and e.step == 4 else None])
    train(stopped, resume=True, quiet=True)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert len(losses(tmp_path / "a")) == 6
    one, other = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in "ab")
    assert all(torch.equal(other[name], tensor) for name, tensor in one.items())
    assert "base_model.model.score.weight" in one
    assert (tmp_path / "a" / "classes.png").stat().st_size > 10_000


def test_what_frozen_blocks_give_is_shared_by_heads_of_several_seeds(model, texts, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "kernels").symlink_to(cache_folder() / "kernels")
    monkeypatch.setenv("TUNESMITH_CACHE", str(cache))
    heads = []
    for seed in (1, 2):
        made = values(
            model, texts, tmp_path / str(seed), {"way": "head"}, {"last_blocks": 1}, seed=seed, cache_frozen=True
        )
        made["data"]["held_out"] = str(write(tmp_path / "held_out.jsonl", [{"text": "win", "label": "spam"}] * 2))
        train(from_dict(made), quiet=True)
        heads.append(load_file(tmp_path / str(seed) / "adapter" / "adapter_model.safetensors"))
    assert not torch.equal(*(head["base_model.model.score.weight"] for head in heads))
    assert len(list((cache / "frozen").iterdir())) == 1


@pytest.mark.parametrize("weights", ["balanced", {"spam": 3.0}])
def test_what_a_class_weighs_is_the_same_in_the_run_after_it_and_merged(model, texts, tmp_path, weights):
    made = values(model, texts, tmp_path / "a", {"class_weights": weights, "labels": ["spam", "ham"]})
    trained = train(from_dict(made), quiet=True)
    assert inference.evaluate(tmp_path / "a")["loss"] == pytest.approx(trained.ended.best_metrics["loss"], abs=1e-5)
    head = trained.session.head
    assert len(set(head.weights)) == 2
    assert open_session(str(tmp_path / "a")).head == head
    inference.merge(tmp_path / "a", tmp_path / "merged", dtype="float32")
    assert open_session(str(tmp_path / "merged")).head == head


def test_special_tokens_of_the_recipe_s_own_go_with_the_classifier(model, texts, tmp_path):
    made = values(model, texts, tmp_path / "a")
    made["model"]["special_tokens"] = {"pad": "<|end|>", "eos": "<|user|>"}
    trained = train(from_dict(made), quiet=True)
    asked = ["win win number 3", "number 77"]
    again = open_session(str(tmp_path / "a"))
    assert (again.tokenizer.pad_token, again.tokenizer.eos_token) == ("<|end|>", "<|user|>")
    assert again.model.config.pad_token_id == again.tokenizer.pad_token_id
    for one, other in zip(Classifier(trained.session).classify(asked), Classifier(again).classify(asked), strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


@pytest.mark.parametrize("way", thinned([*WAYS, "features"], lambda way: way in ("lora", "features")))
def test_the_head_survives_saving_merging_and_a_fresh_process(model, texts, tmp_path, way, capsys):
    objective, adapter = WAYS.get(way, ({"way": "features"}, {}))
    trained = train(from_dict(values(model, texts, tmp_path / "a", objective, adapter)), quiet=True)
    asked = ["win win number 3", "number 77", "win number 4"]
    made = Classifier(trained.session).classify(asked)
    assert set(made[0].probabilities) == {"ham", "spam"}
    again = Classifier(open_session(str(tmp_path / "a"))).classify(asked)
    for one, other in zip(made, again, strict=True):
        assert one.label == other.label
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
    found = inference.evaluate(tmp_path / "a")
    best = trained.ended.best_metrics
    assert {name: found[name] for name in best} == pytest.approx(best, abs=1e-4)
    inference.merge(tmp_path / "a", tmp_path / "merged", dtype="float32")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert plain.config.id2label == {0: "ham", 1: "spam"}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    for text, one in zip(asked, made, strict=True):
        with torch.no_grad():
            shares = plain(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0].tolist()
        assert list(one.probabilities.values()) == pytest.approx(shares, abs=1e-4)
    merged = Classifier(open_session(str(tmp_path / "merged")))
    assert merged.head == trained.session.head
    assert [one.label for one in merged.classify(asked)] == [one.label for one in made]
    assert pipeline("text-classification", model=plain, tokenizer=tokenizer)(asked[0])[0]["label"] in ("ham", "spam")
    if way == "lora":
        code = (
            "import sys; from tunesmith.session import open_session; from tunesmith.classifier import Classifier; "
            "print(Classifier(open_session(sys.argv[1])).classify([sys.argv[2]])[0].probabilities['spam'])"
        )
        ran = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "a"), asked[0]], capture_output=True, text=True, check=True
        )
        assert float(ran.stdout) == pytest.approx(made[0].probabilities["spam"], abs=1e-5)
    capsys.readouterr()


def test_one_setting_parts_the_three_ways_and_what_does_not_fit_is_refused(model, texts, tmp_path):
    rows = values(model, texts, tmp_path / "a", {"way": "head"}, {})
    assert from_dict(rows).recipe.adapter.model_dump()["targets"] == "none"
    assert from_dict(rows, ["adapter.last_blocks=1"]).recipe.adapter.model_dump()["method"] == "full"
    for wrong, said in {
        "adapter.method=lora": "leaves as it is",
        "adapter.method=prefix": "trains no head",
        "objective.fit=svm": "is of way features alone",
        "objective.kind=clasify": "classify",
    }.items():
        with pytest.raises(RecipeError, match=said):
            from_dict(rows, [wrong])
    whole = values(model, texts, tmp_path / "a", {"way": "all"}, {"method": "full", "targets": "none"})
    with pytest.raises(RecipeError, match="nothing but the head would learn"):
        from_dict(whole)
    with pytest.raises(RecipeError, match="features trains no block"):
        from_dict(rows, ["objective.way=features", "adapter.last_blocks=1"])


def test_features_are_fitted_without_a_step_and_resumed_as_they_were(model, texts, tmp_path):
    resolved = from_dict(values(model, texts, tmp_path / "a", {"way": "features"}, {}))
    first = train(resolved, quiet=True)
    assert first.ended.step == 0
    tensors = load_file(tmp_path / "a" / "adapter" / "adapter_model.safetensors")
    again = train(resolved, resume=True, quiet=True)
    assert again.ended.best_metrics == first.ended.best_metrics
    found = load_file(tmp_path / "a" / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_several_labels_and_ordered_classes_run(model, tmp_path, capsys):
    many = write(
        tmp_path / "many.jsonl",
        [{"text": f"row {i}", "labels": [n for n in ("a", "b", "c") if (i + ord(n)) % 2]} for i in range(20)],
    )
    trained = train(from_dict(values(model, many, tmp_path / "m", {"classes": "several"})), quiet=True)
    made = Classifier(trained.session).classify(["row 3"])[0]
    assert set(made.probabilities) == {"a", "b", "c"}
    assert len(trained.session.head.thresholds) == 3
    assert "macro_f1" in inference.evaluate(tmp_path / "m")
    stars = write(tmp_path / "stars.jsonl", [{"text": f"row {i}", "label": 1 + i % 4} for i in range(20)])
    trained = train(from_dict(values(model, stars, tmp_path / "s", {"classes": "ordered"})), quiet=True)
    made = Classifier(trained.session).classify(["row 3"])[0]
    assert sum(made.probabilities.values()) == pytest.approx(1)
    assert list(made.probabilities) == ["1", "2", "3", "4"]
    assert "mean_error" in inference.evaluate(tmp_path / "s")
    capsys.readouterr()


def test_generate_names_the_class_and_chat_is_refused(model, texts, tmp_path, capsys):
    train(from_dict(values(model, texts, tmp_path / "a")), quiet=True)
    inference.generate(tmp_path / "a", prompt="win win")
    said = capsys.readouterr().out
    assert said.splitlines()[0] in ("ham", "spam")
    assert "%" in said
    inference.generate(tmp_path / "a", file=texts, out=tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == list(range(1, 25))
    assert set(lines[0]["probabilities"]) == {"ham", "spam"}
    with pytest.raises(AdapterError, match="writes no answers"):
        inference.chat(tmp_path / "a")
    session = open_session(str(tmp_path / "a"))
    with pytest.raises(AdapterError, match="writes no answers"):
        session.answer(["hello"])
    with pytest.raises(AdapterError, match="gives no rewards"):
        Classifier(session).rewards(["hello"])
    with pytest.raises(DataError, match="no such file"):
        inference.generate(tmp_path / "a", file=tmp_path / "none.jsonl")
    capsys.readouterr()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    rows = [{"prompt": f"what is {i}", "chosen": f"it is {i * i}", "rejected": f"no {i} idea"} for i in range(14)]
    return write(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", rows)


def reward_model(model, pairs, folder):
    made = values(model, pairs, folder, {"margin": 0.1, "centring": 0.01}, {"r": 2})
    made["objective"]["kind"] = "reward"
    return made


def test_a_reward_model_is_trained_resumed_merged_and_asked(model, pairs, tmp_path, capsys):
    trained = train(from_dict(reward_model(model, pairs, tmp_path / "a")), quiet=True)
    stopped = from_dict(reward_model(model, pairs, tmp_path / "b"))
    train(stopped, quiet=True, listeners=[lambda e: "stop" if isinstance(e, StepDone) and e.step == 3 else None])
    train(stopped, resume=True, quiet=True)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    found = inference.evaluate(tmp_path / "a", data=str(pairs))
    classifier = Classifier(trained.session)
    for side in ("chosen", "rejected"):
        rows = [json.loads(line) for line in pairs.read_text().splitlines()]
        talks = [[Message("user", row["prompt"]), Message("assistant", row[side])] for row in rows]
        mean = sum(classifier.rewards(talks)) / len(rows)
        assert found[f"rewards/{side}"] == pytest.approx(mean, abs=1e-5)
    inference.generate(tmp_path / "a", file=pairs, out=tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    talk = [Message("user", "what is 0"), Message("assistant", "it is 0")]
    assert lines[0]["reward"] == pytest.approx(classifier.rewards([talk])[0], abs=1e-5)
    plain = [{"role": turn.role, "content": turn.content} for turn in talk]
    assert classifier.rewards([plain]) == classifier.rewards([talk])
    with pytest.raises(DataError, match="one text alone"):
        classifier.rewards("what is 0")
    talk = [Message("user", "what is 3"), Message("assistant", "it is 9")]
    reward = Classifier(trained.session).rewards([talk])[0]
    inference.merge(tmp_path / "a", tmp_path / "merged", dtype="float32")
    merged = Classifier(open_session(str(tmp_path / "merged"), dtype="float32"))
    assert merged.rewards([talk])[0] == pytest.approx(reward, abs=1e-4)
    with pytest.raises(AdapterError, match="gives rewards, not classes"):
        Classifier(trained.session).classify(["x"])
    capsys.readouterr()


def test_a_reward_model_judges_what_a_policy_samples(model, pairs, tmp_path, monkeypatch):
    train(from_dict(reward_model(model, pairs, tmp_path / "rm")), quiet=True)
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": f"what is {i}"} for i in range(6)])
    made = recipe(model, prompts, tmp_path / "policy")
    made["adapter"] = {"r": 2}
    made["data"]["held_out"] = 2
    made["objective"] = {
        "kind": "policy", "rewards": [f"model:{tmp_path / 'rm'}"], "num_generations": 2, "max_completion_length": 6,
    }  # fmt: skip
    made["train"] = {"steps": 2, "batch_size": 2, "learning_rate": 0.01}
    seen = []
    judge = rewards_built_in.WITH_ARGUMENT["model"]

    def spying(source):
        made = judge(source)

        def told(asked, completions, **columns):
            seen.extend(zip([prompt.messages[-1].content for prompt in asked], completions, strict=True))
            return made(asked=asked, completions=completions, **columns)

        return rewards.Judge(told, made.ready, made.digest)

    monkeypatch.setitem(rewards_built_in.WITH_ARGUMENT, "model", spying)
    trained = train(from_dict(made), quiet=True)
    last = seen[-2:]  # the held-out prompts, answered at the end
    talks = [[Message("user", asked), Message("assistant", said)] for asked, said in last]
    wanted = Classifier(open_session(str(tmp_path / "rm"))).rewards(talks)
    metrics = [json.loads(line) for line in (tmp_path / "policy" / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line["metrics"]["reward"] for line in metrics if line["event"] == "evaluation"]
    assert evaluated[-1] == pytest.approx(sum(wanted) / 2, abs=1e-5)
    assert trained.ended.step == 2
    made["objective"]["rewards"] = [f"model:{tmp_path / 'nothing'}"]
    made["output"] = {"folder": str(tmp_path / "other")}
    with pytest.raises(ModelError, match="nothing"):
        train(from_dict(made), quiet=True)


def test_rows_of_a_template_are_asked_as_they_were_trained(model, tmp_path, capsys):
    rows = [{"body": f"{'win ' * (i % 3)}number {i}", "kind": "spam" if i % 3 else "ham"} for i in range(24)]
    data = write(tmp_path / "rows.jsonl", rows)
    for name, form in {
        "plain": {"text": "mail: {{ body }}", "label": "{{ kind }}"},
        "chat": {"system": "Sort mail.", "prompt": "{{ body }}", "label": "{{ kind }}"},
    }.items():
        made = values(model, data, tmp_path / name)
        made["data"]["format"] = form
        trained = train(from_dict(made), quiet=True)
        inference.generate(tmp_path / name, file=data, out=tmp_path / f"{name}.jsonl")
        lines = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        first = f"mail: {rows[1]['body']}" if name == "plain" else rows[1]["body"]
        text = [Message("system", "Sort mail."), Message("user", first)] if name == "chat" else first
        wanted = Classifier(trained.session).classify([text])[0].probabilities
        assert lines[1]["probabilities"] == pytest.approx(wanted, abs=1e-5)
        with pytest.raises(RecipeError, match="writes no words"):
            inference.generate(tmp_path / name, prompt="x", temperature=0.5)
    assert trained.session.head.has_turns
    capsys.readouterr()


def test_a_long_text_is_cut_as_training_cut_it_and_that_is_said(model, texts, tmp_path):
    made = values(model, texts, tmp_path / "a")
    made["data"] |= {"max_length": 12, "overlong": "truncate"}
    session = train(from_dict(made), quiet=True).session
    said = []
    session.say = said.append
    long = "win " * 40
    one = Classifier(session, max_length=12).classify([long, "win win"])
    assert said == ["1 text cut to the first 12 tokens"]
    first = session.tokenizer.decode(session.tokenizer(long)["input_ids"][:12])
    assert one[0].probabilities == pytest.approx(Classifier(session).classify([first])[0].probabilities, abs=1e-5)


def test_what_ends_in_a_head_is_not_asked_for_answers_nor_started_from_words(model, texts, pairs, tmp_path, capsys):
    trained = train(from_dict(reward_model(model, pairs, tmp_path / "a")), quiet=True)
    with pytest.raises(AdapterError, match="writes no answers"):
        inference.evaluate(tmp_path / "a", score="exact")
    with pytest.raises(AdapterError, match="writes no answers"):
        trained.session.generate([[5, 6]], Params(), adapters=[None])
    words = recipe(model, write(tmp_path / "words.jsonl", [{"prompt": "a", "completion": "b"}] * 8), tmp_path / "w")
    train(from_dict(words), quiet=True)
    on = values(model, texts, tmp_path / "b")
    del on["adapter"]
    on["model"]["adapter"] = str(tmp_path / "w")
    with pytest.raises(AdapterError, match=r"ends in words, and here the model ends in a classification head"):
        train(from_dict(on), quiet=True)
    capsys.readouterr()


def test_a_base_without_a_head_and_a_class_without_rows_are_refused(model, texts, tmp_path, capsys):
    train(from_dict(values(model, texts, tmp_path / "a", {"way": "features"}, {})), quiet=True)
    with pytest.raises(RecipeError, match="no classification head of its own"):
        inference.evaluate(tmp_path / "a", adapter="none")
    more = values(model, texts, tmp_path / "b", {"way": "features", "labels": ["ham", "spam", "other"]}, {})
    with pytest.raises(DataError, match="no training row is of class other"):
        train(from_dict(more), quiet=True)
    capsys.readouterr()


def test_what_the_head_cannot_go_on_from_is_refused(model, texts, tmp_path):
    train(from_dict(values(model, texts, tmp_path / "a")), quiet=True)
    on = values(model, texts, tmp_path / "b", {"labels": ["spam", "ham"]})
    del on["adapter"]
    on["model"]["adapter"] = str(tmp_path / "a")
    with pytest.raises(RecipeError, match="other classes apart"):
        train(from_dict(on), quiet=True)
    del on["objective"]["labels"]
    going = train(from_dict(on), quiet=True)
    assert going.session.head.labels == ("ham", "spam")


@pytest.mark.parametrize("storage", ["nf4", "int8"])
def test_a_head_stands_beside_a_base_in_few_bits(model, texts, tmp_path, storage):
    pytest.importorskip("bitsandbytes")
    made = values(model, texts, tmp_path / "a")
    made["model"]["storage"] = storage
    trained = train(from_dict(made), quiet=True)
    asked = ["win win number 3", "number 8"]
    wanted = [one.probabilities for one in Classifier(trained.session).classify(asked)]
    again = Classifier(open_session(str(tmp_path / "a"))).classify(asked)
    for one, other in zip(again, wanted, strict=True):
        assert one.probabilities == pytest.approx(other, abs=1e-4)


def test_check_shows_the_rows_and_then_what_the_objective_cannot_make_of_them(model, texts, tmp_path, capsys):
    wrong = from_dict(values(model, texts, tmp_path / "a", {"labels": ["ham", "junk"]}))
    with pytest.raises(DataError, match="no class is called spam"):
        check(wrong)
    assert "rows read as labelled" in capsys.readouterr().out
    check(from_dict(values(model, texts, tmp_path / "a")))

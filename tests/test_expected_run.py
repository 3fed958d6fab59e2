"""Whole runs by recipes that say what they expect of their model, and that count steps in tokens and passes."""

from __future__ import annotations

import json
import shutil

import pytest
from small_run import make_model, make_rows, recipe
from transformers import AutoTokenizer

import tunesmith
from tunesmith import inference, run
from tunesmith.data.types import Message
from tunesmith.errors import ModelError
from tunesmith.events import StepDone
from tunesmith.recipe import from_dict

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("expected")
    make_model(folder / "model")
    make_rows(folder / "rows.jsonl", 10)
    return folder


def values(place, folder, train=None, **model):
    made = recipe(place / "model", place / "rows.jsonl", folder, **{"epochs": 1, **(train or {})})
    made["model"] |= model
    return made


EXPECTED = {"architecture": "LlamaForCausalLM", "tokenizer_class": "GPT2Tokenizer"}


def test_what_is_as_expected_leaves_no_trace(place, tmp_path):
    own = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}
    run.train(from_dict(values(place, tmp_path / "run", special_tokens=own, **EXPECTED)), quiet=True)
    assert not (tmp_path / "run" / "adapter" / "tokenizer_config.json").exists()
    run.train(from_dict(values(place, tmp_path / "plain")), quiet=True)
    assert inference.evaluate(tmp_path / "run")["loss"] == inference.evaluate(tmp_path / "plain")["loss"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"architecture": "MistralForCausalLM"},
        {"tokenizer_class": "LlamaTokenizer"},
        {"special_tokens": {"eos": "<|nowhere|>"}},
    ],
)
def test_what_is_otherwise_is_refused_before_any_weight_is_read(place, tmp_path, monkeypatch, wrong):
    monkeypatch.setattr("tunesmith.assemble.load_model", lambda *_, **__: pytest.fail("a weight was read"))
    with pytest.raises(ModelError, match=f"model.{next(iter(wrong))}"):
        run.train(from_dict(values(place, tmp_path / "run", **wrong)), quiet=True)


@pytest.fixture(scope="module")
def ended(place):
    """A run whose answers end with another token than the base's."""
    made = values(place, place / "ended", special_tokens={"eos": "<|end|>"}, **EXPECTED)
    run.train(from_dict(made), quiet=True)
    return place / "ended"


def _says(session, token_id, asked):
    """What comes of a head that gives every other token 0, and this one more."""
    weight = session.model.get_output_embeddings().weight
    kept = weight.data.clone()
    weight.data.zero_()
    made = []
    for row in (kept[token_id], -kept[token_id]):
        weight.data[token_id] = row
        params = tunesmith.Params(max_new_tokens=1)
        made += session.generate([session.prompt_ids(asked)], params, adapters=[session.adapter])
    weight.data.copy_(kept)
    return next(answer for answer in made if answer.token_ids == [token_id])


def test_an_end_of_its_own_travels_with_the_adapter(place, ended, tmp_path):
    own = AutoTokenizer.from_pretrained(ended / "adapter")
    assert own.eos_token == "<|end|>"
    asked = [Message("user", "what is 3")]
    direct = tunesmith.open_session(str(ended))
    beside = tunesmith.open_session(str(place / "model"))
    name = beside.load_adapter(ended)
    for renderer in (direct.renderer, beside.words_of(name).renderer):
        assert own.eos_token_id in renderer.end_ids
        assert own.convert_tokens_to_ids("</s>") not in renderer.end_ids
    assert own.eos_token_id not in beside.words_of(None).renderer.end_ids
    assert beside.prompt_ids(asked, adapter=name) == direct.prompt_ids(asked)
    assert _says(direct, own.eos_token_id, asked).finish_reason == "eos"
    assert _says(direct, own.convert_tokens_to_ids("</s>"), asked).finish_reason == "length"
    inference.merge(ended, tmp_path / "merged")
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").eos_token == "<|end|>"
    assert own.eos_token_id in json.loads((tmp_path / "merged" / "generation_config.json").read_text())["eos_token_id"]


def test_what_is_expected_is_the_model_s_not_the_adapter_s(place, tmp_path):
    """The model's files name a class of old, the tokenizer that goes with the adapter names what transformers made."""
    model = shutil.copytree(place / "model", tmp_path / "model")
    written = json.loads((model / "tokenizer_config.json").read_text()) | {"tokenizer_class": "LlamaTokenizerFast"}
    (model / "tokenizer_config.json").write_text(json.dumps(written))
    expected = {"name": str(model), "tokenizer_class": "LlamaTokenizer", "special_tokens": {"eos": "<|end|>"}}
    run.train(from_dict(values(place, tmp_path / "run", **expected)), quiet=True)
    elsewhere = inference.evaluate(tmp_path / "run", base=str(place / "model"))
    assert inference.evaluate(tmp_path / "run")["loss"] == elsewhere["loss"]
    on = values(place, tmp_path / "on", **expected, adapter=str(tmp_path / "run")) | {"adapter": {}}
    run.train(from_dict(on), quiet=True)
    on["model"]["tokenizer_class"] = "CodeLlamaTokenizer"
    on["output"]["folder"] = str(tmp_path / "refused")
    with pytest.raises(ModelError, match=r"model\.tokenizer_class"):
        run.train(from_dict(on), quiet=True)


def test_training_goes_on_with_the_end_of_the_adapter(place, ended, tmp_path):
    made = values(place, tmp_path / "on", adapter=str(ended)) | {"adapter": {}}
    trained = run.train(from_dict(made), quiet=True)
    assert trained.session.tokenizer.eos_token == "<|end|>"
    assert AutoTokenizer.from_pretrained(tmp_path / "on" / "adapter").eos_token == "<|end|>"


def test_steps_of_tokens_and_evaluations_by_passes(place, tmp_path):
    train = {"epochs": 3, "batch_size": None, "batch_tokens": 100, "evaluate_every": "0.5 epochs", "save_every": 1}
    whole = run.train(from_dict(values(place, tmp_path / "whole", train)), quiet=True)
    resolved = from_dict(values(place, tmp_path / "cut", train))
    run.train(resolved, quiet=True, listeners=[lambda e: "stop" if isinstance(e, StepDone) and e.step == 2 else None])
    run.train(tunesmith.load(str(tmp_path / "cut")), quiet=True, resume=True)

    def told(folder, event):
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [line for line in lines if line["event"] == event]

    steps, evaluated = told(tmp_path / "whole", "step"), told(tmp_path / "whole", "evaluation")
    passes = [step["step"] for step in steps if step["epoch"] == int(step["epoch"])]
    assert len(passes) == 3
    assert set(passes) <= {one["step"] for one in evaluated}
    assert len(evaluated) == 6
    assert sum(step["num_tokens"] for step in steps) == whole.ended.num_tokens
    assert [step["loss"] for step in told(tmp_path / "cut", "step")] == [step["loss"] for step in steps]
    assert "about 100 tokens a step" in (tmp_path / "whole" / "README.md").read_text()

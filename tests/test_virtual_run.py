"""From a recipe to answers by the methods that no weight can hold: nothing above them knows them."""

from __future__ import annotations

import json

import pytest
from small_run import make_model, make_rows, recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

import tunesmith
from tunesmith import inference, run
from tunesmith.errors import AdapterError, DataError
from tunesmith.models.tiny import config, randomise
from tunesmith.recipe import from_dict

pytestmark = pytest.mark.filterwarnings("ignore")
CHOICES = {
    "bottleneck": {"r": 4},
    "prompt": {"num_tokens": 6, "init_text": "answer in short"},
    "prefix": {"num_tokens": 6, "init_text": "answer in short"},
    "llama-adapter": {"num_tokens": 6, "last_blocks": 1},
}
QUESTION = "what is 3"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    make_model(folder / "model")
    make_rows(folder / "rows.jsonl", 10)
    return folder


def values(place, folder, method, **adapter):
    made = recipe(place / "model", place / "rows.jsonl", folder, epochs=1)
    return {**made, "adapter": {"method": method, **adapter}}


@pytest.mark.parametrize("method", CHOICES)
def test_it_trains_answers_is_evaluated_and_swapped(place, tmp_path, method):
    params = tunesmith.Params(max_new_tokens=6)
    trained = run.train(from_dict(values(place, tmp_path / "run", method, **CHOICES[method])))
    events = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"step", "evaluation"} <= {event["event"] for event in events}
    here = trained.session.answer([QUESTION], params=params)
    lora = run.train(from_dict(values(place, tmp_path / "lora", "lora", r=2)))
    alone = lora.session.answer([QUESTION], params=params)

    session = tunesmith.open_session(str(tmp_path / "run"))
    base = session.answer([QUESTION], adapters=[None], params=params)
    other = session.load_adapter(tmp_path / "lora", "other")
    assert session.answer([QUESTION], params=params) == here
    assert session.answer([QUESTION], adapters=[other], params=params) == alone
    mixed = session.answer([QUESTION] * 3, adapters=[other, session.adapter, None], params=params)
    assert mixed == [*alone, *here, *base]
    name = session.adapter
    session.unload_adapter(name)
    assert session.answer([QUESTION], adapters=[None], params=params) == base
    called = session.load_adapter(tmp_path / "run", name)
    assert session.answer([QUESTION], adapters=[called], params=params) == here

    assert "loss" in inference.evaluate(str(tmp_path / "run"))
    assert "exact" in json.dumps(inference.evaluate(str(tmp_path / "run"), score="exact", max_new_tokens=4))
    with pytest.raises(AdapterError, match="cannot be merged"):
        inference.merge(tmp_path / "run", tmp_path / "merged")

    going_on = values(place, tmp_path / "on", "lora")
    del going_on["adapter"]
    going_on["model"]["adapter"] = str(tmp_path / "run")
    assert run.train(from_dict(going_on)).session.sets["trained"].settings.method == method


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_rows_and_answers_have_the_positions_that_virtual_tokens_leave(place, tmp_path, method):
    """Of the 128 in GPT-2's table here."""
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    shape = config("gpt2")
    shape.vocab_size = len(tokenizer)
    model = AutoModelForCausalLM.from_config(shape)
    randomise(model, 0)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    made = values(place, tmp_path / "run", method, num_tokens=120)
    made["model"]["name"] = str(tmp_path / "model")
    with pytest.raises(DataError, match=r"longer than data\.max_length"):
        run.train(from_dict(made))
    trained = run.train(from_dict({**made, "adapter": {"method": method, "num_tokens": 60}}))
    answers = trained.session.generate([list(range(3, 23))], tunesmith.Params(max_new_tokens=500), adapters=["trained"])
    assert answers[0].finish_reason == "eos" or len(answers[0].token_ids) == 128 - 60 - 20

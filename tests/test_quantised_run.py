"""A whole run beside a base in few bits: trained, resumed bit for bit, answered, merged; and on the 16-bit base."""

from __future__ import annotations

import json

import pytest
import torch
from quantised_layers import make_gptq_checkpoint
from safetensors.torch import load_file
from small_run import make_model, make_rows, recipe
from thinned import in_turn, thinned
from transformers import AutoModelForCausalLM

from tunesmith import assemble, inference, run
from tunesmith.adapters import METHODS
from tunesmith.adapters.adapter_set import refusal
from tunesmith.errors import AdapterError, RecipeError
from tunesmith.events import StepDone
from tunesmith.quant import QUANTISED
from tunesmith.quant.quantised import storage_name
from tunesmith.recipe import from_dict
from tunesmith.session import find_source, open_session

SOON = {"delta-lora": {"start_step": 1}, "relora": {"restart_every": 2, "rewarm": 1}}
"""What a short run needs, so that all of a method happens in it."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folders of one model: plain, in GPTQ; and its rows."""
    folder = tmp_path_factory.mktemp("bases")
    plain = make_model(folder / "plain")
    make_gptq_checkpoint(plain, folder / "gptq")
    return {"plain": plain, "gptq": folder / "gptq", "rows": make_rows(folder / "rows.jsonl", 10)}


def values(bases, folder, storage: str, method: str = "lora", **train) -> dict:
    base = bases["gptq" if storage == "gptq" else "plain"]
    made = recipe(base, bases["rows"], folder, **train)
    made["model"]["storage"] = "auto" if storage == "gptq" else storage
    made["adapter"] = {"method": method, **SOON.get(method, {})}
    return made


def trained(made: dict, **options):
    return run.train(from_dict(made, name="small", source="test"), quiet=True, **options)


def said(capsys) -> str:
    """All that was printed, as one line: the terminal breaks long ones."""
    return " ".join(" ".join(capsys.readouterr()).split())


@pytest.fixture(scope="module")
def nf4(bases, tmp_path_factory):
    folder = tmp_path_factory.mktemp("nf4") / "run"
    return trained(values(bases, folder, "nf4", epochs=3, learning_rate=0.05))


def adapter_bytes(folder) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


STORAGES = ("plain", *QUANTISED)
ON_STORAGES = [
    (method, storage)
    for method, module in METHODS.items()
    for storage in STORAGES
    if refusal(module.Settings(), storage) is None
]


@pytest.mark.parametrize(("method", "storage"), thinned(ON_STORAGES, in_turn(METHODS, STORAGES)))
def test_every_method_trains_on_every_storage(bases, tmp_path, storage, method):
    """docs/storages.md says yes of the pairs that are cases here."""
    done = trained(values(bases, tmp_path / "run", storage, method, steps=3, epochs=None))
    assert storage_name(done.session.model) == storage
    side = json.loads((done.adapter / "tunesmith.json").read_text())
    assert side["base"]["storage"] == storage
    summary = json.loads((done.folder / "summary.json").read_text())
    assert summary["base_storage"] == storage
    again = open_session(str(done.folder), say=pytest.fail)
    assert storage_name(again.model) == storage
    ids = torch.arange(3, 40)[None]
    chosen = again.switch.set_to(again.adapter), done.session.switch.set_to(done.session.adapter)
    with torch.no_grad(), chosen[0], chosen[1]:  # a norm that learns takes its plain form where gradients are wanted
        assert torch.equal(again.model(ids).logits, done.session.model(ids).logits)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_run_that_goes_on_ends_where_one_that_was_not_stopped_does(bases, tmp_path, recompute):
    whole = trained(values(bases, tmp_path / "whole", "nf4-double", recompute=recompute))

    def stop(event):
        return "stop" if isinstance(event, StepDone) and event.step == 3 else None

    made = values(bases, tmp_path / "halves", "nf4-double", recompute=recompute)
    first = trained(made, listeners=[stop])
    assert first.ended.step == 3 < whole.ended.step
    second = trained(made, resume=True)
    assert second.ended.step == whole.ended.step
    assert adapter_bytes(second.folder) == adapter_bytes(whole.folder)


def test_minutes_are_kept(bases, tmp_path):
    done = trained(values(bases, tmp_path / "run", "int8", minutes=0.02, epochs=None))
    assert done.ended.step >= 1


def test_answers_and_loss_use_the_run_s_storage(nf4, tmp_path, capsys):
    assert find_source(str(nf4.folder)).model.storage == "nf4"
    figures = inference.evaluate(str(nf4.folder), as_json=True)
    assert figures["loss"] == pytest.approx(nf4.ended.best_metrics["loss"], rel=1e-5)
    plain = inference.evaluate(str(nf4.folder), as_json=True, storage="plain")
    assert abs(plain["loss"] - figures["loss"]) > 1e-4
    assert "held in nf4; here it is plain" in said(capsys)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("what is 3\nwhat is 4\n")
    inference.generate(str(nf4.folder), file=prompts, max_new_tokens=5)
    assert len((tmp_path / "prompts.answers.jsonl").read_text().splitlines()) == 2


def test_an_adapter_folder_alone_remembers_its_storage(nf4, tmp_path, bases):
    alone = tmp_path / "alone"
    alone.mkdir()
    for file in nf4.adapter.iterdir():
        if file.is_file():
            (alone / file.name).write_bytes(file.read_bytes())
    config = json.loads((alone / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(bases["plain"])
    (alone / "adapter_config.json").write_text(json.dumps(config))
    assert find_source(str(alone)).model.storage == "nf4"


def test_an_adapter_of_few_bits_stands_on_the_plain_base_with_a_note_and_on_no_other(nf4, bases, tmp_path):
    notes = []
    session = open_session(
        str(bases["plain"]), adapters=[nf4.folder], dtype="float32", storage="plain", say=notes.append
    )
    assert storage_name(session.model) == "plain"
    assert any("was trained beside this base held in nf4; here it is plain" in line for line in notes)
    other = make_model(tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(-tensors["model.embed_tokens.weight"])
    model.save_pretrained(other)
    with pytest.raises(AdapterError, match="another base model"):
        open_session(str(other), adapters=[nf4.folder], say=lambda line: None)


@pytest.mark.parametrize("storage", ["nf4", "gptq"])
def test_merged_is_what_the_adapter_saw_in_plain_weights(bases, nf4, tmp_path, storage, capsys):
    made = nf4 if storage == "nf4" else trained(values(bases, tmp_path / "run", storage, learning_rate=0.05))
    inference.merge(made.folder, tmp_path / "merged", dtype="bfloat16")
    assert f"from {storage} as the adapter saw it, written in bfloat16" in said(capsys)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.dtype == torch.bfloat16
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    session, ids = made.session, torch.arange(3, 60)[None]
    with session.switch.set_to(session.adapter):
        wanted = session.model(ids).logits
    base = open_session(str(bases["plain"]), say=pytest.fail, dtype="float32").model(ids).logits
    gap = (merged(ids).logits.float() - wanted).abs().max()
    assert gap < 0.1 * wanted.abs().max()
    assert (wanted - base).abs().max() > 2 * gap


def test_training_goes_on_from_an_adapter_of_another_storage_with_a_note(bases, nf4, tmp_path, capsys):
    made = values(bases, tmp_path / "run", "int8", steps=2, epochs=None)
    made["model"]["adapter"] = str(nf4.folder)
    del made["adapter"]
    run.train(from_dict(made, name="small", source="test"))
    assert "held in nf4; here it is int8" in said(capsys)


def test_a_pair_that_does_not_go_is_refused_before_the_model_loads(bases, tmp_path, monkeypatch):
    monkeypatch.setattr(METHODS["lora"], "PLAIN_ONLY", "it changes the base itself", raising=False)
    monkeypatch.setattr(assemble, "load_model", lambda *arguments, **options: pytest.fail("the model was loaded"))
    with pytest.raises(RecipeError, match=r"lora does not go with a base in nf4: it changes the base itself"):
        trained(values(bases, tmp_path / "run", "nf4"))
    with pytest.raises(RecipeError, match="in gptq"):
        trained(values(bases, tmp_path / "run", "gptq"))

"""Checkpoints read into storages: by name, from the files' own numbers, and refused before any weight is read."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from quantised_layers import make_gptq_checkpoint
from small_run import make_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from tunesmith.adapters.adapter_set import add
from tunesmith.adapters.attach import Switch
from tunesmith.adapters.identity import frame, identify, is_same
from tunesmith.adapters.lora import Settings
from tunesmith.errors import MachineError, ModelError
from tunesmith.models import attention, stored
from tunesmith.models.load import load_config, load_model, load_tokenizer, settle
from tunesmith.models.policy import probe
from tunesmith.models.settings import MADE, ModelSettings
from tunesmith.models.tiny import ARCHITECTURES, tiny
from tunesmith.quant import QUANTISED
from tunesmith.quant.bnb import bitsandbytes
from tunesmith.quant.quantised import dequantise, quantised_layers, storage_name

IDS = torch.arange(3, 60)[None]
CLASSES_OF_THEIR_OWN = {"falcon"}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model") / "base")


def read(folder, **values):
    settings = ModelSettings(name=str(folder), **{"dtype": "float32", "device": "cpu", **values})
    return load_model(settings, load_tokenizer(settings)).model


def test_what_a_recipe_may_ask_for_is_in_the_table():
    assert set(MADE) == set(QUANTISED) - {"gptq"}
    assert ModelSettings.model_fields["storage"].annotation.__args__ == ("auto", "plain", *MADE)


@pytest.mark.parametrize("storage", MADE)
def test_numbers_are_bitsandbytes_own_of_the_numbers_in_the_files(model_folder, storage):
    model, plain = read(model_folder, storage=storage), read(model_folder)
    assert storage_name(model) == storage
    assert len(quantised_layers(model)) == 14
    functional = bitsandbytes().functional
    for path, layer in quantised_layers(model):
        weight = plain.get_submodule(path).weight
        if storage == "int8":
            q, scale, _ = functional.int8_vectorwise_quant(weight.half())
            wanted = functional.int8_vectorwise_dequant(q, scale)
        else:
            q, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=storage == "nf4-double")
            wanted = functional.dequantize_4bit(q, state)
        torch.testing.assert_close(layer.dense(), wanted, rtol=1e-3, atol=1e-4)
    same = [path for path, _ in quantised_layers(model)]
    others = {name: p for name, p in plain.named_parameters() if name.removesuffix(".weight") not in same}
    for name, parameter in others.items():
        assert torch.equal(model.get_parameter(name), parameter), name


@pytest.mark.parametrize("storage", MADE)
def test_the_same_integers_whatever_products_run_in(model_folder, storage):
    narrow, wide = read(model_folder, storage=storage, dtype="bfloat16"), read(model_folder, storage=storage)
    assert (narrow.dtype, wide.dtype) == (torch.bfloat16, torch.float32)
    assert narrow.model.rotary_emb.inv_freq.dtype == torch.float32
    for (_, one), (_, other) in zip(quantised_layers(narrow), quantised_layers(wide), strict=True):
        for name, buffer in one.named_buffers():
            assert name == "like" or torch.equal(buffer, other.get_buffer(name))
        torch.testing.assert_close(one.dense().float(), other.dense(), rtol=2**-7, atol=0)
    assert is_same(identify(narrow).as_dict(), wide)


@pytest.mark.parametrize("arch", sorted(set(ARCHITECTURES) - CLASSES_OF_THEIR_OWN))
def test_every_architecture_runs_trains_and_keeps_its_head(tmp_path, arch):
    plain = tiny(arch)
    plain.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, device_map={"": "cpu"}, quantization_config=QUANTISED["nf4"].reading("nf4", None)
    )
    stored.settle_in(model, torch.float32, "nf4")
    assert storage_name(model) == "nf4"
    head = model.get_output_embeddings()
    assert type(head) is torch.nn.Linear
    attention.register()
    attention.install(model)
    switch = Switch()
    adapter_set = add(model, switch, Settings(r=2), name="a", seed=0)
    assert adapter_set.total == sum(parameter.numel() for parameter in plain.parameters())
    policy, _ = probe(model, switch)
    dense = tiny(arch)
    with torch.no_grad():
        for path, layer in quantised_layers(model):
            place = dense.get_submodule(path.removesuffix(".layer"))
            place.weight.copy_(layer.dense().t() if isinstance(place, Conv1D) else layer.dense())
    ids = torch.arange(3, 40)[None]
    torch.testing.assert_close(model(ids).logits, dense(ids).logits, rtol=1e-4, atol=1e-4)
    switch.name = "a"
    policy.model(ids, labels=ids, use_cache=False).loss.backward()
    grads = {name: parameter.grad for name, parameter in adapter_set.parameters().items()}
    assert all(grad is not None and torch.isfinite(grad).all() for grad in grads.values())
    assert all(grad.abs().max() > 0 for name, grad in grads.items() if name.endswith(".B"))


@pytest.mark.parametrize("arch", sorted(CLASSES_OF_THEIR_OWN))
def test_an_architecture_without_plain_linear_layers_is_refused_before_its_weights(tmp_path, arch):
    tiny(arch).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    settings = ModelSettings(name=str(tmp_path), storage="nf4", device="cpu")
    with pytest.raises(ModelError, match=r"no matrix of .* can be held in nf4"):
        settle(settings, load_config(settings))


@pytest.mark.parametrize("storage", [*MADE, "fp4"])
def test_a_checkpoint_quantised_by_bitsandbytes_loads_as_such(model_folder, tmp_path, storage):
    told = BitsAndBytesConfig(
        load_in_8bit=storage == "int8",
        load_in_4bit=storage != "int8",
        bnb_4bit_quant_type=storage[:3] if storage != "int8" else "nf4",
        bnb_4bit_use_double_quant=storage == "nf4-double",
    )
    made = AutoModelForCausalLM.from_pretrained(model_folder, quantization_config=told, device_map={"": "cpu"})
    made.save_pretrained(tmp_path)
    for file in model_folder.glob("*token*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    model = read(tmp_path)
    assert storage_name(model) == storage
    if storage in MADE:
        fresh = read(model_folder, storage=storage)
        assert torch.equal(model(IDS).logits, fresh(IDS).logits)
        assert is_same(identify(fresh).as_dict(), model)
        other = next(name for name in MADE if name != storage)
        with pytest.raises(ModelError, match="second time"):
            read(tmp_path, storage=other)
    plain = read(tmp_path, storage="plain")
    assert storage_name(plain) == "plain"
    torch.testing.assert_close(plain(IDS).logits, model(IDS).logits, rtol=1e-5, atol=1e-5)
    plain.save_pretrained(tmp_path / "plain")
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())


@pytest.mark.parametrize("package", ["bitsandbytes", "accelerate"])
def test_a_missing_package_is_said_with_its_extra(model_folder, monkeypatch, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    settings = ModelSettings(name=str(model_folder), storage="nf4", device="cpu")
    with pytest.raises(MachineError, match=f"needs {package}") as error:
        settle(settings, load_config(settings))
    assert "tunesmith[bitsandbytes]" in str(error.value)


def test_a_base_is_the_same_held_otherwise_and_another_model_is_not(model_folder, tmp_path):
    models = {storage: read(model_folder, storage=storage) for storage in ("plain", *MADE)}
    make_gptq_checkpoint(model_folder, tmp_path / "gptq")
    models["gptq"] = read(tmp_path / "gptq")
    assert len({frame(model) for model in models.values()}) == 1
    known = {storage: identify(model).as_dict() for storage, model in models.items()}
    assert len({base["fingerprint"] for base in known.values()}) == len(models)
    for then, base in known.items():
        assert base["storage"] == then
        assert all(is_same(base, model) for model in models.values())
    other = read(model_folder, storage="nf4")
    with torch.no_grad():
        other.get_submodule("model.layers.1.mlp.up_proj").q[6] += 1
    assert not is_same(known["nf4"], other)
    other = read(model_folder)
    with torch.no_grad():
        other.model.norm.weight.neg_()
    assert not is_same(known["nf4"], other)
    dequantise(models["nf4"])
    assert not is_same(known["plain"], models["nf4"])

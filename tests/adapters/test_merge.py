"""Merged is unmerged, in plain transformers weights; what is not proved is not kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.adapters import merge as merging
from tunesmith.adapters.adapter_set import add
from tunesmith.adapters.attach import Switch, slots
from tunesmith.adapters.lora import Settings
from tunesmith.adapters.merge import merge, merge_to_folder
from tunesmith.errors import AdapterError
from tunesmith.models.tiny import ARCHITECTURES, tiny

REAL = Path("~/.cache/tunesmith/smollm2-135m-instruct-0.1.2").expanduser()
IDS = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(1))
EMBEDDING = {"gpt2": "wte", "falcon": "word_embeddings", "bloom": "word_embeddings", "gpt_neox": "embed_in"}
CHOICES = {
    "all-linear": ({"targets": "all-linear"}, 0),
    "norms and embeddings": ({"train_in_full": ("norms", "embeddings")}, 0),
    "added tokens": ({"targets": "attention"}, 3),
    "head by LoRA": ({"targets": ("lm_head",)}, 0),
    "embedding by LoRA": ({"targets": ("EMBEDDING",)}, 0),
}


def adapted(
    arch: str, choice: str = "all-linear", dtype: torch.dtype = torch.float32, seed: int = 4, size: float = 0.1
):
    keys, added = CHOICES[choice]
    if keys.get("targets") == ("EMBEDDING",):
        keys = {"targets": (EMBEDDING.get(arch, "embed_tokens"),)}
    model, switch = tiny(arch, dtype=dtype), Switch()
    adapter_set = add(model, switch, Settings(r=2, **keys), name="a", seed=0, added_tokens=added)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter_set.parameters().values():
            parameter += size * torch.empty(parameter.shape).normal_(generator=generator)
    return model, adapter_set


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_merged_is_unmerged_and_the_base_is_untouched(arch, choice):
    model, adapter_set = adapted(arch, choice)
    base = model(IDS).logits
    with adapter_set.switch.set_to("a"):
        wanted = model(IDS).logits
    plain = merge(model, adapter_set)
    assert not slots(plain)
    torch.testing.assert_close(plain(IDS).logits, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())
    assert torch.equal(model(IDS).logits, base)
    original = tiny(arch)
    assert plain.state_dict().keys() == original.state_dict().keys()
    if choice in ("norms and embeddings", "added tokens", "all-linear"):
        tie = original.get_input_embeddings().weight is original.get_output_embeddings().weight
        assert (plain.get_input_embeddings().weight is plain.get_output_embeddings().weight) == tie
        assert plain.config.tie_word_embeddings == original.config.tie_word_embeddings


@pytest.mark.parametrize("arch", ["llama", "llama-tied", "gpt2", "gemma2"])
@pytest.mark.parametrize("choice", CHOICES)
def test_the_folder_is_plain_transformers_and_computes_the_same(arch, choice, tmp_path):
    model, adapter_set = adapted(arch, choice)
    report = merge_to_folder(model, adapter_set, tmp_path / "merged")
    assert report.gap <= 1e-4 * report.largest_logit
    assert report.agreement > 0.99
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with adapter_set.switch.set_to("a"):
        wanted = model(IDS).logits
    torch.testing.assert_close(plain(IDS).logits, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())


def test_bf16_weights_are_merged_in_bf16(tmp_path):
    model, adapter_set = adapted("llama", dtype=torch.bfloat16)
    report = merge_to_folder(model, adapter_set, tmp_path / "merged")
    assert report.dtype == torch.bfloat16
    assert report.proof < report.gap
    assert 0 < report.lost < 0.2


def test_a_wrong_merge_is_refused_and_nothing_is_kept(tmp_path, monkeypatch):
    model, adapter_set = adapted("llama")
    adapter = adapter_set.adapters["model.layers.0.mlp.down_proj"]
    monkeypatch.setattr(adapter, "merged", lambda weight, bias: (weight, bias))
    with pytest.raises(AdapterError, match="does not compute"):
        merge_to_folder(model, adapter_set, tmp_path / "merged")
    assert not list(tmp_path.iterdir())


def wrongly(adapter, share: float):
    """`adapter` merges `share` of its update."""

    def merged(weight, bias, right=adapter.merged):
        made, _ = right(weight, bias)
        return weight + share * (made - weight), bias

    return merged


@pytest.mark.parametrize("share", [0.0, 0.98, 1.02], ids=["forgotten", "too little", "too much"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_one_wrong_layer_of_all_is_caught_whichever_it_is(dtype, share, tmp_path, monkeypatch):
    """Of small updates too, and though rounding to bf16 moves the logits by more than the fault does."""
    model, adapter_set = adapted("llama", dtype=dtype, size=0.03)
    for path, adapter in adapter_set.adapters.items():
        with monkeypatch.context() as patch:
            patch.setattr(adapter, "merged", wrongly(adapter, share))
            with pytest.raises(AdapterError, match="does not compute") as caught:
                merge_to_folder(model, adapter_set, tmp_path / "merged")
        assert "before rounding" in caught.value.found, path
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma3", "mixtral"])
def test_a_right_merge_passes_whatever_the_numbers(arch, tmp_path):
    for seed in range(6):
        for size in (0.01, 0.1):
            model, adapter_set = adapted(arch, dtype=torch.bfloat16, seed=seed, size=size)
            before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            report = merge_to_folder(model, adapter_set, tmp_path / f"{seed}-{size}")
            assert report.proof <= 3e-5 * report.largest_logit
            assert report.lost < 0.5
            assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
            assert all(tensor.dtype == before[name].dtype for name, tensor in model.state_dict().items())


def test_a_number_that_changed_on_its_way_to_the_disk_is_caught(tmp_path, monkeypatch):
    """By one unit in its last place, which no comparison of logits would see."""
    model, adapter_set = adapted("llama", dtype=torch.bfloat16)
    save = type(model).save_pretrained

    def torn(self, folder, **options):
        save(self, folder, **options)
        file = folder / "model.safetensors"
        tensors = load_file(file)
        name = "model.layers.1.mlp.up_proj.weight"
        tensors[name].view(torch.int16)[3, 5] += 1
        save_file(tensors, file, metadata={"format": "pt"})

    monkeypatch.setattr(type(model), "save_pretrained", torn)
    with pytest.raises(AdapterError, match="read back from disk") as caught:
        merge_to_folder(model, adapter_set, tmp_path / "merged")
    assert caught.value.found == "model.layers.1.mlp.up_proj.weight"
    assert not list(tmp_path.iterdir())


def test_an_update_that_rounding_takes_away_is_refused(tmp_path):
    """Each weight stands on a bf16 number, and changes by less than half the way to the next."""
    model, adapter_set = adapted("llama", dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in adapter_set.parameters().values():
            parameter.mul_(0.03)
    with pytest.raises(AdapterError, match="has lost what the adapter does") as caught:
        merge_to_folder(model, adapter_set, tmp_path / "merged")
    assert "--dtype float32" in caught.value.fix
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="the small model is not in the cache")
def test_one_wrong_layer_of_a_real_model_is_caught_in_bf16(tmp_path, monkeypatch):
    model, switch = AutoModelForCausalLM.from_pretrained(REAL, dtype=torch.bfloat16).eval(), Switch()
    adapter_set = add(model, switch, Settings(r=8), name="a", seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapter_set.parameters().values():
            parameter += 0.01 * torch.empty(parameter.shape).normal_(generator=generator)
    tokenizer = AutoTokenizer.from_pretrained(REAL)
    assert merge_to_folder(model, adapter_set, tmp_path / "right", tokenizer).agreement > 0.9
    paths = list(adapter_set.adapters)
    assert len(paths) == 210
    for path in (paths[0], paths[100], paths[-1]):
        for share in (0.0, 0.98):
            adapter = adapter_set.adapters[path]
            with monkeypatch.context() as patch:
                patch.setattr(adapter, "merged", wrongly(adapter, share))
                with pytest.raises(AdapterError, match="does not compute"):
                    merge_to_folder(model, adapter_set, tmp_path / "wrong", tokenizer)


def test_nothing_is_overwritten(tmp_path):
    model, adapter_set = adapted("llama")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("mine")
    with pytest.raises(AdapterError, match="already"):
        merge_to_folder(model, adapter_set, tmp_path / "there")
    assert (tmp_path / "there" / "file").read_text() == "mine"


def test_a_kill_between_saving_and_proof_leaves_no_folder_under_the_name(tmp_path, monkeypatch):
    model, adapter_set = adapted("llama")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(merging, "_compare", killed)
    with pytest.raises(KeyboardInterrupt):
        merge_to_folder(model, adapter_set, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()

"""Merged is unmerged, in plain transformers weights; what is not proved is not kept."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from tunesmith.adapters import merge as merging
from tunesmith.adapters.adapter_set import add
from tunesmith.adapters.attach import Switch, slots
from tunesmith.adapters.lora import Settings
from tunesmith.adapters.merge import merge, merge_to_folder
from tunesmith.errors import AdapterError
from tunesmith.models.tiny import ARCHITECTURES, tiny

IDS = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(1))
EMBEDDING = {"gpt2": "wte", "falcon": "word_embeddings", "bloom": "word_embeddings", "gpt_neox": "embed_in"}
CHOICES = {
    "all-linear": ({"targets": "all-linear"}, 0),
    "norms and embeddings": ({"train_in_full": ("norms", "embeddings")}, 0),
    "added tokens": ({"targets": "attention"}, 3),
    "head by LoRA": ({"targets": ("lm_head",)}, 0),
    "embedding by LoRA": ({"targets": ("EMBEDDING",)}, 0),
}


def adapted(arch: str, choice: str = "all-linear", dtype: torch.dtype = torch.float32):
    keys, added = CHOICES[choice]
    if keys.get("targets") == ("EMBEDDING",):
        keys = {"targets": (EMBEDDING.get(arch, "embed_tokens"),)}
    model, switch = tiny(arch, dtype=dtype), Switch()
    adapter_set = add(model, switch, Settings(r=2, **keys), name="a", seed=0, added_tokens=added)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in adapter_set.parameters().values():
            parameter += 0.1 * torch.empty(parameter.shape).normal_(generator=generator)
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
    assert 0 < report.gap <= report.bound


def test_a_wrong_merge_is_refused_and_nothing_is_kept(tmp_path, monkeypatch):
    model, adapter_set = adapted("llama")
    adapter = adapter_set.adapters["model.layers.0.mlp.down_proj"]
    monkeypatch.setattr(adapter, "merged", lambda weight, bias: (weight, bias))
    with pytest.raises(AdapterError, match="does not compute"):
        merge_to_folder(model, adapter_set, tmp_path / "merged")
    assert not list(tmp_path.iterdir())


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

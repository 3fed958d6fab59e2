"""GPT-2 in few bits: its Conv1D keeps a matrix as [in, out], and plain weights of it are written in that form."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from tunesmith.adapters import METHODS
from tunesmith.adapters.adapter_set import add
from tunesmith.adapters.attach import Switch
from tunesmith.adapters.merge import merge_to_folder
from tunesmith.models.settings import MADE
from tunesmith.models.stored import settle_in
from tunesmith.models.tiny import tiny
from tunesmith.quant import QUANTISED
from tunesmith.quant.gptq import put_layers
from tunesmith.quant.quantised import dequantise, quantised_layers, storage_name

IDS = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(1))


def read(folder, storage: str):
    """A tiny GPT-2, quantised by transformers while it is read."""
    tiny("gpt2").save_pretrained(folder)
    told = QUANTISED[storage].reading(storage, None)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=told, device_map={"": "cpu"})
    settle_in(model, torch.float32, storage)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("method", ["lora", "dora", "full"])
@pytest.mark.parametrize("storage", MADE)
def test_a_whole_gpt2_merges_into_what_the_adapted_one_computes(storage, method, tmp_path):
    model, switch = read(tmp_path / "base", storage), Switch()
    assert storage_name(model) == storage
    adapter_set = add(model, switch, METHODS[method].Settings(), name="a", seed=0)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(4)
        for parameter in adapter_set.parameters().values():
            parameter += 0.05 * torch.empty(parameter.shape).normal_(generator=generator)
    with switch.set_to("a"):
        wanted = model(IDS).logits
    assert not torch.allclose(wanted, model(IDS).logits, atol=0.1)
    report = merge_to_folder(model, adapter_set, tmp_path / "merged")
    assert report.storage == storage
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert isinstance(plain.transformer.h[0].attn.c_attn, Conv1D)
    assert plain.state_dict().keys() == tiny("gpt2").state_dict().keys()
    torch.testing.assert_close(plain(IDS).logits, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())


@pytest.mark.parametrize("storage", MADE)
def test_made_dense_for_good_it_is_gpt2_again(storage, tmp_path):
    model = read(tmp_path / "base", storage)
    wanted, count = model(IDS).logits, len(quantised_layers(model))
    assert dequantise(model) == count == 8
    assert torch.equal(model(IDS).logits, wanted)
    assert {name: x.shape for name, x in model.named_parameters()} == {
        name: x.shape for name, x in tiny("gpt2").named_parameters()
    }


def test_gptq_remembers_the_form_and_a_bias_that_files_leave_out_is_zero():
    model = tiny("gpt2")
    path = "transformer.h.0.attn.c_attn"
    put_layers(model, {"bits": 4, "group_size": 8}, {path: False})
    plain = model.get_submodule(path).plain()
    assert isinstance(plain, Conv1D)
    assert plain.weight.shape == (32, 96)
    assert torch.equal(plain.bias, torch.zeros(96))

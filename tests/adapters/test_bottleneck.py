"""Bottleneck adapters: the formula on every storage, the right layers on every architecture, files, no merge."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunesmith.adapters.adapter_set import add
from tunesmith.adapters.attach import Switch
from tunesmith.adapters.base import base_of
from tunesmith.adapters.bottleneck import Settings, build
from tunesmith.adapters.identity import identify
from tunesmith.adapters.merge import merge
from tunesmith.adapters.store import load, save
from tunesmith.adapters.targets import choose
from tunesmith.errors import AdapterError
from tunesmith.models.tiny import ARCHITECTURES, tiny

IDS = torch.randint(3, 90, (2, 11), generator=torch.Generator().manual_seed(1))
ATTENTION = {"phi": "dense", "falcon": "dense", "bloom": "dense", "gpt_neox": "dense", "opt": "out_proj"}
ATTENTION |= {"gpt2": "attn.c_proj"}
MLP = {"phi": "fc2", "opt": "fc2", "gpt2": "mlp.c_proj", "mixtral": None, "qwen2_moe": "shared_expert.down_proj"}
MLP |= dict.fromkeys(("falcon", "bloom", "gpt_neox"), "dense_4h_to_h")


def moved(adapter_set, seed: int = 5):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter_set.parameters().values():
            parameter += 0.2 * torch.empty(parameter.shape).normal_(generator=generator)
    return adapter_set


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("activation", ["gelu", "relu", "silu", "tanh"])
@pytest.mark.parametrize("layer", [nn.Linear(12, 7), nn.Linear(12, 7, bias=False), Conv1D(7, 12)])
def test_it_computes_the_formula_and_its_gradients(layer, activation, dtype):
    torch.manual_seed(2)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    layer = layer.to(dtype)
    adapter = build(Settings(r=5, activation=activation), base_of(layer), torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    x = torch.randn(20, 12).to(dtype)
    D, d, U, u = (tensor.detach().to(dtype).requires_grad_() for tensor in (adapter.D, adapter.d, adapter.U, adapter.u))
    function = {"gelu": F.gelu, "relu": torch.relu, "silu": F.silu, "tanh": torch.tanh}[activation]
    h = layer(x)
    wanted = h + function(h @ D.T + d) @ U.T + u
    y = adapter(x, base_of(layer))
    close = 3e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(y, wanted, rtol=close, atol=close)
    y.sin().sum().backward()
    wanted.sin().sum().backward()
    for parameter, other in zip((adapter.D, adapter.d, adapter.U, adapter.u), (D, d, U, u), strict=True):
        largest = other.grad.abs().max().item()
        if dtype != torch.bfloat16:  # there both are noise: the sines of numbers that differ by a tenth
            torch.testing.assert_close(parameter.grad, other.grad.float(), rtol=0, atol=2 * close * largest)
        assert parameter.grad.abs().max() > 0


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_it_stands_behind_attention_and_mlp_or_behind_the_mlp_alone(arch):
    model = tiny(arch)
    ends = [ATTENTION.get(arch, "o_proj"), MLP.get(arch, "down_proj")]
    both = choose(model, Settings()).adapted
    assert len(both) == 2 * sum(end is not None for end in ends)
    assert {end for end in ends if end and sum(path.endswith("." + end) for path in both) == 2} == set(
        filter(None, ends)
    )
    if ends[1] is None:
        with pytest.raises(AdapterError, match="experts"):
            choose(model, Settings(targets="mlp-down"))
        return
    mlp = choose(model, Settings(targets="mlp-down")).adapted
    assert len(mlp) == 2
    assert all(path.endswith("." + ends[1]) for path in mlp)


def test_layers_whose_names_do_not_tell_are_asked_for():
    model = tiny("llama")
    for block in model.model.layers:
        block.self_attn.last_of_all = block.self_attn.o_proj
        del block.self_attn.o_proj
    with pytest.raises(AdapterError, match=r"cannot be told(.|\n)*last_of_all(.|\n)*name the layers"):
        choose(model, Settings())
    named = choose(model, Settings(targets=("last_of_all", "mlp-down"))).adapted
    assert len(named) == 4


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_it_starts_as_the_base_and_its_files_give_it_back(arch, tmp_path):
    model, switch = tiny(arch), Switch()
    base = model(IDS).logits
    adapter_set = add(model, switch, Settings(r=3, activation="silu"), name="a", seed=0)
    switch.name = "a"
    torch.testing.assert_close(model(IDS).logits, base)
    moved(adapter_set)
    wanted = model(IDS).logits
    assert (wanted - base).abs().max() > 1e-2
    save(tmp_path / "a", adapter_set, identify(model))
    (tmp_path / "a" / "tunesmith.json").unlink()
    fresh, switch = tiny(arch), Switch()
    again = load(tmp_path / "a", fresh, switch, "b")
    assert again.settings.activation == "silu"
    switch.name = "b"
    assert torch.equal(fresh(IDS).logits, wanted)


def test_peft_refuses_its_files_by_name(tmp_path):
    from peft import PeftConfig

    model = tiny("llama")
    save(tmp_path, add(model, Switch(), Settings(r=3), name="a", seed=0), identify(model))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "TUNESMITH_BOTTLENECK"
    with pytest.raises(KeyError, match="TUNESMITH_BOTTLENECK"):
        PeftConfig.from_pretrained(str(tmp_path))


def test_it_is_not_merged_and_does_not_stand_beside_the_head():
    model = tiny("llama")
    adapter_set = add(model, Switch(), Settings(r=3), name="a", seed=0)
    with pytest.raises(AdapterError, match="cannot be merged"):
        merge(model, adapter_set)
    with pytest.raises(AdapterError, match="output head"):
        add(tiny("llama"), Switch(), Settings(targets=("lm_head",)), name="a", seed=0)

"""Laws of one adapter over a whole model, on every tiny architecture."""

from __future__ import annotations

import pytest
import torch

from tunesmith.adapters.adapter_set import add, base_parameters, unload
from tunesmith.adapters.attach import Switch, slots
from tunesmith.adapters.lora import Settings
from tunesmith.errors import AdapterError
from tunesmith.models.tiny import ARCHITECTURES, tiny

IDS = torch.randint(3, 90, (3, 9), generator=torch.Generator().manual_seed(1))
EVERYTHING = Settings(r=2, dropout=0.1, train_in_full=("norms", "embeddings", "head"))


def nudge(adapter_set, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter_set.parameters().values():
            parameter += 0.1 * torch.empty(parameter.shape).normal_(generator=generator)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_adapter_tensor_moves_and_every_frozen_one_is_bit_identical(arch, recompute):
    model, switch = tiny(arch), Switch()
    adapter_set = add(model, switch, EVERYTHING, name="a", seed=0)
    frozen = {name: p.clone() for name, p in base_parameters(model).items()}
    start = {name: p.detach().clone() for name, p in adapter_set.parameters().items()}
    if recompute and model.supports_gradient_checkpointing:
        model.train()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    adapter_set.train()
    optimizer = torch.optim.AdamW(adapter_set.parameters().values(), lr=1e-2)
    for _ in range(3):
        with switch.set_to("a"):
            model(IDS, labels=IDS, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(p, frozen[name]) for name, p in base_parameters(model).items())
    still = [name for name, p in adapter_set.parameters().items() if torch.equal(p, start[name])]
    assert not still


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_rows_of_one_batch_with_different_adapters_equal_each_alone(arch):
    model, switch = tiny(arch), Switch()
    nudge(add(model, switch, EVERYTHING, name="a", seed=0), 1)
    nudge(add(model, switch, Settings(r=3, targets="attention"), name="b", seed=0, added_tokens=8), 2)
    alone = {}
    for name in ("a", "b", None):
        with switch.set_to(name):
            alone[name] = model(IDS).logits
    names = ("b", "a", None)
    with switch.set_to(None, rows=names):
        mixed = model(IDS).logits
    for row, name in enumerate(names):
        torch.testing.assert_close(mixed[row], alone[name][row], rtol=1e-4, atol=1e-4)
    assert torch.equal(alone[None], tiny(arch)(IDS).logits)


@pytest.mark.parametrize("arch", ["llama", "gpt2", "qwen2_moe"])
def test_unloaded_is_the_original_object_for_object(arch):
    model, switch = tiny(arch), Switch()
    before = {name: id(p) for name, p in model.named_parameters()}
    add(model, switch, EVERYTHING, name="a", seed=0)
    unload(model, "a")
    assert not slots(model)
    assert {name: id(p) for name, p in model.named_parameters()} == before


def test_a_layer_starts_the_same_whatever_else_is_adapted():
    path = "model.layers.1.self_attn.q_proj"
    few = add(tiny("llama"), Switch(), Settings(targets=("q_proj",)), name="a", seed=5)
    many = add(tiny("llama"), Switch(), Settings(), name="b", seed=5)
    other = add(tiny("llama"), Switch(), Settings(), name="c", seed=6)
    assert torch.equal(few.adapters[path].A, many.adapters[path].A)
    assert not torch.equal(other.adapters[path].A, many.adapters[path].A)
    assert not torch.equal(many.adapters[path].A, many.adapters["model.layers.0.self_attn.q_proj"].A)


def test_a_tied_table_is_one_parameter_and_counted_once():
    model = tiny("llama-tied")
    adapter_set = add(model, Switch(), Settings(targets=("q_proj",), train_in_full=("embeddings",)), name="a", seed=0)
    first, second = adapter_set.adapters["model.embed_tokens"], adapter_set.adapters["lm_head"]
    assert first.weight is second.weight
    lora = sum(p.numel() for name, p in adapter_set.parameters().items() if "q_proj" in name)
    assert adapter_set.counts().trained == lora + 96 * 32
    assert adapter_set.counts().total == sum(p.numel() for p in tiny("llama-tied").parameters())


def test_state_goes_out_and_in_whole_or_not_at_all():
    one = add(tiny("gpt2"), Switch(), EVERYTHING, name="a", seed=0)
    other = add(tiny("gpt2"), Switch(), EVERYTHING, name="a", seed=1)
    nudge(one, 3)
    other.load_state(one.state())
    assert all(torch.equal(other.state()[name], tensor) for name, tensor in one.state().items())
    broken = {name: tensor.clone() for name, tensor in one.state().items()}
    del broken["lm_head.weight" if "lm_head.weight" in broken else next(iter(broken))]
    before = {name: tensor.clone() for name, tensor in other.state().items()}
    with pytest.raises(AdapterError, match="missing"):
        other.load_state(broken)
    assert all(torch.equal(other.state()[name], tensor) for name, tensor in before.items())


def test_names_and_switches_that_cannot_be():
    model, switch = tiny("llama"), Switch()
    add(model, switch, Settings(), name="a", seed=0)
    for name in ("a", "", "x.y"):
        with pytest.raises(AdapterError):
            add(model, switch, Settings(), name=name, seed=0)
    with pytest.raises(AdapterError, match="one Switch"):
        add(model, Switch(), Settings(), name="b", seed=0)


def test_added_tokens_and_low_rank_beside_the_same_table_are_refused():
    with pytest.raises(AdapterError, match="at once"):
        add(tiny("llama"), Switch(), Settings(targets=("embed_tokens",)), name="a", seed=0, added_tokens=2)

"""LoRA-FA leaves out of memory what LoRA keeps for A alone: the inputs that no other module needs, and no more."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from tunesmith.adapters import METHODS
from tunesmith.adapters.adapter_set import add
from tunesmith.adapters.attach import Switch
from tunesmith.models.tiny import BLOCKS, HIDDEN, MIDDLE, VOCABULARY, tiny

RANK = 4


def kept_bytes(method, targets, tokens):
    """What autograd keeps for the backward pass of one row, weights left out, each storage once."""
    model, switch = tiny("llama"), Switch()
    adapter_set = add(model, switch, METHODS[method].Settings(r=RANK, targets=targets), name="a", seed=0)
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    found = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    ids = torch.arange(tokens)[None] % VOCABULARY
    with switch.set_to("a"), saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(input_ids=ids, use_cache=False).logits.sin().sum()
    loss.backward()
    assert all(parameter.grad is not None for parameter in adapter_set.parameters().values())
    return sum(found.values())


@pytest.mark.parametrize("tokens", [5, 40])
@pytest.mark.parametrize(
    ("targets", "width"),
    [(("q_proj", "k_proj", "v_proj"), HIDDEN), (("gate_proj", "up_proj"), HIDDEN), ("mlp-down", MIDDLE)],
)
def test_it_keeps_no_input_that_lora_keeps_for_a_alone(targets, width, tokens):
    saved = kept_bytes("lora", targets, tokens) - kept_bytes("lora-fa", targets, tokens)
    assert saved == BLOCKS * tokens * width * 4  # once, however many matrices share it

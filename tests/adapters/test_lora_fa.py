"""LoRA-FA learns B as plain autograd does with A frozen, and leaves out of memory what LoRA keeps for A alone: the
inputs that no other module needs, and no more, with dropout and without.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from transformers.pytorch_utils import Conv1D

from tunesmith.adapters import METHODS
from tunesmith.adapters.adapter_set import add, generator_of
from tunesmith.adapters.attach import Switch
from tunesmith.adapters.base import base_of
from tunesmith.kernels.dropout import KeepMask
from tunesmith.models.tiny import BLOCKS, HIDDEN, MIDDLE, VOCABULARY, tiny

RANK = 4


def kept_bytes(method, targets, tokens, dtype=torch.float32, **settings):
    """What autograd keeps for the backward pass of one row, weights left out, each storage once."""
    model, switch = tiny("llama", dtype=dtype), Switch()
    adapter_set = add(model, switch, METHODS[method].Settings(r=RANK, targets=targets, **settings), name="a", seed=0)
    for adapter in adapter_set.adapters.values():
        adapter.train()
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["lora", "lora-fa", "dora", "relora", "vera"])
def test_dropout_keeps_not_a_byte_more(method, dtype):
    for targets in ("all-linear", "attention"):
        plain, dropped = (kept_bytes(method, targets, 40, dtype, dropout=share) for share in (0.0, 0.3))
        assert dropped == plain


class Literal(nn.Module):
    """The paper's layer: W and A frozen, B learned, differentiated by autograd."""

    def __init__(self, base, adapter) -> None:
        super().__init__()
        self.register_buffer("W", base.weight().clone())
        self.register_buffer("b", None if base.bias is None else base.bias.clone())
        self.register_buffer("A", adapter.A.clone())
        self.B = nn.Parameter(adapter.B.detach().clone())
        self.scale, self.dropout = adapter.scale, adapter.dropout

    def forward(self, x):
        dropped = x * KeepMask.fresh(self.dropout).like(x) if self.dropout else x
        y = x @ self.W.T + self.scale * (dropped @ self.A.T) @ self.B.T
        return y if self.b is None else y + self.b


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_b_learns_as_by_hand_with_a_frozen(dtype, close, dropout):
    """Two layers on top of each other, neither square: the lower one's gradient comes through the upper."""
    torch.manual_seed(0)
    frozen = [nn.Linear(9, 13, bias=False), Conv1D(7, 13)]
    bases = [base_of(layer.to(dtype).requires_grad_(False)) for layer in frozen]
    settings = METHODS["lora-fa"].Settings(r=3, alpha=5.0, dropout=dropout, rank_stabilised=True)
    ours = [METHODS["lora-fa"].build(settings, base, generator_of(0, str(i))) for i, base in enumerate(bases)]
    ours = [adapter.to(dtype).train() for adapter in ours]
    literal = [Literal(base, adapter) for base, adapter in zip(bases, ours, strict=True)]
    started = [adapter.A.clone() for adapter in ours]
    optimizers = [torch.optim.AdamW([one.B for one in layers], lr=0.02, weight_decay=0.1) for layers in (ours, literal)]
    for step in range(8):
        x, wanted = torch.randn(20, 9).to(dtype), torch.randn(20, 7).to(dtype)
        outputs = []
        for layers, optimizer in zip((ours, literal), optimizers, strict=True):
            torch.manual_seed(step)
            y = x
            for layer, base in zip(layers, bases, strict=True):
                y = layer(y, base) if layers is ours else layer(y)
                y = y.tanh()
            (y - wanted).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            outputs.append(y.detach())
        torch.testing.assert_close(*outputs, rtol=close, atol=close)
    for adapter, other, A in zip(ours, literal, started, strict=True):
        torch.testing.assert_close(adapter.B, other.B, rtol=close, atol=close)
        assert adapter.B.abs().max() > 0.05
        assert torch.equal(adapter.A, A)

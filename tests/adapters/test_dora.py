"""What DoRA keeps for its backward pass: the layer's output, where the model leaves that alone; and rows of zeros."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tunesmith.adapters import METHODS
from tunesmith.adapters.adapter_set import add
from tunesmith.adapters.attach import Slot, Switch
from tunesmith.adapters.base import base_of
from tunesmith.adapters.merge import merge, merge_to_folder
from tunesmith.kernels import low_rank
from tunesmith.models.tiny import tiny

IDS = torch.randint(5, 90, (2, 9), generator=torch.Generator().manual_seed(0))


def trained(arch):
    """A model with a DoRA whose every tensor is moved, switched on; its adapter set."""
    model, switch = tiny(arch), Switch()
    adapter_set = add(model, switch, METHODS["dora"].Settings(), name="a", seed=0)
    switch.name = "a"
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter_set.parameters().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model, adapter_set


def gradients(model, adapter_set):
    model(IDS, labels=IDS).loss.backward()
    found = {name: parameter.grad for name, parameter in adapter_set.parameters().items()}
    for parameter in adapter_set.parameters().values():
        parameter.grad = None
    return found


@pytest.mark.parametrize("arch", ["llama", "falcon", "gpt2"])
def test_gradients_are_right_and_the_same_at_every_step(arch, monkeypatch):
    """At the first product nobody knows yet whether the model writes into what it is handed, as Falcon does."""
    model, adapter_set = trained(arch)
    first, second, third = (gradients(model, adapter_set) for _ in range(3))
    monkeypatch.setattr(low_rank, "UNDONE", float("inf"))
    apart = gradients(model, adapter_set)
    for name, gradient in first.items():
        assert gradient.abs().max() > 0, name
        assert torch.equal(gradient, second[name]), name
        assert torch.equal(gradient, third[name]), name
        torch.testing.assert_close(gradient, apart[name], rtol=1e-4, atol=1e-5 * gradient.abs().max().item())


def test_what_falcon_adds_into_is_copied_and_nothing_else():
    model, adapter_set = trained("falcon")
    gradients(model, adapter_set)
    slots = {path: module for path, module in model.named_modules() if isinstance(module, Slot)}
    copied = {path for path, slot in slots.items() if not slot.base.left_alone}
    assert copied == {path for path in slots if path.endswith("dense_4h_to_h")}


ZEROS = (0, 3, 17)
"""Rows of W that are all zero in the tests below."""


def pruned(kind: str, dtype=torch.float32) -> nn.Module:
    """A layer [24, 16] whose W has rows of zeros; of an embedding these are columns of the table."""
    generator = torch.Generator().manual_seed(2)
    layer = nn.Embedding(16, 24) if kind == "embedding" else nn.Linear(16, 24, bias=kind == "linear-bias")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        (layer.weight.t() if kind == "embedding" else layer.weight)[[*ZEROS]] = 0
    return layer.to(dtype).requires_grad_(False)


def asked(kind: str, dtype=torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    if kind == "embedding":
        return torch.randint(0, 16, (5,), generator=generator)
    return torch.randn(5, 16, generator=generator).to(dtype)


def as_merged(adapter, base):
    """What a plain layer with the merged numbers computes, in fp64."""
    weight, bias = adapter.merged(base.weight().double(), None if base.bias is None else base.bias.double())
    return lambda x: weight.t()[x] if base.is_embedding else nn.functional.linear(x.double(), weight, bias)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["linear", "linear-bias", "embedding"])
def test_a_row_of_zeros_starts_as_the_base_learns_and_merges(kind, dtype, native, monkeypatch):
    """|W + s B A| is 0 there: the paper's form divides 0 by 0."""
    if not native:
        monkeypatch.setattr(low_rank, "runs_natively", lambda *_: False)
    layer, x = pruned(kind, dtype), asked(kind, dtype)
    base, close = base_of(layer), 1e-5 if dtype == torch.float32 else 2e-2
    adapter = METHODS["dora"].build(METHODS["dora"].Settings(r=2), base, torch.Generator().manual_seed(0))
    torch.testing.assert_close(adapter(x, base), layer(x), rtol=close, atol=close)
    assert (adapter.m[[*ZEROS]] == 0).all()
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.01, weight_decay=0.0)
    for step in range(4):
        y = adapter(x, base)
        wanted = as_merged(adapter, base)(x)
        assert torch.isfinite(wanted).all()
        torch.testing.assert_close(y.double(), wanted, rtol=close, atol=close * wanted.abs().max().item())
        optimizer.zero_grad()
        (y.float() - 1).square().sum().backward()
        for name, parameter in adapter.named_parameters():
            assert torch.isfinite(parameter.grad).all(), (step, name)
        if step == 0:
            assert (adapter.m.grad[[*ZEROS]] == 0).all()  # no direction yet
            assert kind == "embedding" or (adapter.B.grad[[*ZEROS]].abs().amax(1) > 0).all()
        optimizer.step()
    assert (adapter.m[[*ZEROS]] != 0).all()
    assert (
        as_merged(adapter, base)(x)[:, [*ZEROS]] - (0 if base.bias is None else base.bias[[*ZEROS]])
    ).abs().max() > 0


def test_rows_of_zeros_change_nothing_for_the_others():
    layer, x = pruned("linear-bias"), asked("linear")
    kept = [row for row in range(24) if row not in ZEROS]
    part = nn.Linear(16, len(kept)).requires_grad_(False)
    part.weight.copy_(layer.weight[kept])
    part.bias.copy_(layer.bias[kept])
    outputs = []
    for one, rows in ((layer, list(range(24))), (part, list(range(len(kept))))):
        base = base_of(one)
        adapter = METHODS["dora"].build(METHODS["dora"].Settings(r=2), base, torch.Generator().manual_seed(0))
        with torch.no_grad():
            B = torch.randn(24, 2, generator=torch.Generator().manual_seed(5))
            adapter.B.copy_(B if len(rows) == 24 else B[kept])
        y = adapter(x, base)
        outputs.append(y[:, kept] if len(rows) == 24 else y)
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arch", ["llama", "llama-tied", "gpt2", "opt"])
def test_a_pruned_model_is_tuned_and_merged(arch, tmp_path):
    """Rows of every matrix are zero, the last of the vocabulary among them."""
    model, switch = tiny(arch), Switch()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter[-3:] = 0
                parameter[:, -2:] = 0  # rows of a Conv1D's W
    base = model(IDS).logits
    targets = ("all-linear", "lm_head") if arch == "llama" else "all-linear"
    adapter_set = add(model, switch, METHODS["dora"].Settings(r=2, targets=targets), name="a", seed=0)
    optimizer = torch.optim.AdamW(adapter_set.parameters().values(), lr=1e-2)
    with switch.set_to("a"):
        torch.testing.assert_close(model(IDS).logits, base, rtol=1e-4, atol=1e-4)
        for _ in range(3):
            model(IDS, labels=IDS).loss.backward()
            for name, parameter in adapter_set.parameters().items():
                assert torch.isfinite(parameter.grad).all(), name
            optimizer.step()
            optimizer.zero_grad()
        wanted = model(IDS).logits
    assert torch.isfinite(wanted).all()
    assert not torch.allclose(wanted, base, atol=1e-2)
    plain = merge(model, adapter_set)
    torch.testing.assert_close(plain(IDS).logits, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())
    merge_to_folder(model, adapter_set, tmp_path / "merged")

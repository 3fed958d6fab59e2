"""What DoRA keeps for its backward pass: the layer's output, where the model leaves that alone."""

from __future__ import annotations

import pytest
import torch

from tunesmith.adapters import METHODS
from tunesmith.adapters.adapter_set import add
from tunesmith.adapters.attach import Slot, Switch
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
    monkeypatch.setattr(low_rank, "_gains_at_once", lambda *_: False)
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

"""Delta-LoRA against the paper's own steps, in which W really moves; and what becomes of it in a run and in files."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunesmith.adapters.adapter_set import add, check, generator_of
from tunesmith.adapters.attach import Switch
from tunesmith.adapters.base import base_of
from tunesmith.adapters.delta_lora import Settings, build, on_step
from tunesmith.adapters.identity import identify
from tunesmith.adapters.store import SIDE, load, save
from tunesmith.errors import AdapterError
from tunesmith.models.tiny import tiny

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "train"))
from loops import whole_and_resumed

pytestmark = pytest.mark.filterwarnings("ignore")
IN, MIDDLE, OUT, STEPS = 9, 13, 7, 12
IDS = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(1))


class Literal(nn.Module):
    """A layer by the paper: W is moved after each update by the change of the product."""

    def __init__(self, weight, bias, adapter, settings: Settings) -> None:
        super().__init__()
        self.W, self.bias, self.settings = weight.clone(), bias, settings
        self.A, self.B = nn.Parameter(adapter.A.detach().clone()), nn.Parameter(adapter.B.detach().clone())

    def forward(self, x):
        y = x @ self.W.T + self.settings.scale * (x @ self.A.T) @ self.B.T
        return y if self.bias is None else y + self.bias

    @torch.no_grad()
    def product(self):
        return self.B @ self.A

    @torch.no_grad()
    def move(self, before) -> None:
        self.W += self.settings.update_ratio * self.settings.scale * (self.product() - before)


def layers():
    """Two frozen layers on top of each other, neither square: the lower one's gradient comes through the upper."""
    torch.manual_seed(0)
    made = [nn.Linear(IN, MIDDLE).double(), Conv1D(OUT, MIDDLE).double()]
    nn.init.normal_(made[1].bias)
    return [layer.requires_grad_(False) for layer in made]


@pytest.mark.parametrize("start_step", [0, 4, STEPS])
@pytest.mark.parametrize(
    "options", [{"update_ratio": 2.0}, {"update_ratio": 0.5, "rank_stabilised": True}, {"update_ratio": 0.0}]
)
@pytest.mark.parametrize("moved", [False, True])
def test_it_is_the_paper_s_step_by_step_form_with_its_gradients(options, start_step, moved):
    settings = Settings(r=3, alpha=5.0, start_step=start_step, **options)
    frozen = layers()
    bases = [base_of(layer) for layer in frozen]
    ours = {str(i): build(settings, base, generator_of(0, str(i))).double() for i, base in enumerate(bases)}
    if moved:
        with torch.no_grad():
            for adapter in ours.values():
                adapter.B += 0.3 * torch.randn(adapter.B.shape, dtype=torch.float64)
        on_step(ours, 0, None)
    theirs = [
        Literal(base.weight().clone(), base.bias, adapter, settings)
        for base, adapter in zip(bases, ours.values(), strict=True)
    ]
    parameters = [p for adapter in ours.values() for p in (adapter.A, adapter.B)]
    literal = [p for layer in theirs for p in (layer.A, layer.B)]
    optimizers = [torch.optim.AdamW(own, lr=0.03, weight_decay=0.1, eps=1e-3) for own in (parameters, literal)]
    generator = torch.Generator().manual_seed(3)
    for step in range(STEPS):
        x = torch.randn(20, IN, generator=generator, dtype=torch.float64)
        target = torch.randn(20, OUT, generator=generator, dtype=torch.float64)
        mine = ours["1"](ours["0"](x, bases[0]).tanh(), bases[1])
        wanted = theirs[1](theirs[0](x).tanh())
        torch.testing.assert_close(mine, wanted, rtol=1e-11, atol=1e-11)
        (mine - target).pow(2).sum().backward()
        (wanted - target).pow(2).sum().backward()
        for one, other in zip(parameters, literal, strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-9)
        before = [layer.product() for layer in theirs]
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        assert not on_step(ours, step + 1, STEPS)
        if step >= start_step:
            for layer, product in zip(theirs, before, strict=True):
                layer.move(product)
    for layer, adapter, base in zip(theirs, ours.values(), bases, strict=True):
        torch.testing.assert_close(layer.A, adapter.A, rtol=1e-9, atol=1e-9)
        weight, bias = adapter.merged(base.weight(), base.bias)
        torch.testing.assert_close(weight, layer.W + settings.scale * layer.product(), rtol=1e-9, atol=1e-9)
        assert bias is base.bias
        w_moved = not torch.allclose(layer.W, base.weight(), atol=1e-6)
        assert w_moved == (settings.update_ratio > 0 and start_step < STEPS)


def test_until_the_start_step_it_is_lora():
    settings = Settings(r=3, start_step=5, update_ratio=2.0)
    base = base_of(nn.Linear(IN, OUT))
    adapter = build(settings, base, generator_of(0, "x"))
    x = torch.randn(6, IN)
    for step in range(1, 6):
        with torch.no_grad():
            adapter.A += 0.1 * torch.randn(adapter.A.shape)
            adapter.B += 0.1 * torch.randn(adapter.B.shape)
        on_step({"x": adapter}, step, None)
        wanted = base.output(x) + settings.scale * (x @ adapter.A.T) @ adapter.B.T
        torch.testing.assert_close(adapter(x, base), wanted, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        adapter.B += 0.1
    on_step({"x": adapter}, 6, None)
    wanted = base.output(x) + settings.scale * (x @ adapter.A.T) @ adapter.B.T
    assert not torch.allclose(adapter(x, base), wanted, rtol=1e-3, atol=1e-3)


def test_a_budget_that_ends_before_the_start_step_is_refused():
    check(Settings(start_step=9), 10, "adamw")
    check(Settings(start_step=9), None, "adamw")
    with pytest.raises(AdapterError, match="start_step 10 is not reached"):
        check(Settings(start_step=10), 10, "adamw")


def trained(start_step: int):
    """A model, and an adapter some steps on."""
    model, switch = tiny("llama"), Switch()
    adapter_set = add(model, switch, Settings(r=2, start_step=start_step, update_ratio=1.5), name="a", seed=0)
    generator = torch.Generator().manual_seed(4)
    for step in range(1, 5):
        with torch.no_grad():
            for parameter in adapter_set.parameters().values():
                parameter += 0.1 * torch.empty(parameter.shape).normal_(generator=generator)
        adapter_set.on_step(step, None)
    switch.name = "a"
    return model, adapter_set


def test_a_file_keeps_the_factors_of_the_start_step_and_a_new_run_moves_w_from_its_first_step_on(tmp_path):
    model, adapter_set = trained(2)
    save(tmp_path / "a", adapter_set, identify(model))
    again, switch = tiny("llama"), Switch()
    loaded = load(tmp_path / "a", again, switch, "a", trainable=True)
    switch.name = "a"
    assert loaded.settings == adapter_set.settings
    assert all(torch.equal(loaded.state()[name], tensor) for name, tensor in adapter_set.state().items())
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    kept = {name: tensor.clone() for name, tensor in loaded.state().items() if name[-2:] in ("A1", "B1")}
    for step in (1, 2, 3):
        loaded.on_step(step, 10)
    assert kept
    assert all(torch.equal(loaded.state()[name], tensor) for name, tensor in kept.items())


def test_without_our_side_file_it_is_a_lora_of_twice_the_rank(tmp_path):
    model, adapter_set = trained(2)
    save(tmp_path / "a", adapter_set, identify(model))
    (tmp_path / "a" / SIDE).unlink()
    again, switch = tiny("llama"), Switch()
    loaded = load(tmp_path / "a", again, switch, "a")
    switch.name = "a"
    assert loaded.settings.method == "lora"
    assert loaded.settings.r == 4
    wanted = model(IDS).logits
    close = 5e-5  # of one LoRA both products are reckoned, and then subtracted
    torch.testing.assert_close(again(IDS).logits, wanted, rtol=close, atol=close * wanted.abs().max().item())
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["lora_alpha"] == 2 * 2.5 * 16


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_a_run_broken_off_before_or_after_the_start_step_resumes_bit_for_bit(tmp_path, cut):
    options = {"steps": 7, "adapter": Settings(r=2, start_step=3, update_ratio=1.0), "moved": False}
    _, again = whole_and_resumed(tmp_path, cut, **options)
    adapter = copy.deepcopy(next(iter(again.adapter_set.adapters.values())))
    assert not torch.equal(adapter.A, adapter.A1)

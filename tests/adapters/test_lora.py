"""What LoRA's variants change: the start of PiSSA and OLoRA, what is learned from there, and LoRA+'s learning rates."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunesmith.adapters import METHODS
from tunesmith.adapters.adapter_set import add, generator_of
from tunesmith.adapters.attach import Switch
from tunesmith.adapters.base import base_of
from tunesmith.errors import AdapterError
from tunesmith.kernels.dropout import KeepMask
from tunesmith.models.tiny import tiny
from tunesmith.train.optim import make_optimizer, set_learning_rate
from tunesmith.train.settings import TrainSettings


def build(start: str, **settings):
    torch.manual_seed(0)
    base = base_of(nn.Linear(30, 20))
    made = METHODS["lora"].Settings(r=4, start=start, **settings)
    return base.weight().detach(), METHODS["lora"].build(made, base, generator_of(0, "here"))


@pytest.mark.parametrize("iterations", [None, 6])
def test_pissa_starts_at_the_largest_singular_directions(iterations):
    weight, adapter = build("pissa", svd_iterations=iterations)
    U, S, Vh = torch.linalg.svd(weight)
    wanted = U[:, :4] @ torch.diag(S[:4]) @ Vh[:4]
    torch.testing.assert_close(adapter.scale * adapter.B @ adapter.A, wanted, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(adapter.A.norm(dim=1), adapter.B.norm(dim=0), rtol=1e-3, atol=1e-3)


def test_olora_starts_at_the_first_columns_of_q():
    weight, adapter = build("olora")
    torch.testing.assert_close(adapter.B.T @ adapter.B, torch.eye(4), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(adapter.B.T @ weight, adapter.A, rtol=1e-4, atol=1e-4)


def test_a_start_with_more_directions_than_the_weight_has_is_refused():
    with pytest.raises(AdapterError, match="takes its 9 directions"):
        METHODS["lora"].build(
            METHODS["lora"].Settings(r=9, start="pissa"), base_of(nn.Linear(5, 30)), generator_of(0, "x")
        )


IN, OUT = 96, 68
DIFFERENCES = {
    "zero": ("lora", {}),
    "pissa": ("lora", {"start": "pissa"}),
    "olora": ("lora", {"start": "olora", "rank_stabilised": True}),
    "delta-lora": ("delta-lora", {"start_step": 0}),
    "delta-lora, W moved far": ("delta-lora", {"start_step": 0, "update_ratio": 10.0}),
}
"""Methods whose change is a difference of products, and plain LoRA."""


def layer_of(kind: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    layer = {"linear": nn.Linear, "embedding": nn.Embedding}.get(kind, lambda in_, out: Conv1D(out, in_))(IN, OUT)
    return layer.to(dtype).requires_grad_(False)


def moved_little(choice: str, layer: nn.Module, size: float):
    """An adapter whose A and B have gone `size` from where they, or A_K and B_K, were."""
    method, values = DIFFERENCES[choice]
    adapter = METHODS[method].build(METHODS[method].Settings(r=4, **values), base_of(layer), generator_of(0, "here"))
    generator = torch.Generator().manual_seed(3)

    def move(by: float) -> None:
        with torch.no_grad():
            for tensor in (adapter.A, adapter.B):
                tensor += by * torch.empty(tensor.shape).normal_(generator=generator)

    if method == "delta-lora":
        move(0.05)
        adapter.remember()
    move(size)
    return adapter


@pytest.mark.parametrize("size", [2e-5, 2e-4, 1e-3])
@pytest.mark.parametrize("kind", ["linear", "conv1d", "embedding"])
@pytest.mark.parametrize("choice", DIFFERENCES)
def test_the_change_that_a_bf16_model_sees_is_the_one_that_is_merged_however_small(choice, kind, size):
    """To plain LoRA's rounding, a third of a per cent: what is added and what is subtracted are as large as W."""
    layer = layer_of(kind, torch.bfloat16)
    adapter = moved_little(choice, layer, size)
    weight = base_of(layer).weight().double()
    merged = adapter.merged(weight, None)[0] - weight
    nothing = copy.deepcopy(layer)
    for parameter in nothing.parameters():
        parameter.zero_()
    x = torch.arange(IN) if kind == "embedding" else torch.randn(300, IN).bfloat16()
    seen = adapter(x, base_of(nothing)).double()
    wanted = merged.T[x] if kind == "embedding" else x.double() @ merged.T
    assert (seen - wanted).norm() / wanted.norm() < 0.005
    stored = {name: stored.joined().double() for name, stored in adapter.stored().items()}
    A, B = (next(tensor for name, tensor in stored.items() if f"_{letter}" in name) for letter in "AB")
    assert (adapter.scale * B @ A - merged).norm() / merged.norm() < 1e-6, "PEFT's LoRA of rank 2 r is the same change"


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.01)])
@pytest.mark.parametrize("start", ["zero", "pissa", "olora"])
def test_gradients_after_a_start_are_those_of_the_plain_form(start, dtype, close, dropout):
    """y = W x + s (B A - B0 A0) drop(x), written out in fp64; the bound is a share of the norm."""
    layer = layer_of("linear", dtype)
    adapter = moved_little(start, layer, 1e-3).to(torch.promote_types(dtype, torch.float32)).train()
    adapter.dropout = dropout
    x, dy = (torch.randn(200, size).to(dtype) for size in (IN, OUT))
    leaf = x.clone().requires_grad_()
    torch.manual_seed(5)
    keep = KeepMask.fresh(dropout)
    torch.manual_seed(5)
    adapter(leaf, base_of(layer)).backward(dy)

    plain = [tensor.detach().double().requires_grad_() for tensor in (x, adapter.A, adapter.B)]
    dropped = plain[0] * keep.like(x).double() if dropout else plain[0]
    product = plain[2] @ plain[1]
    if adapter.A1 is not None:
        product = product + adapter.B1.double() @ adapter.A1.double()
    y = plain[0] @ layer.weight.double().T + adapter.scale * dropped @ product.T
    y.backward(dy.double())
    for found, wanted in zip((leaf, adapter.A, adapter.B), plain, strict=True):
        assert (found.grad.double() - wanted.grad).norm() <= close * wanted.grad.norm()


@pytest.mark.parametrize("method", ["lora", "dora", "lora-fa", "delta-lora", "relora"])
def test_lora_plus_gives_b_and_embeddings_rates_of_their_own(method):
    settings = METHODS[method].Settings(r=2, lr_ratio=16.0, embedding_lr_ratio=0.5, targets=("q_proj", "embed_tokens"))
    adapter_set = add(tiny("llama"), Switch(), settings, name="a", seed=0)
    optimizer = make_optimizer(TrainSettings(steps=1), adapter_set.parameters(), adapter_set.groups())
    set_learning_rate(optimizer, 1e-3)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in adapter_set.parameters().items():
        ratio = 0.5 if "embed" in name else 16.0 if name.endswith(".B") else 1.0
        assert rates[id(parameter)] == pytest.approx(1e-3 * ratio), name

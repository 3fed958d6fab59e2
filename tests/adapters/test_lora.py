"""What LoRA's variants change: the start of PiSSA and OLoRA, and LoRA+'s learning rates in the optimizer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tunesmith.adapters import METHODS
from tunesmith.adapters.adapter_set import add, generator_of
from tunesmith.adapters.attach import Switch
from tunesmith.adapters.base import base_of
from tunesmith.errors import AdapterError
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

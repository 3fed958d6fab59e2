"""The same engine on CUDA: skipped where there is none."""

from __future__ import annotations

import pytest
import torch

from tunesmith.adapters import lora
from tunesmith.adapters.adapter_set import add
from tunesmith.adapters.attach import Switch
from tunesmith.data.types import Segment
from tunesmith.kernels.linear_ce import linear_ce, linear_ce_reference
from tunesmith.models import attention
from tunesmith.models.policy import flat_batch, probe
from tunesmith.models.tiny import tiny

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def test_attention_by_document_equals_the_plain_form() -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    q, k, v = (
        torch.randn(heads, 60, 64, device="cuda", generator=generator).bfloat16().requires_grad_()
        for heads in (6, 2, 2)
    )
    layout = attention.Layout((Segment(0, 17), Segment(17, 60)), q.device)
    fast = attention.flat(q, k, v, layout, 0.125, None, None)
    plain = attention.flat_reference(q.float(), k.float(), v.float(), layout, 0.125, None, None)
    assert (fast.float() - plain).abs().max() < 2e-2
    fast.float().square().sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (q, k, v))


def test_head_loss_equals_the_plain_form() -> None:
    hidden = torch.randn(300, 32, device="cuda", requires_grad=True)
    weight = torch.randn(500, 32, device="cuda")
    targets, weights = torch.randint(0, 500, (300,), device="cuda"), torch.rand(300, device="cuda")
    fast = linear_ce(hidden, weight, None, targets, weights)
    plain = linear_ce_reference(hidden, weight, None, targets, weights)
    assert torch.allclose(fast, plain, rtol=1e-5)
    ours, theirs = (torch.autograd.grad(loss, hidden)[0] for loss in (fast, plain))
    assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_runs_flat_and_its_adapter_learns(dtype: torch.dtype) -> None:
    model, switch = tiny("llama", dtype=dtype), Switch()
    model.to("cuda")
    attention.install(model)
    adapter_set = add(model, switch, lora.Settings(r=4), name="a", seed=0)
    policy, reason = probe(model, switch)
    assert policy.flat, reason
    switch.name = "a"
    documents = [torch.arange(3, 15, device="cuda"), torch.arange(20, 29, device="cuda")]
    policy.hidden(flat_batch(documents)).float().square().sum().backward()
    grads = [parameter.grad for name, parameter in adapter_set.parameters().items() if name.endswith(".B")]
    assert all(grad is not None and grad.abs().max() > 0 for grad in grads)

"""A factor on each output equals its reference, in value and in both gradients."""

from __future__ import annotations

import pytest
import torch

from tunesmith.kernels.gain import gain_reference, gained

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 8e-3}


def run(function, z, gain, bias, dy):
    z, gain = z.clone().requires_grad_(), gain.clone().requires_grad_()
    y = function(z, gain, bias)
    y.backward(dy)
    return y.detach(), z.grad, gain.grad


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1, 5), (3, 40, 70), (300, 33), (2, 1)])
def test_equals_the_reference(shape, dtype, bias):
    g = torch.Generator().manual_seed(0)
    z, dy = (torch.randn(shape, generator=g).to(dtype) for _ in range(2))
    gain = torch.randn(shape[-1], generator=g, dtype=torch.promote_types(dtype, torch.float32))
    b = torch.randn(shape[-1], generator=g).to(dtype) if bias else None
    for mine, wanted in zip(run(gained, z, gain, b, dy), run(gain_reference, z, gain, b, dy), strict=True):
        assert mine.dtype == wanted.dtype
        bound = TOLERANCE[dtype]
        torch.testing.assert_close(mine, wanted, rtol=bound, atol=bound * wanted.abs().max().item())


def test_a_small_difference_from_one_is_not_lost_in_bf16():
    z = torch.ones(4096, 3, dtype=torch.bfloat16)
    gain = torch.tensor([1.0, 1.001, 0.999], requires_grad=True)
    gained(z, gain).sum().backward()
    assert torch.equal(gain.grad, torch.full((3,), 4096.0))


def test_one_leaves_every_bit():
    for dtype in (torch.float32, torch.bfloat16):
        z, bias = torch.randn(30, 40).to(dtype), torch.randn(40).to(dtype)
        assert torch.equal(gained(z, torch.ones(40), bias), z)

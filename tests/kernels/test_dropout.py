"""Masks are those of the reference bit for bit, keep as many as they say, and differ by seed."""

from __future__ import annotations

import pytest
import torch

from tunesmith.kernels.dropout import KeepMask, dropped, dropped_reference, keep_mask_reference
from tunesmith.kernels.native import library


@pytest.mark.skipif(library() is None, reason="no compiler")
@pytest.mark.parametrize("p", [0.0, 0.05, 0.5, 0.99])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (3, 7), (2, 40, 333), (300, 576)])
def test_equals_the_reference_bit_for_bit(shape, dtype, p):
    for start in range(3):
        torch.manual_seed(start)
        seed = int(torch.empty((), dtype=torch.int64).random_())
        torch.manual_seed(start)
        mask = KeepMask.fresh(p).like(torch.empty(shape, dtype=dtype))
        assert mask.dtype == dtype
        assert torch.equal(mask, keep_mask_reference(mask.shape, p, dtype, seed))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_keeps_as_many_as_it_says(p, dtype):
    torch.manual_seed(0)
    mask = KeepMask.fresh(p).like(torch.empty(1000, 400, dtype=dtype))
    assert set(mask.unique().tolist()) <= {0.0, torch.tensor(1 / (1 - p), dtype=torch.float64).to(dtype).item()}
    kept = (mask != 0).double()
    deviation = (p * (1 - p) / 400_000) ** 0.5
    assert abs(kept.mean().item() - (1 - p)) <= 5 * deviation
    for dim, count in ((0, 1000), (1, 400)):  # no row and no column is favoured
        assert ((kept.mean(dim) - (1 - p)).abs() <= 6 * (p * (1 - p) / count) ** 0.5).all()


def test_masks_of_other_seeds_and_of_neighbours_are_unrelated():
    torch.manual_seed(0)
    x = torch.empty(512, 512)
    masks = torch.stack([(KeepMask.fresh(0.5).like(x) != 0).double().flatten() - 0.5 for _ in range(6)])
    bound = 5 * 0.25 / x.numel() ** 0.5
    for i, one in enumerate(masks):
        for shift in (1, 2, 8, 16, 512, 513):
            assert abs((one[:-shift] * one[shift:]).mean().item()) < bound
        for other in masks[i + 1 :]:
            assert abs((one * other).mean().item()) < bound
            assert abs((one[:-1] * other[1:]).mean().item()) < bound


def test_the_generator_s_state_decides():
    x = torch.empty(50, 60)
    torch.manual_seed(3)
    one, other = (KeepMask.fresh(0.3).like(x) for _ in range(2))
    assert not torch.equal(one, other)
    torch.manual_seed(3)
    assert torch.equal(KeepMask.fresh(0.3).like(x), one)


DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Two of them are drawn by the compiled form, two by torch."""


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mask_is_the_same_whenever_it_is_asked_for_and_draws_from_no_generator_then(dtype):
    keep, x = KeepMask.fresh(0.3), torch.randn(3, 7, 11).to(dtype)
    before = torch.get_rng_state()
    masks = [keep.like(x), keep.like(x.reshape(21, 11)).view_as(x), keep.like(x.mT.contiguous().mT)]
    assert all(torch.equal(mask, masks[0]) for mask in masks)
    for given in (x, x.mT.contiguous().mT, x[..., :1].expand(3, 7, 11)):
        assert torch.equal(keep.on(given), given * masks[0])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_dropped_equals_the_reference_and_only_the_seed_is_kept(dtype):
    x, dy = (torch.randn(5, 30).to(dtype) for _ in range(2))
    keep, kept, found = KeepMask.fresh(0.4), [], []
    for function in (dropped, dropped_reference):
        leaf = x.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
            y = function(leaf, keep)
        assert bool(kept) == (function is dropped_reference)
        y.backward(dy)
        found.append((y.detach(), leaf.grad))
    for mine, wanted in zip(*found, strict=True):
        assert torch.equal(mine, wanted)

"""Masks are those of the reference bit for bit, keep as many as they say, and differ by seed."""

from __future__ import annotations

import pytest
import torch

from tunesmith.kernels.dropout import keep_mask, keep_mask_reference
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
        mask = keep_mask(torch.empty(shape, dtype=dtype), p)
        assert mask.dtype == dtype
        assert torch.equal(mask, keep_mask_reference(mask.shape, p, dtype, seed))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_keeps_as_many_as_it_says(p, dtype):
    torch.manual_seed(0)
    mask = keep_mask(torch.empty(1000, 400, dtype=dtype), p)
    assert set(mask.unique().tolist()) <= {0.0, torch.tensor(1 / (1 - p), dtype=torch.float64).to(dtype).item()}
    kept = (mask != 0).double()
    deviation = (p * (1 - p) / 400_000) ** 0.5
    assert abs(kept.mean().item() - (1 - p)) <= 5 * deviation
    for dim, count in ((0, 1000), (1, 400)):  # no row and no column is favoured
        assert ((kept.mean(dim) - (1 - p)).abs() <= 6 * (p * (1 - p) / count) ** 0.5).all()


def test_masks_of_other_seeds_and_of_neighbours_are_unrelated():
    torch.manual_seed(0)
    x = torch.empty(512, 512)
    masks = torch.stack([(keep_mask(x, 0.5) != 0).double().flatten() - 0.5 for _ in range(6)])
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
    one, other = keep_mask(x, 0.3), keep_mask(x, 0.3)
    assert not torch.equal(one, other)
    torch.manual_seed(3)
    assert torch.equal(keep_mask(x, 0.3), one)

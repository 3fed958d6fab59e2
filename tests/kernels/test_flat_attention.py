"""The compiled attention equals its plain form, value and gradient, for documents and heads of every size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.kernels.flat_attention import can_run, flat_attention, flat_attention_reference
from tunesmith.kernels.native import has_tiles, why_not

needs_compiler = pytest.mark.skipif(why_not() is not None, reason=f"compiled kernels: {why_not()}")


def inputs(lengths: list[int], heads: int, groups: int, dim: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths))
    tokens = sum(lengths)
    shapes = [(tokens, heads, dim), (tokens, groups, dim), (tokens, groups, dim)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def compare(q, k, v, bounds, window: int, see: torch.Tensor | None = None) -> None:
    """Value and gradients of the compiled form against the plain one in double."""
    scale = q.shape[-1] ** -0.5
    fast = flat_attention(q, k, v, bounds, scale, window, see)
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    plain = flat_attention_reference(*wide, bounds, scale, window, see)
    grad = torch.randn(plain.shape, generator=torch.Generator().manual_seed(0)).to(q.dtype)
    ours = torch.autograd.grad(fast, (q, k, v), grad)
    theirs = torch.autograd.grad(plain, wide, grad.double())
    tolerance = 1e-5 if q.dtype == torch.float32 else 2e-2
    for mine, exact in zip((fast, *ours), (plain, *theirs), strict=True):
        assert (mine.double() - exact).abs().max() <= tolerance * exact.abs().max().clamp(min=1.0)


@needs_compiler
@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=4),
    groups=st.integers(1, 3),
    per_group=st.integers(1, 3),
    dim=st.sampled_from([32, 64, 96]),
    window=st.sampled_from([0, 1, 7, 40]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_equals_the_plain_form(
    lengths: list[int], groups: int, per_group: int, dim: int, window: int, dtype: torch.dtype
) -> None:
    q, k, v = inputs(lengths, groups * per_group, groups, dim, dtype)
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    assert can_run(q, k, v)
    compare(q, k, v, bounds, window)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_neighbour_changes_no_bit(dtype: torch.dtype) -> None:
    q, k, v = inputs([40, 50], 3, 1, 64, dtype)
    bounds = torch.tensor([0, 40, 90])
    before = flat_attention(q, k, v, bounds, 0.125)
    others = [x.detach().clone() for x in (q, k, v)]
    for x in others:
        x[40:] *= 3
    after = flat_attention(*others, bounds, 0.125)
    assert torch.equal(before[:40], after[:40])
    assert not torch.equal(before[40:], after[40:])


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bad_numbers_stay_bad(dtype: torch.dtype) -> None:
    q, k, v = inputs([20], 2, 2, 32, dtype)
    with torch.no_grad():
        k[3, 0, 5] = float("nan")
    out = flat_attention(q, k, v, torch.tensor([0, 20]), 0.2)
    assert not out[3:, 0].isfinite().any()
    assert out[:3].isfinite().all()
    assert out[:, 1].isfinite().all()


@needs_compiler
@pytest.mark.skipif(not has_tiles(), reason="no matrix tiles for bf16 (Intel AMX) here")
@pytest.mark.parametrize("window", [0, 33])
def test_tiles_and_vectors_agree(window: int) -> None:
    q, k, v = inputs([70, 33, 1, 200], 6, 2, 64, torch.bfloat16)
    bounds = torch.tensor([0, 70, 103, 104, 304])
    grad = torch.randn(q.shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    tiles = flat_attention(q, k, v, bounds, 0.125, window)
    wide = [x.detach().float().requires_grad_() for x in (q, k, v)]  # fp32 takes the other kernel
    vectors = flat_attention(*wide, bounds, 0.125, window)
    ours = (tiles, *torch.autograd.grad(tiles, (q, k, v), grad))
    theirs = (vectors, *torch.autograd.grad(vectors, wide, grad.float()))
    for mine, exact in zip(ours, theirs, strict=True):
        assert (mine.float() - exact).abs().max() <= 1e-2 * exact.abs().max()


@pytest.mark.parametrize("shape", [(5, 2, 40), (5, 2, 16)], ids=["not a multiple of a tile", "smaller than a tile"])
def test_other_head_sizes_are_left_to_torch(shape: tuple[int, int, int]) -> None:
    x = torch.randn(shape)
    assert not can_run(x, x, x)


def branches(trees: list[tuple[int, list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(bounds, see) of documents that begin with `shared` tokens and go on in branches."""
    bounds, columns = [0], []
    for shared, lengths in trees:
        length = shared + sum(lengths)
        columns += [(0, 0, length)] * shared
        at = shared
        for own in lengths:
            columns += [(shared, at, at + own)] * own
            at += own
        bounds.append(bounds[-1] + length)
    return torch.tensor(bounds), torch.tensor(columns).T


@needs_compiler
@settings(max_examples=40, deadline=None)
@given(
    trees=st.lists(st.tuples(st.integers(1, 70), st.lists(st.integers(1, 50), max_size=4)), min_size=1, max_size=3),
    groups=st.integers(1, 2),
    dim=st.sampled_from([32, 64]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_branches_see_what_they_share_and_themselves(trees, groups, dim, dtype):
    bounds, see = branches(trees)
    q, k, v = inputs([int(bounds[-1])], 2 * groups, groups, dim, dtype)
    compare(q, k, v, bounds, 0, see)


def test_the_plain_form_of_branches_is_each_branch_behind_what_it_shares():
    bounds, see = branches([(5, [3, 4])])
    q, k, v = (x.detach().double() for x in inputs([12], 2, 1, 32, torch.float32))
    whole = flat_attention_reference(q, k, v, bounds, 0.2, 0, see)
    for start, end in ((5, 8), (8, 12)):
        rows = [*range(5), *range(start, end)]
        alone = flat_attention_reference(q[rows], k[rows], v[rows], torch.tensor([0, len(rows)]), 0.2)
        torch.testing.assert_close(whole[start:end], alone[5:])

"""The fast low-rank product equals its reference, in value and in every gradient."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tunesmith.kernels.dropout import KeepMask
from tunesmith.kernels.low_rank import low_rank, low_rank_reference

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}


class Linear:
    """A frozen base as the kernel sees it."""

    left_alone = True

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight, self.bias = weight, bias

    def output(self, x):
        return nn.functional.linear(x, self._weight, self.bias)

    def weight(self):
        return self._weight


class Given(KeepMask):
    """A mask that is known beforehand, in whatever dtype it is asked for."""

    def __init__(self, mask: torch.Tensor) -> None:
        object.__setattr__(self, "mask", mask)

    def like(self, x):
        return self.mask.to(x.dtype).view(x.shape)

    def on(self, x):
        return x * self.like(x)


def case(rows, in_, out, rank, dtype, *, bias=True, keep=False, seed=0, adapter_dtype=None):
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    x, weight, b = draw(rows, in_), draw(out, in_) / in_**0.5, draw(out) if bias else None
    wide = adapter_dtype or torch.promote_types(dtype, torch.float32)
    A, B = (draw(rank, in_) / in_**0.5).to(wide), draw(out, rank).to(wide)
    mask = Given((torch.rand(rows, in_, generator=g) < 0.7).to(dtype) / 0.7) if keep else None
    base = Linear(weight.to(dtype), None if b is None else b.to(dtype))
    return x.to(dtype), base, A, B, mask, draw(rows, out).to(dtype)


def run(function, x, base, A, B, keep, dy, wants=(True, True, True), scale=1.7):
    leaves = [t.detach().clone().requires_grad_(want) for t, want in zip((x, A, B), wants, strict=True)]
    y = function(leaves[0], base, leaves[1], leaves[2], scale, keep)
    if any(wants):
        y.backward(dy)
    return y.detach(), [leaf.grad for leaf in leaves]


def close(fast, plain, dtype, scale=None):
    """`scale`: what the tolerance is a share of, instead of the largest number (of at least 1)."""
    scale = scale or max(1.0, plain.abs().max().item() if plain.numel() else 1.0)
    assert fast.dtype == plain.dtype
    assert fast.shape == plain.shape
    assert (fast.double() - plain.double()).abs().max().item() <= TOLERANCE[dtype] * scale if plain.numel() else True


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 9),
    in_=st.integers(1, 13),
    out=st.integers(1, 11),
    rank=st.integers(1, 5),
    dtype=st.sampled_from(list(TOLERANCE)),
    bias=st.booleans(),
    keep=st.booleans(),
)
def test_equals_the_reference_in_value_and_gradient(rows, in_, out, rank, dtype, bias, keep):
    parts = case(rows, in_, out, rank, dtype, bias=bias, keep=keep)
    fast, plain, summed = run(low_rank, *parts), run(low_rank_reference, *parts), summands(*parts)
    close(fast[0], plain[0], dtype, summed[0])
    for mine, wanted, size in zip(fast[1], plain[1], summed[1], strict=True):
        close(mine, wanted, dtype, size)


def summands(x, base, A, B, keep, dy):
    """The largest sum of absolute summands, of y and of each gradient: rounding is a share of these."""
    plain = Linear(base.weight().abs().double(), None if base.bias is None else base.bias.abs().double())
    wide = [t.abs().double() for t in (x, A, B, dy)]
    y, grads = run(low_rank_reference, wide[0], plain, *wide[1:3], keep, wide[3])
    return y.max().item(), [grad.max().item() for grad in grads]


@pytest.mark.parametrize("keep", [False, True])
def test_gradcheck_in_double(keep):
    x, base, A, B, mask, _ = case(4, 5, 3, 2, torch.float64, keep=keep)
    leaves = [t.clone().requires_grad_(True) for t in (x, A, B)]
    assert torch.autograd.gradcheck(lambda x, A, B: low_rank(x, base, A, B, 0.3, mask), leaves)


@pytest.mark.parametrize("wants", list(itertools.product([True, False], repeat=3)))
@pytest.mark.parametrize("keep", [False, True])
def test_gives_exactly_the_gradients_that_are_wanted(wants, keep):
    parts = case(6, 7, 5, 3, torch.float64, keep=keep)
    fast, plain = run(low_rank, *parts, wants=wants), run(low_rank_reference, *parts, wants=wants)
    close(fast[0], plain[0], torch.float64)
    for mine, wanted, want in zip(fast[1], plain[1], wants, strict=True):
        assert (mine is not None) == want
        if want:
            close(mine, wanted, torch.float64)


@pytest.mark.parametrize("keep", [False, True])
def test_without_autograd_the_mask_still_counts(keep):
    x, base, A, B, mask, _ = case(6, 7, 5, 3, torch.float64, keep=keep)
    with torch.no_grad():
        close(low_rank(x, base, A, B, 0.3, mask), low_rank_reference(x, base, A, B, 0.3, mask), torch.float64)


@pytest.mark.parametrize("shape", [(2, 3, 7), (1, 1, 7), (2, 2, 2, 7)])
def test_leading_dimensions_and_strides_do_not_matter(shape):
    _, base, A, B, _, _ = case(1, 7, 5, 3, torch.float64)
    x = torch.randn(*shape[:-2], shape[-1], shape[-2], dtype=torch.float64).transpose(-1, -2)  # not contiguous
    keep = Given(torch.rand(shape, dtype=torch.float64))
    dy = torch.ones((), dtype=torch.float64).expand(*shape[:-1], 5)  # a gradient with strides of zero
    fast, plain = run(low_rank, x, base, A, B, keep, dy), run(low_rank_reference, x, base, A, B, keep, dy)
    close(fast[0], plain[0], torch.float64)
    for mine, wanted in zip(fast[1], plain[1], strict=True):
        close(mine, wanted, torch.float64)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["x", "A", "B"])
def test_what_is_not_finite_comes_out_not_finite(bad, where):
    x, base, A, B, _, dy = case(4, 5, 3, 2, torch.float32)
    {"x": x, "A": A, "B": B}[where].view(-1)[0] = bad
    y, grads = run(low_rank, x, base, A, B, None, dy)
    assert not torch.isfinite(y).all()
    assert not all(torch.isfinite(grad).all() for grad in grads)


def test_the_frozen_base_is_left_as_it_was():
    x, base, A, B, _, dy = case(4, 5, 3, 2, torch.float32)
    before = x.clone(), base.weight().clone(), base.bias.clone(), A.clone(), B.clone()
    run(low_rank, x, base, A, B, None, dy)
    for old, new in zip(before, (x, base.weight(), base.bias, A, B), strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("gain", [None, torch.linspace(0.5, 2.0, 5)])
def test_a_base_that_is_not_frozen_after_all_learns_beside_an_adapter_that_does_not(gain):
    x, base, A, B, _, dy = case(4, 7, 5, 3, torch.float32)
    found = []
    for function in (low_rank, low_rank_reference):
        layer = Linear(base.weight().clone().requires_grad_(), base.bias)
        function(x, layer, A, B, 1.7, None, gain).backward(dy)
        found.append(layer.weight().grad)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_layer_used_twice_before_either_output_is_written_into(in_place):
    """Only the backward pass knows whether anybody wrote."""
    x, base, A, B, _, _ = case(6, 7, 5, 3, torch.float32)
    base.left_alone = None
    gain = torch.linspace(0.5, 2.0, 5)
    for _ in range(2):
        found = []
        for function in (low_rank, low_rank_reference):
            leaves = [t.detach().clone().requires_grad_() for t in (A, B, gain)]
            first, second = (function(x + i, base, leaves[0], leaves[1], 1.7, None, leaves[2]) for i in range(2))
            if in_place:
                second += first
            else:
                second = second + first
            (second * x[:, :5]).sum().backward()
            found.append([leaf.grad for leaf in leaves])
        for mine, wanted in zip(*found, strict=True):
            torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-4)
        assert base.left_alone is not in_place


def test_a_write_where_none_was_before_is_an_error():
    x, base, A, B, _, _ = case(6, 7, 5, 3, torch.float32)
    gain = torch.linspace(0.5, 2.0, 5).requires_grad_()
    y = low_rank(x, base, A, B, 1.7, None, gain)
    y += 1
    with pytest.raises(RuntimeError, match=r"wrote|modified by an inplace operation"):
        y.sum().backward()


GAINS = {"around one": (0.4, 1.6), "with zeros": (0.0, 0.0), "negative": (-2.0, -0.5)}


def run_gained(function, x, base, A, B, keep, dy, gain):
    leaves = [t.detach().clone().requires_grad_() for t in (x, A, B, gain)]
    y = function(leaves[0], base, leaves[1], leaves[2], 1.7, keep, leaves[3])
    y.backward(dy)
    return y.detach(), [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("gains", GAINS)
def test_a_gain_equals_the_reference_in_value_and_gradient(gains, dtype, bias, keep):
    low, high = GAINS[gains]
    for rows, in_, out in ((1, 3, 5), (40, 13, 70), (300, 64, 33)):
        parts = case(rows, in_, out, 4, dtype, bias=bias, keep=keep)
        gain = torch.linspace(low, high, out, dtype=torch.promote_types(dtype, torch.float32))
        fast = run_gained(low_rank, *parts, gain)
        plain = run_gained(low_rank_reference, *parts, gain)
        close(fast[0], plain[0], dtype)
        for mine, wanted in zip(fast[1], plain[1], strict=True):
            close(mine, wanted, dtype)
        with torch.no_grad():
            x, base, A, B, mask, _ = parts
            close(low_rank(x, base, A, B, 1.7, mask, gain), plain[0], dtype)


def test_a_gain_of_one_changes_no_bit_of_the_base():
    for dtype in (torch.float32, torch.bfloat16):
        x, base, A, B, _, _ = case(30, 24, 40, 4, dtype, bias=False)
        one = torch.ones(40, requires_grad=True)
        assert torch.equal(low_rank(x, base, A, torch.zeros_like(B), 2.0, None, one), base.output(x))
        plain = low_rank(x, base, A, B, 2.0)
        small = torch.finfo(dtype).eps * plain.abs().max()  # the sum of the change goes in another order
        assert (low_rank(x, base, A, B, 2.0, None, one) - plain).abs().max() <= 4 * small


def test_what_a_gain_does_to_a_row_depends_on_no_other():
    from tunesmith.kernels.fused import call
    from tunesmith.kernels.native import library

    if library() is None:
        pytest.skip("no C compiler")
    for dtype, (out, rank) in itertools.product((torch.float32, torch.bfloat16), ((40, 4), (33, 32), (192, 8))):
        g = torch.Generator().manual_seed(0)
        y, h = (torch.randn(37, size, generator=g).to(dtype) for size in (out, rank))
        b, gain = torch.randn(rank, out, generator=g), torch.rand(out, generator=g)

        def first(rows, y=y, h=h, b=b, gain=gain):
            some = y[:rows].clone()
            call("low_rank_add", y.dtype, some, h[:rows].contiguous(), b, gain, None, *some.shape, h.shape[1], 0.0)
            return some

        assert all(torch.equal(first(rows), first(37)[:rows]) for rows in (1, 3, 8, 9, 20))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_row_norms_without_a_matrix_b_a(dtype):
    from tunesmith.kernels.low_rank import row_norms, row_norms_reference, row_squares

    for out, in_, rank, size in ((5, 3, 2, 1.0), (192, 576, 8, 0.01), (70, 1536, 16, 0.3), (33, 2100, 21, 0.3)):
        _, base, A, B, _, _ = case(1, in_, out, rank, dtype)
        weight, B = base.weight(), B * size
        found, empty = row_norms(weight, row_squares(weight), A, B, 1.7)
        assert not empty
        wanted = row_norms_reference(weight.double(), A.double(), B.double(), 1.7)
        assert found.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(found.double(), wanted, rtol=1e-12 if dtype == torch.float64 else 3e-6, atol=0)
        at_rest, _ = row_norms(weight, row_squares(weight), A, torch.zeros_like(B), 1.7)
        assert torch.equal(at_rest, row_squares(weight).sqrt())
        hollow = weight.clone().index_fill_(0, torch.tensor([1]), 0.0)
        norms, empty = row_norms(hollow, row_squares(hollow), A, B.index_fill(0, torch.tensor([1]), 0.0), 1.7)
        assert empty
        assert (norms == 0).nonzero().tolist() == [[1]]


def test_the_input_is_kept_only_where_a_learns():
    """What LoRA-FA is about: a backward pass that needs A x alone. Of a mask nothing is kept in any case."""
    for learns, dtype, p in itertools.product((True, False), TOLERANCE, (0.0, 0.3)):
        x, base, A, B, _, _ = case(30, 24, 40, 4, dtype)
        kept, keep = [], KeepMask.fresh(p) if p else None
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            low_rank(x.requires_grad_(), base, A.requires_grad_(learns), B.requires_grad_(), 2.0, keep)
        assert [t.data_ptr() for t in kept if t.shape == x.shape] == [x.data_ptr()] * learns
        sizes = [x.numel()] * learns + [30 * 4, 4 * 24, 40 * 4]  # x, A x, and A and s B in x's dtype
        assert sorted(t.numel() for t in kept) == sorted(sizes)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_mask_is_drawn_again_in_the_backward_pass(dtype):
    """With a mask from torch's generator, not a given one; other draws in between change nothing."""
    x, base, A, B, _, dy = case(40, 24, 16, 4, dtype)
    keep = KeepMask.fresh(0.3)
    plain = run(low_rank_reference, x, base, A, B, Given(keep.like(x)), dy)
    leaves = [t.clone().requires_grad_() for t in (x, A, B)]
    y = low_rank(leaves[0], base, *leaves[1:], 1.7, keep)
    KeepMask.fresh(0.3).like(x)
    y.backward(dy)
    close(y.detach(), plain[0], dtype)
    for leaf, wanted in zip(leaves, plain[1], strict=True):
        close(leaf.grad, wanted, dtype)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_second_pair_equals_the_reference_and_is_never_dropped_out(dtype, keep):
    for rows, in_, out, beside_rank in ((1, 3, 5, 1), (40, 13, 70, 9), (300, 64, 33, 64)):
        x, base, A, B, mask, dy = case(rows, in_, out, 4, dtype, keep=keep)
        _, _, A1, B1, _, _ = case(rows, in_, out, beside_rank, dtype, seed=1)
        before = A1.clone(), B1.clone()
        results = []
        for function in (low_rank, low_rank_reference):
            leaves = [t.detach().clone().requires_grad_() for t in (x, A, B)]
            y = function(leaves[0], base, leaves[1], leaves[2], 1.7, mask, None, (A1, B1))
            y.backward(dy)
            results.append([y.detach(), *(leaf.grad for leaf in leaves)])
        for mine, wanted in zip(*results, strict=True):
            close(mine, wanted, dtype)
        with torch.no_grad():
            close(low_rank(x, base, A, B, 1.7, mask, None, (A1, B1)), results[1][0], dtype)
        assert torch.equal(A1, before[0])
        assert torch.equal(B1, before[1])


def test_of_a_second_pair_nothing_is_kept():
    x, base, A, B, _, _ = case(30, 24, 40, 4, torch.float32)
    _, _, A1, B1, _, _ = case(30, 24, 40, 16, torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        low_rank(x.requires_grad_(), base, A.requires_grad_(), B.requires_grad_(), 2.0, beside=(A1, B1))
    assert not {shape for shape in kept if 16 in shape or 20 in shape}

"""The chunked head loss equals its reference over full logits, in value and in every gradient."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.kernels import fused, linear_ce
from tunesmith.kernels.linear_ce import ROWS, linear_ce_reference

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 3e-2}
fast_form = linear_ce.linear_ce


@pytest.fixture(params=["compiled", "plain"])
def kernels(request, monkeypatch):
    """Both ways the fast form can run."""
    if request.param == "plain":
        monkeypatch.setattr(fused, "library", lambda: None)
    elif fused.library() is None:
        pytest.skip("no C compiler here")
    return request.param


def case(rows, dim, vocabulary, dtype, *, bias=False, seed=0):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, dim, generator=g).to(dtype)
    weight = (torch.randn(vocabulary, dim, generator=g) * 3 / dim**0.5).to(dtype)
    b = torch.randn(vocabulary, generator=g).to(dtype) if bias else None
    targets = torch.randint(0, vocabulary, (rows,), generator=g)
    weights = torch.rand(rows, generator=g) * (torch.rand(rows, generator=g) < 0.8)
    return hidden, weight, b, targets, weights


def run(function, hidden, weight, bias, targets, weights, *, wants=(True, True, True), out_scale=0.37, **options):
    tensors = (hidden, weight, bias)
    leaves = [None if t is None else t.detach().clone().requires_grad_(w) for t, w in zip(tensors, wants, strict=True)]
    loss = function(*leaves, targets, weights, **options)
    if loss.requires_grad:
        (loss * out_scale).backward()
    return loss.detach(), [None if leaf is None else leaf.grad for leaf in leaves]


def agree(fast, plain, dtype):
    tolerance = TOLERANCE[dtype]
    assert abs(fast[0].item() - plain[0].item()) <= tolerance * max(1.0, abs(plain[0].item()))
    assert fast[0].dtype == plain[0].dtype
    for mine, wanted in zip(fast[1], plain[1], strict=True):
        assert (mine is None) == (wanted is None)
        if wanted is not None and wanted.numel():
            assert mine.dtype == wanted.dtype
            # A gradient of nearly 0 is a difference of probabilities near 1, each right to its own rounding alone.
            largest = max(wanted.abs().max().item(), 0.15)
            assert (mine.double() - wanted.double()).abs().max().item() <= tolerance * largest


@settings(max_examples=40, deadline=None)
@given(
    rows=st.sampled_from([0, 1, 3, ROWS - 1, ROWS, ROWS + 1, 2 * ROWS + 5]),
    dim=st.integers(1, 9),
    vocabulary=st.integers(1, 40),
    dtype=st.sampled_from(list(TOLERANCE)),
    bias=st.booleans(),
    scale=st.sampled_from([1.0, 0.25, 3.0]),
    softcap=st.sampled_from([None, 2.0, 30.0]),
)
def test_equals_the_reference(rows, dim, vocabulary, dtype, bias, scale, softcap):
    parts = case(rows, dim, vocabulary, dtype, bias=bias)
    options = {"scale": scale, "softcap": softcap}
    wants = (True, True, bias) if dtype != torch.bfloat16 else (True, False, False)
    agree(
        run(fast_form, *parts, wants=wants, **options), run(linear_ce_reference, *parts, wants=wants, **options), dtype
    )


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("vocabulary", [2, 97, 4095, 4097, 9000])
def test_large_vocabularies(kernels, dtype, vocabulary):
    parts = case(37, 16, vocabulary, dtype)
    wants = (True, False, False)
    agree(run(fast_form, *parts, wants=wants), run(linear_ce_reference, *parts, wants=wants), dtype)


@pytest.mark.parametrize("wants", list(itertools.product([True, False], repeat=3)))
def test_gives_exactly_the_gradients_that_are_wanted(kernels, wants):
    parts = case(300, 5, 11, torch.float32, bias=True)
    agree(run(fast_form, *parts, wants=wants), run(linear_ce_reference, *parts, wants=wants), torch.float32)


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_gradcheck_in_double(softcap):
    hidden, weight, bias, targets, weights = case(4, 3, 5, torch.float64, bias=True)
    leaves = [t.requires_grad_(True) for t in (hidden, weight, bias)]
    assert torch.autograd.gradcheck(lambda h, w, b: fast_form(h, w, b, targets, weights.double(), 0.7, softcap), leaves)


def test_a_weight_of_nought_learns_nothing(kernels):
    hidden, weight, _, targets, weights = case(20, 5, 11, torch.float32)
    weights[:] = 1
    weights[7] = 0
    loss, (grad, _, _) = run(fast_form, hidden, weight, None, targets, weights, wants=(True, False, False))
    assert torch.equal(grad[7], torch.zeros(5))
    other = targets.clone()
    other[7] = (targets[7] + 1) % 11
    assert torch.equal(loss, run(fast_form, hidden, weight, None, other, weights)[0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("need_grad", [True, False])
def test_what_is_not_finite_comes_out_not_finite(kernels, bad, dtype, need_grad):
    hidden, weight, _, targets, weights = case(8, 5, 4100, dtype)
    weights[:] = 1
    hidden[3, 2] = bad
    loss, (grad, _, _) = run(fast_form, hidden, weight, None, targets, weights, wants=(need_grad, False, False))
    assert not torch.isfinite(loss)
    if need_grad:
        assert not torch.isfinite(grad[3]).all()
        assert torch.isfinite(grad[4]).all()


@pytest.mark.parametrize("at", [0, 4095, 4096, 8191])
def test_one_bad_logit_anywhere_is_seen(kernels, at):
    hidden, weight, _, targets, weights = case(3, 5, 8192, torch.float32)
    weights[:] = 1
    weight[at] = float("nan")
    assert not torch.isfinite(run(fast_form, hidden, weight, None, targets, weights, wants=(True, False, False))[0])


def test_strides_do_not_matter(kernels):
    hidden, weight, _, targets, weights = case(9, 6, 12, torch.float32)
    wide = torch.stack([hidden, hidden * 2], dim=-1)
    parts = (wide[..., 0], weight.t().contiguous().t(), None, targets.repeat(2)[::2], weights.repeat_interleave(2)[::2])
    wants = (True, False, False)
    agree(run(fast_form, *parts, wants=wants), run(linear_ce_reference, *parts, wants=wants), torch.float32)


@pytest.mark.parametrize("target", [-1, 12, 10**9])
def test_a_target_outside_the_head_is_an_error(kernels, target):
    hidden, weight, _, targets, weights = case(9, 6, 12, torch.float32)
    targets[4] = target
    with pytest.raises((IndexError, RuntimeError)):
        run(fast_form, hidden, weight, None, targets, weights)


def test_inputs_are_left_as_they_were(kernels):
    parts = case(300, 5, 11, torch.float32, bias=True)
    before = [part.clone() for part in parts]
    run(fast_form, *parts)
    assert all(torch.equal(old, new) for old, new in zip(before, parts, strict=True))


def by_token(function):
    """As a loss: the log-probabilities of each position, each weighed otherwise."""

    def loss(hidden, weight, bias, targets, weights, **options):
        found = function(hidden, weight, bias, targets, **options)
        return (found * weights.to(found.dtype)).sum()

    return loss


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [0, 1, 3, ROWS, ROWS + 5])
@pytest.mark.parametrize("bias", [False, True])
def test_log_probabilities_by_token_and_every_gradient(rows, bias, dtype, kernels):
    parts = case(rows, 12, 50, dtype, bias=bias)
    options = {"scale": 1.3, "softcap": 7.0} if bias else {}
    fast = run(by_token(linear_ce.linear_logp), *parts, **options)
    agree(fast, run(by_token(linear_ce.linear_logp_reference), *parts, **options), dtype)


@pytest.mark.parametrize("wants", [wants for wants in itertools.product([True, False], repeat=3) if any(wants)])
def test_log_probabilities_give_exactly_the_gradients_that_are_wanted(wants):
    parts = case(9, 7, 20, torch.float64, bias=True)
    fast = run(by_token(linear_ce.linear_logp), *parts, wants=wants)
    agree(fast, run(by_token(linear_ce.linear_logp_reference), *parts, wants=wants), torch.float64)


def test_log_probabilities_by_finite_differences():
    hidden, weight, bias, targets, _ = case(5, 4, 9, torch.float64, bias=True)
    leaves = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
    assert torch.autograd.gradcheck(lambda h, w, b: linear_ce.linear_logp(h, w, b, targets), leaves)

"""The compiled kernels are right for processors with few and narrow registers, not for the one at hand alone."""

from __future__ import annotations

import platform

import pytest
import torch
from torch import nn

from tunesmith.kernels import native
from tunesmith.kernels.dropout import KeepMask
from tunesmith.kernels.flat_attention import flat_attention, flat_attention_reference
from tunesmith.kernels.gain import gain_reference, gained
from tunesmith.kernels.low_rank import low_rank, low_rank_reference, row_norms
from tunesmith.machine import cpu_flags

NEEDS = {"x86-64": None, "x86-64-v3": "avx2", "x86-64-v4": "avx512f"}
"""The processor's flag that code of each level asks for."""

pytestmark = [
    pytest.mark.skipif(native.why_not() is not None, reason=f"compiled kernels: {native.why_not()}"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="levels of x86-64"),
]


def _forget() -> None:
    for name in ("_build", "library", "has_tiles"):
        getattr(native, name).cache_clear()


def attention(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    inputs = [torch.randn(75, n, 32, generator=g).to(dtype).requires_grad_() for n in (4, 2, 2)]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    bounds, dy = torch.tensor([0, 33, 74, 75]), torch.randn(75, 4, 32, generator=g).to(dtype)
    got, wanted = flat_attention(*inputs, bounds, 0.2), flat_attention_reference(*wide, bounds, 0.2)
    pairs = zip(
        (got, *torch.autograd.grad(got, inputs, dy)),
        (wanted, *torch.autograd.grad(wanted, wide, dy.double())),
        strict=True,
    )
    for mine, exact in pairs:
        torch.testing.assert_close(mine.double(), exact, rtol=0, atol=1e-5 if dtype == torch.float32 else 2e-2)


def gain_and_its_gradients(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    z, dy = (torch.randn(70, 75, generator=g).to(dtype) for _ in range(2))
    gain = torch.randn(75, generator=g)
    found = []
    for function in (gained, gain_reference):
        own, factor = z.clone().requires_grad_(), gain.clone().requires_grad_()
        function(own, factor, None).backward(dy)
        found.append((own.grad.float(), factor.grad))
    for mine, wanted in zip(*found, strict=True):
        bound = 2e-6 if dtype == torch.float32 else 8e-3
        torch.testing.assert_close(mine, wanted, rtol=bound, atol=bound * wanted.abs().max().item())


class Base:
    """A frozen layer as the kernel sees it."""

    left_alone, bias = True, None

    def __init__(self, weight: torch.Tensor) -> None:
        self._weight = weight

    def output(self, x):
        return nn.functional.linear(x, self._weight)

    def weight(self):
        return self._weight


def change_with_its_gain(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(37, 20, generator=g).to(dtype), torch.randn(75, 20, generator=g).to(dtype)
    a, b = torch.randn(5, 20, generator=g), torch.randn(75, 5, generator=g)
    gain = 1 + 0.3 * torch.rand(75, generator=g)
    wanted = low_rank_reference(x.double(), Base(w.double()), a.double(), b.double(), 0.4, None, gain.double())
    found = low_rank(x, Base(w), a, b, 0.4, None, gain)
    bound = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(found.double(), wanted, rtol=bound, atol=bound * wanted.abs().max().item())


def norms_of_rows(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    w, a, b = (torch.randn(shape, generator=g) * by for shape, by in (((45, 75), 1.0), ((5, 75), 0.3), ((45, 5), 0.3)))
    w = w.to(dtype)
    wanted = (w.double() + 0.5 * b.double() @ a.double()).norm(dim=1)
    found, empty = row_norms(w, w.double().pow(2).sum(1).float(), a, b, 0.5)
    assert not empty
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)


def mask(dtype: torch.dtype) -> None:
    """Drawn in one pass or in two, it is the same."""
    keep = KeepMask(0.3, seed=5)
    x = torch.randn(50, 75, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(keep.on(x), x * keep.like(x))


@pytest.mark.parametrize("level", NEEDS)
def test_every_kernel(level, monkeypatch, tmp_path):
    """One test a level: to compile takes longer than all of them."""
    needed = NEEDS[level]
    if needed is not None and needed not in cpu_flags():
        pytest.skip(f"this processor has no {needed}")
    flags = tuple(f"-march={level}" if flag == "-march=native" else flag for flag in native.FLAGS)
    assert flags != native.FLAGS
    monkeypatch.setattr(native, "FLAGS", flags)
    monkeypatch.setattr(native, "cache_folder", lambda: tmp_path)
    _forget()
    assert native.why_not() is None
    assert list(tmp_path.glob("kernels/*.so"))
    try:
        for dtype in (torch.float32, torch.bfloat16):
            for check in (attention, gain_and_its_gradients, change_with_its_gain, norms_of_rows, mask):
                check(dtype)
    finally:
        _forget()

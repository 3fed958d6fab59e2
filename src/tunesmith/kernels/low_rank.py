"""The product of a frozen matrix and a low-rank change beside it.

    y = base(x) + s (drop(x) A^T) B^T          x [N, in]  A [r, in]  B [out, r]  y [N, out]

`low_rank_reference` is the plain form that autograd differentiates. `low_rank` computes the same with a backward
written by hand: it keeps x and the [N, r] product alone, asks the frozen weight for its numbers again, and skips the
input's gradient where nobody below learns. A and B are cast to x's dtype, never x to theirs.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class Frozen(Protocol):
    def output(self, x: Tensor) -> Tensor: ...

    def weight(self) -> Tensor: ...


def low_rank_reference(x: Tensor, base: Frozen, A: Tensor, B: Tensor, scale: float, keep: Tensor | None) -> Tensor:
    """The plain form. `keep` is a dropout mask of x's shape, already divided by the keep probability."""
    x_in = x if keep is None else x * keep
    h = x_in @ A.to(x.dtype).T
    return base.output(x) + (h @ B.to(x.dtype).T) * scale


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, base: Frozen, A: Tensor, B: Tensor, scale: float, keep: Tensor | None) -> Tensor:
        a = A.to(x.dtype)
        sb = (B * scale).to(x.dtype)
        y = base.output(x)
        h = (x if keep is None else x * keep) @ a.T
        y = torch.addmm(y, h, sb.T, out=y) if y.dim() == 2 else y + h @ sb.T
        ctx.save_for_backward(x, h, a, sb, keep)
        ctx.base, ctx.scale = base, scale
        ctx.dtypes = (A.dtype, B.dtype)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        x, h, a, sb, keep = ctx.saved_tensors
        want_x, want_a, want_b = ctx.needs_input_grad[0], ctx.needs_input_grad[2], ctx.needs_input_grad[3]
        dx = da = db = None
        if want_a or want_x:
            dh = dy @ sb
        if want_b:
            db = (dy.T @ h).to(ctx.dtypes[1]).mul_(ctx.scale)
        if want_a:
            da = (dh.T @ (x if keep is None else x * keep)).to(ctx.dtypes[0])
        if want_x:
            weight = ctx.base.weight()
            dx = dy @ weight
            if keep is None:
                dx.addmm_(dh, a)
            else:
                dx += (dh @ a) * keep
        return dx, None, da, db, None, None


def low_rank(x: Tensor, base: Frozen, A: Tensor, B: Tensor, scale: float, keep: Tensor | None = None) -> Tensor:
    """y [..., out] for x [..., in]; same value and gradients as `low_rank_reference`."""
    flat = x.reshape(-1, x.shape[-1])
    if keep is not None:
        keep = keep.reshape(flat.shape)
    if torch.is_grad_enabled() and (flat.requires_grad or A.requires_grad or B.requires_grad):
        y = _LowRank.apply(flat, base, A, B, scale, keep)
    else:
        y = base.output(flat)
        y = y + ((flat if keep is None else flat * keep) @ A.to(flat.dtype).T) @ (B * scale).to(flat.dtype).T
    return y.reshape(*x.shape[:-1], y.shape[-1])

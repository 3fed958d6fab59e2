"""The product of a frozen matrix and a low-rank change beside it.

    z = base(x) + s (drop(x) A^T) B^T          x [N, in]  A [r, in]  B [out, r]  z [N, out]
    y = z, or with a gain g [out]: g (z - b) + b, where b is the layer's bias

Where a second pair A1 [R, in], B1 [out, R] stands beside, which does not learn, z has s (x A1^T) B1^T more, never
dropped out.

`low_rank_reference` is the plain form that autograd differentiates. `low_rank` computes the same with a backward
written by hand: it keeps the [N, r] product, x only where A learns, and z only where the gain does (y where z can be
had from it); it asks the frozen weight for its numbers again, and skips the input's gradient where nobody below learns.
Of the second pair it keeps nothing and reckons no gradient; of a dropout mask it keeps the seed. The compiled form adds
the change to the frozen product where it lies and takes the gain in the same pass. A and B are cast to x's dtype, never
x to theirs; the gain acts in fp32 or wider.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from tunesmith.kernels.dropout import KeepMask, dropped_reference
from tunesmith.kernels.fused import call, runs_natively
from tunesmith.kernels.gain import UNDONE, gain_back, gain_forward, gain_reference


class Frozen(Protocol):
    left_alone: bool | None
    """Whether whoever takes the output writes into it; None: not seen yet. The first backward pass sees it."""

    @property
    def bias(self) -> Tensor | None: ...

    def output(self, x: Tensor) -> Tensor: ...

    def weight(self) -> Tensor: ...


Pair = tuple[Tensor, Tensor]


def low_rank_reference(
    x: Tensor,
    base: Frozen,
    A: Tensor,
    B: Tensor,
    scale: float,
    keep: KeepMask | None,
    gain: Tensor | None = None,
    beside: Pair | None = None,
) -> Tensor:
    """The plain form. `keep`: the dropout mask, drawn for x."""
    x_in = x if keep is None else dropped_reference(x, keep)
    h = x_in @ A.to(x.dtype).T
    z = base.output(x) + (h @ B.to(x.dtype).T) * scale
    if beside is not None:
        A1, B1 = beside
        z = z + ((x @ A1.to(x.dtype).T) @ B1.to(x.dtype).T) * scale
    return z if gain is None else gain_reference(z, gain, base.bias)


def _scaled(B: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """s B in `dtype`, multiplied in the wider of both."""
    return (B.to(torch.promote_types(B.dtype, dtype)) * scale).to(dtype)


def _joined(x: Tensor, h: Tensor, sb: Tensor, scale: float, beside: Pair | None) -> tuple[Tensor, Tensor]:
    """([N, r + R], [out, r + R]): the change is their product, summed and rounded once."""
    if beside is None:
        return h, sb
    A1, B1 = beside
    return torch.cat([h, x @ A1.to(x.dtype).T], 1), torch.cat([sb, _scaled(B1, scale, x.dtype)], 1)


def _added(y: Tensor, h: Tensor, sb: Tensor, gain: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """(z, or y where z can be had from it; y), from y [N, out], which may be overwritten, h and s B."""
    if y._is_view() or not y.is_contiguous():  # a view may be of what somebody else holds
        y = y.clone(memory_format=torch.contiguous_format)
    if gain is not None and gain.dtype == torch.float32 and h.shape[1] <= WIDEST and runs_natively(y, h):
        shift = None if bias is None else (1 - gain) * bias
        sizes = (*y.shape, h.shape[1], UNDONE)
        across = gain.new_empty(sb.shape[::-1]).copy_(sb.T)
        if call("low_rank_add", y.dtype, y, h.contiguous(), across, gain, shift, *sizes):
            return y, y
    z = torch.addmm(y, h, sb.T, out=y)
    return z, (z if gain is None else gain_forward(z, gain, bias))


WIDEST = 32
"""RANK in low_rank.c."""


class _Writes:
    """Counts what is written into y after it was handed out, without holding its memory."""

    def __init__(self, y: Tensor) -> None:
        self._counter = y.detach()  # shares y's count of writes, and after the next line nothing else
        self._counter.data = y.new_empty(0)
        self._before = y._version

    def look(self, base: Frozen, *, is_copy: bool) -> None:
        """Called in the backward pass. Where y itself was kept, a write has spoiled it."""
        written = self._counter._version != self._before
        if written and not is_copy:
            raise RuntimeError("the model wrote into a layer's output, which it had left alone before")
        if base.left_alone is not False:
            base.left_alone = not written


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        base: Frozen,
        A: Tensor,
        B: Tensor,
        scale: float,
        keep: KeepMask | None,
        gain: Tensor | None,
        beside: Pair | None,
    ) -> Tensor:
        a = A.to(x.dtype)
        sb = _scaled(B, scale, x.dtype)
        y = base.output(x)
        h = (x if keep is None else keep.on(x)) @ a.T
        z, y = _added(y, *_joined(x, h, sb, scale, beside), gain, base.bias)
        want_a, want_b, want_gain = ctx.needs_input_grad[2], ctx.needs_input_grad[3], ctx.needs_input_grad[6]
        ctx.z_is_output = z is y
        if want_gain and z is y:
            ctx.writes = _Writes(y)
            if not base.left_alone:
                z = y.clone()
        ctx.is_copy = z is not y
        kept = x if want_a else None, h if want_b else None, z if want_gain else None
        ctx.save_for_backward(*kept, a, sb, gain)
        ctx.base, ctx.scale, ctx.keep, ctx.beside = base, scale, keep, beside
        ctx.dtypes = (A.dtype, B.dtype)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        x, h, z, a, sb, gain = ctx.saved_tensors
        keep = ctx.keep
        want_x, want_a, want_b = ctx.needs_input_grad[0], ctx.needs_input_grad[2], ctx.needs_input_grad[3]
        dx = da = db = dgain = None
        if z is not None:
            if ctx.z_is_output:
                ctx.writes.look(ctx.base, is_copy=ctx.is_copy)
            dy, dgain = gain_back(dy, z, gain, ctx.base.bias, is_output=ctx.z_is_output)
        elif gain is not None:
            dy = gain_forward(dy, gain, None)
        if want_a or want_x:
            dh = dy @ sb
        if want_b:
            db = (dy.T @ h).to(ctx.dtypes[1]).mul_(ctx.scale)
        if want_a:
            da = (dh.T @ (x if keep is None else keep.on(x))).to(ctx.dtypes[0])
        if want_x:
            weight = ctx.base.weight()
            dx = dy @ weight
            if keep is None:
                dx.addmm_(dh, a)
            else:
                dx += keep.on(dh @ a)
            if ctx.beside is not None:
                A1, B1 = ctx.beside
                dx.addmm_(dy @ _scaled(B1, ctx.scale, dy.dtype), A1.to(dy.dtype))
        return dx, None, da, db, None, None, dgain, None


def low_rank(
    x: Tensor,
    base: Frozen,
    A: Tensor,
    B: Tensor,
    scale: float,
    keep: KeepMask | None = None,
    gain: Tensor | None = None,
    beside: Pair | None = None,
) -> Tensor:
    """y [..., out] for x [..., in]; same value and gradients as `low_rank_reference`."""
    flat = x.reshape(-1, x.shape[-1])
    learns = flat.requires_grad or A.requires_grad or B.requires_grad or (gain is not None and gain.requires_grad)
    if torch.is_grad_enabled() and learns:
        y = _LowRank.apply(flat, base, A, B, scale, keep, gain, beside)
    else:
        y = base.output(flat)
        if y.requires_grad:  # the frozen matrix is not frozen
            return low_rank_reference(flat, base, A, B, scale, keep, gain, beside).reshape(*x.shape[:-1], y.shape[-1])
        h = (flat if keep is None else keep.on(flat)) @ A.to(flat.dtype).T
        joined = _joined(flat, h, _scaled(B, scale, flat.dtype), scale, beside)
        _, y = _added(y, *joined, gain, base.bias)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def row_norms_reference(weight: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """Euclidean norm of each row of W + s B A, [out], in the wider of fp32 and W's dtype."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    return torch.addmm(weight.to(wide), B.to(wide), A.to(wide), alpha=scale).norm(dim=1)


@torch.no_grad()
def row_norms(weight: Tensor, squares: Tensor, A: Tensor, B: Tensor, scale: float) -> tuple[Tensor, bool]:
    """`row_norms_reference` without making B A: |w + s b A|^2 = |w|^2 + 2 s b . (A w) + s^2 b (A A^T) b; and whether
    one of them is 0.

    `squares` [out]: |w|^2 of each row, as `row_squares` gives it.
    """
    a, b, r = A.to(squares.dtype).contiguous(), B.to(squares.dtype).contiguous(), len(A)
    if weight.is_contiguous() and a.dtype == torch.float32 and runs_natively(weight):
        square, gram = torch.empty_like(squares), a.new_empty(r, r + -r % 16)
        empty = call("row_squares", weight.dtype, weight, squares, a, gram, b, square, *weight.shape, r, scale)
        return square.sqrt_(), bool(empty)
    gram = a @ a.T
    rows = max(1, (1 << 22) // weight.shape[1])
    cross = torch.cat([part.to(a.dtype) @ a.T for part in weight.split(rows)])
    square = squares + 2 * scale * (cross * b).sum(1) + scale**2 * ((b @ gram) * b).sum(1)
    norms = square.clamp_(min=0).sqrt_()
    return norms, bool((norms == 0).any())


@torch.no_grad()
def row_squares(weight: Tensor) -> Tensor:
    """|w|^2 of each row of W [out, in], [out], in the wider of fp32 and W's dtype; some rows at a time."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    rows = max(1, (1 << 22) // weight.shape[1])
    return torch.cat([part.to(wide).pow(2).sum(1) for part in weight.split(rows)])

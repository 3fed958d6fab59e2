"""Causal attention of many documents in one flat row.

    out_t = sum_j softmax_j(scale q_t . k_j) v_j     over j in t's own document with j <= t (and t - j < window)
    q [T, H, D]   k, v [T, K, D] with H a multiple of K   bounds [documents + 1] int64   out [T, H, D]

A document may begin with what several branches share: then a row sees the shared beginning and its own branch up to
itself. `see` [3, T] int64 says so, counted from the document's start: how much is shared, where the row's own part
begins, and up to which row the row itself is seen.

`flat_attention_reference` is the plain form. `flat_attention` calls `attention.c`: each head of each document is a unit
of work on tables padded to whole register tiles, so that heads and documents of any size keep all cores busy. It
keeps q, k, v, the output and one number per row and head, and computes in fp32 whatever the inputs; only where bf16 can
be multiplied on matrix tiles, `attention_tiles.c` does that, and adds in fp32.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from tunesmith.ghost import attended, is_ghost
from tunesmith.kernels.fused import call, runs_natively
from tunesmith.kernels.native import has_tiles


def no_branches(bounds: Tensor) -> Tensor:
    """`see` of documents without branches."""
    lengths = bounds.diff()
    until = lengths.repeat_interleave(lengths)
    return torch.stack([torch.zeros_like(until), torch.zeros_like(until), until])


def flat_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, scale: float, window: int = 0, see: Tensor | None = None
) -> Tensor:
    """The plain form, one document after the other; window 0 means none."""
    shared, own, _ = no_branches(bounds) if see is None else see
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    edges, pieces = bounds.tolist(), []
    for start, end in itertools.pairwise(edges):
        place = torch.arange(end - start)
        apart = place[:, None] - place[None, :]
        seen = (apart >= 0) & ((apart < window) if window else torch.ones_like(apart, dtype=torch.bool))
        seen &= (place >= own[start:end, None]) | (place < shared[start:end, None])
        scores = torch.einsum("thd,shd->hts", q[start:end], k[start:end]).float() * scale
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1).to(v.dtype)
        pieces.append(torch.einsum("hts,shd->thd", weights, v[start:end]))
    return torch.cat(pieces)


def can_run(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the compiled form takes these tensors: on a CPU, in fp32 or bf16, heads of a multiple of 32 numbers."""
    return q.shape[-1] == v.shape[-1] and q.shape[-1] % 32 == 0 and runs_natively(q, k, v)


def _name(q: Tensor) -> str:
    return "attention_tiles" if q.dtype == torch.bfloat16 and has_tiles() else "attention"


def num_seen(bounds: Tensor, see: Tensor, window: int) -> int:
    """How many pairs (row, row that it sees) there are, in all documents."""
    lengths = bounds.diff()
    place = torch.arange(int(bounds[-1])) - bounds[:-1].repeat_interleave(lengths)
    seen = see[0] + place - see[1] + 1
    return int((seen.clamp(max=window) if window else seen).sum())


class _FlatAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, see: Tensor, scale: float, window: int
    ) -> Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        out = torch.empty_like(q)
        log_sums = torch.empty(q.shape[1], q.shape[0])
        sizes = (len(bounds) - 1, q.shape[0], q.shape[1], k.shape[1], q.shape[2], window)
        call(_name(q), q.dtype, q, k, v, out, log_sums, bounds, see, *sizes, scale)
        ctx.flops = 0.0
        if is_ghost(q):  # scores, and values weighed by them
            ctx.flops = 4.0 * q.shape[1] * q.shape[2] * num_seen(bounds, see, window)
            attended(ctx.flops)
        ctx.save_for_backward(q, k, v, out, log_sums, bounds, see)
        ctx.sizes, ctx.scale = sizes, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, log_sums, bounds, see = ctx.saved_tensors
        dq = torch.empty_like(q)
        by_head = [torch.empty(q.shape) for _ in (k, v)]
        call(
            f"{_name(q)}_back", q.dtype, grads[0].contiguous(), q, k, v, out, log_sums, dq, *by_head, bounds, see,
            *ctx.sizes, ctx.scale,
        )  # fmt: skip
        attended(2.5 * ctx.flops)  # the scores once more, and four products of their size
        tokens, groups, dim = k.shape
        dk, dv = (part.view(tokens, groups, -1, dim).sum(2).to(k.dtype) for part in by_head)
        return dq, dk, dv, None, None, None, None


def flat_attention(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, scale: float, window: int = 0, see: Tensor | None = None
) -> Tensor:
    """Same as `flat_attention_reference`, where `can_run` says so. Branches come without a window."""
    if see is None:
        see = no_branches(bounds)
    return _FlatAttention.apply(q, k, v, bounds, see.contiguous(), scale, window)

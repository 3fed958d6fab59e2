"""Cross entropy of a linear head, without ever holding all logits.

    loss = sum_t w_t * (logsumexp(z_t) - z_t[target_t])       z = cap(scale * (H W^T + b))
    H [N, d] hidden states   W [V, d]   b [V]   targets [N]   w [N]

`linear_ce_reference` is the plain form over full logits. `linear_ce` goes over `ROWS` positions at a time and computes
the loss and the gradient of H (and of W and b where they are trained) in the forward pass, so that each chunk's logits
live once, in one buffer, and the backward pass only scales what is there.

`linear_logp` gives log p(target) of each position, for losses that are no sum over tokens. The gradient of one
position's log-probability is one vector beside H, whatever is made of it later: it is computed in the forward pass too.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.kernels.fused import call, runs_natively

ROWS = 256


def linear_ce_reference(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    weights: Tensor,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """The plain form: sum of weighted losses, a scalar in fp32 (fp64 for fp64 input)."""
    logps = linear_logp_reference(hidden, weight, bias, targets, scale, softcap)
    return (-logps * weights.to(logps.dtype)).sum()


def _chunk(
    logits: Tensor, targets: Tensor, weights: Tensor, scale: float, softcap: float | None, need_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Weighted losses [n] of one chunk and, in place of its logits [n, V], their gradient before scale and cap."""
    if logits.device.type == "cpu" and not 0 <= int(targets.min()) <= int(targets.max()) < logits.shape[-1]:
        raise IndexError(f"a target is not among the head's {logits.shape[-1]} rows")
    if need_grad and scale == 1.0 and softcap is None and runs_natively(logits):
        losses = torch.empty(len(targets))
        call("cross_entropy", logits.dtype, logits, targets.contiguous(), weights.contiguous(), losses, *logits.shape)
        return losses, logits
    logits = logits.to(weights.dtype)
    if scale != 1.0:
        logits = logits.mul_(scale)
    if softcap is not None:
        logits = logits.div_(softcap).tanh_().mul_(softcap)
    index = targets[:, None]
    picked = logits.gather(-1, index).squeeze(-1)
    log_sum = torch.logsumexp(logits, dim=-1)
    losses = (log_sum - picked) * weights
    if not need_grad:
        return losses, None
    if softcap is None:
        grad = logits.sub_(log_sum[:, None]).exp_()
        slope: Tensor | None = None
    else:
        slope = 1 - (logits / softcap) ** 2
        grad = logits.sub_(log_sum[:, None]).exp_()
    grad.scatter_add_(-1, index, torch.full_like(index, -1, dtype=grad.dtype))
    grad.mul_((weights * scale)[:, None])
    if slope is not None:
        grad.mul_(slope)
    return losses, grad


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return hidden @ weight.T if bias is None else torch.addmm(bias, hidden, weight.T)


def _whole_tiles(hidden: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of weight 0 added, so that the head's products come in few sizes: in half precision on a CPU every new size
    is compiled when it is first seen."""
    spare = -len(hidden) % 32
    if hidden.device.type != "cpu" or hidden.dtype not in (torch.bfloat16, torch.float16) or not spare:
        return hidden, targets, weights
    return F.pad(hidden, (0, 0, 0, spare)), F.pad(targets, (0, spare)), F.pad(weights, (0, spare))


class _LinearCE(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weights: Tensor,
        scale: float,
        softcap: float | None,
    ) -> Tensor:
        want_hidden, want_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        want_bias = bias is not None and ctx.needs_input_grad[2]
        need_grad = want_hidden or want_weight or want_bias
        wide = torch.promote_types(hidden.dtype, torch.float32)
        weights = weights.to(wide)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        num_rows = hidden.shape[0]
        hidden, targets, weights = _whole_tiles(hidden, targets, weights)
        d_hidden = torch.empty_like(hidden) if want_hidden else None
        d_weight = torch.zeros_like(weight, dtype=wide) if want_weight else None
        d_bias = torch.zeros_like(bias, dtype=wide) if want_bias and bias is not None else None
        for start in range(0, hidden.shape[0], ROWS):
            rows = slice(start, start + ROWS)
            chunk = hidden[rows]
            logits = _logits(chunk, weight, bias)
            losses, grad = _chunk(logits, targets[rows], weights[rows], scale, softcap, need_grad)
            total += losses.sum()
            if grad is None:
                continue
            if d_bias is not None:
                d_bias += grad.sum(0)
            narrow = grad.to(hidden.dtype)
            if d_hidden is not None:
                torch.mm(narrow, weight, out=d_hidden[rows])
            if d_weight is not None:
                d_weight += narrow.T @ chunk
        ctx.save_for_backward(None if d_hidden is None else d_hidden[:num_rows], d_weight, d_bias)
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [
            None if saved is None else (saved * grads[0]).to(dtype)
            for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None, None, None)


def linear_ce(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    weights: Tensor,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """Same value and gradients as `linear_ce_reference`; at most `ROWS` x V logits are held at a time."""
    return _LinearCE.apply(hidden, weight, bias, targets, weights, scale, softcap)


def linear_logp_reference(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """The plain form: log p(target) of each position [N], in fp32 (fp64 for fp64 input)."""
    logits = hidden @ weight.T
    if bias is not None:
        logits = logits + bias
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * scale
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    return logits.gather(-1, targets[:, None]).squeeze(-1) - torch.logsumexp(logits, dim=-1)


class _LinearLogp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        softcap: float | None,
    ) -> Tensor:
        want_hidden, want_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        want_bias = bias is not None and ctx.needs_input_grad[2]
        num_rows = len(hidden)
        ones = hidden.new_ones(num_rows, dtype=torch.promote_types(hidden.dtype, torch.float32))
        whole, targets, ones = _whole_tiles(hidden, targets, ones)
        d_hidden = torch.empty_like(whole) if want_hidden else None
        found = torch.empty_like(ones)
        for start in range(0, len(whole), ROWS):
            rows = slice(start, start + ROWS)
            logits = _logits(whole[rows], weight, bias)
            found[rows], grad = _chunk(logits, targets[rows], ones[rows], scale, softcap, want_hidden)
            if grad is not None and d_hidden is not None:
                torch.mm(grad.to(hidden.dtype), weight, out=d_hidden[rows])
        again = (whole, targets, weight, bias) if want_weight or want_bias else (None,) * 4
        ctx.save_for_backward(d_hidden, *again)
        ctx.numbers = (num_rows, scale, softcap, want_weight, want_bias)
        return -found[:num_rows]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, hidden, targets, weight, bias = ctx.saved_tensors
        num_rows, scale, softcap, want_weight, want_bias = ctx.numbers
        slope = -grads[0]
        made = None if d_hidden is None else d_hidden[:num_rows] * slope[:, None].to(d_hidden.dtype)
        if not want_weight and not want_bias:
            return made, None, None, None, None, None
        # What a position adds to the head's gradient is no vector that could be kept: its logits are made once more.
        slope = torch.nn.functional.pad(slope, (0, len(hidden) - num_rows))
        d_weight = torch.zeros_like(weight, dtype=slope.dtype)
        d_bias = torch.zeros(len(weight), dtype=slope.dtype, device=weight.device)
        for start in range(0, len(hidden), ROWS):
            rows = slice(start, start + ROWS)
            logits = _logits(hidden[rows], weight, bias)
            _, grad = _chunk(logits, targets[rows], slope[rows].contiguous(), scale, softcap, True)
            assert grad is not None
            d_bias += grad.sum(0)
            d_weight += grad.to(hidden.dtype).T @ hidden[rows]
        return (
            made,
            d_weight.to(weight.dtype) if want_weight else None,
            d_bias.to(bias.dtype) if want_bias else None,
            None,
            None,
            None,
        )


def linear_logp(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """Same values [N] and gradients as `linear_logp_reference`; at most `ROWS` x V logits are held at a time."""
    return _LinearLogp.apply(hidden, weight, bias, targets, scale, softcap)

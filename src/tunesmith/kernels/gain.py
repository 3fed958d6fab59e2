"""A learned factor on each output of a layer.

    y = g (z - b) + b          z [..., out]   g [out]   b [out], the part that the factor leaves alone, or None

`gain_reference` is the plain form that autograd differentiates. The factor acts in fp32 or wider whatever z is held in:
one that differs from 1 by a thousandth would be lost in bf16, and so would its gradient, a sum over all rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tunesmith.kernels.fused import call, runs_natively


def gain_reference(z: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
    """g (z - b) + b in the wider of both dtypes, returned in z's."""
    wide = torch.promote_types(z.dtype, gain.dtype)
    y = z.to(wide) * gain
    return (y if bias is None else y + (1 - gain) * bias).to(z.dtype)


def gain_forward(z: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
    """The same for z [N, out], in one pass and without a graph."""
    if not (gain.dtype == torch.float32 and runs_natively(z)):
        return gain_reference(z, gain, bias)
    z, y = z.contiguous(), torch.empty_like(z, memory_format=torch.contiguous_format)
    shift = gain if bias is None else (1 - gain) * bias
    call("gain", z.dtype, z, gain.contiguous(), shift.contiguous(), y, *z.shape, int(bias is not None))
    return y


def gain_back(
    dy: Tensor, z: Tensor, gain: Tensor, bias: Tensor | None, *, is_output: bool = False
) -> tuple[Tensor, Tensor]:
    """(gradient of z [N, out]: dy g, gradient of the gain [out]: sum over rows of dy (z - b)).

    `is_output`: what is handed in as z is y, and z - b is reckoned as (y - b) / g; see `UNDONE`.
    """
    if gain.dtype == torch.float32 and runs_natively(dy, z):
        dy, z, dz, sums = dy.contiguous(), z.contiguous(), torch.empty(dy.shape, dtype=dy.dtype), torch.empty_like(gain)
        parts = gain.new_empty(-(-len(z) // BLOCK), len(gain))
        call("gain_back", dy.dtype, dy, z, gain.contiguous(), dz, parts, sums, *z.shape)
    else:
        wide = torch.promote_types(dy.dtype, gain.dtype)
        dz, sums = (dy.to(wide) * gain).to(dy.dtype), (dy.to(wide) * z).sum(0).to(gain.dtype)
    sums = sums if bias is None else sums - bias * dy.sum(0, dtype=gain.dtype)
    return dz, sums / gain if is_output else sums


BLOCK = 64
"""BLOCK in fused.c."""


UNDONE = 0.25
"""From so large a gain on z can be had from y without magnifying what y's rounding has lost."""


class _Gain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(z if ctx.needs_input_grad[1] else None, gain, bias)
        return gain_forward(z, gain, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, gain, bias = ctx.saved_tensors
        if z is None:
            return gain_forward(grads[0], gain, None), None, None
        return *gain_back(grads[0], z, gain, bias), None


def gained(z: Tensor, gain: Tensor, bias: Tensor | None = None) -> Tensor:
    """Same value and gradients (of z and g) as `gain_reference`."""
    return _Gain.apply(z.reshape(-1, z.shape[-1]), gain, bias).reshape(z.shape)

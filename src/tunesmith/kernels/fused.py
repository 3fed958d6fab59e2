"""Elementwise work of a transformer block, each in one pass: RMS norm, SwiGLU, rotary positions.

Every kernel has its plain reference first; the fast form calls `fused.c` on a CPU in fp32 or bf16 and falls back to the
reference elsewhere. The fast forms keep their inputs alone for the backward pass, where the plain ones keep every
intermediate.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.ghost import is_ghost
from tunesmith.kernels.native import library

_SUFFIX = {torch.float32: "f32", torch.bfloat16: "b16"}


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def call(name: str, dtype: torch.dtype, *arguments: Tensor | int | float | None) -> int:
    """Run a compiled function: tensors as pointers, None as the null one, integers as int64, floats as float.

    Returns what it does, where it returns an int. Among tensors without numbers there is nothing to do, and 1: what it
    writes into is there already.
    """
    if is_ghost(*arguments):
        return 1
    function = getattr(library(), f"{name}_{_SUFFIX[dtype]}")
    return function(  # type: ignore[no-any-return]
        *(
            _pointer(item) if isinstance(item, Tensor)
            else ctypes.c_void_p(None) if item is None
            else ctypes.c_int64(item) if isinstance(item, int)
            else ctypes.c_float(item)
            for item in arguments
        )
    )  # fmt: skip


def runs_natively(*tensors: Tensor) -> bool:
    """Whether the compiled form can take these tensors."""
    first = tensors[0]
    return (
        first.device.type == "cpu"
        and first.dtype in _SUFFIX
        and all(tensor.dtype == first.dtype for tensor in tensors)
        and library() is not None
    )


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    """y = x / rms(x) * (weight + offset); x [..., d], weight [d]. Computed in fp32, returned in x's dtype."""
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (scaled * (weight.float() + offset)).to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
        x = x.contiguous()
        dim = x.shape[-1]
        rows = x.numel() // dim
        y, rstd = torch.empty_like(x), torch.empty(rows)
        call("rms_norm", x.dtype, x, weight, y, rstd, rows, dim, eps, offset)
        ctx.save_for_backward(x, weight, rstd)
        ctx.offset = offset
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rstd = ctx.saved_tensors
        dy, dx = grads[0].contiguous(), torch.empty_like(x)
        call("rms_norm_back", x.dtype, dy, x, weight, rstd, dx, rstd.numel(), x.shape[-1], ctx.offset)
        return dx, None, None, None


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """Same as `rms_norm_reference`; a trained weight takes the plain form."""
    if runs_natively(x, weight) and not (weight.requires_grad and torch.is_grad_enabled()):
        return _RMSNorm.apply(x, weight, eps, offset)
    return rms_norm_reference(x, weight, eps, offset)


def swiglu_reference(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    return F.silu(gate) * up


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        y = torch.empty_like(gate)
        call("swiglu", gate.dtype, gate, up, y, gate.numel())
        ctx.save_for_backward(gate, up)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        dgate, dup = torch.empty_like(gate), torch.empty_like(up)
        call("swiglu_back", gate.dtype, grads[0].contiguous(), gate, up, dgate, dup, gate.numel())
        return dgate, dup


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Same as `swiglu_reference`."""
    return _SwiGLU.apply(gate, up) if runs_natively(gate, up) else swiglu_reference(gate, up)


def rotary_reference(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions, halves paired: x [T, H, D], cosine and sine [T, D]."""
    first, second = x.chunk(2, dim=-1)
    return x * cosine[:, None] + torch.cat((-second, first), dim=-1) * sine[:, None]


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        x, cosine, sine = x.contiguous(), cosine.contiguous(), sine.contiguous()
        y = torch.empty_like(x)
        call("rotary", x.dtype, x, cosine, sine, y, *x.shape, 1.0)
        ctx.save_for_backward(cosine, sine)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cosine, sine = ctx.saved_tensors
        dy = grads[0].contiguous()
        dx = torch.empty_like(dy)
        # The gradient turns back; where both halves share one angle that is the same rotation with -sine.
        call("rotary", dy.dtype, dy, cosine, sine, dx, *dy.shape, -1.0)
        return dx, None, None


def rotary(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Same as `rotary_reference`, where both halves of cosine and sine are equal (as in every rotary model)."""
    fits = cosine.shape == sine.shape == (x.shape[0], x.shape[2]) and x.shape[2] % 2 == 0
    if fits and runs_natively(x, cosine, sine):
        return _Rotary.apply(x, cosine, sine)
    return rotary_reference(x, cosine, sine)

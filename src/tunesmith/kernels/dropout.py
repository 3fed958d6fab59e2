"""Dropout masks: 1 / (1 - p) where a number is kept, 0 where it is dropped.

torch draws its masks on a CPU one number after the other, which takes longer than the products around them. Here
number i of a mask is a hash of i and of a seed; the seed alone is drawn from torch's generator, whose state a
checkpoint holds.

    h = mix(mix(i + seed mod 2^32) xor seed div 2^32), kept where h < (1 - p) 2^32
    mix: the finaliser of murmur3, 32 bits

The seed is all that is kept for the backward pass, which draws the mask again. Where the compiled form does not run,
the seed sets a generator of torch's own, and the same holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunesmith.ghost import is_ghost
from tunesmith.kernels.fused import call, runs_natively

_LOW = 0xFFFFFFFF


@dataclass(frozen=True)
class KeepMask:
    """A mask that is drawn whenever it is asked for, each time the same. 0 <= p < 1, 0 <= seed < 2^63."""

    p: float
    seed: int

    @classmethod
    def fresh(cls, p: float) -> KeepMask:
        return cls(p, int(torch.empty((), dtype=torch.int64).random_()))

    def like(self, x: Tensor) -> Tensor:
        """Of x's shape, dtype and device. Leading dimensions may be flattened in between, not permuted."""
        mask = x.new_empty(x.shape)
        if runs_natively(x):
            call("keep_mask", x.dtype, mask, mask.numel(), *self._numbers())
            return mask
        generator = None if is_ghost(x) else torch.Generator(x.device).manual_seed(self.seed)
        return mask.bernoulli_(1 - self.p, generator=generator).div_(1 - self.p)

    def on(self, x: Tensor) -> Tensor:
        """drop(x), without a graph."""
        x = x.detach()
        if not runs_natively(x):
            return self.like(x).mul_(x)
        x, y = x.contiguous(), x.new_empty(x.shape)
        call("drop", x.dtype, x, y, x.numel(), *self._numbers())
        return y

    def _numbers(self) -> tuple[int, int, float]:
        """What the compiled form is handed."""
        return self.seed, min(round((1 - self.p) * 2**32), 2**32 - 1), 1 / (1 - self.p)


def dropped_reference(x: Tensor, keep: KeepMask) -> Tensor:
    """drop(x), which autograd differentiates with the mask kept."""
    return x * keep.like(x)


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: KeepMask) -> Tensor:
        ctx.keep = keep
        return keep.on(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.keep.on(grads[0]), None


def dropped(x: Tensor, keep: KeepMask) -> Tensor:
    """Same value and gradient as `dropped_reference`; keeps nothing but the seed."""
    return _Dropped.apply(x, keep)


def keep_mask_reference(shape: torch.Size, p: float, dtype: torch.dtype, seed: int) -> Tensor:
    """The compiled form's mask of `seed`, number by number."""
    _, threshold, value = KeepMask(p, seed)._numbers()
    i = torch.arange(shape.numel())
    h = _mix(_mix((i + (seed & _LOW)) & _LOW) ^ (seed >> 32))
    return ((h < threshold).double() * value).to(dtype).view(shape)


def _mix(h: Tensor) -> Tensor:
    h = (h ^ (h >> 16)) * 0x85EBCA6B & _LOW
    h = (h ^ (h >> 13)) * 0xC2B2AE35 & _LOW
    return h ^ (h >> 16)

"""Dropout masks: 1 / (1 - p) where a number is kept, 0 where it is dropped.

torch draws its masks on a CPU one number after the other, which takes longer than the products around them. Here
number i of a mask is a hash of i and of a seed; the seed alone is drawn from torch's generator, whose state a
checkpoint holds.

    h = mix(mix(i + seed mod 2^32) xor seed div 2^32), kept where h < (1 - p) 2^32
    mix: the finaliser of murmur3, 32 bits
"""

from __future__ import annotations

import torch
from torch import Tensor

from tunesmith.kernels.fused import call, runs_natively

_LOW = 0xFFFFFFFF


def keep_mask(x: Tensor, p: float) -> Tensor:
    """A fresh mask of x's shape, dtype and device; 0 <= p < 1."""
    if not runs_natively(x):
        return torch.empty_like(x).bernoulli_(1 - p).div_(1 - p)
    seed = int(torch.empty((), dtype=torch.int64).random_())
    mask = torch.empty(x.shape, dtype=x.dtype)
    call("keep_mask", x.dtype, mask, mask.numel(), seed, _threshold(p), 1 / (1 - p))
    return mask


def keep_mask_reference(shape: torch.Size, p: float, dtype: torch.dtype, seed: int) -> Tensor:
    """The mask of `seed`, number by number."""
    i = torch.arange(shape.numel())
    h = _mix(_mix((i + (seed & _LOW)) & _LOW) ^ (seed >> 32))
    return ((h < _threshold(p)).double() / (1 - p)).to(dtype).view(shape)


def _threshold(p: float) -> int:
    return min(round((1 - p) * 2**32), 2**32 - 1)


def _mix(h: Tensor) -> Tensor:
    h = (h ^ (h >> 16)) * 0x85EBCA6B & _LOW
    h = (h ^ (h >> 13)) * 0xC2B2AE35 & _LOW
    return h ^ (h >> 16)

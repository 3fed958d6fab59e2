"""Room in memory: telling that it ran out from other errors, giving back what is not used, and the same work in smaller
pieces."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import torch

T = TypeVar("T")
_SIGNS = ("out of memory", "not enough memory", "allocate memory", "alloc_failed")
"""CUDA and MPS; the CPU allocator of some systems; of Linux ("can't allocate memory"); cuBLAS and cuDNN."""


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS)


def free_cache(device: torch.device) -> None:
    """Give back to the system what is held and not used."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library than GNU's keeps less, or cannot be asked
            ctypes.CDLL(None).malloc_trim(0)


def by_less(work: Callable[[int], T], most: int, least: int, device: torch.device) -> T:
    """`work(most)`; where memory runs out, with half as much, and so on, at last with `least`: what it gives must not
    hang on how it is cut. The error of the last try is raised."""
    while True:
        try:
            return work(most)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or most <= least:
                raise
        most = max(least, most // 2)
        free_cache(device)

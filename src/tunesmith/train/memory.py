"""Memory: how much is used, how much a micro-batch may hold, and telling "out of memory" from other errors."""

from __future__ import annotations

import ctypes
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

_SIGNS = ("out of memory", "not enough memory", "allocate memory", "alloc_failed")
"""CUDA and MPS; the CPU allocator of some systems; of Linux ("can't allocate memory"); cuBLAS and cuDNN."""
_DEFAULT_TOKENS = {"cpu": 1024, "cuda": 16384, "mps": 2048}


def default_micro_batch_tokens(device: torch.device) -> int:
    """Tokens at which products already run at full speed on this kind of device."""
    return _DEFAULT_TOKENS.get(device.type, 2048)


def reset_peak(device: torch.device) -> None:
    """Forget what was held before, where the system can: what a run reports is its own."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Most memory held since `reset_peak`: of the accelerator where there is one, else resident in the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


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

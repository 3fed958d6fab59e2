"""Memory: how much is used, and how much a micro-batch may hold."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

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

"""From what tensors hold to what a run takes: of a processor's memory, or of a GPU's.

Maths   GPU        peak = k p
        processor  peak = b + max(l + k p', s) + c      b: the process as it stands, with its libraries and rows
                   l: weights, adapter, gradients and optimizer state      p': what passes, p: all, at the most
                   s: while a checkpoint is written
k is what an allocator keeps between and behind what is asked of it, c what libraries set up for their first products.
Those of the processor are fitted to half of the configurations of benchmarks/forecast.py, those of a GPU are guesses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from tunesmith.machine import memory_bytes, memory_free_bytes
from tunesmith.plan.step import Parts

SPREAD = 1.08
"""Beyond the forecast times this, a run surely fits; below, it just does."""
SET_ASIDE = 0.03
"""Share of a memory that is left to others."""


@dataclass(frozen=True)
class Fitted:
    """What no ghost shows (benchmarks/forecast.py measures it)."""

    spread: float
    """k."""
    fixed: float
    """c, bytes."""


FITTED = {"cpu": Fitted(1.08, 294e6), "cuda": Fitted(1.05, 0.0), "mps": Fitted(1.1, 0.0)}


@dataclass(frozen=True)
class Memory:
    """The memory that a run draws on."""

    kind: str
    """cpu, cuda or mps."""
    total: int | None
    """None: the system does not say."""
    free: int | None
    held: int = 0
    """By this process already."""
    given: bool = False
    """A person said how much there is."""

    @property
    def room(self) -> int | None:
        """What a run may take in all, what this process holds already counted in."""
        if self.given:
            return self.total
        if self.free is None:
            return None if self.total is None else round(self.total * (1 - SET_ASIDE))
        return round((self.free + self.held) * (1 - SET_ASIDE))


def resident() -> int:
    """Bytes of this process that lie in memory now; 0 where the system does not say."""
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * 4096 if path.is_file() else 0


def memory_of(device: torch.device, given: int | None = None) -> Memory:
    """Of the machine that the run is planned for; `given` bytes stand in for what is there."""
    kind = device.type
    held = resident() if kind == "cpu" else 0
    if given is not None:
        return Memory(kind, given, given, held, True)
    if kind == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Memory(kind, total, free)
    if kind == "mps":
        total = torch.mps.recommended_max_memory()
        return Memory(kind, total, total - torch.mps.driver_allocated_memory())
    return Memory(kind, memory_bytes(), memory_free_bytes(), held)


def needed(
    parts: Parts, kind: str, base: int, fitted: Mapping[str, Fitted] = FITTED, *, beside: int = 0, written: int = 0
) -> int:
    """Bytes that a run whose step holds `parts` will take at its most, in a process that holds `base` without it.

    `beside`: of a model that lies beside the one that learns. `written`: of answers that are written between steps.
    """
    known, between = fitted[kind], parts.lasting - parts.gradients + written
    if kind != "cpu":
        return round(known.spread * max(parts.peak, between) + known.fixed) + beside
    most = max(parts.lasting + known.spread * parts.passing, parts.saving, between)
    return round(base + most + known.fixed) + beside

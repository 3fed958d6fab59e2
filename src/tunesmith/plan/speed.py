"""How long a run will take, from what one step does and how fast this machine was seen to do it.

    seconds = a · flops / rate + b · moved / bandwidth + e · operations

rate and bandwidth are measured here and now: a product of the model's own width, and a sum of two large tensors. a, b
and e say what a step takes of a product's time, and of memory's, and what each operation costs beside them. They are
rough, and three times too fast on a busy machine: what a part of the model was seen to take (plan/timing.py) sets them
right where it can be tried, and then they say how methods and settings differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tunesmith.plan.bench import Work

MEASURED = 0.25
"""Seconds for which each is measured."""
LARGE = 1 << 24
"""Numbers in the tensors that are summed: beyond any cache."""


@dataclass(frozen=True)
class Pace:
    rate: float
    """flops a second."""
    bandwidth: float
    """Bytes written a second."""
    product: float = 2.0
    """a."""
    moving: float = 2.0
    """b."""
    operation: float = 12e-6
    """e, seconds."""
    factor: float = 1.0
    """What was seen of a part of the model, over what the above says of it (plan/timing.py)."""

    def seconds(self, work: Work) -> float:
        products = self.product * work.flops / self.rate
        moving = self.moving * work.moved / self.bandwidth
        return self.factor * (products + moving + self.operation * work.operations)


def measure(tokens: int, width: int, dtype: torch.dtype, device: torch.device) -> Pace:
    """Work for a moment: [tokens, width] by [width, 4 width], then one large sum."""
    wide = min(4 * width, 1 << 15)
    x = torch.ones(tokens, width, dtype=dtype, device=device)
    weight = torch.ones(wide, width, dtype=dtype, device=device)
    rate = 2.0 * tokens * width * wide / _best(lambda: x @ weight.T, device)
    large, out = torch.ones(LARGE, device=device), torch.empty(LARGE, device=device)
    return Pace(rate, large.nbytes / _best(lambda: torch.add(large, large, out=out), device))


def _best(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of many."""
    best, spent = float("inf"), 0.0
    work()
    while spent < MEASURED:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took = time.perf_counter() - start
        spent += took
        best = min(best, took)
    return best

"""How long a run will take, from what one step multiplies and how fast this machine was seen to multiply.

    seconds = flops / rate + e · operations        rate: of a product of the model's own width, measured here and now
rate is divided by what a whole step reaches of it. Both that share and e were fitted (benchmarks/forecast.py).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

MEASURED = 0.4
"""Seconds of products that the rate is taken from."""


@dataclass(frozen=True)
class Pace:
    """flops a second of a product of the model's own shape."""

    rate: float
    efficiency: float = 0.6
    """Share of it that a whole step reaches."""
    operation: float = 12e-6
    """Seconds of everything around a product that no product counts."""

    def seconds(self, flops: float, operations: float) -> float:
        return flops / (self.rate * self.efficiency) + self.operation * operations


def measure(tokens: int, width: int, dtype: torch.dtype, device: torch.device) -> Pace:
    """Multiply for a moment: [tokens, width] by [width, 4 width]."""
    wide = min(4 * width, 1 << 15)
    x = torch.ones(tokens, width, dtype=dtype, device=device)
    weight = torch.ones(wide, width, dtype=dtype, device=device)
    best, spent = float("inf"), 0.0
    while spent < MEASURED or best == float("inf"):
        start = time.perf_counter()
        x @ weight.T
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took = time.perf_counter() - start
        spent += took
        best = min(best, took)
    return Pace(2.0 * tokens * width * wide / best)

"""Delta-LoRA: LoRA that also moves the frozen weight, by the change of the product B A from step to step.

Paper   Zi et al. 2023, arXiv:2309.02411, algorithm 1
When    rank r is too little and there is memory for LoRA alone; outside its paper little is known of it
Maths   y = W_t x + b + s B A x           s = alpha / r, or alpha / sqrt(r) if rank_stabilised
        W_{t+1} = W_t + λ s (B_{t+1} A_{t+1} - B_t A_t)  from step K on; W_t is a number for the gradients of A and B
        which telescopes: y = W x + b + s ((1 + λ) B A - λ B_K A_K) x, with A_K, B_K what A, B were after K updates
Shapes  x [..., in]   W [out, in]   A, A_K [r, in]   B, B_K [out, r]
Init    as LoRA; until step K A_K, B_K are A, B themselves: the first forward equals the base model
Merge   W' = W + s ((1 + λ) B A - λ B_K A_K);  b' = b
Departs W is never touched: it may be held in 4 bits, and no change is too small for it. As in the paper there is no
        dropout. A new run that goes on from a Delta-LoRA's file moves W from its first step on. Files hold a plain
        LoRA of rank 2 r, from which PEFT computes the same
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor

from tunesmith.adapters import lora
from tunesmith.adapters.base import Adapter, Base, Request
from tunesmith.errors import AdapterError


class Settings(lora.FactorSettings):
    method: Literal["delta-lora"] = "delta-lora"
    update_ratio: NonNegativeFloat = 0.5
    """λ: how far W moves for each change of the product. The paper chooses it for each task."""
    start_step: NonNegativeInt = 10
    """K: updates before W moves. The paper chooses it for each task."""


class DeltaLoRA(lora.LoRA):
    """With the scale (1 + λ) s the whole change is B A + B1 A1, where A1 = A_K and B1 = -λ / (1 + λ) B_K."""

    A1: Tensor
    B1: Tensor

    def __init__(self, settings: Settings, base: Base, generator: torch.Generator | None) -> None:
        super().__init__(settings, base, generator)
        self.update_ratio, self.start_step = settings.update_ratio, settings.start_step
        self.scale = (1 + settings.update_ratio) * settings.scale
        self.moves = generator is None
        """W moves from the first step on, whatever `start_step` says: the adapter is of a file."""
        self.remember()

    @torch.no_grad()
    def remember(self) -> None:
        """Let what A and B are now be A_K and B_K."""
        self.A1 = self.A.detach().clone()
        self.B1 = self.B.detach() * (-self.update_ratio / (1 + self.update_ratio))

    def _learned(self) -> tuple[Tensor, Tensor]:
        """A and B with the gradients that they have at the scale s."""
        share = 1 / (1 + self.update_ratio)
        return scaled_back(self.A, share), scaled_back(self.B, share)


class _ScaledBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None


def scaled_back(x: Tensor, factor: float) -> Tensor:
    """x itself, whose gradient is multiplied by `factor`."""
    return _ScaledBack.apply(x, factor)


def build(settings: Settings, base: Base, generator: torch.Generator | None = None) -> DeltaLoRA:
    return DeltaLoRA(settings, base, generator)


def check(settings: Settings, num_steps: int | None, optimizer: str) -> None:
    if num_steps is not None and settings.start_step >= num_steps:
        raise AdapterError(
            f"adapter.start_step {settings.start_step} is not reached: W would never move",
            found=f"a budget of {num_steps} steps",
            fix="a smaller adapter.start_step, a longer budget, or adapter.method=lora",
        )


def for_share(settings: Settings, share: float) -> Settings:
    """W begins to move after the same share of the run."""
    return settings.model_copy(update={"start_step": int(share * settings.start_step)})


def on_step(adapters: Mapping[str, Adapter], step: int, num_steps: int | None) -> Sequence[Request]:
    for adapter in adapters.values():
        assert isinstance(adapter, DeltaLoRA)
        if not adapter.moves and step <= adapter.start_step:
            adapter.remember()
    return ()


def to_peft(settings: Settings) -> dict[str, Any]:
    wider = settings.of_rank(2 * settings.r)
    return lora.to_peft(wider.model_copy(update={"alpha": (1 + settings.update_ratio) * wider.alpha}))


def from_peft(config: dict[str, Any]) -> None:
    """PEFT does not know it: its files are LoRA's."""
    return None

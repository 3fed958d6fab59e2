"""LoRA-FA: LoRA whose A stays as it was drawn; only B learns.

Paper   Zhang et al. 2023, arXiv:2308.03303, eq. 5-6
When    activations fill the memory and recomputing them takes too long: it keeps no input for A
Maths   y = W x + b + s B (A drop(x))      s = alpha / r, or alpha / sqrt(r) if rank_stabilised
Shapes  x [..., in]   W [out, in]   A [r, in]   B [out, r]
Init    A ~ U(-1/sqrt(in), 1/sqrt(in)) and never changed, B = 0; beside an embedding A ~ N(0, 1) (a zero would stay)
Merge   W' = W + s B A;  b' = b
Departs nothing. The backward pass needs A x [..., r] and not x: the layer does not keep its input, nor a dropout mask,
        which the backward pass draws again from its seed
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from tunesmith.adapters import lora
from tunesmith.adapters.base import Base


class Settings(lora.LowRankSettings):
    method: Literal["lora-fa"] = "lora-fa"


class LoRAFA(lora.LoRA):
    def __init__(self, settings: Settings, base: Base, generator: torch.Generator | None) -> None:
        super().__init__(settings, base, generator)
        A, B = self.A.detach(), self.B
        if generator is not None and base.is_embedding:
            A = torch.empty(A.shape).normal_(generator=generator).to(A.device)
            nn.init.zeros_(B)
        del self.A
        self.register_buffer("A", A)


def build(settings: Settings, base: Base, generator: torch.Generator | None = None) -> LoRAFA:
    return LoRAFA(settings, base, generator)


def to_peft(settings: Settings) -> dict[str, Any]:
    return lora.to_peft(settings)


def from_peft(config: dict[str, Any]) -> None:
    """PEFT knows it as a way of training a LoRA: its files are LoRA's."""
    return None

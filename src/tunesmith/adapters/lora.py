"""LoRA: learn a low-rank change to a frozen weight.

Paper   Hu et al. 2021, arXiv:2106.09685, eq. 3; rank-stabilised scale: Kalajdzievski 2023, arXiv:2312.03732
Maths   y = W x + b + s B (A drop(x))      s = alpha / r, or alpha / sqrt(r) if rank_stabilised
Shapes  x [..., in]   W [out, in]   A [r, in]   B [out, r]
Init    A ~ U(-1/sqrt(in), 1/sqrt(in)), B = 0: the first forward equals the base model.
        Beside an embedding (its input is one-hot): A = 0, B ~ N(0, 1), as in loralib
Merge   W' = W + s B A;  b' = b
Departs A and B are held in fp32 and cast to the activations' dtype, never the other way round
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tunesmith.adapters.base import Adapter, Base
from tunesmith.adapters.settings import AdapterSettings
from tunesmith.kernels.low_rank import low_rank


class Settings(AdapterSettings):
    method: Literal["lora"] = "lora"
    r: int = Field(8, gt=0)
    """Rank: width of the low-rank change."""
    alpha: float = Field(16.0, gt=0)
    """Numerator of the update's scale."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of the adapter's inputs set to zero while training."""
    rank_stabilised: bool = False
    """Scale by alpha / sqrt(r) instead of alpha / r."""


class LoRA(Adapter):
    def __init__(self, base: Base, r: int, scale: float, dropout: float, generator: torch.Generator | None) -> None:
        super().__init__()
        A = torch.empty(r, base.in_features)
        if base.is_embedding:
            A.zero_()
            B = torch.empty(base.out_features, r).normal_(generator=generator)
        else:
            bound = 1.0 / math.sqrt(base.in_features)
            A.uniform_(-bound, bound, generator=generator)
            B = torch.zeros(base.out_features, r)
        self.A = nn.Parameter(A.to(base.device))
        self.B = nn.Parameter(B.to(base.device))
        self.scale, self.dropout = scale, dropout

    def forward(self, x: Tensor, base: Base, *more: Any, **named: Any) -> Tensor:
        if base.is_embedding:
            h = F.embedding(x, self.A.T, padding_idx=base.layer.padding_idx)  # type: ignore[arg-type]
            y = base.output(x)
            wide = torch.promote_types(y.dtype, h.dtype)
            change = (h.to(wide) @ self.B.to(wide).T * self.scale).to(y.dtype)
            return y + (change if base.output_scale is None else change * base.output_scale.to(y.dtype))
        keep = None
        if self.training and self.dropout > 0:
            keep = torch.empty_like(x).bernoulli_(1 - self.dropout).div_(1 - self.dropout)
        return low_rank(x, base, self.A, self.B, self.scale, keep)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        wide = torch.promote_types(weight.dtype, self.A.dtype)
        return torch.addmm(weight.to(wide), self.B.to(wide), self.A.to(wide), alpha=self.scale).to(weight.dtype), bias

    def factors(self) -> tuple[Tensor, Tensor, float]:
        return self.A, self.B, self.scale


def build(settings: Settings, base: Base, generator: torch.Generator | None = None) -> LoRA:
    """A fresh LoRA beside `base`; `generator` (CPU) makes the initialisation repeatable."""
    scale = settings.alpha / (math.sqrt(settings.r) if settings.rank_stabilised else settings.r)
    return LoRA(base, settings.r, scale, settings.dropout, generator)


TENSORS = {"A": "lora_A.weight", "B": "lora_B.weight"}
"""Our parameter names and PEFT's, beside a matrix."""
EMBEDDING_TENSORS = {"A": "lora_embedding_A", "B": "lora_embedding_B"}
"""The same beside an embedding."""


def to_peft(settings: Settings) -> dict[str, Any]:
    """The fields of PEFT's LoraConfig that change the maths."""
    return {
        "peft_type": "LORA",
        "r": settings.r,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "use_rslora": settings.rank_stabilised,
    }


def from_peft(config: dict[str, Any]) -> dict[str, Any]:
    """Our fields out of PEFT's LoraConfig."""
    return {
        "method": "lora",
        "r": config["r"],
        "alpha": config.get("lora_alpha", 8),
        "dropout": config.get("lora_dropout", 0.0),
        "rank_stabilised": config.get("use_rslora", False),
    }

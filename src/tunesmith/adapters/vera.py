"""VeRA: one random pair of matrices for all layers, never trained; each layer learns two vectors that scale it.

Paper   Kopiczko et al. 2023, arXiv:2310.11454, eq. 2
When    as few numbers as possible are to learn, for many adapters of one base. Not to save time: its rank is large
Maths   y = W x + b0 + b (B (d (A drop(x))))      d and b multiply element by element
Shapes  x [..., in]   W [out, in]   A [r, most in]   B [most out, r], of which a layer takes what fits   d [r]   b [out]
Init    A, B uniform with the variance that He et al. give for their fan-in; d = d_initial, b = 0: the first forward
        equals the base model
Merge   W' = W + diag(b) B diag(d) A;  b0' = b0
Departs the paper shares one pair among layers of one shape; as in PEFT one pair serves all, cut to each layer's shape
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from tunesmith.adapters.base import Adapter, Base, Stored
from tunesmith.adapters.settings import AdapterSettings
from tunesmith.kernels.dropout import KeepMask, dropped
from tunesmith.kernels.gain import gained


class Settings(AdapterSettings):
    method: Literal["vera"] = "vera"
    r: int = Field(256, gt=0)
    """Rank of the shared pair: large, since it is not trained."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of the adapter's inputs set to zero while training."""
    d_initial: float = 0.1
    """What every element of d begins as."""


class VeRA(Adapter):
    def __init__(self, settings: Settings, base: Base, pair: dict[str, Tensor]) -> None:
        super().__init__()
        self.dropout, self.is_embedding = settings.dropout, base.is_embedding
        self._pair = pair
        self._shape = base.out_features, base.in_features
        self.d = nn.Parameter(torch.full((settings.r,), settings.d_initial, device=base.device))
        self.b = nn.Parameter(torch.zeros(base.out_features, device=base.device))

    def _matrices(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """This layer's part of the pair: A [r, in], B [out, r]."""
        out, in_ = self._shape
        A, B = (self._pair[name].to(self.d.device) for name in ("A", "B"))
        return A[:, :in_].to(dtype), B[:out].to(dtype)

    def forward(self, x: Tensor, base: Base, *more: Any, **named: Any) -> Tensor:
        y = base.output(x)
        A, B = self._matrices(y.dtype)
        if base.is_embedding:
            change = gained(gained(F.embedding(x, A.T), self.d) @ B.T, self.b)
            return y + (change if base.output_scale is None else change * base.output_scale.to(y.dtype))
        if self.training and self.dropout > 0:
            x = dropped(x, KeepMask.fresh(self.dropout))
        return y + gained(gained(x @ A.T, self.d) @ B.T, self.b)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        wide = torch.promote_types(weight.dtype, self.d.dtype)
        A, B = self._matrices(wide)
        d, b = self.d.to(wide), self.b.to(wide)
        return torch.addmm(weight.to(wide), b[:, None] * B, d[:, None] * A).to(weight.dtype), bias

    def factors(self) -> tuple[Tensor, Tensor, float]:
        A, B = self._matrices(self.d.dtype)
        return self.d[:, None] * A, self.b[:, None] * B, 1.0

    def stored(self) -> dict[str, Stored]:
        return {"vera_lambda_d": Stored([self.d]), "vera_lambda_b": Stored([self.b])}


def shared(
    settings: Settings, shapes: Sequence[tuple[int, int]], generator: torch.Generator | None
) -> dict[str, Tensor]:
    """The pair for layers of `shapes` (out, in): A [r, most in], B [most out, r]."""
    out, in_ = max(out for out, _ in shapes), max(in_ for _, in_ in shapes)
    pair = {"A": torch.zeros(settings.r, in_), "B": torch.zeros(out, settings.r)}
    if generator is not None:
        for matrix in pair.values():
            bound = math.sqrt(6 / matrix.shape[1])
            matrix.uniform_(-bound, bound, generator=generator)
    return pair


SHARED = {"A": "base_model.vera_A", "B": "base_model.vera_B"}
"""The pair's names in a file."""


def build(settings: Settings, base: Base, generator: torch.Generator | None, pair: dict[str, Tensor]) -> VeRA:
    return VeRA(settings, base, pair)


def to_peft(settings: Settings) -> dict[str, Any]:
    return {
        "peft_type": "VERA",
        "r": settings.r,
        "vera_dropout": settings.dropout,
        "d_initial": settings.d_initial,
        "save_projection": True,
    }


def from_peft(config: dict[str, Any]) -> dict[str, Any] | None:
    if config.get("peft_type") != "VERA":
        return None
    return {
        "method": "vera",
        "r": config["r"],
        "dropout": config.get("vera_dropout", 0.0),
        "d_initial": config.get("d_initial", 0.1),
    }

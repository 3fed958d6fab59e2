"""LoRA: learn a low-rank change to a frozen weight.

Paper   Hu et al. 2021, arXiv:2106.09685, eq. 3; rank-stabilised scale: Kalajdzievski 2023, arXiv:2312.03732;
        starts: PiSSA, Meng et al. 2024, arXiv:2404.02948, eq. 2-4; OLoRA, Büyükakyüz 2024, arXiv:2406.01775, eq. 3-5;
        LoRA+ (a learning rate of its own for B): Hayou et al. 2024, arXiv:2402.12354
Maths   y = W x + b + s B (A drop(x))      s = alpha / r, or alpha / sqrt(r) if rank_stabilised
        from a start of W's own: y = W x + b + s (B A - B0 A0) drop(x), with A0, B0 what B, A began as
Shapes  x [..., in]   W [out, in]   A [r, in]   B [out, r]
Init    A ~ U(-1/sqrt(in), 1/sqrt(in)), B = 0: the first forward equals the base model.
        Beside an embedding (its input is one-hot): A = 0, B ~ N(0, 1), as in loralib.
        pissa: s B A = the r largest singular directions of W, shared evenly; olora: W = Q R, B = Q[:, :r], A = R[:r]
Merge   W' = W + s (B A - B0 A0);  b' = b
Departs A and B are held in fp32 and cast to the activations' dtype, never the other way round. PiSSA and OLoRA take
        their start off the frozen weight; here it is one more term of rank r, so that the base never changes. On a
        base of 4 bits that forgoes what PiSSA gains by quantising the rest alone. Files hold a plain LoRA of rank 2 r
"""

from __future__ import annotations

import math
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator
from torch import Tensor, nn

from tunesmith.adapters.base import Adapter, Base, Stored
from tunesmith.adapters.settings import AdapterSettings
from tunesmith.errors import AdapterError
from tunesmith.kernels.gain import gained
from tunesmith.kernels.low_rank import low_rank
from tunesmith.settings import Contradiction


class LowRankSettings(AdapterSettings):
    """What every method with A and B lets one choose."""

    r: int = Field(8, gt=0)
    """Rank: width of the low-rank change."""
    alpha: float = Field(16.0, gt=0)
    """Numerator of the update's scale."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of the adapter's inputs set to zero while training."""
    rank_stabilised: bool = False
    """Scale by alpha / sqrt(r) instead of alpha / r."""
    lr_ratio: PositiveFloat = 1.0
    """LoRA+: B's learning rate over A's."""
    embedding_lr_ratio: PositiveFloat = 1.0
    """LoRA+: learning rate of what stands beside an embedding, over that of A elsewhere."""

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.r) if self.rank_stabilised else self.r)


class Settings(LowRankSettings):
    method: Literal["lora"] = "lora"
    start: Literal["zero", "pissa", "olora"] = "zero"
    """zero: a random A and B = 0. pissa, olora: B A starts as a part of the frozen weight, which is subtracted."""
    svd_iterations: NonNegativeInt | None = None
    """PiSSA by a randomised SVD with so many power iterations, much faster on large layers; null: the exact one."""

    @model_validator(mode="after")
    def _iterations_of_pissa(self) -> Self:
        if self.svd_iterations is not None and self.start != "pissa":
            raise Contradiction("svd_iterations", f"has no meaning with start {self.start}", "set start: pissa")
        return self


class LoRA(Adapter):
    A0: Tensor | None
    minus_B0: Tensor | None
    """What is subtracted is A0 [r, in] and, with its sign, minus_B0 [out, r]; None for a start at zero."""

    def __init__(self, settings: LowRankSettings, base: Base, generator: torch.Generator | None) -> None:
        """`generator` None: zeros, to be filled from a file."""
        super().__init__()
        self.scale, self.dropout, self.is_embedding = settings.scale, settings.dropout, base.is_embedding
        self.lr_ratio = settings.lr_ratio
        self.embedding_lr_ratio = settings.embedding_lr_ratio
        A, B = torch.zeros(settings.r, base.in_features), torch.zeros(base.out_features, settings.r)
        if generator is not None and base.is_embedding:
            B.normal_(generator=generator)
        elif generator is not None:
            bound = 1.0 / math.sqrt(base.in_features)
            A.uniform_(-bound, bound, generator=generator)
        self.A = nn.Parameter(A.to(base.device))
        self.B = nn.Parameter(B.to(base.device))
        self.register_buffer("A0", None)
        self.register_buffer("minus_B0", None)

    def start_from(self, A0: Tensor, B0: Tensor) -> None:
        """Begin at B0 A0 and subtract it ever after."""
        with torch.no_grad():
            self.A.copy_(A0)
            self.B.copy_(B0)
        self.A0, self.minus_B0 = self.A.detach().clone(), -self.B.detach()

    def forward(self, x: Tensor, base: Base, *more: Any, **named: Any) -> Tensor:
        A, B, scale = self._factors()
        gain = self.gain(base)
        if base.is_embedding:
            h = F.embedding(x, A.T, padding_idx=base.layer.padding_idx)  # type: ignore[arg-type]
            y = base.output(x)
            wide = torch.promote_types(y.dtype, h.dtype)
            change = (h.to(wide) @ B.to(wide).T * scale).to(y.dtype)
            if base.output_scale is not None:
                change = change * base.output_scale.to(y.dtype)
            return y + change if gain is None else gained(y + change, gain)
        keep = None
        if self.training and self.dropout > 0:
            keep = torch.empty_like(x).bernoulli_(1 - self.dropout).div_(1 - self.dropout)
        return low_rank(x, base, A, B, scale, keep, gain)

    def gain(self, base: Base) -> Tensor | None:
        """A factor [out] on the whole product; LoRA has none."""
        return None

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        wide = torch.promote_types(weight.dtype, self.A.dtype)
        A, B, scale = self._factors()
        return torch.addmm(weight.to(wide), B.to(wide), A.to(wide), alpha=scale).to(weight.dtype), bias

    def _factors(self) -> tuple[Tensor, Tensor, float]:
        if self.A0 is None or self.minus_B0 is None:
            return self.A, self.B, self.scale
        return torch.cat([self.A, self.A0]), torch.cat([self.B, self.minus_B0], dim=1), self.scale

    def factors(self) -> tuple[Tensor, Tensor, float] | None:
        return self._factors()

    def groups(self) -> dict[str, float]:
        if self.is_embedding:
            return {name: self.embedding_lr_ratio for name, _ in self.named_parameters()}
        return {"B": self.lr_ratio}

    def stored(self) -> dict[str, Stored]:
        A = Stored([tensor for tensor in (self.A, self.A0) if tensor is not None], dim=0)
        B = Stored([tensor for tensor in (self.B, self.minus_B0) if tensor is not None], dim=1)
        if self.is_embedding:
            return {"lora_embedding_A": A, "lora_embedding_B": B}
        return {"lora_A.weight": A, "lora_B.weight": B}


def build(settings: Settings, base: Base, generator: torch.Generator | None = None) -> LoRA:
    """A fresh LoRA beside `base`; `generator` (CPU) makes the initialisation repeatable, None leaves zeros."""
    adapter = LoRA(settings, base, generator)
    if settings.start != "zero":
        if generator is None:
            adapter.start_from(adapter.A, adapter.B)
        else:
            adapter.start_from(*_start(settings, base, generator))
    return adapter


@torch.no_grad()
def _start(settings: Settings, base: Base, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(A0 [r, in], B0 [out, r]) as PiSSA or OLoRA choose them from the frozen weight."""
    weight, r = base.weight().float(), settings.r
    if r > min(weight.shape):
        raise AdapterError(
            f"adapter.start {settings.start} takes its {r} directions from the weight, which has {min(weight.shape)}",
            fix="a smaller adapter.r, or targets without these layers",
        )
    if settings.start == "olora":
        Q, R = torch.linalg.qr(weight)
        return R[:r], Q[:, :r]
    if settings.svd_iterations is None:
        U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(1 << 62, (1,), generator=generator)))
            width = min(r + OVERSAMPLED, *weight.shape)
            U, S, V = torch.svd_lowrank(weight, q=width, niter=settings.svd_iterations)
            Vh = V.T
    root = (S[:r] / settings.scale).sqrt()
    return root[:, None] * Vh[:r], U[:, :r] * root


OVERSAMPLED = 8
"""Directions that a randomised SVD finds beyond those that are wanted: they make these exact."""


def to_peft(settings: LowRankSettings) -> dict[str, Any]:
    """The fields of PEFT's LoraConfig that change the maths. A start of W's own doubles the rank, at the same scale."""
    times = 1 if getattr(settings, "start", "zero") == "zero" else 2
    return {
        "peft_type": "LORA",
        "r": times * settings.r,
        "lora_alpha": settings.alpha * (math.sqrt(times) if settings.rank_stabilised else times),
        "lora_dropout": settings.dropout,
        "use_rslora": settings.rank_stabilised,
    }


def from_peft(config: dict[str, Any]) -> dict[str, Any] | None:
    """Our fields out of PEFT's config, None where it is of another method."""
    if config.get("peft_type") != "LORA" or config.get("use_dora"):
        return None
    return {"method": "lora", **low_rank_fields(config)}


def low_rank_fields(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "r": config["r"],
        "alpha": config.get("lora_alpha", 8),
        "dropout": config.get("lora_dropout", 0.0),
        "rank_stabilised": config.get("use_rslora", False),
    }

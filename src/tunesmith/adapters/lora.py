"""LoRA: learn a low-rank change to a frozen weight.

Paper   Hu et al. 2021, arXiv:2106.09685, eq. 3; rank-stabilised scale: Kalajdzievski 2023, arXiv:2312.03732;
        starts: PiSSA, Meng et al. 2024, arXiv:2404.02948, eq. 2-4; OLoRA, Büyükakyüz 2024, arXiv:2406.01775, eq. 3-5;
        LoRA+ (a learning rate of its own for B): Hayou et al. 2024, arXiv:2402.12354
When    first. It merges exactly, servers read it, and the other methods here are measured against it
Maths   y = W x + b + s B (A drop(x))      s = alpha / r, or alpha / sqrt(r) if rank_stabilised
        from a start of W's own: y = W x + b + s (B A - B0 A0) drop(x), with A0, B0 what B, A began as
Shapes  x [..., in]   W [out, in]   A [r, in]   B [out, r]
Init    A ~ U(-1/sqrt(in), 1/sqrt(in)), B = 0: the first forward equals the base model.
        Beside an embedding (its input is one-hot): A = 0, B ~ N(0, 1), as in loralib.
        pissa: s B A = the r largest singular directions of W, shared evenly; olora: W = Q R, B = Q[:, :r], A = R[:r]
Merge   W' = W + s (B A - B0 A0);  b' = b
Departs A and B are held in fp32 and cast to the activations' dtype, never the other way round. PiSSA and OLoRA take
        their start off the frozen weight; here it is one more term of rank r, so that the base never changes. On a
        base of 4 bits that forgoes what PiSSA gains by quantising the rest alone. Files hold a plain LoRA of rank 2 r.
        It is reckoned as (B - B0) A + B0 (A - A0), with the differences taken before anything is rounded to bf16: a
        small step is as exact as LoRA's, and at the start both are 0
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
from tunesmith.kernels.dropout import KeepMask
from tunesmith.kernels.gain import gained
from tunesmith.kernels.low_rank import low_rank
from tunesmith.settings import Contradiction


class FactorSettings(AdapterSettings):
    """What every method with A and B lets one choose."""

    r: int = Field(8, gt=0)
    """Rank: width of the low-rank change."""
    alpha: float = Field(16.0, gt=0)
    """Numerator of the update's scale."""
    rank_stabilised: bool = False
    """Scale by alpha / sqrt(r) instead of alpha / r."""
    lr_ratio: PositiveFloat = 1.0
    """LoRA+: B's learning rate over A's."""
    embedding_lr_ratio: PositiveFloat = 1.0
    """LoRA+: learning rate of what stands beside an embedding, over that of A elsewhere."""

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.r) if self.rank_stabilised else self.r)

    def of_rank(self, r: int) -> Self:
        """The same scale at another rank."""
        times = math.sqrt(r / self.r) if self.rank_stabilised else r / self.r
        return self.model_copy(update={"r": r, "alpha": self.alpha * times})


class LowRankSettings(FactorSettings):
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of the adapter's inputs set to zero while training."""


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
    A1: Tensor | None
    B1: Tensor | None
    """A second product B1 A1 that does not learn, A1 [R, in], B1 [out, R]: A0 and -B0 after a start of W's own."""

    def __init__(self, settings: FactorSettings, base: Base, generator: torch.Generator | None) -> None:
        """`generator` None: zeros, to be filled from a file."""
        super().__init__()
        self.scale, self.is_embedding = settings.scale, base.is_embedding
        self.dropout = settings.dropout if isinstance(settings, LowRankSettings) else 0.0
        self.lr_ratio = settings.lr_ratio
        self.embedding_lr_ratio = settings.embedding_lr_ratio
        self.A = nn.Parameter(torch.zeros(settings.r, base.in_features, device=base.device))
        self.B = nn.Parameter(torch.zeros(base.out_features, settings.r, device=base.device))
        self.register_buffer("A1", None)
        self.register_buffer("B1", None)
        if generator is not None:
            self.draw(generator)

    @torch.no_grad()
    def draw(self, generator: torch.Generator | None) -> None:
        """A fresh A and B whose product is zero; `generator` (CPU) None: torch's own."""
        A, B = torch.zeros(self.A.shape), torch.zeros(self.B.shape)
        if self.is_embedding:
            B.normal_(generator=generator)
        else:
            bound = 1.0 / math.sqrt(A.shape[1])
            A.uniform_(-bound, bound, generator=generator)
        self.A.copy_(A)
        self.B.copy_(B)

    def start_from(self, A0: Tensor, B0: Tensor) -> None:
        """Begin at B0 A0 and subtract it ever after."""
        with torch.no_grad():
            self.A.copy_(A0)
            self.B.copy_(B0)
        self.A1, self.B1 = self.A.detach().clone(), -self.B.detach()

    def forward(self, x: Tensor, base: Base, *more: Any, **named: Any) -> Tensor:
        gain = self.gain(base)
        if base.is_embedding:
            y = base.output(x)
            A, B, scale = self._factors(y.dtype)
            h = F.embedding(x, A.T, padding_idx=base.layer.padding_idx)  # type: ignore[arg-type]
            wide = torch.promote_types(y.dtype, h.dtype)
            change = (h.to(wide) @ B.to(wide).T * scale).to(y.dtype)
            if base.output_scale is not None:
                change = change * base.output_scale.to(y.dtype)
            return y + change if gain is None else gained(y + change, gain)
        return low_rank(x, base, *self._factors(x.dtype), self.keep(), gain)

    def keep(self) -> KeepMask | None:
        """A fresh mask for the adapter's input; None where nothing is dropped out."""
        if not self.training or self.dropout == 0:
            return None
        return KeepMask.fresh(self.dropout)

    def gain(self, base: Base) -> Tensor | None:
        """A factor [out] on the whole product; LoRA has none."""
        return None

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        wide = torch.promote_types(weight.dtype, self.A.dtype)
        A, B, scale = self._factors(wide)
        return torch.addmm(weight.to(wide), B.to(wide), A.to(wide), alpha=scale).to(weight.dtype), bias

    def _learned(self) -> tuple[Tensor, Tensor]:
        """A and B as the graph sees them."""
        return self.A, self.B

    def _factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, float]:
        """(A [R, in], B [out, R], scale) of the whole change, to be rounded to `dtype`.

        B A + B1 A1 nearly cancel; (B + B1) A - B1 (A - A1) is the same, its differences taken in the factors' own dtype
        or a wider one. Of the gradients of A, the two parts' sum is that of B A.
        """
        A, B = self._learned()
        if self.A1 is None or self.B1 is None:
            return A, B, self.scale
        wide = torch.promote_types(dtype, A.dtype)
        A, A1, B, B1 = (tensor.to(wide) for tensor in (A, self.A1, B, self.B1))
        return torch.cat([A, A - A1]), torch.cat([B + B1, -B1], dim=1), self.scale

    def factors(self) -> tuple[Tensor, Tensor, float] | None:
        return self._factors(self.A.dtype)

    def groups(self) -> dict[str, float]:
        if self.is_embedding:
            return {name: self.embedding_lr_ratio for name, _ in self.named_parameters()}
        return {"B": self.lr_ratio}

    def stored(self) -> dict[str, Stored]:
        A = Stored([tensor for tensor in (self.A, self.A1) if tensor is not None], dim=0)
        B = Stored([tensor for tensor in (self.B, self.B1) if tensor is not None], dim=1)
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


def to_peft(settings: FactorSettings) -> dict[str, Any]:
    """The fields of PEFT's LoraConfig that change the maths. A start of W's own doubles the rank, at the same scale."""
    if getattr(settings, "start", "zero") != "zero":
        settings = settings.of_rank(2 * settings.r)
    return {
        "peft_type": "LORA",
        "r": settings.r,
        "lora_alpha": settings.alpha,
        "lora_dropout": getattr(settings, "dropout", 0.0),
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

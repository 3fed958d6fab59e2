"""ReLoRA: LoRA that is merged and begun anew every so many steps, so that low-rank updates add up to a high rank.

Paper   Lialin et al. 2023, arXiv:2307.05695, algorithm 1 and section 3
When    training is long, as when pre-training goes on, and one low-rank change is not enough. Short runs: LoRA
Maths   y = (W + s P) x + b + s B (A drop(x))     s = alpha / r, or alpha / sqrt(r) if rank_stabilised
        every `restart_every` steps: P <- P + B A, A drawn anew, B = 0; the optimizer's moments of A and B are pruned
        or reset, and the learning rate rises again from nearly 0 to its schedule
Shapes  x [..., in]   W [out, in]   A [r, in]   B [out, r]   P = B1 A1 with A1 [R, in], B1 [out, R], R <= min(in, out)
Init    as LoRA, P = 0: the first forward equals the base model
Merge   W' = W + s (P + B A);  b' = b
Departs the base is never changed: merged products stay in the adapter, as their factors side by side in fp32, so that
        no update is too small for the weight and the base may be held in 4 bits. Past the smaller side of W they are
        multiplied out (in fp64) beside an identity. The paper's warm start in full rank is that of the base, which is
        trained already; for more of it, train in full first and merge. A renewed warm-up ends on the schedule as it is
        then. Pruning keeps both moments of the same numbers: while B = 0 the gradient of A is zero, and a first moment
        without its second would throw A away. It keeps the count of steps too; a reset begins it anew. No restart comes
        after the last step
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor

from tunesmith.adapters import lora
from tunesmith.adapters.base import Adapter, Base, Request, ResetMoments, Rewarm, Stored
from tunesmith.adapters.settings import AdapterSettings
from tunesmith.errors import AdapterError
from tunesmith.kernels.low_rank import low_rank
from tunesmith.settings import Contradiction


class Settings(lora.LowRankSettings):
    method: Literal["relora"] = "relora"
    restart_every: PositiveInt = 200
    """Steps from one merge and restart to the next."""
    rewarm: NonNegativeInt = 20
    """Steps over which the learning rate rises again after a restart."""
    moments_kept: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Share of the optimizer's moments that a restart keeps, the largest (the paper prunes 99 %); 0 resets them all."""

    @model_validator(mode="after")
    def _rewarmed_in_time(self) -> Self:
        if self.rewarm >= self.restart_every:
            raise Contradiction("rewarm", f"of {self.rewarm} steps is not over before the next restart")
        return self


class ReLoRA(lora.LoRA):
    A1: Tensor
    B1: Tensor
    growing: ClassVar[Mapping[str, int]] = {"A1": 0, "B1": 1}

    def __init__(self, settings: Settings, base: Base, generator: torch.Generator | None) -> None:
        super().__init__(settings, base, generator)
        self.settings = settings
        self.A1, self.B1 = self.A.detach()[:0].clone(), self.B.detach()[:, :0].clone()

    def forward(self, x: Tensor, base: Base, *more: Any, **named: Any) -> Tensor:
        if base.is_embedding:
            return super().forward(x, base)
        beside = (self.A1, self.B1) if len(self.A1) else None
        return low_rank(x, base, self.A, self.B, self.scale, self.keep(), beside=beside)

    def _factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, float]:
        """Nothing is taken off: the products are summed as they are."""
        return torch.cat([self.A, self.A1]), torch.cat([self.B, self.B1], dim=1), self.scale

    @torch.no_grad()
    def restart(self) -> None:
        """Merge B A into P and begin anew; what the layer computes stays."""
        self.A1, self.B1 = torch.cat([self.A1, self.A.detach()]), torch.cat([self.B1, self.B.detach()], dim=1)
        out, in_ = self.B1.shape[0], self.A1.shape[1]
        if len(self.A1) > min(out, in_):
            wide = torch.float32 if self.A1.device.type == "mps" else torch.float64
            product = (self.B1.to(wide) @ self.A1.to(wide)).to(self.A1.dtype)
            eye = torch.eye(min(out, in_), dtype=product.dtype, device=product.device)
            self.A1, self.B1 = (eye, product) if in_ <= out else (product, eye)
        self.draw(None)

    def stored(self) -> dict[str, Stored]:
        return {name: replace(stored, grows=True) for name, stored in super().stored().items()}

    def in_file(self, settings: AdapterSettings) -> AdapterSettings:
        """A plain LoRA, wide enough for what was merged."""
        assert isinstance(settings, Settings)
        return settings.of_rank(settings.r + len(self.A1))


def build(settings: Settings, base: Base, generator: torch.Generator | None = None) -> ReLoRA:
    return ReLoRA(settings, base, generator)


def check(settings: Settings, num_steps: int | None, optimizer: str) -> None:
    if num_steps is not None and settings.restart_every >= num_steps:
        raise AdapterError(
            f"adapter.restart_every {settings.restart_every} is not reached: nothing would ever be merged",
            found=f"a budget of {num_steps} steps",
            fix="a smaller adapter.restart_every, a longer budget, or adapter.method=lora",
        )
    if settings.moments_kept and optimizer == "adamw-8bit":
        raise AdapterError(
            "the 8-bit optimizer's moments cannot be pruned", fix="adapter.moments_kept=0, or train.optimizer=adamw"
        )


def for_share(settings: Settings, share: float) -> Settings:
    """As many restarts, each with the same share of its steps spent on the renewed warm-up."""
    restart_every = max(1, int(share * settings.restart_every))
    rewarm = min(round(share * settings.rewarm), restart_every - 1)
    return settings.model_copy(update={"restart_every": restart_every, "rewarm": rewarm})


def on_step(adapters: Mapping[str, Adapter], step: int, num_steps: int | None) -> Sequence[Request]:
    names: list[str] = []
    settings = None
    for path, adapter in adapters.items():
        assert isinstance(adapter, ReLoRA)
        settings = adapter.settings
        if step % settings.restart_every == 0 and step != num_steps:
            adapter.restart()
            names += [f"{path}.{letter}" for letter, _ in adapter.named_parameters()]
    if settings is None or not names:
        return ()
    reset = ResetMoments(tuple(names), settings.moments_kept)
    return (reset, Rewarm(settings.rewarm)) if settings.rewarm else (reset,)


def to_peft(settings: Settings) -> dict[str, Any]:
    return lora.to_peft(settings)


def from_peft(config: dict[str, Any]) -> None:
    """PEFT does not know it: its files are LoRA's."""
    return None

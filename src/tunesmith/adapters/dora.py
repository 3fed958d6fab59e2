"""DoRA: learn each row's length and its direction apart; the direction by a low-rank change.

Paper   Liu et al. 2024, arXiv:2402.09353, eq. 5; the norm is no part of the graph: section 4.3, eq. 11
When    the rank has to be very small, where its paper finds most, and a longer step can be paid for
Maths   y = m (W + s B A) x / |W + s B A| + b      |.|: the norm of each row [out], taken as a number
Shapes  x [..., in]   W [out, in]   A [r, in]   B [out, r]   m [out]
Init    A, B as LoRA; m = |W|: the first forward equals the base model
Merge   W' = m (W + s B A) / |W + s B A|;  b' = b
Departs the paper's code drops out the input of W as well; here dropout is of the low-rank change alone, as in LoRA. The
        norm is reckoned once for each update, from |w|^2, A W^T and A A^T, never from a matrix B A. A row of zeros
        (pruned, or padding of the vocabulary) has no direction: while W + s B A is 0 there, its factor m / |.| is 1,
        where the paper divides 0 by 0. Then B learns as in LoRA; its first step gives the row a direction, and m,
        which starts at 0, its length
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from tunesmith.adapters import lora
from tunesmith.adapters.base import Base, Stored
from tunesmith.kernels.low_rank import row_norms, row_norms_reference, row_squares


class Settings(lora.LowRankSettings):
    method: Literal["dora"] = "dora"


class DoRA(lora.LoRA):
    def __init__(self, settings: Settings, base: Base, generator: torch.Generator | None) -> None:
        super().__init__(settings, base, generator)
        self._squares = row_squares(base.weight())
        self._norm: tuple[Any, Tensor, Tensor | None] | None = None
        self.m = nn.Parameter(self._squares.sqrt().float())

    def gain(self, base: Base) -> Tensor:
        """m / |W + s B A| [out], the norm as a number: once for each update of A and B."""
        now = tuple((tensor._version, tensor.data_ptr()) for tensor in (self.A, self.B))
        if self._norm is None or self._norm[0] != now:
            self._squares = self._squares.to(self.A.device)
            self._norm = (now, *_divisor(*row_norms(base.weight(), self._squares, self.A, self.B, self.scale)))
        return _factor(self.m, *self._norm[1:])

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        wide = torch.promote_types(weight.dtype, self.A.dtype)
        A, B = self.A.to(wide), self.B.to(wide)
        norm = row_norms_reference(weight.to(wide), A.detach(), B.detach(), self.scale)
        direction = torch.addmm(weight.to(wide), B, A, alpha=self.scale)
        return (_factor(self.m, *_divisor(norm, True))[:, None] * direction).to(weight.dtype), bias

    def factors(self) -> None:
        return None

    def stored(self) -> dict[str, Stored]:
        return {**super().stored(), "lora_magnitude_vector": Stored([self.m])}


def _divisor(norm: Tensor, some_empty: bool) -> tuple[Tensor, Tensor | None]:
    """(`norm` [out] with 1 in place of 0; where it is 0, or None where it nowhere is)."""
    if not some_empty:
        return norm, None
    empty = norm == 0
    return norm.masked_fill(empty, 1.0), empty


def _factor(m: Tensor, divisor: Tensor, empty: Tensor | None) -> Tensor:
    """m / |.| [out] in the divisor's dtype; 1, which m does not change, where the norm is 0."""
    factor = m.to(divisor.dtype) / divisor
    return factor if empty is None else factor.masked_fill(empty, 1.0)


def build(settings: Settings, base: Base, generator: torch.Generator | None = None) -> DoRA:
    return DoRA(settings, base, generator)


def to_peft(settings: Settings) -> dict[str, Any]:
    return {**lora.to_peft(settings), "use_dora": True}


def from_peft(config: dict[str, Any]) -> dict[str, Any] | None:
    if config.get("peft_type") != "LORA" or not config.get("use_dora"):
        return None
    return {"method": "dora", **lora.low_rank_fields(config)}

"""Tokens: train the rows of a few tokens alone, in the embedding and in the output head.

Maths   E'[t] = R[i] where t is the i-th trained token, E[t] for all others; the head's rows alike
Shapes  E [vocabulary, hidden]   R [n, hidden], fp32
Init    R = E[t]: the first forward equals the base model, bit for bit in the embedding; in the head as far as a product
        with n rows rounds as one with all of them, which not every processor does
Merge   the rows written into the table
Departs from PEFT's trainable tokens in that the head keeps its bias, and no copy of the table is made per call
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunesmith.adapters.base import Adapter, Base, Stored


class Tokens(Adapter):
    token_ids: Tensor
    """[n] sorted."""

    def __init__(self, base: Base, token_ids: Sequence[int], shared: nn.Parameter | None = None) -> None:
        """`shared` is the other side's rows, where embedding and head are tied."""
        super().__init__()
        self.is_embedding = base.is_embedding
        ids = torch.tensor(sorted(token_ids), dtype=torch.long, device=base.device)
        self.register_buffer("token_ids", ids, persistent=False)
        table = base.weight().t() if base.is_embedding else base.weight()
        wide = torch.promote_types(table.dtype, torch.float32)
        self.rows = nn.Parameter(table.detach()[ids].to(wide)) if shared is None else shared

    def forward(self, x: Tensor, base: Base, *more: Any, **named: Any) -> Tensor:
        y = base.output(x)
        if not base.is_embedding:
            bias = None if base.bias is None else base.bias[self.token_ids]
            return y.index_copy(-1, self.token_ids, F.linear(x, self.rows.to(x.dtype), bias))
        place = torch.searchsorted(self.token_ids, x).clamp_max(len(self.token_ids) - 1)
        new = F.embedding(place, self.rows).to(y.dtype)
        if base.output_scale is not None:
            new = new * base.output_scale.to(y.dtype)
        return torch.where((self.token_ids[place] == x).unsqueeze(-1), new, y)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        rows = self.rows.to(weight.dtype)
        if self.is_embedding:
            return weight.index_copy(1, self.token_ids, rows.t()), bias
        return weight.index_copy(0, self.token_ids, rows), bias

    def stored(self) -> dict[str, Stored]:
        return {"token_adapter.trainable_tokens_delta": Stored([self.rows])}

"""The second contract: virtual tokens, for methods that stand beside no layer but before every document.

Such an adapter stands in the embedding's slot, so that switching, counting, saving and taking it out are what they are
for every other. Before each document it puts `num_tokens` learned ones; the document's own positions go on from there:

    rows()           what the embedding answers for them [p, d], where they run through the model
    keys_values()    or, in place of what the model would compute, their keys and values in every layer
    gated()          or, for one attention module, keys and values that stand beside the row's own, and take no position

A virtual token has an id from `FIRST` on, beyond every vocabulary: prompts, caches and mixed batches carry it as they
carry others. The embedding itself never sees such an id. The policy puts them before documents (models/policy.py),
attention gives them to every document of a flat row (models/attention.py), generation puts them before prompts
(models/generate.py); what is computed for them is read by no loss, and they count as no token of the data.

Such a method cannot be merged, and most do not start as the base: they say so (`mergeable`, `neutral`). What it
computes depends on no layer's storage. The file offers the same as every method's (adapters/base.py), but that `build`
gets the model's Anatomy as its last argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from tunesmith.adapters.base import Adapter, Base
from tunesmith.adapters.settings import AdapterSettings
from tunesmith.settings import Contradiction

FIRST = 1 << 30
"""The id of the first virtual token; those of all adapters are the same."""
UNMERGEABLE = "virtual tokens stand before each document, in no weight"


class VirtualSettings(AdapterSettings):
    targets: Literal["none"] = "none"
    """Virtual tokens stand beside no layer."""
    num_tokens: int = Field(20, gt=0)
    """Virtual tokens before each document."""

    @property
    def virtual_tokens(self) -> int:
        return self.num_tokens

    @property
    def meaningless(self) -> tuple[str, ...]:
        """Settings of every other method that this one cannot heed."""
        return ("last_blocks", "train_in_full")

    @model_validator(mode="after")
    def _nothing_beside(self) -> Self:
        for name in self.meaningless:
            if getattr(self, name):
                raise Contradiction(name, "has no meaning for virtual tokens, which learn alone", "leave it out")
        return self


class Virtual(Adapter):
    neutral = False
    mergeable = False

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens

    @property
    def ids(self) -> range:
        return range(FIRST, FIRST + self.num_tokens)

    def rows(self) -> Tensor | None:
        """[p, d], the virtual tokens as the embedding would put them out; None where they do not run through it."""
        return None

    def keys_values(self) -> Sequence[tuple[Tensor, Tensor]] | None:
        """For each layer, keys [K, p, D] (rotated already) and values [K, p, D']; None: the model computes them."""
        return None

    def gated(self, module: Any) -> tuple[Tensor, Tensor, Tensor] | None:
        """For the attention `module`, keys and values [K, p, D] of a softmax of their own, and the gate [1] on it."""
        return None

    @property
    def gates(self) -> bool:
        """Whether `gated` has something to say of some module."""
        return type(self).gated is not Virtual.gated

    def peft_fields(self) -> dict[str, Any]:
        """What PEFT's config says of this adapter beside its settings."""
        return {}

    def forward(self, x: Tensor, base: Base, *more: Any, **named: Any) -> Tensor:
        y = base.output(ordinary(x))
        place = (x >= FIRST).nonzero(as_tuple=True)
        rows = self.rows()
        if rows is None or not len(place[0]):
            return y
        return y.index_put(place, rows[x[place] - FIRST].to(y.dtype))


def ordinary(ids: Tensor) -> Tensor:
    """`ids` with 0 in place of every virtual token."""
    return torch.where(ids < FIRST, ids, 0)

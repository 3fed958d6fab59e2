"""Prompt tuning: learned vectors before each document, as if they were embedded tokens.

Paper   Lester et al. 2021, arXiv:2104.08691, section 2
When    the base has to stay as it is for many tasks at once, and is large: its paper finds small ones far behind
Maths   the model reads [P; E(x)] in place of E(x): its tokens attend to the p rows of P as to tokens before them
Shapes  P [p, d], d the width of the embedding   E(x) [tokens, d]
Init    rows of the embedding: tokens drawn from the vocabulary, or those of a text. It does not start as the base: even
        a text before the document is read
Merge   cannot be: P stands in no weight. Serve it as an adapter
Departs nothing. Of documents trained in one row, P is computed once for all. NEFTune's noise leaves it out
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tunesmith.adapters.base import Base, Stored
from tunesmith.adapters.targets import Anatomy
from tunesmith.adapters.virtual import UNMERGEABLE, Virtual, VirtualSettings

__all__ = ["UNMERGEABLE", "Settings", "build", "from_peft", "to_peft"]


class Settings(VirtualSettings):
    method: Literal["prompt"] = "prompt"
    init_text: str | None = None
    """Begin as the tokens of this text, repeated or cut to num_tokens; null: as tokens drawn from the vocabulary."""


class Prompt(Virtual):
    def __init__(self, settings: Settings, base: Base) -> None:
        super().__init__(settings.num_tokens)
        self.P = nn.Parameter(torch.zeros(settings.num_tokens, base.out_features, device=base.device))

    @torch.no_grad()
    def begin_as(self, token_ids: Sequence[int], base: Base, model: nn.Module) -> None:
        """P becomes these tokens, embedded; repeated or cut to its length."""
        repeated = [token_ids[i % len(token_ids)] for i in range(self.num_tokens)]
        self.P.copy_(base.output(torch.tensor(repeated, device=base.device)))

    def rows(self) -> Tensor:
        return self.P

    def stored(self) -> dict[str, Stored]:
        return {"prompt_embeddings": Stored([self.P])}


def build(settings: Settings, base: Base, generator: torch.Generator | None, body: Anatomy) -> Prompt:
    adapter = Prompt(settings, base)
    if generator is not None:
        drawn = torch.randint(base.in_features, (settings.num_tokens,), generator=generator).tolist()
        adapter.begin_as(drawn, base, body.modules[""])
    return adapter


def to_peft(settings: Settings) -> dict[str, Any]:
    return {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": settings.num_tokens}


def from_peft(config: dict[str, Any]) -> dict[str, Any] | None:
    if config.get("peft_type") != "PROMPT_TUNING":
        return None
    return {"method": "prompt", "num_tokens": config["num_virtual_tokens"]}

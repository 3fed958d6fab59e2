"""NEFTune: uniform noise on the input embeddings, while training only.

Paper   Jain et al. 2023, arXiv:2310.05914, algorithm 1
Maths   x' = x + (alpha / sqrt(L d)) e,  e ~ Uniform(-1, 1)^(L x d)
Shapes  x [..., d]; L, the tokens of the document that a token belongs to [...]
Departs L counts a document's own tokens, never padding and never the neighbours in a packed batch. What several rows
        share (`data.group_by`) is noised once, with L of the longest of them
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class NEFTune(nn.Module):
    """In evaluation mode it adds nothing. Draws from torch's own generator, whose state is part of a checkpoint."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x [..., d], lengths [...] -> x plus noise, in x's dtype."""
        if not self.training:
            return x
        bound = self.alpha / (lengths * x.shape[-1]).to(torch.float32).sqrt()
        noise = torch.empty(x.shape, dtype=torch.float32, device=x.device).uniform_(-1, 1)
        return (x.float() + noise * bound[..., None]).to(x.dtype)

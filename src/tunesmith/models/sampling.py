"""Logits to tokens: greedy, or temperature with top-k and top-p, one uniform number per row.

    p = softmax(logits / temperature), cut to the top-k and to the smallest set with mass top_p,
    token = the first whose cumulative probability exceeds u

The uniform numbers of a row come from a counter-based generator keyed by (seed, row), so that a row's answer does not
depend on which rows stand beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_FIRST_TRY = 256
"""Candidates sorted at first when cutting to top_p; all of them where these do not hold the mass."""


@dataclass(frozen=True)
class Sampling:
    temperature: float = 0.0
    """0: the likeliest token."""
    top_p: float = 1.0
    top_k: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; it cannot be negative")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it lies in (0, 1]")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; it is at least 1")


def uniforms(seed: int, row: int, count: int) -> np.ndarray:
    """[count] float64 in [0, 1) for row `row`: the same whoever shares the batch."""
    bits = np.random.Philox(key=np.array([seed & (2**64 - 1), row], dtype=np.uint64))
    return np.random.Generator(bits).random(count)


def choose(logits: Tensor, sampling: Sampling, u: Tensor | None, want_logprobs: bool) -> tuple[Tensor, Tensor | None]:
    """logits [B, V], u [B] -> token ids [B] and, if wanted, their log-probabilities [B] float32.

    The log-probability is under softmax(logits / temperature) before any cut (temperature 1 where greedy): what a
    policy gradient needs.
    """
    if sampling.temperature == 0:
        tokens = logits.argmax(-1)
        return tokens, log_probability(logits.float(), tokens) if want_logprobs else None
    assert u is not None
    scaled = logits.float() / sampling.temperature
    if sampling.top_k == 1:
        tokens = scaled.argmax(-1)
    elif sampling.top_k is None and sampling.top_p == 1:
        tokens = _invert(scaled, u)
    else:
        tokens = _cut(scaled, sampling, u)
    return tokens, log_probability(scaled, tokens) if want_logprobs else None


def log_probability(logits: Tensor, tokens: Tensor) -> Tensor:
    """logits [B, V] float32, tokens [B] -> [B]."""
    return logits.gather(1, tokens[:, None]).squeeze(1) - logits.logsumexp(-1)


def _invert(logits: Tensor, u: Tensor) -> Tensor:
    """Where the cumulative probabilities of `logits` [B, V] pass u [B]."""
    mass = (logits - logits.amax(-1, keepdim=True)).exp_().cumsum(-1)
    at = torch.searchsorted(mass, u[:, None].to(mass) * mass[:, -1:], right=True).squeeze(1)
    # u rounds to 1 in float32 once in 2^25 draws: then the last token that has any mass
    last = torch.searchsorted(mass, mass[:, -1:].contiguous(), right=False).squeeze(1)
    return torch.minimum(at, last)


def _cut(logits: Tensor, sampling: Sampling, u: Tensor) -> Tensor:
    """Top-k, then top-p, then a draw."""
    vocabulary = logits.shape[1]
    width = min(sampling.top_k or (_FIRST_TRY if sampling.top_p < 1 else vocabulary), vocabulary)
    values, indices = logits.topk(width, dim=-1)
    if sampling.top_p < 1:
        total = values.logsumexp(-1) if sampling.top_k else logits.logsumexp(-1)
        before = (values - total[:, None]).exp().cumsum(-1)
        if not sampling.top_k and width < vocabulary and bool((before[:, -1] < sampling.top_p).any()):
            values, indices = logits.sort(dim=-1, descending=True)
            before = (values - total[:, None]).exp().cumsum(-1)
        # a token stays while the mass of those before it is below top_p: the first always does
        outside = before[:, :-1] >= sampling.top_p
        values[:, 1:] = values[:, 1:].masked_fill(outside, float("-inf"))
    return indices.gather(1, _invert(values, u)[:, None]).squeeze(1)

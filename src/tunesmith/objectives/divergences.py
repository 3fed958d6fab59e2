"""How far a student's next-token distribution lies from its teacher's, over the whole vocabulary.

forward_kl   KL(teacher | student) = Σ t (log t - log s): covers all that the teacher might say
reverse_kl   KL(student | teacher) = Σ s (log s - log t): says what the teacher would say, and not all of it
jsd          β KL(t | m) + (1 - β) KL(s | m), m = β t + (1 - β) s (Agarwal et al. 2023, arXiv:2306.13649, eq. 1)
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tunesmith.models.policy import Head

Divergence = Literal["forward_kl", "reverse_kl", "jsd"]
CHUNK = 256
"""Positions whose logits are there at a time."""


def divergence(student: Tensor, teacher: Tensor, kind: Divergence, beta: float) -> Tensor:
    """Log-probabilities [n, V] each -> [n]."""
    if kind == "forward_kl":
        return _kl(teacher, student)
    if kind == "reverse_kl":
        return _kl(student, teacher)
    mixed = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * _kl(teacher, mixed) + (1 - beta) * _kl(student, mixed)


def _kl(one: Tensor, other: Tensor) -> Tensor:
    """KL(one | other); what `one` never says counts nothing."""
    return torch.where(one > -torch.inf, one.exp() * (one - other), 0.0).sum(-1)


def weighed(
    hidden: Tensor,
    head: Head,
    taught: Tensor,
    teacher: Head,
    weights: Tensor,
    *,
    kind: Divergence,
    beta: float,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """(Σ w_i D_i, differentiable in `hidden` and `head`; Σ w_i where both say the same token).

    hidden [n, d] and taught [n, d'] of the same positions, weights [n]. Logits of `CHUNK` positions are there at once,
    and made again for the backward pass; tokens that one side alone has rows for are left out of both.
    """
    size = min(len(head.weight), len(teacher.weight))

    def of(h: Tensor, weight: Tensor, bias: Tensor | None, t: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        own = Head(weight, bias, head.scale, head.softcap).logits(h)[:, :size] / temperature
        with torch.no_grad():
            theirs = torch.log_softmax(teacher.logits(t)[:, :size] / temperature, dim=-1)
        said = torch.log_softmax(own, dim=-1)
        same = (said.detach().argmax(-1) == theirs.argmax(-1)).to(w.dtype)
        return (w * divergence(said, theirs, kind, beta)).sum(), (w * same).sum()

    totals = [hidden.new_zeros((), dtype=torch.float32)] * 2
    for start in range(0, len(hidden), CHUNK):
        part = slice(start, start + CHUNK)
        given = (hidden[part], head.weight, head.bias, taught[part], weights[part])
        made = checkpoint(of, *given, use_reentrant=False) if torch.is_grad_enabled() else of(*given)
        totals = [total + one for total, one in zip(totals, made, strict=True)]
    return totals[0], totals[1]

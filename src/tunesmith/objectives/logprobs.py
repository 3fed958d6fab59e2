"""From hidden states to what is learned of them: the shift by one, and log-probabilities by row.

The hidden state of a token foretells the next one. Where several rows share their beginning, the state at its end
foretells the first token of each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tunesmith.data.types import Batch
from tunesmith.kernels.linear_ce import linear_logp
from tunesmith.models.policy import Policy


def places_before(batch: Batch) -> Tensor:
    """For each token of `batch`, where the state stands that foretells it [T]; a document's first has none, and -1."""
    device, segments = batch.token_ids.device, batch.segments
    place = torch.arange(-1, len(batch) - 1, device=device)
    before = [-1 if segment.parent is None else segments[segment.parent].end - 1 for segment in segments]
    place[[segment.start for segment in segments]] = torch.tensor(before, device=device)
    return place


def targets_of(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """(positions [n] whose hidden states predict, target ids [n], weights [n]) of all that is learned in `batch`."""
    before = places_before(batch)
    weights = torch.where(before < 0, 0.0, batch.loss_weights)
    learned = weights.nonzero().squeeze(-1)
    return before[learned], batch.token_ids[learned], weights[learned]


@dataclass(frozen=True)
class RowLogps:
    """Log-probabilities of the learned tokens of each row, in the order of `Batch.leaves`."""

    sums: Tensor
    """[n] differentiable: sum of w_t log p(x_t | x_<t)."""
    counts: Tensor
    """[n] sum of w_t."""

    @property
    def means(self) -> Tensor:
        return self.sums / self.counts


@dataclass(frozen=True)
class TokenLogps:
    """Log-probabilities of the learned tokens of all rows, row after row in the order of `Batch.leaves`."""

    values: Tensor
    """[m] differentiable."""
    row: Tensor
    """[m] which row each is of."""
    weights: Tensor
    """[m]"""


def token_logps(policy: Policy, batch: Batch, temperature: float = 1.0) -> TokenLogps:
    """What `policy` gives each learned token, under softmax(logits / temperature). A token that rows share is there for
    each of them, computed once."""
    rows, places, weights = _learned(batch)
    device = batch.token_ids.device
    unique, which = np.unique(places, return_inverse=True)
    at = torch.from_numpy(unique).to(device)
    head, hidden = policy.head(), policy.hidden(batch)
    logps = linear_logp(
        hidden[places_before(batch)[at]],
        head.weight,
        head.bias,
        batch.token_ids[at],
        head.scale / temperature,
        None if head.softcap is None else head.softcap / temperature,
    )
    return TokenLogps(
        logps[torch.from_numpy(which).to(device)],
        torch.from_numpy(rows).to(device),
        torch.from_numpy(weights).to(device, logps.dtype),
    )


def row_logps(policy: Policy, batch: Batch) -> RowLogps:
    """What `policy` gives each row of `batch`, its tokens as that row weighs them."""
    found = token_logps(policy, batch)
    zeros = torch.zeros(len(batch.leaves), dtype=found.values.dtype, device=found.values.device)
    sums = zeros.index_add(0, found.row, found.weights * found.values)
    return RowLogps(sums, zeros.index_add(0, found.row, found.weights))


def _learned(batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row [m], place in the batch [m], weight [m]) of every learned token of every row."""
    rows, places, weights = [], [], []
    for row, leaf in enumerate(batch.leaves):
        own, example = batch.segments[leaf], batch.examples[leaf]
        shared = 0 if own.parent is None else len(batch.segments[own.parent])
        learned = np.nonzero(example.loss_weights[1:])[0] + 1
        start = 0 if own.parent is None else batch.segments[own.parent].start
        rows.append(np.full(len(learned), row))
        places.append(np.where(learned < shared, start + learned, own.start + learned - shared))
        weights.append(example.loss_weights[learned])
    return np.concatenate(rows), np.concatenate(places), np.concatenate(weights)

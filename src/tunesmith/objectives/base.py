"""The objective contract: what the loop asks of a loss.

The loop has two seams. `steps` says which rows make up each optimizer step and by what its sums are divided, before
the first forward pass; `loss` turns one micro-batch into sums. The loop divides each sum by its denominator, so how a
step is cut into micro-batches, or spread over workers, never changes the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from tunesmith.data.types import Batch, Example
from tunesmith.models.policy import Policy


@dataclass(frozen=True)
class Step:
    """One optimizer step: its rows, and the named denominators of its sums (over the whole step)."""

    examples: Sequence[Example]
    denominators: dict[str, float]
    epoch: float
    """Passes over the rows, after this step."""


@dataclass
class Loss:
    """Sums over one micro-batch, by name. `metrics` are sums too, under the same denominators' names."""

    sums: dict[str, Tensor]
    metrics: dict[str, float]


class Objective(Protocol):
    steps_per_epoch: int
    """Optimizer steps in one pass over the rows."""

    def steps(self, policy: Policy) -> Iterator[Step]:
        """Steps without end, from where `load_state_dict` left off."""
        ...

    def micro_batches(self, step: Step, max_tokens: int) -> list[Batch]:
        """`step` cut into micro-batches of at most `max_tokens` (a longer row stands alone)."""
        ...

    def loss(self, policy: Policy, batch: Batch) -> Loss: ...

    def evaluate(self, policy: Policy, max_tokens: int) -> dict[str, float]:
        """Held-out metrics; `loss` among them. Empty where nothing is held out."""
        ...

    def held_out_lengths(self) -> list[int]:
        """Tokens of each held-out row: no micro-batch of `evaluate` can be smaller than the longest."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON-able: where `steps` stands after the last step it yielded."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

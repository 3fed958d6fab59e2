"""The objective contract: what the loop asks of a loss.

The loop has two seams. `steps` says which rows make up each optimizer step and by what its sums are divided, before
the first forward pass; `loss` turns one micro-batch into sums. The loop divides each sum by its denominator, so how a
step is cut into micro-batches, or spread over workers, never changes the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from tunesmith.adapters.heads import ClassHead
from tunesmith.data.types import Batch, Example
from tunesmith.models.policy import Policy

Stage = Callable[[str], AbstractContextManager[Callable[[float], None]]]
"""Shows a piece of work by its name; what it yields is told the share that is done."""


@dataclass(frozen=True)
class Step:
    """One optimizer step: its rows, and the named denominators of its sums and metrics (over the whole step).

    Rows that belong together (the sides of a pair) stand side by side.
    """

    examples: Sequence[Example]
    denominators: dict[str, float]
    epoch: float
    """Passes over the rows, after this step."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What is known of the step before its first forward pass."""
    notes: tuple[str, ...] = ()
    """Lines for a person, told once the step is whole."""


@dataclass
class Loss:
    """Sums over one micro-batch, by name; `Step.denominators` has each name. A metric whose denominator is 0 is left
    out of the step."""

    sums: dict[str, Tensor]
    """Learned: each is divided by its denominator, and all are added."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Shown alone, without gradient."""


@dataclass(frozen=True)
class Foreseen:
    """What a plan tries a step of, before there is a model (plan/step.py)."""

    objective: Any
    """An `Objective`: its steps hold what those of the run will hold, without `begin`."""
    rows: Sequence[Example]
    """All that its steps are made of; those that belong together side by side."""
    note: str = ""
    """For a person: what of the run is not in it."""
    is_own: bool = True
    """The rows are the run's; else they stand in for rows that are not known yet."""
    teacher: tuple[str, str] | None = None
    """Name and storage of a model that lies beside the one that learns, and reads each batch too."""
    written: int = 0
    """Answers that the model writes at a time, of the rows' length."""
    sides: int = 1
    """Rows that are counted as one in `train.batch_size`: 2 where they are the sides of pairs."""


class Objective(Protocol):
    steps_per_epoch: int
    """Optimizer steps in one pass over the rows; 0: `begin` does it all, and there are none."""
    head: ClassHead | None
    """The classification head that is learned; None: the model ends in words."""

    def begin(
        self,
        policy: Policy,
        *,
        num_steps: int | None,
        max_tokens: int,
        cache: Path,
        stage: Stage,
    ) -> list[str]:
        """Called once, before the first step: what can be computed beforehand. Returns lines for a person.

        num_steps  of the whole run; None where it ends by the clock
        max_tokens of a batch that needs no gradient
        cache      a folder for what another run may use again
        stage      shows a piece of work

        An objective that finds something there has `kept_seconds` afterwards: what that took when it was computed.
        """
        ...

    def steps_until(self, tokens: int) -> int | None:
        """Steps after which at least so many tokens were read from the first step on, whole rows counted each time
        they come; None where rows are written while training. Says the same wherever `steps` stands."""
        ...

    def foreseen(self, flat: bool) -> Foreseen:
        """What a plan looks at in its place, laid out as `begin` will lay it out. `flat`: batches run without padding.
        Nothing changes in the objective itself."""
        ...

    def steps(self, policy: Policy) -> Iterator[Step]:
        """Steps without end, from where `load_state_dict` left off."""
        ...

    def micro_batches(self, step: Step, max_tokens: int) -> list[Batch]:
        """`step` cut into micro-batches of at most `max_tokens`; a longer row, or rows that belong together, stand
        alone."""
        ...

    def loss(self, policy: Policy, batch: Batch) -> Loss: ...

    def evaluate(self, policy: Policy, max_tokens: int) -> dict[str, float]:
        """Held-out metrics; `loss` among them. Empty where nothing is held out."""
        ...

    def held_out_lengths(self) -> list[int]:
        """Tokens of each held-out row: no micro-batch of `evaluate` can be smaller than the longest."""
        ...

    def conclude(self, policy: Policy, max_tokens: int, folder: Path) -> list[str]:
        """Called once the run has ended, with the weights that are published: lines for a person, if anything is worth
        one. Pictures go into `folder`, the run's."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON-able: where `steps` stands after the last step it yielded."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

"""What the loop tells whoever listens: the run folder, the progress display, loggers, and the user's own callbacks.

A listener is any function of one event. One that returns the string "stop" ends the run after the current step, with
a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Started:
    """Before the first step. `num_steps` is None for a budget in minutes; `first_step` > 0 after a resume."""

    num_steps: int | None
    minutes: float | None
    first_step: int
    seconds_before: float


@dataclass(frozen=True)
class StepDone:
    """After an optimizer step. Rates count real tokens; seconds count training alone."""

    step: int
    num_steps: int | None
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    num_tokens: int
    num_learned: int
    seconds: float
    train_seconds: float
    tokens_per_second: float
    seconds_left: float | None
    memory_bytes: int
    metrics: dict[str, float] = field(default_factory=dict)
    """What the objective shows beside its loss."""


@dataclass(frozen=True)
class Evaluated:
    step: int
    metrics: dict[str, float]
    seconds: float
    best: bool


@dataclass(frozen=True)
class Saved:
    step: int
    path: str
    seconds: float


@dataclass(frozen=True)
class Noted:
    """Something worth a line: a smaller micro-batch, a padded fallback, an early stop."""

    text: str


@dataclass(frozen=True)
class Ended:
    step: int
    reason: str
    train_seconds: float
    evaluation_seconds: float
    num_tokens: int
    best_step: int | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)
    saving_seconds: float = 0.0


@dataclass(frozen=True)
class BrokenOff:
    """In place of `Ended`, when a signal or an error ends a run before its time; that error is raised afterwards.

    What a listener raises here is lost, since the error that ended the run goes first.
    """

    step: int
    reason: str
    status: str
    """interrupted, or failed."""
    train_seconds: float
    evaluation_seconds: float
    num_tokens: int
    best_step: int | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)
    saving_seconds: float = 0.0


Event = Started | StepDone | Evaluated | Saved | Noted | Ended | BrokenOff
Listener = Callable[[Event], object]

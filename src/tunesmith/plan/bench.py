"""What trials of one plan share: hollow models, how they run, and the micro-batch that is tried.

A hollow model is built once for each set of model settings and number of blocks. A trial gets another one of the same
ghosts (`hollow.again`), puts its adapter there, and throws it away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.adapters.attach import Switch
from tunesmith.data.types import Answer, Batch, Example
from tunesmith.errors import ModelError
from tunesmith.ghost import Meter
from tunesmith.models.hollow import are_alike, device_of, hollow_model, hollow_policy
from tunesmith.models.load import without_weights
from tunesmith.models.policy import Policy, flat_batch
from tunesmith.models.settings import ModelSettings
from tunesmith.models.twin import Ways, ways
from tunesmith.objectives.base import Foreseen, Objective, Step

LOOKED_AT = 20
"""Steps among which the largest micro-batch is sought, beside that of the longest row."""


@dataclass(frozen=True)
class Cut:
    """Rows of at most `length` tokens: longer ones are left out, or cut."""

    length: int
    truncates: bool

    def of(self, rows: Sequence[Example]) -> list[Example]:
        """What is left of `rows`; of a pair both sides or none."""
        kept = []
        for row in rows:
            if len(row) > self.length and self.truncates:
                ids, weights = row.token_ids[: self.length], row.loss_weights[: self.length]
                made = replace(row, token_ids=ids, loss_weights=weights)
                kept += [made] if np.any(weights[1:]) or not np.any(row.loss_weights[1:]) else []
            elif len(row) <= self.length:
                kept.append(row)
        sides = [row.origin for row in kept if isinstance(row, Answer)]
        whole = {row.origin for row in rows if isinstance(row, Answer)}
        expected = [row.origin for row in rows if isinstance(row, Answer)]
        broken = {origin for origin in whole if sides.count(origin) != expected.count(origin)}
        return [row for row in kept if not isinstance(row, Answer) or row.origin not in broken]


@dataclass(frozen=True)
class Work:
    """What is done, however fast."""

    flops: float = 0.0
    """Of matrix products, as run."""
    moved: float = 0.0
    """Bytes that are written."""
    operations: float = 0.0
    attended: float = 0.0
    """Flops between tokens, among all: they grow with the square of a row's length."""

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Chosen:
    """The micro-batch that is tried."""

    step: Step
    batch: Batch
    is_only: bool
    """Its step has no other."""
    share: float
    """Tokens of the batches that were looked at, of those of their rows: less than 1 where rows share a prompt."""


class Bench:
    """Shared by all trials of a plan. `settings`: of the recipe's own model."""

    def __init__(
        self,
        settings: ModelSettings,
        tokenizer: PreTrainedTokenizerBase,
        objective: Objective,
        *,
        trust_remote_code: bool = False,
    ) -> None:
        self.settings, self.tokenizer, self.objective = settings, tokenizer, objective
        self.trust_remote_code = trust_remote_code
        self._known: dict[Any, Any] = {}
        self._models: dict[tuple[str, int | None], PreTrainedModel] = {}
        self._chosen: dict[tuple[int, Cut | None], Chosen] = {}

    @cached_property
    def bare(self) -> PreTrainedModel | None:
        """The recipe's model on no device; None where it cannot be built from its config."""
        return without_weights(self.settings, trust_remote_code=self.trust_remote_code, head=self.objective.head)

    @cached_property
    def ways(self) -> Ways:
        if self.bare is None:
            raise ModelError(
                f"{self.settings.name} cannot be built from its config alone", fix="tunesmith rehearse loads it"
            )
        return ways(self.bare)

    @cached_property
    def blocks_are_alike(self) -> bool:
        return self.bare is not None and are_alike(self.bare)

    @cached_property
    def foreseen(self) -> Foreseen:
        return self.objective.foreseen(self.ways.flat)

    def meter(self) -> Meter:
        return Meter(device_of(self.settings), self._known)

    def model(self, settings: ModelSettings, blocks: int | None = None) -> PreTrainedModel:
        """The hollow model that trials take others of. Asked for while no meter is on: two would count it twice."""
        key = (settings.model_dump_json(), blocks)
        if key not in self._models:
            decided = self.ways
            with self.meter().on() as own:
                self._models[key] = hollow_model(
                    settings,
                    self.tokenizer,
                    own,
                    trust_remote_code=self.trust_remote_code,
                    head=self.objective.head,
                    blocks=blocks,
                    decided=decided,
                )
        return self._models[key]

    def teacher(self, rows: int, tokens: int) -> tuple[int, Work]:
        """Of a teacher: the bytes of its weights and of its reading `tokens` in `rows`, and that work; else nothing."""
        if self.foreseen.teacher is None:
            return 0, Work()
        name, storage = self.foreseen.teacher
        told = {"name": name, "storage": storage, "dtype": self.settings.dtype, "device": self.settings.device}
        settings = ModelSettings.model_validate(told)
        with self.meter().on() as meter:
            model = hollow_model(settings, self.tokenizer, meter, trust_remote_code=self.trust_remote_code)
            meter.start()
            with torch.no_grad():
                row = torch.zeros(-(-tokens // rows), dtype=torch.long)
                hollow_policy(model, Switch()).hidden(flat_batch([row] * rows))
            return meter.peak, Work(meter.flops, meter.moved, meter.operations, meter.attended)

    def chosen(self, policy: Policy, micro_tokens: int, cut: Cut | None = None) -> Chosen | None:
        """The largest micro-batch of the next steps, or of one with the longest row of all; None: `cut` leaves none.
        `policy`: for an objective that asks it before its steps are whole."""
        key = (micro_tokens, cut)
        if key not in self._chosen:
            found = largest(self.foreseen, policy, micro_tokens, cut)
            if found is None:
                return None
            self._chosen[key] = found
        return self._chosen[key]


def largest(foreseen: Foreseen, policy: Policy, micro_tokens: int, cut: Cut | None = None) -> Chosen | None:
    objective = foreseen.objective
    before = objective.state_dict()
    steps = list(islice(objective.steps(policy), min(LOOKED_AT, max(1, objective.steps_per_epoch))))
    objective.load_state_dict(before)
    own, taken = sum(len(row) for step in steps for row in step.examples), 0
    if foreseen.rows:
        rows = foreseen.rows if cut is None else cut.of(foreseen.rows)
        steps.append(replace(steps[0], examples=_with_siblings(rows) if rows else []))
    best: tuple[tuple[int, int], Step, Batch, bool] | None = None
    for number, step in enumerate(steps):
        if cut is not None:
            step = replace(step, examples=cut.of(step.examples))
        if not step.examples:
            continue
        batches = objective.micro_batches(step, micro_tokens)
        taken += sum(map(len, batches)) if number < len(steps) - bool(foreseen.rows) else 0
        widest = max(batches, key=lambda batch: _size(batch, policy))
        size = _size(widest, policy)
        if best is None or size > best[0]:
            best = size, step, widest, len(batches) == 1
    return None if best is None else Chosen(*best[1:], share=taken / max(1, own))


def _with_siblings(rows: Sequence[Example]) -> list[Example]:
    """The longest row, and those that came of the same one: the sides of a pair stand side by side."""
    place = max(range(len(rows)), key=lambda index: len(rows[index]))
    first = last = place
    while first and rows[first - 1].origin == rows[place].origin:
        first -= 1
    while last + 1 < len(rows) and rows[last + 1].origin == rows[place].origin:
        last += 1
    return [rows[index] for index in range(first, last + 1)]


def _size(batch: Batch, policy: Policy) -> tuple[int, int]:
    """The places that it takes (padding too), and its learned tokens."""
    rows = [len(segment) for segment in batch.segments]
    places = sum(rows) if policy.flat else len(rows) * max(rows) ** 2  # written-out attention grows with the square
    return places, batch.num_learned

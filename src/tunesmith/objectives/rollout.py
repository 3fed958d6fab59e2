"""What one sampling gave, and how it goes into a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from tunesmith.data.types import Origin, Sampled
from tunesmith.objectives.rewards import Completion, Told


@dataclass
class Rollout:
    """What one sampling gave: completions with their advantages, and what is told of them."""

    samples: list[Sampled]
    sampled: list[np.ndarray]
    """By sample, the sampler's log-probabilities [m]."""
    metrics: dict[str, float]
    notes: list[str]
    epoch: float
    number: int
    old: dict[int, list[float]]
    """By sample, the trainer's log-probabilities before the first update."""
    differs: list[bool] = field(default_factory=list)
    """By prompt, whether its completions did not all earn the same."""
    iteration: int = 0
    """Updates that were made from it, the one under way among them."""


def joined(groups: Sequence[tuple[list[Sampled], list[np.ndarray]]], like: Rollout, epoch: float) -> Rollout:
    """One rollout of `groups`, its samples numbered anew."""
    samples = [sample for own, _ in groups for sample in own]
    sampled = [values for _, own in groups for values in own]
    numbered = [replace(sample, number=place) for place, sample in enumerate(samples)]
    return Rollout(numbered, sampled, like.metrics, like.notes, epoch, like.number, {})


_PLAIN = ("metrics", "notes", "epoch", "number", "iteration")


def as_json(rollout: Rollout) -> dict[str, Any]:
    return {
        "samples": [_sample_as_json(sample) for sample in rollout.samples],
        "sampled": [values.tolist() for values in rollout.sampled],
        "old": {str(number): list(values) for number, values in rollout.old.items()},
        **{name: getattr(rollout, name) for name in _PLAIN},
    }


def from_json(held: dict[str, Any]) -> Rollout:
    return Rollout(
        [_sample_from_json(values) for values in held["samples"]],
        [np.array(values, dtype=np.float32) for values in held["sampled"]],
        old={int(number): values for number, values in held["old"].items()},
        **{name: held[name] for name in _PLAIN},
    )


def _sample_as_json(sample: Sampled) -> dict[str, Any]:
    return {
        "token_ids": sample.token_ids.tolist(),
        "loss_weights": sample.loss_weights.tolist(),
        "origin": [sample.origin.source, sample.origin.row],
        "advantage": sample.advantage,
        "number": sample.number,
        "prompt_tokens": sample.prompt_tokens,
        "reference": None if sample.reference is None else sample.reference.tolist(),
    }


def _sample_from_json(values: dict[str, Any]) -> Sampled:
    return Sampled(
        np.array(values["token_ids"], dtype=np.int64),
        np.array(values["loss_weights"], dtype=np.float32),
        Origin(*values["origin"]),
        advantage=values["advantage"],
        number=values["number"],
        prompt_tokens=values["prompt_tokens"],
        reference=None if values["reference"] is None else np.array(values["reference"], dtype=np.float32),
    )


def shown(completions: Sequence[Completion], rewards: Tensor, said: Told) -> list[str]:
    """The best and the worst completion of a step."""
    known = [(float(reward), place) for place, reward in enumerate(rewards) if not bool(reward.isnan())]
    if not known:
        return []
    chosen = dict.fromkeys((max(known)[1], min(known)[1]))
    more = {
        place: "".join(f"  {name} {values[place]}" for name, values in said.extra.items() if place < len(values))
        for place in chosen
    }
    return [f"  reward {float(rewards[place]):.2f}: {_short(completions[place])}{more[place]}" for place in chosen]


def _short(completion: Completion) -> str:
    asked = completion.prompt if isinstance(completion.prompt, str) else str(completion.prompt[-1].get("content", ""))
    ends = ["".join(c if c.isprintable() else " " for c in " ".join(text.split())) for text in (asked, completion.text)]
    return " -> ".join(text if len(text) <= 70 else f"… {text[-68:]}" for text in ends)

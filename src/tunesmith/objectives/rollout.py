"""What one sampling gave, and how it goes into a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunesmith.data.types import Origin, Sampled
from tunesmith.objectives.environment import Played
from tunesmith.objectives.policy_losses import Kl, kl
from tunesmith.objectives.rewards import Completion, Told

SHOWN = 5
"""Completions in the table of a step."""


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


def price(sampled: Sequence[np.ndarray], samples: Sequence[Sampled], estimator: Kl) -> Tensor:
    """[n] the estimated divergence of each completion from the reference; `sampled`: by sample its log-probabilities
    [m], beside which its `reference` stands."""
    pairs = [(torch.from_numpy(own), torch.from_numpy(s.reference)) for own, s in zip(sampled, samples, strict=True)]
    return torch.stack([kl(own.double(), reference.double(), estimator).sum() for own, reference in pairs])


def spreads(rewards: Tensor, n: int) -> tuple[list[bool], dict[str, float]]:
    """By prompt, whether its `n` completions all earned the same; and what is told of that. rewards [prompts · n]."""
    known = [group[~group.isnan()] for group in rewards.view(-1, n)]
    equal = [bool((group == group[:1]).all()) for group in known]
    apart = [float(group.std()) for group in known if len(group) > 1]
    mean = {"reward_std": sum(apart) / len(apart)} if apart else {}
    return equal, {**mean, "frac_reward_zero_std": sum(equal) / len(equal)}


def lengths_of(made: Sequence[Played]) -> dict[str, float]:
    """The mean number of tokens that were sampled, and the share of completions that met the limit."""
    return {
        "completions/mean_length": sum(one.num_sampled for one in made) / len(made),
        "completions/clipped_ratio": sum(one.is_cut for one in made) / len(made),
    }


def shown(
    made: Sequence[Played],
    completions: Sequence[Completion],
    rewards: Tensor,
    parts: Mapping[str, Sequence[float]],
    said: Told,
) -> list[str]:
    """A table of completions of a step from the best to the worst, one line each: what was earned (and of several
    rewards each), how long it is, what the rewards say of it, and the ends of prompt and answer."""
    earned = {place: value for place, value in enumerate(rewards.tolist()) if not math.isnan(value)}
    ranked = sorted(earned, key=lambda place: -earned[place])
    if not ranked:
        return []
    last = len(ranked) - 1
    chosen = [ranked[place] for place in sorted({round(last * share / (SHOWN - 1)) for share in range(SHOWN)})]
    columns = {"reward": [_figure(earned[place]) for place in chosen]}
    if len(parts) > 1:
        columns |= {name: [_figure(own[place]) for place in chosen] for name, own in parts.items()}
    columns["tokens"] = [f"{made[place].num_sampled}{'+' if made[place].is_cut else ''}" for place in chosen]
    for name, values in said.extra.items():
        columns[name] = [str(values[place])[:20] if place < len(values) else "" for place in chosen]
    columns["prompt -> answer"] = [_short(completions[place]) for place in chosen]
    return _table(columns)


def _figure(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def _table(columns: Mapping[str, Sequence[str]]) -> list[str]:
    """Lines of a table whose last column alone is not aligned to the right."""
    lines = [list(columns), *zip(*columns.values(), strict=True)]
    widths = [max(map(len, own)) for own in list(zip(*lines, strict=True))[:-1]]
    return [
        "  " + "  ".join([*(text.rjust(width) for text, width in zip(line, widths, strict=False)), line[-1]])
        for line in lines
    ]


def _short(completion: Completion) -> str:
    asked = completion.prompt if isinstance(completion.prompt, str) else str(completion.prompt[-1].get("content", ""))
    ends = ["".join(c if c.isprintable() else " " for c in " ".join(text.split())) for text in (asked, completion.text)]
    return " -> ".join(text if len(text) <= 70 else f"… {text[-68:]}" for text in ends)

"""From what was sampled to what is trained: completions with what they earned, the groups of them that make a step, and
how a rollout goes into a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunesmith.data.types import Origin, Sampled
from tunesmith.objectives.environment import Played
from tunesmith.objectives.policy_losses import CLIP_RATIOS, Kl, PolicySettings, kl, overlong
from tunesmith.objectives.rewards import Completion, Reward, total

# ---- what was sampled, as it was judged ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """One completion, and what it earned."""

    played: Played
    completion: Completion
    values: tuple[float, ...]
    """Of each reward; NaN where it does not apply."""
    earned: float
    """In all, the environment's part with it; NaN where nothing judged it."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What rewards say of it beside their values."""


Group = Sequence[Judged]
"""The completions of one prompt."""


@dataclass(frozen=True)
class Draw:
    """One sampling: a group of each of its prompts."""

    groups: list[Group]
    metrics: dict[str, float]
    """What rewards say of all of it beside their values."""
    epoch: float
    """Passes over the rows, after it."""


def completion_of(played: Played) -> Completion:
    """The last answer of it, and what that is to."""
    prompt = played.as_prompt()
    ids = played.token_ids[len(played.token_ids) - played.last :]
    return Completion(prompt.given, played.said[-1], ids, prompt.columns, prompt.origin, prompt)


def judged_of(
    made: Sequence[Played],
    completions: Sequence[Completion],
    rewards: Sequence[Reward],
    values: Sequence[Sequence[float]],
    extra: Mapping[str, Sequence[Any]],
) -> list[Judged]:
    """`values`: by reward, one for each completion. `extra`: by name, one for each completion or fewer."""
    by_completion = list(zip(*values, strict=True)) if rewards else [()] * len(made)
    totals = total(values, rewards) if rewards else [math.nan] * len(made)
    judged = []
    for place, one in enumerate(made):
        parts = [part for part in (one.earned, totals[place]) if not math.isnan(part)]
        earned = sum(parts) if parts else math.nan
        more = {name: own[place] for name, own in extra.items() if place < len(own)}
        judged.append(Judged(one, completions[place], by_completion[place], earned, more))
    return judged


def differs(group: Group) -> bool:
    """Whether its completions did not all earn the same, those aside that nobody judged. What length or divergence cost
    is no part of that: the rewards say whether a prompt has something to teach."""
    known = [one.earned for one in group if not math.isnan(one.earned)]
    return any(value != known[0] for value in known)


def are_enough(draws: Sequence[Draw]) -> bool:
    """Whether as many groups differ as the first draw has prompts."""
    return sum(differs(group) for draw in draws for group in draw.groups) >= len(draws[0].groups)


def apart(draws: Sequence[Draw]) -> list[Group]:
    """The groups that differ, at most as many as the first draw has prompts; where none does, those of that draw."""
    found = [group for draw in draws for group in draw.groups if differs(group)]
    return found[: len(draws[0].groups)] or draws[0].groups


# ---- what is trained -------------------------------------------------------------------------------------------------


@dataclass
class Rollout:
    """What several updates are made from: completions with their advantages, and what is told of them."""

    samples: list[Sampled]
    sampled: list[np.ndarray]
    """By sample, the sampler's log-probabilities of what is learned of it [m]."""
    metrics: dict[str, float]
    notes: list[str]
    epoch: float
    old: dict[int, list[float]] = field(default_factory=dict)
    """By sample, the trainer's log-probabilities before the first update."""
    iteration: int = 0
    """Updates that were made from it, the one under way among them."""


def sample_of(played: Played, number: int, *, mask_truncated: bool) -> Sampled:
    """Its tokens; of one that met its limit none is learned where that is asked for."""
    is_left_out = played.is_cut and mask_truncated
    own = np.array(played.learned, dtype=np.float32) * (not is_left_out)
    return Sampled(
        np.array([*played.prompt_ids, *played.token_ids], dtype=np.int64),
        np.concatenate([np.zeros(len(played.prompt_ids), dtype=np.float32), own]),
        played.asked.origin,
        number=number,
        prompt_tokens=len(played.prompt_ids),
    )


def worth(
    judged: Sequence[Judged], samples: Sequence[Sampled], sampled: Sequence[np.ndarray], settings: PolicySettings
) -> Tensor:
    """[n] what advantages are reckoned from: what each earned, less what its length and its divergence cost."""
    made = torch.tensor([one.earned for one in judged], dtype=torch.float64)
    if settings.overlong_buffer is not None:
        lengths = torch.tensor([one.played.num_sampled for one in judged], dtype=torch.float64)
        made = made + overlong(lengths, settings.max_completion_length, settings.overlong_buffer)
    if settings.beta and settings.kl_in == "reward":
        made = made - settings.beta * price(sampled, samples, settings.kl)
    return made


def price(sampled: Sequence[np.ndarray], samples: Sequence[Sampled], estimator: Kl) -> Tensor:
    """[n] the estimated divergence of each completion from the reference; `sampled`: by sample its log-probabilities
    [m], beside which its `reference` stands."""
    pairs = [(torch.from_numpy(own), torch.from_numpy(s.reference)) for own, s in zip(sampled, samples, strict=True)]
    return torch.stack([kl(own.double(), reference.double(), estimator).sum() for own, reference in pairs])


def moving(samples: Sequence[Sampled], settings: PolicySettings) -> list[Sampled]:
    """Those that have a gradient; where none has, the shortest, so that the update is that of a gradient of 0."""
    in_loss = settings.beta > 0 and settings.kl_in == "loss"
    learned = [sample for sample in samples if sample.num_learned]
    found = [sample for sample in learned if sample.advantage or in_loss]
    return found or sorted(learned or samples, key=len)[:1]


def denominators(samples: Sequence[Sampled], settings: PolicySettings) -> dict[str, float]:
    """Of a step: what its sums are divided by. `sampling_gap` and `kl` are of what is run alone."""
    tokens = max(float(sum(sample.num_learned for sample in samples)), 1.0)
    run = float(sum(sample.num_learned for sample in moving(samples, settings)))
    by = {"sequences": len(samples), "tokens": tokens, "constant": len(samples) * settings.max_completion_length}
    ratios = tokens if settings.importance_sampling_level == "token" else len(samples)
    return {
        "loss": by[settings.aggregation],
        **dict.fromkeys(("sampling_gap", "kl"), run),
        **dict.fromkeys(CLIP_RATIOS, ratios),
    }


# ---- in a checkpoint -------------------------------------------------------------------------------------------------

_PLAIN = ("metrics", "notes", "epoch", "iteration")


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

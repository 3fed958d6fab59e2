"""What is told of a step of online learning: figures, and a table of what was written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from tunesmith.objectives.environment import World
from tunesmith.objectives.rewards import Completion, Reward, means_of
from tunesmith.objectives.rollout import Draw, Group, Judged, differs

SHOWN = 5
"""Completions in the table of a step."""


def mean_reward(judged: Sequence[Judged]) -> dict[str, float]:
    """Nothing where nobody judged any."""
    known = [one.earned for one in judged if not math.isnan(one.earned)]
    return {"reward": sum(known) / len(known)} if known else {}


def spread_of(groups: Sequence[Group]) -> dict[str, float]:
    """The mean of the groups' standard deviations, and the share of groups that do not differ, by what was earned."""
    known = [[one.earned for one in group if not math.isnan(one.earned)] for group in groups]
    stds = [float(torch.tensor(own, dtype=torch.float64).std()) for own in known if len(own) > 1]
    mean = {"reward_std": sum(stds) / len(stds)} if stds else {}
    return {**mean, "frac_reward_zero_std": sum(not differs(group) for group in groups) / len(groups)}


def parts_of(judged: Sequence[Judged], rewards: Sequence[Reward], world: World | None) -> dict[str, float]:
    """The mean of what each reward gave, and of what the world did; with a world, the mean number of turns."""
    means = means_of(rewards, [[one.values[place] for one in judged] for place in range(len(rewards))])
    if world is not None:
        means[f"rewards/{world.short}"] = sum(one.played.earned for one in judged) / len(judged)
        means["turns"] = sum(len(one.played.said) for one in judged) / len(judged)
    return means


def lengths_of(judged: Sequence[Judged]) -> dict[str, float]:
    """The mean number of tokens that were sampled, and the share of completions that met the limit."""
    return {
        "completions/mean_length": sum(one.played.num_sampled for one in judged) / len(judged),
        "completions/clipped_ratio": sum(one.played.is_cut for one in judged) / len(judged),
    }


def entropy_of(draws: Sequence[Draw]) -> dict[str, float]:
    """The mean of -log p over every token that was sampled, by the sampler: prompts that are solved count, and so does
    what is not trained."""
    everyone = [one for draw in draws for group in draw.groups for one in group]
    values = [value for one in everyone for value in one.played.logprobs]
    return {"entropy": -sum(values) / len(values)} if values else {}


def said_of(draws: Sequence[Draw]) -> dict[str, float]:
    """What rewards say beside their values, in the mean over the draws that they said it of."""
    names = dict.fromkeys(name for draw in draws for name in draw.metrics)
    said = {name: [draw.metrics[name] for draw in draws if name in draw.metrics] for name in names}
    return {name: sum(own) / len(own) for name, own in said.items()}


def dropped(draws: Sequence[Draw], groups: Sequence[Group]) -> dict[str, float]:
    """How often prompts were drawn for a step, and how many of their groups are not among those that are trained."""
    return {
        "groups/draws": float(len(draws)),
        "groups/dropped": float(sum(len(draw.groups) for draw in draws) - len(groups)),
    }


# ---- the table -------------------------------------------------------------------------------------------------------


def shown(judged: Sequence[Judged], rewards: Sequence[Reward]) -> list[str]:
    """A table of completions of a step from the best to the worst, one line each: what was earned (and of several
    rewards each), how long it is, what the rewards say of it, and the ends of prompt and answer."""
    ranked = sorted((one for one in judged if not math.isnan(one.earned)), key=lambda one: -one.earned)
    if not ranked:
        return []
    last = len(ranked) - 1
    chosen = [ranked[place] for place in sorted({round(last * share / (SHOWN - 1)) for share in range(SHOWN)})]
    columns = {"reward": [_figure(one.earned) for one in chosen]}
    if len(rewards) > 1:
        columns |= {name: [_figure(one.values[at]) for one in chosen] for at, name in enumerate(_names(rewards))}
    columns["tokens"] = [f"{one.played.num_sampled}{'+' if one.played.is_cut else ''}" for one in chosen]
    for name in dict.fromkeys(name for one in judged for name in one.extra):
        columns[name] = [str(one.extra.get(name, ""))[:20] for one in chosen]
    columns["prompt -> answer"] = [_short(one.completion) for one in chosen]
    return _table(columns)


def _names(rewards: Sequence[Reward]) -> list[str]:
    """What each is called among the metrics."""
    return [name.removeprefix("rewards/") for name in means_of(rewards, [[0.0]] * len(rewards))]


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

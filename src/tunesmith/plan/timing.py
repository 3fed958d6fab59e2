"""How long a step takes, seen on a part of the model: as many of its blocks, at their true width, as are quickly made,
with random numbers, learn from the micro-batch that the plan looks at.

Maths   s(n) = s(2) + (n - 2) (s(m) - s(2)) / (m - 2)       s: seconds of a model of n blocks; m blocks were made
        factor = s(n) / pace(n)                             pace: what plan/speed.py says of the same work
Where all blocks are made, s(n) is what was seen. Every forecast is multiplied by the factor: other methods and settings
are as much faster or slower as their work says. Storages of few bits and a choice of the last blocks are seen without
either. Nothing is read from the model's files.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel

from tunesmith.adapters.attach import Switch
from tunesmith.adapters.targets import anatomy
from tunesmith.machine import memory_free_bytes
from tunesmith.models import attention
from tunesmith.models.fuse import fuse
from tunesmith.models.load import pick_device, pick_dtype, resize_for
from tunesmith.models.policy import Policy
from tunesmith.plan.bench import Bench
from tunesmith.plan.planner import FEW, MORE, Planner
from tunesmith.plan.step import prepared
from tunesmith.recipe import Recipe

WEIGHTS = 600e6
"""Bytes of weights that are quickly made."""
REPEATS, ENOUGH = 3, 4.0
"""Passes whose median is taken, after one that compiles; fewer where these seconds are spent."""
HALF = 2
"""Bytes of a number in half precision."""
LARGEST = 6e9
"""Bytes of a part, its tables of tokens too: drawing the numbers of more takes half a minute."""
ROOM = 4
"""So many times the part's weights have to be free, or nothing is tried."""


def factor(planner: Planner, recipe: Recipe) -> float | None:
    """By how much `planner.pace` errs on `recipe`; None where the part cannot be made or does not run: then nothing
    but the pace is known."""
    bench, blocks = planner.bench, planner.num_blocks
    if planner.pace is None or bench.bare is None or not blocks or not bench.blocks_are_alike:
        return None
    made = blocks_made(bench.bare, blocks)
    if made < min(blocks, MORE):
        return None
    update: dict[str, Any] = {"model": recipe.model.model_copy(update={"storage": "auto"})}
    if made < blocks:
        update["adapter"] = recipe.adapter.model_copy(update={"last_blocks": None})
    seen = recipe.model_copy(update=update)
    try:
        counts = [made] if made == blocks else [FEW, made]
        seconds = {count: _seconds(planner, seen, count) for count in counts}
    except Exception:  # of a part that does not run: too little memory, code that random numbers do not suit
        return None
    expected = planner.pace.seconds(planner.trial(seen, quick=True).work)
    return deep(seconds, blocks) / expected if expected else None


def blocks_made(model: PreTrainedModel, blocks: int) -> int:
    """Of `blocks` that are alike: as many as `WEIGHTS` hold, but of a deep model no fewer than `MORE`; 0 where those
    are too large, or their memory is not free."""
    total = sum(parameter.numel() for parameter in model.parameters())
    path = anatomy(model).blocks[0]
    block = HALF * sum(parameter.numel() for parameter in model.get_submodule(path).parameters())
    made = min(blocks, max(MORE, int(WEIGHTS // max(1, block))))
    part, free = HALF * total - (blocks - made) * block, memory_free_bytes()
    return made if part < LARGEST and (free is None or ROOM * part < free) else 0


def deep(seconds: Mapping[int, float], blocks: int) -> float:
    """Of a model of `blocks` blocks, from those of one or two counts."""
    if blocks in seconds:
        return seconds[blocks]
    (few, at_few), (more, at_more) = sorted(seconds.items())
    return at_few + max(0.0, at_more - at_few) * (blocks - few) / (more - few)


def _seconds(planner: Planner, recipe: Recipe, blocks: int) -> float:
    """Of one pass over the micro-batch, forward and backward, by a model of so many blocks."""
    bench, device = planner.bench, pick_device(recipe.model.device)
    model = _part(bench, recipe, blocks).to(device)  # type: ignore[arg-type]
    switch = Switch()
    policy = Policy(model, switch, flat=bench.ways.flat)
    adapter_set = prepared(recipe, bench.tokenizer, policy)
    chosen = bench.chosen(policy, planner.micro_tokens(recipe))
    if chosen is None:
        raise ValueError("no row is left to learn from")
    objective, learned = bench.foreseen.objective, list(adapter_set.parameters().values())

    def learn() -> None:
        for parameter in learned:
            parameter.grad = None
        found = objective.loss(policy, chosen.batch)
        torch.stack([value / chosen.step.denominators[name] for name, value in found.sums.items()]).sum().backward()  # type: ignore[no-untyped-call]

    return timed(learn, device)


def timed(work: Callable[[], None], device: torch.device) -> float:
    """Seconds of `work`, once it is warm: the median of a few times."""

    def once() -> float:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter() - start

    once()
    took = [once()]
    while len(took) < REPEATS and sum(took) < ENOUGH:
        took.append(once())
    return median(took)


def _part(bench: Bench, recipe: Recipe, blocks: int) -> PreTrainedModel:
    """The recipe's model with so many blocks and random numbers, frozen, as `load_model` would hand it out."""
    bare = bench.bare
    assert bare is not None
    config: Any = copy.deepcopy(bare.config)
    text = config.get_text_config()
    text.num_hidden_layers = blocks
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:blocks]
    dtype = pick_dtype(recipe.model.dtype, pick_device(recipe.model.device))
    attention.register()
    with torch.random.fork_rng(devices=()):
        model: PreTrainedModel = type(bare)._from_config(config, dtype=dtype)
        resize_for(model, bench.tokenizer)
    model.requires_grad_(False)
    model.eval()
    if bench.ways.attends:
        attention.install(model)
    fuse(model)
    return model


def seen(planner: Planner, recipe: Recipe) -> bool:
    """Let `planner`'s pace be right of `recipe`; whether it could be tried."""
    found = factor(planner, recipe)
    if found is not None and planner.pace is not None:
        planner.pace = replace(planner.pace, factor=found)
    return found is not None

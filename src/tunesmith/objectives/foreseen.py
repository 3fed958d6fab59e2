"""What stands in for rows that are written while training, where a plan tries a step before there is a model.

Each prompt has an answer of the most tokens behind it, `num_each` times; the answers to one prompt differ from their
first token on, so that what they share is the prompt. The loss is that of given answers, which holds about as much.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tunesmith.data.types import Example
from tunesmith.objectives.base import Foreseen
from tunesmith.objectives.sft import SFT

WRITTEN = (
    "answers are written while training: rows are taken to be as long as they can become with them, and the time of "
    "writing them comes on top"
)
LOOKED_AT = 500
"""Most prompts that stand for all: of every length, the longest among them."""


def written(
    prompts: Sequence[Example], most: int, *, num_each: int, batch_size: int, seed: int, share: bool = False
) -> Foreseen:
    """`most`: tokens of an answer. `batch_size`: prompts of a step. `share`: a prompt is there once for its answers."""
    by_length = sorted(prompts, key=len, reverse=True)
    chosen = by_length[:: -(-len(by_length) // LOOKED_AT) or 1]
    rows = [_answered(prompt, most, number, str(at)) for at, prompt in enumerate(chosen) for number in range(num_each)]
    at_once = batch_size * num_each
    stand_in = SFT(rows, [], batch_size=at_once, seed=seed, share=share)
    return Foreseen(stand_in, rows, WRITTEN, is_own=False, written=at_once)


def _answered(prompt: Example, most: int, number: int, group: str) -> Example:
    """With an answer of `most` tokens, all of them learned and all of them the `number`-th of the vocabulary."""
    ids = np.concatenate([prompt.token_ids, np.full(most, number, dtype=np.int64)])
    weights = np.concatenate([np.zeros(len(prompt), dtype=np.float32), np.ones(most, dtype=np.float32)])
    return Example(ids, weights, prompt.origin, group)

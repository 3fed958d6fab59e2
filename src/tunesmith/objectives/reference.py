"""What the reference gives each row: computed once, kept on disk, and found again by all that it depends on.

The reference never learns, so its log-probabilities are numbers of the rows. A file in the cache holds them by a digest
of each row's tokens and mask; the file's name is a digest of every weight of the reference and of how it is run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor

from tunesmith.atomic import write_file
from tunesmith.data.pack import micro_batches_of
from tunesmith.data.types import Batch, Example
from tunesmith.models.policy import Policy
from tunesmith.models.room import by_less
from tunesmith.objectives.cache_keys import row_digest, weights_key
from tunesmith.objectives.logprobs import row_logps


@dataclass(frozen=True)
class References:
    """Sums of log-probabilities of learned tokens under the reference, by row."""

    sums: dict[bytes, float]

    def of(self, batch: Batch, like: Tensor) -> Tensor:
        """[n] for the rows of `batch`, in the order of its leaves."""
        return torch.tensor(
            [self.sums[row_digest(batch.examples[leaf])] for leaf in batch.leaves], dtype=like.dtype, device=like.device
        )


def precompute(
    policy: Policy,
    units: Sequence[Sequence[Example]],
    *,
    max_tokens: int,
    share: bool,
    root: Path,
    told: Callable[[float], None],
) -> tuple[References, float | None]:
    """The reference's sums for all rows of `units`; where they were there already, also the seconds that they took
    then, else None.

    Rows of one unit stand together in a batch, as they will in training; at most `max_tokens` at a time.
    """
    wanted = sorted({row_digest(example) for unit in units for example in unit})
    path = root / f"{weights_key(policy, wanted, max_tokens, share, policy.reference_digest)}.safetensors"
    known = _read(path, wanted)
    if known is not None:
        return References(known[0]), known[1]
    sums: dict[bytes, float] = {}
    begun = time.perf_counter()
    fill(sums, policy, units, max_tokens=max_tokens, share=share, told=told)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = np.frombuffer(b"".join(wanted), dtype=np.uint8).reshape(-1, 16)
    took = np.array([time.perf_counter() - begun])
    write_file(path, save({"rows": names, "sums": np.array([sums[name] for name in wanted]), "seconds": took}))
    return References(sums), None


def fill(
    sums: dict[bytes, float],
    policy: Policy,
    units: Sequence[Sequence[Example]],
    *,
    max_tokens: int,
    share: bool,
    told: Callable[[float], None] = lambda share: None,
) -> None:
    """Add the reference's sums for the rows of those `units` that are not whole in `sums`; with smaller batches where
    memory runs out."""

    def filled(most: int) -> None:
        missing = [unit for unit in units if any(row_digest(row) not in sums for row in unit)]
        batches = micro_batches_of(missing, most, share=share)
        total, done = sum(map(len, batches)), 0
        for batch in batches:
            with policy.reference():
                found = row_logps(policy, batch.to(policy.device)).sums.tolist()
            sums.update(zip((row_digest(batch.examples[leaf]) for leaf in batch.leaves), found, strict=True))
            done += len(batch)
            told(done / total)

    shortest = min((len(row) for unit in units for row in unit), default=1)  # at that, every unit stands alone
    by_less(filled, max_tokens, shortest, policy.device)


def _read(path: Path, wanted: Sequence[bytes]) -> tuple[dict[bytes, float], float] | None:
    """The numbers of a file that is whole and holds these rows, and the seconds that they took (0 where nobody wrote
    them down), or None."""
    try:
        held = load(path.read_bytes())
        names, sums = [bytes(row) for row in held["rows"]], held["sums"].tolist()
    except (OSError, KeyError, ValueError, SafetensorError):
        return None
    if names != list(wanted) or not np.isfinite(sums).all():
        return None
    return dict(zip(names, sums, strict=True)), float(held["seconds"][0]) if "seconds" in held else 0.0

"""Digests of rows as the model sees them: to remember a million rows by, and to know a set of them again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from tunesmith.data.types import Answer, Asked, Classified, Example


def digest_of(*parts: np.ndarray | bytes) -> bytes:
    """Sixteen bytes to remember tokens by, where a million rows are remembered."""
    made = hashlib.blake2b(digest_size=16)
    for part in parts:
        made.update(part if isinstance(part, bytes) else part.tobytes())
    return made.digest()


def fingerprint(*sides: Sequence[Example]) -> str:
    """Digest of every token, weight and border of every side, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for side in sides:
        digest.update(np.array([len(side), *(len(example) for example in side)], dtype="<i8").tobytes())
        for example in side:
            digest.update(example.token_ids.astype("<i8").tobytes())
            digest.update(example.loss_weights.astype("<f4").tobytes())
            if isinstance(example, Answer):
                digest.update(
                    example.side.encode() if example.margin is None else f"{example.side} {example.margin}".encode()
                )
            elif isinstance(example, Classified):
                digest.update(json.dumps(example.labels).encode())
            elif isinstance(example, Asked):  # a reward reads the row's columns
                digest.update(json.dumps(example.prompt.columns, sort_keys=True, default=str).encode())
    return digest.hexdigest()

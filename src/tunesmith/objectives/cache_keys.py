"""By what numbers that a frozen model gives are found again: the rows' tokens, and every weight."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
import transformers

from tunesmith.data.types import Example
from tunesmith.models.policy import Policy

FORMAT = 1


def row_digest(example: Example) -> bytes:
    """16 bytes that name a row's tokens and mask."""
    digest = hashlib.blake2b(example.token_ids.astype("<i8").tobytes(), digest_size=16)
    digest.update(example.loss_weights.astype("<f4").tobytes())
    return digest.digest()


def weights_key(policy: Policy, rows: Sequence[bytes], max_tokens: int, share: bool, adapter: str | None = None) -> str:
    """40 hex digits of all that numbers of rows depend on: every weight of the base, the rows, and how it is run.

    `adapter`: a digest of that which acts. `max_tokens` and `share`, since the sums of a product may round otherwise in
    a batch of another size.
    """
    model, digest = policy.model, hashlib.blake2b(digest_size=20)
    config = {name: value for name, value in model.config.to_dict().items() if not name.startswith("_")}
    how = [
        FORMAT,
        str(model.dtype),
        model.device.type,
        policy.flat,
        max_tokens,
        share,
        adapter,
        torch.__version__,
        transformers.__version__,
        config,
    ]
    digest.update(json.dumps(how, sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        if ".adapters." not in name and not name.startswith("score."):  # a head is drawn anew for each run
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    for row in rows:
        digest.update(row)
    return digest.hexdigest()

"""Whether a run stores what its frozen blocks give, and that it is there before the first step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from tunesmith.adapters.adapter_set import AdapterSet
from tunesmith.data.types import Example
from tunesmith.errors import MachineError, ModelError
from tunesmith.models.frozen import Activations, Blocks, distinct, fill, find
from tunesmith.models.frozen_file import Folder, free_bytes, key
from tunesmith.models.policy import Policy
from tunesmith.progress import size
from tunesmith.train.budget import Budget
from tunesmith.train.memory import default_micro_batch_tokens, is_out_of_memory

Stage = Callable[[str], AbstractContextManager[Callable[[float], None]]]
"""`with stage("what is done") as told: told(0.5)`."""


def is_wanted(budget: Budget, steps_per_epoch: int, adapter_set: AdapterSet) -> bool:
    """What train.cache_frozen null means: the last blocks alone learn, and rows come more than once."""
    more_than_once = budget.num_steps is not None and budget.num_steps > steps_per_epoch
    return more_than_once and adapter_set.settings.last_blocks is not None


def store_frozen(
    policy: Policy,
    adapter_set: AdapterSet,
    rows: list[Example],
    root: Path,
    *,
    max_tokens: int | None,
    is_must: bool,
    stage: Stage,
) -> str:
    """Give `policy` the states of `rows` behind its frozen blocks; returns what to say of it.

    They are computed where `root` has them not. `is_must`: what stands in the way is an error, not a reason to go
    without.
    """
    off = "or train.cache_frozen=false"
    blocks = find(policy, adapter_set)
    if isinstance(blocks, str):
        if is_must:
            raise ModelError(
                "the output of the frozen blocks cannot be stored", found=blocks, fix=off.removeprefix("or ")
            )
        return f"the frozen blocks are run in every pass: {blocks}"
    told, starts = distinct(rows)
    num_tokens, longest = sum(map(len, told)), max(map(len, told))
    most = max_tokens or default_micro_batch_tokens(policy.device)
    while True:
        try:
            with stage(f"what the {blocks.frozen} frozen blocks give for {num_tokens:,} tokens") as done:
                folder = Folder(root, key(blocks, starts, most), (num_tokens, blocks.width), blocks.dtype)
                if not folder.is_whole():
                    if not folder.has_room():
                        break
                    _make(folder, blocks, told, starts, most, done)
            policy.stored = Activations(blocks, folder.table(), starts)
            return f"the {blocks.frozen} frozen blocks are not run again: what they give is stored ({size(folder.num_bytes)})"
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or most <= longest:
                raise
            most = max(longest, most // 2)
    needed, free = size(folder.num_bytes), size(free_bytes(root))
    if is_must:
        raise MachineError(
            "the disk has no room for what the frozen blocks give",
            where=str(root),
            found=f"{free} free",
            expected=needed,
            fix=f"make room, set TUNESMITH_CACHE to a folder on another disk, {off}",
        )
    return f"the frozen blocks are run in every pass: what they give would take {needed}, and {root} has {free} free"


def _make(
    folder: Folder,
    blocks: Blocks,
    rows: list[Example],
    starts: dict[bytes, int],
    max_tokens: int,
    told: Callable[[float], None],
) -> None:
    try:
        with folder.making() as write:
            for done in fill(blocks, rows, starts, max_tokens, write):
                told(done / folder.shape[0])
    except MachineError as error:
        raise error.to_do(
            "make room, set TUNESMITH_CACHE to a folder elsewhere, or train.cache_frozen=false"
        ) from error

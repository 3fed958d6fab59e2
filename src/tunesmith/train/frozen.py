"""Whether a run stores what its frozen blocks give, and that it is there before the first step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tunesmith.adapters.adapter_set import AdapterSet
from tunesmith.adapters.settings import NONE
from tunesmith.data.prepare import Prepared
from tunesmith.data.types import Asked, Example
from tunesmith.errors import MachineError, ModelError
from tunesmith.models.frozen import Activations, Blocks, distinct, fill, find
from tunesmith.models.frozen_file import Folder, free_bytes, key
from tunesmith.models.policy import Policy
from tunesmith.models.room import is_out_of_memory
from tunesmith.progress import Progress, size
from tunesmith.train.budget import Budget
from tunesmith.train.memory import default_micro_batch_tokens
from tunesmith.train.settings import TrainSettings

ROOM = "make room, set TUNESMITH_CACHE to a folder on another disk, or train.cache_frozen=false"


def store_frozen(
    policy: Policy,
    adapter_set: AdapterSet,
    prepared: Prepared,
    settings: TrainSettings,
    budget: Budget,
    root: Path,
    before: bool | None,
    progress: Progress,
) -> float:
    """Give `policy` the states of all rows behind its frozen blocks, where the settings want it, and say what was done.
    Returns the seconds that states which were there already took when they were computed.

    They are computed where `root` has them not. `before`: what a resumed run had, since it does not change its sums.
    Where they were asked for, what stands in the way is an error.
    """
    if isinstance(prepared.train[0], Asked):  # what is trained is sampled, and comes once
        return 0.0
    asked = settings.cache_frozen if before is None else before
    last_blocks_alone = adapter_set.settings.last_blocks is not None or adapter_set.settings.targets == NONE
    if asked or (asked is None and last_blocks_alone and budget.repeats):
        rows = [*prepared.train, *prepared.held_out]
        told, kept = _store(policy, adapter_set, rows, root, settings.micro_batch_tokens, bool(asked), progress)
        progress.say(told)
        return kept
    return 0.0


def _store(
    policy: Policy,
    adapter_set: AdapterSet,
    rows: list[Example],
    root: Path,
    max_tokens: int | None,
    is_must: bool,
    progress: Progress,
) -> tuple[str, float]:
    """What was done, or (unless `is_must`) why not; and the seconds that what was found took once."""
    blocks = find(policy, adapter_set)
    if isinstance(blocks, str):
        if is_must:
            raise ModelError(
                "the output of the frozen blocks cannot be stored", found=blocks, fix="train.cache_frozen=false"
            )
        return f"the frozen blocks are run in every pass: {blocks}", 0.0
    rows, starts = distinct(rows)
    num_tokens, longest = sum(map(len, rows)), max(map(len, rows))
    most = max_tokens or default_micro_batch_tokens(policy.device)
    while True:
        try:
            with progress.stage(f"what the {blocks.frozen} frozen blocks give for {num_tokens:,} tokens") as done:
                folder = Folder(root, key(blocks, starts, most), (num_tokens, blocks.width), blocks.dtype)
                kept = folder.seconds if folder.is_whole() else None
                if kept is None:
                    if not folder.has_room():
                        break
                    _make(folder, blocks, rows, starts, most, done)
            policy.stored = Activations(blocks, folder.table(), starts)
            return f"what they give is stored ({size(folder.num_bytes)}): no pass runs them again", kept or 0.0
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
            fix=ROOM,
        )
    why = f"what they give would take {needed}, and {root} has {free} free"
    return f"the frozen blocks are run in every pass: {why}", 0.0


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
        raise error.to_do(ROOM) from error

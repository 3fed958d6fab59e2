"""Hidden states behind the frozen blocks, computed once: later passes over the same rows begin at the first block that
learns.

While a batch runs, the blocks below give way to stand-ins: the first hands out the stored states, the others pass them
on. The model's own code for masks, positions and kinds of layer runs as ever, with every block at its number. Whether a
model can run so is found by trying: what learns must lie above, and hidden states must come out the same.

A row is known by its tokens alone, so that batches, trees of rows that begin alike, and splits may be cut anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.adapters.adapter_set import AdapterSet
from tunesmith.adapters.attach import replace
from tunesmith.adapters.virtual import VirtualSettings
from tunesmith.data.pack import micro_batches
from tunesmith.data.types import Batch, Example
from tunesmith.models import attention
from tunesmith.models.policy import Policy, flat_batch


class StandIn(nn.Module):
    """In place of a block: hands out `hidden` (None: what it is given), in the shape that the block returns."""

    def __init__(self, block: nn.Module, parts: int | None, hidden: Tensor | None = None) -> None:
        """`parts`: how long a tuple the block returns; None for the tensor alone."""
        super().__init__()
        self._block, self._parts, self._hidden = (block,), parts, hidden

    def __getattr__(self, name: str) -> Any:
        """What else is asked of the block (its kind of attention) is asked of it."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_block"][0], name)

    def forward(self, hidden_states: Tensor, *more: Any, **named: Any) -> Any:
        hidden = hidden_states if self._hidden is None else self._hidden
        return hidden if self._parts is None else (hidden, *[None] * (self._parts - 1))


@dataclass(frozen=True)
class Blocks:
    """The blocks of a policy's model, of which the first `frozen` lie below all that learns."""

    policy: Policy
    paths: tuple[str, ...]
    frozen: int
    parts: tuple[int | None, ...]
    """What each block returns: a tuple of so many, or (None) a tensor."""
    width: int
    dtype: torch.dtype
    """Of what the last of the frozen blocks gives."""

    @contextmanager
    def given(self, hidden: Tensor) -> Iterator[None]:
        """Inside, the frozen blocks are not run: `hidden` stands for what they give."""
        with self._stood_in(range(self.frozen), hidden):
            yield

    def states(self, batch: Batch) -> Tensor:
        """What the frozen blocks give for `batch` [T, d]; those above are not run."""
        found: list[Tensor] = []
        last = self.policy.model.get_submodule(self.paths[self.frozen - 1])
        handle = last.register_forward_hook(lambda _, inputs, output: found.append(_tensor(output)))
        stored, self.policy.stored = self.policy.stored, None
        try:
            with self.policy.answering(), self._stood_in(range(self.frozen, len(self.paths)), None):
                self.policy.hidden(batch)
        finally:
            self.policy.stored = stored
            handle.remove()
        return self.policy.from_run(found[0], batch)

    @contextmanager
    def _stood_in(self, numbers: Iterable[int], hidden: Tensor | None) -> Iterator[None]:
        model = self.policy.model
        before = {number: model.get_submodule(self.paths[number]) for number in numbers}
        try:
            for number, block in before.items():
                replace(model, self.paths[number], StandIn(block, self.parts[number], hidden))
                hidden = None
            yield
        finally:
            for number, block in before.items():
                replace(model, self.paths[number], block)


class Activations:
    """A table of states [N, d] behind the frozen blocks, and where in it each row begins; `Policy.stored` takes it."""

    def __init__(self, blocks: Blocks, table: Tensor, starts: dict[bytes, int]) -> None:
        self.blocks, self.table, self.starts = blocks, table, starts

    def given(self, hidden: Tensor) -> Any:
        return self.blocks.given(hidden)

    def of(self, batch: Batch) -> Tensor | None:
        """[T, d] for the tokens of `batch`; None where a row of it is not in the table."""
        ids = batch.token_ids.cpu().numpy()
        pieces: list[Tensor | None] = [None] * len(batch.segments)
        parents = {segment.parent for segment in batch.segments}
        for index, segment in enumerate(batch.segments):
            if segment.parent is None and index in parents:
                continue  # its children know it
            parent = None if segment.parent is None else batch.segments[segment.parent]
            before = ids[:0] if parent is None else ids[parent.start : parent.end]
            start = self.starts.get(digest(np.concatenate([before, ids[segment.start : segment.end]])))
            if start is None:
                return None
            if segment.parent is not None:
                pieces[segment.parent] = self.table[start : start + len(before)]
            pieces[index] = self.table[start + len(before) : start + len(before) + len(segment)]
        return torch.cat([piece for piece in pieces if piece is not None])


def digest(token_ids: np.ndarray) -> bytes:
    """16 bytes that name a row."""
    return hashlib.blake2b(token_ids.astype("<i8").tobytes(), digest_size=16).digest()


def distinct(*sides: Sequence[Example]) -> tuple[list[Example], dict[bytes, int]]:
    """Rows of different tokens, and where each begins in a table of all of them; the order is that of their digests.

    It does not depend on how rows were split or shuffled.
    """
    rows = {digest(example.token_ids): example for side in sides for example in side}
    order = sorted(rows)
    ends = np.cumsum([len(rows[name]) for name in order]).tolist()
    return [rows[name] for name in order], dict(zip(order, [0, *ends], strict=False))


def fill(
    blocks: Blocks,
    rows: Sequence[Example],
    starts: dict[bytes, int],
    max_tokens: int,
    write: Callable[[int, Tensor], object],
) -> Iterator[int]:
    """Compute the states of `rows`, at most `max_tokens` at a time: `write(start, states [n, d])` for each row.

    Yields how many tokens are done after each batch.
    """
    done = 0
    for batch in micro_batches(rows, max_tokens):
        states = blocks.states(batch.to(blocks.policy.device)).cpu()
        ids = batch.token_ids.numpy()
        for segment in batch.segments:
            write(starts[digest(ids[segment.start : segment.end])], states[segment.start : segment.end])
        done += len(batch)
        yield done


def find(policy: Policy, adapter_set: AdapterSet) -> Blocks | str:
    """The frozen blocks of `policy` below all that `adapter_set` trains, or the reason why they cannot be stored."""
    if isinstance(adapter_set.settings, VirtualSettings):
        return "virtual tokens stand before each document, and change what every block gives"
    body = adapter_set.body
    numbers = [body.block_of(path) for path in adapter_set.adapters]
    frozen = min((number for number in numbers if number is not None), default=len(body.blocks))
    if frozen == 0:
        return "the first block is trained"
    if policy.noise is not None:
        return "NEFTune changes what goes into the first block, each time otherwise"
    with policy.answering():
        return _tried(policy, adapter_set, frozen)


def _tried(policy: Policy, adapter_set: AdapterSet, frozen: int) -> Blocks | str:
    """Three documents with stored states beside the same without."""
    documents = [torch.arange(n, device=policy.device) * 7 % 60 + 3 for n in (19, 5, 12)]
    batch = flat_batch(documents)
    try:
        traced = _trace(policy, adapter_set, batch, frozen)
        if isinstance(traced, str):
            return traced
        wanted, blocks = traced
        ends = np.cumsum([len(document) for document in documents]).tolist()
        names = [digest(document.cpu().numpy()) for document in documents]
        starts = dict(zip(names, [0, *ends], strict=False))
        before, policy.stored = policy.stored, Activations(blocks, blocks.states(batch), starts)
        # Whatever the blocks below leave behind elsewhere is now of other tokens.
        blocks.states(flat_batch([document + 5 for document in documents]))
        try:
            found = policy.hidden(batch)
        finally:
            policy.stored = before
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError, NotImplementedError) as error:
        return f"the blocks above do not run without those below ({type(error).__name__}: {error})".splitlines()[0]
    gap = attention.same_logits(found, wanted, policy.model.dtype)
    if gap > 1:
        return f"the blocks above need more of those below than their output (it differs {gap:.3g} times too much)"
    return blocks


def _trace(policy: Policy, adapter_set: AdapterSet, batch: Batch, frozen: int) -> tuple[Tensor, Blocks] | str:
    """(hidden states of `batch`, the blocks), or which adapter acts before the frozen blocks end."""
    model, body = policy.model, adapter_set.body
    order: list[str] = []
    returned: dict[str, Any] = {}
    handles = []
    for path in adapter_set.adapters:
        slot = model.get_submodule(path)
        handles.append(slot.register_forward_pre_hook(lambda _, inputs, path=path: order.append(path)))
    for path in body.blocks:
        block = model.get_submodule(path)
        handles.append(
            block.register_forward_hook(lambda _, inputs, output, path=path: returned.setdefault(path, output))
        )
        if path == body.blocks[frozen - 1]:
            handles.append(block.register_forward_hook(lambda _, inputs, output: order.append("")))
    try:
        hidden = policy.hidden(batch)
    finally:
        for handle in handles:
            handle.remove()
    if len(returned) < len(body.blocks) or order.count("") != 1:
        return "the model does not run its blocks one after the other"
    below = dict.fromkeys(order[: order.index("")])
    elsewhere = [
        path for path in adapter_set.adapters if body.block_of(path) is None and path not in (body.head, *body.scorer)
    ]
    silent = [path for path in elsewhere if path not in order]
    if below or silent:
        return f"{', '.join([*below, *silent][:3])} is trained, and does not lie above the frozen blocks"
    parts = tuple(len(r) if isinstance(r, tuple) else None for r in (returned[path] for path in body.blocks))
    given = _tensor(returned[body.blocks[frozen - 1]])
    return hidden, Blocks(policy, body.blocks, frozen, parts, given.shape[-1], given.dtype)


def _tensor(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found.detach()
